package session

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"sync/atomic"

	"github.com/gorilla/securecookie"
)

// cookieValue is what a cookie holds: whose the session is, and its token.
type cookieValue [len(owner{}) + len(token{})]byte

func (i id) cookie() (v cookieValue) {
	copy(v[:], i.owner[:])
	copy(v[len(i.owner):], i.token[:])
	return v
}

func (v cookieValue) split() (o owner, t token) {
	return owner(v[:len(o)]), token(v[len(o):])
}

// signer writes and reads cookies. With secrets it signs them, so that forged ones are
// refused without asking Redis.
type signer struct {
	codecs []*securecookie.SecureCookie // newest first
	known  *knownCookies
}

// signedName is authenticated with every value. The browser's name of the cookie may
// change without logging anybody out, so it is not that.
const signedName = "gatehouse-session"

func newSigner(secrets [][]byte) (signer, error) {
	var s signer
	for _, secret := range secrets {
		key, err := hkdf.Key(sha256.New, secret, nil, "gatehouse cookie signature", 32)
		if err != nil {
			return signer{}, err
		}
		// The session's own lifetimes decide how long a cookie is good.
		c := securecookie.New(key, nil).MaxAge(0)
		s.codecs = append(s.codecs, c.SetSerializer(securecookie.NopEncoder{}))
	}
	if len(s.codecs) > 0 {
		s.known = new(knownCookies)
	}
	return s, nil
}

// sign returns the cookie that holds v.
func (s signer) sign(v cookieValue) (string, error) {
	if len(s.codecs) == 0 {
		return base64.RawURLEncoding.EncodeToString(v[:]), nil
	}
	return s.codecs[0].Encode(signedName, v[:])
}

// maxCookie is more than a cookie of ours ever takes, 144 bytes.
const maxCookie = 192

// verify returns what a cookie holds, and whether it was signed with an old secret.
// It accepts exactly what sign writes.
func (s signer) verify(cookie string) (v cookieValue, old, ok bool) {
	if len(s.codecs) == 0 {
		return decodeValue(base64.RawURLEncoding, cookie)
	}
	if cookie == "" || len(cookie) > maxCookie {
		return v, false, false
	}
	var buf [maxCookie]byte
	sum := sha256.Sum256(append(buf[:0], cookie...))
	if v, ok := s.known.value(cookie, &sum); ok {
		return v, false, true
	}
	for i, c := range s.codecs {
		var b []byte
		if c.Decode(signedName, cookie, &b) == nil && len(b) == len(v) {
			if i == 0 {
				s.known.add(&sum)
			}
			return cookieValue(b), i > 0, true
		}
	}
	return v, false, false
}

// decodeValue reads a value that is not signed. base64 has several spellings of the same
// bytes, but not in this length.
func decodeValue(enc *base64.Encoding, s string) (v cookieValue, old, ok bool) {
	if len(s) != enc.EncodedLen(len(v)) {
		return v, false, false
	}
	n, err := enc.Decode(v[:], []byte(s))
	return v, false, err == nil && n == len(v)
}

// knownCookies holds digests of cookies whose signature was checked. A browser sends the
// same cookie with each request, and the check costs several times a digest. It holds
// neither cookies nor values. A new cookie overwrites its slot; nothing expires, as a
// signature does not either. It takes half a megabyte, and 32 bytes for each slot in use.
type knownCookies [1 << 16]atomic.Pointer[[sha256.Size]byte]

func (k *knownCookies) slot(sum *[sha256.Size]byte) *atomic.Pointer[[sha256.Size]byte] {
	return &k[binary.BigEndian.Uint64(sum[:])%uint64(len(k))]
}

func (k *knownCookies) add(sum *[sha256.Size]byte) {
	copied := *sum
	k.slot(sum).Store(&copied)
}

// value returns what a cookie holds if its signature was checked before.
func (k *knownCookies) value(cookie string, sum *[sha256.Size]byte) (v cookieValue, ok bool) {
	known := k.slot(sum).Load()
	if known == nil || subtle.ConstantTimeCompare(known[:], sum[:]) == 0 {
		return v, false
	}
	return signedValue(cookie)
}

// signedValue reads a cookie as securecookie writes it, base64url of "date|value|mac" with
// the value in base64url, and checks nothing.
func signedValue(cookie string) (v cookieValue, ok bool) {
	var in, out [maxCookie]byte
	b, err := base64.URLEncoding.AppendDecode(out[:0], append(in[:0], cookie...))
	if err != nil {
		return v, false
	}
	_, b, _ = bytes.Cut(b, []byte("|"))
	encoded, _, ok := bytes.Cut(b, []byte("|"))
	if !ok || base64.URLEncoding.DecodedLen(len(encoded)) != len(v) {
		return v, false
	}
	n, err := base64.URLEncoding.Decode(v[:], encoded)
	return v, err == nil && n == len(v)
}
