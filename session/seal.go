package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"

	"github.com/gorilla/securecookie"
)

// Sealer says how records are sealed at rest. Records name the secret they were
// sealed under but not the Sealer: changing it makes all stored sessions
// unreadable, and so logs everybody out.
type Sealer interface {
	// Box returns what seals under secret, which has at least 32 bytes and must
	// not be modified or kept. It is called once per secret, by [New].
	Box(secret []byte) (Box, error)
}

// Box seals and opens under one secret. It is used concurrently. Its errors must
// not contain the secret, a token or a plaintext.
type Box interface {
	// Seal appends the sealed form of plaintext to dst. The key must depend on
	// the secret and on token, so that neither alone opens the result, and
	// additional must be authenticated. dst and plaintext do not overlap;
	// plaintext is not modified.
	Seal(dst, plaintext []byte, token string, additional []byte) ([]byte, error)

	// Open appends to dst the plaintext of what Seal made with the same token and
	// additional. Any error means that sealed is not that. dst and sealed do not
	// overlap; sealed is not modified.
	Open(dst, sealed []byte, token string, additional []byte) ([]byte, error)
}

// extract is the half of HKDF (RFC 5869) that runs once per secret.
func extract(secret []byte) ([]byte, error) {
	return hkdf.Extract(sha256.New, secret, nil)
}

// deriveKey is the half that runs for each record: the key needs the secret,
// which gave prk, and the token, 256 random bits of which Redis sees only a
// hash. To somebody who has the secret the key is an HMAC of those unknown bits:
// no more is asked of SHA-256 than to hide the token behind its hash. The token
// as HKDF's salt would run Extract for each record too, at twice the time.
func deriveKey(prk []byte, purpose, token string, size int) ([]byte, error) {
	return hkdf.Expand(sha256.New, prk, keyInfo(purpose, token), size)
}

func keyInfo(purpose, token string) string { return "gatehouse session " + purpose + " v1\x00" + token }

// AESGCMSealer seals with AES-256-GCM under a random 96-bit nonce and a key
// derived by HKDF-SHA-256 from secret and token. It adds 28 bytes. The zero value
// is ready. It is the default.
type AESGCMSealer struct{}

var _ Sealer = AESGCMSealer{}

// Box implements [Sealer].
func (AESGCMSealer) Box(secret []byte) (Box, error) {
	prk, err := extract(secret)
	if err != nil {
		return nil, err
	}
	return newGCMBox(prk, "aes-256-gcm"), nil
}

type gcmBox struct {
	purpose string
	macs    *sync.Pool // of hash.Hash: HMACs under the extracted key
}

func newGCMBox(prk []byte, purpose string) gcmBox {
	return gcmBox{purpose, &sync.Pool{New: func() any { return hmac.New(sha256.New, prk) }}}
}

// key is deriveKey for a key of 32 bytes, which are the first block of HKDF-Expand:
// the HMAC of info and a 1. To begin an HMAC anew is much cheaper than to make one.
func (g gcmBox) key(token string) (key [sha256.Size]byte) {
	mac := g.macs.Get().(hash.Hash)
	mac.Reset()
	var buf [128]byte
	b := append(append(buf[:0], keyInfo(g.purpose, token)...), 1)
	mac.Write(b)
	mac.Sum(key[:0])
	g.macs.Put(mac)
	return key
}

// bind returns a Box for token alone.
func (g gcmBox) bind(token string) (Box, error) {
	key := g.key(token)
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	// Random nonces are safe for 2³² messages a key, and this key has one session.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return boundBox{token, aead}, err
}

func (g gcmBox) Seal(dst, plaintext []byte, token string, additional []byte) ([]byte, error) {
	box, err := g.bind(token)
	if err != nil {
		return nil, err
	}
	return box.Seal(dst, plaintext, token, additional)
}

func (g gcmBox) Open(dst, sealed []byte, token string, additional []byte) ([]byte, error) {
	box, err := g.bind(token)
	if err != nil {
		return nil, err
	}
	return box.Open(dst, sealed, token, additional)
}

// boundBox is a gcmBox for one token.
type boundBox struct {
	token string
	aead  cipher.AEAD
}

func (b boundBox) Seal(dst, plaintext []byte, token string, additional []byte) ([]byte, error) {
	if token != b.token {
		return nil, errors.New("a box of another token")
	}
	return b.aead.Seal(dst, nil, plaintext, additional), nil
}

func (b boundBox) Open(dst, sealed []byte, token string, additional []byte) ([]byte, error) {
	if token != b.token {
		return nil, errUnreadable
	}
	return b.aead.Open(dst, nil, sealed, additional)
}

