package session

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// counted returns a further Manager of m's site, whose commands are counted.
func counted(t testing.TB, rb redistest.Backend, m *Manager, cfg Config) (*Manager, *commands) {
	t.Helper()
	client := rb.NewClient(t)
	hook := countCommands(client)
	return sameSite(t, m, client, cfg), hook
}

// tellTime has a Manager ask for the time now, of every server, rather than in a request
// whose commands are counted.
func tellTime(t testing.TB, m *Manager) {
	t.Helper()
	for i := range m.records.clocks.of {
		if _, err := m.records.now(t.Context(), m.records.keys.fresh(owner{byte(i)})); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommandsOfARequest pins what each kind of request asks of Redis.
func TestCommandsOfARequest(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, IdleTimeout: 2 * time.Hour, Rotation: Rotation{Every: time.Hour}}
	large := strings.Repeat("x", apartAbove+1)
	each(t, cfg, func(t *testing.T, rb redistest.Backend, other *Manager) {
		m, hook := counted(t, rb, other, cfg)
		loadScripts(t, rb)
		tellTime(t, m)
		login := func(user string) func(ctx context.Context) {
			return func(ctx context.Context) {
				if err := m.Login(ctx, user); err != nil {
					t.Error(err)
				}
			}
		}
		commit := func(ctx context.Context) {
			if err := m.Commit(ctx); err != nil {
				t.Error(err)
			}
		}
		b := &browser{t, m, ""}
		check := func(name, want string, do func(ctx context.Context)) {
			t.Helper()
			hook.reset(nil)
			b.request(do)
			if got := strings.Join(hook.all(), " "); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		for _, step := range []struct {
			name  string
			after time.Duration
			do    func(ctx context.Context)
			want  string
		}{
			{"no cookie, a read", 0, func(ctx context.Context) { m.Get(ctx, "k") }, ""},
			{"no cookie, a removal of nothing", 0, func(ctx context.Context) { m.Remove(ctx, "k"); m.Pop(ctx, "k"); _ = m.Clear(ctx) }, ""},
			{"no cookie, put and taken away", 0, func(ctx context.Context) { m.Put(ctx, "k", 1); m.Remove(ctx, "k") }, ""},
			{"no cookie, a rotation", 0, func(ctx context.Context) { _ = m.Rotate(ctx) }, ""},
			{"no cookie, remember", 0, func(ctx context.Context) { m.Remember(ctx, true) }, ""},
			{"no cookie, a logout", 0, func(ctx context.Context) { _ = m.Logout(ctx) }, ""},
			{"a first put", 0, func(ctx context.Context) { m.Put(ctx, "k", 1) }, "create"},
			{"a read", 0, func(ctx context.Context) { m.Get(ctx, "k") }, "hget"},
			{"a removal of nothing", 0, func(ctx context.Context) { m.Remove(ctx, "none"); m.Pop(ctx, "none") }, "hget"},
			{"a put", 0, func(ctx context.Context) { m.Put(ctx, "k", 2) }, "hget save"},
			{"a put of the same", 0, func(ctx context.Context) { m.Put(ctx, "k", 2) }, "hget save"},
			{"a commit in the handler", 0, func(ctx context.Context) { m.Put(ctx, "k", 3); commit(ctx) }, "hget save"},
			{"a put after a commit", 0, func(ctx context.Context) { m.Put(ctx, "k", 3); commit(ctx); m.Put(ctx, "k", 4) }, "hget save save"},
			{"a commit of nothing", 0, commit, "hget"},
			{"a visitor's touch", 7 * time.Minute, func(ctx context.Context) {}, "hget touch"},
			{"a login over a visitor's session", 0, login("ann"), "hget login touch end"},
			{"a login of the same user", 0, login("ann"), "hget login retire"},
			{"a login, and puts before and after", 0, func(ctx context.Context) {
				m.Put(ctx, "k", 5)
				login("ann")(ctx)
				m.Put(ctx, "l", 5)
			}, "hget login retire"},
			{"a login, and a commit of nothing", 0, func(ctx context.Context) { login("ann")(ctx); commit(ctx) }, "hget login retire"},
			{"a login, and a commit of a put", 0, func(ctx context.Context) {
				login("ann")(ctx)
				m.Put(ctx, "l", 6)
				commit(ctx)
			}, "hget login save retire"},
			{"a login of another user", 0, login("bob"), "hget login touch end"},
			{"a rotation", 0, func(ctx context.Context) { _ = m.Rotate(ctx) }, "hget rotate"},
			{"a rotation and a put", 0, func(ctx context.Context) { _ = m.Rotate(ctx); m.Put(ctx, "k", 7) }, "hget rotate"},
			{"remember", 0, func(ctx context.Context) { m.Remember(ctx, true) }, "hget save"},
			{"a read after five minutes", 5 * time.Minute, func(context.Context) {}, "hget"},
			{"a read after twelve minutes", 7 * time.Minute, func(context.Context) {}, "hget touch"},
			{"a put after seven minutes", 7 * time.Minute, func(ctx context.Context) { m.Put(ctx, "k", 8) }, "hget save"},
			{"a large value", 0, func(ctx context.Context) { m.Put(ctx, "large", large) }, "hget save"},
			{"a read beside a large value", 0, func(ctx context.Context) { m.Get(ctx, "k") }, "hget hget"},
			{"a touch beside a large value", 7 * time.Minute, func(ctx context.Context) {}, "hget hget touch"},
			{"a large value goes", 0, func(ctx context.Context) { m.Remove(ctx, "large") }, "hget hget save"},
			{"a read without it", 0, func(ctx context.Context) { m.Get(ctx, "k") }, "hget"},
			{"a read after an hour", time.Hour, func(context.Context) {}, "hget rotate"},
			{"a list", 0, func(ctx context.Context) { _, _ = m.List(ctx, "bob") }, "hget list"},
			{"a confirmation", 0, func(ctx context.Context) { _ = m.Confirm(ctx) }, "hget beside retire"},
			{"an end of all others", 0, func(ctx context.Context) { _, _ = m.EndOthers(ctx, Cause{}) }, "hget end_all beside retire"},
			{"an end of all, and a login", time.Second, func(ctx context.Context) {
				_, _ = m.EndAll(ctx, "bob", Cause{})
				login("bob")(ctx)
			}, "hget end_all end login"},
			{"half of a login over it", time.Second, func(ctx context.Context) { _ = m.BeginLogin(ctx, "bob", time.Minute) }, "hget login touch end"},
			{"the other half", 0, login("bob"), "hget login retire"},
			{"a logout", 0, func(ctx context.Context) { _ = m.Logout(ctx) }, "hget end"},
			{"half of a login without a cookie", 0, func(ctx context.Context) { _ = m.BeginLogin(ctx, "bob", time.Minute) }, "login"},
			{"the end of that", 0, func(ctx context.Context) { _ = m.Logout(ctx) }, "hget end"},
			{"a login without a cookie", 0, login("ann"), "login"},
			{"the end of that", 0, func(ctx context.Context) { _ = m.Logout(ctx) }, "hget end"},
			{"a put and a login without a cookie", 0, func(ctx context.Context) { m.Put(ctx, "k", 1); login("ann")(ctx) }, "login"},
			{"the end of that", 0, func(ctx context.Context) { _ = m.Logout(ctx) }, "hget end"},
			{"a login without a cookie, and a put", 0, func(ctx context.Context) { login("ann")(ctx); m.Put(ctx, "k", 1) }, "login save"},
		} {
			if step.after > 0 {
				advance(t, rb, step.after, m)
				tellTime(t, m)
			}
			check(step.name, step.want, step.do)
		}

		// What is asked for a cookie that leads nowhere, or elsewhere.
		sign := func(at id) string {
			c, err := m.signer.sign(at.cookie())
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		unknown := func() string { return sign(m.records.keys.fresh(m.records.keys.visitor())) }
		loggedOut := func() string {
			b := begin(t, m, "ann")
			cookie := b.cookie
			b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
			return cookie
		}
		rotated := func() string {
			b := begin(t, m, fmt.Sprint("user of ", unknown()))
			cookie := b.cookie
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			return cookie
		}
		read := func(ctx context.Context) { m.Get(ctx, "k") }
		put := func(ctx context.Context) { m.Put(ctx, "k", 9) }
		logout := func(ctx context.Context) { _ = m.Logout(ctx) }
		for _, tc := range []struct {
			name   string
			cookie func() string
			do     func(ctx context.Context)
			want   string
		}{
			{"unknown, a read", unknown, read, "hget"},
			{"unknown, a put", unknown, put, "hget end create"},
			{"unknown, a login", unknown, login("ann"), "hget login end"},
			{"unknown, a rotation", unknown, func(ctx context.Context) { _ = m.Rotate(ctx) }, "hget"},
			{"unknown, a logout", unknown, logout, "hget"},
			{"logged out, a read", loggedOut, read, "hget"},
			{"logged out, a put", loggedOut, put, "hget"},
			{"logged out, a login", loggedOut, login("ann"), "hget login end"},
			{"logged out, a logout", loggedOut, logout, "hget end"},
			{"rotated, a read, whose cookie is set", rotated, read, "hget hget touch hget"},
			{"rotated, a put", rotated, put, "hget hget save hget"},
			{"rotated, a rotation", rotated, func(ctx context.Context) { _ = m.Rotate(ctx) }, "hget hget rotate hget"},
			{"malformed, a read", func() string { return "x" }, read, ""},
			{"malformed, a put", func() string { return "x" }, put, "create"},
			{"malformed, a login", func() string { return "x" }, login("ann"), "login"},
			{"malformed, a logout", func() string { return "x" }, logout, ""},
		} {
			b.cookie = tc.cookie()
			tellTime(t, m)
			check(tc.name, tc.want, tc.do)
		}
		if len(m.signer.codecs) > 0 {
			elsewhere, err := newSigner([][]byte{newSecret})
			if err != nil {
				t.Fatal(err)
			}
			at := idOf(t, m, begin(t, m, "ann").cookie)
			foreign, err := elsewhere.sign(at.cookie())
			if err != nil {
				t.Fatal(err)
			}
			value := at.cookie()
			for name, cookie := range map[string]string{
				"badly signed": foreign, "not signed": base64.RawURLEncoding.EncodeToString(value[:]),
			} {
				b.cookie = cookie
				check(name+", a read", "", read)
				check(name+", a put", "create", put)
			}
		}

		// Of many cookies four are looked up.
		many := []string{"x"}
		for range 6 {
			many = append(many, unknown())
		}
		hook.reset(nil)
		load(t, m, many...)
		if got := strings.Join(hook.all(), " "); got != "hget hget hget hget" {
			t.Errorf("six unknown cookies: %q", got)
		}
	})
}

// TestTheClockIsAskedOnceAMinute has a process whose time passes as Redis's does.
func TestTheClockIsAskedOnceAMinute(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, other *Manager) {
		cookie := begin(t, other, "ann").cookie
		bubble(t, rb, func(t *testing.T, rb redistest.Backend) {
			m, hook := counted(t, rb, other, slowly)
			loadScripts(t, rb)
			const minutes = 10
			for range minutes * 60 {
				elapse(t, rb, time.Second)
				if m.UserID(load(t, m, cookie)) != "ann" { // loaded only: no reply of a script tells the time
					t.Fatal("gone")
				}
			}
			count := countOf(hook)
			if count["hget"] != minutes*60 || count["time"] < minutes-1 || count["time"] > minutes || len(count) != 2 {
				t.Errorf("%d minutes of reading: %v", minutes, count)
			}
			// Of many requests that find the estimate old, one asks.
			elapse(t, rb, 2*time.Minute)
			hook.reset(nil)
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() { load(t, m, cookie) })
			}
			wg.Wait()
			if count := countOf(hook); count["hget"] != 50 || count["time"] != 1 || len(count) != 2 {
				t.Errorf("50 requests at once: %v", count)
			}
		})
		// The replies of scripts tell the time, too.
		m, hook := counted(t, rb, other, slowly)
		b := begin(t, m, "bob")
		hook.reset(nil)
		for range 10 {
			b.request(func(ctx context.Context) { m.Put(ctx, "k", 1) })
		}
		if count := countOf(hook); count["time"] > 0 {
			t.Errorf("though scripts have replied: %v", count)
		}
	})
}

