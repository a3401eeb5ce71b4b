package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var (
	// ErrUnavailable is returned when Redis could not be asked or did not answer in time.
	ErrUnavailable = errors.New("session: store unavailable")

	errOwner = errors.New("of another owner")
)

// records are the sessions in Redis. What changes them is one round trip, but where a sweep is due,
// or an event has to follow.
type records struct {
	redis   *roundtrip.Sender
	keys    keys
	sealer  sealer
	clocks  *clocks
	lives   [kinds]life
	grace   time.Duration
	timeout time.Duration
	turns   turns

	accounts   Accounts
	notBefore  int64         // Accounts.NotBefore, µs
	legacyLife time.Duration // Legacy.Lifetime
	fence      time.Duration // how long one stands
	events     Events

	log *slog.Logger

	unreadable, conflicts, dropped, lostEvents atomic.Uint64
}

// reply is what each script answers.
type reply struct {
	now     int64  // Redis's time, µs
	outcome int64  // refused, written, …
	there   string // what stands at the ID, if nothing was done
	more    any    // see the script

	happened []any     // events that the script has not appended
	received time.Time // when it came
}

// The scripts. Each has one key, the hash of the session's owner; those that write events have the
// stream of its partition besides.
var (
	createScript = scripts.Get("session/create.lua")
	saveScript   = scripts.Get("session/save.lua")
	rotateScript = scripts.Get("session/rotate.lua")
	retireScript = scripts.Get("session/retire.lua")
	loginScript  = scripts.Get("session/login.lua")
	besideScript = scripts.Get("session/beside.lua")
	endAllScript = scripts.Get("session/end_all.lua")
	listScript   = scripts.Get("session/list.lua")
	watchScript  = scripts.Get("session/watch.lua")
	endScript    = scripts.Get("session/end.lua")
	sweepScript  = scripts.Get("session/sweep.lua")
	headsScript  = scripts.Get("session/heads.lua")
	readScript   = scripts.Get("session/read.lua")
	timeScript   = scripts.Get("session/time.lua")
)

// Outcomes of a script.
const (
	refused  = 0
	written  = 1
	sweepDue = 2 // written, and a sweep is due
	oldMoved = 3 // of retire: the old record is not the one that the caller knows
	stale    = 4 // of login: the fence refuses it
	unknown  = 5 // of login and end_all: there is no session of that handle
	full     = 6 // of login: there are too many sessions
	orphaned = 7 // of login: the session that it goes on from has ended
)

// owns reports whether a record stands in the hash of its user.
func (k keys) owns(r *record) bool {
	for _, user := range [...]string{r.who.user, r.who.begun} {
		if user != "" && k.user(user) != r.id.owner {
			return false
		}
	}
	return true
}

// over reports whether a record's time has passed, by the lives that are configured now.
func (s *records) over(r *record, now int64) bool {
	if s.lives[r.head.kind].over(r, now) {
		return true
	}
	born := r.times.born
	if r.head.copied { // it began before it was copied, nobody knows when
		born = r.times.deadline - s.legacyLife.Microseconds()
	}
	return (r.who.user != "" || r.who.begun != "") && born < s.notBefore
}

// run runs a script on the hash of an ID and learns Redis's time from its reply.
func (s *records) run(ctx context.Context, script *scripts.Script, at id, args ...any) (reply, error) {
	return s.runBy(ctx, s.redis, script, at, args...)
}

func (s *records) runBy(ctx context.Context, by *roundtrip.Sender, script *scripts.Script, at id, args ...any) (reply, error) {
	return s.runOver(ctx, by, script, at, []string{at.key}, args...)
}

// runOver is runBy over keys, of which the first is the hash of an ID.
func (s *records) runOver(ctx context.Context, by *roundtrip.Sender, script *scripts.Script, at id, keys []string, args ...any) (reply, error) {
	sent := s.redis.Now()
	raw, err := by.Run(ctx, script, keys, args...)
	if wrongType(err) && script != createScript && script != loginScript && script != endAllScript { // no session is there, and none can be
		s.reportUnreadable(ctx, "its key is no hash")
		if script == endScript {
			return reply{outcome: written}, nil
		}
		return reply{outcome: refused}, nil
	}
	if err != nil {
		return reply{}, unavailable(ctx, err)
	}
	raw, happened := splitEvents(raw)
	r, ok := readReply(raw)
	if !ok {
		return reply{}, unavailable(ctx, fmt.Errorf("unexpected reply of type %T", raw))
	}
	r.happened, r.received = happened, s.redis.Now()
	s.clocks.at(at).learn(r.now, sent, r.received)
	if r.outcome == sweepDue {
		s.sweep(ctx, at)
	}
	return r, nil
}

