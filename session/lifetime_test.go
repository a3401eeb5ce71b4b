package session

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// moment is more than passes by itself between two steps of a test: on real servers
// Redis's clock runs on.
const moment = 2 * time.Second

// elapse lets time pass for Redis and, in a bubble, for this process.
func elapse(t testing.TB, rb redistest.Backend, d time.Duration) {
	t.Helper()
	time.Sleep(d)
	rb.Advance(t, d)
}

// bubble runs f where the time of this process passes only as it is told to. Clients and
// Managers are made and used either inside or outside.
func bubble(t *testing.T, rb redistest.Backend, f func(t *testing.T, rb redistest.Backend)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		rb.Client = rb.NewClient(t)
		defer time.Sleep(time.Second) // for what a cluster's client does in the background
		f(t, rb)
	})
}

// exists reports whether Redis has the hash of a cookie's owner.
func exists(t testing.TB, rb redistest.Backend, m *Manager, cookie string) bool {
	t.Helper()
	n, err := rb.Client.Exists(t.Context(), idOf(t, m, cookie).key).Result()
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// raw is what stands at the ID of a cookie, "" for nothing.
func raw(t testing.TB, rb redistest.Backend, m *Manager, cookie string) string {
	t.Helper()
	at := idOf(t, m, cookie)
	return rb.Client.HGet(t.Context(), at.key, at.field).Val()
}

// near reports whether two times are the same but for what passes by itself.
func near(a, b time.Time) bool { return a.Sub(b).Abs() < moment }

func TestAbsoluteLifetime(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Lifetime: 8 * time.Hour, IdleTimeout: time.Hour}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		// Neither use, nor changes, nor rotation puts the end off.
		for i := range 15 {
			advance(t, rb, 30*time.Minute, m)
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
		// Another session of the user keeps the hash, so that the record is there still,
		// and judged by itself.
		young := begin(t, m, "ann")
		advance(t, rb, 30*time.Minute-2*moment, m)
		if look(t, m, b.cookie).user != "ann" {
			t.Error("gone too early")
		}
		ctx := load(t, m, b.cookie)
		advance(t, rb, 2*moment, m)
		before := raw(t, rb, m, b.cookie)
		if before == "" || before[0] != formatRecord {
			t.Fatal("the record has gone, and this test is blind")
		}
		if got := look(t, m, b.cookie); got.user != "" || got.values != "map[]" {
			t.Errorf("at its deadline: %+v", got)
		}
		// What was under way when the end came is not saved.
		m.Put(ctx, "late", 1)
		if err := m.Commit(ctx); err != ErrEnded {
			t.Errorf("a commit after the end: %v", err)
		}
		m.Put(ctx, "late", 1)
		if o := finish(t, m, ctx); o != (Outcome{}) {
			t.Errorf("a Finish after the end: %+v", o)
		}
		if raw(t, rb, m, b.cookie) != before {
			t.Error("a commit after the end has written")
		}
		if look(t, m, young.cookie).user != "ann" {
			t.Error("the other session is gone")
		}

		// Login starts it anew, for a session that was there already.
		b = &browser{t, m, ""}
		b.request(func(ctx context.Context) { m.Put(ctx, "cart", 1) })
		for range 7 {
			advance(t, rb, 59*time.Minute, m)
			b.request(func(context.Context) {})
		}
		for _, user := range []string{"ann", "ann", "bob"} {
			b.request(func(ctx context.Context) { _ = m.Login(ctx, user); m.Put(ctx, "cart", 1) })
			for range 7 {
				advance(t, rb, 59*time.Minute, m)
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != user || !m.Exists(ctx, "cart") {
						t.Error("login did not start the lifetime anew")
					}
				})
			}
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	const idle = time.Hour
	each(t, Config{Timeout: slowly.Timeout, Lifetime: 1000 * time.Hour, IdleTimeout: idle}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		for range 50 { // used once per IdleTimeout
			advance(t, rb, idle, m)
			if b.request(func(ctx context.Context) {
				if m.UserID(ctx) != "ann" {
					t.Fatal("gone, though in use")
				}
			}) != (Outcome{}) {
				t.Error("a touch set a cookie")
			}
		}
		// However its last uses fell between touches, and whether they were changes.
		for _, last := range []time.Duration{0, time.Second, 100 * time.Second, 177 * time.Second, 180 * time.Second} {
			for _, use := range []func(ctx context.Context){func(context.Context) {}, func(ctx context.Context) { m.Put(ctx, "k", 1) }} {
				b := &browser{t, m, ""}
				b.request(func(ctx context.Context) { _ = m.Login(ctx, fmt.Sprint("user", last)) })
				advance(t, rb, last, m)
				b.request(use)
				advance(t, rb, idle, m)
				if look(t, m, b.cookie).user == "" {
					t.Errorf("last used %v after the touch: gone after the timeout", last)
				}
				advance(t, rb, idle/touchShare+2*time.Millisecond, m)
				if got := look(t, m, b.cookie); got.user != "" {
					t.Errorf("last used %v after the touch: still there after 1.05 timeouts", last)
				}
				if exists(t, rb, m, b.cookie) {
					t.Errorf("last used %v after the touch: Redis has it still", last)
				}
			}
		}
	})
}

