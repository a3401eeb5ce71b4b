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

// signer signs cookie values, so that forged ones are refused without asking
// Redis. Without secrets it passes them on as they are.
type signer struct {
	codecs []*securecookie.SecureCookie // newest first
	known  *knownCookies
}

// signedName is authenticated with every value. The browser's name of the
// cookie may change without logging anybody out, so it is not that.
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

func (s signer) sign(value string) (string, error) {
	if len(s.codecs) == 0 {
		return value, nil
	}
	return s.codecs[0].Encode(signedName, []byte(value))
}

// maxCookie is more than a cookie of ours ever takes, 163 bytes.
const maxCookie = 256

// verify returns the value that was signed, and whether with an old secret.
func (s signer) verify(cookie string) (value string, old, ok bool) {
	if len(s.codecs) == 0 {
		return cookie, false, true
	}
	if len(cookie) > maxCookie {
		return "", false, false
	}
	var buf [maxCookie]byte
	sum := sha256.Sum256(append(buf[:0], cookie...))
	if value, ok := s.known.value(cookie, &sum); ok {
		return value, false, true
	}
	for i, c := range s.codecs {
		var b []byte
		if c.Decode(signedName, cookie, &b) == nil {
			if i == 0 {
				s.known.add(&sum)
			}
			return string(b), i > 0, true
		}
	}
	return "", false, false
}

// knownCookies are digests of cookies that were found well signed, since a browser
// sends the same one with each request, and to check a signature costs many times what
// a digest does. It knows neither cookies nor what they are for. A place is taken over by the
// cookie that came last, and nothing else is forgotten, as a signature does not expire. It
// takes half a megabyte, and 32 bytes for each place that is taken.
type knownCookies [1 << 16]atomic.Pointer[[sha256.Size]byte]

func (k *knownCookies) place(sum *[sha256.Size]byte) *atomic.Pointer[[sha256.Size]byte] {
	return &k[binary.BigEndian.Uint64(sum[:])%uint64(len(k))]
}

func (k *knownCookies) add(sum *[sha256.Size]byte) {
	copied := *sum
	k.place(sum).Store(&copied)
}

// value returns what a cookie was signed for if it is known.
func (k *knownCookies) value(cookie string, sum *[sha256.Size]byte) (string, bool) {
	known := k.place(sum).Load()
	if known == nil || subtle.ConstantTimeCompare(known[:], sum[:]) == 0 {
		return "", false
	}
	return valueOf(cookie)
}

// valueOf reads a cookie as securecookie writes it, base64url of "date|value|mac"
// with a value in base64url, and checks nothing.
func valueOf(cookie string) (string, bool) {
	var in, out [maxCookie]byte
	b, err := base64.URLEncoding.AppendDecode(out[:0], append(in[:0], cookie...))
	if err != nil {
		return "", false
	}
	_, b, _ = bytes.Cut(b, []byte("|"))
	encoded, _, ok := bytes.Cut(b, []byte("|"))
	value, err := base64.URLEncoding.AppendDecode(in[:0], encoded)
	return string(value), ok && err == nil
}
