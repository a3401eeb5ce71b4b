package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// patient is a site on a machine that is busy.
func patient(r Rotation) Config { return Config{Timeout: 20 * time.Second, Rotation: r} }

func TestRotationInsideTheGrace(t *testing.T) {
	each(t, patient(Rotation{Grace: time.Minute}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "v", 0) })
		// A chain: each ID leads to the last.
		cookies := []string{b.cookie}
		for range 8 {
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			cookies = append(cookies, b.cookie)
		}
		for i, c := range cookies {
			old := &browser{t, m, c}
			o := old.request(func(ctx context.Context) { m.Put(ctx, fmt.Sprint("by", i), i) })
			if (o.Action == CookieSet) != (i < len(cookies)-1) {
				t.Errorf("ID %d: %+v", i, o)
			}
			if look(t, m, old.cookie) != look(t, m, b.cookie) {
				t.Errorf("ID %d leads elsewhere", i)
			}
		}
		if got := len(m.Keys(load(t, m, b.cookie))); got != 1+len(cookies) {
			t.Errorf("%d keys", got)
		}
		// A logout with any of them ends the session for all.
		(&browser{t, m, cookies[0]}).request(func(ctx context.Context) { _ = m.Logout(ctx) })
		for i, c := range cookies {
			if got := look(t, m, c); !got.nothing() {
				t.Errorf("ID %d after logout: %+v", i, got)
			}
		}
	})
}

func TestAfterTheGraceARotatedIDIsUnknown(t *testing.T) {
	each(t, patient(Rotation{Grace: time.Minute}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		first := b.cookie
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		advance(t, rb, 50*time.Second, m)
		if look(t, m, first).user != "ann" {
			t.Error("inside the grace it does not work")
		}
		advance(t, rb, 11*time.Second, m)
		if got := look(t, m, first); got != (seen{values: "map[]"}) {
			t.Errorf("after the grace: %+v", got)
		}
		if look(t, m, b.cookie).user != "ann" {
			t.Error("the new ID does not work")
		}
	})
}

// TestManyRotationsLeadOn rotates 128 times within the Grace: the oldest ID still leads to
// the session, and ends it.
func TestManyRotationsLeadOn(t *testing.T) {
	each(t, patient(Rotation{Grace: 5 * time.Minute}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		for _, by := range []string{"the oldest ID", "a request from before all rotations"} {
			b := begin(t, m, "ann")
			oldest := b.cookie
			ctx := load(t, m, oldest)
			for range 128 {
				b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			}
			if got, want := look(t, m, oldest), look(t, m, b.cookie); got != want || got.user != "ann" {
				t.Fatalf("the oldest ID leads to %+v, the newest to %+v", got, want)
			}
			(&browser{t, m, oldest}).request(func(ctx context.Context) { m.Put(ctx, "late", 1) })
			if !has(t, m, b.cookie, "late") {
				t.Error("a put by the oldest ID is lost")
			}
			if by == "the oldest ID" {
				ctx = load(t, m, oldest)
			}
			if err := m.Logout(ctx); err != nil {
				t.Fatal(err)
			}
			finish(t, m, ctx)
			for _, c := range []string{oldest, b.cookie} {
				if got := look(t, m, c); !got.nothing() {
					t.Errorf("after a logout by %s: %+v", by, got)
				}
			}
			if n := len(recordsAt(t, m, idOf(t, m, b.cookie).key)); n != 0 {
				t.Errorf("after a logout by %s: %d records", by, n)
			}
		}
	})
}

func TestRotateEvery(t *testing.T) {
	each(t, patient(Rotation{Every: 10 * time.Minute}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		expires := m.Info(load(t, m, b.cookie)).Expires
		for round := range 5 {
			advance(t, rb, 9*time.Minute, m)
			if o := b.request(func(context.Context) {}); o.Action != CookieKeep {
				t.Fatalf("rotated too early: %+v", o)
			}
			advance(t, rb, time.Minute+time.Second, m) // each process only estimates Redis's clock
			// A page with many parts: all get the same new ID, and none is lost.
			const parts = 20
			cookies := make([]string, parts)
			var wg sync.WaitGroup
			for i := range parts {
				wg.Go(func() {
					part := &browser{t, m, b.cookie}
					part.request(func(ctx context.Context) {
						if m.UserID(ctx) != "ann" {
							t.Error("logged out by a rotation")
						}
						m.Put(ctx, fmt.Sprintf("%d.%d", round, i), true)
					})
					cookies[i] = part.cookie
				})
			}
			wg.Wait()
			end := look(t, m, cookies[0])
			for _, c := range cookies {
				if c == b.cookie {
					t.Error("a part kept the old ID")
				}
				if got := look(t, m, c); got != end {
					t.Errorf("parts of one page lead to different sessions: %+v and %+v", got, end)
				}
			}
			b.cookie = cookies[parts-1]
			if got := len(m.Keys(load(t, m, b.cookie))); got != (round+1)*parts {
				t.Fatalf("%d keys after round %d", got, round)
			}
		}
		if got := m.Info(load(t, m, b.cookie)).Expires; !got.Equal(expires) {
			t.Errorf("rotation moved the deadline from %v to %v", expires, got)
		}
	})
}

