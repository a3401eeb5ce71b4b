package session

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// watching is a Manager that polls so often, over a client of its own.
func watching(t testing.TB, client redis.UniversalClient, every time.Duration, like *Manager) *Manager {
	t.Helper()
	m := sameSite(t, like, client, Config{})
	m.watches.every = every
	return m
}

func watched(t testing.TB, m *Manager, cookie string) context.Context {
	t.Helper()
	ctx, err := m.Watch(load(t, m, cookie))
	if err != nil {
		t.Fatal(err)
	}
	return ctx
}

func ends(t testing.TB, ctx context.Context, within time.Duration, what string) {
	t.Helper()
	select {
	case <-ctx.Done():
		if !errors.Is(context.Cause(ctx), ErrEnded) {
			t.Errorf("%s: %v", what, context.Cause(ctx))
		}
	case <-time.After(within + time.Second):
		t.Errorf("%s: it goes on", what)
	}
}

func goesOn(t testing.TB, ctx context.Context, what string) {
	t.Helper()
	if ctx.Err() != nil {
		t.Errorf("%s: %v", what, context.Cause(ctx))
	}
}

// Each way in which a session ends is heard of at once on another server, and no other is taken
// for it.
func TestWatchHearsOfEnds(t *testing.T) {
	ways := map[string]struct {
		do  func(t *testing.T, m *Manager, b *browser)
		why Reason
	}{
		"End": {func(t *testing.T, m *Manager, b *browser) {
			if err := m.End(t.Context(), "ann", handleOf(t, m, b), Cause{Reason: Disabled}); err != nil {
				t.Error(err)
			}
		}, Disabled},
		"EndAll": {func(t *testing.T, m *Manager, b *browser) { endAll(t, m, "ann") }, Revoked},
		"EndOthers": {func(t *testing.T, m *Manager, b *browser) {
			begin(t, m, "ann").request(func(ctx context.Context) { _, _ = m.EndOthers(ctx, Cause{Reason: PasswordChanged}) })
		}, PasswordChanged},
		"EndAll and Login in one": {func(t *testing.T, m *Manager, b *browser) {
			b.request(func(ctx context.Context) {
				_, err := m.EndAll(ctx, "ann", Cause{Reason: PasswordChanged})
				if err = errors.Join(err, m.Login(ctx, "ann")); err != nil {
					t.Error(err)
				}
			})
			if answering(t, m, b.cookie) != 1 {
				t.Error("the new login does not answer")
			}
		}, PasswordChanged},
		"Logout": {func(t *testing.T, m *Manager, b *browser) { b.request(func(ctx context.Context) { _ = m.Logout(ctx) }) }, ""},
		"another's login": {func(t *testing.T, m *Manager, b *browser) {
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "eve") })
		}, ""},
		"half of a login": {func(t *testing.T, m *Manager, b *browser) {
			b.request(func(ctx context.Context) { _ = m.BeginLogin(ctx, "ann", time.Minute) })
		}, ""},
		"the cap": {func(t *testing.T, m *Manager, b *browser) { _ = m.Login(load(t, m), "ann", MaxSessions(1)) }, Replaced},
		"it was replaced": {func(t *testing.T, m *Manager, b *browser) {
			_ = m.Login(load(t, m), "ann", Replacing(handleOf(t, m, b)))
		}, Replaced},
	}
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		w := watching(t, rb.NewClient(t), time.Hour, m)
		for name, way := range ways {
			endAll(t, m, "ann")
			advance(t, rb, 10*time.Second)
			b, bob := begin(t, m, "ann"), begin(t, m, "bob")
			mine, other := watched(t, w, b.cookie), watched(t, w, bob.cookie)
			// What keeps the session keeps the watch.
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			b.request(func(ctx context.Context) { _ = m.Confirm(ctx) })
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			b.request(func(ctx context.Context) { _, _ = m.EndOthers(ctx, Cause{}) })
			advance(t, rb, 10*time.Second, m) // or logins that end others are refused
			again := watched(t, w, b.cookie)
			goesOn(t, mine, name)
			way.do(t, m, b)
			ends(t, mine, 5*time.Second, name)
			ends(t, again, 5*time.Second, name+", watched anew")
			goesOn(t, other, name+", another's")
			if got := w.Ended(mine); got != way.why {
				t.Errorf("%s: told %q", name, got)
			}
			if w.UserID(mine) != "" || !errors.Is(w.Touch(mine), ErrEnded) {
				t.Errorf("%s: its context still has the session", name)
			}
		}
	})
}

