package session

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2/memstore"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// changesOfID give the session of a user another ID.
func changesOfID(m *Manager) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Confirm":   m.Confirm,
		"EndOthers": func(ctx context.Context) error { _, err := m.EndOthers(ctx, Cause{}); return err },
		"Login":     func(ctx context.Context) error { return m.Login(ctx, "ann") },
		"Rotate":    m.Rotate,
	}
}

// A session that changes its ID has two places for a while. A logout ends it in both, whether the
// change is under way or done, and its late answer sets no cookie.
func TestLogoutBesideAChangeOfID(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		ends := map[string]func(ctx context.Context) error{
			"Logout":  m.Logout,
			"End":     func(ctx context.Context) error { return m.End(ctx, "ann", m.Info(ctx).Handle, Cause{}) },
			"another": func(ctx context.Context) error { return m.Login(ctx, "bob") },
		}
		for how, end := range ends {
			for name, change := range changesOfID(m) {
				for _, done := range []bool{false, true} {
					b := begin(t, m, "ann")
					a, l := load(t, m, b.cookie), load(t, m, b.cookie)
					if err := change(a); err != nil {
						t.Fatal(err)
					}
					var first, last Outcome
					if done {
						first = finish(t, m, a)
					}
					if err := end(l); err != nil {
						t.Fatal(err)
					}
					finish(t, m, l)
					if !done {
						last = finish(t, m, a)
					}
					if last.Action == CookieSet {
						t.Errorf("%s beside %s: its late answer sets a cookie", how, name)
					}
					if n := answering(t, m, b.cookie, first.Value, last.Value); n != 0 || len(listed(t, m, t.Context(), "ann")) != 0 {
						t.Errorf("%s beside %s (done %v): %d answer, %d listed", how, name, done, n, len(listed(t, m, t.Context(), "ann")))
					}
					endAll(t, m, "ann")
					advance(t, rb, 10*time.Second, m)
				}
			}
		}
	})
}

// What of a legacy session was ended stays ended, however many sessions its user ends since, and
// whatever becomes of the logout that follows.
func TestEndedLegacySessionsStayEnded(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, _ *Manager) {
		store := memstore.NewWithCleanupInterval(0)
		cfg := Config{Legacy: Legacy{Store: store, User: userValue}, Accounts: Accounts{Max: 2}, IdleTimeout: 12 * time.Hour}
		m := manager(t, rb, cfg)
		ann := "ann " + t.Name() // one Redis is for all
		legacyOf := func() string {
			return legacySession(t, store, map[string]any{"user": ann}, time.Now().Add(20*time.Hour))
		}
		within := func(m *Manager, token string) context.Context {
			ctx, err := m.LoadLegacy(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			return ctx
		}
		for _, rotated := range []bool{false, true} {
			token := legacyOf()
			ctx := within(m, token)
			if rotated {
				_ = m.Rotate(ctx)
			}
			b := &browser{t, m, ""}
			b.take(finish(t, m, ctx))
			if err := m.End(t.Context(), ann, handleOf(t, m, b), Cause{}); err != nil {
				t.Fatal(err)
			}
			advance(t, rb, time.Minute, m)
			for range 8 {
				begin(t, m, ann)
				advance(t, rb, time.Minute, m)
			}
			if got := m.UserID(within(m, token)); got != "" {
				t.Errorf("rotated %v: %q is back", rotated, got)
			}
			if got := m.Ended(within(m, token)); !rotated && got != Revoked {
				t.Errorf("rotated %v: told %q", rotated, got)
			}
		}
		// A logout by the legacy cookie makes no copy for a moment.
		token := legacyOf()
		endAll(t, m, ann)
		client := rb.NewClient(t)
		seen := countCommands(client)
		down := managerOver(t, client, cfg)
		ctx := within(down, token)
		seen.reset(func(n int, command string) fate {
			if command != "time" && n > 1 {
				return fateRefused
			}
			return fateSent
		})
		_ = down.Logout(ctx)
		if got := m.UserID(within(m, token)); got != "" || len(listed(t, m, t.Context(), ann)) != 0 {
			t.Errorf("a logout that failed has brought %q back", got)
		}
		// The late response of a page that showed the reason keeps the cookie of a login.
		late := within(m, token)
		m.Ended(late)
		m.Told(late)
		advance(t, rb, time.Second, m)
		in := within(m, token)
		if err := m.Login(in, ann); err != nil {
			t.Fatal(err)
		}
		finish(t, m, in)
		if o := finish(t, m, late); o.Action != CookieKeep {
			t.Errorf("%+v", o)
		}
		// A copy has begun before it was copied.
		token = legacySession(t, store, map[string]any{"user": "dan"}, time.Now().Add(20*time.Hour))
		o := finish(t, m, within(m, token))
		cfg.Accounts.NotBefore = rb.Now(t).Add(-time.Hour)
		if strict := manager(t, rb, cfg); strict.UserID(load(t, strict, o.Value)) != "" {
			t.Error("a copy of four hours passes NotBefore an hour ago")
		}
	})
}

