package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var (
	// ErrUnavailable is returned when Redis could not be asked or did not
	// answer in time.
	ErrUnavailable = errors.New("session: store unavailable")
	// ErrConflict is returned by Commit when other requests changed the session
	// so often that this one's changes could not be merged.
	ErrConflict = errors.New("session: too many concurrent changes")
)

var errLegacyTimeout = errors.New("no answer from the legacy store in time")

const (
	maxHops     = 16  // successors followed from a rotated ID
	maxAttempts = 128 // conditional commits of one request
	patience    = 10  // timeouts that a commit waits for its turn
)

// Store keeps sessions in Redis. A [Manager] has one of its own; on its own it
// is a plain scs.CtxStore for a stock scs.SessionManager, whose commits are
// unconditional as that manager's are. It is safe for concurrent use.
type Store struct {
	prefix      string
	idleTimeout time.Duration // 0: none
	grace       time.Duration
	ring        *keyring
	codec       valuesCodec
	legacy      scs.Store
	legacyUser  func(map[string]any) string // may be nil
	lifetime    time.Duration               // of legacy sessions; others have it in their meta
	timeout     time.Duration
	log         *slog.Logger
	redis       *roundtrip.Sender
	turns       turns
	now         func() time.Time

	unreadable, conflicts, dropped atomic.Uint64
}

var _ scs.CtxStore = (*Store)(nil)

// valuesCodec leaves out the deadline, which stands in the record's meta: equal
// values then have equal bytes.
type valuesCodec struct{ scs.Codec }

func (c valuesCodec) Encode(_ time.Time, values map[string]any) ([]byte, error) {
	return c.Codec.Encode(time.Time{}, values)
}

// Stats counts what happened since the Manager was made.
type Stats struct {
	Unreadable uint64 // records that could not be read: corrupt, or sealed under another secret
	Conflicts  uint64 // commits that met a concurrent change and were merged
	Dropped    uint64 // commits of sessions that had ended meanwhile; nothing was written
}

// verdict is what stands at an ID.
type verdict uint8

const (
	absent verdict = iota
	found
	over // somebody logged in with the ID: it leads nowhere
	gone // logged out, or the successor is gone: it leads nowhere
)

// find loads the session that an ID leads to, through the successors of
// rotated IDs. The record's own ID tells where it was found.
func (s *Store) find(ctx context.Context, at id) (*record, verdict, error) {
	raw, err := s.get(ctx, at)
	if err != nil || len(raw) == 0 {
		return nil, absent, err
	}
	return s.resolve(ctx, at, raw)
}

// get returns the record at an ID, nothing if there is none. It is not to be
// changed.
func (s *Store) get(ctx context.Context, at id) ([]byte, error) {
	raw, err := s.redis.Get(ctx, at.key)
	switch {
	case err == nil:
		return raw, nil
	case errors.Is(err, redis.Nil):
		return nil, nil
	case wrongType(err):
		s.reportUnreadable(ctx, "not a string")
		return nil, nil
	}
	return nil, unavailable(ctx, err)
}

// resolve reads the record raw that was found at an ID.
func (s *Store) resolve(ctx context.Context, at id, raw []byte) (*record, verdict, error) {
	for hop := 0; ; hop++ {
		switch raw[0] {
		case formatLive:
			r, err := s.open(at, raw)
			if err != nil {
				s.reportUnreadable(ctx, err.Error())
				return nil, absent, nil
			}
			if s.expired(r) {
				return nil, absent, nil
			}
			return r, found, nil
		case formatMoved:
			next, err := s.successor(at, raw)
			if err != nil {
				s.reportUnreadable(ctx, err.Error())
				return nil, absent, nil
			}
			if hop == maxHops {
				return nil, gone, nil
			}
			at = next
			if raw, err = s.get(ctx, at); err != nil {
				return nil, absent, err
			}
			if len(raw) == 0 {
				return nil, gone, nil
			}
		case formatEnded:
			return nil, over, nil
		case formatLoggedOut:
			return nil, gone, nil
		default:
			s.reportUnreadable(ctx, "unknown format")
			return nil, absent, nil
		}
	}
}