// readReply reads what a script answers: now if it did what it was asked to, -now if a
// sweep is due besides, or {now, outcome, there}, of some with more.
func readReply(raw any) (r reply, ok bool) {
	switch raw := raw.(type) {
	case int64:
		ok = true
		r = reply{now: raw, outcome: written}
		if raw < 0 {
			r = reply{now: -raw, outcome: sweepDue}
		}
	case []any:
		if len(raw) != 3 && len(raw) != 4 {
			return r, false
		}
		var isNow, isOutcome bool
		r.now, isNow = raw[0].(int64)
		r.outcome, isOutcome = raw[1].(int64)
		r.there, ok = raw[2].(string)
		did := r.outcome == written || r.outcome == sweepDue
		if !ok || !isNow || !isOutcome || r.outcome < refused || r.outcome > orphaned || did && len(raw) != 4 {
			return reply{}, false
		}
		if len(raw) == 4 {
			r.more = raw[3]
			switch r.more.(type) {
			case string:
				ok = !did
			case int64, []any:
				ok = did
			}
		}
	}
	return r, ok && r.now > 0
}

// create makes a record under a new ID.
func (s *records) create(ctx context.Context, r *record) (reply, error) {
	return s.make(ctx, r, "")
}

// overwrite is create over whatever is there.
func (s *records) overwrite(ctx context.Context, r *record) (reply, error) {
	return s.make(ctx, r, "1")
}

func (s *records) make(ctx context.Context, r *record, over string) (reply, error) {
	l := s.lives[r.head.kind].kept(0)
	out, err := s.sealer.seal(r)
	if err != nil {
		return reply{}, err
	}
	a, err := s.run(ctx, createScript, r.id, r.id.field, out.head, out.boxes,
		l.arg, r.times.deadline, out.values, over)
	if err == nil && a.outcome != refused {
		r.written(a.now, l)
	}
	return a, err
}

// written notes the times that a script has set.
func (r *record) written(now int64, l life) {
	if r.times.born == 0 {
		r.times.born = now
	}
	r.times.touched = max(r.times.touched, now)
	r.times.deadline = l.deadline(r)
	end := r.times.deadline
	if l.idle > 0 {
		end = min(end, r.times.touched+l.idle.Microseconds())
	}
	r.times.until = max(r.times.until, end)
	r.times.step = power(l.step)
}

// save writes r over old, if that still has its revision. short, if not 0, is how long r stands
// unless it is written again. t becomes an event if the write notes a use.
func (s *records) save(ctx context.Context, r, old *record, short time.Duration, t told) (reply, error) {
	l := s.lives[r.head.kind].kept(short)
	out, err := s.sealer.seal(r)
	if err != nil {
		return reply{}, err
	}
	a, err := s.act(ctx, saveScript, r.id, t, r.id.field, old.head.revision[:], out.head, out.boxes,
		l.after(s.lives[old.head.kind]), out.values)
	if err == nil && a.outcome != refused && l.moves(r, a.now) {
		r.written(a.now, l)
	}
	return a, err
}

// touch notes a use of the session, if it still is of its kind, or gives it its own life. t is what
// has happened to it by that.
func (s *records) touch(ctx context.Context, r *record, t told) (reply, error) {
	l := s.lives[r.head.kind].kept(0)
	a, err := s.act(ctx, saveScript, r.id, t, r.id.field, []byte{byte(r.head.kind)}, "", "",
		l.after(s.lives[r.head.kind]), "")
	if err == nil && a.outcome != refused && l.moves(r, a.now) {
		r.written(a.now, l)
	}
	return a, err
}

// rotate writes r under its new ID and has that of old, which still must have its
// revision, lead to it.
func (s *records) rotate(ctx context.Context, r, old *record) (reply, error) {
	leads, err := s.sealer.leadsTo(old.id, r.id)
	if err != nil {
		return reply{}, err
	}
	out, err := s.sealer.seal(r)
	if err != nil {
		return reply{}, err
	}
	l := s.lives[r.head.kind].kept(0)
	a, err := s.act(ctx, rotateScript, r.id, told{}, old.id.field, old.head.revision[:], r.id.field, out.head, out.boxes,
		l.after(s.lives[old.head.kind]), out.values, s.grace.Microseconds(), leads)
	if err == nil && a.outcome != refused {
		r.written(a.now, l)
	}
	return a, err
}

