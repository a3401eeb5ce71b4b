package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// answering returns the users that cookies still log in.
func answering(t testing.TB, m *Manager, cookies ...string) (n int) {
	t.Helper()
	for _, c := range cookies {
		if c != "" && m.UserID(load(t, m, c)) != "" {
			n++
		}
	}
	return n
}

func handleOf(t testing.TB, m *Manager, b *browser) string {
	t.Helper()
	return m.Info(load(t, m, b.cookie)).Handle
}

func listed(t testing.TB, m *Manager, ctx context.Context, user string) []Info {
	t.Helper()
	list, err := m.List(ctx, user)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func endAll(t testing.TB, m *Manager, user string) []Info {
	t.Helper()
	ended, err := m.EndAll(context.Background(), user, Cause{})
	if err != nil {
		t.Fatal(err)
	}
	return ended
}

// atOnce does f so often at once.
func atOnce(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func TestEverySessionThatAnswersIsListedOnce(t *testing.T) {
	cfg := Config{Accounts: Accounts{Max: 1000}, Timeout: time.Minute}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		n := 1000
		if rb.Mini != nil || redistest.RaceDetector {
			n = 100
		}
		browsers := make([]*browser, n)
		atOnce(n, func(i int) { browsers[i] = begin(t, m, "ann") })
		begin(t, m, "bob")
		handles := make(map[string]int)
		for _, i := range listed(t, m, context.Background(), "ann") {
			handles[i.Handle]++
			if i.UserID != "ann" || i.Created.IsZero() || i.LastSeen.Before(i.Created) || !i.Expires.After(i.IdleExpires) || i.Current {
				t.Errorf("%+v", i)
			}
		}
		for i, b := range browsers {
			h := handleOf(t, m, b)
			if handles[h] != 1 {
				t.Errorf("session %d is listed %d times", i, handles[h])
			}
			delete(handles, h)
		}
		if len(handles) > 0 {
			t.Errorf("%d sessions are listed that nobody has", len(handles))
		}
		// A rotation and a login of the same user keep handle and entry.
		b := browsers[0]
		h := handleOf(t, m, b)
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
			if list := listed(t, m, ctx, "ann"); len(list) != n || !list[0].Current || list[0].Handle != h {
				t.Errorf("%d listed in the middle of a login, the first is %+v", len(list), list[0])
			}
		})
		if list := listed(t, m, load(t, m, b.cookie), "ann"); len(list) != n || list[0].Handle != h || !list[0].Current {
			t.Errorf("%d listed, the first is %+v", len(list), list[0])
		}
	})
}

func TestEndedSessionsSayWhy(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		ann, other, bob := begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "bob")
		h := handleOf(t, m, other)
		for _, wrong := range []string{"", "x", h[:len(h)-1], h + "A", strings.Repeat("!", len(h)), handleOf(t, m, bob), strings.Repeat("A", len(h)), string(make([]byte, 1<<20))} {
			if err := m.End(t.Context(), "ann", wrong, Cause{}); !errors.Is(err, ErrUnknownHandle) {
				t.Errorf("handle %.20q: %v", wrong, err)
			}
		}
		if n := answering(t, m, ann.cookie, other.cookie, bob.cookie); n != 3 {
			t.Fatalf("%d sessions after wrong handles", n)
		}
		for _, c := range []Cause{{Reason: Reason(strings.Repeat("x", 33))}, {Actor: strings.Repeat("x", 65)}} {
			if err := m.End(t.Context(), "ann", h, c); err == nil || !strings.Contains(err.Error(), "at most") {
				t.Errorf("%.20v: %v", c, err)
			}
		}
		if err := m.End(t.Context(), "ann", h, Cause{Reason: "moved", Actor: "support"}); err != nil {
			t.Fatal(err)
		}
		if n := answering(t, m, ann.cookie, other.cookie, bob.cookie); n != 2 {
			t.Fatalf("%d sessions after one was ended", n)
		}
		if err := m.End(t.Context(), "ann", h, Cause{}); !errors.Is(err, ErrUnknownHandle) {
			t.Errorf("again: %v", err)
		}
		why := func(cookie string) Reason { return m.Ended(load(t, m, cookie)) }
		if got := why(other.cookie); got != "moved" {
			t.Errorf("at once: %q", got)
		}
		// In its Grace the cookie stays: a login may have taken its place in the browser.
		if o := other.request(func(ctx context.Context) { m.Ended(ctx); m.Told(ctx) }); o.Action != CookieKeep {
			t.Errorf("in its Grace: %+v", o)
		}
		advance(t, rb, 16*time.Hour, m)
		ended := other.cookie
		if got := why(ended); got != "moved" {
			t.Errorf("the next morning: %q", got)
		}
		// A script asks and puts something, then a person looks.
		other.request(func(ctx context.Context) { m.Ended(ctx); m.Put(ctx, "csrf", "x") })
		if other.cookie == ended || why(other.cookie) != "moved" {
			t.Errorf("a visitor's session after it says %q", why(other.cookie))
		}
		other.request(func(ctx context.Context) { m.Told(ctx) }) // nobody asked
		if got := why(other.cookie); got != "moved" {
			t.Errorf("not asked: %q", got)
		}
		other.request(func(ctx context.Context) { m.Ended(ctx); m.Told(ctx) })
		if got := why(other.cookie); got != "" || m.GetString(load(t, m, other.cookie), "csrf") != "x" {
			t.Errorf("told: %q", got)
		}
		// A session that is not begun: the cookie goes.
		ann = begin(t, m, "ann")
		endAll(t, m, "ann")
		advance(t, rb, time.Minute, m)
		if o := ann.request(func(ctx context.Context) { m.Ended(ctx) }); o.Action != CookieKeep {
			t.Errorf("a script: %+v", o)
		}
		if o := ann.request(func(ctx context.Context) {
			if got := m.Ended(ctx); got != Revoked {
				t.Errorf("EndAll: %q", got)
			}
			m.Told(ctx)
		}); o.Action != CookieDelete {
			t.Errorf("a person: %+v", o)
		}
		// Nobody is told who has logged out, or whose session expired.
		bob = begin(t, m, "bob")
		was := bob.cookie
		bob.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		if got := why(was); got != "" {
			t.Errorf("logged out: %q", got)
		}
		bob = begin(t, m, "bob")
		advance(t, rb, 25*time.Hour, m)
		if got := why(bob.cookie); got != "" {
			t.Errorf("expired: %q", got)
		}
	})
}