// Another server's shorter Lifetime does not shorten a fence.
func TestAFenceIsNotShortened(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		short := sameSite(t, m, rb.Client, Config{Lifetime: time.Hour})
		endAll(t, m, "ann")
		endAll(t, short, "ann")
		key := m.records.keys.key(m.records.keys.user("ann"))
		if left := rb.Client.PTTL(t.Context(), key).Val(); left < 23*time.Hour {
			t.Errorf("it stands for %v", left)
		}
	})
}

// A refused login leaves the request, and the browser, as they were.
func TestARefusedLoginChangesNothing(t *testing.T) {
	each(t, Config{Accounts: Accounts{Max: 1, WhenFull: RefuseLogin}, Visitor: Life{IdleTimeout: time.Minute}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		begin(t, m, "ann")
		for _, saves := range []bool{true, false} {
			b := begin(t, m, "")
			advance(t, rb, 2*time.Minute, m)
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann"); !errors.Is(err, ErrTooManySessions) {
					t.Error(err)
				}
				if saves {
					m.Put(ctx, "flash", "too many")
				}
			})
			if got := m.GetString(load(t, m, b.cookie), "flash"); saves && got != "too many" {
				t.Errorf("a message after the refusal: %q", got)
			}
			b.request(func(ctx context.Context) { m.Put(ctx, "csrf", "x") })
			if got := m.GetString(load(t, m, b.cookie), "csrf"); got != "x" {
				t.Errorf("the next request's put: %q", got)
			}
		}
	})
}

// EndAll also ends what a Login of the same request was to retire.
func TestEndAllAfterALoginOfTheRequest(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for _, user := range []string{"", "eve"} {
			b := begin(t, m, user)
			was := b.cookie
			b.request(func(ctx context.Context) {
				for _, err := range []error{m.Login(ctx, "ann"), func() error { _, err := m.EndAll(ctx, "ann", Cause{}); return err }(), m.Login(ctx, "ann")} {
					if err != nil {
						t.Error(err)
					}
				}
			})
			if answering(t, m, b.cookie) != 1 || answering(t, m, was) != 0 || m.Exists(load(t, m, was), "k") {
				t.Errorf("%q: the session from before goes on", user)
			}
			endAll(t, m, "ann")
			advance(t, rb, 10*time.Second, m)
		}
	})
}

// At its deadline a watch ends also where Redis cannot be asked.
func TestWatchEndsAtTheDeadlineWithoutRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("its keys do not expire by themselves")
		}
		client := rb.NewClient(t)
		seen := countCommands(client)
		m := managerOver(t, client, Config{Lifetime: 2 * time.Second, Timeout: 5 * time.Second})
		m.watches.every = 200 * time.Millisecond
		ctx := watched(t, m, begin(t, m, "ann").cookie)
		var asked atomic.Int64
		seen.reset(func(int, string) fate { asked.Add(1); return fateRefused })
		ends(t, ctx, 8*time.Second, "without Redis")
		if asked.Load() == 0 {
			t.Error("nobody was asked")
		}
	})
}

