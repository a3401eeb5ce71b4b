package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestDigestIsHMACOrSHA256(t *testing.T) {
	key, err := hkdf.Key(sha256.New, secretNew, nil, "gatehouse session digest v1", 32)
	if err != nil {
		t.Fatal(err)
	}
	secret := bytes.Clone(secretNew)
	keyed, plain := NewDigest(secret, purpose), NewDigest([]byte{}, purpose)
	clear(secret) // which the Digest must not have kept
	for n := range 300 {
		msg := strings.Repeat("m", n)
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(msg))
		if got, want := keyed.Sum(msg), mac.Sum(nil); !bytes.Equal(got[:], want) {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
		if got, want := plain.Sum(msg), sha256.Sum256([]byte("gatehouse session v1\x00"+msg)); got != want {
			t.Errorf("%d bytes without secret: %x, want %x", n, got, want)
		}
	}
}

func TestDigestsDiffer(t *testing.T) {
	seen := map[[32]byte]string{}
	for name, d := range map[string]*Digest{
		"secret": NewDigest(secretNew, purpose), "other secret": NewDigest(secretOld, purpose), "no secret": NewDigest(nil, purpose),
		"purpose": NewDigest(secretNew, "token"), "purpose, no secret": NewDigest(nil, "token"),
	} {
		for _, msg := range []string{"", "a", "b"} {
			what, sum := fmt.Sprintf("%s of %q", name, msg), d.Sum(msg)
			if other, dup := seen[sum]; dup {
				t.Errorf("%s equals %s", what, other)
			}
			seen[sum] = what
		}
	}
}

// No Box, whatever its purpose and context, has the key of a Digest or shows an ID.
func TestInfosDoNotCollide(t *testing.T) {
	prk := newHMACPool(extract(secretNew))
	digest, id := prk.expand(purpose, endDigest, nil), prk.expand("key", endID, nil)
	for _, purpose := range []string{"session", "session digest", "key", "key id"} {
		if key := prk.expand(purpose, endBox, nil); key == digest || key == id {
			t.Errorf("a Box for %q has the key of something else", purpose)
		}
		if key := prk.expand(purpose, endDigest, nil); key == id {
			t.Errorf("a Digest for %q has the ID as its key", purpose)
		}
	}
}

func TestDigestConcurrentUse(t *testing.T) {
	for _, d := range []*Digest{NewDigest(secretNew, purpose), NewDigest(nil, purpose)} {
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				msg := strings.Repeat("m", 40*g)
				want := d.Sum(msg)
				for range 500 {
					if got := d.Sum(msg); got != want {
						t.Errorf("%x, want %x", got, want)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func BenchmarkDigest(b *testing.B) {
	msg := string(token)
	for name, secret := range map[string][]byte{"secret": secretNew, "plain": nil} {
		d := NewDigest(secret, purpose)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				d.Sum(msg)
			}
		})
	}
}
