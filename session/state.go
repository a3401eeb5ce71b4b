package session

import (
	"context"
	"sync"
	"sync/atomic"
)

// state is what one request knows of its session beyond the values: it is put
// into the context before scs loads the session, and so carries what was found
// from there to the commit.
type state struct {
	// cycle is held by the methods of the life cycle, network calls included, as
	// scs holds a lock of its own over a commit. It comes first, then scs's, then mu.
	cycle sync.Mutex

	changes   atomic.Uint64 // of the values, made so far
	committed atomic.Uint64 // those that the last commit knew of

	mu sync.Mutex // never held across a network call
	facts
	resend  bool     // the next outcome must carry the cookie
	expire  bool     // Logout was called: the next outcome deletes the cookie, if no new session came
	adopted *adopted // after a merge: what the request has not seen
}

// facts are what a commit goes by.
type facts struct {
	base   *record // as it stands in Redis, as far as this request knows; nil: no session yet
	meta   meta    // as it should be saved
	intent intent
	clean  bool // another user logs in: nothing of the old session is carried over
	dead   bool // the ID leads nowhere any more: what the request does is not saved
	reseal bool // the record was made with an old secret
}

// adopted is what a commit was given and what it saved after a merge.
type adopted struct{ mine, saved map[string]any }

// intent is what the request wants to become of the session's ID.
type intent uint8

const (
	intentKeep intent = iota
	intentRotate
	intentLogin
)

// withState is the context of a request with its state: a context.WithValue that
// holds the value itself.
type withState struct {
	context.Context
	store *Store
	state
}

type stateKey struct{ store *Store }

func (c *withState) Value(key any) any {
	if k, ok := key.(stateKey); ok && k.store == c.store {
		return &c.state
	}
	return c.Context.Value(key)
}

func (s *Store) state(ctx context.Context) *state {
	st, _ := ctx.Value(stateKey{s}).(*state)
	return st
}

func (st *state) snapshot() facts {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.facts
}

// saved notes that r is what stands in Redis now.
func (st *state) saved(r *record, resend bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.base, st.meta = r, r.meta
	st.intent, st.clean, st.dead, st.reseal = intentKeep, false, false, false
	st.resend = st.resend || resend
	st.expire = false
}

// lost notes that the session ended while the request ran.
func (st *state) lost() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.base, st.dead, st.resend = nil, true, false
	st.intent, st.clean, st.reseal = intentKeep, false, false
	st.meta.user, st.meta.authenticated, st.meta.persistent = "", 0, false
}
