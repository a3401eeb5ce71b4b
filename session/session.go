// Package session keeps sessions in Redis: who is this, the same on every
// server of a fleet.
//
// It is built on github.com/alexedwards/scs, whose manager holds the values
// of a request, with a store, a codec and a life cycle of its own: a session
// that was ended stays ended whatever runs at the same time, concurrent
// changes are merged key by key, an ID is replaced at login, and records can be
// sealed so that Redis holds nothing readable.
//
// The package knows nothing of responses: [Manager.Load] takes a cookie's
// value, [Manager.Commit] tells what to do with the cookie. Package middleware
// does that for net/http.
package session

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

var (
	// ErrNoSession is returned when the context was not made by Load.
	ErrNoSession = errors.New("session: no session in the context")
	// ErrNoUser is returned by Login for an empty user ID.
	ErrNoUser = errors.New("session: login without a user ID")
)

// Config configures a Manager. The zero value is ready to use: a lifetime of a
// day, an idle timeout of an hour, neither signed cookies nor sealed records.
type Config struct {
	// Prefix begins every key in Redis; default "gatehouse:". It may not
	// contain braces, which choose the slot in a cluster.
	Prefix string
	// Lifetime ends a session however much it is used; default 24 hours.
	// Only Login starts it anew.
	Lifetime time.Duration
	// IdleTimeout ends a session that is not used; default one hour, negative:
	// none. It is kept with a tolerance of 5 %, so that use is written to Redis
	// at most 20 times per IdleTimeout. As far as the clocks of servers differ, so
	// may the timeout.
	IdleTimeout time.Duration
	// RotateEvery gives a session a new ID at this interval; default 0: only at
	// Login.
	RotateEvery time.Duration
	// Grace is how long a rotated ID still leads to its session; default 30
	// seconds, which covers requests under way. A browser that never got the
	// response with the new ID, and asks again only after the grace, has lost its
	// session. For as long, what is sent with an ID from before a login is an
	// anonymous session that cannot be saved.
	Grace time.Duration
	// Secrets sign cookies and seal records, the newest first; each has at
	// least 32 bytes. With none, neither is done. To change the secret, first add
	// the new one at the end, on every server, and then put it in front: no server
	// ever meets what it cannot read. Sessions move to it as they are used, and
	// [Manager.SecretUse] tells when the old one may go.
	Secrets [][]byte
	// Sealer is how records are sealed; default AES-256-GCM. It needs Secrets.
	Sealer Sealer
	// Codec encodes the values; default BinaryCodec. It should be
	// deterministic: otherwise unchanged sessions are written as if changed. Its
	// Decode must not modify what it is given.
	Codec scs.Codec
	// Legacy is a store of gob-encoded scs sessions under their plain tokens,
	// such as scs/redisstore or scs/goredisstore. A session that is not found
	// is looked up there and moved at its first use; it ends at its own deadline or
	// after Lifetime, whichever is earlier. With it, Grace must be at least twice
	// Timeout.
	Legacy scs.Store
	// LegacyUser tells by the values of a legacy session who is logged in, "" for
	// nobody. Such a session gets a new ID when it is moved, and its time of
	// authentication is unknown: zero. With nil no moved session has a user.
	LegacyUser func(values map[string]any) string
	// Timeout bounds each operation in Redis; default 500 milliseconds.
	Timeout time.Duration
	// Logger gets what an operator should know; nil: silent. It never gets
	// tokens, values or user IDs.
	Logger *slog.Logger

	now func() time.Time // of tests
}

// Manager manages sessions. It embeds [Values], the part of
// *scs.SessionManager that reads and writes the current session's data; the
// life cycle is its own. Its methods are safe for concurrent use, also for one
// session by several goroutines. The zero value is not usable.
type Manager struct {
	Values
	scs    *scs.SessionManager
	store  *Store
	signer signer

	lifetime    time.Duration
	rotateEvery time.Duration
}

