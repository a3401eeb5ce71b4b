package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// legacy is another scs store whose sessions go on here.
type legacy struct {
	Legacy
	timeout time.Duration
	slots   chan struct{}
	longer  sync.Once // a session with longer left than Lifetime has been reported
}

const (
	// scsRememberMe is where scs keeps its RememberMe, among the values.
	scsRememberMe = "__rememberMe"
	// legacyCalls bounds the calls to the store that are under way: one that is deaf to
	// its context holds a goroutine each until it answers.
	legacyCalls = 64
	// legacyTokenLen is that of the tokens of scs, 256 bits in base64url.
	legacyTokenLen = 43
	// legacySkew is how far the clocks of old and new servers may differ without a word.
	legacySkew = time.Minute
)

var (
	errLegacyTimeout = errors.New("no answer from the legacy store in time")
	errLegacyBusy    = fmt.Errorf("%d calls to the legacy store are waiting for an answer", legacyCalls)
)

func newLegacy(c checked) *legacy {
	if c.Legacy.Store == nil {
		return nil
	}
	return &legacy{Legacy: c.Legacy, timeout: c.Timeout, slots: make(chan struct{}, legacyCalls)}
}

// HasLegacy reports whether Config.Legacy has a Store.
func (m *Manager) HasLegacy() bool { return m.legacy != nil }

// isLegacyToken reports whether s may be a token of scs. Other values are not asked for:
// a sibling host may set a cookie of the legacy name to a value of ours.
func isLegacyToken(s string) bool {
	if len(s) != legacyTokenLen {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// loadLegacy looks for a session of the legacy store and copies it. Under parallel first
// requests one makes the copy, and the others find it. A copy that was logged out, or
// whose user logged in anew, has left a tombstone in its place, which stands until the
// legacy session ends.
func (m *Manager) loadLegacy(ctx context.Context, st *state, legacyToken string) error {
	b, ok, err := m.legacy.find(ctx, legacyToken)
	if err != nil {
		return unavailable(ctx, err)
	}
	if !ok {
		return nil
	}
	r, err := m.copied(ctx, legacyToken, b)
	if err != nil {
		if errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		m.records.reportUnreadable(ctx, "legacy session: "+err.Error())
		return nil
	}
	a, err := m.copy(ctx, r)
	switch {
	case err == ErrStaleLogin: // its user has ended all sessions since
		st.ended = cmp.Or(st.ended, Revoked)
		return nil
	case err == ErrTooManySessions:
		return nil
	}
	if wrongType(err) { // the key is in other use: there is no copy, and the visitor can still log in
		m.records.reportUnreadable(ctx, "the key of its copy is no hash")
		return nil
	}
	if outOfMemory(err) { // nothing is in the way of the copy: it is shown, and can be logged out
		st.loaded(r)
		st.uncopied = r
		return nil
	}
	if err != nil {
		return err
	}
	f := found{what: live, record: r}
	if a.outcome == refused {
		if f, err = m.records.met(ctx, r.id, a); err != nil {
			return err
		}
	}
	switch {
	case f.record != nil:
		st.loaded(f.record)
		st.stood = a.outcome != refused
	case f.what == ended:
		st.dead = true
		fallthrough
	default:
		st.ended = cmp.Or(st.ended, f.reason)
	}
	return nil
}

// copy makes the record of a legacy session. One with a user is a login like others: any
// fence refuses it, since nobody knows when it began, and it counts as one of the user's.
func (m *Manager) copy(ctx context.Context, r *record) (reply, error) {
	if r.who.user == "" {
		return m.records.create(ctx, r)
	}
	return m.records.login(ctx, r, entry{most: m.records.accounts.Max, loaded: m.records.redis.Now()})
}

// copied returns the record of a legacy session.
func (m *Manager) copied(ctx context.Context, legacyToken string, b []byte) (*record, error) {
	deadline, values, err := decodeLegacy(b)
	if err != nil {
		return nil, err
	}
	rememberMe, _ := values[scsRememberMe].(bool)
	delete(values, scsRememberMe)
	changes := make(map[string][]byte, len(values))
	for key, v := range values {
		if changes[key], err = codec.Encode(key, v); err != nil {
			m.records.log.LogAttrs(ctx, slog.LevelError, "session: a value of a legacy session cannot be stored and is left out", slog.String("key", key))
			delete(changes, key)
		}
	}
	user := ""
	if m.legacy.User != nil {
		user = m.legacy.User(values)
	}
	if len(user) > maxUserID {
		return nil, fmt.Errorf("user ID of %d bytes, at most %d are possible", len(user), maxUserID)
	}
	r := &record{id: m.records.keys.copied(legacyToken, user), who: who{user: user}, values: codec.Values{}.Change(changes)}
	r.head = head{persistent: rememberMe || m.persistent, copied: true, handle: newHandle()}
	switch {
	case rememberMe || user != "" && r.head.persistent:
		r.head.kind = remembered
	case user != "":
		r.head.kind = login
	}
	now, err := m.records.now(ctx, r.id)
	if err != nil {
		return nil, err
	}
	left := time.Until(deadline)
	if left > m.legacy.Lifetime+legacySkew {
		m.legacy.longer.Do(func() {
			m.records.log.LogAttrs(ctx, slog.LevelError, "session: a legacy session has longer left than Legacy.Lifetime: once that is over, what was ended can come back",
				slog.Duration("left", left.Round(time.Second)), slog.Duration("lifetime", m.legacy.Lifetime))
		})
	}
	r.times.deadline = max(1, now+min(left, m.legacy.Lifetime).Microseconds()) // 0 would be none
	if user != "" && r.times.deadline-m.legacy.Lifetime.Microseconds() < m.records.notBefore {
		return nil, errors.New("it began before Accounts.NotBefore")
	}
	return r, nil
}

// decodeLegacy reads what scs has written. A few bytes may claim a map of a billion
// entries, which gob would make, and a registered type may decode itself carelessly.
func decodeLegacy(b []byte) (deadline time.Time, values map[string]any, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("panic while decoding")
		}
	}()
	plain, err := codec.CheckLegacy(b)
	if err != nil {
		return time.Time{}, nil, errors.New("not gob")
	}
	if deadline, values, err = (scs.GobCodec{}).Decode(plain); err != nil {
		return time.Time{}, nil, errors.New("not gob of known types")
	}
	return deadline, values, nil
}