// TestReadsWriteLittle counts what an hour of reading writes.
func TestReadsWriteLittle(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, other *Manager) {
		bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
			m, hook := counted(t, rb, other, Config{Timeout: slowly.Timeout, IdleTimeout: time.Hour})
			loadScripts(t, rb)
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) {
				_ = m.Login(ctx, "ann")
				m.Put(ctx, "k", strings.Repeat("x", 1000))
			})
			before := raw(t, rb, m, b.cookie)
			hook.reset(nil)
			for range 600 {
				elapse(t, rb, 6*time.Second)
				if o := b.request(func(ctx context.Context) { m.Get(ctx, "k") }); o != (Outcome{}) {
					t.Fatalf("%+v", o)
				}
			}
			count := countOf(hook)
			if count["hget"] != 600 || count["touch"] < touchShare-1 || count["touch"] > touchShare || count["time"] > 60 || len(count) != 3 {
				t.Errorf("an hour of reading: %v", count)
			}
			after := raw(t, rb, m, b.cookie)
			born, rest := headLen+timeLen, headLen+timesLen
			if before[:born] != after[:born] || before[rest:] != after[rest:] || before == after {
				t.Error("a touch changed more than the times, or nothing")
			}
		})
	})
}

// TestLastSeenWithoutAnIdleTimeout has LastSeen move a hundred times in a lifetime.
func TestLastSeenWithoutAnIdleTimeout(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Lifetime: 100 * time.Hour, IdleTimeout: -1}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, other *Manager) {
		bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
			m, hook := counted(t, rb, other, cfg)
			loadScripts(t, rb)
			b := begin(t, m, "ann")
			hook.reset(nil)
			var moved int
			last := m.Info(load(t, m, b.cookie)).LastSeen
			for range 99 * 6 {
				elapse(t, rb, 10*time.Minute)
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" {
						t.Fatal("gone")
					}
				})
				seen := m.Info(load(t, m, b.cookie)).LastSeen
				if behind := rb.Now(t).Sub(seen); behind > time.Hour+moment || behind < -moment {
					t.Fatalf("LastSeen is %v ago", behind)
				}
				if !seen.Equal(last) {
					moved++
				}
				last = seen
			}
			if n := countOf(hook)["touch"]; n != moved || n < 95 || n > 100 {
				t.Errorf("LastSeen moved %d times by %d touches", moved, n)
			}
			elapse(t, rb, time.Hour+moment)
			if look(t, m, b.cookie).user != "" || exists(t, rb, m, b.cookie) {
				t.Error("use has put the end off")
			}
		})
	})
}

func TestNothingIsStoredPastItsEnd(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Lifetime: time.Hour, IdleTimeout: -1, Rotation: Rotation{Grace: time.Hour}}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		// A Login, a Rotate, a plain save and a use that took too long.
		for name, do := range map[string]func(ctx context.Context){
			"login":                  func(ctx context.Context) { _ = m.Login(ctx, "ann") },
			"login and put":          func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "k", 2) },
			"login and commit":       func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "k", 2); _ = m.Commit(ctx) },
			"rotate":                 func(ctx context.Context) { _ = m.Rotate(ctx) },
			"save":                   func(ctx context.Context) { m.Put(ctx, "k", 2) },
			"remember":               func(ctx context.Context) { m.Remember(ctx, true) },
			"nothing but to read it": func(ctx context.Context) {},
		} {
			for _, user := range []string{"", "ann"} {
				b := begin(t, m, user)
				ctx := load(t, m, b.cookie)
				do(ctx)
				advance(t, rb, time.Hour+moment, m)
				if keys := allKeys(t, rb.Client); len(keys) > 0 {
					t.Fatalf("%s over %q: still there: %q", name, user, keys)
				}
				if o := finish(t, m, ctx); o != (Outcome{}) {
					t.Errorf("%s over %q: %+v", name, user, o)
				}
				if keys := allKeys(t, rb.Client); len(keys) > 0 {
					t.Errorf("%s over %q: stored %q", name, user, keys)
				}
			}
		}
		// A session begins when it is first saved, not when its request was loaded.
		ctx := load(t, m, "")
		m.Put(ctx, "k", 1)
		advance(t, rb, time.Hour+moment, m)
		o := finish(t, m, ctx)
		advance(t, rb, time.Hour-2*moment, m)
		if look(t, m, o.Value).values != "map[k:1]" {
			t.Error("a session that begins late is cut short")
		}
	})
}