// A login in the place of an ended session is not told, and the late answer of a page that was
// told does not take the login's cookie away.
func TestToldLate(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		endAll(t, m, "ann")
		advance(t, rb, time.Minute, m)
		late := load(t, m, b.cookie)
		if m.Ended(late) != Revoked {
			t.Error("not told")
		}
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
			if got := m.Ended(ctx); got != "" {
				t.Errorf("a login is told %q", got)
			}
		})
		m.Told(late)
		if o := finish(t, m, late); o.Action != CookieKeep {
			t.Errorf("the late answer: %+v", o)
		}
		if got := m.Ended(load(t, m, b.cookie)); got != "" {
			t.Errorf("after the login: %q", got)
		}
	})
}

func TestEndOthers(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		ann, x, y, bob := begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "bob")
		h, before := handleOf(t, m, ann), ann.cookie
		ann.request(func(ctx context.Context) {
			m.Put(ctx, "later", 1)
			ended, err := m.EndOthers(ctx, Cause{Reason: PasswordChanged})
			if err != nil || len(ended) != 2 {
				t.Fatalf("%d ended, %v", len(ended), err)
			}
			if n := answering(t, m, x.cookie, y.cookie); n != 0 {
				t.Errorf("%d others answer", n)
			}
		})
		if answering(t, m, ann.cookie) != 1 || answering(t, m, before) != 0 || ann.cookie == before {
			t.Error("its own ID was not replaced")
		}
		if handleOf(t, m, ann) != h || m.GetString(load(t, m, ann.cookie), "k") != "v" || m.GetInt(load(t, m, ann.cookie), "later") != 1 {
			t.Error("its own session has changed")
		}
		if got := m.Ended(load(t, m, x.cookie)); got != PasswordChanged {
			t.Errorf("%q", got)
		}
		if answering(t, m, bob.cookie) != 1 {
			t.Error("another user's session was ended")
		}
		// Two at once leave one.
		x = begin(t, m, "ann")
		ctxs := []context.Context{load(t, m, ann.cookie), load(t, m, x.cookie)}
		errs := make([]error, 2)
		atOnce(2, func(i int) { _, errs[i] = m.EndOthers(ctxs[i], Cause{}) })
		for i, b := range []*browser{ann, x} {
			b.take(finish(t, m, ctxs[i]))
		}
		if n := answering(t, m, ann.cookie, x.cookie); n != 1 || len(listed(t, m, t.Context(), "ann")) != 1 {
			t.Errorf("%d left, errors %v", n, errs)
		}
		if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), ErrEnded) {
			t.Errorf("errors %v", errs)
		}
		for name, ctx := range map[string]context.Context{"nobody": load(t, m), "a visitor": load(t, m, begin(t, m, "").cookie)} {
			if _, err := m.EndOthers(ctx, Cause{}); !errors.Is(err, ErrNoUser) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// What was checked before all sessions were ended logs nobody in.
func TestStaleLogins(t *testing.T) {
	each(t, Config{Timeout: 5 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		other := sameSite(t, m, rb.NewClient(t), Config{Timeout: 5 * time.Second})
		begin(t, m, "warm") // both know the clock of Redis
		begin(t, other, "warm")
		stale := func(name string, ctx context.Context) {
			t.Helper()
			user, h := m.UserID(ctx), m.Info(ctx).Handle
			if err := m.Login(ctx, "ann"); !errors.Is(err, ErrStaleLogin) {
				t.Errorf("%s: %v", name, err)
			}
			if m.UserID(ctx) != user || m.Info(ctx).Handle != h {
				t.Errorf("%s: ctx has changed", name)
			}
			if o := finish(t, m, ctx); o.Action == CookieSet {
				t.Errorf("%s: a cookie", name)
			}
			if list := listed(t, m, t.Context(), "ann"); len(list) != 0 {
				t.Errorf("%s: %d sessions", name, len(list))
			}
		}
		ctx, visitor := load(t, m), load(t, m, begin(t, m, "").cookie)
		advance(t, rb, 10*time.Second)
		endAll(t, other, "ann")
		stale("nobody", ctx)
		stale("a visitor", visitor)
		advance(t, rb, 10*time.Second)
		if b := begin(t, m, "ann"); answering(t, m, b.cookie) != 1 {
			t.Error("a later login was refused")
		}
		for _, step := range []time.Duration{10 * time.Minute, -10 * time.Minute} {
			ctx = load(t, m)
			advance(t, rb, 10*time.Second)
			endAll(t, other, "ann")
			advance(t, rb, step)
			stale(fmt.Sprint("before a step of ", step), ctx)
			_ = m.Login(load(t, m), "cat") // it learns the time
			ctx = load(t, m)
			advance(t, rb, step)
			endAll(t, other, "ann")
			advance(t, rb, 10*time.Second)
			stale(fmt.Sprint("after a step of ", step), ctx)
			advance(t, rb, 10*time.Second)
			if err := m.Login(load(t, m), "ann"); err != nil {
				t.Errorf("a login after a step of %v: %v", step, err)
			}
			advance(t, rb, 10*time.Second)
			endAll(t, other, "ann")
			advance(t, rb, 10*time.Second)
		}
	})
}

// A login that EndAll overtakes on its way to a Redis whose clock was set back is refused by
// its own round trip, the only thing that still tells.
func TestStaleLoginBySlowRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("its clock stands still between two steps")
		}
		client := rb.NewClient(t)
		seen := countCommands(client)
		cfg := Config{Timeout: 5 * time.Second}
		m, other := managerOver(t, client, cfg), managerOver(t, rb.NewClient(t), cfg)
		begin(t, m, "ann")
		begin(t, other, "ann")
		ctx := load(t, m)
		advance(t, rb, -10*time.Minute)
		var once sync.Once
		seen.reset(func(_ int, command string) fate {
			if command == "login" {
				once.Do(func() {
					endAll(t, other, "ann")
					time.Sleep(50 * time.Millisecond)
				})
			}
			return fateSent
		})
		if err := m.Login(ctx, "ann"); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("%v", err)
		}
		if list := listed(t, m, t.Context(), "ann"); len(list) != 0 {
			t.Errorf("%d sessions", len(list))
		}
	})
}