// What the session of a watch became in the same request is what ends.
func TestWatchThenConfirm(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		ctx := load(t, m, begin(t, m, "ann").cookie)
		within, err := m.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m.Describe(ctx, func() string { return "Firefox" })
		if err := m.Confirm(within); err != nil {
			t.Fatal(err)
		}
		finish(t, m, within)
		list := listed(t, m, t.Context(), "ann")
		if len(list) != 1 || list[0].Client != "Firefox" {
			t.Errorf("%+v", list)
		}
		if err := m.End(t.Context(), "ann", list[0].Handle, Cause{Reason: Disabled}); err != nil {
			t.Fatal(err)
		}
		ends(t, within, 5*time.Second, "confirmed")
		if m.Ended(within) != Disabled || m.UserID(within) != "" {
			t.Errorf("told %q, user %q", m.Ended(within), m.UserID(within))
		}
		// Who loses against another's EndOthers hears that one's reason.
		a, b := load(t, m, begin(t, m, "ann").cookie), load(t, m, begin(t, m, "ann").cookie)
		if _, err := m.EndOthers(a, Cause{Reason: PasswordChanged}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.EndOthers(b, Cause{}); !errors.Is(err, ErrEnded) || m.Ended(b) != PasswordChanged {
			t.Errorf("%v, told %q", err, m.Ended(b))
		}
	})
}

// The earliest that a clock can have shown is found however often it was set since.
func TestClockHistory(t *testing.T) {
	var c clock
	start := time.Now()
	at := func(d time.Duration) time.Time { return start.Add(d) }
	learn := func(d, offset time.Duration) {
		c.learn(start.Add(d+offset).UnixMicro(), at(d), at(d+time.Millisecond))
	}
	learn(0, 0)
	learn(10*time.Second, 10*time.Minute)                    // a step
	learn(11*time.Second, 10*time.Minute-5*time.Millisecond) // corrected
	learn(12*time.Second, 10*time.Minute-9*time.Millisecond)
	for loaded, most := range map[time.Duration]time.Duration{ // offset that may be reckoned with
		5 * time.Second:                       0,
		10*time.Second + 500*time.Millisecond: 10 * time.Minute,
		12*time.Second + 500*time.Millisecond: 10*time.Minute - 9*time.Millisecond,
	} {
		got, known := c.past.earliest(at(loaded))
		true0 := start.Add(loaded).UnixMicro()
		if off := time.Duration(got-true0) * time.Microsecond; !known || off > most || off < most-20*time.Millisecond {
			t.Errorf("a request of %v: %v, at most %v", loaded, off, most)
		}
	}
	learn(20*time.Second, -10*time.Minute)
	got, _ := c.past.earliest(at(5 * time.Second))
	if off := time.Duration(got-at(5*time.Second).UnixMicro()) * time.Microsecond; off > -9*time.Minute {
		t.Errorf("after a step back: %v", off)
	}
	for _, before := range []time.Time{start.Add(-time.Second), time.Now().Add(-time.Hour)} {
		if _, known := c.past.earliest(before); known {
			t.Errorf("%v: nothing was read before", before)
		}
	}
	if shown, known := (&history{}).earliest(start); shown != 0 || known {
		t.Error("nothing is known")
	}

	// However many small ones follow a step, the lowest is remembered.
	c = clock{}
	learn(0, 0)
	for i := range time.Duration(2 * historyLen) {
		learn(10*time.Second+i*time.Second, 10*time.Minute+i*5*time.Millisecond)
	}
	got, known := c.past.earliest(at(5 * time.Second))
	if off := time.Duration(got-at(5*time.Second).UnixMicro()) * time.Microsecond; !known || off > 0 || len(c.past.list) > historyLen {
		t.Errorf("before %d steps: %v, known %v", 2*historyLen, off, known)
	}
}

