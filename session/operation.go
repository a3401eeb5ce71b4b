package session

import (
	"context"
	"time"
)

// Operation is what a method of a Manager has done: the argument of Config.OnOperation.
type Operation struct {
	// Name is that of the method: Load (of LoadLegacy, too), Commit, Finish, Login, BeginLogin,
	// Confirm, Rotate, Logout, End, EndAll, EndOthers or PopOnce.
	Name string
	// UserID is who is logged in in the session then, or whose sessions End and EndAll end; ""
	// if nobody is.
	UserID string
	Err    error         // as returned by the method
	Took   time.Duration // the whole of it
}

// began is when an operation begins, for done.
func (m *Manager) began() (now time.Time) {
	if m.onOperation != nil {
		now = time.Now()
	}
	return now
}

// done tells of an operation, at its end. user is "" for that of the session.
func (m *Manager) done(ctx context.Context, name, user string, began time.Time, err *error) {
	if m.onOperation == nil {
		return
	}
	if st := m.unseen(ctx); st != nil && user == "" {
		st.mu.Lock()
		if st.record != nil {
			user = st.record.who.user
		}
		st.mu.Unlock()
	}
	m.onOperation(Operation{name, user, *err, time.Since(began)})
}