// retire gives r, which must have a revision, its own life, and ends the old ID and what
// took its place meanwhile in one step. Only if r was changed it is written anew. What is to be
// carried over must still have its revision. t is what has happened to the session by it.
func (s *records) retire(ctx context.Context, r *record, known revision, changed bool, old retiree, t told) (reply, error) {
	var theirs []byte // any
	if old.carry {
		theirs = old.record.head.revision[:]
	}
	var out sealed
	if changed {
		var err error
		if out, err = s.sealer.seal(r); err != nil {
			return reply{}, err
		}
	}
	l := s.lives[r.head.kind].kept(0)
	a, err := s.act(ctx, retireScript, r.id, t, r.id.field, known[:], out.head, out.boxes,
		l.arg, out.values, old.record.id.field, theirs, s.grace.Microseconds())
	if err == nil && a.outcome != refused && a.outcome != oldMoved {
		r.written(a.now, l)
	}
	return a, err
}

// How end treats what it finds; scripts/session/end.lua says more.
const (
	endMark    = "mark"
	endLogout  = "logout"
	endRetire  = "retire"
	endReplace = "replace"
)

// end leaves a tombstone at an ID. known is the revision of endRetire, mark what a
// tombstone where nothing stood shows of who left it, or the session of endLogout.
func (s *records) end(ctx context.Context, at id, how string, known revision, mark handle) (reply, error) {
	return s.endBy(ctx, s.redis, at, how, known, mark, told{})
}

func (s *records) endBy(ctx context.Context, by *roundtrip.Sender, at id, how string, known revision, mark handle, t told) (reply, error) {
	return s.actBy(ctx, by, endScript, at, t, at.field, how, s.grace.Microseconds(), known[:], mark[:], 0)
}

// endCopy ends the copy of a legacy session in each place that it has, and leaves a tombstone
// until the legacy session ends, also if there is no copy yet: none is made then. If it went on
// into a login, of a handle, that stays.
func (s *records) endCopy(ctx context.Context, r *record, stays handle) error {
	_, err := s.act(ctx, endScript, r.id, told{kind: LoggedOut}, r.id.field, endLogout, s.grace.Microseconds(), stays[:], make([]byte, len(handle{})), r.times.deadline)
	return err
}

// endSession ends a session in each place that it has. Without a handle it is the one that an ID
// names or named.
func (s *records) endSession(ctx context.Context, at id, h handle) error {
	_, err := s.endBy(ctx, s.redis, at, endLogout, revision{}, h, told{kind: LoggedOut})
	return err
}

// undo ends a record that may or may not have been made. It is tried also where Redis is not
// asked because it did not answer, as that may have been the record's making. t is what has
// happened if it had been made.
func (s *records) undo(ctx context.Context, at id, t told) error {
	_, err := s.endBy(ctx, s.redis.Persistent(), at, endReplace, revision{}, handle{}, t)
	return err
}

// marked reports whether a tombstone was left with a mark.
func marked(tombstone string, mark handle) bool {
	const at = 2 + 2*timeLen
	return len(tombstone) >= tombstoneLen && tombstone[0] == formatEnded && tombstone[at:at+len(mark)] == string(mark[:])
}

// sweep removes from an owner's hash what is past. A sweep that fails is due again at the
// next change.
func (s *records) sweep(ctx context.Context, at id) {
	if _, err := s.run(ctx, sweepScript, at, maxFresh, s.accounts.Max); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "session: past sessions not removed", slog.Any("error", err))
	}
}

// maxFresh bounds the tombstones in their Grace that one owner may have.
const maxFresh = 1000

// get reads what stands at an ID.
func (s *records) get(ctx context.Context, at id) (found, error) {
	now, err := s.now(ctx, at)
	if err != nil {
		return found{}, err
	}
	raw, err := s.field(ctx, at, at.field)
	if err != nil {
		return found{}, err
	}
	return s.readAt(ctx, at, raw, now)
}

// readAt is read with large values, and with what cannot be read reported. Its error is
// that of the store.
func (s *records) readAt(ctx context.Context, at id, raw []byte, now int64) (found, error) {
	f, err := s.read(at, raw, now, func() ([]byte, error) { return s.field(ctx, at, "v"+at.field) })
	if errors.Is(err, errTorn) {
		// A write came between, or the record is from a cache: both at one moment.
		var a reply
		if a, err = s.run(ctx, readScript, at, at.field); err == nil {
			values, _ := a.more.(string)
			f, err = s.read(at, []byte(a.there), a.now, func() ([]byte, error) { return []byte(values), nil })
		}
	}
	switch {
	case err == nil || errors.Is(err, ErrUnavailable) || ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return f, err
	default:
		s.reportUnreadable(ctx, err.Error())
		return f, nil
	}
}

