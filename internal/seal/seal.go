// Package seal encrypts bytes for storage where others can read and write, such
// as Redis. It seals with AES-256-GCM under keys derived by HKDF-SHA-256 (RFC 5869).
//
// A purpose, here and below, is a constant without NUL that names one use of a
// secret: what is made for one purpose is useless for another.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
)

// Nonce is what no two texts that one Box seals may have in common. Twelve random bytes do, for
// 2³² texts.
type Nonce [12]byte

// Tag is how many bytes longer than its plaintext a text is that [Box.SealWith] returns. Overhead
// is that of [Box.Seal], which has its nonce with it.
const (
	Tag      = 16
	Overhead = len(Nonce{}) + Tag
)

// minSecret is the shortest secret or token accepted, in bytes. SHA-256 has no
// more to give, and HKDF-Expand requires it of its key.
const minSecret = sha256.Size

var (
	// ErrUnreadable is returned for data that is corrupt, truncated, or sealed
	// under another secret, purpose, context or additional data. Which one it
	// was cannot be known.
	ErrUnreadable = errors.New("seal: sealed data cannot be opened")

	// ErrUnknownKey is returned for the ID of a secret that is not configured.
	ErrUnknownKey = errors.New("seal: sealed under an unknown secret")
)

// ID names a secret. It is derived from the secret, so that all servers give the
// secret the same name, and is not confidential. The zero value is [Plain].
type ID [4]byte

// Plain is the ID of no secret: the data is not sealed. It must not be modified.
var Plain ID

// Ring holds the configured secrets. The zero value has none: it passes data
// through under [Plain]. A Ring is safe for concurrent use.
type Ring struct {
	keys []ringKey // newest first
}

type ringKey struct {
	id  ID
	prk *pool // of HMACs under the extracted secret
}

// NewRing returns the Ring of secrets, newest first; nil means no secrets. Each
// needs at least 32 bytes. The error joins all mistakes, as "Secrets[1] has …", and
// never shows a secret. NewRing keeps no reference to secrets.
func NewRing(secrets [][]byte) (*Ring, error) {
	if secrets != nil && len(secrets) == 0 {
		// A list that was filtered or failed to load. To take it for no secrets
		// would store in the clear what somebody meant to seal.
		return nil, errors.New("the list of Secrets is empty but not nil: give a secret, or nil to store unsealed")
	}
	r := &Ring{}
	owner := map[ID]int{}
	var errs []error
	for i, secret := range secrets {
		name := fmt.Sprintf("Secrets[%d]", i)
		if len(secret) < minSecret {
			errs = append(errs, fmt.Errorf("%s has %d bytes, at least %d are required", name, len(secret), minSecret))
			continue
		}
		prk := newHMACPool(extract(secret))
		derived := prk.expand("key", endID, nil)
		id := ID(derived[:])
		if id == Plain {
			errs = append(errs, fmt.Errorf("%s has the key ID 0, which is reserved: use another secret", name))
			continue
		}
		if first, dup := owner[id]; dup {
			errs = append(errs, fmt.Errorf("%s has the same key ID as Secrets[%d]: they are equal, or one must be replaced", name, first))
			continue
		}
		owner[id] = i
		r.keys = append(r.keys, ringKey{id, prk})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

// Current returns the ID to seal under: the newest secret's, or [Plain].
func (r *Ring) Current() ID {
	if len(r.keys) == 0 {
		return Plain
	}
	return r.keys[0].id
}

// Len returns the number of secrets.
func (r *Ring) Len() int { return len(r.keys) }

// Position returns the index of the secret that id names, or -1.
func (r *Ring) Position(id ID) int {
	return slices.IndexFunc(r.keys, func(k ringKey) bool { return k.id == id })
}

// Box returns the Box of the secret that id names, for one purpose and context.
// Random nonces limit a context to 2³² sealed texts, so a context should be
// particular to what is sealed, such as a session's token.
//
// If id is not configured, it returns [ErrUnknownKey]. That includes [Plain] if
// there are secrets: if it were accepted, write access to Redis would be enough to
// forge sessions. Without secrets the Box of Plain is the zero Box. A Box returned with
// an error must not be used: it is the zero Box too.
func (r *Ring) Box(id ID, purpose string, context []byte) (Box, error) {
	if len(r.keys) == 0 && id == Plain {
		return Box{}, nil
	}
	i := r.Position(id)
	if i < 0 {
		return Box{}, ErrUnknownKey
	}
	return newBox(r.keys[i].prk.expand(purpose, endBox, context)), nil
}

// Box seals and opens under one key. The zero value passes data through. It is
// small, meant to be copied, and safe for concurrent use.
type Box struct {
	aead cipher.AEAD // nil: pass through
}

// TokenBox returns a Box under token alone, for data of which only the token's
// holder may learn, where there are no secrets. It never passes data through.
//
// token has at least 32 uniformly random bytes, or is their text in base64 or
// hex. It takes the place of an extracted secret, so HKDF-Extract is left out (RFC
// 5869, section 3.3). A Box of a shorter token opens nothing, and nothing
// opens what it seals.
func TokenBox(purpose string, token []byte) Box {
	if len(token) < minSecret {
		// A token may come from a request, so no panic; and a key that can be
		// guessed would look like a sealed text.
		var lost [sha256.Size]byte
		rand.Read(lost[:])
		return newBox(lost)
	}
	return newBox(newHasher(hmac.New(sha256.New, token)).expand(purpose, endBox, nil))
}

func newBox(key [sha256.Size]byte) Box {
	// Neither call fails: the key has 32 bytes, and the block is crypto/aes's.
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return Box{aead}
}

// Size returns how long a plaintext of n bytes is when SealWith has sealed it.
func (b Box) Size(n int) int {
	if b.aead == nil {
		return n
	}
	return n + Tag
}

// SealWith is Seal with a nonce that the caller keeps, and OpenWith needs.
func (b Box) SealWith(nonce *Nonce, dst, plaintext, additional []byte) []byte {
	if b.aead == nil {
		return append(dst, plaintext...)
	}
	return b.aead.Seal(dst, nonce[:], plaintext, additional)
}

// OpenWith is Open of what SealWith returned.
func (b Box) OpenWith(nonce *Nonce, dst, sealed, additional []byte) ([]byte, error) {
	if b.aead == nil {
		if dst == nil {
			return sealed, nil
		}
		return append(dst, sealed...), nil
	}
	plaintext, err := b.aead.Open(dst, nonce[:], sealed, additional)
	if err != nil {
		return nil, ErrUnreadable
	}
	return plaintext, nil
}

// Seal appends the sealed plaintext to dst. Open needs the same additional data,
// which is authenticated but not stored. dst's spare capacity must overlap neither
// plaintext nor additional.
func (b Box) Seal(dst, plaintext, additional []byte) []byte {
	if b.aead == nil {
		return append(dst, plaintext...)
	}
	var nonce Nonce
	rand.Read(nonce[:])
	return b.SealWith(&nonce, append(dst, nonce[:]...), plaintext, additional)
}

// Open appends to dst the plaintext of sealed. It returns [ErrUnreadable] and no
// bytes if sealed is not what Seal returned for the same additional data. The
// spare capacity of dst must overlap neither sealed nor additional. The zero Box
// with a nil dst returns sealed itself.
func (b Box) Open(dst, sealed, additional []byte) ([]byte, error) {
	var nonce Nonce
	if b.aead != nil {
		if len(sealed) < len(nonce) {
			return nil, ErrUnreadable
		}
		sealed = sealed[copy(nonce[:], sealed):]
	}
	return b.OpenWith(&nonce, dst, sealed, additional)
}