// A clock that steps forth and back lets what is over live again: what EndAll met there stays
// ended, and what a login did not count is not there to be counted.
func TestTheClockStepsForthAndBack(t *testing.T) {
	each(t, Config{Accounts: Accounts{Max: 1}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		if rb.Mini != nil {
			t.Skip("the clock of miniredis does not go back")
		}
		for what, meanwhile := range map[string]func(user string) (cookies []string){
			"EndAll": func(user string) []string { endAll(t, m, user); return nil },
			"EndOthers": func(user string) []string {
				b := begin(t, m, user)
				ctx := load(t, m, b.cookie)
				if _, err := m.EndOthers(ctx, Cause{}); err != nil {
					t.Fatal(err)
				}
				return []string{finish(t, m, ctx).Value}
			},
			"a login": func(user string) []string { return []string{begin(t, m, user).cookie} },
		} {
			user := "ann, " + what
			cookie := begin(t, m, user).cookie
			ctx := load(t, m, cookie)
			if err := m.Login(ctx, user); err != nil { // it stands for a short time
				t.Fatal(err)
			}
			rb.Advance(t, 10*time.Minute)
			cookies := meanwhile(user)
			rb.Advance(t, -10*time.Minute)
			if n, most := len(listed(t, m, t.Context(), user)), len(cookies); n > most {
				t.Errorf("%s: %d sessions are listed", what, n)
			}
			out, _ := m.Finish(ctx)
			if out.Action == CookieSet {
				t.Errorf("%s: the login goes on", what)
			}
			if n, most := answering(t, m, append(cookies, cookie, out.Value)...), len(cookies); n > most {
				t.Errorf("%s: %d sessions answer", what, n)
			}
			if n, most := len(listed(t, m, t.Context(), user)), len(cookies); n > most {
				t.Errorf("%s: %d sessions are listed in the end", what, n)
			}
		}
	})
}

// A step of Redis's clock that is longer than a fence stands does not let a login pass.
func TestAStepBeyondTheFence(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m, other := manager(t, rb, Config{Lifetime: 20 * time.Minute}), manager(t, rb, Config{Lifetime: 20 * time.Minute})
		listed(t, m, t.Context(), "ann") // it has met this Redis
		ctx := load(t, m)
		time.Sleep(5 * time.Millisecond)
		endAll(t, other, "ann")
		rb.Advance(t, 21*time.Minute)
		if err := m.Login(ctx, "ann"); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("login: %v", err)
		}
	})
}

// What a process knows of a cluster's clocks by other users counts for a user whom it meets.
func TestAStepWhereTheUserIsNew(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Name != "cluster" {
			t.Skip("one server has one clock")
		}
		m, other := manager(t, rb, Config{}), manager(t, rb, Config{})
		ann := "ann " + t.Name()
		for i := range 100 { // of other partitions, on all servers
			if user := fmt.Sprint("user ", i); m.records.keys.user(user)[0] != m.records.keys.user(ann)[0] {
				listed(t, m, t.Context(), user)
			}
		}
		ctx := load(t, m)
		time.Sleep(5 * time.Millisecond)
		endAll(t, other, ann)
		rb.Advance(t, 10*time.Minute)
		if err := m.Login(ctx, ann); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("login: %v", err)
		}
	})
}

// Legacy sessions that NotBefore has ended fill no place.
func TestNotBeforeFreesPlacesOfCopies(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		store := memstore.NewWithCleanupInterval(0)
		cfg := Config{Legacy: Legacy{Store: store, User: userValue}, Accounts: Accounts{Max: 1, WhenFull: RefuseLogin}, IdleTimeout: 12 * time.Hour}
		m := manager(t, rb, cfg)
		ann := "ann " + t.Name()
		ctx, err := m.LoadLegacy(t.Context(), legacySession(t, store, map[string]any{"user": ann}, time.Now().Add(20*time.Hour)))
		if err != nil || m.UserID(ctx) != ann {
			t.Fatalf("%q, %v", m.UserID(ctx), err)
		}
		finish(t, m, ctx)
		cfg.Accounts.NotBefore = rb.Now(t).Add(-time.Hour)
		strict := manager(t, rb, cfg)
		if err := strict.Login(load(t, strict), ann); err != nil {
			t.Errorf("nothing is listed (%v), but: %v", listed(t, strict, t.Context(), ann), err)
		}
	})
}

