package session

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"time"
)

// A record is one string in Redis. Its first byte is the format:
//
//	live     format, revision (8), last touched (8, Unix ms), key id (4), payload
//	moved    format, key id (4), sealed successor
//	ended    format
//
// Integers are big-endian. The scripts read the format and the revision, and
// write the time of the last touch: these are not sealed, all else is.
const (
	formatLive      = 1 // a session
	formatMoved     = 2 // the ID was rotated; the successor stands in the record
	formatEnded     = 3 // somebody logged in with this ID; it leads nowhere
	formatLoggedOut = 4 // logged out; left only where a legacy session might be moved to
)

const (
	headLen    = 1 + 8 // what a conditional commit compares
	keyIDLen   = len(keyID{})
	liveHeader = headLen + 8 + keyIDLen

	sealOverhead = 12 + 16 // AES-GCM's nonce and tag: what a sealed record is made room for
)

var errMalformed = errors.New("session: malformed record")

// id names a session: the token is the secret, the tag its place in a cluster.
type id struct {
	token string // 256 random bits, base64url
	tag   string // of the user; "" while nobody is logged in
	key   string // of the record in Redis
}

const (
	tokenLen = 43 // 256 bits in base64url
	tagLen   = 12
)

// newID derives the key: <prefix>{tag}:s:<hash of the token>. Redis never sees
// a token.
func newID(prefix, token, tag string) id {
	var buf [128]byte // of most keys
	sum := sha256.Sum256(append(buf[:0], token...))
	var hash [tokenLen]byte
	base64.RawURLEncoding.Encode(hash[:], sum[:])
	b := append(buf[:0], prefix...)
	b = append(b, '{')
	if tag != "" {
		b = append(b, tag...)
	} else {
		b = append(b, hash[:tagLen]...)
	}
	b = append(b, "}:s:"...)
	return id{token, tag, string(append(b, hash[:]...))}
}

// userTag is the cluster hash tag of a user: all of a user's sessions live in
// one slot.
func userTag(userID string) string {
	if userID == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(userID))
	return base64.RawURLEncoding.EncodeToString(sum[:])[:tagLen]
}

// cookie is what the browser holds, before it is signed.
func (i id) cookie() string {
	if i.tag == "" {
		return i.token
	}
	return i.tag + "." + i.token
}

// splitCookie is the reverse of id.cookie. It accepts exactly that form.
func splitCookie(s string) (token, tag string, ok bool) {
	if len(s) == tagLen+1+tokenLen && s[tagLen] == '.' {
		tag, s = s[:tagLen], s[tagLen+1:]
	}
	if len(s) != tokenLen {
		return "", "", false
	}
	return s, tag, isBase64URL(tag) && isBase64URL(s)
}

func isBase64URL(s string) bool {
	for i := range len(s) {
		if !base64URLBytes[s[i]] {
			return false
		}
	}
	return true
}

var base64URLBytes = func() (table [256]bool) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") {
		table[c] = true
	}
	return table
}()

// meta is what the manager itself keeps about a session. Times are whole
// milliseconds. It is comparable, so that a change is seen.
type meta struct {
	user          string
	created       int64 // when the session or, later, the login began
	authenticated int64 // 0: nobody has logged in
	issued        int64 // when the ID was made
	deadline      int64 // absolute end
	persistent    bool
}

func appendMeta(b []byte, m meta) []byte {
	var flags byte
	if m.persistent {
		flags = 1
	}
	b = append(b, flags)
	for _, t := range [...]int64{m.created, m.authenticated, m.issued, m.deadline} {
		b = binary.AppendVarint(b, t)
	}
	b = binary.AppendUvarint(b, uint64(len(m.user)))
	return append(b, m.user...)
}

func parseMeta(b []byte) (m meta, rest []byte, err error) {
	if len(b) == 0 || b[0] > 1 {
		return meta{}, nil, errMalformed
	}
	m.persistent = b[0] == 1
	b = b[1:]
	for _, t := range [...]*int64{&m.created, &m.authenticated, &m.issued, &m.deadline} {
		v, n := binary.Varint(b)
		if n <= 0 {
			return meta{}, nil, errMalformed
		}
		*t, b = v, b[n:]
	}
	v, n := binary.Uvarint(b)
	if n <= 0 || v > uint64(len(b)-n) {
		return meta{}, nil, errMalformed
	}
	b = b[n:]
	m.user = string(b[:v])
	return m, b[v:], nil
}

// record is a live session as it stands in Redis.
type record struct {
	id       id
	revision uint64
	touched  int64 // Unix milliseconds
	keyID    keyID
	meta     meta
	values   []byte // as the codec wrote them
	box      Box    // that it was opened with, for its token; may be nil
}

// head is what a conditional commit compares.
func (r *record) head() string {
	var h [headLen]byte
	h[0] = formatLive
	binary.BigEndian.PutUint64(h[1:], r.revision)
	return string(h[:])
}

func appendMillis(b []byte, ms int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(ms)) }

func appendLive(b []byte, revision uint64, touched int64, k keyID) []byte {
	b = append(b, formatLive)
	b = binary.BigEndian.AppendUint64(b, revision)
	b = appendMillis(b, touched)
	return append(b, k[:]...)
}

func millis(t time.Time) int64 { return t.UnixMilli() }
func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