// Who ends all sessions and logs in within one request is in.
func TestLoginAfterOnesOwnEndAll(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		client := rb.NewClient(t)
		seen := countCommands(client)
		lossy := sameSite(t, m, client, Config{})
		loadScripts(t, rb)
		for _, was := range []string{"", "a visitor", "ann"} {
			advance(t, rb, 10*time.Second)
			b := &browser{t, m, ""}
			if was != "" {
				b = begin(t, m, strings.TrimPrefix(was, "a visitor"))
			}
			other := begin(t, m, "ann")
			advance(t, rb, 10*time.Second)
			b.request(func(ctx context.Context) {
				for range 2 {
					if _, err := m.EndAll(ctx, "ann", Cause{}); err != nil {
						t.Fatal(err)
					}
				}
				if m.UserID(ctx) != "" {
					t.Error("its own session goes on")
				}
				if err := m.Login(ctx, "ann"); err != nil {
					t.Errorf("%q: %v", was, err)
				}
			})
			if answering(t, m, b.cookie) != 1 || answering(t, m, other.cookie) != 0 {
				t.Errorf("%q: not the one session that was expected", was)
			}
		}
		// The reply of the first is lost.
		advance(t, rb, 10*time.Second)
		ctx := load(t, lossy)
		seen.reset(func(n int, command string) fate {
			if command == "end_all" && n == 1 {
				return fateReplyLost
			}
			return fateSent
		})
		if _, err := lossy.EndAll(ctx, "ann", Cause{}); !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if _, err := lossy.EndAll(ctx, "ann", Cause{}); err != nil {
			t.Fatal(err)
		}
		if err := lossy.Login(ctx, "ann"); err != nil {
			t.Errorf("after a lost reply: %v", err)
		}
		finish(t, lossy, ctx)
		// Somebody else's in between counts.
		ctx = load(t, m)
		if _, err := m.EndAll(ctx, "ann", Cause{}); err != nil {
			t.Fatal(err)
		}
		endAll(t, m, "ann")
		if err := m.Login(ctx, "ann"); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("after another's: %v", err)
		}
		// And so does one before its own.
		ctx = load(t, m)
		endAll(t, m, "ann")
		if _, err := m.EndAll(ctx, "ann", Cause{}); err != nil {
			t.Fatal(err)
		}
		if err := m.Login(ctx, "ann"); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("before its own: %v", err)
		}
	})
}

// repliesLate holds up the replies of logins.
type repliesLate struct {
	onlyCommands
	by time.Duration
}

func (l repliesLate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if nameOf(cmd) == "login" {
			time.Sleep(l.by)
		}
		return err
	}
}

func (repliesLate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A login that is refused since it cannot be told from one of before an end ends nobody's session.
func TestARefusedLoginEndsNobody(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("its clock stands still")
		}
		const timeout = 5 * time.Second
		client := rb.NewClient(t)
		client.AddHook(repliesLate{by: 200 * time.Millisecond})
		m, slow := manager(t, rb, Config{Timeout: timeout}), managerOver(t, client, Config{Timeout: timeout})
		for name, opts := range map[string]func(handle string) []LoginOption{
			"at the cap":    func(string) []LoginOption { return []LoginOption{MaxSessions(1)} },
			"in its place":  func(h string) []LoginOption { return []LoginOption{Replacing(h)} },
			"under the cap": func(h string) []LoginOption { return []LoginOption{MaxSessions(2), Replacing(h)} },
		} {
			begin(t, slow, "warm") // it knows the clock of Redis
			user := "ann " + name
			b := begin(t, m, user)
			b.request(func(ctx context.Context) {
				if _, err := m.EndOthers(ctx, Cause{}); err != nil {
					t.Fatal(err)
				}
			})
			with := opts(handleOf(t, m, b))
			time.Sleep(20 * time.Millisecond)
			if err := slow.Login(load(t, slow), user, with...); !errors.Is(err, ErrStaleLogin) {
				t.Errorf("%s: %v", name, err)
			}
			if answering(t, m, b.cookie) != 1 || len(listed(t, m, t.Context(), user)) != 1 {
				t.Errorf("%s: it has ended the session that was there", name)
			}
			if answering(t, m, begin(t, m, user).cookie) != 1 { // it fails where a login that ends nobody is refused
				t.Errorf("%s: a login that ends nobody does not answer", name)
			}
			// Once the end is longer ago than any reply takes, nothing is in its way.
			advance(t, rb, timeout, m, slow)
			ctx := load(t, m)
			if err := m.Login(ctx, user, with...); err != nil {
				t.Errorf("%s: later: %v", name, err)
			}
			if finish(t, m, ctx); answering(t, m, b.cookie) != 0 {
				t.Errorf("%s: later it ended nobody", name)
			}
		}
	})
}

