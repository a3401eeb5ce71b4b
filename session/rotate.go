package session

import "context"

// Rotate has Finish give the session a new ID. Nothing else changes. During Grace the old
// ID leads to the same session. A session that is not in Redis yet gets its first ID
// there anyway. The error is [ErrNoSession], or [ErrFinished] when the new cookie could
// not be sent.
func (m *Manager) Rotate(ctx context.Context) (err error) {
	defer m.done(ctx, opRotate, "", m.began(), &err)
	st := m.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.finished:
		return ErrFinished
	case st.record != nil && st.login == nil:
		st.rotate = true
	}
	return nil
}

// KeepID keeps Finish from rotating by itself: the response may not bring its cookie to
// the client, as after a connection was hijacked.
func (m *Manager) KeepID(ctx context.Context) {
	if st := m.unseen(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.keepID = true
	}
}

// SkipTouch says that a request is no use of its session, such as one that a page makes by itself:
// it keeps no session from ending when that is idle, and Finish does not rotate by itself. What it
// changes is saved all the same, and is a use.
func (m *Manager) SkipTouch(ctx context.Context) {
	if st := m.unseen(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.unused = true
	}
}

// Returned says that the handler has returned, after Finish. If a goroutine changes the session later,
// the Manager logs that, once per request: only a Commit saves such a change.
func (m *Manager) Returned(ctx context.Context) {
	if st := m.unseen(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.returned = true
	}
}

// rotationDue reports whether a session is to get a new ID by itself.
func (m *Manager) rotationDue(ctx context.Context, d draft) bool {
	if m.every == 0 || d.record == nil || d.keepID || d.login != nil {
		return false
	}
	issued := d.record.who.issued
	if issued == 0 {
		issued = d.record.times.born
	}
	now, err := m.records.loadedNow(ctx, d.record.id)
	return err == nil && now-issued >= m.every.Microseconds()
}

// rotateID saves a draft under a new ID, to which the old one leads during Grace. One
// script does both, so that there is no moment at which neither works.
func (m *Manager) rotateID(ctx context.Context, st *state, d draft) (err error) {
	var turn myTurn
	defer func() { turn.done(err) }()
	over := d.record
	for {
		next := d.over(over)
		next.id = m.records.keys.fresh(over.id.owner)
		if next.who.issued, err = m.records.loadedNow(ctx, next.id); err != nil {
			return err
		}
		a, err := m.records.rotate(ctx, next, over)
		if err != nil {
			return err
		}
		if a.outcome != refused {
			m.wrote(d)
			st.apply(m, d, next)
			st.turned()
			return nil
		}
		f, err := m.records.met(ctx, over.id, a)
		if err != nil {
			return err
		}
		switch {
		case steps[f.what][rotate] == drop:
			return m.gone(ctx, st, d, f.why())
		case f.record.id != over.id:
			// Another rotation was first: its ID stands, and so do our changes.
			if err = m.update(ctx, st, d, f.record, 0); err == nil {
				st.turned()
			}
			return err
		}
		over = f.record
		if err := turn.take(ctx, &m.records.turns, over.id); err != nil {
			return conflict(err)
		}
	}
}

// turned notes that the session has the new ID which Rotate asked for.
func (st *state) turned() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.rotate = false
}