// SecureCookieSealer seals with gorilla/securecookie (AES-256-CTR, then
// HMAC-SHA-256), for those whose rules ask for it. Both keys are derived by
// HKDF-SHA-256 from secret and token. It is several times slower than
// [AESGCMSealer] and adds about 67 bytes and a third of the size. The zero value is
// ready.
//
// securecookie's limits on age and length do not apply: a session has its own.
// Its wrapping in base64 is left off, because base64 has several spellings of
// the same bytes.
type SecureCookieSealer struct{}

var _ Sealer = SecureCookieSealer{}

// Box implements [Sealer].
func (SecureCookieSealer) Box(secret []byte) (Box, error) {
	prk, err := extract(secret)
	if err != nil {
		return nil, err
	}
	return secureCookieBox{prk}, nil
}

type secureCookieBox struct{ prk []byte }

func (s secureCookieBox) codec(token string) (*securecookie.SecureCookie, error) {
	keys, err := deriveKey(s.prk, "securecookie", token, 64)
	if err != nil {
		return nil, err
	}
	return securecookie.New(keys[:32], keys[32:]).
		MaxAge(0).
		MaxLength(0).
		SetSerializer(securecookie.NopEncoder{}), nil
}

// cookieName carries what is to be authenticated: securecookie's MAC covers the
// name of the cookie. In base64 it cannot contain the separator, "|".
func cookieName(additional []byte) string {
	return base64.RawURLEncoding.EncodeToString(additional)
}

func (s secureCookieBox) Seal(dst, plaintext []byte, token string, additional []byte) ([]byte, error) {
	codec, err := s.codec(token)
	if err != nil {
		return nil, err
	}
	// A copy, since securecookie encrypts in place what NopEncoder hands through,
	// and a byte longer, since it cannot open an empty plaintext.
	padded := append(make([]byte, 1, 1+len(plaintext)), plaintext...)
	cookie, err := codec.Encode(cookieName(additional), padded)
	if err != nil {
		return nil, errors.New("securecookie failed")
	}
	return base64.URLEncoding.AppendDecode(dst, []byte(cookie))
}

func (s secureCookieBox) Open(dst, sealed []byte, token string, additional []byte) ([]byte, error) {
	codec, err := s.codec(token)
	if err != nil {
		return nil, err
	}
	var padded []byte
	err = codec.Decode(cookieName(additional), base64.URLEncoding.EncodeToString(sealed), &padded)
	if err != nil || len(padded) == 0 {
		return nil, errUnreadable
	}
	return append(dst, padded[1:]...), nil
}

const minSecret = 32

// keyID names the secret that a record is sealed under. It is derived from the
// secret, so that every server of a fleet gives it the same name.
type keyID [4]byte

func keyIDOf(secret []byte) (keyID, error) {
	prk, err := extract(secret)
	if err != nil {
		return keyID{}, err
	}
	id, err := deriveKey(prk, "key id", "", len(keyID{}))
	if err != nil {
		return keyID{}, err
	}
	return keyID(id), nil
}

// plainKey is the key ID of what is sealed under no secret.
var plainKey keyID

var (
	// errUnreadable: corrupt, cut short, moved to another key, or for another token.
	errUnreadable = errors.New("session: sealed data cannot be opened")

	// errUnknownKey: sealed under a secret that is not configured. With secrets
	// configured that includes data sealed under none; to accept it would let
	// whoever can write to Redis write a session of his choice.
	errUnknownKey = errors.New("session: sealed under an unknown secret")
)

// keyring seals under the newest secret and opens under each. Without secrets it
// passes records through. It is safe for concurrent use.
type keyring struct {
	keys []ringKey // newest first
}

type ringKey struct {
	id  keyID
	box Box
}