// field returns a field of an ID's hash, nil if there is none.
func (s *records) field(ctx context.Context, at id, name string) ([]byte, error) {
	raw, err := s.redis.HGet(ctx, at.key, name)
	switch {
	case err == nil:
		return raw, nil
	case errors.Is(err, redis.Nil):
		return nil, nil
	case wrongType(err):
		s.reportUnreadable(ctx, "its key is no hash")
		return nil, nil
	}
	return nil, unavailable(ctx, err)
}

// find returns what an ID leads to, through the successors of rotated IDs. A record's own
// ID says where it stands. The time that it takes is bounded, the number of rotations not.
func (s *records) find(ctx context.Context, at id) (found, error) {
	f, err := s.get(ctx, at)
	if err != nil || f.what != rotated {
		return f, err
	}
	var through []id
	for start := time.Now(); err == nil && f.what == rotated; {
		if time.Since(start) > s.timeout {
			return found{}, fmt.Errorf("%w: rotated too often to be followed", ErrUnavailable)
		}
		next, broken := s.sealer.follow(s.keys, at, f.leads)
		if broken != nil {
			s.reportUnreadable(ctx, broken.Error())
			return found{what: unreadable}, nil
		}
		if len(through) < maxThrough {
			through = append(through, at)
		}
		at = next
		if f, err = s.get(ctx, at); err == nil && f.what == nothing {
			f.what = ended // what the ID led to is over
		}
		f.beyond = &next
	}
	f.through = through
	return f, err
}

// maxThrough bounds how many IDs are looked at once more before a cookie is set.
const maxThrough = 8

// met reads what a script found in the place of the record that the request knows.
func (s *records) met(ctx context.Context, at id, a reply) (found, error) {
	f, err := s.stands(ctx, at, a)
	if f.what == live {
		s.conflicts.Add(1)
		f.what = changed
	}
	return f, err
}

// stands is met for a script that has changed nothing.
func (s *records) stands(ctx context.Context, at id, a reply) (found, error) {
	if a.there == "" {
		return found{what: gone}, nil
	}
	f, err := s.readAt(ctx, at, []byte(a.there), a.now)
	if err == nil && f.what == rotated {
		f, err = s.find(ctx, at)
	}
	if f.what == nothing || f.what == unreadable {
		f.what = gone
	}
	return f, err
}

// stays reports whether what a script found at an ID is not to be read by this server: no
// tombstone that has come since.
func (s *records) stays(at id, there string) bool {
	switch {
	case len(there) < tombstoneLen || there[0] != formatRotated && there[0] != formatEnded:
		return there != ""
	case there[0] == formatRotated:
		_, err := s.sealer.follow(s.keys, at, []byte(there[tombstoneLen:]))
		return err != nil
	}
	return false
}

func (s *records) reportUnreadable(ctx context.Context, why string) {
	s.unreadable.Add(1)
	s.log.LogAttrs(ctx, slog.LevelWarn, "session: record cannot be read, treated as absent", slog.String("why", why))
}

// reportDropped notes that a session ended while a request ran.
func (s *records) reportDropped(ctx context.Context) {
	s.dropped.Add(1)
	s.log.LogAttrs(ctx, slog.LevelInfo, "session: ended, or got another ID, while a request changed it: the change is not saved")
}

// wrongType reports whether somebody else uses a key, for something that is no hash.
// Redis puts the word first, miniredis wraps what comes out of a script.
func wrongType(err error) bool { return err != nil && strings.Contains(err.Error(), "WRONGTYPE ") }

// outOfMemory reports whether a full Redis did not permit a command.
func outOfMemory(err error) bool { return err != nil && strings.Contains(err.Error(), "OOM ") }

// errUncopied is of changes to a legacy session of which a full Redis took no copy.
var errUncopied = fmt.Errorf("%w: out of memory", ErrUnavailable)

// unavailable marks an error as the store's own, unless the caller gave up.
func unavailable(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		if cause := context.Cause(ctx); errors.Is(cause, ErrUnavailable) { // not the caller's deadline
			return cause
		}
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
