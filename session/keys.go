package session

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"

	"github.com/gatehouse-go/gatehouse/internal/seal"
	"github.com/gatehouse-go/gatehouse/internal/slots"
)

// owner is whose sessions one hash in Redis holds: a user's, or those of one visitor who
// is not logged in. Of a visitor it is random. Of a user it is a digest under KeySecret,
// which does not change when Secrets do: without it nobody can tell who has an account.
type owner [16]byte

// token is the secret half of a session's ID.
type token [32]byte

// id names one session: its owner's hash, and the field there.
type id struct {
	owner owner
	token token
	key   string // of the hash
	field string // a digest of the token, which Redis never sees
}

// handle names a session for those who may list it. It stays over rotations and is no
// secret that leads to the session.
type handle [9]byte

func (h handle) String() string {
	if h == (handle{}) {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// parseHandle reads what String gives.
func parseHandle(s string) (h handle, ok bool) {
	if len(s) != base64.RawURLEncoding.EncodedLen(len(h)) {
		return h, false
	}
	n, err := base64.RawURLEncoding.Decode(h[:], []byte(s))
	return h, err == nil && n == len(h) && h != (handle{})
}

func newHandle() (h handle) {
	_, _ = rand.Read(h[:])
	return h
}

// keys derives the names of things in Redis.
type keys struct {
	prefix string
	users  *seal.Digest // of user IDs
	legacy *seal.Digest // of tokens of the legacy store
	plain  *seal.Digest // of tokens of a stock scs manager
}

func newKeys(prefix string, secret []byte) keys {
	return keys{
		prefix: prefix,
		users:  seal.NewDigest(secret, "session user"),
		legacy: seal.NewDigest(secret, "session legacy"),
		plain:  seal.NewDigest(nil, "session scs"),
	}
}

// user returns the owner of a user's sessions.
func (k keys) user(userID string) owner {
	sum := k.users.Sum(userID)
	return owner(sum[:])
}

// visitor returns the owner of a new visitor's sessions.
func (k keys) visitor() (o owner) {
	_, _ = rand.Read(o[:])
	return o
}

// key is the hash of an owner. The braces keep the sessions of a partition in one slot of
// a cluster.
func (k keys) key(o owner) string {
	var buf [64]byte
	b := append(buf[:0], k.prefix...)
	b = append(b, '{')
	b = append(b, slots.Partition(o[0])...)
	b = append(b, "}:"...)
	return string(base64.RawURLEncoding.AppendEncode(b, o[:]))
}

// ended is the channel on which scripts say that a session has ended.
func (k keys) ended() string { return k.prefix + "ended" }

// at returns the ID of a token in the hash of an owner.
func (k keys) at(o owner, t token) id {
	sum := sha256.Sum256(t[:])
	return id{o, t, k.key(o), string(sum[:fieldLen])}
}

// fresh returns a new ID in the hash of an owner.
func (k keys) fresh(o owner) id {
	var t token
	_, _ = rand.Read(t[:])
	return k.at(o, t)
}

// copied returns the ID of the copy of a legacy session: the same on all servers, so that
// two first requests make one copy.
func (k keys) copied(legacyToken, userID string) id {
	var o owner
	if userID != "" {
		o = k.user(userID)
	} else {
		sum := k.legacy.Sum("owner " + legacyToken)
		o = owner(sum[:])
	}
	return k.at(o, k.legacy.Sum("token "+legacyToken))
}

// stock returns the ID of a session of a stock scs manager, whose tokens are all that
// there is.
func (k keys) stock(scsToken string) id {
	sum := k.plain.Sum("owner " + scsToken)
	return k.at(owner(sum[:]), k.plain.Sum("token "+scsToken))
}

const (
	fieldLen = 16
)
