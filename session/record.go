package session

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync/atomic"

	"github.com/gatehouse-go/gatehouse/internal/codec"
	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// What stands in a field of an owner's hash. Integers are big-endian, times are
// microseconds of Redis's clock in seven bytes.
//
//	record     1, flags, key id (4), revision (8), handle (9);
//	           born, deadline, last touch, until (28), step of touches (1); 0, or 1 and the
//	           field of the ID before it (16); of half a login, until when it is one (7) and
//	           the fence that it has noted (15); length of the owner's box (2); if sealed,
//	           salt (4); box of the owner; box of the token
//	fence      see scripts/session/login.lua
//	rotated    2, lived, end of Grace (7), until (7), handle (9), field of the next ID (16);
//	           key id (4), box of the token of the next ID
//	ended      3, lived, end of Grace (7), until (7), handle (9), field of the ID that took
//	           its place, or zeros (16); reason
//
// The head of a record, its first 23 bytes, is authenticated with both boxes, and so is how
// long the owner's is. The scripts alone write what stands between head and
// boxes. The values stand in the box of the token, or, when they are large, in a field of
// their own: "v" and the field's name, a revision and the box. The nonce of both boxes, which
// have different keys, is the revision and the salt: twelve random bytes in each write.
const (
	formatRecord  = 1
	formatRotated = 2
	formatEnded   = 3

	headLen      = 1 + 1 + len(seal.ID{}) + len(revision{}) + len(handle{})
	timesLen     = 4*timeLen + 1
	timeLen      = 7
	saltLen      = len(seal.Nonce{}) - len(revision{})
	noteLen      = timeLen + fenceLen
	fenceLen     = timeLen + len(mark{})
	tombstoneLen = 2 + 2*timeLen + len(handle{}) + fieldLen

	// maxTime leaves the scripts room to add a lifetime, in what seven bytes and a float64
	// can hold. It is in the year 2255.
	maxTime = 1 << 53
)

// apartAbove is the size in bytes above which values stand in a field of their own. Below,
// one command reads a session; above, a touch and a list would move them through Redis.
const apartAbove = 2048

var errMalformed = errors.New("malformed")

// revision is drawn anew for each write: a writer that finds its own has written.
type revision [8]byte

// kind says which of the configured lives a session has.
type kind uint8

const (
	visitor kind = iota
	login
	remembered
	begun // half a login, with the life of a visitor's session
	kinds
)

// mark tells who has raised a fence.
type mark [8]byte

func newMark() (m mark) {
	rand.Read(m[:])
	return m
}

// note is what half a login shows besides: the script that makes it fills it in.
type note struct {
	until int64          // it can be completed
	fence [fenceLen]byte // of the user, time and mark, when it began
}

func parseNote(b string) (n note) {
	n.until = getTime([]byte(b[:timeLen]))
	copy(n.fence[:], b[timeLen:])
	return n
}

// head is what a record shows without a key, but for its times.
type head struct {
	kind       kind
	persistent bool // its cookie outlives the browser
	copied     bool // of a legacy store: it keeps its own deadline
	apart      bool // its values stand in a field of their own
	key        seal.ID
	revision   revision
	handle     handle
}

// times are microseconds of Redis's clock. Only scripts set them.
type times struct {
	born, deadline, touched, until int64
	step                           uint8 // uses were noted this often when touched was set: below 2^step µs
}

// who is what the box of the owner holds.
type who struct {
	user          string
	authenticated int64  // when the user logged in; 0: unknown, or nobody; atBirth
	issued        int64  // when the ID was made; 0: when the session was born
	client        string // a label
	begun         string // of half a login: the user
	reason        Reason // why the session before this one ended, for a visitor who may ask
}

// atBirth says that a user logged in when the session was born, as Login has it. It takes
// one byte where the time takes eight.
const atBirth = 1

func (r *record) authenticated() int64 {
	if r.who.authenticated == atBirth {
		return r.times.born
	}
	return r.who.authenticated
}