func TestNeverMoreSessionsThanAllowed(t *testing.T) {
	for _, full := range []WhenFull{EndIdlest, RefuseLogin} {
		each(t, Config{Accounts: Accounts{WhenFull: full}, Timeout: time.Minute}, func(t *testing.T, rb redistest.Backend, m *Manager) {
			const most = 3
			var mu sync.Mutex
			var cookies []string
			in := 0
			logins := 100
			if redistest.RaceDetector {
				logins = 30
			}
			atOnce(logins, func(i int) {
				b := &browser{t, m, ""}
				var err error
				b.request(func(ctx context.Context) { err = m.Login(ctx, "ann", MaxSessions(most)) })
				mu.Lock()
				defer mu.Unlock()
				cookies = append(cookies, b.cookie)
				switch {
				case err == nil:
					in++
				case full == EndIdlest || !errors.Is(err, ErrTooManySessions):
					t.Error(err)
				}
				if n := answering(t, m, cookies...); n > most {
					t.Errorf("%d sessions answer", n)
				}
			})
			if n := answering(t, m, cookies...); n != most || full == RefuseLogin && in != most {
				t.Errorf("%d sessions answer, %d logged in", n, in)
			}
			if list := listed(t, m, t.Context(), "ann"); len(list) != most {
				t.Errorf("%d are listed", len(list))
			}
		})
	}
}

func TestWhoMakesRoom(t *testing.T) {
	each(t, Config{Accounts: Accounts{Max: 3}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		var b [4]*browser
		for i := range 3 {
			b[i] = begin(t, m, "ann")
			advance(t, rb, time.Minute, m)
		}
		advance(t, rb, 10*time.Minute, m)
		b[0].request(func(context.Context) {}) // the oldest is in use
		for i, info := range listed(t, m, t.Context(), "ann") {
			if want := b[[]int{0, 2, 1}[i]]; info.Handle != handleOf(t, m, want) {
				t.Errorf("place %d of the list is not by the last use", i)
			}
		}
		b[3] = begin(t, m, "ann")
		if answering(t, m, b[0].cookie, b[2].cookie, b[3].cookie) != 3 || answering(t, m, b[1].cookie) != 0 {
			t.Error("it was not the idlest")
		}
		if got := m.Ended(load(t, m, b[1].cookie)); got != Replaced {
			t.Errorf("%q", got)
		}
		// One's own does not count.
		b[0].request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
		})
		if n := answering(t, m, b[0].cookie, b[2].cookie, b[3].cookie); n != 3 {
			t.Errorf("%d after a login over one's own", n)
		}
		// A visitor's and half of a login do not count either.
		half := &browser{t, m, ""}
		half.request(func(ctx context.Context) {
			if err := m.BeginLogin(ctx, "ann", time.Minute); err != nil {
				t.Error(err)
			}
		})
		if n := answering(t, m, b[0].cookie, b[2].cookie, b[3].cookie); n != 3 {
			t.Errorf("%d beside half of a login", n)
		}
		// Replacing.
		h := handleOf(t, m, b[2])
		half.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann", Replacing(h)); err != nil {
				t.Error(err)
			}
		})
		if answering(t, m, b[2].cookie) != 0 || answering(t, m, b[0].cookie, b[3].cookie, half.cookie) != 3 {
			t.Error("not the named one was replaced")
		}
		ctx := load(t, m)
		for _, wrong := range []string{h, "x", handleOf(t, m, begin(t, m, "bob"))} {
			if err := m.Login(ctx, "ann", Replacing(wrong)); !errors.Is(err, ErrUnknownHandle) || m.UserID(ctx) != "" {
				t.Errorf("replacing %q: %v", wrong, err)
			}
		}
		if err := m.Login(ctx, "ann", MaxSessions(0)); err == nil || !strings.Contains(err.Error(), "MaxSessions(0)") {
			t.Errorf("MaxSessions(0): %v", err)
		}
		// What has expired here does not count, though it stands for servers with longer lives.
		short := sameSite(t, m, rb.NewClient(t), Config{Accounts: Accounts{Max: 3, WhenFull: RefuseLogin}, IdleTimeout: 5 * time.Minute})
		advance(t, rb, 20*time.Minute, m, short)
		b[0].request(func(context.Context) {})
		if list := listed(t, short, t.Context(), "ann"); len(list) != 1 {
			t.Errorf("%d are listed under a shorter IdleTimeout", len(list))
		}
		for range 2 {
			if err := short.Login(load(t, short), "ann"); err != nil {
				t.Error(err)
			}
		}
		if err := short.Login(load(t, short), "ann"); !errors.Is(err, ErrTooManySessions) {
			t.Errorf("full: %v", err)
		}
	})
}

// A login whose process dies before its response fills no place for long, where it would lock
// out.
func TestUnfinishedLoginsFillNoPlace(t *testing.T) {
	each(t, Config{Accounts: Accounts{Max: 1, WhenFull: RefuseLogin}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		if err := m.Login(load(t, m), "ann"); err != nil { // and nothing more is heard of it
			t.Fatal(err)
		}
		if err := m.Login(load(t, m), "ann"); !errors.Is(err, ErrTooManySessions) {
			t.Error(err)
		}
		advance(t, rb, m.records.timeout+m.records.grace+time.Millisecond, m)
		b := begin(t, m, "ann")
		advance(t, rb, m.records.timeout+m.records.grace+time.Millisecond, m)
		if answering(t, m, b.cookie) != 1 {
			t.Error("a login that was finished is over, too")
		}
		if err := m.Login(load(t, m), "ann"); !errors.Is(err, ErrTooManySessions) {
			t.Error(err)
		}
	})
}

