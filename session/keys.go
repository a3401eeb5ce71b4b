package session

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"

	"github.com/gatehouse-go/gatehouse/internal/seal"
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
	b = append(b, partition(o)...)
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

// partition is the part of a key that chooses its slot in a cluster.
func partition(o owner) string { return partitions[3*int(o[0]):][:3] }

// partitions are 256 strings whose slots lie 64 apart: the fullest of 50 masters then
// has 1.17 times the mean. Counted ones would load it twice the mean.
const partitions = "06S5n353t2KV0QO69L4DI2hB04s7LQ51T0i40So7oE4Fi2jb2VY4zR5740oT21E4YF74b8EX0034xrCoM0mt23e5KG6bk8Gx" +
	"5nwFlN0kP5305Mc25A0HD6dO5lW0470ip4e95OC27a0Jd6fo5j702W2OR4cY7ia0UK2lF5Pl4x600w0m04ay7kA0Wk2nf4Bm" +
	"0cY6OR42W1j71Pl6lF4UK3ia0ay4m040w0x60Bm6nf4Wk3kA1304kPBlN1nw2dO4HD65A1Mc0e94ip4471lW2fo4Jd67a1OC" +
	"4oT1740zR6VYAbr34b0YF61E4mtGoM0xr403BP12bk1KG63e6KV13t1n346S6hB0DI29L4QO4i411T3LQ44s6jb0Fi3oE4So" +
	"8YG5L74EY1Y107C7Oa4fM2JF2657nU4Gy0K005c7MA4dm2Hf20U4XV5Q80MP2WI5kc6BO0nD22u4Zv4C90Op2Ui4yb7PN0ld" +
	"5Ls24Q0IT71v5og2SM1za6FK5NS26q0Kt73V49n2Qm1xA6Dk5H31Dz2mV7567Ke03G2NB4bI4Z21FZ0O4AmO6Yd01g2Lb5pH" +
	"3566mV5Dz1H30bI6NB43G3Ke8Je4O45FZ0Z21pH6Lb41g2Yd31v4IT64Q1Ls2FK5za6SM1og33V4Kt66q1NS2Dk5xA6Qm09n" +
	"4MP1Q80XV60U4nD2BO1kc6WI4Op0C90Zv62u4ld3PN0yb6Ui5Y10EY1L7HgT6JF0fM3Oa47C4K00Gy3nU6656Hf0dm3MA45c"
