package session

import (
	"context"
	"time"
)

// CookieAction is what a response has to do with the session cookie.
type CookieAction uint8

const (
	CookieKeep   CookieAction = iota // nothing
	CookieSet                        // set it
	CookieDelete                     // delete it; after Logout, or when the person was Told
)

// Outcome is what Finish means for the cookie. The zero value means nothing.
type Outcome struct {
	Action CookieAction
	Value  string        // of CookieSet
	MaxAge time.Duration // of CookieSet: from now on; zero means until the browser is closed
	// Legacy says that the cookie of the legacy store is to be deleted: its session has
	// ended.
	Legacy bool
}

// cookieDue reports whether the browser holds another cookie than the session's.
func (st *state) cookieDue() bool {
	r := st.record
	return r != nil && !(st.held.any && st.held.id == r.id && !st.held.outdated && st.held.persistent == r.head.persistent)
}

// outcome says what the browser is to do with its cookie: it follows from what it holds
// and what stands in Redis.
func (m *Manager) outcome(st *state, failed error) (Outcome, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if failed != nil && (st.login == nil || !st.login.unknown) {
		return Outcome{}, nil
	}
	st.finished = true
	r := st.record
	switch {
	case r == nil && st.loggedOut:
		out := Outcome{Action: CookieDelete, Legacy: st.held.legacy != ""}
		st.loggedOut, st.held = false, held{}
		return out, nil
	case !st.cookieDue() || !st.stood:
		return Outcome{}, nil
	}
	value, err := m.signer.sign(r.id.cookie())
	if err != nil {
		return Outcome{}, err
	}
	out := Outcome{Action: CookieSet, Value: value, Legacy: st.held.legacy != "" && !r.head.copied}
	if r.head.persistent {
		left := m.records.lives[r.head.kind].deadline(r) - m.records.known(r.id)
		out.MaxAge = max(time.Second, time.Duration(left)*time.Microsecond)
	}
	legacy := st.held.legacy
	if out.Legacy {
		legacy = ""
	}
	st.held = held{id: r.id, any: true, persistent: r.head.persistent, legacy: legacy}
	return out, nil
}

// Pending reports whether the session has changes that no commit has saved.
func (m *Manager) Pending(ctx context.Context) bool {
	st := m.unseen(ctx)
	if st == nil {
		return false
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.dead || st.moved:
		return false
	case st.login != nil || st.rotate:
		return true
	case st.record != nil && st.facts != st.record.facts():
		return true
	}
	for _, c := range st.values.changed {
		if st.record != nil || !c.removed {
			return true
		}
	}
	return false
}