// record is a session as it stands in Redis.
type record struct {
	id     id
	head   head
	times  times
	note   note // of half a login
	who    who
	values codec.Values
	box    *tokenBox // that it was opened or sealed with; nil: not yet
}

// remember sets persistent of a user's session, and the kind that follows from it. Half a login
// stays one.
func (h *head) remember(on bool) {
	h.persistent = on
	switch {
	case h.kind == begun:
	case on:
		h.kind = remembered
	default:
		h.kind = login
	}
}

func (h head) append(b []byte) []byte {
	flags := byte(h.kind)
	for i, set := range [...]bool{h.persistent, h.copied, h.apart} {
		if set {
			flags |= 4 << i
		}
	}
	b = append(b, formatRecord, flags)
	b = append(b, h.key[:]...)
	b = append(b, h.revision[:]...)
	return append(b, h.handle[:]...)
}

func (h *head) parse(b []byte) {
	flags := b[1]
	h.kind = kind(flags & 3)
	h.persistent, h.copied, h.apart = flags&4 != 0, flags&8 != 0, flags&16 != 0
	b = b[2:]
	b = b[copy(h.key[:], b):]
	b = b[copy(h.revision[:], b):]
	copy(h.handle[:], b)
}

// appendTime appends t in timeLen bytes; a time before 1970 as 0.
func appendTime(b []byte, t int64) []byte {
	var eight [8]byte
	binary.BigEndian.PutUint64(eight[:], uint64(max(0, t)))
	return append(b, eight[8-timeLen:]...)
}

func getTime(b []byte) int64 {
	return int64(binary.BigEndian.Uint32(b))<<24 | int64(b[4])<<16 | int64(b[5])<<8 | int64(b[6])
}

// encode renders the facts about the owner; a visitor has none.
func (w who) encode() []byte {
	if w == (who{}) {
		return nil
	}
	words := [...]string{w.user, w.client, w.begun, string(w.reason)}
	n := len(words)
	for n > 0 && words[n-1] == "" {
		n--
	}
	b := make([]byte, 0, 2*binary.MaxVarintLen64+len(w.user)+len(w.client)+len(w.begun)+len(w.reason)+2*n)
	b = binary.AppendVarint(b, w.authenticated)
	b = binary.AppendVarint(b, w.issued)
	for _, word := range words[:n] {
		b = binary.AppendUvarint(b, uint64(len(word)))
		b = append(b, word...)
	}
	return b
}

func (w *who) parse(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	for _, t := range [...]*int64{&w.authenticated, &w.issued} {
		v, n := binary.Varint(b)
		if n <= 0 {
			return errMalformed
		}
		*t, b = v, b[n:]
	}
	for _, word := range [...]*string{&w.user, &w.client, &w.begun, (*string)(&w.reason)} {
		if len(b) == 0 {
			return nil
		}
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return errMalformed
		}
		*word, b = string(b[n:n+int(size)]), b[n+int(size):]
	}
	if len(b) > 0 {
		return errMalformed
	}
	return nil
}

// sealer seals and opens records and what tombstones lead to.
type sealer struct {
	ring   *seal.Ring
	owners *ownerBoxes
}

func newSealer(ring *seal.Ring) sealer { return sealer{ring, new(ownerBoxes)} }

// bound is what boxes are authenticated with: whose hash, which field, the head, and how
// long the owner's box is: a record whose owner's box was taken away does not open.
func bound(at id, head, size []byte) []byte {
	b := make([]byte, 0, len(at.owner)+len(at.field)+len(head)+len(size))
	b = append(b, at.owner[:]...)
	b = append(b, at.field...)
	return append(append(b, head...), size...)
}

// ownerBoxes keeps the boxes of owners under the newest secret, since to make one costs
// several times more than to use it. One in 4,096 owners has the same: the nonces are good
// for 2³² texts of each, 2⁴⁴ in all, and what is sealed for one owner opens for no other,
// since it is authenticated with the owner.
type ownerBoxes [1 << 12]atomic.Pointer[seal.Box]

