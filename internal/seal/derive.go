package seal

import (
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"sync"
)

// The info of HKDF-Expand is "gatehouse ", a purpose and one of these ends, then
// a Box's context. No two uses have the same info, whatever the purposes are: only
// a Box's contains NUL, and the other two end differently.
const (
	endBox    = " v1\x00"
	endDigest = " digest v1"
	endID     = " id v1"
)

// extract is HKDF-Extract without salt. hkdf.Extract adds an error that cannot
// occur here.
func extract(secret []byte) (prk []byte) {
	mac := hmac.New(sha256.New, make([]byte, sha256.Size))
	mac.Write(secret)
	return mac.Sum(nil)
}

// hasher is a hash with a buffer of its own. What is passed to an interface's
// method escapes to the heap, so write and sum pass only the buffer.
type hasher struct {
	hash hash.Hash // of 32 bytes
	buf  [128]byte // the usual purpose, or token, in one Write
}

func newHasher(h hash.Hash) *hasher { return &hasher{hash: h} }

func write[T string | []byte](h *hasher, data T) {
	for len(data) > 0 {
		n := copy(h.buf[:], data)
		h.hash.Write(h.buf[:n])
		data = data[n:]
	}
}

func (h *hasher) sum() [sha256.Size]byte {
	return [sha256.Size]byte(h.hash.Sum(h.buf[:0]))
}

// expand returns the first block of HKDF-Expand, which is all a key of 32 bytes
// needs: the HMAC of info and a 1. h is an HMAC under the extracted key.
func (h *hasher) expand(purpose, end string, context []byte) [sha256.Size]byte {
	write(h, "gatehouse ")
	write(h, purpose)
	write(h, end)
	write(h, context)
	write(h, "\x01")
	return h.sum()
}

// pool keeps hashers of one hash for reuse: to reset an HMAC is much cheaper than
// to make one.
type pool struct{ hashers sync.Pool }

func newPool(newHash func() hash.Hash) *pool {
	return &pool{sync.Pool{New: func() any { return newHasher(newHash()) }}}
}

// newHMACPool returns a pool of HMAC-SHA-256 under key, which it keeps.
func newHMACPool(key []byte) *pool {
	return newPool(func() hash.Hash { return hmac.New(sha256.New, key) })
}

func (p *pool) get() *hasher {
	h := p.hashers.Get().(*hasher)
	h.hash.Reset()
	return h
}

func (p *pool) put(h *hasher) { p.hashers.Put(h) }

func (p *pool) expand(purpose, end string, context []byte) [sha256.Size]byte {
	h := p.get()
	defer p.put(h)
	return h.expand(purpose, end, context)
}