// A logout ends the session in both places of a change of ID also where the server cannot read
// it, and where its cookie is that of before the change.
func TestLogoutWithoutTheRecord(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb, Config{Lifetime: 24 * time.Hour})
		blind := manager(t, rb, Config{Lifetime: time.Minute, IdleTimeout: 30 * time.Second})
		for name, change := range changesOfID(m) {
			for _, how := range []string{"unreadable", "old cookie"} {
				ann := "ann " + t.Name() + name + how
				b := begin(t, m, ann)
				advance(t, rb, 2*time.Minute, m, blind)
				a := load(t, m, b.cookie)
				if name == "Login" {
					change = func(ctx context.Context) error { return m.Login(ctx, ann) }
				}
				if err := change(a); err != nil {
					t.Fatal(err)
				}
				by := blind
				var out Outcome
				if how == "old cookie" {
					by = m
					out = finish(t, m, a)
				}
				l := load(t, by, b.cookie)
				if how == "unreadable" && by.UserID(l) != "" {
					t.Fatal("it is read")
				}
				if err := by.Logout(l); err != nil {
					t.Fatal(err)
				}
				finish(t, by, l)
				if how == "unreadable" {
					if out = finish(t, m, a); out.Action == CookieSet {
						t.Errorf("%s, %s: a cookie is set", name, how)
					}
				}
				if n := answering(t, m, b.cookie, out.Value); n != 0 || len(listed(t, m, t.Context(), ann)) != 0 {
					t.Errorf("%s, %s: %d answer, %d are listed", name, how, n, len(listed(t, m, t.Context(), ann)))
				}
			}
		}
	})
}

// A logout with the cookie of a user's session ends the login of that user which took its place,
// also when the session itself had ended before, and the login is another session.
func TestLogoutWithTheCookieOfAnEndedSession(t *testing.T) {
	each(t, Config{}, func(t *testing.T, _ redistest.Backend, m *Manager) {
		for name, end := range map[string]func(ctx context.Context) error{
			"Logout":  m.Logout,
			"another": func(ctx context.Context) error { return m.Login(ctx, "bob") },
		} {
			b := begin(t, m, "ann")
			held, other := load(t, m, b.cookie), load(t, m, b.cookie)
			before := m.Info(held).Handle
			if err := end(other); err != nil {
				t.Fatal(err)
			}
			finish(t, m, other)
			if err := m.Login(held, "ann"); err != nil {
				t.Fatal(err)
			}
			if m.Info(held).Handle == before {
				t.Errorf("%s: the handle of what has ended", name)
			}
			out := finish(t, m, held)
			if answering(t, m, out.Value) != 1 {
				t.Fatalf("%s: there is no login", name)
			}
			l := load(t, m, b.cookie)
			if err := m.Logout(l); err != nil {
				t.Fatal(err)
			}
			finish(t, m, l)
			if answering(t, m, out.Value) != 0 {
				t.Errorf("%s: the login still answers", name)
			}
		}
	})
}

// A logout with a visitor's cookie of before a login does not end the login: it may have been
// planted.
func TestLogoutWithTheVisitorsCookie(t *testing.T) {
	each(t, Config{}, func(t *testing.T, _ redistest.Backend, m *Manager) {
		visitor := begin(t, m, "")
		ctx := load(t, m, visitor.cookie)
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
		out := finish(t, m, ctx)
		ctx = load(t, m, visitor.cookie)
		if err := m.Logout(ctx); err != nil {
			t.Fatal(err)
		}
		finish(t, m, ctx)
		if answering(t, m, out.Value) != 1 {
			t.Error("the login has ended")
		}
	})
}

