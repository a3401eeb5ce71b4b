package seal

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

var (
	secretOld = []byte("an old secret of thirty-two bytes, at least")
	secretNew = []byte("a new secret of thirty-two bytes, at least.")

	// These two have the same key ID.
	secretTwin  = []byte("thirty-two bytes and a number: 00109529")
	secretTwin2 = []byte("thirty-two bytes and a number: 00156374")

	token      = []byte("kJ8v3yPqXw0Zr5nT2bLhG7mVfC1dSeUaQoIiYxWtR4E")
	additional = []byte("gatehouse:{Zk3vT0aPq9Lx}:s:mB6Y0Jt7hQbWl1e2sYvC3uXoKqNfZr8dGpTjIaEwHc4")
)

const purpose = "session"

func newRing(t testing.TB, secrets ...[]byte) *Ring {
	t.Helper()
	r, err := NewRing(secrets)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func boxOf(t testing.TB, r *Ring, id ID, purpose string, context []byte) Box {
	t.Helper()
	b, err := r.Box(id, purpose, context)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func current(t testing.TB, r *Ring) Box { return boxOf(t, r, r.Current(), purpose, token) }

// sealing are all kinds of Box that do not pass through.
func sealing(t testing.TB) map[string]Box {
	return map[string]Box{
		"Ring":     current(t, newRing(t, secretNew, secretOld)),
		"TokenBox": TokenBox(purpose, token),
	}
}

func TestSealedTextOpens(t *testing.T) {
	for name, box := range sealing(t) {
		t.Run(name, func(t *testing.T) {
			for _, n := range []int{0, 1, 15, 16, 17, 300, 400, 10_000} {
				plaintext := bytes.Repeat([]byte("session "), n/8+1)[:n]
				kept := bytes.Clone(plaintext)
				header := []byte("header")
				sealed := box.Seal(header, plaintext, additional)
				if !bytes.HasPrefix(sealed, header) || !bytes.Equal(plaintext, kept) {
					t.Fatal("dst was not appended to, or the plaintext was changed")
				}
				sealed = sealed[len(header):]
				if got := len(sealed) - n; got != Overhead {
					t.Errorf("%d bytes: overhead of %d", n, got)
				}
				keptSealed := bytes.Clone(sealed)
				got, err := box.Open([]byte("dst"), sealed, additional)
				if err != nil || string(got) != "dst"+string(kept) {
					t.Errorf("%d bytes: got %q, error %v", n, got, err)
				}
				if !bytes.Equal(sealed, keptSealed) {
					t.Error("Open changed its input")
				}
				if n >= 16 && bytes.Contains(sealed, plaintext[:8]) {
					t.Errorf("%d bytes: readable", n)
				}
			}
		})
	}
}

func TestSealedTextShowsNothing(t *testing.T) {
	plaintext := []byte(`{"userID":42,"name":"Ada"}`)
	for name, box := range sealing(t) {
		sealed := box.Seal(nil, plaintext, additional)
		for _, confidential := range []string{"userID", "Ada", string(token[:8]), string(secretNew[:8]), string(additional[:8])} {
			if bytes.Contains(sealed, []byte(confidential)) {
				t.Errorf("%s: %q is readable", name, confidential)
			}
		}
		if bytes.Equal(sealed, box.Seal(nil, plaintext, additional)) {
			t.Errorf("%s: the same bytes twice", name)
		}
	}
}

func TestOpenRefusesWhatWasAltered(t *testing.T) {
	for name, box := range sealing(t) {
		t.Run(name, func(t *testing.T) {
			sealed := box.Seal(nil, []byte("payload"), additional)
			refused := func(what string, sealed []byte) {
				t.Helper()
				if got, err := box.Open(nil, sealed, additional); err != ErrUnreadable || got != nil {
					t.Errorf("%s: got %q, error %v", what, got, err)
				}
			}
			for i := range sealed {
				for bit := range 8 {
					bad := bytes.Clone(sealed)
					bad[i] ^= 1 << bit
					refused(fmt.Sprintf("bit %d of byte %d flipped", bit, i), bad)
				}
				refused(fmt.Sprintf("truncated to %d bytes", i), sealed[:i])
				refused(fmt.Sprintf("first %d bytes cut", i+1), sealed[i+1:])
			}
			refused("longer", append(bytes.Clone(sealed), 0))
			refused("plaintext", []byte("payload"))
		})
	}
}

func TestOpenRefusesWhatWasSealedOtherwise(t *testing.T) {
	r := newRing(t, secretNew, secretOld)
	old := r.keys[1].id
	otherToken := append(bytes.Clone(token[:42]), 'F')
	tests := []struct {
		name       string
		seal, open Box
		additional []byte // of Open
	}{
		{"other additional data", current(t, r), current(t, r), append(bytes.Clone(additional), 'x')},
		{"no additional data", current(t, r), current(t, r), nil},
		{"other context", current(t, r), boxOf(t, r, r.Current(), purpose, otherToken), additional},
		{"longer context", current(t, r), boxOf(t, r, r.Current(), purpose, append(bytes.Clone(token), 0)), additional},
		{"no context", current(t, r), boxOf(t, r, r.Current(), purpose, nil), additional},
		{"other purpose", current(t, r), boxOf(t, r, r.Current(), "successor", token), additional},
		{"other secret", current(t, r), boxOf(t, r, old, purpose, token), additional},
		{"token alone", current(t, r), TokenBox(purpose, token), additional},
		{"TokenBox: secret as well", TokenBox(purpose, token), current(t, r), additional},
		{"TokenBox: other token", TokenBox(purpose, token), TokenBox(purpose, otherToken), additional},
		{"TokenBox: other purpose", TokenBox(purpose, token), TokenBox("successor", token), additional},
		{"TokenBox: other additional data", TokenBox(purpose, token), TokenBox(purpose, token), []byte("x")},
		{"TokenBox: the same short token", TokenBox(purpose, token[:31]), TokenBox(purpose, token[:31]), additional},
		{"TokenBox: no token", TokenBox(purpose, nil), TokenBox(purpose, nil), additional},
	}
	for _, tt := range tests {
		sealed := tt.seal.Seal(nil, []byte("payload"), additional)
		if got, err := tt.seal.Open(nil, sealed, additional); err != nil || string(got) != "payload" {
			t.Errorf("%s: unaltered: got %q, error %v", tt.name, got, err)
		}
		if got, err := tt.open.Open(nil, sealed, tt.additional); err != ErrUnreadable || got != nil {
			t.Errorf("%s: got %q, error %v", tt.name, got, err)
		}
	}
}

func TestUnknownSecretsAreRefused(t *testing.T) {
	r := newRing(t, secretNew, secretOld)
	unknown := map[string]struct {
		ring *Ring
		id   ID
	}{
		"retired secret":           {newRing(t, secretNew), r.keys[1].id},
		"secrets gone":             {newRing(t), r.Current()},
		"plain though secrets set": {r, Plain},
	}
	for i := range 32 {
		id := r.Current()
		id[i/8] ^= 1 << (i % 8)
		unknown[fmt.Sprintf("bit %d of the ID flipped", i)] = struct {
			ring *Ring
			id   ID
		}{r, id}
	}
	for name, tt := range unknown {
		if _, err := tt.ring.Box(tt.id, purpose, token); err != ErrUnknownKey {
			t.Errorf("%s: error %v", name, err)
		}
		if p := tt.ring.Position(tt.id); p != -1 {
			t.Errorf("%s: position %d", name, p)
		}
	}
}

func TestSecretsRotate(t *testing.T) {
	before, during, after := newRing(t, secretOld), newRing(t, secretNew, secretOld), newRing(t, secretNew)
	if during.Current() != after.Current() || during.Current() == before.Current() {
		t.Fatal("the newest secret does not seal, or IDs do not follow the secret")
	}
	if during.Len() != 2 || during.Position(after.Current()) != 0 || during.Position(before.Current()) != 1 {
		t.Errorf("Len %d, Position %d and %d", during.Len(), during.Position(after.Current()), during.Position(before.Current()))
	}
	old := current(t, before).Seal(nil, []byte("old"), additional)
	fresh := current(t, during).Seal(nil, []byte("new"), additional)
	for _, tt := range []struct {
		name   string
		ring   *Ring
		id     ID
		sealed []byte
		want   string
	}{
		{"old while both", during, before.Current(), old, "old"},
		{"new while both", during, during.Current(), fresh, "new"},
		{"new after", after, during.Current(), fresh, "new"},
	} {
		got, err := boxOf(t, tt.ring, tt.id, purpose, token).Open(nil, tt.sealed, additional)
		if string(got) != tt.want || err != nil {
			t.Errorf("%s: got %q, error %v", tt.name, got, err)
		}
	}
}

func TestWithoutSecretsBytesPassThrough(t *testing.T) {
	for name, r := range map[string]*Ring{"nil": newRing(t), "zero Ring": {}} {
		if r.Current() != Plain || r.Len() != 0 || r.Position(Plain) != -1 {
			t.Errorf("%s: ID %x, Len %d, Position %d", name, r.Current(), r.Len(), r.Position(Plain))
		}
		box := current(t, r)
		if box != (Box{}) {
			t.Errorf("%s: not the zero Box", name)
		}
		if got := box.Seal([]byte("h"), []byte("payload"), additional); string(got) != "hpayload" {
			t.Errorf("%s: sealed %q", name, got)
		}
		if got, err := box.Open([]byte("h"), []byte("payload"), additional); string(got) != "hpayload" || err != nil {
			t.Errorf("%s: opened %q, error %v", name, got, err)
		}
		plain := []byte("payload")
		if got, err := box.Open(nil, plain, additional); err != nil || len(got) != len(plain) || &got[0] != &plain[0] {
			t.Errorf("%s: opened %q with nil dst, error %v: not the input itself", name, got, err)
		}
	}
}

func TestNewRingRefusesBadSecrets(t *testing.T) {
	short := []byte("hunter2 hunter2 hunter2 hunter2")
	tests := []struct {
		name    string
		secrets [][]byte
		want    []string // one a line
	}{
		{"short", [][]byte{secretNew, short}, []string{"Secrets[1] has 31 bytes, at least 32"}},
		{"empty", [][]byte{{}, secretNew}, []string{"Secrets[0] has 0 bytes"}},
		{"several", [][]byte{short, secretNew, nil, secretNew}, []string{"Secrets[0] ", "Secrets[2] ", "Secrets[3] "}},
		{"twice", [][]byte{secretNew, secretOld, secretNew}, []string{"Secrets[2] has the same key ID as Secrets[0]"}},
		{"equal IDs", [][]byte{secretTwin, secretTwin2}, []string{"Secrets[1] has the same key ID as Secrets[0]"}},
		{"empty list", [][]byte{}, []string{"the list of Secrets is empty"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := NewRing(tt.secrets)
			if err == nil || r != nil {
				t.Fatalf("Ring %v, error %v", r, err)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Errorf("%d lines, want %d: %q", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want[:min(len(tt.want), len(lines))] {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("%q does not begin %q", lines[i], want)
				}
			}
			for _, secret := range append(tt.secrets, []byte("hunter2"), []byte("thirty-two")) {
				if len(secret) > 0 && strings.Contains(err.Error(), string(secret)) {
					t.Errorf("%q shows a secret", err)
				}
			}
		})
	}
}

func TestRingDoesNotKeepSecrets(t *testing.T) {
	secret := bytes.Clone(secretNew)
	r := newRing(t, secret)
	sealed := current(t, newRing(t, secretNew)).Seal(nil, []byte("payload"), additional)
	clear(secret)
	if _, err := current(t, r).Open(nil, sealed, additional); err != nil {
		t.Error(err)
	}
}

// What is stored must stay readable. The values come from RFC 5869 written out in
// Python.
func TestKeyDerivationIsStable(t *testing.T) {
	prk := newHMACPool(extract(secretOld))
	for _, tt := range []struct{ name, got, want string }{
		{"ID", fmt.Sprintf("%x", newRing(t, secretOld).Current()), "ae6b4e63"},
		{"Ring's key", fmt.Sprintf("%x", prk.expand(purpose, endBox, token)), "55c24aa34c3a63212b37b8a6a3b4ec522c8de9584fcfddb64608f785f7836ef8"},
		{"Digest", fmt.Sprintf("%x", NewDigest(secretOld, purpose).Sum("message")), "a9464ea965fb6df6cc44135902cac29f35816eaa98552627f763ed096498a726"},
		{"Digest without secret", fmt.Sprintf("%x", NewDigest(nil, purpose).Sum("message")), "366402b080756d091390a96af66d3566fae5165b054c3da56d9097bdcbc4cc88"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %s", tt.name, tt.got)
		}
	}
	// Sealed texts of this version's keys, which a later version must open.
	openWith := func(name string, box Box, key []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		sealed := newBox([32]byte(key)).Seal(nil, []byte("payload"), additional)
		if got, err := box.Open(nil, sealed, additional); err != nil || string(got) != "payload" {
			t.Errorf("%s: got %q, error %v", name, got, err)
		}
	}
	const info = "gatehouse session v1\x00"
	key, err := hkdf.Key(sha256.New, secretOld, nil, info+string(token), 32)
	openWith("Ring", current(t, newRing(t, secretOld)), key, err)
	key, err = hkdf.Expand(sha256.New, token, info, 32)
	openWith("TokenBox", TokenBox(purpose, token), key, err)
}

// Contexts of all lengths around the hasher's buffer, with a pooled HMAC.
func TestKeysAreHKDFs(t *testing.T) {
	prk := newHMACPool(extract(secretOld))
	for i := range 300 {
		context := bytes.Repeat([]byte{byte(i)}, i)
		want, err := hkdf.Key(sha256.New, secretOld, nil, "gatehouse session v1\x00"+string(context), 32)
		if err != nil {
			t.Fatal(err)
		}
		if got := prk.expand(purpose, endBox, context); !bytes.Equal(got[:], want) {
			t.Fatalf("context of %d bytes: %x, want %x", i, got, want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	r := newRing(t, secretNew, secretOld)
	shared := current(t, r)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			context := bytes.Repeat([]byte{byte(g)}, 32)
			for i := range 200 {
				plaintext := fmt.Sprintf("payload %d of %d", i, g)
				own, err := r.Box(r.keys[i%2].id, purpose, context)
				if err != nil {
					t.Error(err)
					return
				}
				for _, box := range []Box{own, shared, TokenBox(purpose, context)} {
					got, err := box.Open(nil, box.Seal(nil, []byte(plaintext), additional), additional)
					if err != nil || string(got) != plaintext {
						t.Errorf("got %q, error %v", got, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func FuzzOpen(f *testing.F) {
	ring := newRing(f, secretNew)
	right := current(f, ring)
	f.Add([]byte{}, []byte{})
	f.Add(make([]byte, Overhead), additional)
	f.Add(right.Seal(nil, []byte("payload"), additional), additional)
	f.Add(TokenBox(purpose, token).Seal(nil, []byte("payload"), additional), additional)
	wrong := []Box{
		current(f, newRing(f, secretOld)),
		boxOf(f, ring, ring.Current(), "fuzz", token),
		TokenBox("fuzz", token),
	}
	f.Fuzz(func(t *testing.T, data, additional []byte) {
		for _, box := range wrong {
			if got, err := box.Open(nil, data, additional); !errors.Is(err, ErrUnreadable) || got != nil {
				t.Fatalf("opened %q, error %v", got, err)
			}
		}
		got, err := right.Open([]byte("dst"), right.Seal(nil, data, additional), additional)
		if err != nil || string(got) != "dst"+string(data) {
			t.Fatalf("got %q, error %v", got, err)
		}
	})
}

func BenchmarkBoxOpen(b *testing.B) {
	r := newRing(b, secretNew, secretOld)
	sealed := current(b, r).Seal(nil, make([]byte, 300), additional)
	for name, dst := range map[string][]byte{"nilDst": nil, "reusedDst": make([]byte, 0, 1024)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				box, err := r.Box(r.Current(), purpose, token)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := box.Open(dst, sealed, additional); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBox(b *testing.B) {
	r := newRing(b, secretNew, secretOld)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Box(r.Current(), purpose, token); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	box := current(b, newRing(b, secretNew))
	plaintext, dst := make([]byte, 300), make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		box.Seal(dst, plaintext, additional)
	}
}

func BenchmarkTokenBox(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		TokenBox(purpose, token)
	}
}