// successor opens the record of a rotated ID.
func (s *Store) successor(at id, raw []byte) (id, error) {
	if len(raw) < 1+keyIDLen {
		return id{}, errMalformed
	}
	cookie, err := s.ring.openSuccessor(raw[1+keyIDLen:], formatMoved, keyID(raw[1:1+keyIDLen]), at.token, at.key)
	if err != nil {
		return id{}, err
	}
	token, tag, ok := splitCookie(cookie)
	if !ok {
		return id{}, errMalformed
	}
	return newID(s.prefix, token, tag), nil
}

// moved is the record that leads from a rotated ID to its successor.
func (s *Store) moved(from, to id) ([]byte, error) {
	k := s.ring.current()
	return s.ring.sealSuccessor(append([]byte{formatMoved}, k[:]...), to.cookie(), formatMoved, from.token, from.key)
}

func (s *Store) open(at id, b []byte) (*record, error) {
	if len(b) < liveHeader {
		return nil, errMalformed
	}
	r := &record{
		id:       at,
		revision: binary.BigEndian.Uint64(b[1:]),
		touched:  int64(binary.BigEndian.Uint64(b[headLen:])),
		keyID:    keyID(b[headLen+8 : liveHeader]),
	}
	var err error
	if r.box, err = s.ring.bind(r.keyID, at.token); err != nil {
		return nil, err
	}
	payload, err := openRecord(r.box, nil, b[liveHeader:], formatLive, r.keyID, at.token, at.key)
	if err != nil {
		return nil, err
	}
	r.meta, r.values, err = parseMeta(payload)
	return r, err
}

// seal renders a record. It sets the key id and the time of the last touch.
func (s *Store) seal(r *record) (b []byte, err error) {
	r.keyID = s.ring.current()
	r.touched = millis(s.now())
	payload := make([]byte, 0, 1+4*9+len(r.meta.user)+len(r.values)+8)
	payload = append(appendMeta(payload, r.meta), r.values...)
	b = appendLive(make([]byte, 0, liveHeader+len(payload)+sealOverhead), r.revision, r.touched, r.keyID)
	if r.box == nil {
		if r.box, err = s.ring.bind(r.keyID, r.id.token); err != nil {
			return nil, err
		}
	}
	return sealRecord(r.box, b, payload, formatLive, r.keyID, r.id.token, r.id.key)
}

// A session is touched at most every idleTimeout/touchShare, and so lives up to
// that much longer than idleTimeout after its last use.
const touchShare = 20

// life is how long a record may live from now on. It is not positive if the
// session has expired.
func (s *Store) life(m meta) time.Duration {
	d := fromMillis(m.deadline).Sub(s.now())
	if s.idleTimeout > 0 {
		d = min(d, s.idleTimeout+s.idleTimeout/touchShare)
	}
	return d
}

// expired judges by the record alone: a key that outlived its TTL, on a replica
// or after a restore, is no session.
func (s *Store) expired(r *record) bool {
	now := millis(s.now())
	idle := s.idleTimeout + s.idleTimeout/touchShare
	return now >= r.meta.deadline || s.idleTimeout > 0 && now-r.touched > idle.Milliseconds()
}

// touchDue tells whether the use of r is to be noted in Redis.
func (s *Store) touchDue(r *record) bool {
	return s.idleTimeout > 0 && millis(s.now())-r.touched >= (s.idleTimeout/touchShare).Milliseconds()
}

// touch notes that the session is in use. A session that is gone stays gone.
// A touch that fails fails no request: the session has been read, and the next
// request tries again.
func (s *Store) touch(ctx context.Context, r *record) *record {
	life := s.life(r.meta)
	if life <= 0 {
		return r
	}
	touched := *r
	touched.touched = millis(s.now())
	if _, err := s.redis.Reply(ctx, scripts.SessionTouch, r.id.key, appendMillis(nil, touched.touched), ttl(life)); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "session: use not noted", slog.Any("error", err))
		return r
	}
	return &touched
}