func (s sealer) ownerBox(key seal.ID, o owner) (seal.Box, error) {
	share := [2]byte{o[0], o[1] & 0xf0}
	if key != s.ring.Current() {
		return s.ring.Box(key, purposeOwner, share[:])
	}
	kept := &s.owners[binary.BigEndian.Uint16(share[:])>>4]
	if b := kept.Load(); b != nil {
		return *b, nil
	}
	b, err := s.ring.Box(key, purposeOwner, share[:])
	if err == nil {
		kept.Store(&b)
	}
	return b, err
}

// tokenBox is the box of a token, under one secret. A record keeps its own.
type tokenBox struct {
	seal.Box
	key   seal.ID
	field string // of the token
}

func (s sealer) tokenBox(known *tokenBox, key seal.ID, at id) (*tokenBox, error) {
	if known != nil && known.key == key && known.field == at.field {
		return known, nil
	}
	b, err := s.ring.Box(key, purposeToken, at.token[:])
	if b == (seal.Box{}) {
		return &noBox, err
	}
	return &tokenBox{b, key, at.field}, nil
}

// noBox passes everything through.
var noBox tokenBox

// sealed is a record as a script takes it.
type sealed struct {
	head   []byte
	boxes  []byte
	values []byte // in a field of their own; nil: in the boxes
}

