// Package session keeps sessions in Redis: who is this, the same on every server of a
// fleet.
//
// All sessions of a user, or of one visitor, are fields of one hash in Redis, so that
// every change is one script on one key, and the stream of events where they are wanted.
// github.com/alexedwards/scs holds the values of a request; the way of a request from
// [Manager.Load] through the values to [Manager.Finish] is this package's own. A session that was ended stays ended whatever
// runs at the same time, concurrent changes are merged key by key, an ID is replaced at
// login, and records can be sealed so that Redis holds nothing readable.
//
// The package knows nothing of responses: Load takes cookies, Finish says what to do with
// the cookie. Package middleware does that for net/http.
//
// What to read, in the order of a request: load.go, values.go, commit.go, outcome.go;
// begin.go, rotate.go, login.go with change.go, and end.go for what makes, changes or ends an
// ID; list.go, ended.go and watch.go for who sees it; at.go for the table that all of them
// follow; record.go for what stands in Redis, and scripts/session for what Redis does.
package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	// ErrNoSession is returned when the context was not made by Load.
	ErrNoSession = errors.New("session: no session in the context")
	// ErrNoUser is returned for an empty user ID, and by Confirm and EndOthers if nobody is
	// logged in.
	ErrNoUser = errors.New("session: no user ID, or nobody is logged in")
	// ErrEnded is returned by Commit, PopOnce, Reload, Confirm, EndOthers and Touch when the session
	// ended while the request ran: its changes are not saved. It is also the cause with which the context
	// of Watch ends.
	ErrEnded = errors.New("session: the session has ended")
	// ErrMoved is returned when the session lives on where this request does not find it: mostly
	// under an ID that another has given it, more than Rotation.Grace ago or by Confirm or a Login.
	// The request's changes are not saved; what it has read stays, until Finish or a Login. It wraps
	// ErrEnded: for this request the session is over.
	ErrMoved = fmt.Errorf("%w for this request: it lives on under another ID", ErrEnded)
	// ErrStaleLogin is returned by Login and BeginLogin when the user's sessions were ended
	// since what they rest on was checked: since the request was loaded, or since BeginLogin.
	// Have the user begin again.
	ErrStaleLogin = errors.New("session: all sessions of the user were ended while they logged in")
	// ErrUnknownHandle is returned when a user has no session of a handle.
	ErrUnknownHandle = errors.New("session: the user has no such session")
	// ErrTooManySessions is returned by Login when the user has as many sessions as
	// possible, under RefuseLogin.
	ErrTooManySessions = errors.New("session: the user has too many sessions")
	// ErrFinished is returned by what needs a new cookie after Finish, when none can be
	// sent any more.
	ErrFinished = errors.New("session: the response has begun, its cookie cannot change")
	// ErrConflict is returned when other requests changed the session so often that this
	// one's changes could not be merged in time.
	ErrConflict = errors.New("session: too many concurrent changes")
)

// Manager manages sessions. Its [Values] read and write the current session's data. Its
// methods are safe for concurrent use, also for one session by several goroutines. The
// zero value is not usable.
type Manager struct {
	Values
	records *records
	signer  signer
	legacy  *legacy // nil: none
	watches *watches

	every      time.Duration // Rotation.Every
	persistent bool

	operations operations
}

// New returns a Manager that keeps its sessions in Redis (7.0 or newer), standalone,
// Sentinel or Cluster. Its error names everything that is wrong with cfg.
//
// Hooks are to be added to the client before: those that come later do not see all of its
// commands. The client must read from masters: a replica may still show a session that
// has been logged out. If it caches reads in process, loading a session costs no command
// as long as nobody changes a session of the same user, and a change or a logout is seen
// when Redis has told the process, or after the cache's MaxStaleness. Set the client's
// ClientSideCache, rather than ClientSideCacheConfig alone, so that a process sees its
// own changes at once.
func New(client redis.UniversalClient, cfg Config) (*Manager, error) {
	c, err := cfg.check(client)
	if err != nil {
		return nil, err
	}
	signer, err := newSigner(c.Secrets)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		records: c.records(client), signer: signer,
		legacy: newLegacy(c),
		every:  c.Rotation.Every, persistent: c.Persistent,
	}
	if c.OnOperation != nil {
		m.Observe(c.OnOperation)
	}
	m.watches = newWatches(m.records)
	m.Values = values{m}
	return m, nil
}

