package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

var (
	secret    = []byte("0123456789abcdef0123456789abcdef")
	keySecret = []byte("a key secret of 32 bytes, always")
)

// browser sends requests with the cookie it holds.
type browser struct {
	t      testing.TB
	m      *Manager
	cookie string
}

// request runs a request and takes its cookie, as a browser would.
func (b *browser) request(handler func(ctx context.Context)) Outcome {
	b.t.Helper()
	ctx := load(b.t, b.m, b.cookie)
	handler(ctx)
	o := finish(b.t, b.m, ctx)
	b.take(o)
	return o
}

// take does with the cookie what a response says.
func (b *browser) take(o Outcome) {
	switch o.Action {
	case CookieSet:
		b.cookie = o.Value
	case CookieDelete:
		b.cookie = ""
	}
}

func load(t testing.TB, m *Manager, cookies ...string) context.Context {
	t.Helper()
	ctx, err := m.Load(context.Background(), cookies...)
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

func finish(t testing.TB, m *Manager, ctx context.Context) Outcome {
	t.Helper()
	o, err := m.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// manager returns a Manager over a backend. With Secrets it has a KeySecret, too.
func manager(t testing.TB, b redistest.Backend, cfg Config) *Manager {
	t.Helper()
	return managerOver(t, b.Client, cfg)
}

func managerOver(t testing.TB, client redis.UniversalClient, cfg Config) *Manager {
	t.Helper()
	if len(cfg.Secrets) > 0 && cfg.KeySecret == nil {
		cfg.KeySecret = keySecret
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 4 * time.Second // the machine may be busy; tests take an end to be past after 10 s
	}
	m, err := New(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	// Each call is made, also after one that got no answer.
	m.records.redis = m.records.redis.Persistent()
	return m
}

// advance moves Redis's clock, and has the Managers ask for it.
func advance(t testing.TB, b redistest.Backend, d time.Duration, managers ...*Manager) {
	t.Helper()
	b.Advance(t, d)
	for _, m := range managers {
		m.records.clocks.forget()
	}
}

func (c *clocks) forget() {
	for i := range c.of {
		c.of[i].sample.Store(nil)
		past := &c.of[i].past
		past.mu.Lock()
		past.list = nil
		past.mu.Unlock()
	}
}

// idOf is the ID that a cookie names.
func idOf(t testing.TB, m *Manager, cookie string) id {
	t.Helper()
	v, _, ok := m.signer.verify(cookie)
	if !ok {
		t.Fatalf("cookie %q cannot be read", cookie)
	}
	return m.records.keys.at(v.split())
}

// each runs a test on every kind of Redis, plain and sealed.
func each(t *testing.T, cfg Config, f func(t *testing.T, b redistest.Backend, m *Manager)) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, secrets := range [][][]byte{nil, {secret}} {
			if b.Mini != nil && secrets == nil && os.Getenv("GATEHOUSE_TEST_REDIS") != "off" {
				continue // as sealed
			}
			if redistest.RaceDetector && b.Name == "cluster" && (secrets == nil || !redistest.Turn(2)) {
				continue // as on one server
			}
			t.Run(fmt.Sprintf("secrets=%d", len(secrets)), func(t *testing.T) {
				cfg := cfg
				cfg.Secrets = secrets
				f(t, b, manager(t, b, cfg))
				redistest.AssertAllTTL(t, b.Client)
			})
		}
	})
}

func TestLifeCycle(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		if o := b.request(func(ctx context.Context) {}); o != (Outcome{}) {
			t.Fatalf("a visitor who changes nothing: %+v", o)
		}
		b.request(func(ctx context.Context) { m.Put(ctx, "cart", "book") })
		anonymous := b.cookie
		if anonymous == "" {
			t.Fatal("no cookie after a Put")
		}
		b.request(func(ctx context.Context) {
			if got := m.GetString(ctx, "cart"); got != "book" {
				t.Fatalf("cart %q", got)
			}
			if err := m.Login(ctx, "ann"); err != nil {
				t.Fatal(err)
			}
		})
		if b.cookie == anonymous {
			t.Fatal("login kept the ID")
		}
		old := &browser{t, m, anonymous}
		if o := old.request(func(ctx context.Context) {
			if m.UserID(ctx) != "" || m.GetString(ctx, "cart") != "" {
				t.Fatal("the old ID shows the new session")
			}
			m.Put(ctx, "x", 1)
		}); o != (Outcome{}) {
			t.Fatalf("the old ID sets a cookie: %+v", o)
		}
		beforeRotate := b.cookie
		b.request(func(ctx context.Context) {
			if m.UserID(ctx) != "ann" || m.GetString(ctx, "cart") != "book" {
				t.Fatalf("after login: user %q cart %q", m.UserID(ctx), m.GetString(ctx, "cart"))
			}
			if err := m.Rotate(ctx); err != nil {
				t.Fatal(err)
			}
		})
		if b.cookie == beforeRotate {
			t.Fatal("rotate kept the ID")
		}
		slow := &browser{t, m, beforeRotate}
		slow.request(func(ctx context.Context) { m.Put(ctx, "slow", true) })
		if b.request(func(ctx context.Context) {
			if !m.GetBool(ctx, "slow") || m.UserID(ctx) != "ann" {
				t.Fatal("a write with the rotated ID is lost")
			}
		}) != (Outcome{}) {
			t.Fatal("a read sets a cookie")
		}
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "bob"); err != nil {
				t.Fatal(err)
			}
			if len(m.Keys(ctx)) != 0 {
				t.Fatalf("bob sees ann's %v", m.Keys(ctx))
			}
		})
		last := b.cookie
		if o := b.request(func(ctx context.Context) {
			if err := m.Logout(ctx); err != nil {
				t.Fatal(err)
			}
		}); o.Action != CookieDelete {
			t.Fatalf("logout: %+v", o)
		}
		for _, c := range []string{anonymous, beforeRotate, last} {
			if ctx := load(t, m, c); m.UserID(ctx) != "" || len(m.Keys(ctx)) != 0 {
				t.Fatal("a session came back after logout")
			}
		}
	})
}

func TestParallelWritersLoseNothing(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		var wg sync.WaitGroup
		const n = 200
		for i := range n {
			wg.Go(func() {
				(&browser{t, m, b.cookie}).request(func(ctx context.Context) { m.Put(ctx, fmt.Sprint(i), i) })
			})
		}
		wg.Wait()
		if ctx := load(t, m, b.cookie); len(m.Keys(ctx)) != n {
			t.Errorf("%d of %d keys", len(m.Keys(ctx)), n)
		}
		t.Logf("%+v", m.Stats())
	})
}

// mini is a Redis in process.
func mini(t testing.TB) redistest.Backend {
	t.Helper()
	s := miniredis.RunT(t)
	c := redis.NewClient(&redis.Options{Addr: s.Addr()})
	t.Cleanup(func() { c.Close() })
	return redistest.Backend{Name: "miniredis", Client: c, Addrs: []string{s.Addr()}, Mini: s}
}

// begin returns a browser with a session of user, and a value "k".
func begin(t testing.TB, m *Manager, user string) *browser {
	t.Helper()
	for tries := 0; ; tries++ {
		b, err := &browser{t, m, ""}, error(nil)
		b.request(func(ctx context.Context) {
			m.Put(ctx, "k", "v")
			if user != "" {
				err = m.Login(ctx, user)
			}
		})
		switch {
		case err == nil:
			return b
		case !errors.Is(err, ErrStaleLogin) || tries == 3:
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond) // a login within a round trip of an end may be refused
	}
}