// TestRedisForgetsByItself looks at what expires without anybody coming back for it.
func TestRedisForgetsByItself(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Lifetime: 10 * time.Hour, IdleTimeout: 2 * time.Hour, Visitor: Life{IdleTimeout: time.Hour}, Rotation: Rotation{Grace: time.Minute}}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		// gone checks when the hash of a cookie's owner goes.
		gone := func(what, cookie string, after time.Duration) {
			t.Helper()
			advance(t, rb, after-2*moment, m)
			if !exists(t, rb, m, cookie) {
				t.Errorf("%s: gone too early", what)
			}
			advance(t, rb, 2*moment+2*time.Millisecond, m)
			if exists(t, rb, m, cookie) {
				t.Errorf("%s: there after %v, with a TTL of %v", what, after, rb.Client.PTTL(t.Context(), idOf(t, m, cookie).key).Val())
			}
		}
		const visitors, logins = time.Hour + 3*time.Minute, 2*time.Hour + 6*time.Minute
		b := begin(t, m, "")
		gone("a visitor's session", b.cookie, visitors)
		b = begin(t, m, "ann")
		gone("a login", b.cookie, logins)

		b = begin(t, m, "ann")
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		gone("a rotated session", b.cookie, logins)

		// The last one decides, and a shorter one does not cut it short.
		b = begin(t, m, "ann")
		advance(t, rb, time.Hour, m)
		second := begin(t, m, "ann")
		second.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		gone("a login beside one that was logged out", b.cookie, logins) // that had raised the TTL

		// What leads nowhere and was never anything goes with its Grace.
		unknown, err := m.signer.sign(m.records.keys.fresh(m.records.keys.visitor()).cookie())
		if err != nil {
			t.Fatal(err)
		}
		v := &browser{t, m, unknown}
		v.request(func(ctx context.Context) { m.Put(ctx, "k", 1) })
		gone("a tombstone where nothing stood", unknown, time.Minute)
		gone("the session begun beside it", v.cookie, visitors-time.Minute)

		// A login that nobody completes goes with Timeout and Grace.
		b = begin(t, m, "")
		ctx := load(t, m, b.cookie)
		if err := m.Login(ctx, "carol"); err != nil {
			t.Fatal(err)
		}
		half, err := m.signer.sign(m.state(ctx).record.id.cookie())
		if err != nil {
			t.Fatal(err)
		}
		m.Put(ctx, "k", 2)
		if err := m.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Commit(ctx); err != nil { // of nothing
			t.Fatal(err)
		}
		gone("half a login", half, time.Minute+m.records.timeout)
		if look(t, m, b.cookie).values != "map[k:v]" {
			t.Error("the session before a login that was not completed is gone")
		}
	})
}

// TestLifetimesInRealTime has time pass for this process and for Redis alike, and Redis's
// TTLs end the sessions. On miniredis, whose clock stands still otherwise, it is exact.
func TestLifetimesInRealTime(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Lifetime: 10 * time.Hour, IdleTimeout: time.Hour}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, other *Manager) {
		rb.Advance(t, 0)
		early, late := time.Millisecond, time.Millisecond
		if rb.Mini == nil {
			early, late = 2*moment, moment
		}
		bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
			m := sameSite(t, other, rb.Client, cfg)
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			for i := range 9 {
				elapse(t, rb, time.Hour)
				if got := look(t, m, b.cookie); got.user != "ann" {
					t.Fatalf("gone after %d hours", i+1)
				}
				b.request(func(context.Context) {})
			}
			elapse(t, rb, time.Hour-early)
			if look(t, m, b.cookie).user != "ann" || !exists(t, rb, m, b.cookie) {
				t.Error("ended too early")
			}
			elapse(t, rb, early)
			if look(t, m, b.cookie).user != "" {
				t.Error("outlived its lifetime")
			}
			elapse(t, rb, late)
			if exists(t, rb, m, b.cookie) {
				t.Error("outlived its lifetime in Redis")
			}

			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			elapse(t, rb, time.Hour+3*time.Minute-early)
			if look(t, m, b.cookie).user != "ann" || !exists(t, rb, m, b.cookie) {
				t.Error("ended too early")
			}
			elapse(t, rb, early)
			if look(t, m, b.cookie).user != "" {
				t.Error("outlived its idle timeout")
			}
			elapse(t, rb, late)
			if exists(t, rb, m, b.cookie) {
				t.Error("outlived its idle timeout in Redis")
			}
		})
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

