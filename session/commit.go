package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// Commit saves the changes made so far. It may be called any number of times, also after
// Finish, and lets the cookie still reach the response. It does not change the ID: a
// rotation and the end of a login's old ID wait for Finish.
//
// A handler that outlives its response, as that of a WebSocket, learns of an ID that another request
// has given the session by a rotation while it has a Watch and Rotation.Grace is longer than ten
// seconds, or when it calls Commit or Reload within Rotation.Grace. Later Commit returns [ErrMoved].
//
// When another request changed the session meanwhile, both changes are merged key by key;
// of one key the last commit wins. What this request reads afterwards includes the
// others' changes.
//
// The error is [ErrEnded] if the session has ended meanwhile; ctx then holds an empty one
// that only a Login can save, or [ErrMoved]. Or it is an [*EncodeError] for a value that cannot be
// encoded, [ErrFinished] for a first change whose cookie cannot be sent any more,
// [ErrConflict], [ErrUnavailable], [ErrNoSession], or ctx's own. After [ErrConflict],
// [ErrUnavailable] or ctx's own, what was changed may or may not have been saved as a whole, never
// in part.
// Commit ends within twice Config.Timeout.
func (m *Manager) Commit(ctx context.Context) (err error) {
	defer m.done(ctx, opCommit, "", m.began(), &err)
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
	switch {
	case err != nil:
		return err
	case d.uncopied:
		return nil
	case d.late:
		return ErrFinished
	case !m.due(ctx, d):
		return nil
	}
	if d.record != nil {
		return m.update(ctx, st, d, d.record, left)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, left, errSlow)
	defer cancel()
	return m.commit(ctx, st, d)
}

// Finish saves what was changed, rotates the ID if that is due, completes a Login, and
// says what to do with the cookie. It belongs just before the first byte of the response.
// It may be called again, when nothing can change the cookie any more. The rest is as
// with Commit, but that a session that has ended meanwhile is no error: its changes are
// not saved, and no cookie is set.
//
// A ctx that has been cancelled, since the client has hung up, keeps Finish from rotating
// by itself: the cookie would not arrive. Everything else is done all the same.
//
// An error may come with an Outcome whose cookie is to be set nevertheless: when it is
// not known whether the old ID of a login still lives.
func (m *Manager) Finish(ctx context.Context) (out Outcome, err error) {
	defer m.done(ctx, opFinish, "", m.began(), &err)
	st := m.unseen(ctx)
	if st == nil {
		return Outcome{}, ErrNoSession
	}
	left, err := st.take(context.Background(), m.commitTime())
	if err != nil {
		return Outcome{}, err
	}
	defer st.give()
	st.closing()
	d, err := m.draft(st)
	if err != nil {
		return Outcome{}, err
	}
	turn := d.rotate || ctx.Err() == nil && m.rotationDue(ctx, d)
	switch {
	case d.uncopied:
	case d.late:
		err = ErrFinished
	case d.record != nil && d.login == nil && !turn && !d.confirm && d.wanted():
		err = m.update(context.WithoutCancel(ctx), st, d, d.record, left) // as nearly all are
	case d.login != nil || turn || m.due(ctx, d):
		ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), left, errSlow)
		defer cancel()
		err = m.finish(ctx, st, d, turn)
	}
	if errors.Is(err, ErrEnded) {
		st.abandon(m) // what it has changed is lost, and must not look as if it stood
		err = nil
	}
	if err == nil && d.login == nil {
		m.leadsStill(context.WithoutCancel(ctx), st, d.epoch)
	}
	out, signing := m.outcome(st, err)
	return out, errors.Join(err, signing)
}

// leadsStill looks once more at the rotated IDs that led to the session, before a cookie takes
// their place. When the Grace of one is over the browser may have logged in with it: then an end
// stands there, while the session from before is live.
func (m *Manager) leadsStill(ctx context.Context, st *state, epoch uint64) {
	st.mu.Lock()
	var through []id
	if st.stood && st.cookieDue() && st.epoch == epoch {
		through = st.held.through
	}
	st.mu.Unlock()
	for _, at := range through {
		f, err := m.records.get(ctx, at)
		if err != nil {
			m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: no cookie set for a rotated ID", slog.Any("error", err))
		}
		if err != nil || f.what == ended {
			st.lost(m, epoch, f.reason)
			return
		}
	}
}