// New returns a Manager that keeps its sessions in Redis (7.0 or newer),
// standalone, Sentinel or Cluster. Its error names all that is wrong with cfg.
//
// Hooks are to be added to the client before: those that come later do not see
// all of its commands. The client must read from masters: a replica may still
// show a session that has been logged out. If it caches reads in process, loading
// a session costs no command as long as nobody changes it, and a change or a
// logout is seen when Redis has told the process, or after the cache's
// MaxStaleness. Set the client's ClientSideCache, rather than
// ClientSideCacheConfig alone, so that a process sees its own changes at once.
func New(client redis.UniversalClient, cfg Config) (*Manager, error) {
	store, cfg, err := newStore(client, cfg)
	if err != nil {
		return nil, err
	}
	signer, err := newSigner(cfg.Secrets)
	if err != nil {
		return nil, err
	}
	engine := scs.New()
	// The store owns both lifetimes, and hashes tokens itself.
	engine.Lifetime, engine.IdleTimeout, engine.HashTokenInStore = cfg.Lifetime, 0, false
	engine.Store, engine.Codec = store, store.codec
	return &Manager{
		Values: counting{engine, store}, scs: engine, store: store, signer: signer,
		lifetime: cfg.Lifetime, rotateEvery: cfg.RotateEvery,
	}, nil
}

// NewStore returns the store alone, for use with a stock scs.SessionManager,
// whose own lifetimes then hold: Lifetime, IdleTimeout and RotateEvery of cfg do
// nothing.
func NewStore(client redis.UniversalClient, cfg Config) (*Store, error) {
	cfg.IdleTimeout = -1
	s, _, err := newStore(client, cfg)
	return s, err
}