func TestRememberedSessions(t *testing.T) {
	each(t, Config{Timeout: slowly.Timeout, Lifetime: 10 * time.Hour}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		// until checks that a cookie is set, and when it goes from the browser.
		until := func(what string, o Outcome, want time.Duration) {
			t.Helper()
			if o.Action != CookieSet || want == 0 && o.MaxAge != 0 || (o.MaxAge-want).Abs() > moment {
				t.Errorf("%s: %+v, want %v", what, o, want)
			}
		}
		b := &browser{t, m, ""}
		remember := func(on bool) Outcome { return b.request(func(ctx context.Context) { m.Remember(ctx, on) }) }
		login := func(user string) Outcome {
			return b.request(func(ctx context.Context) {
				if err := m.Login(ctx, user); err != nil {
					t.Fatal(err)
				}
			})
		}
		until("not asked for", login("ann"), 0)
		advance(t, rb, 50*time.Minute, m)
		until("remembered", remember(true), 10*time.Hour-50*time.Minute)
		until("remembered again", remember(true), 10*time.Hour-50*time.Minute)
		advance(t, rb, 50*time.Minute, m)
		until("rotated", b.request(func(ctx context.Context) { _ = m.Rotate(ctx) }), 10*time.Hour-100*time.Minute)
		until("forgotten", remember(false), 0)
		until("remembered once more", remember(true), 10*time.Hour-100*time.Minute)
		until("a login of the same user", login("ann"), 10*time.Hour)
		until("a login of another user", login("bob"), 10*time.Hour)
		if !m.Info(load(t, m, b.cookie)).Persistent {
			t.Error("Info does not say so")
		}
		b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		until("a login after a logout", login("ann"), 0)
		// Before there is a session, in the request of its login, and after it.
		b.cookie = ""
		if o := remember(true); o != (Outcome{}) {
			t.Errorf("nothing to remember: %+v", o)
		}
		until("remember before login", b.request(func(ctx context.Context) { m.Remember(ctx, true); _ = m.Login(ctx, "ann") }), 10*time.Hour)
		b.cookie = ""
		until("remember after login", b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Remember(ctx, true) }), 10*time.Hour)
		until("forget after login", b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Remember(ctx, false) }), 0)
		b.cookie = ""
		until("a visitor", b.request(func(ctx context.Context) { m.Put(ctx, "k", 1); m.Remember(ctx, true) }), 10*time.Hour)
	})
}

// TestEachKindHasItsOwnLife is about visitors, logins, and those who are remembered.
func TestEachKindHasItsOwnLife(t *testing.T) {
	const day = 24 * time.Hour
	cfg := Config{
		Timeout:  slowly.Timeout,
		Lifetime: 12 * time.Hour, IdleTimeout: 30 * time.Minute,
		Visitor:    Life{Lifetime: 2 * time.Hour, IdleTimeout: 10 * time.Minute},
		Remembered: Life{Lifetime: 30 * day, IdleTimeout: 7 * day},
	}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		do := func(acts ...func(ctx context.Context)) func(b *browser) {
			return func(b *browser) {
				for _, act := range acts { // a request each
					b.request(act)
				}
			}
		}
		put := func(ctx context.Context) { m.Put(ctx, "k", "v") }
		login := func(user string) func(ctx context.Context) {
			return func(ctx context.Context) {
				m.Put(ctx, "k", "v")
				if err := m.Login(ctx, user); err != nil {
					t.Fatal(err)
				}
				m.Put(ctx, "k", "v")
			}
		}
		remember := func(on bool) func(ctx context.Context) {
			return func(ctx context.Context) { m.Remember(ctx, on) }
		}
		rotate := func(ctx context.Context) { _ = m.Rotate(ctx) }
		logout := func(ctx context.Context) { _ = m.Logout(ctx) }
		for _, tc := range []struct {
			name    string
			prepare func(b *browser)
			life    Life
		}{
			{"a visitor", do(put), cfg.Visitor},
			{"a visitor, rotated", do(put, rotate), cfg.Visitor},
			{"a login", do(login("ann")), Life{cfg.Lifetime, cfg.IdleTimeout}},
			{"a login over a visitor", do(put, login("ann")), Life{cfg.Lifetime, cfg.IdleTimeout}},
			{"a visitor after a logout", do(login("ann"), logout, put), cfg.Visitor},
			{"remembered at login", do(func(ctx context.Context) { m.Remember(ctx, true); login("ann")(ctx) }), cfg.Remembered},
			{"remembered later", do(login("ann"), remember(true)), cfg.Remembered},
			{"remembered and rotated", do(login("ann"), remember(true), rotate), cfg.Remembered},
			{"remembered, and logged in again", do(login("ann"), remember(true), login("ann")), cfg.Remembered},
			{"remembered, and logged in as another", do(login("ann"), remember(true), login("bob")), cfg.Remembered},
			{"a visitor who is remembered", do(put, remember(true)), cfg.Remembered},
			{"a login of a visitor who is remembered", do(put, remember(true), login("ann")), cfg.Remembered},
			{"forgotten", do(login("ann"), remember(true), remember(false)), Life{cfg.Lifetime, cfg.IdleTimeout}},
			{"forgotten as a visitor", do(put, remember(true), remember(false)), cfg.Visitor},
			{"a login after a logout", do(login("ann"), remember(true), logout, login("ann")), Life{cfg.Lifetime, cfg.IdleTimeout}},
		} {
			there := func(b *browser) bool { return m.GetString(load(t, m, b.cookie), "k") == "v" }
			idle := &browser{t, m, ""}
			tc.prepare(idle)
			if got, want := m.Info(load(t, m, idle.cookie)).Expires, rb.Now(t).Add(tc.life.Lifetime); !near(got, want) {
				t.Errorf("%s: Expires %v, want %v", tc.name, got, want)
			}
			slack := tc.life.IdleTimeout + tc.life.IdleTimeout/touchShare
			advance(t, rb, slack-2*moment, m)
			if !there(idle) {
				t.Errorf("%s: gone before its idle timeout", tc.name)
			}
			advance(t, rb, 2*moment+2*time.Millisecond, m)
			if there(idle) {
				t.Errorf("%s: there after its idle timeout", tc.name)
			}

			busy := &browser{t, m, ""}
			tc.prepare(busy)
			const uses = 30
			for range uses - 1 {
				advance(t, rb, tc.life.Lifetime/uses, m)
				busy.request(func(ctx context.Context) {
					if !m.Exists(ctx, "k") {
						t.Fatalf("%s: gone, though in use", tc.name)
					}
				})
			}
			advance(t, rb, tc.life.Lifetime/uses-2*moment, m)
			if !there(busy) {
				t.Errorf("%s: gone before its lifetime", tc.name)
			}
			advance(t, rb, 2*moment+2*time.Millisecond, m)
			if there(busy) {
				t.Errorf("%s: there after its lifetime", tc.name)
			}
			advance(t, rb, 30*day, m) // nothing is left for the next case
			if keys := allKeys(t, rb.Client); len(keys) > 0 {
				t.Errorf("%s: left %q", tc.name, keys)
			}
		}
	})
}