// follow notes how a record was found.
func (st *state) follow(f found) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.passed(f.through)
}

// passed notes rotated IDs that led on to the session. It is called with mu held.
func (st *state) passed(through []id) {
	if !st.finished && st.held.any {
		st.held.through = append(slices.Clip(st.held.through), through...)
	}
}

// finish does what Finish has to do in Redis.
func (m *Manager) finish(ctx context.Context, st *state, d draft, turn bool) error {
	if d.login != nil {
		return m.complete(ctx, st, d)
	}
	if d.confirm && d.fresh { // a login may have come since this request's Commit
		if err := m.mark(ctx, st, d, d.record.id, endMark); err != nil {
			return err
		}
	}
	if !turn {
		return m.commit(ctx, st, d)
	}
	err := m.rotateID(ctx, st, d)
	if errors.Is(err, ErrUnavailable) && !d.rotate && !d.wanted() && !d.confirm {
		// Nobody asked for it: the ID stays, as a use that is not noted fails no request.
		m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: no new ID", slog.Any("error", err))
		return nil
	}
	return err
}

// closing readies the state for the response. That the record stood when a Commit, or the
// copy of a legacy session, was made is forgotten: it may have ended since, and a cookie is
// set only for what stands at the response. A pending Login is looked at by complete.
func (st *state) closing() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.stood = st.stood && st.login != nil
	if st.told = st.seen && st.asked; st.told {
		st.facts.reason = ""
	}
}

// forget has the cookie of a session that others have ended deleted, unless a login may have
// taken its place.
func (m *Manager) forget(ctx context.Context, st *state, d draft) error {
	if err := m.mark(ctx, st, d, m.records.keys.fresh(m.records.keys.visitor()), endMark); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch == d.epoch && st.record == nil {
		st.loggedOut, st.ended = true, ""
	}
	return nil
}

// due reports whether a commit has anything to do in Redis.
func (m *Manager) due(ctx context.Context, d draft) bool {
	if d.record == nil {
		return len(d.changes) > 0 || d.told
	}
	if d.wanted() || d.confirm {
		return true
	}
	if d.login != nil || d.unused { // of a login, a use would give the record its whole life before Finish does
		return false
	}
	now, err := m.records.loadedNow(ctx, d.record.id)
	return err == nil && m.records.lives[d.record.head.kind].touchDue(d.record, now)
}

// bound gives a commit as a whole its deadline: twice the timeout, less what it may take
// to undo a login.
func (m *Manager) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, m.commitTime(), errSlow)
}

func (m *Manager) commitTime() time.Duration { return 2*m.records.timeout - m.undoTime() }

var errSlow = fmt.Errorf("%w: its answers took too long together", ErrUnavailable)

// draft is what a commit sets out to save: a copy of the state.
type draft struct {
	epoch   uint64
	record  *record
	named   []named
	begun   id
	fresh   bool
	facts   facts
	changes map[string][]byte
	serial  uint64
	login   *pending
	dead    bool
	rotate  bool
	keepID  bool
	unused  bool // it is no use of the session
	confirm bool // the response would set a cookie for a record that was only read
	ended   Reason
	client  string // the label of who asks
	told    bool   // of ended, so that nothing is left to say
	late    bool   // a first change, and no cookie can be sent any more
	alone   bool   // nobody else has changed what was saved
	once    string // PopOnce: the key that is removed, and must be there; "" of others
	// uncopied is set where there is no record in Redis, and nothing to save.
	uncopied bool
}

