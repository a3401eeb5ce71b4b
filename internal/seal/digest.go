package seal

import "crypto/sha256"

// Digest hashes messages for one purpose. With a secret, only those who know it
// can compute or test a digest. Make one with [NewDigest]; the zero value is not
// usable. A Digest is safe for concurrent use.
type Digest struct {
	pool   *pool
	prefix string // distinguishes purposes where no key does
}

// NewDigest returns the HMAC-SHA-256 under a key derived from secret and purpose.
// Without a secret it returns the plain SHA-256 of "gatehouse ", purpose, " v1",
// NUL and the message. It does not check the length of secret, and keeps no
// reference to it.
func NewDigest(secret []byte, purpose string) *Digest {
	if len(secret) == 0 {
		return &Digest{newPool(sha256.New), "gatehouse " + purpose + endBox}
	}
	key := newHMACPool(extract(secret)).expand(purpose, endDigest, nil)
	return &Digest{pool: newHMACPool(key[:])}
}

// Sum returns the digest of msg. It allocates nothing.
func (d *Digest) Sum(msg string) [sha256.Size]byte {
	h := d.pool.get()
	defer d.pool.put(h)
	write(h, d.prefix)
	write(h, msg)
	return h.sum()
}