func TestHalfOfALogin(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		half := func(b *browser, user string) {
			t.Helper()
			b.request(func(ctx context.Context) {
				if err := m.BeginLogin(ctx, user, 10*time.Minute); err != nil {
					t.Fatal(err)
				}
				if m.LoginBegun(ctx) != user || m.UserID(ctx) != "" {
					t.Errorf("%q has begun, %q is in", m.LoginBegun(ctx), m.UserID(ctx))
				}
			})
		}
		b := begin(t, m, "")
		planted := b.cookie
		half(b, "ann")
		see := func(cookie string) string {
			ctx := load(t, m, cookie)
			return fmt.Sprintf("%s %s %v", m.UserID(ctx), m.LoginBegun(ctx), m.Exists(ctx, "k"))
		}
		if got := see(planted); got != "  false" {
			t.Errorf("a planted cookie sees %q", got)
		}
		if got := see(b.cookie); got != " ann true" {
			t.Errorf("half in: %q", got)
		}
		if list := listed(t, m, t.Context(), "ann"); len(list) != 0 {
			t.Errorf("half a login is listed: %+v", list)
		}
		before := b.cookie
		b.request(func(ctx context.Context) {
			m.Put(ctx, "second", 2)
			if err := m.Login(ctx, m.LoginBegun(ctx)); err != nil {
				t.Fatal(err)
			}
		})
		if got := see(b.cookie); got != "ann  true" || see(before) != "  false" {
			t.Errorf("in: %q, its half %q", got, see(before))
		}
		// Over a login it ends that one and starts empty, and so it does over another's half.
		was := b.cookie
		half(b, "ann")
		if got := see(b.cookie); got != " ann false" || answering(t, m, was) != 0 {
			t.Errorf("over a login: %q", got)
		}
		b.request(func(ctx context.Context) { m.Put(ctx, "k", "ann's") })
		half(b, "bob")
		if got := see(b.cookie); got != " bob false" {
			t.Errorf("over another's half: %q", got)
		}
		b.request(func(ctx context.Context) { m.Put(ctx, "k", "bob's") })
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		if got := see(b.cookie); got != "ann  false" {
			t.Errorf("another's login over a half: %q", got)
		}
		// Its time passes, and the visitor stays.
		b = begin(t, m, "")
		half(b, "ann")
		advance(t, rb, 10*time.Minute+time.Second, m)
		if got := see(b.cookie); got != "  true" {
			t.Errorf("after its time: %q", got)
		}
		// What follows it in a later request of its own may log in.
		if err := m.Login(load(t, m, b.cookie), "ann"); err != nil {
			t.Error(err)
		}
		for _, within := range []time.Duration{0, -1, 25 * time.Hour} {
			if err := m.BeginLogin(load(t, m), "ann", within); err == nil || !strings.Contains(err.Error(), within.String()) {
				t.Errorf("within %v: %v", within, err)
			}
		}
		if err := m.BeginLogin(load(t, m), "", time.Minute); !errors.Is(err, ErrNoUser) {
			t.Error(err)
		}
	})
}

// EndAll at any time after the password was checked refuses the second step.
func TestEndAllRefusesTheSecondStep(t *testing.T) {
	each(t, Config{Accounts: Accounts{Max: 1, WhenFull: RefuseLogin}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		tick := func() { advance(t, rb, 10*time.Second) }
		beginIn := func(ctx context.Context) error { return m.BeginLogin(ctx, "ann", time.Hour) }
		// Before BeginLogin.
		ctx := load(t, m)
		tick()
		endAll(t, m, "ann")
		if err := beginIn(ctx); !errors.Is(err, ErrStaleLogin) || m.LoginBegun(ctx) != "" {
			t.Errorf("before BeginLogin: %v", err)
		}
		tick()
		// Between the steps, whether the second has been loaded or not.
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = beginIn(ctx) })
		second := load(t, m, b.cookie)
		tick()
		endAll(t, m, "ann")
		tick()
		if m.LoginBegun(load(t, m, b.cookie)) != "" {
			t.Error("half a login goes on after EndAll")
		}
		if err := m.Login(second, "ann"); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("between the steps: %v", err)
		}
		if err := m.BeginLogin(second, "ann", time.Hour); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("between the steps, begun again: %v", err)
		}
		// Begun, refused at the cap, begun again.
		in := begin(t, m, "ann")
		b = &browser{t, m, ""}
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); !errors.Is(err, ErrTooManySessions) {
				t.Error(err)
			}
			if err := beginIn(ctx); err != nil {
				t.Error(err)
			}
		})
		second = load(t, m, b.cookie)
		if err := m.Login(second, "ann"); !errors.Is(err, ErrTooManySessions) {
			t.Error(err)
		}
		tick()
		endAll(t, m, "ann")
		tick()
		if err := beginIn(second); !errors.Is(err, ErrStaleLogin) {
			t.Errorf("begun again after a refusal: %v", err)
		}
		// Without an EndAll all of that works, however long it takes.
		in = begin(t, m, "ann")
		b = &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = beginIn(ctx) })
		advance(t, rb, 10*time.Minute, m)
		b.request(func(ctx context.Context) {
			if err := beginIn(ctx); err != nil {
				t.Error(err)
			}
		})
		advance(t, rb, 40*time.Minute, m)
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, m.LoginBegun(ctx), Replacing(handleOf(t, m, in))); err != nil {
				t.Error(err)
			}
		})
		if answering(t, m, b.cookie) != 1 || answering(t, m, in.cookie) != 0 {
			t.Error("the second step did not log in")
		}
	})
}