// Loaded reports whether ctx was made by Load of this Manager.
func (m *Manager) Loaded(ctx context.Context) bool { return m.unseen(ctx) != nil }

// UserID returns the user who is logged in, or "".
func (m *Manager) UserID(ctx context.Context) string {
	st := m.state(ctx)
	if st == nil {
		return ""
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.record == nil {
		return ""
	}
	return st.record.who.user
}

// Remember sets whether the session is a remembered one: it has the life of
// Config.Remembered, and its cookie outlives the browser. It stays so over a Login. The
// response sends the cookie in any case.
func (m *Manager) Remember(ctx context.Context, on bool) {
	if st := m.state(ctx); st != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.facts.persistent = on
		st.held.persistent = !on // the response that set the cookie so may have been lost
		switch {
		case on && st.facts.kind != begun:
			st.facts.kind = remembered
		case st.record != nil && st.record.who.user != "":
			st.facts.kind = login
		case st.facts.kind == begun: // Login looks at persistent
		default:
			st.facts.kind = visitor
		}
	}
}

// Info is what the Manager itself keeps about a session. The zero value stands for none.
// All times are those of Redis's clock.
type Info struct {
	UserID          string
	Handle          string    // names the session in lists and logs; stays over rotations; leads nowhere
	Current         bool      // it is the session of the request
	Client          string    // the label that Describe gave when the user logged in
	Created         time.Time // when the session, or later the login, began
	AuthenticatedAt time.Time // when Login or Confirm was called last; zero: nobody is logged in, or unknown
	LastSeen        time.Time // to within IdleTimeout/20
	Expires         time.Time // the end of its Lifetime
	IdleExpires     time.Time // when it ends if it is not used, within Expires; later by up to IdleTimeout/20
	Persistent      bool      // see Remember
}

// Info returns the facts of the current session. IdleExpires counts the request itself, if it is a
// use of the session (see SkipTouch), and the Touches of a stream.
func (m *Manager) Info(ctx context.Context) Info {
	st := m.state(ctx)
	if st == nil {
		return Info{}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.record == nil {
		return Info{Persistent: st.facts.persistent}
	}
	r := *st.record
	if u := st.used; u != nil && u.head.handle == r.head.handle && u.times.touched > r.times.touched {
		r.times = u.times
	}
	r.head.kind, r.head.persistent = st.facts.kind, st.facts.persistent // as they will be
	info := m.info(&r)
	info.Current = true
	if now := m.records.known(r.id); now != 0 && !st.unused && !st.finished && m.records.lives[r.head.kind].touchDue(&r, now) {
		r.times.touched = now
		info.IdleExpires = m.info(&r).IdleExpires
	}
	return info
}

// AuthenticatedWithin reports whether the user logged in, or was confirmed, no longer than d ago,
// by Redis's clock. A time that lies ahead of that clock by more than Config.Timeout is not fresh:
// the clock was set back, and nobody knows how long ago it was.
func (m *Manager) AuthenticatedWithin(ctx context.Context, d time.Duration) bool {
	st := m.state(ctx)
	if st == nil {
		return false
	}
	st.mu.Lock()
	r := st.record
	st.mu.Unlock()
	if r == nil || r.who.user == "" || r.authenticated() == 0 {
		return false
	}
	now, err := m.records.loadedNow(ctx, r.id)
	age := now - r.authenticated()
	return err == nil && age <= d.Microseconds() && age >= -m.records.timeout.Microseconds() // by which now may be off
}

func fromMicros(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