func countOf(hook *commands) map[string]int {
	count := make(map[string]int)
	for _, c := range hook.all() {
		count[c]++
	}
	return count
}

func TestForeignCookiesAreNotAdopted(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		counted, hook := counted(t, rb, m, slowly)
		loadScripts(t, rb)
		signed := len(m.signer.codecs) > 0
		elsewhere, err := newSigner([][]byte{newSecret})
		if err != nil {
			t.Fatal(err)
		}
		sign := func(s signer, v cookieValue) string {
			c, err := s.sign(v)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		signBytes := func(b []byte) string {
			if !signed {
				return base64.RawURLEncoding.EncodeToString(b)
			}
			c, err := m.signer.codecs[0].Encode(signedName, b)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		real := begin(t, m, "ann")
		ended := begin(t, m, "ann")
		endedCookie := ended.cookie
		ended.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		at := idOf(t, m, real.cookie)
		keys := m.records.keys

		size := len(cookieValue{})
		text := base64.RawURLEncoding.EncodedLen(size)
		for _, tc := range []struct {
			name, cookie string
			asks         int // commands at most
			dead         bool
		}{
			{"empty", "", 0, false},
			{"malformed", "x", 0, false},
			{"a kilobyte", strings.Repeat("A", 1024), 0, false},
			{"a megabyte", strings.Repeat("A", 1<<20), 0, false},
			{"a kilobyte, signed", signBytes(make([]byte, 1000)), 0, false},
			{"a byte too few, signed", signBytes(make([]byte, size-1)), 0, false},
			{"a byte too many, signed", signBytes(make([]byte, size+1)), 0, false},
			{"nothing, signed", signBytes(nil), 0, false},
			{"not base64", strings.Repeat("ä", text/2), 0, false},
			{"spaces", strings.Repeat(" ", text), 0, false},
			{"a key", at.key, 0, false},
			{"NUL", strings.Repeat("\x00", text), 0, false},
			{"CR LF", strings.Repeat("A", text-2) + "\r\n", 0, false},
			{"padded", strings.Repeat("A", text) + "==", 0, false},
			{"an owner and the name of a field", at.key + at.field, 0, false},
			{"cut short", real.cookie[:len(real.cookie)-1], 0, false},
			{"longer", real.cookie + "A", 0, false},
			{"of owner zero", sign(m.signer, keys.fresh(owner{}).cookie()), 1, false},
			{"unknown", sign(m.signer, keys.fresh(keys.visitor()).cookie()), 1, false},
			{"unknown, of a user", sign(m.signer, keys.fresh(at.owner).cookie()), 1, false},
			{"in another user's hash", sign(m.signer, keys.at(keys.user("bob"), at.token).cookie()), 1, false},
			{"in a visitor's hash", sign(m.signer, keys.at(keys.visitor(), at.token).cookie()), 1, false},
			{"a field for a token", sign(m.signer, keys.at(at.owner, token([]byte(at.field+at.field))).cookie()), 1, false},
			{"logged out", endedCookie, 1, true},
		} {
			check := func(name, cookie string, asks int, dead bool) {
				tellTime(t, counted)
				hook.reset(nil)
				b := &browser{t, counted, cookie}
				ctx := load(t, counted, cookie)
				if counted.UserID(ctx) != "" || len(counted.Keys(ctx)) > 0 {
					t.Errorf("%s: a session", name)
				}
				if got := hook.all(); len(got) > asks {
					t.Errorf("%s: asked Redis %q", name, got)
				}
				o := b.request(func(ctx context.Context) { counted.Put(ctx, "k", 1) })
				if dead { // an ended ID in its Grace saves nothing
					if o != (Outcome{}) {
						t.Errorf("%s: %+v", name, o)
					}
					o = b.request(func(ctx context.Context) {
						if err := counted.Login(ctx, "bob"); err != nil {
							t.Error(err)
						}
					})
				}
				if o.Action != CookieSet || o.Value == cookie || len(cookie) > 20 && strings.Contains(o.Value, cookie) {
					t.Fatalf("%s: adopted: %+v", name, o)
				}
				theirs, _, ok := counted.signer.verify(cookie)
				mine := idOf(t, counted, o.Value)
				if o, token := theirs.split(); ok && (mine.token == token || mine.owner == o) {
					t.Errorf("%s: the client chose the ID", name)
				}
				if o, token := theirs.split(); ok {
					raw, err := rb.Client.HGet(t.Context(), keys.key(o), keys.at(o, token).field).Result()
					if err != nil || raw[0] == formatRecord {
						t.Errorf("%s: under the client's ID stands %q, %v", name, raw, err)
					}
				}
			}
			check(tc.name, tc.cookie, tc.asks, tc.dead)
			if v, _, ok := m.signer.verify(tc.cookie); signed && ok && !tc.dead {
				check(tc.name+", unsigned", base64.RawURLEncoding.EncodeToString(v[:]), 0, false)
				check(tc.name+", signed with another secret", sign(elsewhere, v), 0, false)
			}
		}
		if look(t, m, real.cookie).user != "ann" {
			t.Error("the real session is harmed")
		}
	})
}

