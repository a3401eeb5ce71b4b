package session

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

const troubleTimeout = 300 * time.Millisecond

// inTime runs f until it once took at most the timeout and a tenth: a busy
// machine may delay one attempt, but not each of five.
func inTime(t *testing.T, what string, timeout time.Duration, f func()) {
	t.Helper()
	var took time.Duration
	for range 5 {
		start := time.Now()
		f()
		if took = time.Since(start); took <= timeout+timeout/10 {
			return
		}
	}
	t.Errorf("%s took %v with a timeout of %v", what, took, timeout)
}

// trouble is a server behind a proxy, and a session in it.
type trouble struct {
	server *redistest.Server
	proxy  *redistest.Proxy
	m      *Manager
	b      *browser
	log    *logged
}

func newTrouble(t *testing.T, set ...func(*redis.Options)) *trouble {
	tr := &trouble{server: redistest.Start(t), log: &logged{}}
	tr.proxy = redistest.NewProxy(t, tr.server.Addr())
	opts := &redis.Options{Addr: tr.proxy.Addr()}
	for _, f := range set {
		f(opts)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	m, err := New(client, Config{Timeout: troubleTimeout, Secrets: [][]byte{secret}, Logger: tr.log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	tr.m, tr.b = m, begin(t, m, "ann")
	return tr
}

// recovers tells whether the session is back soon, and for good.
func (tr *trouble) recovers(t *testing.T, user string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		ctx, err := tr.m.Load(t.Context(), tr.b.cookie)
		if err == nil {
			if got := tr.m.UserID(ctx); got != user {
				t.Errorf("after the trouble the user is %q, want %q", got, user)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still in trouble: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for i := range 20 {
		tr.b.request(func(ctx context.Context) { tr.m.Put(ctx, "after", i) })
	}
}

func TestRedisInTrouble(t *testing.T) {
	for _, tc := range []struct {
		name   string
		break_ func(tr *trouble)
		heal   func(tr *trouble)
		fails  bool // also what finds a connection open
	}{
		{"refused", func(tr *trouble) { tr.server.Kill() }, func(tr *trouble) { tr.server.Restart() }, true},
		{"cut", func(tr *trouble) { tr.proxy.Cut() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"black-holed", func(tr *trouble) { tr.proxy.BlackHole() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"slow", func(tr *trouble) { tr.proxy.Delay(10 * time.Second) }, func(tr *trouble) { tr.proxy.Heal(); tr.proxy.Disconnect() }, true},
		{"garbage", func(tr *trouble) { tr.proxy.Garbage() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"replies lost", func(tr *trouble) { tr.proxy.LoseReply() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"replies cut", func(tr *trouble) { tr.proxy.CutReply() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"paused", func(tr *trouble) { tr.server.Pause() }, func(tr *trouble) { tr.server.Resume() }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := newTrouble(t)
			m, user := tr.m, "ann"
			if tc.name == "refused" {
				user = "" // that server keeps nothing on disk
			}
			changed, rotated, loggedIn, loggedOut := load(t, m, tr.b.cookie), load(t, m, tr.b.cookie), load(t, m, tr.b.cookie), load(t, m, tr.b.cookie)
			tc.break_(tr)
			defer tc.heal(tr)
			expect := func(what string, timeout time.Duration, f func() error) {
				t.Helper()
				inTime(t, what, timeout, func() {
					if err := f(); !errors.Is(err, ErrUnavailable) {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			expect("Load", troubleTimeout, func() error { _, err := m.Load(t.Context(), tr.b.cookie); return err })
			m.Put(changed, "k", "changed")
			expect("Commit", troubleTimeout, func() error { _, err := m.Commit(changed); return err })
			_ = m.Rotate(rotated)
			expect("Rotate", troubleTimeout, func() error { _, err := m.Commit(rotated); return err })
			_ = m.Login(loggedIn, "ann")
			expect("Login", troubleTimeout, func() error { _, err := m.Commit(loggedIn); return err })
			if tc.name != "replies lost" && tc.name != "replies cut" && tc.name != "paused" { // these log out
				expect("Logout", troubleTimeout, func() error { return m.Logout(loggedOut) })
				if m.UserID(loggedOut) != "ann" {
					t.Error("a failed logout unloaded the session")
				}
			}
			if tc.name == "paused" || tc.name == "replies lost" || tc.name == "replies cut" {
				// Whatever of it was executed: the session is there, or nobody is.
				user = "*"
			}
			// Who has no cookie is served.
			inTime(t, "a visitor without a cookie", troubleTimeout, func() {
				ctx, err := m.Load(t.Context(), "")
				if err != nil || m.UserID(ctx) != "" {
					t.Error(err)
				}
				if o, err := m.Commit(ctx); err != nil || o != (Outcome{}) {
					t.Errorf("%+v, %v", o, err)
				}
			})
			// Who gave up gets his own error, not Redis's.
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := m.Load(gone, tr.b.cookie); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
				t.Errorf("cancelled: %v", err)
			}
			tc.heal(tr)
			if user == "*" {
				tr.b = &browser{t, m, ""}
				tr.b.request(func(ctx context.Context) {
					for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
						_ = m.Login(ctx, "ann")
						if o, err := m.Commit(ctx); err == nil {
							tr.b.take(o)
							break
						}
					}
				})
				user = "ann"
			}
			tr.recovers(t, user)
		})
	}
}

// TestTroubleInMidRotation has the network fail under a rotation, with a real
// connection rather than a hook.
func TestTroubleInMidRotation(t *testing.T) {
	tr := newTrouble(t)
	for _, tc := range []struct {
		name string
		do   func(commands ...string)
	}{
		{"cut", tr.proxy.Cut},
		{"reply cut", tr.proxy.CutReply},
		{"reply lost", tr.proxy.LoseReply},
	} {
		for round := range 3 {
			ctx := load(t, tr.m, tr.b.cookie)
			_ = tr.m.Rotate(ctx)
			tr.m.Put(ctx, "rotated", fmt.Sprint(tc.name, round))
			tc.do("evalsha")
			if _, err := tr.m.Commit(ctx); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: %v", tc.name, err)
			}
			tr.proxy.Heal()
			tr.recovers(t, "ann")
		}
	}
}

func TestTouchesThatFailFailNothing(t *testing.T) {
	clock := newClock()
	b := mini(t)
	log := &logged{}
	hook := countCommands(b.Client) // hooks come before the Manager
	m := manager(t, b, Config{now: clock.now, Logger: log.logger()})
	v := begin(t, m, "ann")
	for _, f := range []fate{fateRefused, fateReplyLost} {
		clock.add(10 * time.Minute)
		hook.reset(func(_ int, command string) fate {
			if command == "touch" {
				return f
			}
			return fateSent
		})
		v.request(func(ctx context.Context) {
			if m.UserID(ctx) != "ann" {
				t.Error("not read")
			}
		})
	}
	if log.String() == "" {
		t.Error("not logged")
	}
}

// TestWrongTypeAtTheKey has somebody else write to our keys.
func TestWrongTypeAtTheKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		for _, legacy := range []bool{false, true} {
			cfg := Config{}
			if legacy {
				cfg.Legacy = goStore{rb.Client, "scs:session:"}
			}
			m := manager(t, rb, cfg)
			spoil := func(cookie string) {
				key := keyOf(t, m, cookie)
				rb.Client.Del(t.Context(), key)
				rb.Client.HSet(t.Context(), key, "a", "b")
				rb.Client.Expire(t.Context(), key, time.Hour)
			}
			for name, do := range map[string]func(ctx context.Context) error{
				"save":   func(ctx context.Context) error { m.Put(ctx, "x", 1); return nil },
				"rotate": func(ctx context.Context) error { return m.Rotate(ctx) },
				"logout": func(ctx context.Context) error { return m.Logout(ctx) },
			} {
				b := begin(t, m, "")
				ctx := load(t, m, b.cookie)
				spoil(b.cookie)
				if err := do(ctx); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if o, err := m.Commit(ctx); err != nil || o.Action == CookieSet {
					t.Errorf("%s: %+v, %v", name, o, err)
				}
				if got := look(t, m, b.cookie); got.user != "" || got.values != "map[]" {
					t.Errorf("%s: %+v", name, got)
				}
			}
			b := begin(t, m, "")
			ctx := load(t, m, b.cookie)
			spoil(b.cookie)
			if err := m.Login(ctx, "ann"); err != nil {
				t.Fatal(err)
			}
			if o := commit(t, m, ctx); look(t, m, o.Value).user != "ann" {
				t.Error("cannot log in")
			}
			if legacy { // the place of a legacy session is taken
				token := legacySession(t, cfg.Legacy, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
				key := newID(m.store.prefix, token, "").key
				rb.Client.HSet(t.Context(), key, "a", "b")
				rb.Client.Expire(t.Context(), key, time.Hour)
				if got := look(t, m, token); got.user != "" {
					t.Errorf("%+v", got)
				}
			}
		}
	})
}

// TestFullRedis has no memory left: nobody can be let in, but out.
func TestFullRedis(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := server.Client()
	m, err := New(client, Config{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, m, "ann")
	ctx := load(t, m, b.cookie)
	if err := client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	m.Put(ctx, "x", 1)
	if _, err := m.Commit(ctx); !errors.Is(err, ErrUnavailable) {
		t.Errorf("save: %v", err)
	}
	b.request(func(ctx context.Context) {
		if m.UserID(ctx) != "ann" {
			t.Error("not read")
		}
		if err := m.Logout(ctx); err != nil {
			t.Errorf("logout: %v", err)
		}
	})
	if err := client.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if got := look(t, m, keyless(ctx, m)); got.user != "" {
		t.Errorf("%+v", got)
	}
}

// keyless is the cookie of a loaded session.
func keyless(ctx context.Context, m *Manager) string { return m.store.state(ctx).base.id.cookie() }

// TestClientSideCache has the client keep records in process.
func TestClientSideCache(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	cached := func() *Manager {
		client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), Protocol: 3, ClientSideCache: redis.NewLocalCache(redis.CacheConfig{})})
		t.Cleanup(func() { client.Close() })
		m, err := New(client, Config{Timeout: troubleTimeout})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	a, b := cached(), cached()
	var stale, told atomic.Int64
	inParallel(200, func(i int) {
		v := begin(t, a, "ann")
		for _, m := range []*Manager{a, b} { // fill both caches
			for range 3 {
				if look(t, m, v.cookie).user != "ann" {
					t.Error("not read")
				}
			}
		}
		cookie := v.cookie
		v.request(func(ctx context.Context) { _ = a.Logout(ctx) })
		if look(t, a, cookie).user != "" {
			stale.Add(1)
		}
		start := time.Now()
		for look(t, b, cookie).user != "" && time.Since(start) < 5*time.Second {
			runtime.Gosched()
		}
		told.Store(max(told.Load(), int64(time.Since(start))))
		// What a cache still holds cannot be saved.
		ctx := load(t, b, cookie)
		b.Put(ctx, "x", 1)
		if o := commit(t, b, ctx); b.UserID(ctx) != "" || o.Action == CookieSet && look(t, b, o.Value).user != "" {
			t.Error("saved from a cache")
		}
	})
	if n := stale.Load(); n > 0 {
		t.Errorf("%d of 200 sessions were still read by the process that had logged them out", n)
	}
	if d := time.Duration(told.Load()); d > time.Second {
		t.Errorf("another process saw a session for %v after its logout", d)
	}
	t.Logf("another process saw a session for up to %v after its logout", time.Duration(told.Load()))

	v := begin(t, a, "ann")
	proxy.BlackHole()
	defer proxy.Heal()
	inTime(t, "Load", troubleTimeout, func() {
		if _, err := b.Load(t.Context(), v.cookie); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	})
}