// TestRotateMeetsARotation has another request rotate first: this one follows, and has
// done what it was asked to.
func TestRotateMeetsARotation(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		slow := &browser{t, m, b.cookie}
		ctx := load(t, m, slow.cookie)
		if err := m.Rotate(ctx); err != nil {
			t.Fatal(err)
		}
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		slow.take(finish(t, m, ctx))
		if slow.cookie == "" || idOf(t, m, slow.cookie) != idOf(t, m, b.cookie) {
			t.Error("two rotations at once gave two IDs")
		}
		if m.Pending(ctx) {
			t.Error("something is pending after Finish")
		}
		if o := finish(t, m, ctx); o != (Outcome{}) {
			t.Errorf("a second Finish: %+v", o)
		}
		if got := look(t, m, b.cookie); got.user != "ann" || idOf(t, m, b.cookie).field != got.id {
			t.Errorf("the ID was rotated again: %+v", got)
		}
	})
}

// TestLoginWhileAnotherWrites has the values of one user under way while another logs in
// with the same browser.
func TestLoginWhileAnotherWrites(t *testing.T) {
	each(t, patient(Rotation{}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		for range 50 {
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "secret of ann", 1) })
			bob := &browser{t, m, b.cookie}
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					(&browser{t, m, b.cookie}).request(func(ctx context.Context) {
						if m.UserID(ctx) == "ann" {
							m.Put(ctx, fmt.Sprint("secret", i), i)
						}
					})
				})
			}
			wg.Go(func() { bob.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") }) })
			wg.Wait()
			if got := look(t, m, bob.cookie); got.user != "bob" || got.values != "map[]" {
				t.Fatalf("bob sees %+v", got)
			}
		}
	})
}

// TestWritesBesideALoginAreKeptOrRefused has requests commit in their handlers while the
// visitor logs in: what Commit acknowledged is in the login, and the rest was refused.
func TestWritesBesideALoginAreKeptOrRefused(t *testing.T) {
	each(t, patient(Rotation{}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		for round := range 30 {
			user := fmt.Sprint("ann", round)
			before := cartOf(t, m, "")
			b := &browser{t, m, before}
			var mu sync.Mutex
			kept, refused := make(map[string]bool), make(map[string]bool)
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					writer := &browser{t, m, before}
					o := writer.request(func(ctx context.Context) {
						for n := range 5 {
							key := fmt.Sprintf("%d.%d", i, n)
							m.Put(ctx, key, 1)
							err := m.Commit(ctx)
							mu.Lock()
							kept[key], refused[key] = err == nil, errors.Is(err, ErrEnded)
							mu.Unlock()
							if err != nil && !errors.Is(err, ErrEnded) {
								t.Error(err)
							}
						}
					})
					if o != (Outcome{}) {
						t.Errorf("a writer sets a cookie: %+v", o)
					}
				})
			}
			wg.Go(func() { b.request(func(ctx context.Context) { _ = m.Login(ctx, user) }) })
			wg.Wait()
			got := look(t, m, b.cookie)
			if got.user != user || !got.has("first") {
				t.Fatalf("the login is %v", got)
			}
			for key := range kept {
				if kept[key] == refused[key] || got.has(key) != kept[key] {
					t.Errorf("%s: acknowledged %v, refused %v, in the login %v", key, kept[key], refused[key], got.has(key))
				}
			}
		}
	})
}

