package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// goStore does what scs/goredisstore does.
type goStore struct {
	client redis.UniversalClient
	prefix string
}

func (s goStore) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, err := s.client.Get(ctx, s.prefix+token).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	return b, err == nil, err
}

func (s goStore) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return s.client.Set(ctx, s.prefix+token, b, time.Until(expiry)).Err()
}

func (s goStore) DeleteCtx(ctx context.Context, token string) error {
	return s.client.Del(ctx, s.prefix+token).Err()
}

func (s goStore) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}
func (s goStore) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}
func (s goStore) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

// legacySession puts a session into a store as scs does, and returns its cookie.
func legacySession(t testing.TB, store scs.Store, values map[string]any, deadline time.Time) string {
	t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	token := base64.RawURLEncoding.EncodeToString(raw)
	b, err := scs.GobCodec{}.Encode(deadline, values)
	if err == nil {
		err = store.Commit(token, b, deadline)
	}
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// eachLegacy runs f with both kinds of legacy store, with and without secrets.
func eachLegacy(t *testing.T, f func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config)) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		for _, secrets := range [][][]byte{nil, {secret}} {
			stores := map[string]scs.Store{"goredisstore": goStore{rb.Client, "scs:session:"}}
			if rb.Name != "cluster" { // which redigo does not know
				pool := &redigo.Pool{Dial: func() (redigo.Conn, error) { return redigo.Dial("tcp", rb.Addrs[0]) }}
				defer pool.Close()
				stores["redisstore"] = redisstore.New(pool)
			}
			for name, store := range stores {
				t.Run(fmt.Sprintf("%s, secrets=%d", name, len(secrets)), func(t *testing.T) {
					f(t, rb, store, Config{Legacy: store, Secrets: secrets, Timeout: 5 * time.Second})
					redistest.AssertAllTTL(t, rb.Client)
				})
			}
		}
	})
}

func userValue(values map[string]any) string {
	user, _ := values["user"].(string)
	return user
}

func TestLegacySessionsMove(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		m := manager(t, rb, cfg)
		end := time.Now().Add(2 * time.Hour).Truncate(time.Millisecond)
		values := map[string]any{"user": "ann", "n": 7, "list": []string{"a"}, scsRememberMe: true}
		token := legacySession(t, store, values, end)
		b := &browser{t, m, token}
		// A mere read moves it.
		o := b.request(func(ctx context.Context) {
			if m.GetString(ctx, "user") != "ann" || m.GetInt(ctx, "n") != 7 || m.UserID(ctx) != "" || m.Exists(ctx, scsRememberMe) {
				t.Errorf("%v", valuesOf(m, ctx))
			}
			if got := m.Info(ctx); !got.Expires.Equal(end) || !got.Persistent {
				t.Errorf("%+v, want the end %v", got, end)
			}
		})
		if o.Action != CookieSet || !o.Expires.Equal(end) {
			t.Errorf("%+v", o)
		}
		if _, ok, err := store.Find(token); ok || err != nil {
			t.Errorf("it is still in the legacy store, %v", err)
		}
		// Both cookies work, and only one session is there.
		for _, c := range []string{token, b.cookie} {
			if got := look(t, m, c); got.values != "map[list:[a] n:7 user:ann]" {
				t.Errorf("%+v", got)
			}
		}
		// A login there is one here.
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		if got := look(t, m, token); got.user != "" || got.values != "map[]" {
			t.Errorf("the legacy cookie after a login: %+v", got)
		}

		// Sessions end at Lifetime here, whatever they were promised there.
		token = legacySession(t, store, values, time.Now().Add(1000*time.Hour))
		if got := m.Info(load(t, m, token)).Expires; got.After(time.Now().Add(24 * time.Hour)) {
			t.Errorf("ends at %v", got)
		}
		// One that has ended does not move, nor does what is no session.
		token = legacySession(t, store, values, time.Now().Add(time.Hour))
		rb.Client.Set(t.Context(), "scs:session:"+token, "no gob", time.Hour)
		if got := look(t, m, token); got.values != "map[]" {
			t.Errorf("%+v", got)
		}
		b = &browser{t, m, token}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		if look(t, m, b.cookie).user != "ann" {
			t.Error("cannot log in over an unreadable legacy session")
		}
	})
}

func TestLegacyUsers(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.LegacyUser = userValue
		m := manager(t, rb, cfg)
		token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(time.Hour))
		// A page with many parts asks with the old cookie, all at once.
		var mu sync.Mutex
		var cookies []string
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				b := &browser{t, m, token}
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" || !m.Info(ctx).AuthenticatedAt.IsZero() {
						t.Errorf("%+v", m.Info(ctx))
					}
					m.Put(ctx, fmt.Sprint("part", i), i)
				})
				mu.Lock()
				defer mu.Unlock()
				cookies = append(cookies, b.cookie)
			})
		}
		wg.Wait()
		first := look(t, m, cookies[0])
		for _, c := range cookies {
			if got := look(t, m, c); got != first || c == token {
				t.Errorf("%+v, want %+v", got, first)
			}
		}
		ctx := load(t, m, cookies[0])
		if n := len(m.Keys(ctx)); n != 2+16 || m.UserID(ctx) != "ann" {
			t.Errorf("%d keys, user %q", n, m.UserID(ctx))
		}
		if st := m.store.state(ctx); st.base.id.tag != userTag("ann") {
			t.Error("the new ID is not one of the user's")
		}
		(&browser{t, m, cookies[0]}).request(func(ctx context.Context) { _ = m.Logout(ctx) })
		for _, c := range append(cookies, token) {
			if got := look(t, m, c); got.user != "" || got.values != "map[]" {
				t.Errorf("after logout: %+v", got)
			}
		}
	})
}

