package session

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
)

// Logout ends the session in Redis, at once and without a grace. Whatever other requests
// do with it at the same time is not saved. It also ends what a cookie of the request
// names and this server cannot read. Finish then deletes the cookie, unless the handler
// began a new session by changing something. It is not affected by ctx being cancelled.
//
// The error is [ErrUnavailable] (then the session may still be there, and stays loaded),
// or [ErrNoSession].
func (m *Manager) Logout(ctx context.Context) (err error) {
	defer m.done(ctx, opLogout, "", m.began(), &err)
	st := m.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	ctx, cancel := m.bound(context.WithoutCancel(ctx))
	defer cancel()
	st.mu.Lock()
	legacy := st.held.legacy
	st.mu.Unlock()
	if legacy != "" {
		if err := m.endLegacy(ctx, legacy, handle{}); err != nil {
			return err
		}
	}
	return m.logout(ctx, st)
}

// logout ends all sessions of a request.
func (m *Manager) logout(ctx context.Context, st *state) error {
	ended := make(map[id]bool)
	for {
		next := st.loggingOut(m, ended)
		if len(next) == 0 {
			return nil
		}
		for _, r := range next {
			if err := m.records.endSession(ctx, r.id, r.head.handle); err != nil {
				return err
			}
			ended[r.id] = true
		}
	}
}

// loggingOut returns what a logout has to end besides what it has ended: another goroutine of
// the request may have logged in meanwhile. When there is nothing, the state is logged out.
func (st *state) loggingOut(m *Manager, ended map[id]bool) (next []*record) {
	st.mu.Lock()
	defer st.mu.Unlock()
	add := func(r *record) {
		if !ended[r.id] {
			next = append(next, r)
		}
	}
	if st.record != nil {
		add(st.record)
	}
	if st.login != nil {
		for _, o := range st.login.old {
			add(o.record)
		}
	}
	for _, n := range st.named {
		if steps[n.what][end] == bury {
			add(&record{id: n.id})
		}
	}
	if len(next) > 0 {
		return next
	}
	st.leave(m)
	return nil
}

// leave empties the state of a request that has ended its own session. What its cookies named
// stays: a session that is begun now leaves a tombstone there.
func (st *state) leave(m *Manager) {
	st.epoch++
	st.record, st.login, st.begun = nil, nil, nil
	st.dead, st.moved, st.rotate, st.loggedOut, st.stood, st.ended = false, false, false, true, false, ""
	st.values = working{serial: st.values.serial}
	st.facts = facts{persistent: m.persistent}
}

// End ends one session of a user, as List shows it. That of the request itself is logged
// out. After End has returned the session answers no request, on any server, but for what a
// client-side cache shows until it is told; who has its cookie can ask for the reason with
// Ended.
//
// Routes that end sessions want a fresh login (middleware.RequireFresh) and protection
// against requests of other sites ([net/http.CrossOriginProtection]).
//
// The error is [ErrUnknownHandle] if this user has no such session, whoever else has,
// [ErrNoUser], one for a user ID or a Cause that is too long, [ErrUnavailable], or ctx's own.
// After the last two it may or may not have been ended: End may be called again.
func (m *Manager) End(ctx context.Context, userID, handle string, c Cause) (err error) {
	defer m.done(ctx, opEnd, userID, m.began(), &err)
	c, err = c.check()
	if err != nil {
		return err
	}
	if err := checkUserID(userID); err != nil {
		return err
	}
	h, ok := parseHandle(handle)
	if !ok {
		return ErrUnknownHandle
	}
	if m.isOwn(ctx, userID, h) {
		return m.Logout(ctx)
	}
	a, err := m.records.endAll(ctx, m.records.keys.user(userID), endOne, h, c, mark{})
	if err == nil && a.outcome != written {
		err = ErrUnknownHandle
	}
	return err
}

