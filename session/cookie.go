package session

import (
	"crypto/hkdf"
	"crypto/sha256"

	"github.com/gorilla/securecookie"
)

// signer signs cookie values, so that forged ones are refused without asking
// Redis. Without secrets it passes them on as they are.
type signer struct {
	codecs []*securecookie.SecureCookie // newest first
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
	return s, nil
}

func (s signer) sign(value string) (string, error) {
	if len(s.codecs) == 0 {
		return value, nil
	}
	return s.codecs[0].Encode(signedName, []byte(value))
}

// verify returns the value that was signed, and whether with an old secret.
func (s signer) verify(cookie string) (value string, old, ok bool) {
	if len(s.codecs) == 0 {
		return cookie, false, true
	}
	for i, c := range s.codecs {
		var b []byte
		if c.Decode(signedName, cookie, &b) == nil {
			return string(b), i > 0, true
		}
	}
	return "", false, false
}
