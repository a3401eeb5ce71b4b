package session

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/observe"
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

// Observe calls f as Config.OnOperation is called, besides it, until stop is called.
func (m *Manager) Observe(f func(Operation)) (stop func()) { return m.operations.told.Add(f) }

type operation uint8

const (
	opLoad operation = iota
	opCommit
	opFinish
	opLogin
	opBeginLogin
	opConfirm
	opRotate
	opLogout
	opEnd
	opEndAll
	opEndOthers
	opPopOnce
)

var operationNames = [...]string{
	"Load", "Commit", "Finish", "Login", "BeginLogin", "Confirm", "Rotate", "Logout", "End", "EndAll", "EndOthers", "PopOnce",
}

// operations is where what the methods have done is counted, and told.
type operations struct {
	done, refused, failed, cancelled [len(operationNames)]atomic.Uint64

	found, none     atomic.Uint64 // Loads with a session, and without
	saved, notSaved atomic.Uint64 // changes that were written, and responses or Commits that failed
	told            observe.List[func(Operation)]
}

// began is when an operation begins, for done; the zero Time if nobody is told.
func (m *Manager) began() (now time.Time) {
	if m.operations.told.Any() {
		now = time.Now()
	}
	return now
}

// done counts an operation, at its end, and tells of it. user is "" for that of the session.
func (m *Manager) done(ctx context.Context, op operation, user string, began time.Time, err *error) {
	switch {
	case *err == nil:
		m.operations.done[op].Add(1)
	case errors.Is(*err, ErrUnavailable), errors.Is(*err, ErrConflict), errors.Is(*err, context.DeadlineExceeded):
		m.operations.failed[op].Add(1)
	case errors.Is(*err, context.Canceled):
		m.operations.cancelled[op].Add(1)
	default:
		m.operations.refused[op].Add(1)
	}
	if *err != nil && (op == opCommit || op == opFinish) && !errors.Is(*err, ErrEnded) && !errors.Is(*err, context.Canceled) {
		m.operations.notSaved.Add(1)
	}
	if began.IsZero() && op != opLoad {
		return
	}
	if st := m.unseen(ctx); st != nil && user == "" {
		st.mu.Lock()
		if st.record != nil {
			user = st.record.who.user
		}
		switch {
		case op != opLoad || *err != nil:
		case st.record != nil:
			m.operations.found.Add(1)
		default:
			m.operations.none.Add(1)
		}
		st.mu.Unlock()
	}
	if !began.IsZero() {
		o := Operation{operationNames[op], user, *err, time.Since(began)}
		m.operations.told.Each(func(f func(Operation)) { f(o) })
	}
}

// wrote counts changes that were written.
func (m *Manager) wrote(d draft) {
	if len(d.changes) > 0 {
		m.operations.saved.Add(1)
	}
}