// newKeyring returns the keyring of secrets, newest first. A nil sealer means
// AESGCMSealer. The error joins all that is wrong and never shows a secret.
func newKeyring(secrets [][]byte, sealer Sealer) (*keyring, error) {
	var errs []error
	if sealer != nil && len(secrets) == 0 {
		errs = append(errs, errors.New("session: Sealer is set, but Secrets is empty: records would not be sealed"))
	}
	if sealer == nil {
		sealer = AESGCMSealer{}
	}
	k := &keyring{}
	owner := map[keyID]int{}
	for i, secret := range secrets {
		if len(secret) < minSecret {
			errs = append(errs, fmt.Errorf("session: Secrets[%d] has %d bytes, at least %d are required", i, len(secret), minSecret))
			continue
		}
		id, err := keyIDOf(secret)
		if err != nil {
			errs = append(errs, fmt.Errorf("session: Secrets[%d]: %w", i, err))
			continue
		}
		if id == plainKey {
			errs = append(errs, fmt.Errorf("session: Secrets[%d] has the key ID 0, which is reserved: use another secret", i))
			continue
		}
		if first, dup := owner[id]; dup {
			errs = append(errs, fmt.Errorf("session: Secrets[%d] and Secrets[%d] have the same key ID: they are equal, or one must be replaced", first, i))
			continue
		}
		owner[id] = i
		box, err := sealer.Box(secret)
		if err != nil {
			errs = append(errs, fmt.Errorf("session: Sealer with Secrets[%d]: %w", i, err))
			continue
		}
		k.keys = append(k.keys, ringKey{id, box})
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return k, nil
}

// current returns the key ID that the seal methods use: the newest secret's, or
// plainKey.
func (k *keyring) current() keyID {
	if len(k.keys) == 0 {
		return plainKey
	}
	return k.keys[0].id
}

// box returns the Box of id; nil for plainKey without secrets.
func (k *keyring) box(id keyID) (Box, error) {
	if len(k.keys) == 0 && id == plainKey {
		return nil, nil
	}
	if i := k.position(id); i >= 0 {
		return k.keys[i].box, nil
	}
	return nil, errUnknownKey
}

// position is the index of the secret that id names, or -1.
func (k *keyring) position(id keyID) int {
	return slices.IndexFunc(k.keys, func(key ringKey) bool { return key.id == id })
}

// What is sealed with one token is told apart by the first byte authenticated.
const (
	purposeRecord    = 'r'
	purposeSuccessor = 's'
)

// additional has its parts of fixed length in front, so that no two differ only
// in where one part ends.
func additional(purpose, format byte, id keyID, redisKey string) []byte {
	a := make([]byte, 0, 2+len(id)+len(redisKey))
	a = append(a, purpose, format)
	a = append(a, id[:]...)
	return append(a, redisKey...)
}

// bind returns the Box of id, nil for plainKey without secrets. It is for one token if
// that saves time: then the key is derived once, however often it is used.
func (k *keyring) bind(id keyID, token string) (Box, error) {
	box, err := k.box(id)
	if g, ok := box.(gcmBox); ok {
		return g.bind(token)
	}
	return box, err
}

// sealRecord appends to dst the payload of a record of the given format stored at
// redisKey, sealed under token in the box of id; without a box the payload as it is. dst
// and payload must not overlap.
func sealRecord(box Box, dst, payload []byte, format byte, id keyID, token, redisKey string) ([]byte, error) {
	if box == nil {
		return append(dst, payload...), nil
	}
	return sealIn(box, dst, payload, token, additional(purposeRecord, format, id, redisKey))
}

// openRecord appends to dst what sealRecord was given; without a box and with a nil dst
// it returns sealed itself. Its error is errUnreadable. dst and sealed must not overlap.
func openRecord(box Box, dst, sealed []byte, format byte, id keyID, token, redisKey string) ([]byte, error) {
	if box == nil {
		if dst == nil {
			return sealed, nil
		}
		return append(dst, sealed...), nil
	}
	return openIn(box, dst, sealed, token, additional(purposeRecord, format, id, redisKey))
}

// sealSuccessor appends to dst the sealed form of successor, what whoever holds
// oldToken may go on with, for a retired record at redisKey. It is sealed under
// k.current(); without secrets under oldToken alone, which Redis does not know
// either.
func (k *keyring) sealSuccessor(dst []byte, successor string, format byte, oldToken, redisKey string) ([]byte, error) {
	id := k.current()
	box, err := k.successorBox(id, oldToken)
	if err != nil {
		return nil, err
	}
	return sealIn(box, dst, []byte(successor), oldToken, additional(purposeSuccessor, format, id, redisKey))
}

// openSuccessor returns what sealSuccessor was given. It returns errUnknownKey
// or errUnreadable.
func (k *keyring) openSuccessor(sealed []byte, format byte, id keyID, oldToken, redisKey string) (string, error) {
	box, err := k.successorBox(id, oldToken)
	if err != nil {
		return "", err
	}
	successor, err := openIn(box, nil, sealed, oldToken, additional(purposeSuccessor, format, id, redisKey))
	return string(successor), err
}

func (k *keyring) successorBox(id keyID, oldToken string) (Box, error) {
	box, err := k.box(id)
	if err == nil && box == nil {
		// A token is uniformly random, so it may stand in for an extracted key.
		box = newGCMBox([]byte(oldToken), "successor without secret")
	}
	return box, err
}

func sealIn(box Box, dst, plaintext []byte, token string, additional []byte) ([]byte, error) {
	if token == "" {
		return nil, errors.New("session: sealing: no token")
	}
	sealed, err := box.Seal(dst, plaintext, token, additional)
	if err != nil {
		return nil, fmt.Errorf("session: sealing: %w", err)
	}
	return sealed, nil
}

// openIn drops the error of Open: there is one outcome, and nothing to learn
// from the difference.
func openIn(box Box, dst, sealed []byte, token string, additional []byte) ([]byte, error) {
	plaintext, err := box.Open(dst, sealed, token, additional)
	if err != nil {
		return nil, errUnreadable
	}
	return plaintext, nil
}
