package session

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
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

func testSign(t *testing.T, s signer, v cookieValue) string {
	t.Helper()
	signed, err := s.sign(v)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// numbered is one of many values, all different.
func numbered(n int) (v cookieValue) {
	for i := range len(v) / 8 {
		binary.BigEndian.PutUint64(v[8*i:], uint64(n)*0x9e3779b97f4a7c15)
	}
	return v
}

// A cookie that has been seen before is judged as it was the first time, and one that
// resembles it is not.
func TestKnownCookies(t *testing.T) {
	before, now, other := testSigner(t, "o"), testSigner(t, "n", "o"), testSigner(t, "x")
	for n, value := range []cookieValue{{}, numbered(1), numbered(2)} {
		signed, outdated := testSign(t, now, value), testSign(t, before, value)
		for range 3 {
			if got, old, ok := now.verify(signed); got != value || old || !ok {
				t.Errorf("%d: %x, old %v, ok %v", n, got, old, ok)
			}
			if got, old, ok := now.verify(outdated); got != value || !old || !ok {
				t.Errorf("%d by the old secret: %x, old %v, ok %v", n, got, old, ok)
			}
		}
		sum := sha256.Sum256([]byte(signed))
		if got, ok := now.known.value(signed, &sum); !ok || got != value {
			t.Errorf("%d is not known: %x, %v", n, got, ok)
		}
		if len(signed) > maxCookie || len(signed) < maxCookie/2 {
			t.Errorf("a cookie takes %d bytes", len(signed))
		}
		for at := range len(signed) - 4 { // the last bits stand for nothing
			for bit := range 7 {
				forged := signed[:at] + string(signed[at]^1<<bit) + signed[at+1:]
				if _, _, ok := now.verify(forged); ok {
					t.Fatalf("%d: a cookie with bit %d flipped at %d passes", n, bit, at)
				}
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
				value := numbered(i%5000 + 1000*g)
				signed, err := s.sign(value)
				if err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					if got, _, ok := s.verify(signed); got != value || !ok {
						t.Errorf("%x: %x, %v", value, got, ok)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}

// Without secrets a cookie is its value in base64url, in the one spelling of it.
func TestPlainCookies(t *testing.T) {
	s := testSigner(t)
	value := numbered(7)
	cookie := testSign(t, s, value)
	if got, old, ok := s.verify(cookie); got != value || old || !ok {
		t.Errorf("%x, old %v, ok %v", got, old, ok)
	}
	for _, other := range []string{
		"", "x", cookie[1:], cookie + "A", cookie + "=", " " + cookie, "\r\n" + cookie[2:], cookie[:len(cookie)-1] + "\n",
		strings.Repeat("\x00", len(cookie)), strings.Repeat("ä", len(cookie)/2), strings.Repeat("+/", len(cookie)/2),
		base64.StdEncoding.EncodeToString(value[:]) + "==", strings.Repeat("A", 1<<20),
	} {
		if _, _, ok := s.verify(other); ok {
			t.Errorf("%.80q passes", other)
		}
	}
	// Another spelling would be another cookie of the same session.
	spellings := 0
	for c := range 128 {
		if _, _, ok := s.verify(cookie[:len(cookie)-1] + string(rune(c))); ok {
			if got, _, _ := s.verify(cookie[:len(cookie)-1] + string(rune(c))); got == value {
				spellings++
			}
		}
	}
	if spellings != 1 {
		t.Errorf("a value has %d spellings", spellings)
	}
}