func TestWatchOfNothing(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		if _, err := m.Watch(t.Context()); !errors.Is(err, ErrNoSession) {
			t.Error(err)
		}
		if err := m.Touch(t.Context()); !errors.Is(err, ErrNoSession) {
			t.Error(err)
		}
		ctx := watched(t, m, "")
		goesOn(t, ctx, "no session")
		if err := m.Touch(ctx); err != nil {
			t.Error(err)
		}
		b := begin(t, m, "ann")
		loaded := load(t, m, b.cookie)
		endAll(t, m, "ann")
		ends(t, watched(t, m, b.cookie), 0, "ended before it was loaded")
		within, err := m.Watch(loaded)
		if err != nil {
			t.Fatal(err)
		}
		ends(t, within, 0, "ended before it was watched")
		// The lives configured now decide, though servers with longer ones have it still.
		b = begin(t, m, "ann")
		short := sameSite(t, m, rb.NewClient(t), Config{IdleTimeout: 5 * time.Minute})
		loaded = load(t, short, b.cookie)
		advance(t, rb, 20*time.Minute, m, short)
		if within, err = short.Watch(loaded); err != nil {
			t.Fatal(err)
		}
		ends(t, within, 0, "idle for longer than this server has it")
		if answering(t, m, b.cookie) != 1 {
			t.Error("it is over for a server with longer lives")
		}
		// A context that is done ends the watch.
		b = begin(t, m, "bob")
		parent, cancel := context.WithCancel(load(t, m, b.cookie))
		within, err = m.Watch(parent)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		<-within.Done()
		watched := func() int {
			m.watches.mu.Lock()
			defer m.watches.mu.Unlock()
			return len(m.watches.of)
		}
		for start := time.Now(); watched() > 0; time.Sleep(time.Millisecond) {
			if time.Since(start) > 5*time.Second {
				t.Fatal("it is still watched")
			}
		}
		if errors.Is(context.Cause(within), ErrEnded) {
			t.Error("its session is said to have ended")
		}
	})
}

// Without a subscription, and behind one that is dead without a sign, the poll finds ends.
func TestWatchPolls(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
	defer client.Close()
	m := managerOver(t, server.Client(), Config{})
	w := watching(t, client, 300*time.Millisecond, m)
	b := begin(t, m, "ann")
	ctx := watched(t, w, b.cookie)
	for name, fault := range map[string]func(){
		"cut":         func() { proxy.Cut("subscribe"); proxy.Disconnect() },
		"black-holed": func() { proxy.BlackHole("subscribe", "ping"); proxy.Disconnect() },
	} {
		fault()
		time.Sleep(50 * time.Millisecond)
		endAll(t, m, "ann")
		ends(t, ctx, 10*time.Second, name)
		proxy.Heal()
		time.Sleep(20 * time.Millisecond)
		b = begin(t, m, "ann")
		ctx = watched(t, w, b.cookie)
	}
	// It comes back.
	w.watches.mu.Lock()
	w.watches.every = time.Hour
	w.watches.mu.Unlock()
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(50 * time.Millisecond) {
		if n, err := server.Client().PubSubNumSub(t.Context(), "gatehouse:ended").Result(); err == nil && n["gatehouse:ended"] == 1 {
			return
		}
	}
	t.Error("it has not subscribed anew")
}

// A stream that calls Touch keeps its session, and one that does not ends with it, on Redis's
// own clock. The ID may have been rotated meanwhile, long ago.
func TestTouchKeepsASession(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("its keys do not expire by themselves")
		}
		cfg := Config{IdleTimeout: 2 * time.Second, Rotation: Rotation{Grace: 50 * time.Millisecond}}
		m := managerOver(t, rb.Client, cfg)
		kept, left := begin(t, m, "ann"), begin(t, m, "ann")
		stream, silent := watched(t, m, kept.cookie), watched(t, m, left.cookie)
		for i := range 6 {
			if i%3 == 0 {
				kept.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			}
			time.Sleep(400 * time.Millisecond)
			if err := m.Touch(stream); err != nil {
				t.Fatalf("after %d: %v", i, err)
			}
		}
		goesOn(t, stream, "touched")
		if answering(t, m, kept.cookie) != 1 {
			t.Error("the session is over")
		}
		ends(t, silent, time.Second, "not touched")
		ends(t, stream, 8*time.Second, "touched no more")
	})
}