// TestLateAnswersBringNothingBack has a request that was under way since before the
// session ended answer a moment, or any time later.
func TestLateAnswersBringNothingBack(t *testing.T) {
	grace := 30 * time.Second
	ends := []struct {
		name string
		user string // who is logged in by it
		do   func(t *testing.T, rb redistest.Backend, m *Manager, cookie string) (after string)
	}{
		{"logout", "", func(t *testing.T, rb redistest.Backend, m *Manager, cookie string) string {
			b := &browser{t, m, cookie}
			b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
			return b.cookie
		}},
		{"logout and login", "bob", func(t *testing.T, rb redistest.Backend, m *Manager, cookie string) string {
			b := &browser{t, m, cookie}
			b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
			return b.cookie
		}},
		{"login", "bob", func(t *testing.T, rb redistest.Backend, m *Manager, cookie string) string {
			b := &browser{t, m, cookie}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
			return b.cookie
		}},
		{"expiry", "", func(t *testing.T, rb redistest.Backend, m *Manager, cookie string) string {
			advance(t, rb, 2*time.Hour, m)
			return cookie
		}},
		{"expiry and login", "bob", func(t *testing.T, rb redistest.Backend, m *Manager, cookie string) string {
			advance(t, rb, 2*time.Hour, m)
			b := &browser{t, m, cookie}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
			return b.cookie
		}},
	}
	under := []struct {
		name string
		do   func(m *Manager, ctx context.Context)
	}{
		{"nothing", func(m *Manager, ctx context.Context) {}},
		{"put", func(m *Manager, ctx context.Context) { m.Put(ctx, "x", 1) }},
		{"rotate", func(m *Manager, ctx context.Context) { m.Put(ctx, "x", 1); _ = m.Rotate(ctx) }},
		{"remember", func(m *Manager, ctx context.Context) { m.Remember(ctx, true) }},
	}
	each(t, patient(Rotation{Grace: grace}), func(t *testing.T, rb redistest.Backend, m *Manager) {
		for _, start := range []string{"", "ann"} {
			for _, rotated := range []bool{false, true} {
				for _, end := range ends {
					for _, x := range under {
						for _, delay := range []time.Duration{0, grace + time.Second, 50 * time.Minute, 3 * time.Hour} {
							where := fmt.Sprintf("start %q, rotated %v, %s answered %v after %s", start, rotated, x.name, delay, end.name)
							first := cartOf(t, m, start)
							now := &browser{t, m, first}
							ctx := load(t, m, first)
							if rotated {
								now.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
							}
							now.cookie = end.do(t, rb, m, now.cookie)
							advance(t, rb, delay, m)
							x.do(m, ctx)
							if o := finish(t, m, ctx); o != (Outcome{}) {
								t.Errorf("%s: %+v", where, o)
							}
							if got := look(t, m, first); !got.nothing() {
								t.Errorf("%s: the first cookie shows %v", where, got)
							}
							got := look(t, m, now.cookie)
							if over := delay >= time.Hour; end.user != "" && !over && (got.user != end.user || got.has("x")) || (end.user == "" || over) && !got.nothing() {
								t.Errorf("%s: the browser's cookie shows %v", where, got)
							}
							if x.name != "nothing" && m.UserID(ctx) != "" {
								t.Errorf("%s: the request still shows %q", where, m.UserID(ctx))
							}
							if err := m.Commit(ctx); err != nil {
								t.Errorf("%s: a Commit of nothing: %v", where, err)
							}
							m.Put(ctx, "later", 1)
							if err := m.Commit(ctx); !errors.Is(err, ErrEnded) {
								t.Errorf("%s: a later Commit: %v", where, err)
							}
						}
					}
				}
			}
		}
	})
}

// TestOneBeginsWhereAnIDHasExpired has two requests with the cookie of a session that has
// expired put something at once: one begins a session, and the other sets no cookie.
func TestOneBeginsWhereAnIDHasExpired(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for _, user := range []string{"", "ann"} {
			first := cartOf(t, m, "")
			advance(t, rb, 2*time.Hour, m)
			one, other := load(t, m, first), load(t, m, first)
			m.Put(one, "one", 1)
			m.Put(other, "other", 1)
			if user != "" {
				if err := m.Login(one, user); err != nil {
					t.Fatal(err)
				}
			}
			b := &browser{t, m, first}
			b.take(finish(t, m, one))
			if err := m.Commit(other); !errors.Is(err, ErrEnded) {
				t.Errorf("user %q: the other's Commit: %v", user, err)
			}
			if o := finish(t, m, other); o != (Outcome{}) {
				t.Errorf("user %q: the other's answer: %+v", user, o)
			}
			if got := look(t, m, b.cookie); got.user != user || got.values != "map[one:1]" {
				t.Errorf("user %q: %v", user, got)
			}
		}
	})
}