// TestFixation has an attacker who knows the cookie that the victim logs in with, and
// sends it all the while.
func TestFixation(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for round := range 20 {
			planted := &browser{t, m, ""}
			planted.request(func(ctx context.Context) { m.Put(ctx, "cart", 1) })
			victim := &browser{t, m, planted.cookie}
			attacker := func(do func(ctx context.Context)) {
				a := &browser{t, m, planted.cookie}
				a.request(func(ctx context.Context) {
					if m.UserID(ctx) != "" {
						t.Error("the planted cookie is logged in")
					}
					do(ctx)
				})
				for range 2 {
					a.request(func(ctx context.Context) {
						if m.UserID(ctx) != "" {
							t.Error("what the planted cookie led to is logged in")
						}
					})
				}
			}
			var over atomic.Bool
			var wg sync.WaitGroup
			for i := range 3 {
				wg.Go(func() {
					for !over.Load() {
						attacker(func(ctx context.Context) {
							switch (i + round) % 3 {
							case 0:
								_ = m.Rotate(ctx)
							case 1:
								m.Put(ctx, "evil", i)
							}
						})
					}
				})
			}
			if round%2 == 0 { // also with somebody logged in before
				victim.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
			}
			victim.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann"); err != nil {
					t.Error(err)
				}
			})
			over.Store(true)
			wg.Wait()
			attacker(func(context.Context) {})
			if look(t, m, victim.cookie).user != "ann" {
				t.Error("the victim is not logged in")
			}
		}
	})
}