func newStore(client redis.UniversalClient, cfg Config) (*Store, Config, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("session: "+format, args...)) }
	if client == nil {
		bad("client is nil")
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "gatehouse:"
	}
	if strings.ContainsAny(cfg.Prefix, "{}") {
		bad("Prefix %q contains a brace", cfg.Prefix)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		byDef time.Duration
	}{
		{"Lifetime", &cfg.Lifetime, 24 * time.Hour},
		{"RotateEvery", &cfg.RotateEvery, 0},
		{"Grace", &cfg.Grace, 30 * time.Second},
		{"Timeout", &cfg.Timeout, 500 * time.Millisecond},
	} {
		switch {
		case *d.value < 0:
			bad("%s %v is negative", d.name, *d.value)
		case *d.value == 0:
			*d.value = d.byDef
		case *d.value < time.Millisecond:
			bad("%s %v is below a millisecond", d.name, *d.value)
		}
	}
	switch {
	case cfg.IdleTimeout == 0:
		cfg.IdleTimeout = time.Hour
	case cfg.IdleTimeout < 0:
		cfg.IdleTimeout = 0
	case cfg.IdleTimeout < touchShare*time.Millisecond:
		bad("IdleTimeout %v is below %v", cfg.IdleTimeout, touchShare*time.Millisecond)
	}
	if cfg.Legacy != nil && cfg.Grace < 2*cfg.Timeout {
		// A logout leaves a marker for Grace against a request that has read the
		// legacy session, but not moved it yet.
		bad("Grace %v is below twice the Timeout %v, with Legacy", cfg.Grace, cfg.Timeout)
	}
	if cfg.LegacyUser != nil && cfg.Legacy == nil {
		bad("LegacyUser is set, but not Legacy")
	}
	ring, err := newKeyring(cfg.Secrets, cfg.Sealer)
	if err != nil {
		errs = append(errs, err)
	}
	if cfg.Codec == nil {
		cfg.Codec = BinaryCodec{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	if len(errs) > 0 {
		return nil, cfg, errors.Join(errs...)
	}
	return &Store{
		prefix: cfg.Prefix, idleTimeout: cfg.IdleTimeout, grace: cfg.Grace,
		ring: ring, codec: valuesCodec{cfg.Codec}, timeout: cfg.Timeout,
		legacy: cfg.Legacy, legacyUser: cfg.LegacyUser, lifetime: cfg.Lifetime,
		log: cfg.Logger, redis: roundtrip.New(client, cfg.Timeout), now: cfg.now,
	}, cfg, nil
}

// Load returns a context with the session that a cookie's value names, or with
// a new, anonymous one: then nothing is in Redis until a change is committed,
// under an ID of its own. A value that is empty, malformed or badly signed
// costs no command. A context that has a session of this Manager is returned
// as it is.
//
// The error is [ErrUnavailable], or ctx's own.
func (m *Manager) Load(ctx context.Context, cookie string) (context.Context, error) {
	if m.store.state(ctx) != nil {
		return ctx, nil
	}
	within := m.begin(ctx)
	if value, old, ok := m.verify(cookie); ok {
		if err := m.find(ctx, &within.state, value, old); err != nil {
			return nil, err
		}
	}
	token := ""
	if base := within.state.base; base != nil {
		token = base.id.token
	}
	loaded, err := m.scs.Load(within, token)
	if err != nil {
		// The store has been asked already: what fails here is the codec.
		m.store.reportUnreadable(ctx, "codec: values cannot be decoded")
		return m.scs.Load(m.begin(ctx), "")
	}
	return loaded, nil
}

// verify returns what a cookie was signed for. While there is a legacy store,
// its unsigned cookies pass, too: they hold 256 random bits all the same.
func (m *Manager) verify(cookie string) (value string, old, ok bool) {
	if cookie == "" {
		return "", false, false
	}
	if value, old, ok = m.signer.verify(cookie); ok {
		return value, old, true
	}
	return cookie, true, m.store.legacy != nil && len(cookie) == tokenLen
}

// find fills st with the session that a cookie's value names, if there is one.
func (m *Manager) find(ctx context.Context, st *state, value string, old bool) error {
	token, tag, ok := splitCookie(value)
	if !ok {
		return nil
	}
	at := newID(m.store.prefix, token, tag)
	r, v, err := m.store.find(ctx, at)
	moved := false
	if err == nil && v == absent && m.store.legacy != nil && tag == "" {
		r, v, err = m.store.moveLegacy(ctx, at)
		moved = true
	}
	switch {
	case err != nil:
		return err
	case v == over || v == gone:
		st.dead = true
	case v == found:
		st.base, st.meta = r, r.meta
		st.reseal = r.keyID != m.store.ring.current()
		st.resend = old || moved || r.id != at
	}
	return nil
}

// begin returns a context with the state of a session that nobody has saved yet.
func (m *Manager) begin(ctx context.Context) *withState {
	within := &withState{Context: ctx, store: m.store}
	within.meta = m.fresh()
	return within
}

// fresh is what is known of a session that nobody has saved yet.
func (m *Manager) fresh() meta {
	now := m.store.now()
	return meta{created: millis(now), deadline: millis(now.Add(m.lifetime))}
}

// Login binds the session to a user. It always gives a new ID and starts both
// lifetimes anew; after the commit the old ID never leads to the session. Values
// are kept, unless another user was logged in: then they are cleared.
// The error is [ErrNoUser] or [ErrNoSession].
func (m *Manager) Login(ctx context.Context, userID string) error {
	st := m.store.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	if userID == "" {
		return ErrNoUser
	}
	st.cycle.Lock()
	defer st.cycle.Unlock()
	other := m.UserID(ctx) != "" && m.UserID(ctx) != userID
	if other {
		if err := m.scs.Clear(ctx); err != nil {
			return err
		}
	}
	if err := m.scs.RenewToken(ctx); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	persistent := st.meta.persistent && !other
	st.meta = m.fresh()
	st.meta.user, st.meta.persistent = userID, persistent
	st.meta.authenticated = st.meta.created
	st.intent, st.clean = intentLogin, st.clean || other
	return nil
}

// Logout ends the session in Redis, at once and without a grace. Whatever other
// requests do with it at the same time is not saved. The outcome of the
// next Commit deletes the cookie, unless the handler began a new session by
// changing something. It is not affected by ctx being cancelled.
//
// The error is [ErrUnavailable] or [ErrConflict] (then the session may still be
// there, and stays loaded), or [ErrNoSession].
func (m *Manager) Logout(ctx context.Context) error {
	st := m.store.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	st.cycle.Lock()
	defer st.cycle.Unlock()
	st.mu.Lock()
	base := st.base
	st.mu.Unlock()
	if base != nil {
		if err := m.store.end(context.WithoutCancel(ctx), base.id); err != nil {
			return err
		}
	}
	if err := m.scs.Destroy(ctx); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.base, st.meta, st.intent = nil, m.fresh(), intentKeep
	st.clean, st.dead, st.reseal, st.resend, st.expire = false, false, false, false, true
	st.adopted = nil
	return nil
}

// Rotate gives the session a new ID at the next Commit. Nothing else changes.
// For the grace the old ID leads to the same session. A session that is not in
// Redis yet gets its first ID there anyway. The error is [ErrNoSession].
func (m *Manager) Rotate(ctx context.Context) error {
	st := m.store.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	st.cycle.Lock()
	defer st.cycle.Unlock()
	return m.rotate(ctx, st)
}

func (m *Manager) rotate(ctx context.Context, st *state) error {
	st.mu.Lock()
	nothing := st.base == nil || st.intent != intentKeep
	st.mu.Unlock()
	if nothing {
		return nil
	}
	if err := m.scs.RenewToken(ctx); err != nil {
		return err
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.intent == intentKeep {
		st.intent = intentRotate
	}
	return nil
}

// UserID returns the user who is logged in, or "".
func (m *Manager) UserID(ctx context.Context) string {
	st := m.store.state(ctx)
	if st == nil {
		return ""
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.meta.user
}

// Remember sets whether the cookie outlives the browser: then it expires with
// the session's Lifetime. A new session is not persistent.
func (m *Manager) Remember(ctx context.Context, on bool) {
	if st := m.store.state(ctx); st != nil {
		st.cycle.Lock()
		defer st.cycle.Unlock()
		st.mu.Lock()
		defer st.mu.Unlock()
		st.meta.persistent = on
	}
}

// Info is what the Manager itself keeps about a session. The zero value stands
// for none.
type Info struct {
	UserID          string
	Created         time.Time // when the session, or later the login, began
	AuthenticatedAt time.Time // when Login was called last; zero: nobody is logged in
	Expires         time.Time // the end of Lifetime; it may end earlier, when idle
	Persistent      bool      // see Remember
	// Fingerprint is a short one-way digest of the ID, for logs and pages: it
	// changes whenever the ID does. Empty while there is no ID.
	Fingerprint string
}

// Info returns the facts of the current session.
func (m *Manager) Info(ctx context.Context) Info {
	st := m.store.state(ctx)
	if st == nil {
		return Info{}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	info := Info{
		UserID:          st.meta.user,
		Created:         fromMillis(st.meta.created),
		AuthenticatedAt: fromMillis(st.meta.authenticated),
		Expires:         fromMillis(st.meta.deadline),
		Persistent:      st.meta.persistent,
	}
	if st.base != nil {
		info.Fingerprint = fingerprint(st.base.id)
	}
	return info
}

func fingerprint(i id) string {
	sum := sha256.Sum256([]byte("gatehouse fingerprint " + i.token))
	return base64.RawURLEncoding.EncodeToString(sum[:6])
}

// Stats returns the counters of this Manager.
func (m *Manager) Stats() Stats { return m.store.Stats() }

// Stats returns the counters of this Store.
func (s *Store) Stats() Stats {
	return Stats{Unreadable: s.unreadable.Load(), Conflicts: s.conflicts.Load(), Dropped: s.dropped.Load()}
}

// CookieAction is what a response has to do with the session cookie.
type CookieAction uint8

const (
	CookieKeep   CookieAction = iota // nothing
	CookieSet                        // set it
	CookieDelete                     // delete it; only after Logout
)

// Outcome is what a commit means for the cookie. The zero value means nothing.
type Outcome struct {
	Action  CookieAction
	Value   string    // of CookieSet
	Expires time.Time // of CookieSet: zero means until the browser is closed
}

// Commit saves the session if it was changed, and tells what to do with the
// cookie. It may be called again after further changes.
//
// A session that was ended meanwhile is not written, which is no error; ctx then
// holds an empty one that cannot be saved, except by Login. When another request changed it, both changes are merged key by key; for the same
// key the last commit wins. What this request reads afterwards includes the
// others' changes.
//
// The error is an [*EncodeError] for a value that cannot be encoded,
// [ErrConflict], [ErrUnavailable], [ErrNoSession], or ctx's own. After any of
// them what was changed may or may not have been saved as a whole, never in
// part; the caller's response should not claim that it was.
func (m *Manager) Commit(ctx context.Context) (Outcome, error) {
	st := m.store.state(ctx)
	if st == nil {
		return Outcome{}, ErrNoSession
	}
	st.cycle.Lock()
	defer st.cycle.Unlock()
	if m.rotationDue(st) {
		if err := m.rotate(ctx, st); err != nil {
			return Outcome{}, err
		}
	}
	changes := st.changes.Load()
	f := st.snapshot()
	changed := m.scs.Status(ctx) == scs.Modified
	if f.base == nil {
		changed = changed && len(m.scs.Keys(ctx)) > 0
	} else {
		changed = changed || f.reseal || f.meta != f.base.meta
	}
	switch {
	case changed || f.intent != intentKeep:
		if _, _, err := m.scs.Commit(ctx); err != nil {
			if f.base == nil || f.intent != intentKeep {
				// It may have been saved under the new ID all the same. A second
				// attempt takes another one, which surely is not taken.
				_ = m.scs.RenewToken(ctx)
			}
			return Outcome{}, err
		}
		if err := m.adopt(ctx, st); err != nil {
			return Outcome{}, err
		}
	case f.base != nil && m.store.touchDue(f.base):
		touched := m.store.touch(ctx, f.base)
		st.mu.Lock()
		if st.base == f.base {
			st.base = touched
		}
		st.mu.Unlock()
	}
	st.committed.Store(changes)
	return m.outcome(st)
}

func (m *Manager) rotationDue(st *state) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.base == nil || st.intent != intentKeep {
		return false
	}
	if st.base.meta.user != "" && st.base.id.tag == "" {
		return true // moved from the legacy store, whose keys show its IDs
	}
	return m.rotateEvery > 0 && millis(m.store.now())-st.base.meta.issued >= m.rotateEvery.Milliseconds()
}

// adopt takes what other requests had saved into the values of this one, except
// where another goroutine of this one has put something else since the commit.
func (m *Manager) adopt(ctx context.Context, st *state) error {
	st.mu.Lock()
	a, dead := st.adopted, st.dead
	st.adopted = nil
	st.mu.Unlock()
	if dead {
		// What the session held must not get into that of who logs in next.
		return m.scs.Clear(ctx)
	}
	if a == nil {
		return nil
	}
	untouched := func(k string) bool {
		was, had := a.mine[k]
		return had == m.scs.Exists(ctx, k) && m.store.same(was, m.scs.Get(ctx, k))
	}
	for k := range a.mine {
		if _, ok := a.saved[k]; !ok && untouched(k) {
			m.scs.Remove(ctx, k)
		}
	}
	for k, v := range a.saved {
		if was, had := a.mine[k]; (!had || !m.store.same(was, v)) && untouched(k) {
			m.scs.Put(ctx, k, v)
		}
	}
	return nil
}

func (m *Manager) outcome(st *state) (Outcome, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	var o Outcome
	switch {
	case st.resend && st.base != nil:
		value, err := m.signer.sign(st.base.id.cookie())
		if err != nil {
			return Outcome{}, err
		}
		o = Outcome{Action: CookieSet, Value: value}
		if st.base.meta.persistent {
			o.Expires = fromMillis(st.base.meta.deadline)
		}
	case st.expire:
		o.Action = CookieDelete
	}
	st.resend, st.expire = false, false
	return o, nil
}

// Pending tells whether the session has changes that no Commit has saved.
func (m *Manager) Pending(ctx context.Context) bool {
	st := m.store.state(ctx)
	if st == nil {
		return false
	}
	f := st.snapshot()
	switch {
	case f.intent != intentKeep:
		return true
	case f.dead:
		return false
	case f.base != nil && f.meta != f.base.meta:
		return true
	case m.scs.Status(ctx) != scs.Modified || st.changes.Load() == st.committed.Load():
		return false
	}
	// Something was put, but it may be what was there.
	values := make(map[string]any)
	for _, k := range m.scs.Keys(ctx) {
		values[k] = m.scs.Get(ctx, k)
	}
	if f.base == nil {
		return len(values) > 0
	}
	b, err := m.store.codec.Encode(time.Time{}, values)
	return err != nil || !bytes.Equal(b, f.base.values)
}
