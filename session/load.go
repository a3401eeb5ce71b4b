package session

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// state is what one request knows of its session.
type state struct {
	mu sync.Mutex // never held over a round trip

	held   held    // what the browser holds, as far as the request knows
	named  []named // IDs that its cookies named and where nothing is that it could use
	record *record // the session as it stands in Redis, as far as the request knows; nil: none
	facts  facts   // as they should be saved
	values working
	login  *pending // a login that Finish has to complete
	used   *record  // as Touch has left it
	begun  *id      // of the session that a first commit begins
	// uncopied is a legacy session of which Redis had no room for a copy. It is not changed.
	uncopied *record
	free     chan struct{} // closed when the commit that is under way is over; nil: nobody waits
	began    time.Time     // when Load was called
	ended    Reason        // why what a cookie led to is over, if others ended it
	client   func() string // see Describe
	raised   []raise       // fences
	strayed  string        // the field of an ID to which none of this request's leads
	epoch    uint64        // counts logins, logouts and ends: what was under way before is not applied

	looked atomic.Bool // somebody has asked for the session

	busy      bool // a commit or a Login is under way
	fresh     bool // a commit of this request has begun the session
	stood     bool // a script of this request has found or written the record
	dead      bool // the ID leads nowhere any more: nothing is saved, but by a Login
	moved     bool // the session has an ID that this request does not know
	loggedOut bool // Logout was called, and no session begun since
	rotate    bool // Rotate was called
	keepID    bool // KeepID was called
	unused    bool // SkipTouch was called
	returned  bool // Returned was called, and no put has been told since
	finished  bool // Finish has returned
	asked     bool // Ended was called, and told why
	seen      bool // Told was called
	told      bool // both, when Finish was called
}

// raise is a fence that a request has raised itself.
type raise struct {
	owner owner
	by    mark
}

// held is the session cookie of a browser.
type held struct {
	id         id
	any        bool
	outdated   bool // signed with an old secret, or the legacy store's
	persistent bool
	through    []id   // rotated IDs that led from it to the session, its own first
	legacy     string // the token of the legacy store
}

// named is an ID of a cookie, and what stands there.
type named struct {
	id   id
	what standing // ended, nothing or unreadable
}

// facts are what a request may change of its session besides values and user.
type facts struct {
	kind       kind
	persistent bool
	reason     Reason // it can only be forgotten
}

func (r *record) facts() facts { return facts{r.head.kind, r.head.persistent, r.who.reason} }

// withState is the context of a request with its state: a context.WithValue that holds
// the value itself.
type withState struct {
	context.Context
	m *Manager
	state
}

type stateKey struct{ m *Manager }

func (c *withState) Value(key any) any {
	if k, ok := key.(stateKey); ok && k.m == c.m {
		return &c.state
	}
	return c.Context.Value(key)
}

// state returns the state of a request for who looks at its session, or nil.
func (m *Manager) state(ctx context.Context) *state {
	st := m.unseen(ctx)
	if st != nil && !st.looked.Load() {
		st.looked.Store(true)
	}
	return st
}

// unseen is state for what happens with every request.
func (m *Manager) unseen(ctx context.Context) *state {
	st, _ := ctx.Value(stateKey{m}).(*state)
	return st
}

// Looked reports whether anything has asked for the session since it was loaded, or changed it: the
// response may then depend on it.
func (m *Manager) Looked(ctx context.Context) bool {
	st := m.unseen(ctx)
	return st != nil && st.looked.Load()
}

// maxCookies bounds how many cookies of one request are looked up.
const maxCookies = 4

// Load returns a context with the session that one of the cookies names, or with a new,
// anonymous one: then nothing is in Redis until a change is committed, under an ID of its
// own. Of several cookies the first that leads to a session counts. One that is
// malformed or badly signed costs no command, and of the others no more than four are
// looked up. A context that has a session of this Manager is returned as it is.
//
// The error is [ErrUnavailable], or ctx's own.
func (m *Manager) Load(ctx context.Context, cookies ...string) (context.Context, error) {
	return m.load(ctx, "", cookies)
}

// LoadLegacy is Load with the cookie of the legacy store, which is looked at if none of
// the others leads to a session.
func (m *Manager) LoadLegacy(ctx context.Context, legacyToken string, cookies ...string) (context.Context, error) {
	return m.load(ctx, legacyToken, cookies)
}

func (m *Manager) load(ctx context.Context, legacyToken string, cookies []string) (_ context.Context, err error) {
	if m.unseen(ctx) != nil {
		return ctx, nil
	}
	within := &withState{Context: ctx, m: m}
	defer m.done(within, opLoad, "", m.began(), &err)
	st := &within.state
	st.facts.persistent = m.persistent
	st.began = m.records.redis.Now()
	looked := 0
	for _, cookie := range cookies {
		value, outdated, ok := m.signer.verify(cookie)
		if !ok || looked == maxCookies {
			continue
		}
		looked++
		at := m.records.keys.at(value.split())
		f, err := m.records.find(ctx, at)
		if err != nil {
			return nil, err
		}
		if f.what == live {
			st.loaded(f.record)
			st.held = held{id: at, any: true, outdated: outdated, persistent: f.record.head.persistent, through: f.through}
			st.dead, st.ended = false, f.record.who.reason
			break
		}
		st.held.any = true
		st.ended = cmp.Or(st.ended, f.reason)
		st.dead = st.dead || steps[f.what][save] == drop
		st.named = append(st.named, named{at, f.what})
		if f.what == unreadable && f.beyond != nil {
			st.named = append(st.named, named{*f.beyond, f.what})
		}
	}
	if m.legacy != nil && isLegacyToken(legacyToken) {
		st.held.legacy = legacyToken
		if st.record == nil && !st.dead {
			if err := m.loadLegacy(ctx, st, legacyToken); err != nil {
				return nil, err
			}
		}
	}
	return within, nil
}

// loaded takes in a session as it stands in Redis.
func (st *state) loaded(r *record) {
	st.record = r
	st.facts = r.facts()
	st.values = working{stored: r.values}
}