func TestSlowRequestsDoNotUndoALogin(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { m.Put(ctx, "cart", 1) })
		before := b.cookie
		loaded := load(t, m, before) // before the login, and answered after it
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		late := load(t, m, before)
		for name, ctx := range map[string]context.Context{"loaded before": loaded, "loaded after": late} {
			m.Put(ctx, "slow", 1)
			m.Remember(ctx, true)
			_ = m.Rotate(ctx)
			if o := finish(t, m, ctx); o != (Outcome{}) {
				t.Errorf("%s the login: %+v", name, o)
			}
			if len(m.Keys(ctx)) != 0 || m.UserID(ctx) != "" || m.Pending(ctx) {
				t.Errorf("%s the login: something is left in the context", name)
			}
			m.Put(ctx, "again", 1)
			if err := m.Commit(ctx); err != ErrEnded {
				t.Errorf("%s the login, a commit: %v", name, err)
			}
			m.Put(ctx, "again", 1)
			if o := finish(t, m, ctx); o != (Outcome{}) {
				t.Errorf("%s the login, second Finish: %+v", name, o)
			}
		}
		if got := look(t, m, b.cookie); got.user != "ann" || got.values != "map[cart:1]" {
			t.Errorf("%+v", got)
		}
		// One of them may log in itself, as long as its cookie can be sent.
		if err := m.Login(late, "ann"); err != ErrFinished {
			t.Errorf("a login after Finish: %v", err)
		}
		late = load(t, m, before)
		if err := m.Login(late, "ann"); err != nil {
			t.Fatal(err)
		}
		if o := finish(t, m, late); o.Action != CookieSet || look(t, m, o.Value).user != "ann" {
			t.Errorf("login with a retired ID: %+v", o)
		}
	})
}

