package session

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"
)

// What the scripts do that look at all sessions of a user.

// entry is what the script of a login looks at besides the record.
type entry struct {
	since     int64         // when the request was loaded, at the earliest, µs
	loaded    time.Time     // the same, by this process's clock
	fence     []byte        // that half a login has noted; nil: since and loaded count
	own       mark          // of the fence that this request has raised; zero: none
	within    time.Duration // of half a login; 0: a whole one
	replacing handle        // zero: none
	most      int
	from      string        // field of the session whose handle it keeps; "": none
	short     time.Duration // as in save
}

// login makes the record of a login or of half one, or the copy of a legacy session with a
// user. Its error is one of those of Manager.Login, errOrphaned, or errMargin. The outcome is
// refused if the copy has been made already.
func (s *records) login(ctx context.Context, r *record, e entry) (reply, error) {
	l := s.lives[r.head.kind].kept(e.short)
	out, err := s.sealer.seal(r)
	if err != nil {
		return reply{}, err
	}
	replacing := e.replacing[:]
	if e.replacing == (handle{}) {
		replacing = nil
	}
	refuse := int64(0)
	if s.accounts.WhenFull == RefuseLogin {
		refuse = 1
	}
	planted := newMark()
	longest := s.timeout
	if s.events.Retention > 0 {
		longest *= 2 // act asks once more while a slot moves
	}
	sent := s.redis.Now()
	numbers := make([]byte, 0, 11*timeLen) // login.lua names them
	for _, n := range [...]int64{
		r.times.deadline, e.since, sent.Sub(e.loaded).Microseconds(), s.fence.Microseconds(), e.within.Microseconds(),
		int64(e.most), refuse, s.notBefore, s.grace.Microseconds(), s.legacyLife.Microseconds(), longest.Microseconds(),
	} {
		numbers = appendTime(numbers, n)
	}
	a, err := s.act(ctx, loginScript, r.id, told{}, r.id.field, out.head, out.boxes, out.values,
		l.arg+s.lives[login].arg+s.lives[remembered].arg, numbers,
		slices.Concat(planted[:], e.own[:]), e.fence, replacing, e.from)
	if err != nil {
		return a, err
	}
	switch a.outcome {
	case written, sweepDue:
		if margin, fenced := a.more.(int64); fenced && margin >= 0 && a.received.Sub(sent).Microseconds() >= margin {
			return a, errMargin
		}
		if len(a.there) == noteLen {
			r.note = parseNote(a.there)
		}
		r.written(a.now, l)
	case stale:
		return a, ErrStaleLogin
	case unknown:
		return a, ErrUnknownHandle
	case full:
		return a, ErrTooManySessions
	case orphaned:
		return a, errOrphaned
	}
	return a, nil
}

var (
	// errOrphaned says that the session whose handle a login would keep has ended.
	errOrphaned = errors.New("the session before has ended")
	// errMargin says that the login's own round trip was too long to tell whether its request
	// was loaded before the fence. The login has been made. It has ended no other session, unless
	// this process stood still for longer than its timeout.
	errMargin = fmt.Errorf("%w, or may be", ErrStaleLogin)
)

// isRefusal reports whether a login was refused, with nothing made.
func isRefusal(err error) bool {
	return err == ErrStaleLogin || err == ErrUnknownHandle || err == ErrTooManySessions
}

// beside gives the session of old, which must have its revision still, a second ID that
// stands for a short time.
func (s *records) beside(ctx context.Context, r, old *record, short time.Duration) (reply, error) {
	out, err := s.sealer.seal(r)
	if err != nil {
		return reply{}, err
	}
	return s.run(ctx, besideScript, r.id, r.id.field, out.head, out.boxes,
		short.Microseconds(), out.values, old.id.field, old.head.revision[:], s.lives[old.head.kind].slack().Microseconds())
}

// What endAll ends; scripts/session/end_all.lua says more.
const (
	endOne    = "one"
	endEach   = "all"
	endOthers = "others"
)

// endAll ends sessions of a user. The reply has their records, for listed.
func (s *records) endAll(ctx context.Context, o owner, which string, h handle, c Cause, by mark) (reply, error) {
	return s.act(ctx, endAllScript, s.of(o), told{actor: c.Actor}, which, h[:], s.grace.Microseconds(), string(c.Reason), by[:], s.fence.Microseconds())
}

// of is an ID of no session, for what concerns all of an owner.
func (s *records) of(o owner) id { return id{owner: o, key: s.keys.key(o)} }

// listed reads records without their values. Those that are over by the lives that are
// configured now, and halves of logins, are left out.
func (s *records) listed(ctx context.Context, o owner, a reply) (list []*record) {
	for r, err := range s.opened(o, a) {
		switch {
		case err != nil:
			s.reportUnreadable(ctx, err.Error())
		case r.who.user != "" && !s.over(r, a.now):
			list = append(list, r)
		}
	}
	return list
}

// opened reads the records of a reply without their values. The error of one that belongs to
// another owner is errOwner.
func (s *records) opened(o owner, a reply) iter.Seq2[*record, error] {
	return func(yield func(*record, error) bool) {
		raw, _ := a.more.([]any)
		for i := 1; i < len(raw); i += 2 {
			at := s.of(o)
			at.field, _ = raw[i-1].(string)
			b, _ := raw[i].(string)
			opened, err := s.sealer.openOwner(at, []byte(b))
			if err == nil && !s.keys.owns(opened.record) {
				err = errOwner
			}
			if !yield(opened.record, err) {
				return
			}
		}
	}
}