func TestPersistentIsTheDefaultOfRemember(t *testing.T) {
	cfg := Config{
		Timeout:    slowly.Timeout,
		Persistent: true, Lifetime: 12 * time.Hour,
		Visitor: Life{Lifetime: 2 * time.Hour}, Remembered: Life{Lifetime: 720 * time.Hour},
	}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		check := func(what string, want time.Duration, do func(ctx context.Context)) {
			t.Helper()
			o := b.request(do)
			if o.Action != CookieSet || want == 0 && o.MaxAge != 0 || (o.MaxAge-want).Abs() > moment {
				t.Errorf("%s: %+v, want %v", what, o, want)
			}
		}
		put := func(ctx context.Context) { m.Put(ctx, "k", 1) }
		login := func(ctx context.Context) { _ = m.Login(ctx, "ann") }
		forget := func(ctx context.Context) { m.Remember(ctx, false) }
		check("a visitor", 2*time.Hour, put)
		check("a login over it", 720*time.Hour, login)
		check("forgotten", 0, forget)
		check("a login over that", 0, login)
		check("after a logout", 720*time.Hour, func(ctx context.Context) { _ = m.Logout(ctx); login(ctx) })
		b.cookie = ""
		check("a login", 720*time.Hour, login)
		b.cookie = ""
		check("a login that is not to be remembered", 0, func(ctx context.Context) { forget(ctx); login(ctx) })
		b.cookie = ""
		check("a visitor who is not", 0, func(ctx context.Context) { forget(ctx); put(ctx) })

		// After an end that the request met halfway, and one that it met when loading.
		b.cookie = ""
		check("a login", 720*time.Hour, login)
		ended := b.cookie
		check("over a session that ends meanwhile", 720*time.Hour, func(ctx context.Context) {
			(&browser{t, m, ended}).request(func(ctx context.Context) { _ = m.Logout(ctx) })
			put(ctx)
			if err := m.Commit(ctx); err != ErrEnded {
				t.Error(err)
			}
			login(ctx)
		})
		b.cookie = ended
		check("over an ended one", 720*time.Hour, login)
	})
}