// put writes r if the record at its ID is still the one that head tells, or if
// there is none and head is "". It returns the record that stands there
// instead, "" if none, and whether r was written.
func (s *Store) put(ctx context.Context, r *record, head string) (instead string, ok bool, err error) {
	life := s.life(r.meta)
	if life <= 0 {
		return "", false, nil
	}
	b, err := s.seal(r)
	if err != nil {
		return "", false, err
	}
	return s.swap(ctx, r.id, head, b, life)
}

func (s *Store) swap(ctx context.Context, at id, head string, b []byte, life time.Duration) (instead string, ok bool, err error) {
	reply, err := s.redis.Reply(ctx, scripts.SessionCommit, at.key, head, b, ttl(life))
	if wrongType(err) {
		s.reportUnreadable(ctx, "not a string")
		return "", false, nil
	}
	if err != nil {
		return "", false, unavailable(ctx, err)
	}
	switch reply := reply.(type) {
	case int64:
		return "", reply == 1, nil
	case string:
		return reply, false, nil
	}
	return "", false, unavailable(ctx, fmt.Errorf("unexpected reply of type %T", reply))
}

// ttl is a life in whole milliseconds, at least one: Redis refuses 0.
func ttl(life time.Duration) int64 { return max(1, life.Milliseconds()) }

// end ends the session that an ID leads to. It is no error if there is none.
func (s *Store) end(ctx context.Context, at id) error {
	var marker []byte
	if s.legacy != nil {
		// A first request may be about to move the legacy session here. The
		// marker keeps its place taken.
		marker = []byte{formatLoggedOut}
		if err := s.legacyDelete(ctx, at.token); err != nil {
			return unavailable(ctx, err)
		}
	}
	for range maxAttempts {
		reply, err := s.redis.Reply(ctx, scripts.SessionEnd, at.key, marker, ttl(s.grace))
		if wrongType(err) {
			s.reportUnreadable(ctx, "not a string")
			return nil
		}
		if err != nil {
			return unavailable(ctx, err)
		}
		raw, moved := reply.(string)
		if !moved {
			return nil
		}
		if at, err = s.successor(at, []byte(raw)); err != nil {
			s.reportUnreadable(ctx, err.Error())
			return nil
		}
	}
	return ErrConflict // rotated as fast as we followed
}

// wrongType tells whether somebody else uses the key, for something that is no
// string. To fail because of that would be to fail until he stops. Redis puts the
// word first, miniredis and older servers wrap what comes out of a script.
func wrongType(err error) bool { return err != nil && strings.Contains(err.Error(), "WRONGTYPE ") }

// commit saves values (the codec's bytes) as st wants them saved. token is a
// fresh one for a session that has none yet or changes its ID.
func (s *Store) commit(ctx context.Context, st *state, token string, values []byte) error {
	f := st.snapshot()
	if f.dead && f.intent != intentLogin {
		s.drop(st)
		return nil
	}
	mine := &record{id: newID(s.prefix, token, userTag(f.meta.user)), revision: 1, meta: f.meta, values: values}
	switch {
	case f.base == nil:
		mine.meta.issued = millis(s.now())
		if _, ok, err := s.put(ctx, mine, ""); err != nil || !ok {
			return err // not written: its deadline has passed
		}
		st.saved(mine, true)
		return nil
	case f.intent == intentKeep:
		return s.update(ctx, st, f.base, f.base, mine, f.reseal)
	default:
		mine.meta.issued = millis(s.now())
		return s.replace(ctx, st, f.base, mine, f.intent, f.clean)
	}
}