// TestRotationIsOneCommand counts what a rotation sends: what is one script cannot be torn
// apart by a crash.
func TestRotationIsOneCommand(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		client := rb.NewClient(t)
		hook := countCommands(client)
		counted := sameSite(t, m, client, Config{})
		b := begin(t, m, "ann")
		for range 3 { // first it may have to send the script, and to ask for the time
			b.m = counted
			hook.reset(nil)
			b.request(func(ctx context.Context) { counted.Put(ctx, "x", 1); _ = counted.Rotate(ctx) })
		}
		if got := strings.Join(hook.all(), " "); got != "hget rotate" {
			t.Errorf("a rotation sends %s", got)
		}
	})
}

// A browser that missed the cookie of a rotation holds the old ID until its Grace is over,
// and then logs in with it. An answer that was under way since before has followed the old
// ID to the session from before: its cookie must not take the place of the login's.
func TestNoLateCookieOfWhatARotatedIDLedTo(t *testing.T) {
	for _, does := range []struct {
		name string
		do   func(m *Manager, ctx context.Context)
	}{
		{"reads", func(m *Manager, ctx context.Context) {}},
		{"puts", func(m *Manager, ctx context.Context) { m.Put(ctx, "k", 1) }},
		{"remembers", func(m *Manager, ctx context.Context) { m.Remember(ctx, true) }},
		{"rotates", func(m *Manager, ctx context.Context) { _ = m.Rotate(ctx) }},
		{"has committed", func(m *Manager, ctx context.Context) { m.Put(ctx, "k", 1); _ = m.Commit(ctx) }},
	} {
		t.Run(does.name, func(t *testing.T) {
			each(t, patient(Rotation{Grace: time.Minute}), func(t *testing.T, rb redistest.Backend, m *Manager) {
				b := begin(t, m, "ann")
				first := b.cookie
				b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
				advance(t, rb, 50*time.Second, m)
				late := load(t, m, first) // follows
				does.do(m, late)
				advance(t, rb, 11*time.Second, m)
				login := &browser{t, m, first}
				login.request(func(ctx context.Context) { _ = m.Login(ctx, "dan") })
				if out, err := m.Finish(late); err != nil || out.Action != CookieKeep {
					t.Errorf("the late answer: %+v, %v", out, err)
				}
				if got := look(t, m, login.cookie).user; got != "dan" {
					t.Errorf("the login: %q", got)
				}
			})
		})
	}
}

// A late answer sets no cookie over a login that came with an ID in between, which the request has
// been led through: when it was loaded, by its Commit, or by its Watch.
func TestNoLateCookieOverALoginInBetween(t *testing.T) {
	server := redistest.Start(t)
	for name, meanwhile := range map[string]func(*Manager, context.Context) error{
		"loaded": nil, "watched": func(m *Manager, ctx context.Context) error { _, err := m.Watch(ctx); return err },
		"committed": func(m *Manager, ctx context.Context) error { return nil },
	} {
		for _, rotations := range []int{1, 2} {
			m := managerOver(t, server.Client(), Config{Rotation: Rotation{Grace: time.Second}})
			m.watches.every = 50 * time.Millisecond
			b := begin(t, m, "ann")
			first := b.cookie
			late := load(t, m, first)
			if meanwhile != nil {
				if err := meanwhile(m, late); err != nil {
					t.Fatal(err)
				}
			}
			if rotations == 2 {
				b.request(func(ctx context.Context) { _ = m.Rotate(ctx) }) // the browser gets it
			}
			lost := load(t, m, b.cookie)
			_ = m.Rotate(lost)
			finish(t, m, lost) // of which the answer is lost
			switch name {
			case "loaded":
				late = load(t, m, first)
			case "watched":
				for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
					m.state(late).mu.Lock()
					there := m.state(late).record.id == m.state(lost).record.id
					m.state(late).mu.Unlock()
					if there {
						break
					}
					if time.Now().After(end) {
						t.Fatal("it was not led on")
					}
				}
			case "committed":
				m.Put(late, "a", 1)
				if err := m.Commit(late); err != nil {
					t.Fatal(err)
				}
			}
			server.Advance(1500 * time.Millisecond)
			m.records.clocks.forget()
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "bob"); err != nil {
					t.Fatal(err)
				}
			})
			o, err := m.Finish(late)
			if err != nil {
				t.Fatal(err)
			}
			b.take(o)
			b.request(func(ctx context.Context) {
				if user := m.UserID(ctx); user != "bob" {
					t.Errorf("%s, %d rotations: the browser is %q", name, rotations, user)
				}
			})
			server.Advance(10 * time.Second)
		}
	}
}