// TestLifetimesHoldAsConfiguredNow changes the configuration under sessions that are only
// read.
func TestLifetimesHoldAsConfiguredNow(t *testing.T) {
	none := time.Duration(-1)
	each(t, slowly, func(t *testing.T, rb redistest.Backend, other *Manager) {
		second, minute := time.Second, time.Minute
		if rb.Mini == nil { // whose clock runs on while a busy machine does something else
			second, minute = 20*time.Second, 20*time.Minute
		}
		var m *Manager
		deploy := func(lifetime, idle time.Duration) {
			m = sameSite(t, other, rb.Client, Config{Timeout: slowly.Timeout, Lifetime: lifetime, IdleTimeout: idle})
		}
		read := func(t *testing.T, b *browser) bool {
			t.Helper()
			b.m = m
			var user string
			if o := b.request(func(ctx context.Context) { user = m.UserID(ctx) }); o != (Outcome{}) {
				t.Errorf("a read: %+v", o)
			}
			return user != ""
		}
		// use reads every so often.
		use := func(t *testing.T, b *browser, every time.Duration, times int) {
			t.Helper()
			for i := range times {
				advance(t, rb, every, m)
				if !read(t, b) {
					t.Fatalf("logged out after %d uses", i)
				}
			}
		}
		t.Run("a raised idle timeout logs nobody out", func(t *testing.T) {
			deploy(24*time.Hour, second)
			b := begin(t, m, "ann")
			use(t, b, second/2, 10)
			deploy(24*time.Hour, minute)
			use(t, b, second/2, 1)
			use(t, b, minute, 10)
			deploy(24*time.Hour, none)
			use(t, b, minute, 1)
			use(t, b, 5*time.Hour, 3)
		})
		t.Run("a lowered idle timeout logs nobody out who is in use", func(t *testing.T) {
			// In use is who reads twice a second, also shortly before the change.
			deploy(24*time.Hour, none)
			b := begin(t, m, "ann")
			use(t, b, 5*time.Minute, 5)
			use(t, b, second/2, 300)
			deploy(24*time.Hour, minute)
			use(t, b, second/2, 300)
			use(t, b, minute, 5)
			use(t, b, second/2, 10)
			deploy(24*time.Hour, second)
			use(t, b, second/2, 20)
		})
		t.Run("a lowered idle timeout ends what is not used", func(t *testing.T) {
			deploy(24*time.Hour, none)
			b, c := begin(t, m, "ann"), begin(t, m, "bob")
			advance(t, rb, 5*time.Hour, m)
			deploy(24*time.Hour, time.Hour)
			if read(t, b) {
				t.Error("unused for five hours")
			}
			deploy(24*time.Hour, none)
			if !read(t, c) {
				t.Error("logged out by a timeout that holds no more")
			}
		})
		t.Run("a lowered lifetime holds for all at once", func(t *testing.T) {
			deploy(24*time.Hour, none)
			b, c := begin(t, m, "ann"), begin(t, m, "")
			advance(t, rb, 5*time.Hour, m)
			if !read(t, b) {
				t.Fatal("gone")
			}
			deploy(5*time.Hour, none)
			if read(t, b) || look(t, m, c.cookie).values != "map[]" {
				t.Error("older than the lifetime")
			}
			d := begin(t, m, "carol")
			if got := m.Info(load(t, m, d.cookie)).Expires; !near(got, rb.Now(t).Add(5*time.Hour)) {
				t.Errorf("a new session expires at %v", got)
			}
		})
		t.Run("a raised lifetime logs nobody out", func(t *testing.T) {
			deploy(time.Hour, none)
			b, c := begin(t, m, "dave"), begin(t, m, "bob")
			advance(t, rb, 50*time.Minute, m)
			if !read(t, b) || !read(t, c) {
				t.Fatal("gone")
			}
			deploy(10*time.Hour, none)
			if !read(t, b) { // c is not read in time for the raise
				t.Fatal("logged out")
			}
			if got, want := m.Info(load(t, m, b.cookie)).Expires, rb.Now(t).Add(9*time.Hour+10*time.Minute); !near(got, want) {
				t.Errorf("expires at %v, want %v", got, want)
			}
			use(t, b, time.Hour, 9)
			advance(t, rb, 10*time.Minute+2*time.Millisecond, m)
			if read(t, b) || read(t, c) || exists(t, rb, m, b.cookie) {
				t.Error("older than the lifetime")
			}
		})
		t.Run("up and down", func(t *testing.T) {
			deploy(10*time.Hour, time.Hour)
			b := begin(t, m, "ann")
			for _, lifetime := range []time.Duration{20, 6, 30, 7, 50} {
				deploy(lifetime*time.Hour, time.Hour)
				use(t, b, 30*time.Minute, 2)
			}
			deploy(5*time.Hour, time.Hour)
			if read(t, b) {
				t.Error("older than the lifetime")
			}
		})
	})
}

