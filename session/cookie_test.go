package session

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func testSigner(t *testing.T, secrets ...string) signer {
	t.Helper()
	var all [][]byte
	for _, s := range secrets {
		all = append(all, []byte(strings.Repeat(s, 32)))
	}
	s, err := newSigner(all)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testSign(t *testing.T, s signer, value string) string {
	t.Helper()
	signed, err := s.sign(value)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// A cookie that has been seen before is judged as it was the first time, and one that
// resembles it is not.
func TestKnownCookies(t *testing.T) {
	before, now, other := testSigner(t, "o"), testSigner(t, "n", "o"), testSigner(t, "x")
	for i, value := range []string{strings.Repeat("t", tokenLen), strings.Repeat("g", tagLen) + "." + strings.Repeat("t", tokenLen)} {
		signed, outdated := testSign(t, now, value), testSign(t, before, value)
		for range 3 {
			if got, old, ok := now.verify(signed); got != value || old || !ok {
				t.Errorf("%q: %q, old %v, ok %v", value, got, old, ok)
			}
			if got, old, ok := now.verify(outdated); got != value || !old || !ok {
				t.Errorf("%q by the old secret: %q, old %v, ok %v", value, got, old, ok)
			}
		}
		sum := sha256.Sum256([]byte(signed))
		if got, ok := now.known.value(signed, &sum); !ok || got != value {
			t.Errorf("%q is not known: %q, %v", value, got, ok)
		}
		if len(signed) > maxCookie || len(value) > tokenLen && len(signed) < maxCookie/2 {
			t.Errorf("a cookie takes %d bytes", len(signed))
		}
		for at := range len(signed) - 4 { // the last bits stand for nothing
			forged := signed[:at] + string(signed[at]^1) + signed[at+1:]
			if _, _, ok := now.verify(forged); ok {
				t.Fatalf("%d: a cookie with a flipped bit at %d passes", i, at)
			}
		}
		for range 3 {
			if _, _, ok := other.verify(signed); ok {
				t.Error("another secret's cookie passes")
			}
		}
	}
}

// Cookies that share a place drive each other out, and all stay good.
func TestKnownCookiesShareAPlace(t *testing.T) {
	s := testSigner(t, "n")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 10_000 {
				value := fmt.Sprintf("%043d", i%5000+1000*g)
				signed, err := s.sign(value)
				if err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					if got, _, ok := s.verify(signed); got != value || !ok {
						t.Errorf("%q: %q, %v", value, got, ok)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