func TestConfirm(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		advance(t, rb, time.Hour/2, m)
		was, before := b.cookie, m.Info(load(t, m, b.cookie))
		b.request(func(ctx context.Context) {
			m.Put(ctx, "late", 1)
			if m.AuthenticatedWithin(ctx, time.Minute) {
				t.Error("fresh already")
			}
			if err := m.Confirm(ctx); err != nil {
				t.Fatal(err)
			}
			if !m.AuthenticatedWithin(ctx, time.Minute) {
				t.Error("not fresh")
			}
			m.Put(ctx, "later", 2)
		})
		ctx := load(t, m, b.cookie)
		after := m.Info(ctx)
		if b.cookie == was || answering(t, m, was) != 0 {
			t.Error("the old ID lives")
		}
		if !after.AuthenticatedAt.After(before.AuthenticatedAt.Add(29*time.Minute)) || !after.Created.Equal(before.Created) ||
			!after.Expires.Equal(before.Expires) || after.Handle != before.Handle || len(listed(t, m, ctx, "ann")) != 1 {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		if m.GetInt(ctx, "late") != 1 || m.GetInt(ctx, "later") != 2 || m.GetString(ctx, "k") != "v" {
			t.Error("values are missing")
		}
		// Two of one browser at once leave one live ID.
		cookies := make([]string, 2)
		ctxs := []context.Context{load(t, m, b.cookie), load(t, m, b.cookie)}
		atOnce(2, func(i int) {
			if err := m.Confirm(ctxs[i]); err != nil && !errors.Is(err, ErrEnded) { // the other was done already
				t.Error(err)
			}
			if o := finish(t, m, ctxs[i]); o.Action == CookieSet {
				cookies[i] = o.Value
			}
		})
		if n := answering(t, m, append(cookies, b.cookie)...); n != 1 {
			t.Errorf("%d live IDs", n)
		}
		// What another request puts meanwhile is kept.
		b.cookie = cookies[0] + cookies[1]
		if answering(t, m, cookies[0]) == 1 {
			b.cookie = cookies[0]
		} else {
			b.cookie = cookies[1]
		}
		ctx = load(t, m, b.cookie)
		if err := m.Confirm(ctx); err != nil {
			t.Fatal(err)
		}
		(&browser{t, m, b.cookie}).request(func(ctx context.Context) { m.Put(ctx, "other", 3) })
		b.take(finish(t, m, ctx))
		if m.GetInt(load(t, m, b.cookie), "other") != 3 {
			t.Error("a put of another request is lost")
		}
		// An end in between wins.
		ctx = load(t, m, b.cookie)
		if err := m.Confirm(ctx); err != nil {
			t.Fatal(err)
		}
		endAll(t, m, "ann")
		if o := finish(t, m, ctx); o.Action == CookieSet || len(listed(t, m, t.Context(), "ann")) != 0 {
			t.Errorf("EndAll in the middle: %+v", o)
		}
		if err := m.Confirm(load(t, m, begin(t, m, "").cookie)); !errors.Is(err, ErrNoUser) {
			t.Errorf("a visitor: %v", err)
		}
		advance(t, rb, 10*time.Second)
		ctx = load(t, m, begin(t, m, "ann").cookie)
		endAll(t, m, "ann")
		if err := m.Confirm(ctx); !errors.Is(err, ErrEnded) || m.Ended(ctx) != Revoked {
			t.Errorf("ended: %v, %q", err, m.Ended(ctx))
		}
	})
}

// A login does not become fresh again, or stay so for longer, when Redis's clock is set back.
func TestFreshAfterTheClockWasSetBack(t *testing.T) {
	each(t, Config{Timeout: 5 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		fresh := func(after time.Duration, want bool) {
			t.Helper()
			advance(t, rb, after, m)
			if got := m.AuthenticatedWithin(load(t, m, b.cookie), time.Minute); got != want {
				t.Errorf("%v", got)
			}
		}
		fresh(-time.Second, true) // as far as the estimate of the clock may be off
		fresh(-10*time.Minute, false)
		fresh(9*time.Minute, false)
		b.request(func(ctx context.Context) {
			if err := m.Confirm(ctx); err != nil {
				t.Fatal(err)
			}
		})
		fresh(0, true)
	})
}

// What another request has saved of Remember goes on in a new ID, unless this one has asked itself.
func TestRememberBesideANewID(t *testing.T) {
	each(t, Config{Remembered: Life{Lifetime: 30 * 24 * time.Hour, IdleTimeout: -1}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for name, c := range map[string]struct {
			user string
			do   func(ctx context.Context, user string) error
		}{
			"Confirm":                 {"ann", func(ctx context.Context, _ string) error { return m.Confirm(ctx) }},
			"EndOthers":               {"ann", func(ctx context.Context, _ string) error { _, err := m.EndOthers(ctx, Cause{}); return err }},
			"Login":                   {"ann", func(ctx context.Context, user string) error { return m.Login(ctx, user) }},
			"Login of a visitor":      {"", func(ctx context.Context, user string) error { return m.Login(ctx, user) }},
			"BeginLogin of a visitor": {"", func(ctx context.Context, user string) error { return m.BeginLogin(ctx, user, time.Minute) }},
		} {
			for _, before := range []bool{false, true} {
				for _, own := range []bool{false, true} {
					advance(t, rb, 10*time.Second, m) // a login is as young as the end
					b := begin(t, m, c.user)
					b.request(func(ctx context.Context) { m.Remember(ctx, before) })
					mine, other := load(t, m, b.cookie), load(t, m, b.cookie)
					if own {
						m.Remember(mine, !before)
					}
					if err := c.do(mine, "ann"); err != nil {
						t.Fatal(err)
					}
					if !own {
						m.Remember(other, !before)
					}
					m.Put(other, "a", "b")
					if err := m.Commit(other); err != nil {
						t.Fatal(err)
					}
					o := finish(t, m, mine)
					b.take(o)
					ctx := load(t, m, b.cookie)
					info := m.Info(ctx)
					if info.Persistent == before || (o.MaxAge > 0) == before || m.GetString(ctx, "a") != "b" {
						t.Errorf("%s: before %v, own %v: %+v, cookie for %v", name, before, own, info, o.MaxAge)
					}
					if c.user+m.UserID(ctx) != "" && (info.Expires.Sub(info.Created) > 24*time.Hour) == before {
						t.Errorf("%s: before %v, own %v: of the other kind: %+v", name, before, own, info)
					}
				}
			}
		}
	})
}

// With Secrets nothing of a list can be read in Redis, and what was moved to another place does
// not open. Nothing that a list shows leads to a session.
func TestListsAtRest(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb, Config{Secrets: [][]byte{secret}})
		logIn := func(user, label string) *browser {
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) {
				m.Describe(ctx, func() string { return label })
				if err := m.Login(ctx, user); err != nil {
					t.Fatal(err)
				}
			})
			return b
		}
		ann := logIn("ann.user", "Firefox on Windows")
		logIn("ann.user", "Safari on iPhone")
		bob := logIn("bob.user", "curl")
		half := &browser{t, m, ""}
		half.request(func(ctx context.Context) {
			if err := m.BeginLogin(ctx, "ann.user", time.Minute); err != nil {
				t.Fatal(err)
			}
		})
		at := idOf(t, m, ann.cookie)
		all, err := rb.Client.HGetAll(t.Context(), at.key).Result()
		if err != nil {
			t.Fatal(err)
		}
		for field, raw := range all {
			for _, word := range []string{"ann", "Firefox", "Safari", "user"} {
				if strings.Contains(raw, word) || strings.Contains(field, word) {
					t.Errorf("%q stands in Redis", word)
				}
			}
		}
		list := listed(t, m, t.Context(), "ann.user")
		if len(list) != 2 {
			t.Fatalf("%+v", list)
		}
		shown := fmt.Sprintf("%+v", list)
		for _, secret := range []string{ann.cookie, at.field, string(at.token[:]), at.key} {
			if strings.Contains(shown, secret) {
				t.Error("a list shows what leads to a session")
			}
		}
		for _, i := range list {
			if got := m.UserID(load(t, m, i.Handle)); got != "" {
				t.Error("a handle is a cookie")
			}
		}
		// Bob's record among those of ann, and one of ann's moved to another field.
		other := idOf(t, m, bob.cookie)
		stolen, err := rb.Client.HGet(t.Context(), other.key, other.field).Result()
		if err != nil {
			t.Fatal(err)
		}
		if err := rb.Client.HSet(t.Context(), at.key, other.field, stolen, strings.Repeat("x", fieldLen), all[at.field]).Err(); err != nil {
			t.Fatal(err)
		}
		if err := rb.Client.HDel(t.Context(), at.key, at.field).Err(); err != nil {
			t.Fatal(err)
		}
		if again := listed(t, m, t.Context(), "ann.user"); len(again) != 1 {
			t.Errorf("%d are listed after records were moved", len(again))
		}
	})
}

// Servers that have an old secret, a new one, or both: EndAll and the cap hold on all of them.
func TestAccountsWhileSecretsChange(t *testing.T) {
	next := []byte("the next secret, of 32 bytes too")
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		var servers []*Manager
		for _, secrets := range [][][]byte{{secret}, {secret, next}, {next, secret}, {next}} {
			servers = append(servers, managerOver(t, rb.Client, Config{Secrets: secrets, Accounts: Accounts{Max: 3}}))
		}
		var cookies [8]string
		for i := range cookies {
			m := servers[i%len(servers)]
			b := begin(t, m, "ann")
			cookies[i] = b.cookie
			advance(t, rb, time.Second, servers...)
			answers := 0
			for j, c := range cookies[:i+1] {
				answers += answering(t, servers[j%len(servers)], c)
			}
			if answers != min(i+1, 3) {
				t.Errorf("%d sessions answer after %d logins", answers, i+1)
			}
		}
		for _, m := range servers {
			b := begin(t, servers[0], "ann")
			advance(t, rb, time.Second, servers...)
			endAll(t, m, "ann")
			if answering(t, servers[0], b.cookie) != 0 {
				t.Error("EndAll on another server did not reach it")
			}
			advance(t, rb, time.Second, servers...)
		}
	})
}

// The hash of a user that is lost whole ends all sessions, none half, and its expiry is never
// before that of its last session or of its fence.
func TestTheHashOfAUser(t *testing.T) {
	each(t, Config{IdleTimeout: time.Hour, Lifetime: 10 * time.Hour}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		var cookies []string
		for range 3 {
			cookies = append(cookies, begin(t, m, "ann").cookie)
		}
		key := idOf(t, m, cookies[0]).key
		ttl := func() time.Duration { return rb.Client.PTTL(t.Context(), key).Val() }
		if ttl() < time.Hour {
			t.Errorf("%v", ttl())
		}
		advance(t, rb, 50*time.Minute, m)
		if _, err := m.EndAll(t.Context(), "ann", Cause{}); err != nil {
			t.Fatal(err)
		}
		if ttl() < 10*time.Hour-time.Minute {
			t.Errorf("after EndAll: %v", ttl())
		}
		advance(t, rb, time.Second)
		begin(t, m, "ann")
		if ttl() < 10*time.Hour-time.Minute {
			t.Errorf("after a login: %v", ttl())
		}
		rb.Client.Del(t.Context(), key)
		if n := answering(t, m, cookies...); n != 0 || len(listed(t, m, t.Context(), "ann")) != 0 {
			t.Errorf("%d answer", n)
		}
		// A user without a session can be ended: the fence alone stands, and goes.
		if _, err := m.EndAll(t.Context(), "nobody yet", Cause{}); err != nil {
			t.Fatal(err)
		}
		nobody := m.records.keys.key(m.records.keys.user("nobody yet"))
		if left := rb.Client.PTTL(t.Context(), nobody).Val(); left < 10*time.Hour-time.Minute || left > 10*time.Hour+time.Minute {
			t.Errorf("a fence alone stands for %v", left)
		}
		advance(t, rb, 10*time.Hour+time.Minute, m)
		if n := rb.Client.Exists(t.Context(), nobody).Val(); n != 0 {
			t.Error("the fence is still there")
		}
	})
}