func TestALostSessionDoesNotLeakIntoALogin(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) {
			_ = m.Login(ctx, "ann")
			m.Put(ctx, "secret of ann", 1)
			m.Remember(ctx, true)
		})
		slow := load(t, m, b.cookie)
		b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		m.Put(slow, "more", 1)
		if err := m.Commit(slow); err != ErrEnded {
			t.Fatal(err)
		}
		if err := m.Login(slow, "bob"); err != nil {
			t.Fatal(err)
		}
		o := finish(t, m, slow)
		if got := look(t, m, o.Value); got.user != "bob" || got.values != "map[]" || o.MaxAge != 0 {
			t.Errorf("%+v, %+v", got, o)
		}
	})
}

func TestUnencodableValueSavesNothing(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { m.Put(ctx, "old", 1) })
		isBad := func(what string, err error) {
			t.Helper()
			var bad *EncodeError
			if !errors.As(err, &bad) || bad.Key != "bad" {
				t.Errorf("%s: %v", what, err)
			}
		}
		unchanged := func(what string, keys int) {
			t.Helper()
			if got := look(t, m, b.cookie); got.values != "map[old:1]" || got.user != "" {
				t.Errorf("%s: saved %+v", what, got)
			}
			if got := len(allKeys(t, rb.Client)); got != keys {
				t.Errorf("%s: %d keys became %d", what, keys, got)
			}
		}
		for name, prepare := range map[string]func(ctx context.Context){
			"save":   func(ctx context.Context) {},
			"rotate": func(ctx context.Context) { _ = m.Rotate(ctx) },
		} {
			ctx := load(t, m, b.cookie)
			prepare(ctx)
			m.Put(ctx, "good", 1)
			m.Put(ctx, "bad", make(chan int))
			keys := len(allKeys(t, rb.Client))
			isBad(name+", commit", m.Commit(ctx))
			o, err := m.Finish(ctx)
			isBad(name, err)
			if o != (Outcome{}) {
				t.Errorf("%s: %+v", name, o)
			}
			unchanged(name, keys)
		}
		// Login says so before Redis is asked.
		ctx := load(t, m, b.cookie)
		m.Put(ctx, "bad", make(chan int))
		keys := len(allKeys(t, rb.Client))
		isBad("put before login", m.Login(ctx, "ann"))
		if m.UserID(ctx) != "" {
			t.Error("a login that failed is one")
		}
		unchanged("put before login", keys)
		// A value that is put after a login fails Finish, and with it the login.
		ctx = load(t, m, b.cookie)
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
		m.Put(ctx, "good", 1)
		m.Put(ctx, "bad", make(chan int))
		made := m.state(ctx).record.id
		o, err := m.Finish(ctx)
		isBad("put after login", err)
		m.Abort(ctx) // as the middleware does
		if o != (Outcome{}) {
			t.Errorf("put after login: %+v", o)
		}
		if got := look(t, m, b.cookie); got.values != "map[old:1]" || got.user != "" {
			t.Errorf("put after login: saved %+v", got)
		}
		if f, err := m.records.find(t.Context(), made); err != nil || f.record != nil {
			t.Errorf("the login that failed stands: %+v, %v", f, err)
		}
		// In a new session, too; and once it is removed, all is well.
		ctx = load(t, m, "")
		m.Put(ctx, "bad", func() {})
		_, err = m.Finish(ctx)
		isBad("a new session", err)
		m.Put(ctx, "bad", "good")
		if o := finish(t, m, ctx); look(t, m, o.Value).values != "map[bad:good]" {
			t.Error("cannot be saved after the value was replaced")
		}
	})
}