func (l *legacy) find(ctx context.Context, token string) ([]byte, bool, error) {
	var b []byte // read only when f has returned: it may do so later than bounded
	var ok bool
	err := l.bounded(ctx, func(ctx context.Context) (err error) {
		if c, is := l.Store.(scs.CtxStore); is {
			b, ok, err = c.FindCtx(ctx, token)
		} else {
			b, ok, err = l.Store.Find(token)
		}
		return without(token, err)
	})
	if err != nil {
		return nil, false, err
	}
	return b, ok, nil
}

func (l *legacy) delete(ctx context.Context, token string) error {
	return l.bounded(ctx, func(ctx context.Context) error {
		if c, is := l.Store.(scs.CtxStore); is {
			return without(token, c.DeleteCtx(ctx, token))
		}
		return without(token, l.Store.Delete(token))
	})
}

// check finds and deletes a session that does not exist.
func (l *legacy) check(ctx context.Context) error {
	raw := make([]byte, base64.RawURLEncoding.DecodedLen(legacyTokenLen))
	_, _ = rand.Read(raw)
	token := base64.RawURLEncoding.EncodeToString(raw)
	_, _, err := l.find(ctx, token)
	return errors.Join(err, l.delete(ctx, token))
}

// without keeps an error that shows the token of a session to itself.
func without(token string, err error) error {
	if err != nil && strings.Contains(err.Error(), token) {
		return fmt.Errorf("the legacy store's error, a %T, names the session, and is not shown", err)
	}
	return err
}

// bounded waits for f no longer than the timeout: f may be deaf to its context, as
// scs/redisstore is. Its goroutine ends when f does.
func (l *legacy) bounded(ctx context.Context, f func(context.Context) error) error {
	within, cancel := context.WithTimeoutCause(ctx, l.timeout, errLegacyTimeout)
	defer cancel()
	select {
	case l.slots <- struct{}{}:
	case <-within.Done(): // a store that is merely busy frees one in time
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return errLegacyBusy
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-l.slots }()
		done <- f(within)
	}()
	select {
	case err := <-done:
		return err
	case <-within.Done():
		return context.Cause(within)
	}
}
