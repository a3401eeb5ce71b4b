package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// pending is a login that Finish has to complete: it retires the IDs from before. Until
// then both work, so that a crash leaves either the session from before or the login.
type pending struct {
	old     []retiree
	changes map[string][]byte // all that this request has changed since it loaded its session
	unknown bool              // the reply of a script was lost that may have retired one of old
}

// retiree is a record that is ended when the login is complete.
type retiree struct {
	record *record
	carry  bool // what others have saved in it meanwhile belongs into the login
}

// maxUserID bounds user IDs, which stand in every record.
const maxUserID = 1024

// Login binds the session to a user and saves what was put so far. It always gives a new
// ID and starts both lifetimes anew. Values are kept, unless another user was logged in:
// then they are cleared. Before it returns Redis has the session. The old ID works until
// Finish retires it, or until the request fails or panics: then the login is undone. After
// that, the old ID leads nowhere, and requests that were under way with it save nothing.
//
// Two logins at once with the cookie of a visitor give two sessions, of which the browser
// keeps the last cookie. Over a session of the same user they give one: the login that
// finishes last ends the other.
//
// The error is [ErrNoUser], [ErrNoSession], [ErrFinished] when the new cookie could not
// be sent, an [*EncodeError], [ErrUnavailable], one for a user ID of more than 1,024
// bytes, or ctx's own; ctx then holds what it held before.
func (m *Manager) Login(ctx context.Context, userID string) error {
	st := m.state(ctx)
	switch {
	case st == nil:
		return ErrNoSession
	case userID == "":
		return ErrNoUser
	case len(userID) > maxUserID:
		return fmt.Errorf("session: user ID of %d bytes, at most %d are possible", len(userID), maxUserID)
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
	ctx, cancel := context.WithTimeoutCause(ctx, left, errSlow)
	defer cancel()
	r, p, other := m.loginOver(d, userID)
	if err := m.overtake(ctx, d); err != nil {
		return err
	}
	d.login = p
	a, err := m.records.create(ctx, r, m.short(d))
	if err == nil && a.outcome == refused {
		err = ErrConflict // nobody else knows the ID
	}
	if err == nil && !st.loggedIn(m, d, r, other) {
		err = ErrConflict // another goroutine of this request has logged in or out
	}
	if err != nil {
		m.undo(ctx, r)
	}
	return err
}

func (m *Manager) isFinished(st *state) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.finished
}

// loginOver returns the record of a login over what a draft has, what is to be retired,
// and whether another user was logged in.
func (m *Manager) loginOver(d draft, userID string) (r *record, p *pending, other bool) {
	old := d.record
	other = old != nil && old.who.user != "" && old.who.user != userID
	r = &record{id: m.records.keys.fresh(m.records.keys.user(userID)), who: who{user: userID, authenticated: atBirth}}
	r.head = head{kind: login, persistent: d.facts.persistent, handle: newHandle()}
	if r.head.persistent {
		r.head.kind = remembered
	}
	p = &pending{changes: d.changes}
	if d.login != nil { // a second login of this request
		p.old = append(p.old, d.login.old...)
		p.changes = merged(d.login.changes, d.changes)
	}
	if old != nil {
		p.old = append(p.old, retiree{old, d.login == nil}) // nobody else knows this request's own
		if old.who.user == userID {
			r.head.handle = old.head.handle
		}
	}
	if other {
		p.changes = nil
		for i := range p.old {
			p.old[i].carry = false
		}
		return r, p, true
	}
	if old != nil {
		r.values = old.values
	}
	r.values = r.values.Change(d.changes)
	return r, p, false
}

// loggedIn takes in the record of a login, unless a login or a logout came meanwhile.
func (st *state) loggedIn(m *Manager, d draft, r *record, other bool) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch != d.epoch {
		return false
	}
	st.epoch++
	st.record, st.login, st.named, st.begun = r, d.login, nil, nil
	st.facts = facts{r.head.kind, r.head.persistent}
	st.dead, st.rotate, st.loggedOut, st.stood = false, false, false, true
	if other {
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
		m: m, st: st, d: d, mine: d.record, next: d.over(d.record), beside: -1,
		old:     append([]retiree(nil), d.login.old...),
		changes: merged(d.login.changes, d.changes),
	}
	for i, o := range c.old {
		if o.carry && o.record.id.owner == c.mine.id.owner {
			c.beside = i
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
		m.lose(ctx, st, d)
	case err != nil && !st.unknown():
		m.undo(ctx, c.mine)
		st.lost(m, d.epoch)
	case err == nil:
		m.replaceLegacy(ctx, st)
		st.mu.Lock()
		if st.epoch == d.epoch {
			st.login = nil
		}
		st.mu.Unlock()
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
	old     []retiree
	beside  int               // of old, in the hash of mine: one script does both; -1: none
	changes map[string][]byte // all of this request
}

// errAgain says that an old record had been changed, which has to be written into the
// login before it is retired.
var errAgain = errors.New("again")

// grant writes the record of a login with its own life, together with the retirement of
// what stands beside it.
func (c *completion) grant(ctx context.Context) error {
	if len(c.old) == 0 && !c.d.wanted() {
		return nil // it has its own life since Login
	}
	var a reply
	var err error
	if c.beside < 0 {
		a, err = c.m.records.save(ctx, c.next, c.mine.head.revision, 0)
	} else {
		o := c.old[c.beside]
		a, err = c.m.records.retire(ctx, c.next, c.mine.head.revision, o)
		c.st.sent(err != nil)
	}
	switch {
	case err != nil:
		return err
	case a.outcome == oldMoved:
		return c.carry(ctx, c.beside, a)
	case a.outcome == refused:
		return ErrEnded
	}
	written := *c.next
	c.mine = &written
	return nil
}

// retireOthers ends the old records in other hashes.
func (c *completion) retireOthers(ctx context.Context) error {
	for i, o := range c.old {
		if i == c.beside {
			continue
		}
		how := endRetire
		if !o.carry {
			how = endLogout // with what it was rotated to meanwhile
		}
		a, err := c.m.records.end(ctx, o.record.id, how, o.record.head.revision, handle{})
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
		c.next.values = f.record.values.Change(c.changes)
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
	st := m.state(ctx)
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
	m.undo(ctx, r)
	st.lost(m, epoch)
}

// undo ends a record that a login has, or may have, made. The tombstone stops a script
// that comes late. If Redis cannot be asked, the record's short life ends it.
func (m *Manager) undo(ctx context.Context, r *record) {
	left := m.undoTime() // at least
	if deadline, ok := ctx.Deadline(); ok {
		left = max(left, min(m.records.timeout, time.Until(deadline)+left))
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), left, errSlow)
	defer cancel()
	if err := m.records.undo(ctx, r.id); err != nil {
		m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: a login that failed may stand until it expires", slog.Any("error", err))
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