// TestOneContextManyCommits is a socket: one context, several goroutines that put and
// commit, while other requests change the same session.
func TestOneContextManyCommits(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		socket := load(t, m, b.cookie)
		const n, each = 8, 15
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				for j := range each {
					m.Put(socket, fmt.Sprintf("socket %d.%d", i, j), time.Now())
					if err := m.Commit(socket); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Go(func() {
				for j := range each {
					(&browser{t, m, b.cookie}).request(func(ctx context.Context) { m.Put(ctx, fmt.Sprintf("request %d.%d", i, j), j) })
				}
			})
		}
		wg.Wait()
		commit := func() {
			t.Helper()
			if err := m.Commit(socket); err != nil {
				t.Fatal(err)
			}
		}
		commit()
		if got := len(m.Keys(load(t, m, b.cookie))); got != 2*n*each {
			t.Errorf("%d of %d keys are saved", got, 2*n*each)
		}
		// The socket sees the others' keys, and has not undone a later change.
		if got := len(m.Keys(socket)); got < n*each {
			t.Errorf("the socket sees %d keys", got)
		}
		(&browser{t, m, b.cookie}).request(func(ctx context.Context) {
			m.Put(ctx, "request 0.0", "changed")
			m.Remove(ctx, "request 0.1")
			m.Put(ctx, "socket 0.0", "changed")
		})
		for range 3 {
			m.Put(socket, "beat", time.Now())
			commit()
		}
		for name, ctx := range map[string]context.Context{"Redis": load(t, m, b.cookie), "the socket": socket} {
			if m.GetString(ctx, "request 0.0") != "changed" || m.Exists(ctx, "request 0.1") || m.GetString(ctx, "socket 0.0") != "changed" {
				t.Errorf("in %s a socket's commit undid what a request had changed", name)
			}
		}
	})
}

