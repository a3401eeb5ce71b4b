package session

import (
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
func (m *Manager) Logout(ctx context.Context) error {
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
		if err := m.endLegacy(ctx, legacy); err != nil {
			return err
		}
	}
	ended := make(map[id]bool)
	for {
		next := st.loggingOut(m, ended)
		if len(next) == 0 {
			return nil
		}
		for _, at := range next {
			if _, err := m.records.end(ctx, at, endLogout, revision{}, handle{}); err != nil {
				return err
			}
			ended[at] = true
		}
	}
}

// loggingOut returns what a logout has to end besides what it has ended: another goroutine of
// the request may have logged in meanwhile. When there is nothing, the state is logged out.
func (st *state) loggingOut(m *Manager, ended map[id]bool) (next []id) {
	st.mu.Lock()
	defer st.mu.Unlock()
	add := func(at id) {
		if !ended[at] {
			next = append(next, at)
		}
	}
	if st.record != nil {
		add(st.record.id)
	}
	if st.login != nil {
		for _, o := range st.login.old {
			add(o.record.id)
		}
	}
	for _, n := range st.named {
		if steps[n.what][end] == bury {
			add(n.id)
		}
	}
	if len(next) > 0 {
		return next
	}
	st.epoch++
	// What its cookies named stays: a session that is begun now leaves a tombstone there.
	st.record, st.login, st.begun = nil, nil, nil
	st.dead, st.rotate, st.loggedOut, st.stood = false, false, true, false
	st.values = working{serial: st.values.serial}
	st.facts = facts{persistent: m.persistent}
	return nil
}

// endLegacy ends a session of the legacy store, which this request need not have loaded: a
// first request elsewhere may have found it, and its copy may come late. So the copy is
// made, if there is none, and ended: that leaves a tombstone in its place.
func (m *Manager) endLegacy(ctx context.Context, legacyToken string) error {
	b, ok, err := m.legacy.find(ctx, legacyToken)
	if err != nil {
		return unavailable(ctx, err)
	}
	if ok {
		r, err := m.copied(ctx, legacyToken, b)
		if err == nil {
			if _, err = m.records.create(ctx, r, 0); err == nil {
				_, err = m.records.end(ctx, r.id, endLogout, revision{}, handle{})
			}
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

// replaceLegacy ends the legacy session of a browser that has logged in anew.
func (m *Manager) replaceLegacy(ctx context.Context, st *state) {
	st.mu.Lock()
	legacy := st.held.legacy
	st.mu.Unlock()
	if legacy == "" {
		return
	}
	if err := m.endLegacy(ctx, legacy); err != nil {
		m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: legacy session not deleted, old servers still have it", slog.Any("error", err))
	}
}
