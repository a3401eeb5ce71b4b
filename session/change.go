package session

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// A change of ID without grace (Login, BeginLogin, Confirm, EndOthers) is two steps: the call
// makes the new record beside that of before, and Finish gives it its own life and retires what
// was before.

// pending is a login that Finish has to complete: it retires the IDs from before. Until
// then both work, so that a crash leaves either the session from before or the login.
type pending struct {
	old     []retiree
	changes map[string][]byte // all that this request has changed since it loaded its session
	short   bool              // the record stands for a short time, until Finish gives it its own life
	anew    bool              // nothing of the values from before goes on
	same    bool              // it is the same login, under a new ID
	tells   EventKind         // what has happened to the session when it is complete
	undone  told              // what has happened if the record that it is about is undone
	unknown bool              // the reply of a script was lost that may have retired one of old
}

// retiree is a record that is ended when the login is complete.
type retiree struct {
	record *record
	carry  bool // what others have saved in it meanwhile belongs into the login
	made   bool // this request has made it, and nobody else knows it
	undone told // of what this request has made: what has happened if it is undone
}

// changeID is what changes of ID without grace have in common: do makes a record beside
// that of before, which Finish retires. A record that do returns with an error is undone.
func (m *Manager) changeID(ctx context.Context, do func(context.Context, *state, draft) (*record, *pending, error)) error {
	st := m.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	left, err := st.take(ctx, m.commitTime())
	if err != nil {
		return err
	}
	defer st.give()
	d, err := m.draft(st)
	if err != nil {
		return err
	}
	if d.late || m.isFinished(st) {
		return ErrFinished
	}
	d.client = st.label()
	ctx, cancel := context.WithTimeoutCause(ctx, left, errSlow)
	defer cancel()
	r, p, err := do(ctx, st, d)
	if err == nil && !st.changed(m, d, r, p) {
		err = ErrConflict // another goroutine of this request has logged in or out
	}
	if err != nil && r != nil {
		m.undo(ctx, r, p.undone)
	}
	return err
}

func (m *Manager) isFinished(st *state) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.finished
}

// successor returns what a record that takes the place of another has to retire.
func (d draft) successor(old *record) *pending {
	p := &pending{changes: d.changes}
	made, undone := d.login != nil, told{}
	if made { // a second change of ID in this request
		p.old = append(p.old, d.login.old...)
		p.changes = merged(d.login.changes, d.changes)
		p.tells, undone = d.login.tells, d.login.undone
	}
	if old != nil {
		p.old = append(p.old, retiree{record: old, carry: !made, made: made, undone: undone})
	}
	return p
}

// startAnew leaves all values behind: they are another's.
func (p *pending) startAnew(r *record) {
	p.anew, p.changes = true, nil
	r.values = codec.Values{}
	r.head.handle = newHandle()
	for i := range p.old {
		p.old[i].carry = false
	}
}

// changed takes in the record of a change of ID, unless a login or a logout came meanwhile.
func (st *state) changed(m *Manager, d draft, r *record, p *pending) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch != d.epoch {
		return false
	}
	st.epoch++
	st.record, st.login, st.named, st.begun = r, p, nil, nil
	st.facts = r.facts()
	st.dead, st.moved, st.rotate, st.loggedOut, st.stood, st.ended = false, false, false, false, true, ""
	if p.anew {
		st.values.restart(r.values, d.serial)
	} else {
		st.values.saved(r.values, d, m.reportValue)
	}
	return true
}

// complete gives the record of a login its own life and retires what was before. The new
// record is written first: a crash in between leaves the old ID working, and of the new
// one nobody knows.
func (m *Manager) complete(ctx context.Context, st *state, d draft) error {
	c := completion{
		m: m, st: st, d: d, mine: d.record, next: d.over(d.record), changed: d.wanted(), beside: -1,
		old:     append([]retiree(nil), d.login.old...),
		changes: merged(d.login.changes, d.changes),
	}
	for i, o := range c.old {
		if o.carry && o.record.id.owner == c.mine.id.owner {
			c.beside = i
		}
		if o.carry {
			c.asked = c.next.head.persistent != o.record.head.persistent
		}
	}
	err := errAgain
	for err == errAgain {
		if err = conflict(ctx.Err()); err != nil {
			break
		}
		if err = c.grant(ctx); err == nil {
			err = c.retireOthers(ctx)
		}
	}
	switch {
	case errors.Is(err, ErrEnded): // the new ID was ended: nothing is retired, no cookie is set
		m.lose(ctx, st, d, c.why)
	case err != nil && !st.unknown():
		m.undoAll(ctx, c.mine, d.login)
		st.lost(m, d.epoch, "")
	case err == nil:
		if !d.login.same {
			m.replaceLegacy(ctx, st, c.mine.head.handle)
		}
		st.mu.Lock()
		if st.epoch == d.epoch {
			st.login = nil
		}
		st.mu.Unlock()
		m.wrote(d)
		st.apply(m, d, c.mine)
	}
	return err
}

// completion is the work of complete.
type completion struct {
	m       *Manager
	st      *state
	d       draft
	mine    *record // the login's record as it stands
	next    *record // as it is to be written
	changed bool    // next differs from mine
	old     []retiree
	beside  int               // of old, in the hash of mine: one script does both; -1: none
	changes map[string][]byte // all of this request
	asked   bool              // this request has changed whether the session is remembered
	why     Reason            // the new ID was ended
	granted bool              // the record has its own life, and its event is written
}