// update saves mine, which was made from base, over current. When base and
// current differ, or current turns out to have been changed, what changed from
// base to mine is applied to what is there now.
func (s *Store) update(ctx context.Context, st *state, base, current, mine *record, reseal bool) (failure error) {
	next := mine
	var err error
	if current != base {
		if next, err = s.merge(base, mine, current); err != nil {
			return err
		}
	}
	var done func(failed bool)
	for range maxAttempts {
		if !reseal && next.meta == current.meta && bytes.Equal(next.values, current.values) {
			if s.touchDue(current) {
				current = s.touch(ctx, current)
			}
			s.adopt(st, current, base, mine)
			return nil
		}
		next.id, next.revision, next.box = current.id, current.revision+1, nil
		if current.keyID == s.ring.current() {
			next.box = current.box // of the same token
		}
		instead, ok, err := s.put(ctx, next, current.head())
		if err != nil {
			return err
		}
		if ok {
			s.adopt(st, next, base, mine)
			return nil
		}
		if instead == "" {
			s.drop(st)
			return nil
		}
		s.conflicts.Add(1)
		if done == nil {
			if done, err = s.turns.take(ctx, base.id.key, patience*s.timeout); err != nil {
				return err
			}
			defer func() { done(failure != nil) }()
		}
		var v verdict
		if current, v, err = s.resolve(ctx, current.id, []byte(instead)); err != nil {
			return err
		}
		if v != found {
			s.drop(st)
			return nil
		}
		if next, err = s.merge(base, mine, current); err != nil {
			return err
		}
	}
	return ErrConflict
}

// adopt notes that saved stands in Redis, and what of it the request, which
// holds the values of mine, has not seen.
func (s *Store) adopt(st *state, saved, base, mine *record) {
	st.saved(saved, saved.id != base.id || saved.meta.persistent != base.meta.persistent)
	if bytes.Equal(mine.values, saved.values) {
		return
	}
	_, before, err := s.codec.Decode(mine.values)
	if err != nil {
		return
	}
	if _, after, err := s.codec.Decode(saved.values); err == nil {
		st.mu.Lock()
		st.adopted = &adopted{before, after}
		st.mu.Unlock()
	}
}

// merge applies to current what changed from base to mine.
func (s *Store) merge(base, mine, current *record) (*record, error) {
	var maps [3]map[string]any
	for i, r := range [...]*record{base, mine, current} {
		var err error
		if _, maps[i], err = s.codec.Decode(r.values); err != nil {
			return nil, err
		}
	}
	merged := *mine
	var err error
	if merged.values, err = s.codec.Encode(time.Time{}, s.mergeValues(maps[0], maps[1], maps[2])); err != nil {
		return nil, err
	}
	if mine.meta.user == base.meta.user && mine.meta.authenticated == base.meta.authenticated {
		// Not a login: all but the switch that this request may have set is theirs.
		issued := merged.meta.issued
		merged.meta = current.meta
		if mine.meta.issued != base.meta.issued {
			merged.meta.issued = issued
		}
		if mine.meta.persistent != base.meta.persistent {
			merged.meta.persistent = mine.meta.persistent
		}
	}
	return &merged, nil
}

