package session

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// List returns the sessions of a user: that of the request first, then those used last. It
// shows exactly the sessions that answer: none of those that have expired, or were ended.
//
// A user ID of nobody has no sessions. The error is [ErrNoUser], [ErrUnavailable], one for
// a user ID of more than 1,024 bytes, or ctx's own.
func (m *Manager) List(ctx context.Context, userID string) ([]Info, error) {
	if err := checkUserID(userID); err != nil {
		return nil, err
	}
	o := m.records.keys.user(userID)
	a, err := m.records.run(ctx, listScript, m.records.of(o))
	if err != nil {
		return nil, err
	}
	return m.infos(ctx, m.records.listed(ctx, o, a)), nil
}

func checkUserID(userID string) error {
	switch {
	case userID == "":
		return ErrNoUser
	case len(userID) > maxUserID:
		return fmt.Errorf("session: user ID of %d bytes, at most %d are possible", len(userID), maxUserID)
	}
	return nil
}

// infos describes sessions, each once: while it changes its ID it has two records.
func (m *Manager) infos(ctx context.Context, records []*record) []Info {
	var mine handle
	if st := m.state(ctx); st != nil {
		st.mu.Lock()
		if st.record != nil {
			mine = st.record.head.handle
		}
		st.mu.Unlock()
	}
	slices.SortFunc(records, func(a, b *record) int {
		return cmp.Or(
			cmp.Compare(b.times.touched, a.times.touched),
			cmp.Compare(b.authenticated(), a.authenticated()),
			cmp.Compare(b.times.born, a.times.born),
			slices.Compare(a.head.handle[:], b.head.handle[:]),
		)
	})
	list := make([]Info, 0, len(records))
	known := make(map[handle]bool, len(records))
	for _, r := range records {
		if known[r.head.handle] {
			continue
		}
		known[r.head.handle] = true
		info := m.info(r)
		if info.Current = r.head.handle == mine; info.Current {
			list = slices.Insert(list, 0, info)
		} else {
			list = append(list, info)
		}
	}
	return list
}

// info describes a session.
func (m *Manager) info(r *record) Info {
	l := m.records.lives[r.head.kind]
	info := Info{
		UserID:          r.who.user,
		Handle:          r.head.handle.String(),
		Client:          r.who.client,
		Created:         fromMicros(r.times.born),
		AuthenticatedAt: fromMicros(r.authenticated()),
		LastSeen:        fromMicros(r.times.touched),
		Expires:         fromMicros(l.deadline(r)),
		Persistent:      r.head.persistent,
	}
	info.IdleExpires = info.Expires
	if idle := info.LastSeen.Add(l.idle); l.idle > 0 && idle.Before(info.Expires) {
		info.IdleExpires = idle
	}
	return info
}