// draft takes what is to be saved under the lock, and encodes it.
func (m *Manager) draft(st *state) (draft, error) {
	st.mu.Lock()
	d := draft{
		epoch: st.epoch, record: st.record, named: st.named, fresh: st.fresh, facts: st.facts,
		serial: st.values.serial, login: st.login, dead: st.dead, rotate: st.rotate && st.record != nil,
		keepID: st.keepID || st.finished || st.unused, unused: st.unused, confirm: st.cookieDue() && !st.stood,
		ended: st.ended, told: st.told,
	}
	var buf [8]keyChange
	changed := buf[:0]
	for key, c := range st.values.changed {
		changed = append(changed, keyChange{key, c})
	}
	if st.record == nil && !st.dead {
		puts := false
		for _, c := range changed {
			puts = puts || !c.removed
		}
		if !puts { // nothing there, and nothing put: nothing to begin a session for
			changed = nil
		} else if d.late = st.finished; !d.late {
			if st.begun == nil {
				fresh := m.records.keys.fresh(m.records.keys.visitor())
				st.begun = &fresh
			}
			d.begun = *st.begun
		}
	}
	d.uncopied = st.record != nil && st.record == st.uncopied
	st.mu.Unlock()
	var err error
	d.changes, err = encode(changed)
	if err == nil && d.uncopied && (d.wanted() || d.rotate) {
		err = errUncopied
	}
	return d, err
}

// wanted reports whether the request has anything to save.
func (d draft) wanted() bool { return len(d.changes) > 0 || d.factsChanged() }

func (d draft) factsChanged() bool {
	return d.record != nil && d.facts != d.record.facts()
}

// commit saves a draft under the ID that the session has, or begins one.
func (m *Manager) commit(ctx context.Context, st *state, d draft) error {
	switch {
	case d.dead && len(d.changes) > 0:
		m.lose(ctx, st, d, "")
		return ErrEnded
	case d.dead:
		return nil
	case d.record != nil:
		return m.update(ctx, st, d, d.record, 0)
	case len(d.changes) > 0:
		return m.begin(ctx, st, d)
	case d.told && len(d.named) > 0:
		return m.forget(ctx, st, d)
	}
	return nil
}

// update saves a draft over the record that stands in Redis as far as is known. Its first
// command is bounded by itself; if others follow, all of them end within left, unless that
// is 0 and ctx has a deadline.
func (m *Manager) update(ctx context.Context, st *state, d draft, over *record, left time.Duration) error {
	_, err := m.write(ctx, st, d, over, left)
	return err
}

// write is update. It returns the record that the draft was written over, or nil if nothing was
// written because the key of d.once is not there.
func (m *Manager) write(ctx context.Context, st *state, d draft, over *record, left time.Duration) (_ *record, err error) {
	start := time.Now()
	var turn myTurn
	defer func() { turn.done(err) }()
	for {
		if d.once != "" {
			switch ok, err := over.holds(d.once); {
			case err != nil:
				return nil, err
			case !ok:
				st.apply(m, d, over)
				return nil, nil
			}
		}
		if !d.wanted() {
			return over, m.noteUse(ctx, st, d, over)
		}
		next := d.over(over)
		a, err := m.records.save(ctx, next, over, m.short(d.login), m.records.used())
		if err != nil {
			return nil, err
		}
		if a.outcome != refused {
			d.alone = over == d.record
			m.wrote(d)
			st.apply(m, d, next)
			return over, nil
		}
		if left > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeoutCause(ctx, left-time.Since(start), errSlow)
			defer cancel()
			left = 0
		}
		f, err := m.records.met(ctx, over.id, a)
		if err != nil {
			return nil, err
		}
		switch steps[f.what][save] {
		case drop:
			return nil, m.gone(ctx, st, d, f.why())
		case merge:
			if f.record.head.revision == next.head.revision { // written, and the reply was lost
				m.wrote(d)
				st.apply(m, d, next)
				return over, nil
			}
		}
		over = f.record
		st.follow(f)
		if err := turn.take(ctx, &m.records.turns, over.id); err != nil {
			return nil, conflict(err)
		}
	}
}

// over returns the record that a draft makes of another: its changes on what stands there.
func (d draft) over(r *record) *record {
	next := *r
	next.values = r.values.Change(d.changes)
	if d.factsChanged() {
		next.head.kind, next.head.persistent, next.who.reason = d.facts.kind, d.facts.persistent, d.facts.reason
	}
	return &next
}

// short is how long a record stands that only Finish gives its own life.
func (m *Manager) short(p *pending) time.Duration {
	if p == nil || !p.short {
		return 0
	}
	return m.records.timeout + m.records.grace
}