// When a session is over, nothing that held it since before brings it back: its place is given
// away.
func TestNothingBringsBackWhatIsOver(t *testing.T) {
	cfg := Config{
		Lifetime: 12 * time.Hour, IdleTimeout: 30 * time.Minute, Remembered: Life{Lifetime: 720 * time.Hour, IdleTimeout: 240 * time.Hour},
		Accounts: Accounts{Max: 1, WhenFull: RefuseLogin},
	}
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		long := cfg
		long.IdleTimeout = 10 * time.Hour
		m, patient := manager(t, rb, cfg), manager(t, rb, long)
		over := map[string]func(ann string, held func(cookie string)) (cookie string){
			"not remembered any more": func(ann string, held func(string)) string {
				b := &browser{t, m, ""}
				b.request(func(ctx context.Context) {
					m.Remember(ctx, true)
					if err := m.Login(ctx, ann); err != nil {
						t.Fatal(err)
					}
				})
				held(b.cookie)
				b.request(func(ctx context.Context) { m.Remember(ctx, false) })
				held(b.cookie)
				return b.cookie
			},
			"a shorter timeout": func(ann string, held func(string)) string {
				b := begin(t, patient, ann)
				held(b.cookie)
				return b.cookie
			},
		}
		for what, end := range over {
			for name, late := range map[string]func(context.Context) error{
				"Commit":  func(ctx context.Context) error { m.Put(ctx, "a", 1); return m.Commit(ctx) },
				"Confirm": m.Confirm, "Rotate": m.Rotate, "Touch": m.Touch, "Finish": func(context.Context) error { return nil },
			} {
				ann := "ann " + t.Name() + what + name
				var held []context.Context
				cookie := end(ann, func(cookie string) { held = append(held, load(t, m, cookie)) })
				advance(t, rb, 2*time.Hour, m, patient)
				if answering(t, m, cookie) != 0 {
					t.Fatal("it is not over")
				}
				other := begin(t, m, ann)
				cookies := []string{cookie, other.cookie}
				for _, ctx := range held {
					err := late(ctx)
					out, also := m.Finish(ctx)
					if n := answering(t, m, append(cookies, out.Value)...); n != 1 {
						t.Errorf("%s, %s: %v; %d answer", what, name, errors.Join(err, also), n)
					}
				}
			}
		}
	})
}

// A session that another request has made a remembered one is used as that.
func TestTouchAfterRemember(t *testing.T) {
	cfg := Config{Lifetime: time.Hour, IdleTimeout: 30 * time.Minute, Remembered: Life{Lifetime: 720 * time.Hour, IdleTimeout: 240 * time.Hour}}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		stream := load(t, m, b.cookie)
		b.request(func(ctx context.Context) { m.Remember(ctx, true) })
		for range 3 {
			advance(t, rb, 5*24*time.Hour, m)
			if err := m.Touch(stream); err != nil {
				t.Fatalf("Touch: %v", err)
			}
		}
		if answering(t, m, b.cookie) != 1 {
			t.Error("its uses were not noted")
		}
	})
}

// The idlest goes, whatever the timeouts of its kind are.
func TestTheIdlestOfAllKinds(t *testing.T) {
	cfg := Config{
		Lifetime: 12 * time.Hour, IdleTimeout: time.Hour, Remembered: Life{Lifetime: 90 * 24 * time.Hour, IdleTimeout: 30 * 24 * time.Hour},
		Accounts: Accounts{Max: 2},
	}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) {
			m.Remember(ctx, true)
			if err := m.Login(ctx, "ann"); err != nil {
				t.Fatal(err)
			}
		})
		use := func() { b.request(func(ctx context.Context) { m.UserID(ctx) }) }
		for range 10 {
			advance(t, rb, time.Hour, m)
			use()
		}
		idle := begin(t, m, "ann")
		for range 10 {
			advance(t, rb, 5*time.Minute, m)
			use()
		}
		begin(t, m, "ann")
		if answering(t, m, b.cookie) != 1 || answering(t, m, idle.cookie) != 0 {
			t.Error("the session in use was ended, and not the one that was unused for 50 minutes")
		}
	})
}
