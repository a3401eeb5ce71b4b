package session

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestAbsoluteLifetime(t *testing.T) {
	clock := newClock()
	each(t, Config{Lifetime: 8 * time.Hour, IdleTimeout: time.Hour, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		first := b.cookie
		// Neither use, nor changes, nor rotation puts the end off.
		for i := range 15 {
			clock.add(30 * time.Minute)
			b.request(func(ctx context.Context) {
				if m.UserID(ctx) != "ann" {
					t.Fatalf("gone after %v", time.Duration(i+1)*30*time.Minute)
				}
				m.Put(ctx, "i", i)
				if i%4 == 3 {
					_ = m.Rotate(ctx)
				}
			})
		}
		clock.add(30*time.Minute - time.Millisecond)
		if look(t, m, b.cookie).user != "ann" {
			t.Error("gone a millisecond too early")
		}
		ctx := load(t, m, b.cookie)
		clock.add(time.Millisecond)
		// Redis does not know our clock: the record is there still, and judged by itself.
		if rb.Client.Exists(t.Context(), keyOf(t, m, b.cookie)).Val() != 1 {
			t.Fatal("the record has gone, and this test is blind")
		}
		for _, c := range []string{first, b.cookie} {
			if got := look(t, m, c); got != (seen{values: "map[]"}) {
				t.Errorf("at its deadline: %+v", got)
			}
		}
		// What was under way when the end came is not saved.
		m.Put(ctx, "late", 1)
		if o := commit(t, m, ctx); o != (Outcome{}) {
			t.Errorf("a commit after the end: %+v", o)
		}

		// Login starts it anew, for a session that was there already.
		b = &browser{t, m, ""}
		b.request(func(ctx context.Context) { m.Put(ctx, "cart", 1) })
		for range 7 {
			clock.add(time.Hour)
			b.request(func(context.Context) {})
		}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		for range 7 {
			clock.add(time.Hour)
			b.request(func(ctx context.Context) {
				if m.UserID(ctx) != "ann" || !m.Exists(ctx, "cart") {
					t.Error("login did not start the lifetime anew")
				}
			})
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	const idle = time.Hour
	clock := newClock()
	each(t, Config{Lifetime: 1000 * time.Hour, IdleTimeout: idle, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		for range 50 { // used once per IdleTimeout
			clock.add(idle)
			if b.request(func(ctx context.Context) {
				if m.UserID(ctx) != "ann" {
					t.Fatal("gone, though in use")
				}
			}) != (Outcome{}) {
				t.Error("a touch set a cookie")
			}
		}
		// However its last uses fell between touches.
		for _, last := range []time.Duration{0, time.Second, 100 * time.Second, 179 * time.Second, 180 * time.Second} {
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			clock.add(last)
			b.request(func(context.Context) {})
			clock.add(idle)
			if look(t, m, b.cookie).user != "ann" {
				t.Errorf("last used %v after the touch: gone after the timeout, to the millisecond", last)
			}
			clock.add(idle/touchShare + time.Millisecond)
			if got := look(t, m, b.cookie); got.user != "" {
				t.Errorf("last used %v after the touch: still there after 1.05 timeouts", last)
			}
		}
	})
}

// TestReadsWriteLittle counts what an hour of reading writes.
func TestReadsWriteLittle(t *testing.T) {
	clock := newClock()
	each(t, Config{IdleTimeout: time.Hour, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		client := rb.NewClient(t)
		hook := countCommands(client)
		counted, err := New(client, m.config(t))
		if err != nil {
			t.Fatal(err)
		}
		b := &browser{t, counted, ""}
		b.request(func(ctx context.Context) {
			_ = counted.Login(ctx, "ann")
			counted.Put(ctx, "k", strings.Repeat("x", 1000))
		})
		loadScripts(t, rb)
		key := keyOf(t, m, b.cookie)
		record := func() string { return rb.Client.Get(t.Context(), key).Val() }
		before := record()
		hook.reset(nil)
		for range 600 {
			clock.add(6 * time.Second)
			if o := b.request(func(ctx context.Context) { counted.Get(ctx, "k") }); o != (Outcome{}) {
				t.Fatalf("%+v", o)
			}
		}
		count := map[string]int{}
		for _, c := range hook.all() {
			count[c]++
		}
		if count["get"] != 600 || count["touch"] == 0 || count["touch"] > touchShare || len(count) != 2 {
			t.Errorf("an hour of reading: %v", count)
		}
		after := record()
		if before[:headLen] != after[:headLen] || before[headLen+8:] != after[headLen+8:] || before == after {
			t.Error("a touch changed more than the time, or nothing")
		}
	})
}

func TestNothingIsStoredPastItsEnd(t *testing.T) {
	clock := newClock()
	each(t, Config{Lifetime: time.Hour, IdleTimeout: -1, Grace: time.Hour, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		before := len(allKeys(t, rb.Client))
		ctx := load(t, m, "")
		m.Put(ctx, "k", 1)
		clock.add(time.Hour)
		if o := commit(t, m, ctx); o != (Outcome{}) {
			t.Errorf("%+v", o)
		}
		if keys := allKeys(t, rb.Client); len(keys) > before {
			t.Errorf("stored %q", keys)
		}
		// A Login, a Rotate and a plain save that took too long.
		for name, do := range map[string]func(ctx context.Context){
			"login":  func(ctx context.Context) { _ = m.Login(ctx, "ann") },
			"rotate": func(ctx context.Context) { _ = m.Rotate(ctx) },
			"save":   func(ctx context.Context) { m.Put(ctx, "k", 2) },
		} {
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { m.Put(ctx, "k", 1) })
			ctx := load(t, m, b.cookie)
			do(ctx)
			clock.add(time.Hour)
			n := len(allKeys(t, rb.Client))
			if o := commit(t, m, ctx); o != (Outcome{}) || len(allKeys(t, rb.Client)) != n {
				t.Errorf("%s: %+v", name, o)
			}
		}
	})
}

// TestLifetimesInRealTime has no clock of its own: time is that of a bubble, and
// Redis's TTLs end the sessions.
func TestLifetimesInRealTime(t *testing.T) {
	rb := mini(t)
	// Outside of the bubble, since scs.New starts a goroutine that never ends.
	m := manager(t, rb, Config{Lifetime: 10 * time.Hour, IdleTimeout: time.Hour, Timeout: time.Hour})
	synctest.Test(t, func(t *testing.T) {
		sleep := func(d time.Duration) {
			time.Sleep(d)
			rb.Mini.SetTime(time.Now())
			rb.Mini.FastForward(d)
		}
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		begin := time.Now()
		for time.Since(begin) < 9*time.Hour {
			sleep(time.Hour)
			if got := look(t, m, b.cookie); got.user != "ann" {
				t.Fatalf("gone after %v", time.Since(begin))
			}
			b.request(func(context.Context) {})
		}
		sleep(time.Hour - time.Millisecond)
		if look(t, m, b.cookie).user != "ann" {
			t.Error("ended too early")
		}
		sleep(2 * time.Millisecond)
		if look(t, m, b.cookie).user != "" || len(rb.Mini.Keys()) != 0 {
			t.Errorf("outlived its lifetime: %q", rb.Mini.Keys())
		}

		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		sleep(time.Hour + 3*time.Minute + time.Millisecond)
		if look(t, m, b.cookie).user != "" || len(rb.Mini.Keys()) != 0 {
			t.Errorf("outlived its idle timeout: %q", rb.Mini.Keys())
		}
	})
}

func TestManagersOfABubbleStayInIt(t *testing.T) {
	rb := mini(t)
	for range 2 {
		inside := manager(t, rb, Config{})
		synctest.Test(t, func(t *testing.T) { look(t, inside, begin(t, inside, "ann").cookie) })
		outside := manager(t, rb, Config{})
		look(t, outside, begin(t, outside, "ann").cookie)
	}
}
