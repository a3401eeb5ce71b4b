package session

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

var (
	secretOld = []byte("an old secret of thirty-two bytes, at least")
	secretNew = []byte("a new secret of thirty-two bytes, at least.")
)

const (
	testToken    = "kJ8v3yPqXw0Zr5nT2bLhG7mVfC1dSeUaQoIiYxWtR4E"
	testRedisKey = "gatehouse:{Zk3vT0aPq9Lx}:s:mB6Y0Jt7hQbWl1e2sYvC3uXoKqNfZr8dGpTjIaEwHc4"
	testFormat   = 1
)

var sealers = []struct {
	name   string
	sealer Sealer
	// overhead in bytes of n bytes sealed
	overhead func(n int) int
}{
	{"AESGCM", AESGCMSealer{}, func(int) int { return 28 }},
	{"SecureCookie", SecureCookieSealer{}, func(n int) int { return (n+17+2)/3*4 + 44 - n }},
}

func newTestKeyring(t testing.TB, sealer Sealer, secrets ...[]byte) *keyring {
	t.Helper()
	k, err := newKeyring(secrets, sealer)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// seal and open do with a keyring what a Store does.
func (k *keyring) seal(dst, payload []byte, format byte, token, redisKey string) ([]byte, error) {
	box, err := k.bind(k.current(), token)
	if err != nil {
		return nil, err
	}
	return sealRecord(box, dst, payload, format, k.current(), token, redisKey)
}

func (k *keyring) open(dst, sealed []byte, format byte, id keyID, token, redisKey string) ([]byte, error) {
	box, err := k.bind(id, token)
	if err != nil {
		return nil, err
	}
	return openRecord(box, dst, sealed, format, id, token, redisKey)
}

func mustSeal(t testing.TB, k *keyring, payload []byte) []byte {
	t.Helper()
	sealed, err := k.seal(nil, payload, testFormat, testToken, testRedisKey)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealRoundTrip(t *testing.T) {
	for _, s := range sealers {
		t.Run(s.name, func(t *testing.T) {
			k := newTestKeyring(t, s.sealer, secretNew)
			for _, n := range []int{0, 1, 15, 16, 17, 300, 400, 10_000} {
				payload := bytes.Repeat([]byte("session "), n/8+1)[:n]
				kept := bytes.Clone(payload)
				header := []byte("header")
				sealed, err := k.seal(header, payload, testFormat, testToken, testRedisKey)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.HasPrefix(sealed, header) || !bytes.Equal(payload, kept) {
					t.Fatal("dst was not appended to, or the payload was changed")
				}
				sealed = sealed[len(header):]
				if got, want := len(sealed)-n, s.overhead(n); got != want {
					t.Errorf("%d bytes: overhead of %d, want %d", n, got, want)
				}
				keptSealed := bytes.Clone(sealed)
				got, err := k.open([]byte("dst"), sealed, testFormat, k.current(), testToken, testRedisKey)
				if err != nil || string(got) != "dst"+string(kept) {
					t.Errorf("%d bytes: got %q, error %v", n, got, err)
				}
				if !bytes.Equal(sealed, keptSealed) {
					t.Error("Open changed its input")
				}
				if n >= 16 && bytes.Contains(sealed, payload[:8]) {
					t.Errorf("%d bytes: readable", n)
				}
			}
		})
	}
}

// With the record's own header (format 1, revision 8, last touched 8) and the
// key ID, a sealed record stays within 64 bytes of its plain payload.
func TestSealOverhead(t *testing.T) {
	payload := mustEncode(t, ordinaryValues())
	sealed := mustSeal(t, newTestKeyring(t, nil, secretNew), payload)
	if n := 1 + 8 + 8 + len(keyID{}) + len(sealed) - len(payload); n > 64 {
		t.Errorf("%d bytes", n)
	}
}

func TestSealIsRandomised(t *testing.T) {
	for _, s := range sealers {
		k := newTestKeyring(t, s.sealer, secretNew)
		if bytes.Equal(mustSeal(t, k, []byte("payload")), mustSeal(t, k, []byte("payload"))) {
			t.Errorf("%s: the same bytes twice", s.name)
		}
	}
}

func TestSealShowsNothing(t *testing.T) {
	payload := mustEncode(t, ordinaryValues())
	for _, s := range sealers {
		sealed := mustSeal(t, newTestKeyring(t, s.sealer, secretNew), payload)
		for _, secret := range []string{"Ada", "userID", "sku-10023", testToken, testToken[:8], string(secretNew[:8])} {
			if bytes.Contains(sealed, []byte(secret)) {
				t.Errorf("%s: %q is readable", s.name, secret)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, s := range sealers {
		t.Run(s.name, func(t *testing.T) {
			k := newTestKeyring(t, s.sealer, secretNew, secretOld)
			other := newTestKeyring(t, s.sealer, secretOld)
			without := newTestKeyring(t, nil)
			sealed := mustSeal(t, k, []byte("payload"))
			successor, err := k.sealSuccessor(nil, "payload", testFormat, testToken, testRedisKey)
			if err != nil {
				t.Fatal(err)
			}
			tests := []struct {
				name            string
				keyring         *keyring
				sealed          []byte
				format          byte
				id              keyID
				token, redisKey string
				want            error
			}{
				{"other token", k, sealed, testFormat, k.current(), testToken[:42] + "F", testRedisKey, errUnreadable},
				{"no token", k, sealed, testFormat, k.current(), "", testRedisKey, errUnreadable},
				{"moved to another key", k, sealed, testFormat, k.current(), testToken, testRedisKey + "x", errUnreadable},
				{"no key", k, sealed, testFormat, k.current(), testToken, "", errUnreadable},
				{"other format", k, sealed, testFormat + 1, k.current(), testToken, testRedisKey, errUnreadable},
				{"other secret's ID", k, sealed, testFormat, other.current(), testToken, testRedisKey, errUnreadable},
				{"successor as a record", k, successor, testFormat, k.current(), testToken, testRedisKey, errUnreadable},
				{"empty", k, nil, testFormat, k.current(), testToken, testRedisKey, errUnreadable},
				{"longer", k, append(bytes.Clone(sealed), 0), testFormat, k.current(), testToken, testRedisKey, errUnreadable},
				{"unknown secret", other, sealed, testFormat, k.current(), testToken, testRedisKey, errUnknownKey},
				{"secrets gone", without, sealed, testFormat, k.current(), testToken, testRedisKey, errUnknownKey},
				{"plain though there are secrets", k, []byte("payload"), testFormat, plainKey, testToken, testRedisKey, errUnknownKey},
			}
			for _, tt := range tests {
				if got, err := tt.keyring.open(nil, tt.sealed, tt.format, tt.id, tt.token, tt.redisKey); err != tt.want || got != nil {
					t.Errorf("%s: got %q, error %v", tt.name, got, err)
				}
			}
			for i := range sealed {
				for bit := range 8 {
					bad := bytes.Clone(sealed)
					bad[i] ^= 1 << bit
					if _, err := k.open(nil, bad, testFormat, k.current(), testToken, testRedisKey); err != errUnreadable {
						t.Fatalf("bit %d of byte %d flipped: error %v", bit, i, err)
					}
				}
				if _, err := k.open(nil, sealed[:i], testFormat, k.current(), testToken, testRedisKey); err != errUnreadable {
					t.Fatalf("cut to %d bytes: error %v", i, err)
				}
			}
			for i := range 32 {
				id := k.current()
				id[i/8] ^= 1 << (i % 8)
				if _, err := k.open(nil, sealed, testFormat, id, testToken, testRedisKey); err != errUnknownKey {
					t.Errorf("bit %d of the key ID flipped: error %v", i, err)
				}
			}
		})
	}
}

func TestSecretRotation(t *testing.T) {
	for _, s := range sealers {
		t.Run(s.name, func(t *testing.T) {
			before := newTestKeyring(t, s.sealer, secretOld)
			during := newTestKeyring(t, s.sealer, secretNew, secretOld)
			after := newTestKeyring(t, s.sealer, secretNew)
			if during.current() != after.current() || during.current() == before.current() {
				t.Fatal("the newest secret does not seal, or key IDs do not follow the secret")
			}
			old := mustSeal(t, before, []byte("old"))
			fresh := mustSeal(t, during, []byte("new"))
			for _, tt := range []struct {
				name    string
				keyring *keyring
				id      keyID
				sealed  []byte
				want    string
				err     error
			}{
				{"old while both", during, before.current(), old, "old", nil},
				{"new while both", during, during.current(), fresh, "new", nil},
				{"new after", after, during.current(), fresh, "new", nil},
				{"old after", after, before.current(), old, "", errUnknownKey},
			} {
				got, err := tt.keyring.open(nil, tt.sealed, testFormat, tt.id, testToken, testRedisKey)
				if string(got) != tt.want || err != tt.err {
					t.Errorf("%s: got %q, error %v", tt.name, got, err)
				}
			}
		})
	}
}

func TestKeyringWithoutSecrets(t *testing.T) {
	k := newTestKeyring(t, nil)
	if k.current() != plainKey {
		t.Errorf("key ID %x", k.current())
	}
	sealed, err := k.seal([]byte("h"), []byte("payload"), testFormat, testToken, testRedisKey)
	if err != nil || string(sealed) != "hpayload" {
		t.Errorf("got %q, error %v", sealed, err)
	}
	got, err := k.open(nil, sealed[1:], testFormat, plainKey, testToken, testRedisKey)
	if err != nil || string(got) != "payload" {
		t.Errorf("got %q, error %v", got, err)
	}
}

func TestSuccessor(t *testing.T) {
	const successor = "Zk3vT0aPq9Lx.9f8e7d6c5b4a39281706f5e4d3c2b1a0998877665"
	keyrings := map[string]*keyring{"no secrets": newTestKeyring(t, nil)}
	for _, s := range sealers {
		keyrings[s.name] = newTestKeyring(t, s.sealer, secretNew, secretOld)
	}
	for name, k := range keyrings {
		t.Run(name, func(t *testing.T) {
			sealed, err := k.sealSuccessor([]byte("h"), successor, testFormat, testToken, testRedisKey)
			if err != nil || sealed[0] != 'h' {
				t.Fatal(err)
			}
			sealed = sealed[1:]
			if bytes.Contains(sealed, []byte(successor[:8])) || bytes.Contains(sealed, []byte(successor[13:21])) {
				t.Error("the successor is readable")
			}
			got, err := k.openSuccessor(sealed, testFormat, k.current(), testToken, testRedisKey)
			if err != nil || got != successor {
				t.Fatalf("got %q, error %v", got, err)
			}
			for what, open := range map[string]func() (string, error){
				"other token": func() (string, error) {
					return k.openSuccessor(sealed, testFormat, k.current(), successor, testRedisKey)
				},
				"no token": func() (string, error) {
					return k.openSuccessor(sealed, testFormat, k.current(), "", testRedisKey)
				},
				"other key": func() (string, error) {
					return k.openSuccessor(sealed, testFormat, k.current(), testToken, "x")
				},
				"other format": func() (string, error) {
					return k.openSuccessor(sealed, testFormat+1, k.current(), testToken, testRedisKey)
				},
				"unknown key ID": func() (string, error) {
					return k.openSuccessor(sealed, testFormat, keyID{1, 2, 3, 4}, testToken, testRedisKey)
				},
			} {
				if got, err := open(); got != "" || err != errUnreadable && err != errUnknownKey {
					t.Errorf("%s: got %q, error %v", what, got, err)
				}
			}
			for i := range sealed {
				bad := bytes.Clone(sealed)
				bad[i] ^= 1
				if _, err := k.openSuccessor(bad, testFormat, k.current(), testToken, testRedisKey); err != errUnreadable {
					t.Errorf("byte %d changed: error %v", i, err)
				}
			}
		})
	}
}

func TestSealNeedsAToken(t *testing.T) {
	if _, err := newTestKeyring(t, nil, secretNew).seal(nil, []byte("x"), testFormat, "", testRedisKey); err == nil {
		t.Error("sealed a record without a token")
	}
	if _, err := newTestKeyring(t, nil).sealSuccessor(nil, "x", testFormat, "", testRedisKey); err == nil {
		t.Error("sealed a successor without a token")
	}
}

type failingSealer struct{}

func (failingSealer) Box([]byte) (Box, error) { return nil, errors.New("no key service") }

func TestKeyringErrors(t *testing.T) {
	short := []byte("hunter2 hunter2 hunter2 hunter2")
	tests := []struct {
		name    string
		secrets [][]byte
		sealer  Sealer
		want    []string
	}{
		{"short", [][]byte{secretNew, short}, nil, []string{"Secrets[1] has 31 bytes, at least 32"}},
		{"empty", [][]byte{{}, secretNew}, nil, []string{"Secrets[0] has 0 bytes"}},
		{"several", [][]byte{short, nil}, nil, []string{"Secrets[0]", "Secrets[1]"}},
		{"twice", [][]byte{secretNew, secretOld, secretNew}, nil, []string{"Secrets[0] and Secrets[2]"}},
		{"sealer without secrets", nil, AESGCMSealer{}, []string{"Secrets is empty"}},
		{"sealer fails", [][]byte{secretNew}, failingSealer{}, []string{"Secrets[0]: no key service"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := newKeyring(tt.secrets, tt.sealer)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
			for _, secret := range append(tt.secrets, []byte("hunter2")) {
				if len(secret) > 0 && strings.Contains(err.Error(), string(secret)) {
					t.Errorf("%q shows a secret", err)
				}
			}
		})
	}
}

func TestKeyringDoesNotKeepSecrets(t *testing.T) {
	for _, s := range sealers {
		secret := bytes.Clone(secretNew)
		k := newTestKeyring(t, s.sealer, secret)
		sealed := mustSeal(t, k, []byte("payload"))
		clear(secret)
		if _, err := k.open(nil, sealed, testFormat, k.current(), testToken, testRedisKey); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

// What is stored must stay readable. The figures come from RFC 5869 written out
// in another language.
func TestKeyDerivationIsStable(t *testing.T) {
	k := newTestKeyring(t, nil, secretOld)
	if got := fmt.Sprintf("%x", k.current()); got != "b4f31b0f" {
		t.Errorf("key ID %s", got)
	}
	for purpose, want := range map[string]string{
		"aes-256-gcm":  "30575f861d82c70b42efe691108e4d31",
		"securecookie": "32c437e204cf352039523bd01bb8888b",
	} {
		prk, err := extract(secretOld)
		if err != nil {
			t.Fatal(err)
		}
		key, err := deriveKey(prk, purpose, testToken, 16)
		if got := fmt.Sprintf("%x", key); err != nil || got != want {
			t.Errorf("%s: %s, error %v", purpose, got, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("1700000000|AAAA|mac"))
	for _, s := range sealers {
		f.Add(mustSeal(f, newTestKeyring(f, s.sealer, secretNew), []byte("payload")))
	}
	f.Fuzz(func(t *testing.T, sealed []byte) {
		for _, s := range sealers {
			k := newTestKeyring(t, s.sealer, secretOld)
			if got, err := k.open(nil, sealed, testFormat, k.current(), testToken, testRedisKey); err != errUnreadable {
				t.Fatalf("%s: got %q, error %v", s.name, got, err)
			}
			if got, err := k.openSuccessor(sealed, testFormat, k.current(), testToken, testRedisKey); err != errUnreadable {
				t.Fatalf("%s: got %q, error %v", s.name, got, err)
			}
		}
	})
}

func BenchmarkSealer(b *testing.B) {
	payload := mustEncode(b, ordinaryValues())
	for _, s := range sealers {
		k := newTestKeyring(b, s.sealer, secretNew, secretOld)
		sealed := mustSeal(b, k, payload)
		b.Run(s.name+"/Seal", func(b *testing.B) {
			b.ReportAllocs()
			b.ReportMetric(float64(len(sealed)-len(payload)), "B-overhead")
			buf := make([]byte, 0, 1024)
			for b.Loop() {
				if _, err := k.seal(buf, payload, testFormat, testToken, testRedisKey); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(s.name+"/Open", func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 0, 1024)
			for b.Loop() {
				if _, err := k.open(buf, sealed, testFormat, k.current(), testToken, testRedisKey); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The key of a record is HKDF's, whichever HMAC made it.
func TestRecordKeyIsHKDF(t *testing.T) {
	prk, err := extract(secret)
	if err != nil {
		t.Fatal(err)
	}
	box := newGCMBox(prk, "aes-256-gcm")
	for i := range 100 {
		token := strings.Repeat(string(rune('a'+i%26)), i)
		want, err := deriveKey(prk, "aes-256-gcm", token, 32)
		if err != nil {
			t.Fatal(err)
		}
		if got := box.key(token); string(got[:]) != string(want) {
			t.Fatalf("token of %d bytes: another key", i)
		}
	}
}

// A box that was made for one token does nothing for another.
func TestBoundBoxKnowsItsToken(t *testing.T) {
	k := newTestKeyring(t, nil, secretNew)
	box, err := k.bind(k.current(), testToken)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := box.Seal(nil, []byte("x"), testToken, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("o", tokenLen)
	if _, err := box.Seal(nil, []byte("x"), other, nil); err == nil {
		t.Error("sealed for another token")
	}
	if _, err := box.Open(nil, sealed, other, nil); err == nil {
		t.Error("opened for another token")
	}
}