// errAgain says that an old record had been changed, which has to be written into the
// login before it is retired.
var errAgain = errors.New("again")

// grant writes the record of a login with its own life, together with the retirement of
// what stands beside it.
func (c *completion) grant(ctx context.Context) error {
	if !c.d.login.short && !c.changed && c.d.login.tells == 0 {
		return nil // it has its own life since Login
	}
	var a reply
	var err error
	tells := told{kind: c.d.login.tells}
	if c.granted {
		tells = told{}
	}
	switch {
	case c.beside >= 0:
		a, err = c.m.records.retire(ctx, c.next, c.mine.head.revision, c.changed, c.old[c.beside], tells)
		c.st.sent(err != nil)
	case c.changed:
		a, err = c.m.records.save(ctx, c.next, c.mine, 0, tells)
	default: // a touch does not compare the revision, and need not: nobody else knows the ID
		a, err = c.m.records.touch(ctx, c.next, tells)
	}
	switch {
	case err != nil:
		return err
	case a.outcome == oldMoved:
		return c.carry(ctx, c.beside, a)
	case a.outcome == refused:
		c.why = reasonOf([]byte(a.there), a.now)
		return ErrEnded
	}
	written := *c.next
	c.mine, c.granted = &written, true
	return nil
}

// retireOthers ends the old records in other hashes.
func (c *completion) retireOthers(ctx context.Context) error {
	for i, o := range c.old {
		if i == c.beside {
			continue
		}
		var a reply
		var err error
		switch {
		case o.carry:
			a, err = c.m.records.end(ctx, o.record.id, endRetire, o.record.head.revision, handle{})
		case o.record.head.handle == c.mine.head.handle: // this request's own, in another place
			_, err = c.m.records.end(ctx, o.record.id, endReplace, revision{}, handle{})
			a.outcome = written
		default: // with what it was rotated to, or confirmed as, meanwhile
			err = c.m.records.endSession(ctx, o.record.id, o.record.head.handle)
			a.outcome = written
		}
		c.st.sent(err != nil)
		if err != nil {
			return err
		}
		if a.outcome == refused {
			return c.carry(ctx, i, a)
		}
	}
	return nil
}

// carry brings what others did to an old record into the login. Its error is errAgain, or
// that of the store.
func (c *completion) carry(ctx context.Context, i int, a reply) error {
	f, err := c.m.records.met(ctx, c.old[i].record.id, a)
	if err != nil {
		return err
	}
	if steps[f.what][logIn] == merge {
		c.old[i].record = f.record
		c.next.values, c.changed = f.record.values.Change(c.changes), true
		if !c.asked {
			c.next.head.remember(f.record.head.persistent)
		}
	} else { // ended meanwhile: there is nothing to carry
		c.old[i].carry = false
	}
	return errAgain
}

// sent notes that a script which retires an old ID was sent, and whether its outcome is
// unknown.
func (st *state) sent(unknown bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.login != nil {
		st.login.unknown = unknown
	}
}

func (st *state) unknown() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.login != nil && st.login.unknown
}

// Abort undoes a Login that Finish has not completed, as after a panic of the handler. A
// Login whose old ID may have been retired already stands. Abort does nothing if there is
// no such Login.
func (m *Manager) Abort(ctx context.Context) {
	st := m.unseen(ctx)
	if st == nil {
		return
	}
	st.mu.Lock()
	p, r, epoch := st.login, st.record, st.epoch
	st.mu.Unlock()
	if p == nil || r == nil || p.unknown {
		return
	}
	ctx, cancel := m.bound(context.WithoutCancel(ctx))
	defer cancel()
	m.undoAll(ctx, r, p)
	st.lost(m, epoch, "")
}

// undo ends a record that a login has, or may have, made. The tombstone stops a script
// that comes late. If Redis cannot be asked, the record's short life ends it.
func (m *Manager) undo(ctx context.Context, r *record, t told) {
	left := m.undoTime() // at least
	if deadline, ok := ctx.Deadline(); ok {
		left = max(left, min(m.records.timeout, time.Until(deadline)+left))
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), left, errSlow)
	defer cancel()
	if err := m.records.undo(ctx, r.id, t); err != nil {
		m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: a login that failed may stand until it expires", slog.Any("error", err))
	}
}

// undoAll ends all that the changes of ID of a request have made, the last of which is r.
func (m *Manager) undoAll(ctx context.Context, r *record, p *pending) {
	m.undo(ctx, r, p.undone)
	for _, o := range p.old {
		if o.made {
			m.undo(ctx, o.record, o.undone)
		}
	}
}

// undoTime is what is left for undo when a commit's time is over: what has been sent is
// done, whether or not anybody waits for the reply.
func (m *Manager) undoTime() time.Duration { return m.records.timeout / 4 }

// merged returns the changes of both; of one key the later.
func merged(earlier, later map[string][]byte) map[string][]byte {
	if len(earlier) == 0 {
		return later
	}
	all := maps.Clone(earlier)
	maps.Copy(all, later)
	return all
}

// restart begins anew with what is stored: nothing of before is left but changes later
// than a serial.
func (w *working) restart(stored codec.Values, after uint64) {
	later := working{stored: stored, serial: w.serial}
	for key, c := range w.changed {
		if c.serial <= after {
			continue
		}
		if later.changed == nil {
			later.changed = make(map[string]change)
		}
		later.changed[key] = c
		if !c.removed {
			holder.Put(later.of(func(string, error) {}), key, c.value)
		}
	}
	*w = later
}