// seal renders a record under the newest secret, with a new revision. It sets what of
// the head depends on that.
func (s sealer) seal(r *record) (out sealed, err error) {
	var nonce seal.Nonce
	rand.Read(nonce[:])
	r.head.key = s.ring.Current()
	r.head.revision = revision(nonce[:])
	values := r.values.Bytes()
	r.head.apart = len(values) > apartAbove
	owner, err := s.ownerBox(r.head.key, r.id.owner)
	if err != nil {
		return out, err
	}
	if r.box, err = s.tokenBox(r.box, r.head.key, r.id); err != nil {
		return out, err
	}
	out.head = r.head.append(make([]byte, 0, headLen))
	facts := r.who.encode()
	b := make([]byte, 0, noteLen+2+saltLen+2*seal.Tag+len(facts)+len(values))
	if r.note != (note{}) {
		b = append(appendTime(b, r.note.until), r.note.fence[:]...)
	}
	size := 0
	if len(facts) > 0 {
		size = owner.Size(len(facts))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	with := bound(r.id, out.head, b[len(b)-2:])
	if r.box != &noBox {
		b = append(b, nonce[len(r.head.revision):]...)
	}
	if len(facts) > 0 {
		b = owner.SealWith(&nonce, b, facts, with)
	}
	if r.head.apart {
		v := append(make([]byte, 0, len(r.head.revision)+len(values)+seal.Tag), r.head.revision[:]...)
		out.values = r.box.SealWith(&nonce, v, values, with)
		values = nil
	}
	if len(values) > 0 || out.values == nil {
		b = r.box.SealWith(&nonce, b, values, with)
	}
	out.boxes = b
	return out, nil
}

// open reads the record raw that stands at an ID. large returns the field of the values,
// if they stand in one. raw is not to be changed afterwards.
func (s sealer) open(at id, raw []byte, large func() ([]byte, error)) (*record, error) {
	o, err := s.openOwner(at, raw)
	if err != nil {
		return nil, err
	}
	r, b := o.record, o.rest
	if r.box, err = s.tokenBox(nil, r.head.key, at); err != nil {
		return nil, err
	}
	if r.head.apart {
		if len(b) > 0 {
			return nil, errMalformed
		}
		if b, err = large(); err != nil {
			return nil, err
		}
		if len(b) < len(r.head.revision) || revision(b) != r.head.revision {
			return nil, errTorn
		}
		b = b[len(r.head.revision):]
	}
	if b, err = r.box.OpenWith(&o.nonce, nil, b, o.with); err == nil {
		r.values, err = codec.Parse(b)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// opening is a record of which the box of the token is still closed.
type opening struct {
	*record
	rest  []byte // with the values, or nothing where they stand in a field of their own
	nonce seal.Nonce
	with  []byte // what the box is authenticated with
}

// openOwner reads what of a record needs no token, which lists do not have.
func (s sealer) openOwner(at id, raw []byte) (o opening, err error) {
	if len(raw) < headLen+timesLen+1 {
		return o, errMalformed
	}
	o.record = &record{id: at}
	rest, err := o.parseHead(raw)
	if err != nil {
		return o, err
	}
	before := int(rest[0]) * fieldLen
	if rest[0] > 1 || len(rest) < 1+before {
		return o, errMalformed
	}
	rest = rest[1+before:]
	if o.head.kind == begun {
		if len(rest) < noteLen {
			return o, errMalformed
		}
		o.note = parseNote(string(rest[:noteLen]))
		rest = rest[noteLen:]
	}
	if len(rest) < 2 {
		return o, errMalformed
	}
	size, sized := int(binary.BigEndian.Uint16(rest)), rest[:2]
	rest = rest[2:]
	if o.head.key != s.ring.Current() && s.ring.Position(o.head.key) < 0 {
		return o, seal.ErrUnknownKey
	}
	if s.ring.Len() > 0 {
		if len(rest) < saltLen {
			return o, errMalformed
		}
		o.with = bound(at, raw[:headLen], sized)
		rest = rest[copy(o.nonce[copy(o.nonce[:], o.head.revision[:]):], rest):]
	}
	if size > len(rest) {
		return o, errMalformed
	}
	o.rest = rest[size:]
	if size > 0 {
		box, err := s.ownerBox(o.head.key, at.owner)
		if err != nil {
			return o, err
		}
		facts, err := box.OpenWith(&o.nonce, nil, rest[:size], o.with)
		if err != nil {
			return o, err
		}
		return o, o.who.parse(facts)
	}
	return o, nil
}

// parseHead reads what of a record needs no key, and returns what follows the times.
func (r *record) parseHead(raw []byte) (rest []byte, err error) {
	r.head.parse(raw)
	rest = raw[headLen:]
	for i, t := range [...]*int64{&r.times.born, &r.times.deadline, &r.times.touched, &r.times.until} {
		if *t = getTime(rest[i*timeLen:]); *t > maxTime {
			return nil, errMalformed
		}
	}
	r.times.step = rest[timesLen-1]
	return rest[timesLen:], nil
}

// errTorn says that the values in their own field are not those of the record: another
// write came between the two reads.
var errTorn = errors.New("values of another revision")

// What one secret is used for.
const (
	purposeOwner = "session owner"
	purposeToken = "session token"
	purposeLeads = "session successor"
)

// leadsTo seals the token that a rotated ID leads to. Without secrets it is sealed under
// the old token alone, which Redis does not know either.
func (s sealer) leadsTo(from, to id) ([]byte, error) {
	key := s.ring.Current()
	box, err := s.leadsBox(key, from)
	if err != nil {
		return nil, err
	}
	return box.Seal(append([]byte(nil), key[:]...), to.token[:], bound(from, nil, nil)), nil
}

// follow opens what leadsTo sealed.
func (s sealer) follow(k keys, from id, b []byte) (id, error) {
	var key seal.ID
	if len(b) < len(key) {
		return id{}, errMalformed
	}
	b = b[copy(key[:], b):]
	box, err := s.leadsBox(key, from)
	if err != nil {
		return id{}, err
	}
	to, err := box.Open(nil, b, bound(from, nil, nil))
	if err != nil {
		return id{}, err
	}
	if len(to) != len(token{}) {
		return id{}, errMalformed
	}
	return k.at(from.owner, token(to)), nil
}

func (s sealer) leadsBox(key seal.ID, from id) (seal.Box, error) {
	if s.ring.Len() == 0 && key == seal.Plain {
		return seal.TokenBox(purposeLeads, from.token[:]), nil
	}
	return s.ring.Box(key, purposeLeads, from.token[:])
}