// TestOneContextManyMinds has goroutines of one context that rotate, log in, log out and
// commit: it must neither deadlock nor race, and end logged out. Those that come in each
// other's way may be told so.
func TestOneContextManyMinds(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		ctx := load(t, m, b.cookie)
		var mu sync.Mutex
		cookies := []string{b.cookie}
		note := func() {
			st := m.state(ctx)
			st.mu.Lock()
			r := st.record
			st.mu.Unlock()
			if r == nil {
				return
			}
			c, err := m.signer.sign(r.id.cookie())
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			cookies = append(cookies, c)
		}
		do := []func() error{
			func() error { return m.Rotate(ctx) },
			func() error { return m.Login(ctx, "ann") },
			func() error { return m.Login(ctx, "bob") },
			func() error { return m.Logout(ctx) },
			func() error { m.Put(ctx, "k", 1); m.Remember(ctx, true); return nil },
			func() error { return m.Commit(ctx) },
			func() error {
				_, _, _ = m.Pending(ctx), m.Info(ctx), m.Keys(ctx)
				note()
				return nil
			},
		}
		var wg sync.WaitGroup
		for i := range 2 * len(do) {
			wg.Go(func() {
				for range 20 {
					if err := do[i%len(do)](); err != nil && !errors.Is(err, ErrConflict) && !errors.Is(err, ErrEnded) {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		note()
		if err := m.Logout(ctx); err != nil {
			t.Fatal(err)
		}
		if o := finish(t, m, ctx); o.Action != CookieDelete {
			t.Errorf("%+v", o)
		}
		for _, c := range cookies {
			if got := look(t, m, c); got.user != "" {
				t.Fatalf("a session outlived the logout: %+v", got)
			}
		}
	})
}

func TestWithoutASession(t *testing.T) {
	m := manager(t, mini(t), Config{})
	ctx := context.Background()
	if _, err := m.Finish(ctx); err != ErrNoSession {
		t.Error(err)
	}
	for _, err := range []error{m.Commit(ctx), m.Login(ctx, "ann"), m.Logout(ctx), m.Rotate(ctx)} {
		if err != ErrNoSession {
			t.Error(err)
		}
	}
	m.Remember(ctx, true)
	m.KeepID(ctx)
	m.Abort(ctx)
	if m.UserID(ctx) != "" || m.Info(ctx) != (Info{}) || m.Pending(ctx) || m.Loaded(ctx) || m.AuthenticatedWithin(ctx, time.Hour) {
		t.Error("something where there is nothing")
	}
	if err := m.Login(load(t, m, ""), ""); err != ErrNoUser {
		t.Error(err)
	}
}

// Whatever changes the values after a commit is pending until the next one.
func TestPending(t *testing.T) {
	m, cookie := realSession(t, Config{})
	changes := map[string]func(ctx context.Context){
		"Put":         func(ctx context.Context) { m.Put(ctx, "new", 1) },
		"Put of same": func(ctx context.Context) { m.Put(ctx, "int", 1) },
		"Remove":      func(ctx context.Context) { m.Remove(ctx, "string") },
		"Clear":       func(ctx context.Context) { _ = m.Clear(ctx) },
		"Pop":         func(ctx context.Context) { m.Pop(ctx, "string") },
		"PopString":   func(ctx context.Context) { m.PopString(ctx, "string") },
		"PopBool":     func(ctx context.Context) { m.PopBool(ctx, "bool") },
		"PopInt":      func(ctx context.Context) { m.PopInt(ctx, "int") },
		"PopFloat":    func(ctx context.Context) { m.PopFloat(ctx, "float") },
		"PopBytes":    func(ctx context.Context) { m.PopBytes(ctx, "bytes") },
		"PopTime":     func(ctx context.Context) { m.PopTime(ctx, "time") },
		"Key.Put":     func(ctx context.Context) { Key[int]("int").Put(ctx, m, 9) },
		"Key.Pop":     func(ctx context.Context) { Key[int]("int").Pop(ctx, m) },
		"Key.Remove":  func(ctx context.Context) { Key[int]("int").Remove(ctx, m) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			ctx := load(t, m, cookie)
			m.Put(ctx, "string", "s")
			m.Put(ctx, "bool", true)
			m.Put(ctx, "int", 1)
			m.Put(ctx, "float", 1.5)
			m.Put(ctx, "bytes", []byte("b"))
			m.Put(ctx, "time", time.Now())
			commit := func() {
				if err := m.Commit(ctx); err != nil {
					t.Fatal(err)
				}
			}
			for _, step := range []struct {
				what    string
				do      func()
				pending bool
			}{
				{"puts", func() {}, true},
				{"a commit", commit, false},
				{"reads", func() { m.Get(ctx, "int"); m.Keys(ctx); m.Remove(ctx, "none") }, false},
				{"a change", func() { change(ctx) }, true},
				{"another commit", commit, false},
			} {
				if step.do(); m.Pending(ctx) != step.pending {
					t.Fatalf("after %s: pending %v", step.what, m.Pending(ctx))
				}
			}
		})
	}
}