// TestAServerOfAShorterLifeEndsNothingForTheOthers has two servers whose configurations
// differ.
func TestAServerOfAShorterLifeEndsNothingForTheOthers(t *testing.T) {
	each(t, Config{Timeout: slowly.Timeout, IdleTimeout: time.Hour}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		short := sameSite(t, m, rb.Client, Config{Timeout: slowly.Timeout, IdleTimeout: time.Minute, Lifetime: 2 * time.Hour})
		pass := func(d time.Duration) { advance(t, rb, d, m, short) }
		b, visitor := begin(t, m, "ann"), begin(t, m, "")
		pass(30 * time.Second)
		for range 5 { // uses on the server of the shorter one, rotations included
			(&browser{t, short, b.cookie}).request(func(ctx context.Context) {
				if short.UserID(ctx) != "ann" {
					t.Error("not shared")
				}
			})
			pass(10 * time.Second)
		}
		moved := &browser{t, short, b.cookie}
		moved.request(func(ctx context.Context) { _ = short.Rotate(ctx) })
		moved.request(func(ctx context.Context) { short.Put(ctx, "there", 1) })
		b.cookie = moved.cookie
		pass(50 * time.Minute)
		if got := look(t, short, b.cookie); got.user != "" {
			t.Errorf("unused for longer than its idle timeout: %+v", got)
		}
		// Its own user comes and goes, often enough for sweeps.
		for range 40 {
			c := begin(t, short, "ann")
			c.request(func(ctx context.Context) { _ = short.Rotate(ctx) })
			c.request(func(ctx context.Context) { _ = short.Logout(ctx) })
		}
		if got := look(t, m, b.cookie); got.user != "ann" || got.values != "map[k:v there:1]" {
			t.Errorf("ended for the others: %+v", got)
		}
		if look(t, m, visitor.cookie).values != "map[k:v]" {
			t.Error("ended for the others")
		}

		// Who has no session there any more begins another, and does not end this one.
		for _, old := range []*browser{b, visitor} {
			late := load(t, short, old.cookie)
			anew := &browser{t, short, old.cookie}
			if o := anew.request(func(ctx context.Context) { short.Put(ctx, "anew", 1) }); o.Action != CookieSet {
				t.Fatalf("a put is lost: %+v", o)
			}
			if got := look(t, short, anew.cookie); got.values != "map[anew:1]" || got.user != "" {
				t.Errorf("%+v", got)
			}
			if look(t, m, old.cookie).nothing() {
				t.Error("ended for the others")
			}
			// A login is another matter: the browser is this one's now.
			in := &browser{t, short, old.cookie}
			in.request(func(ctx context.Context) {
				if err := short.Login(ctx, "bob"); err != nil {
					t.Error(err)
				}
			})
			if look(t, short, in.cookie).user != "bob" || !look(t, m, old.cookie).nothing() {
				t.Error("a login leaves the session that the browser had")
			}
			short.Put(late, "late", 1)
			if o := finish(t, short, late); o != (Outcome{}) {
				t.Errorf("a late answer replaces the login: %+v", o)
			}
		}

		// Nor does a logout leave a session to others.
		for _, user := range []string{"", "ann"} {
			out := begin(t, m, user)
			rotated := out.cookie
			out.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			pass(20 * time.Second)
			for _, cookie := range []string{out.cookie, rotated} {
				if look(t, m, cookie).values != "map[k:v]" {
					t.Fatal("gone")
				}
			}
			pass(5 * time.Minute)
			(&browser{t, short, out.cookie}).request(func(ctx context.Context) {
				if err := short.Logout(ctx); err != nil {
					t.Error(err)
				}
			})
			if !look(t, m, out.cookie).nothing() {
				t.Errorf("%q goes on elsewhere after a logout", user)
			}
		}
	})
}