// TestLegacyMovesOnce has many first requests at once, and looks at each.
func TestLegacyMovesOnce(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		m := manager(t, rb, cfg)
		for round := range 15 {
			token := legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					(&browser{t, m, token}).request(func(ctx context.Context) {
						if m.GetString(ctx, "k") != "v" {
							t.Errorf("round %d: a first request found nothing", round)
						}
						m.Put(ctx, fmt.Sprint(i), i)
					})
				})
			}
			wg.Wait()
			if n := len(m.Keys(load(t, m, token))); n != 1+8 {
				t.Errorf("round %d: %d keys", round, n)
			}
		}
	})
}

// TestLegacyInterleavings runs a logout, or all that makes a session move on,
// in each gap of a first request: the session neither comes back nor is lost.
func TestLegacyInterleavings(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.LegacyUser = userValue
		m := manager(t, rb, cfg)
		client := rb.NewClient(t)
		hook := countCommands(client)
		slow, err := New(client, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, y := range []act{actSave, actRotate, actLoginBob, actLogout} {
			for gap := 1; ; gap++ {
				where := fmt.Sprintf("%s in gap %d", y.name, gap)
				token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(time.Hour))
				bx, by := &browser{t, slow, token}, &browser{t, m, token}
				ran := false
				hook.reset(func(n int, _ string) fate {
					if n == gap && !ran {
						ran = true
						by.request(func(ctx context.Context) {
							if m.UserID(ctx) != "ann" {
								t.Errorf("%s: not found", where)
							}
							if err := y.do(m, ctx); err != nil {
								t.Error(err)
							}
						})
					}
					return fateSent
				})
				bx.request(func(ctx context.Context) { slow.Put(ctx, "x", 1) })
				hook.reset(nil)
				if !ran {
					break
				}
				if _, ok, _ := store.Find(token); ok {
					t.Errorf("%s: still in the legacy store", where)
				}
				x, first := look(t, m, bx.cookie), look(t, m, token)
				switch y.name {
				case actLogout.name:
					if x.user != "" || first.user != "" || first.values != "map[]" {
						t.Errorf("%s: came back: %+v and %+v", where, x, first)
					}
				case actLoginBob.name:
					if x.user != "" || first.user != "" || look(t, m, by.cookie).user != "bob" {
						t.Errorf("%s: %+v and %+v", where, x, first)
					}
				default:
					if y := look(t, m, by.cookie); x.user != "ann" || x != y || x != first {
						t.Errorf("%s: not one session: %+v, %+v and %+v", where, x, y, first)
					}
				}
			}
		}
	})
}

// TestCrashesOfALegacyMove lets each command of a first request fail, in both
// servers: the session is there afterwards, and a logout ends it for good.
func TestCrashesOfALegacyMove(t *testing.T) {
	rb := mini(t)
	legacyClient := rb.NewClient(t)
	store := goStore{legacyClient, "scs:session:"}
	cfg := Config{Legacy: store, LegacyUser: userValue}
	m := manager(t, rb, cfg)
	client := rb.NewClient(t)
	hook, legacyHook := countCommands(client), countCommands(legacyClient)
	failing, err := New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range []fate{fateRefused, fateReplyLost} {
		for _, h := range []*commands{hook, legacyHook} {
			for k := 1; ; k++ {
				token := legacySession(t, goStore{rb.Client, "scs:session:"}, map[string]any{"user": "ann"}, time.Now().Add(time.Hour))
				failed := false
				h.reset(func(n int, _ string) fate {
					if n == k {
						failed = true
						return f
					}
					return fateSent
				})
				ctx, err := failing.Load(t.Context(), token)
				if err == nil {
					_, err = failing.Commit(ctx)
				}
				h.reset(nil)
				if !failed {
					break
				}
				n++
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("command %d, fate %d: %v", k, f, err)
				}
				b := &browser{t, m, token}
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" {
						t.Errorf("command %d, fate %d: the session is lost", k, f)
					}
				})
				b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
				rb.Mini.FastForward(time.Minute) // past the grace
				if got := look(t, m, token); got.user != "" {
					t.Errorf("command %d, fate %d: came back after logout: %+v", k, f, got)
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d crashes", n)
	}
}

// deafStore hangs, whatever its context says.
type deafStore struct {
	scs.Store
	until chan struct{}
}

func (s deafStore) Find(token string) ([]byte, bool, error) {
	<-s.until
	return nil, false, nil
}

func TestDeafLegacyStore(t *testing.T) {
	s := deafStore{until: make(chan struct{})}
	defer close(s.until)
	m := manager(t, mini(t), Config{Legacy: s, Timeout: 100 * time.Millisecond})
	inTime(t, "Load", 100*time.Millisecond, func() {
		if _, err := m.Load(t.Context(), base64.RawURLEncoding.EncodeToString(make([]byte, 32))); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	})
	// A session of ours does not ask it.
	b := begin(t, m, "")
	look(t, m, b.cookie)
}