// counting counts commands and subscriptions.
type counting struct {
	onlyCommands
	scripts, pipelines atomic.Int64
}

func (c *counting) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if nameOf(cmd) == "watch" {
			c.scripts.Add(1)
		}
		return next(ctx, cmd)
	}
}

func (c *counting) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		n := 0
		for _, cmd := range cmds {
			if nameOf(cmd) == "watch" {
				n++
			}
		}
		if n > 0 {
			c.scripts.Add(int64(n))
			c.pipelines.Add(1)
		}
		return next(ctx, cmds)
	}
}

// Many watchers cost one subscription, and a poll that asks once for each user, many at a time. An
// EndAll of many sessions is one question.
func TestManyWatchersCostLittle(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	c := new(counting)
	client.AddHook(c)
	m := managerOver(t, client, Config{Accounts: Accounts{Max: 1000}, Timeout: 30 * time.Second})
	m.watches.every = time.Hour
	const users, each = 500, 20
	goroutines := runtime.NumGoroutine()
	streams := make([]context.Context, users*each)
	atOnce(users, func(u int) {
		user := fmt.Sprint("user", u)
		for i := range each {
			streams[u*each+i] = watched(t, m, begin(t, m, user).cookie)
		}
	})
	if n := runtime.NumGoroutine() - goroutines; n > 200 {
		t.Errorf("%d goroutines for %d watchers", n, len(streams))
	}
	subscribed, err := client.PubSubNumSub(t.Context(), "gatehouse:ended").Result()
	if err != nil || subscribed["gatehouse:ended"] != 1 {
		t.Errorf("subscribed %v times (%v)", subscribed, err)
	}
	c.scripts.Store(0)
	c.pipelines.Store(0)
	m.watches.lookAtAll(t.Context())
	if n := c.scripts.Load(); n != users {
		t.Errorf("a poll of %d users is %d scripts", users, n)
	}
	t.Logf("%d scripts in %d pipelines", c.scripts.Load(), c.pipelines.Load())
	c.scripts.Store(0)
	endAll(t, m, "user7")
	for _, ctx := range streams[7*each : 8*each] {
		ends(t, ctx, 5*time.Second, "EndAll")
	}
	if n := c.scripts.Load(); n > 4 {
		t.Errorf("an EndAll of %d sessions is found out by %d scripts", each, n)
	}
	if n := len(slices.DeleteFunc(slices.Clone(streams), func(ctx context.Context) bool { return ctx.Err() != nil })); n != len(streams)-each {
		t.Errorf("%d streams go on", n)
	}
}

// A request that watches its session goes on under the IDs that others give it, however often.
func TestWatchFollowsRotations(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	m := managerOver(t, server.Client(), Config{Rotation: Rotation{Grace: 2 * time.Second}})
	m.watches.every = 100 * time.Millisecond
	b := begin(t, m, "ann")
	stream := watched(t, m, b.cookie)
	if _, err := m.Finish(stream); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		b.request(func(ctx context.Context) { m.Put(ctx, "theirs", 1); _ = m.Rotate(ctx) })
		time.Sleep(time.Second)
	}
	time.Sleep(2 * time.Second) // none of its IDs leads anywhere
	m.Put(stream, "mine", 1)
	if err := m.Commit(stream); err != nil {
		t.Fatal(err)
	}
	if m.GetInt(stream, "theirs") != 1 {
		t.Error("it has not taken in what others saved")
	}
	b.request(func(ctx context.Context) {
		if m.GetInt(ctx, "mine") != 1 {
			t.Error("what it saved is lost")
		}
	})
	if err := m.End(t.Context(), "ann", m.Info(stream).Handle, Cause{}); err != nil {
		t.Fatal(err)
	}
	ends(t, stream, 5*time.Second, "ended")
}