// replace saves mine under a new ID and retires the old one. The new record is
// written first, so that a crash in between leaves the old ID working; nobody
// knows the new one yet.
//
// After a rotation the old ID leads to the new one for the grace; after a login
// it leads nowhere, and its place stays taken so that requests that were under
// way with it can neither save nor set a cookie.
func (s *Store) replace(ctx context.Context, st *state, base, mine *record, in intent, clean bool) error {
	if s.legacy != nil && base.id.tag == "" {
		// Should the deletion have failed when this session was moved, the old ID
		// would lead to it again after the grace.
		if err := s.legacyDelete(ctx, base.id.token); err != nil {
			return unavailable(ctx, err)
		}
	}
	if _, ok, err := s.put(ctx, mine, ""); err != nil || !ok {
		return err
	}
	abandon := func() error {
		_, err := s.redis.Reply(ctx, scripts.SessionEnd, mine.id.key, "", 1)
		if err != nil {
			return unavailable(ctx, err)
		}
		return nil
	}
	marker := []byte{formatEnded}
	old, next := base, mine
	// carry brings what others did to the old session meanwhile into the new record.
	carry := func(theirs *record) error {
		if clean {
			return nil
		}
		merged, err := s.merge(base, mine, theirs)
		if err != nil {
			return err
		}
		merged.revision = next.revision + 1
		_, ok, err := s.put(ctx, merged, next.head())
		if err == nil && !ok {
			err = ErrConflict // only this request knows the ID: it expired, or Redis lost it
		}
		next = merged
		return err
	}
	for range maxAttempts {
		if in == intentRotate {
			var err error
			if marker, err = s.moved(old.id, mine.id); err != nil {
				return err
			}
		}
		instead, ok, err := s.swap(ctx, old.id, old.head(), marker, s.grace)
		switch {
		case err != nil:
			return err
		case ok:
			s.adopt(st, next, base, mine)
			return nil
		}
		theirs, v := (*record)(nil), gone
		if instead != "" {
			s.conflicts.Add(1)
			if theirs, v, err = s.resolve(ctx, old.id, []byte(instead)); err != nil {
				return err
			}
		}
		switch {
		case v != found && in == intentRotate:
			s.drop(st)
			return abandon()
		case v == over:
			// Another login of the same visitor was first. Both stand.
			s.adopt(st, next, base, mine)
			return nil
		case v != found:
			// Logged out meanwhile: only what this request itself put is kept.
			empty := *base
			if empty.values, err = s.codec.Encode(time.Time{}, nil); err != nil {
				return err
			}
			if err := carry(&empty); err != nil {
				return err
			}
			s.adopt(st, next, base, mine)
			return nil
		case theirs.id != old.id && in == intentRotate:
			// Another rotation was first: its ID stands, and so do our changes.
			if err := abandon(); err != nil {
				return err
			}
			mine.meta.issued = base.meta.issued
			return s.update(ctx, st, base, theirs, mine, false)
		}
		if err := carry(theirs); err != nil {
			return err
		}
		old = theirs
	}
	return ErrConflict
}

// drop notes that the session ended while the request ran: nothing is written.
func (s *Store) drop(st *state) {
	s.dropped.Add(1)
	st.lost()
}

func (s *Store) reportUnreadable(ctx context.Context, why string) {
	s.unreadable.Add(1)
	s.log.LogAttrs(ctx, slog.LevelWarn, "session: record cannot be read, treated as absent", slog.String("why", why))
}

// unavailable marks an error as the store's own, unless the caller gave up.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// FindCtx returns the values of a session, as the codec wrote them.
func (s *Store) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	if st := s.state(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.base == nil {
			return nil, false, nil
		}
		return st.base.values, true, nil
	}
	r, v, err := s.find(ctx, newID(s.prefix, token, ""))
	if err != nil || v != found {
		return nil, false, err
	}
	return r.values, true, nil
}

// CommitCtx saves a session. Without a state of the Manager's in ctx it
// overwrites what is there.
func (s *Store) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	if st := s.state(ctx); st != nil {
		return s.commit(ctx, st, token, b)
	}
	now := millis(s.now())
	r := &record{
		id:       newID(s.prefix, token, ""),
		revision: uint64(now),
		meta:     meta{created: now, issued: now, deadline: millis(expiry)},
		values:   b,
	}
	life := s.life(r.meta)
	if life <= 0 {
		return s.DeleteCtx(ctx, token)
	}
	sealed, err := s.seal(r)
	if err != nil {
		return err
	}
	if err := s.redis.Set(ctx, r.id.key, sealed, ttl(life)); err != nil {
		return unavailable(ctx, err)
	}
	return nil
}

// DeleteCtx ends a session. With a state of the Manager's in ctx it does
// nothing: there the state decides at the commit.
func (s *Store) DeleteCtx(ctx context.Context, token string) error {
	if s.state(ctx) != nil {
		return nil
	}
	return s.end(ctx, newID(s.prefix, token, ""))
}

// Find is FindCtx without a context; the store's own timeout applies.
func (s *Store) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}

// Commit is CommitCtx without a context; the store's own timeout applies.
func (s *Store) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// Delete is DeleteCtx without a context; the store's own timeout applies.
func (s *Store) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }
