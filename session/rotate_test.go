package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// seen is what a cookie shows.
type seen struct {
	user   string
	values string // as fmt prints the map, which is sorted
	id     string // fingerprint
	dead   bool
}

func look(t testing.TB, m *Manager, cookie string) seen {
	t.Helper()
	ctx := load(t, m, cookie)
	info := m.Info(ctx)
	return seen{info.UserID, fmt.Sprint(valuesOf(m, ctx)), info.Fingerprint, m.store.state(ctx).dead}
}

// has tells whether a value is there.
func has(t testing.TB, m *Manager, cookie, key string) bool {
	t.Helper()
	return m.Exists(load(t, m, cookie), key)
}

// act is what one request does.
type act struct {
	name string
	do   func(m *Manager, ctx context.Context) error
}

var (
	actSave     = act{"save", func(m *Manager, ctx context.Context) error { return nil }}
	actRotate   = act{"rotate", func(m *Manager, ctx context.Context) error { return m.Rotate(ctx) }}
	actLoginAnn = act{"login ann", func(m *Manager, ctx context.Context) error { return m.Login(ctx, "ann") }}
	actLoginBob = act{"login bob", func(m *Manager, ctx context.Context) error { return m.Login(ctx, "bob") }}
	actLogout   = act{"logout", func(m *Manager, ctx context.Context) error { return m.Logout(ctx) }}
)

// TestInterleavings runs one request in each gap between the Redis commands of
// another request with the same cookie, for all pairs of what they may do.
func TestInterleavings(t *testing.T) {
	each(t, Config{}, func(t *testing.T, b redistest.Backend, m *Manager) {
		for _, wrong := range interleavings(t, b, m) {
			t.Error(wrong)
		}
	})
}

func TestInterleavingsCatchAnUnconditionalStore(t *testing.T) {
	server := redistest.Shared(t)
	b := redistest.Backend{Client: server.Client(), Addrs: []string{server.Addr()}}
	if wrong := interleavings(t, b, manager(t, b, Config{}), unconditional{}); len(wrong) < 10 {
		t.Errorf("only %q", wrong)
	}
}

// interleavings returns what went wrong.
func interleavings(t *testing.T, b redistest.Backend, m *Manager, hooks ...redis.Hook) (wrong []string) {
	acts := []act{actSave, actRotate, actLoginAnn, actLoginBob, actLogout}
	client := b.NewClient(t)
	hook := countCommands(client)
	for _, h := range hooks {
		client.AddHook(h)
	}
	slow, err := New(client, m.config(t))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, start := range []string{"", "ann"} {
		for _, x := range acts {
			for _, y := range acts {
				for gap := 1; ; gap++ {
					more, ran := interleave(t, m, slow, hook, start, x, y, gap)
					if !ran {
						break
					}
					n++
					wrong = append(wrong, more...)
				}
			}
		}
	}
	if want := 2 * len(acts) * len(acts); n < want {
		t.Errorf("%d interleavings, expected at least %d", n, want)
	}
	return wrong
}

// interleave runs x on slow, and y on m before command number gap of x's commit
// (or of its logout). It tells what is wrong afterwards, and whether there was
// such a command.
func interleave(t *testing.T, m, slow *Manager, hook *commands, start string, x, y act, gap int) (wrong []string, ran bool) {
	t.Helper()
	begin := &browser{t, m, ""}
	begin.request(func(ctx context.Context) {
		m.Put(ctx, "first", 1)
		if start != "" {
			if err := m.Login(ctx, start); err != nil {
				t.Fatal(err)
			}
		}
	})
	first := begin.cookie
	bx, by := &browser{t, slow, first}, &browser{t, m, first}
	where := fmt.Sprintf("start %q, x %s, y %s in gap %d", start, x.name, y.name, gap)

	ctx := load(t, slow, bx.cookie)
	hook.reset(func(n int, command string) fate {
		if n == gap && !ran {
			ran = true
			by.request(func(ctx context.Context) {
				m.Put(ctx, "y", 1)
				if err := y.do(m, ctx); err != nil {
					t.Fatalf("%s: y: %v", where, err)
				}
			})
		}
		return fateSent
	})
	slow.Put(ctx, "x", 1)
	if err := x.do(slow, ctx); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	bx.take(commit(t, slow, ctx))
	hook.reset(nil)
	if !ran {
		return nil, false
	}

	old, sx, sy := look(t, m, first), look(t, m, bx.cookie), look(t, m, by.cookie)
	bad := func(format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s: %s\n  first cookie %+v\n  x's cookie   %+v\n  y's cookie   %+v", where, fmt.Sprintf(format, args...), old, sx, sy))
	}
	login := func(a act) string {
		switch a.name {
		case actLoginAnn.name:
			return "ann"
		case actLoginBob.name:
			return "bob"
		}
		return ""
	}
	userX, userY := login(x), login(y)
	switch {
	case userX != "" && sx.user != userX:
		bad("x's login does not stand")
	case userY != "" && sy.user != userY:
		bad("y's login does not stand")
	}
	if userX != "" || userY != "" || x.name == "logout" || y.name == "logout" {
		// Whatever else happens, the first ID is nobody's any more.
		if old.user != "" || old.values != "map[]" {
			bad("the first ID still leads to a session")
		}
	}
	for _, s := range []struct {
		seen
		own, other act
		key        string // that the other put
	}{{sx, x, y, "y"}, {sy, y, x, "x"}} {
		other := start != "" && login(s.own) != "" && login(s.own) != start
		switch {
		case login(s.own) == "" && (login(s.other) != "" || s.other.name == "logout" || s.own.name == "logout"):
			if s.user != "" || s.values != "map[]" {
				bad("%s leads to a session that the other ended", s.own.name)
			}
		case other && s.values != "map[]":
			bad("%s sees %s", login(s.own), s.values)
		}
	}
	switch {
	case userX == "" && userY == "" && x.name != "logout" && y.name != "logout":
		if old.user != start || sx.user != start || sy.user != start || old.id != sx.id || sx.id != sy.id {
			bad("not one session")
		}
		if sx.values != "map[first:1 x:1 y:1]" {
			bad("a write is lost")
		}
	case userX != "" && userY != "" && (start == "" || start == userX && start == userY):
		if sx.id == sy.id || !has(t, m, bx.cookie, "first") || !has(t, m, by.cookie, "first") {
			bad("two logins do not both stand, or not with what was there before")
		}
	case userX != "" && y.name == "logout" && start == userX:
		// A logout that came first leaves to the login only what it put itself.
		if !has(t, m, bx.cookie, "x") {
			bad("the login lost its own value")
		}
	case userX != "" && userX == start || userX != "" && start == "":
		if !has(t, m, bx.cookie, "x") || !has(t, m, bx.cookie, "first") && y.name != "logout" {
			bad("the login lost values")
		}
		if y.name == "save" && gap == 1 && !has(t, m, bx.cookie, "y") {
			bad("what was saved before the login is lost")
		}
	}
	return wrong, true
}

// take keeps a cookie as a browser would.
func (b *browser) take(o Outcome) {
	switch o.Action {
	case CookieSet:
		b.cookie = o.Value
	case CookieDelete:
		b.cookie = ""
	}
}

// TestCrashes stops a request at each of its Redis commands, before and after
// it was executed, for good or only for this one command.
func TestCrashes(t *testing.T) {
	each(t, Config{}, func(t *testing.T, b redistest.Backend, m *Manager) {
		client := b.NewClient(t)
		hook := countCommands(client)
		failing, err := New(client, m.config(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []act{actSave, actRotate, actLoginAnn, actLoginBob, actLogout} {
			for _, start := range []string{"", "ann"} {
				for _, meanwhile := range []bool{false, true} {
					for _, f := range []fate{fateRefused, fateReplyLost} {
						for _, forGood := range []bool{true, false} {
							for k := 1; crash(t, m, failing, hook, start, x, meanwhile, f, forGood, k); k++ {
							}
						}
					}
				}
			}
		}
	})
}

func crash(t *testing.T, m, failing *Manager, hook *commands, start string, x act, meanwhile bool, f fate, forGood bool, k int) bool {
	t.Helper()
	where := fmt.Sprintf("start %q, %s, meanwhile %v, command %d, fate %d, for good %v", start, x.name, meanwhile, k, f, forGood)
	b := &browser{t, m, ""}
	b.request(func(ctx context.Context) {
		m.Put(ctx, "first", 1)
		if start != "" {
			_ = m.Login(ctx, start)
		}
	})
	first := b.cookie
	ctx := load(t, failing, first)
	if meanwhile {
		// A conflict on the way, which makes for more commands.
		(&browser{t, m, first}).request(func(ctx context.Context) { m.Put(ctx, "y", 1) })
	}
	failed := false
	hook.reset(func(n int, command string) fate {
		switch {
		case n == k:
			failed = true
			return f
		case n > k && forGood:
			return fateRefused
		}
		return fateSent
	})
	failing.Put(ctx, "x", 1)
	err := x.do(failing, ctx)
	var o Outcome
	if err == nil {
		o, err = failing.Commit(ctx)
	}
	hook.reset(nil)
	if !failed {
		return false
	}
	if err == nil {
		t.Errorf("%s: no error", where)
	}
	if !errors.Is(err, ErrUnavailable) || !errors.Is(err, errInjected) {
		t.Errorf("%s: %v", where, err)
	}
	if o != (Outcome{}) {
		t.Errorf("%s: %+v in spite of the error", where, o)
	}

	// The browser still has the first cookie.
	now := look(t, m, first)
	switch user := map[string]string{actLoginAnn.name: "ann", actLoginBob.name: "bob"}[x.name]; {
	case x.name == actLogout.name:
		if now.user != start && now.user != "" {
			t.Errorf("%s: %+v", where, now)
		}
	case user == "":
		if now.user != start || !has(t, m, first, "first") || meanwhile && !has(t, m, first, "y") {
			t.Errorf("%s: the session is lost: %+v", where, now)
		}
	default:
		if now.user != start && now.user != "" {
			t.Errorf("%s: the first ID is logged in: %+v", where, now)
		}
		retired := f == fateReplyLost && now.dead
		if !retired && (now.user != start || !has(t, m, first, "first")) {
			t.Errorf("%s: the session is lost, though its ID was not retired: %+v", where, now)
		}
	}

	// A second attempt succeeds, in this context and in a new one.
	if o, err = failing.Commit(ctx); err == nil && x.name == actLogout.name {
		if err = x.do(failing, ctx); err == nil {
			o, err = failing.Commit(ctx)
		}
	}
	if err != nil {
		t.Fatalf("%s: second attempt: %v", where, err)
	}
	b.cookie = first
	b.take(o)
	switch again := look(t, m, b.cookie); x.name {
	case actLogout.name:
		if again.user != "" || look(t, m, first).user != "" {
			t.Errorf("%s: still logged in: %+v", where, again)
		}
	case actSave.name, actRotate.name:
		if again.user != start || !has(t, m, b.cookie, "first") || !has(t, m, b.cookie, "x") || meanwhile && !has(t, m, b.cookie, "y") {
			t.Errorf("%s: second attempt: %+v", where, again)
		}
		if x.name == actRotate.name && b.cookie == first {
			t.Errorf("%s: second attempt did not rotate", where)
		}
	case actLoginAnn.name:
		if again.user != "ann" || !has(t, m, b.cookie, "x") || !has(t, m, b.cookie, "first") || b.cookie == first {
			t.Errorf("%s: second attempt: %+v", where, again)
		}
	case actLoginBob.name:
		if again.user != "bob" || b.cookie == first || start == "ann" && again.values != "map[]" {
			t.Errorf("%s: second attempt: %+v", where, again)
		}
	}
	fresh := &browser{t, m, first}
	fresh.request(func(ctx context.Context) {
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
	})
	if got := look(t, m, fresh.cookie); got.user != "ann" {
		t.Errorf("%s: cannot log in afterwards: %+v", where, got)
	}
	return true
}

func TestRotationInsideTheGrace(t *testing.T) {
	clock := newClock()
	each(t, Config{Grace: time.Minute, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
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
			if got := look(t, m, c); got.user != "" || got.values != "map[]" {
				t.Errorf("ID %d after logout: %+v", i, got)
			}
		}
	})
}

func TestAfterTheGraceARotatedIDIsUnknown(t *testing.T) {
	// Redis ends the grace, so this needs a Redis with a clock to set.
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini == nil {
			t.Skip("its clock cannot be set")
		}
		m := manager(t, rb, Config{Grace: time.Minute})
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		first := b.cookie
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		rb.Mini.FastForward(59 * time.Second)
		if look(t, m, first).user != "ann" {
			t.Error("inside the grace it does not work")
		}
		rb.Mini.FastForward(2 * time.Second)
		if got := look(t, m, first); got != (seen{values: "map[]"}) {
			t.Errorf("after the grace: %+v", got)
		}
		if look(t, m, b.cookie).user != "ann" {
			t.Error("the new ID does not work")
		}
	})
}

func TestLogoutFollowsAnyNumberOfRotations(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		ctx := load(t, m, b.cookie)
		for range 3 * maxHops {
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		}
		if err := m.Logout(ctx); err != nil {
			t.Fatal(err)
		}
		if look(t, m, b.cookie).user != "" {
			t.Error("the session outlived its logout")
		}
	})
}

func TestRotateEvery(t *testing.T) {
	clock := newClock()
	each(t, Config{RotateEvery: 10 * time.Minute, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		expires := m.Info(load(t, m, b.cookie)).Expires
		for round := range 5 {
			clock.add(9 * time.Minute)
			if o := b.request(func(context.Context) {}); o.Action != CookieKeep {
				t.Fatalf("rotated too early: %+v", o)
			}
			clock.add(time.Minute)
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

// TestLoginWhileAnotherWrites has the values of one user under way while
// another logs in with the same browser.
func TestLoginWhileAnotherWrites(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
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