// timesAreRight checks what depends on time, whatever the clock of this process says.
// pass lets time go by.
func timesAreRight(t *testing.T, rb redistest.Backend, m *Manager, user string, pass func(d time.Duration)) {
	t.Helper()
	first := begin(t, m, user)
	info := m.Info(load(t, m, first.cookie))
	now := rb.Now(t)
	if !near(info.Created, now) || !near(info.LastSeen, now) || !near(info.AuthenticatedAt, now) || !near(info.Expires, now.Add(24*time.Hour)) {
		t.Errorf("at %v: %+v", now, info)
	}
	if o := first.request(func(ctx context.Context) { m.Remember(ctx, true) }); (o.MaxAge - 24*time.Hour).Abs() > moment {
		t.Errorf("the cookie of a session of a day: %+v", o)
	}

	// A rotated ID leads on for Grace and no longer.
	b := begin(t, m, user)
	for range 3 {
		before := b.cookie
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		if b.cookie == before {
			t.Fatal("not rotated")
		}
		pass(m.records.grace - 2*moment)
		if look(t, m, before).user != user {
			t.Error("a rotated ID leads nowhere before its Grace is over")
		}
		pass(3 * moment)
		if look(t, m, before).user != "" {
			t.Error("a rotated ID leads on after its Grace")
		}
		if look(t, m, b.cookie).user != user {
			t.Fatal("rotated away")
		}
	}

	// Nobody is pruned early: neither by sweeps, nor by looking.
	for range 40 {
		c := begin(t, m, user)
		c.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		c.request(func(ctx context.Context) { _ = m.Logout(ctx) })
	}
	pass(55 * time.Minute)
	seen := rb.Now(t)
	for _, b := range []*browser{first, b} {
		b.request(func(ctx context.Context) {
			if m.UserID(ctx) != user || m.AuthenticatedWithin(ctx, 55*time.Minute) || !m.AuthenticatedWithin(ctx, 2*time.Hour) {
				t.Errorf("after 55 minutes: %q, logged in at %v", m.UserID(ctx), m.Info(ctx).AuthenticatedAt)
			}
		})
		if got := m.Info(load(t, m, b.cookie)).LastSeen; !near(got, seen) {
			t.Errorf("LastSeen %v, want %v", got, seen)
		}
	}
	pass(time.Hour + 3*time.Minute - 2*moment)
	if look(t, m, b.cookie).user != user {
		t.Error("ended before the idle timeout")
	}
	pass(3 * moment)
	if look(t, m, b.cookie).user != "" {
		t.Error("not ended by the idle timeout")
	}
}

// TestTheClockOfThisProcessDoesNotMatter has processes whose clocks are off.
func TestTheClockOfThisProcessDoesNotMatter(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Rotation: Rotation{Grace: time.Minute}}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for _, off := range []time.Duration{0, 7 * time.Minute, -14 * time.Minute, 30 * 24 * time.Hour, -60 * 24 * time.Hour} {
			rb.Advance(t, off)
			one := sameSite(t, m, rb.Client, cfg) // which has not met this Redis yet
			timesAreRight(t, rb, one, fmt.Sprint("user ", off), func(d time.Duration) { advance(t, rb, d, one) })
		}
		// The clock of a bubble is decades behind, and goes on as Redis's does.
		bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
			inside := sameSite(t, m, rb.Client, cfg)
			timesAreRight(t, rb, inside, "user of a bubble", func(d time.Duration) { elapse(t, rb, d) })
		})
		// Redis's clock is set while a process watches: scripts tell it at once, or it asks
		// within a minute.
		for _, step := range []time.Duration{7 * time.Minute, -7 * time.Minute} {
			bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
				inside := sameSite(t, m, rb.Client, cfg)
				begin(t, inside, "ann")
				rb.Advance(t, step)
				elapse(t, rb, time.Minute)
				timesAreRight(t, rb, inside, fmt.Sprint("user of a step by ", step), func(d time.Duration) { elapse(t, rb, d) })
			})
		}
	})
}

// TestServersOfDifferentClocks has two servers, one decades behind the other, and both
// serve the same sessions.
func TestServersOfDifferentClocks(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Rotation: Rotation{Grace: time.Minute}}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		mine, rotated := begin(t, m, "ann"), begin(t, m, "ann")
		old := rotated.cookie
		rotated.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		var theirs string
		bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
			n := sameSite(t, m, rb.Client, cfg)
			if look(t, n, old).user != "ann" {
				t.Error("a rotated ID does not lead on at another server")
			}
			b := begin(t, n, "ann")
			theirs = b.cookie
			for range 40 {
				c := begin(t, n, "ann")
				c.request(func(ctx context.Context) { _ = n.Rotate(ctx) })
				c.request(func(ctx context.Context) { _ = n.Logout(ctx) })
			}
			elapse(t, rb, 50*time.Minute)
			for _, cookie := range []string{mine.cookie, b.cookie} {
				(&browser{t, n, cookie}).request(func(ctx context.Context) { n.Put(ctx, "n", 1) })
			}
			if look(t, n, old).user != "" {
				t.Error("a rotated ID leads on after its Grace")
			}
			elapse(t, rb, 10*time.Minute)
		})
		advance(t, rb, 0, m) // the clock that this process knows is an hour old
		for _, cookie := range []string{mine.cookie, theirs} {
			info := m.Info(load(t, m, cookie))
			if info.UserID != "ann" || !near(info.LastSeen, rb.Now(t).Add(-10*time.Minute)) || !near(info.Created, rb.Now(t).Add(-time.Hour)) {
				t.Errorf("at %v: %+v", rb.Now(t), info)
			}
		}
		advance(t, rb, 10*time.Minute, m)
		for _, cookie := range []string{mine.cookie, theirs} {
			if look(t, m, cookie).user != "ann" {
				t.Error("a use at the other server does not count")
			}
		}
		if look(t, m, rotated.cookie).user != "" {
			t.Error("unused for longer than the idle timeout")
		}
	})
}