// noteUse notes in Redis that a session is used, when that is due, or when the response
// sets a cookie: the session may have ended since it was read, and a late cookie would take
// the place of a new login's. A record of an old secret is then sealed with the new one.
// That it fails fails no request: the session has been read, and the next one tries again.
func (m *Manager) noteUse(ctx context.Context, st *state, d draft, r *record) error {
	used := *r
	if r == d.record {
		var a reply
		var err error
		if r.head.key != m.records.sealer.ring.Current() {
			a, err = m.records.save(ctx, &used, r, 0, m.records.used())
		} else {
			a, err = m.records.touch(ctx, &used, m.records.used())
		}
		switch {
		case err != nil && d.confirm && d.fresh:
			return err // without its cookie nobody would find what a Commit has saved
		case err != nil:
			m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: use not noted", slog.Any("error", err))
			return nil
		case a.outcome == refused:
			f, err := m.records.met(ctx, r.id, a)
			if err != nil && d.confirm && d.fresh {
				return err
			}
			if err != nil {
				return nil
			}
			if steps[f.what][save] == drop {
				if err := m.gone(ctx, st, d, f.why()); d.confirm && d.fresh && errors.Is(err, ErrUnavailable) {
					return err
				}
				return nil
			}
			used = *f.record
			st.follow(f)
		}
	}
	st.apply(m, d, &used)
	return nil
}

// apply takes in what a commit has saved, unless a login or a logout came meanwhile.
func (st *state) apply(m *Manager, d draft, r *record) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch != d.epoch {
		return
	}
	if st.facts == d.facts {
		st.facts = r.facts()
	}
	st.fresh = st.fresh || d.begun.field != ""
	st.record, st.begun, st.loggedOut, st.stood = r, nil, false, true
	if st.login != nil && len(d.changes) > 0 { // Finish may have to make them anew, on what others saved
		p := *st.login
		p.changes = merged(p.changes, d.changes)
		st.login = &p
	}
	st.values.saved(r.values, d, m.reportValue)
}

// lost empties the session of a request that has ended meanwhile: what it held must not
// get into that of who logs in next.
func (st *state) lost(m *Manager, epoch uint64, why Reason) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.epoch != epoch {
		return
	}
	st.epoch++
	if st.record != nil {
		st.named = append(st.named, named{st.record.id, ended})
	}
	st.record, st.login, st.begun = nil, nil, nil
	st.dead, st.moved, st.rotate, st.stood = true, false, false, false
	st.ended = cmp.Or(why, st.ended)
	st.values = working{serial: st.values.serial}
	st.facts = facts{persistent: m.persistent}
}

// gone is for what a request knows no ID of any more. It returns ErrMoved if the session lives on
// elsewhere, and otherwise loses it.
func (m *Manager) gone(ctx context.Context, st *state, d draft, why Reason) error {
	if r := d.record; r != nil {
		switch stand, err := m.records.stand(ctx, r.id, r.id.field, string(r.head.handle[:])); {
		case err != nil:
			return err
		case stand[0].left > 0:
			if st.nowMoved() && len(d.changes) > 0 && d.once == "" {
				m.records.reportDropped(ctx)
			}
			return ErrMoved
		}
	}
	m.lose(ctx, st, d, why)
	return ErrEnded
}

// nowMoved notes that the session is where this request does not find it, and reports whether that
// is new.
func (st *state) nowMoved() (first bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	first, st.moved = !st.moved, true
	return first
}

// abandon is lost, if the session is where this request does not find it.
func (st *state) abandon(m *Manager) {
	st.mu.Lock()
	moved, epoch := st.moved, st.epoch
	st.mu.Unlock()
	if moved {
		st.lost(m, epoch, "")
	}
}

// lose is lost, with a line in the log if changes are.
func (m *Manager) lose(ctx context.Context, st *state, d draft, why Reason) {
	if len(d.changes) > 0 {
		m.records.reportDropped(ctx)
	}
	st.lost(m, d.epoch, why)
}

// conflict names what ran out while commits waited for each other.
func conflict(err error) error {
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrConflict, err)
	}
	return err
}