// isOwn reports whether a session of a user is that of the request.
func (m *Manager) isOwn(ctx context.Context, userID string, h handle) bool {
	st := m.state(ctx)
	if st == nil {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.record != nil && st.record.who.user == userID && st.record.head.handle == h
}

// EndAll ends all sessions of a user, and returns them. Halves of logins end with them. A login that is under way is
// refused with [ErrStaleLogin] when it comes, however late, but for one that follows in this
// request. It needs no session: ctx may be any. The session of the request itself, if it is
// the user's, is over, too.
//
// Call it when the password has been changed, or the account disabled, after the database
// knows, and again until it returns nil. A failover of Redis may lose its last moments, an
// EndAll included: where that must not be, send WAIT after it. What is said of End holds.
//
// The error is [ErrNoUser], [ErrUnavailable], one for a Cause that is too long, or ctx's own.
func (m *Manager) EndAll(ctx context.Context, userID string, c Cause) (ended []Info, err error) {
	defer m.done(ctx, opEndAll, userID, m.began(), &err)
	c, err = c.check()
	if err != nil {
		return nil, err
	}
	if err := checkUserID(userID); err != nil {
		return nil, err
	}
	o := m.records.keys.user(userID)
	a, err := m.records.endAll(ctx, o, endEach, handle{}, c, m.state(ctx).raise(o))
	if err != nil {
		return nil, err
	}
	infos := m.infos(ctx, m.records.listed(ctx, o, a))
	if st := m.state(ctx); st != nil && st.of(o) {
		ctx, cancel := m.bound(context.WithoutCancel(ctx))
		defer cancel()
		err = m.logout(ctx, st) // with what a Login of this request has left behind
	}
	return infos, err
}

// of reports whether a request's session is one of an owner.
func (st *state) of(o owner) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.record != nil && st.record.id.owner == o
}

// EndOthers ends all sessions of the request's user but that of the request, and returns
// them. That one gets a new ID, as with [Manager.Confirm]; its streams go on, as [Manager.Watch]
// says. Of two at once one may be [ErrEnded] or [ErrMoved]. The rest is as with EndAll.
//
// The error may also be [ErrNoSession], [ErrFinished] or [ErrConflict]. After any of them the
// others may have been ended: it may be called again, after ErrEnded by who logs in anew.
func (m *Manager) EndOthers(ctx context.Context, c Cause) (ended []Info, err error) {
	defer m.done(ctx, opEndOthers, "", m.began(), &err)
	c, err = c.check()
	if err != nil {
		return nil, err
	}
	st := m.state(ctx)
	if st == nil {
		return nil, ErrNoSession
	}
	st.mu.Lock()
	r, dead, finished, epoch := st.record, st.dead, st.finished, st.epoch
	st.mu.Unlock()
	switch {
	case dead:
		return nil, ErrEnded
	case r == nil || r.who.user == "":
		return nil, ErrNoUser
	case finished:
		return nil, ErrFinished
	}
	a, err := m.records.endAll(ctx, r.id.owner, endOthers, r.head.handle, c, st.raise(r.id.owner))
	switch {
	case err != nil:
		return nil, err
	case a.outcome != written:
		why := Lost
		if s, err := m.records.stand(ctx, r.id, r.id.field, string(r.head.handle[:])); err == nil {
			why = cmp.Or(s[0].why, why)
		}
		st.lost(m, epoch, why)
		return nil, ErrEnded
	}
	return m.infos(ctx, m.records.listed(ctx, r.id.owner, a)), m.renew(ctx, Rotated, func(*record, int64) {})
}

// raise returns the mark of the fence that a request raises for an owner: the same each
// time, so that one whose reply was lost is not taken for another's when it is repeated.
func (st *state) raise(o owner) mark {
	if st == nil {
		return newMark()
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	by := st.markOf(o)
	if by == (mark{}) {
		by = newMark()
		st.raised = append(st.raised, raise{o, by})
	}
	return by
}

// raisedBy returns the mark of raise, zero if there was none.
func (st *state) raisedBy(o owner) mark {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.markOf(o)
}

// markOf is raisedBy, with mu held.
func (st *state) markOf(o owner) mark {
	for _, r := range st.raised {
		if r.owner == o {
			return r.by
		}
	}
	return mark{}
}

// endLegacy ends a session of the legacy store, which this request need not have loaded: a
// first request elsewhere may have found it, and its copy may come late. So a tombstone takes
// its place. If it went on into a login, of a handle, that stays.
func (m *Manager) endLegacy(ctx context.Context, legacyToken string, stays handle) error {
	b, ok, err := m.legacy.find(ctx, legacyToken)
	if err != nil {
		return unavailable(ctx, err)
	}
	if ok {
		r, err := m.copied(ctx, legacyToken, b)
		if err == nil {
			err = m.records.endCopy(ctx, r, stays)
		}
		if errors.Is(err, ErrUnavailable) && !wrongType(err) || ctx.Err() != nil {
			return err
		} // and what cannot be read is not copied either
	}
	if err := m.legacy.delete(ctx, legacyToken); err != nil {
		return unavailable(ctx, err)
	}
	return nil
}

// replaceLegacy ends the legacy session of a browser that has logged in anew, by a session of a
// handle.
func (m *Manager) replaceLegacy(ctx context.Context, st *state, by handle) {
	st.mu.Lock()
	legacy := st.held.legacy
	st.mu.Unlock()
	if legacy == "" {
		return
	}
	if err := m.endLegacy(ctx, legacy, by); err != nil {
		m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: legacy session not deleted, old servers still have it", slog.Any("error", err))
	}
}
