package session

import (
	"context"
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
	var ends []id
	if st.record != nil {
		ends = append(ends, st.record.id)
	}
	if st.login != nil {
		for _, o := range st.login.old {
			ends = append(ends, o.record.id)
		}
	}
	for _, n := range st.named {
		if steps[n.what][end] == bury {
			ends = append(ends, n.id)
		}
	}
	legacy := st.held.legacy
	st.mu.Unlock()
	if legacy != "" {
		if err := m.legacy.delete(ctx, legacy); err != nil {
			return unavailable(ctx, err)
		}
	}
	for _, at := range ends {
		if _, err := m.records.end(ctx, at, endLogout, revision{}, handle{}); err != nil {
			return err
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.epoch++
	// What its cookies named stays: a session that is begun now leaves a tombstone there.
	st.record, st.login, st.begun = nil, nil, nil
	st.dead, st.rotate, st.loggedOut, st.stood = false, false, true, false
	st.values = working{serial: st.values.serial}
	st.facts = facts{persistent: m.persistent}
	return nil
}

// endLegacy ends the legacy session of a browser that has logged in anew.
func (m *Manager) endLegacy(ctx context.Context, st *state) {
	st.mu.Lock()
	legacy := st.held.legacy
	st.mu.Unlock()
	if legacy == "" {
		return
	}
	if err := m.legacy.delete(ctx, legacy); err != nil {
		m.records.log.LogAttrs(ctx, slog.LevelWarn, "session: legacy session not deleted, old servers still have it", slog.Any("error", err))
	}
}