// NotBefore ends what began earlier, on the servers that have it, and no visitor's session.
func TestNotBefore(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		early, visitor := begin(t, m, "ann"), begin(t, m, "")
		advance(t, rb, time.Minute, m)
		since := sameSite(t, m, rb.Client, Config{Accounts: Accounts{NotBefore: rb.Now(t).Add(-30 * time.Second)}})
		late := begin(t, since, "ann")
		if answering(t, since, early.cookie) != 0 || answering(t, since, late.cookie) != 1 || len(listed(t, since, t.Context(), "ann")) != 1 {
			t.Error("not what began since answers")
		}
		if since.GetString(load(t, since, visitor.cookie), "k") != "v" {
			t.Error("a visitor's session is over")
		}
	})
}

// Whatever is passed as a user, a handle or a reason has a clear outcome.
func TestOddAccounts(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for _, user := range []string{"a", "\x00", "\xff\xfe", "{x}", "a}b{", strings.Repeat("u", maxUserID), "ünï", "*"} {
			b := begin(t, m, user)
			if list := listed(t, m, load(t, m, b.cookie), user); len(list) != 1 || list[0].UserID != user || !list[0].Current {
				t.Errorf("%.20q: %+v", user, list)
			}
			if ended := endAll(t, m, user); len(ended) != 1 || answering(t, m, b.cookie) != 0 {
				t.Errorf("%.20q: %d ended", user, len(ended))
			}
		}
		large := strings.Repeat("u", 1<<20)
		_, listErr := m.List(t.Context(), large)
		_, endErr := m.EndAll(t.Context(), large, Cause{})
		for name, err := range map[string]error{
			"Login": m.Login(load(t, m), large), "BeginLogin": m.BeginLogin(load(t, m), large, time.Minute),
			"List": listErr, "EndAll": endErr, "End": m.End(t.Context(), large, "x", Cause{}),
		} {
			if err == nil || !strings.Contains(err.Error(), "1048576 bytes") || len(err.Error()) > 200 {
				t.Errorf("%s: %.200v", name, err)
			}
		}
		if _, err := m.List(t.Context(), ""); !errors.Is(err, ErrNoUser) {
			t.Error(err)
		}
		if list := listed(t, m, t.Context(), "unknown"); len(list) != 0 {
			t.Errorf("%+v", list)
		}
		for _, accounts := range []Accounts{{Max: -1}, {Max: 1001}, {WhenFull: 2}, {NotBefore: time.Now().Add(48 * time.Hour)}} {
			if _, err := New(rb.Client, Config{Accounts: accounts}); err == nil || !strings.Contains(err.Error(), "Accounts.") {
				t.Errorf("%+v: %v", accounts, err)
			}
		}
	})
}

// While the slot of a user moves between the nodes of a cluster, each act on the user's sessions
// succeeds, whole.
func TestAccountsWhileTheirSlotMoves(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t)
	m := managerOver(t, cluster.Client(), Config{Timeout: 10 * time.Second})
	key := m.records.keys.key(m.records.keys.user("ann"))
	begin(t, m, "ann")
	over := make(chan struct{})
	var moves sync.WaitGroup
	var moved atomic.Int64
	moves.Go(func() {
		for ; ; moved.Add(1) {
			select {
			case <-over:
				return
			default:
				cluster.MoveSlot(key, 20*time.Millisecond)
				time.Sleep(40 * time.Millisecond)
			}
		}
	})
	// A login that takes longer than it is since the last EndAll cannot be told from one of before.
	login := func() *browser {
		for {
			ctx := load(t, m)
			m.Put(ctx, "k", "v")
			switch err := m.Login(ctx, "ann"); {
			case err == nil:
				return &browser{t, m, finish(t, m, ctx).Value}
			case err != ErrStaleLogin:
				t.Fatal(err)
			}
		}
	}
	for round := 0; round < 100 || moved.Load() < 5 && round < 10_000; round++ {
		a, b := login(), login()
		a.request(func(ctx context.Context) { m.Put(ctx, "k", 1); _ = m.Rotate(ctx) })
		a.request(func(ctx context.Context) {
			if err := m.Confirm(ctx); err != nil {
				t.Error(err)
			}
		})
		if list := listed(t, m, t.Context(), "ann"); len(list) < 2 {
			t.Errorf("%d are listed", len(list))
		}
		if err := m.End(t.Context(), "ann", handleOf(t, m, b), Cause{}); err != nil {
			t.Error(err)
		}
		if answering(t, m, a.cookie) != 1 || answering(t, m, b.cookie) != 0 {
			t.Error("not the one was ended")
		}
		if ended := endAll(t, m, "ann"); len(ended) == 0 || answering(t, m, a.cookie) != 0 {
			t.Errorf("%d ended", len(ended))
		}
	}
	close(over)
	moves.Wait()
	if moved.Load() < 5 {
		t.Errorf("the slot has moved %d times", moved.Load())
	}
}
