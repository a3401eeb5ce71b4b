package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// loadScripts spares requests to send a script in full, which counts twice.
func loadScripts(t *testing.T, rb redistest.Backend) {
	t.Helper()
	for _, s := range []*scripts.Script{scripts.SessionCommit, scripts.SessionTouch, scripts.SessionEnd} {
		if err := rb.Client.ScriptLoad(t.Context(), s.Source).Err(); err != nil { // on every master
			t.Fatal(err)
		}
	}
}

// TestCommandsOfARequest pins what each kind of request asks of Redis.
func TestCommandsOfARequest(t *testing.T) {
	clock := newClock()
	each(t, Config{RotateEvery: time.Hour, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		client := rb.NewClient(t)
		hook := countCommands(client)
		counted, err := New(client, m.config(t))
		if err != nil {
			t.Fatal(err)
		}
		loadScripts(t, rb)
		b := &browser{t, counted, ""}
		for _, step := range []struct {
			name string
			do   func(ctx context.Context)
			want string
		}{
			{"no cookie, a read", func(ctx context.Context) { counted.Get(ctx, "k") }, ""},
			{"no cookie, a removal of nothing", func(ctx context.Context) { counted.Remove(ctx, "k"); counted.Pop(ctx, "k") }, ""},
			{"no cookie, put and taken away", func(ctx context.Context) { counted.Put(ctx, "k", 1); counted.Remove(ctx, "k") }, ""},
			{"no cookie, a rotation", func(ctx context.Context) { _ = counted.Rotate(ctx) }, ""},
			{"no cookie, a logout", func(ctx context.Context) { _ = counted.Logout(ctx) }, ""},
			{"a first put", func(ctx context.Context) { counted.Put(ctx, "k", 1) }, "commit"},
			{"a read", func(ctx context.Context) { counted.Get(ctx, "k") }, "get"},
			{"a put of the same", func(ctx context.Context) { counted.Put(ctx, "k", 1) }, "get"},
			{"a put", func(ctx context.Context) { counted.Put(ctx, "k", 2) }, "get commit"},
			{"a login", func(ctx context.Context) { _ = counted.Login(ctx, "ann") }, "get commit commit"},
			{"a rotation", func(ctx context.Context) { _ = counted.Rotate(ctx) }, "get commit commit"},
			{"remember", func(ctx context.Context) { counted.Remember(ctx, true) }, "get commit"},
			{"a read after four minutes", func(context.Context) { clock.add(4 * time.Minute) }, "get touch"},
			{"a put of the same after four minutes", func(ctx context.Context) { clock.add(4 * time.Minute); counted.Put(ctx, "k", 2) }, "get touch"},
			{"a read after an hour", func(context.Context) { clock.add(time.Hour) }, "get commit commit"},
			{"a logout", func(ctx context.Context) { _ = counted.Logout(ctx) }, "get end"},
		} {
			hook.reset(nil)
			b.request(step.do)
			if got := strings.Join(hook.all(), " "); got != step.want {
				t.Errorf("%s: %q, want %q", step.name, got, step.want)
			}
		}
	})
}

func TestForeignCookiesAreNotAdopted(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		client := rb.NewClient(t)
		hook := countCommands(client)
		counted, err := New(client, m.config(t))
		if err != nil {
			t.Fatal(err)
		}
		signed := len(m.signer.codecs) > 0
		elsewhere, err := newSigner([][]byte{newSecret})
		if err != nil {
			t.Fatal(err)
		}
		sign := func(s signer, value string) string {
			c, err := s.sign(value)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		real := &browser{t, m, ""}
		real.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		ended := &browser{t, m, ""}
		ended.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		endedCookie := ended.cookie
		ended.request(func(ctx context.Context) { _ = m.Logout(ctx) })

		token := strings.Repeat("A", tokenLen)
		for _, tc := range []struct {
			name, cookie string
			asks         int // commands at most
		}{
			{"empty", "", 0},
			{"malformed", "x", 0},
			{"a kilobyte", strings.Repeat("A", 1024), 0},
			{"a megabyte", strings.Repeat("A", 1<<20), 0},
			{"a megabyte, signed", sign(m.signer, strings.Repeat("A", 1000)), 0},
			{"not base64", strings.Repeat("ä", tokenLen), 0},
			{"spaces", strings.Repeat(" ", tokenLen), 0},
			{"a key", m.store.prefix + "{AAAAAAAAAAAA}:s:", 0},
			{"NUL", strings.Repeat("\x00", tokenLen), 0},
			{"CR LF", token[:tokenLen-2] + "\r\n", 0},
			{"braces", "{aaaaaaaaaa}." + token, 0},
			{"empty tag", "." + token, 0},
			{"long tag", strings.Repeat("a", tagLen+1) + "." + token, 0},
			{"unknown", sign(m.signer, token), 1},
			{"unknown, of a user", sign(m.signer, strings.Repeat("a", tagLen)+"."+token), 1},
			{"of another user's tag", sign(m.signer, strings.Repeat("a", tagLen)+"."+tokenOf(t, m, real.cookie)), 1},
			{"without its tag", sign(m.signer, tokenOf(t, m, real.cookie)), 1},
			{"logged out", endedCookie, 1},
			{"cut short", real.cookie[:len(real.cookie)-1], 0},
			{"longer", real.cookie + "A", 0},
		} {
			check := func(name, cookie string, asks int) {
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
				if o.Action != CookieSet || o.Value == cookie || len(cookie) > 20 && strings.Contains(o.Value, cookie) {
					t.Errorf("%s: adopted: %+v", name, o)
				}
				if slices.Contains(allKeys(t, rb.Client), newID(m.store.prefix, token, "").key) {
					t.Errorf("%s: the client chose the key", name)
				}
			}
			check(tc.name, tc.cookie, tc.asks)
			if signed && tc.asks > 0 && tc.cookie != endedCookie {
				value, _, _ := m.verify(tc.cookie)
				check(tc.name+", unsigned", value, 0)
				check(tc.name+", signed with another secret", sign(elsewhere, value), 0)
			}
		}
		if look(t, m, real.cookie).user != "ann" {
			t.Error("the real session is harmed")
		}
	})
}

// TestFixation has an attacker who knows the cookie that the victim logs in
// with, and sends it all the while.
func TestFixation(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
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
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
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
			if o := commit(t, m, ctx); o != (Outcome{}) {
				t.Errorf("%s the login: %+v", name, o)
			}
			if len(m.Keys(ctx)) != 0 || m.UserID(ctx) != "" || m.Pending(ctx) {
				t.Errorf("%s the login: something is left in the context", name)
			}
			m.Put(ctx, "again", 1)
			if o := commit(t, m, ctx); o != (Outcome{}) {
				t.Errorf("%s the login, second commit: %+v", name, o)
			}
		}
		if got := look(t, m, b.cookie); got.user != "ann" || got.values != "map[cart:1]" {
			t.Errorf("%+v", got)
		}
		// One of them may log in itself.
		if err := m.Login(late, "ann"); err != nil {
			t.Fatal(err)
		}
		if o := commit(t, m, late); o.Action != CookieSet || look(t, m, o.Value).user != "ann" {
			t.Errorf("login with a retired ID: %+v", o)
		}
	})
}

func TestALostSessionDoesNotLeakIntoALogin(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) {
			_ = m.Login(ctx, "ann")
			m.Put(ctx, "secret of ann", 1)
			m.Remember(ctx, true)
		})
		socket := load(t, m, b.cookie)
		b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		m.Put(socket, "more", 1)
		if o := commit(t, m, socket); o != (Outcome{}) {
			t.Fatalf("%+v", o)
		}
		if err := m.Login(socket, "bob"); err != nil {
			t.Fatal(err)
		}
		o := commit(t, m, socket)
		if got := look(t, m, o.Value); got.user != "bob" || got.values != "map[]" || !o.Expires.IsZero() {
			t.Errorf("%+v, %+v", got, o)
		}
	})
}

func TestUnencodableValueSavesNothing(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { m.Put(ctx, "old", 1) })
		for name, prepare := range map[string]func(ctx context.Context){
			"save":   func(ctx context.Context) {},
			"login":  func(ctx context.Context) { _ = m.Login(ctx, "ann") },
			"rotate": func(ctx context.Context) { _ = m.Rotate(ctx) },
		} {
			ctx := load(t, m, b.cookie)
			prepare(ctx)
			m.Put(ctx, "good", 1)
			m.Put(ctx, "bad", make(chan int))
			keys := len(allKeys(t, rb.Client))
			o, err := m.Commit(ctx)
			var bad *EncodeError
			if !errors.As(err, &bad) || bad.Key != "bad" || o != (Outcome{}) {
				t.Errorf("%s: %+v, %v", name, o, err)
			}
			if got := look(t, m, b.cookie); got.values != "map[old:1]" || got.user != "" {
				t.Errorf("%s: saved %+v", name, got)
			}
			if got := len(allKeys(t, rb.Client)); got != keys {
				t.Errorf("%s: %d keys became %d", name, keys, got)
			}
		}
		// In a new session, too; and once it is removed, all is well.
		ctx := load(t, m, "")
		m.Put(ctx, "bad", func() {})
		if _, err := m.Commit(ctx); err == nil {
			t.Error("no error")
		}
		m.Put(ctx, "bad", "good")
		if o := commit(t, m, ctx); look(t, m, o.Value).values != "map[bad:good]" {
			t.Error("cannot commit after the value was replaced")
		}
	})
}

// TestOneContextManyCommits is a socket: one context, several goroutines that
// put and commit, while other requests change the same session.
func TestOneContextManyCommits(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		socket := load(t, m, b.cookie)
		const n, each = 8, 15
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				for j := range each {
					m.Put(socket, fmt.Sprintf("socket %d.%d", i, j), time.Now())
					if _, err := m.Commit(socket); err != nil {
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
		commit(t, m, socket)
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
			commit(t, m, socket)
		}
		for name, ctx := range map[string]context.Context{"Redis": load(t, m, b.cookie), "the socket": socket} {
			if m.GetString(ctx, "request 0.0") != "changed" || m.Exists(ctx, "request 0.1") || m.GetString(ctx, "socket 0.0") != "changed" {
				t.Errorf("in %s a socket's commit undid what a request had changed", name)
			}
		}
	})
}

// TestOneContextManyMinds has goroutines of one context that rotate, log in,
// log out and commit: it must neither deadlock nor race, and end logged out.
func TestOneContextManyMinds(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		ctx := load(t, m, b.cookie)
		var mu sync.Mutex
		cookies := []string{b.cookie}
		do := []func() error{
			func() error { return m.Rotate(ctx) },
			func() error { return m.Login(ctx, "ann") },
			func() error { return m.Login(ctx, "bob") },
			func() error { return m.Logout(ctx) },
			func() error { m.Put(ctx, "k", 1); m.Remember(ctx, true); return nil },
			func() error {
				_, _, _ = m.Pending(ctx), m.Info(ctx), m.Keys(ctx)
				o, err := m.Commit(ctx)
				mu.Lock()
				defer mu.Unlock()
				if o.Action == CookieSet {
					cookies = append(cookies, o.Value)
				}
				return err
			},
		}
		var wg sync.WaitGroup
		for i := range 2 * len(do) {
			wg.Go(func() {
				for range 20 {
					if err := do[i%len(do)](); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := m.Logout(ctx); err != nil {
			t.Fatal(err)
		}
		if o := commit(t, m, ctx); o.Action != CookieDelete {
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
	if _, err := m.Commit(ctx); err != ErrNoSession {
		t.Error(err)
	}
	for _, err := range []error{m.Login(ctx, "ann"), m.Logout(ctx), m.Rotate(ctx)} {
		if err != ErrNoSession {
			t.Error(err)
		}
	}
	m.Remember(ctx, true)
	if m.UserID(ctx) != "" || m.Info(ctx) != (Info{}) || m.Pending(ctx) {
		t.Error("something where there is nothing")
	}
	if err := m.Login(load(t, m, ""), ""); err != ErrNoUser {
		t.Error(err)
	}
}

func TestRememberedSessions(t *testing.T) {
	clock := newClock()
	each(t, Config{Lifetime: 10 * time.Hour, now: clock.now}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		if o := b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") }); !o.Expires.IsZero() {
			t.Errorf("persistent without being asked: %+v", o)
		}
		deadline := m.Info(load(t, m, b.cookie)).Expires
		if o := b.request(func(ctx context.Context) { m.Remember(ctx, true) }); o.Action != CookieSet || !o.Expires.Equal(deadline) {
			t.Errorf("%+v, want %v", o, deadline)
		}
		if o := b.request(func(ctx context.Context) { _ = m.Rotate(ctx) }); !o.Expires.Equal(deadline) {
			t.Errorf("after Rotate: %+v", o)
		}
		if o := b.request(func(ctx context.Context) { m.Remember(ctx, false) }); o.Action != CookieSet || !o.Expires.IsZero() {
			t.Errorf("forgotten: %+v", o)
		}
		b.request(func(ctx context.Context) { m.Remember(ctx, true) })
		if o := b.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") }); !o.Expires.IsZero() {
			t.Errorf("one user's choice holds for another: %+v", o)
		}
	})
}

// Whatever changes the values after a commit is pending until the next one.
func TestPending(t *testing.T) {
	m, cookie := realSession(t, Config{})
	changes := map[string]func(ctx context.Context){
		"Put":       func(ctx context.Context) { m.Put(ctx, "new", 1) },
		"Remove":    func(ctx context.Context) { m.Remove(ctx, "string") },
		"Clear":     func(ctx context.Context) { _ = m.Clear(ctx) },
		"Pop":       func(ctx context.Context) { m.Pop(ctx, "string") },
		"PopString": func(ctx context.Context) { m.PopString(ctx, "string") },
		"PopBool":   func(ctx context.Context) { m.PopBool(ctx, "bool") },
		"PopInt":    func(ctx context.Context) { m.PopInt(ctx, "int") },
		"PopFloat":  func(ctx context.Context) { m.PopFloat(ctx, "float") },
		"PopBytes":  func(ctx context.Context) { m.PopBytes(ctx, "bytes") },
		"PopTime":   func(ctx context.Context) { m.PopTime(ctx, "time") },
		"Key.Put":   func(ctx context.Context) { Key[int]("int").Put(ctx, m, 9) },
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
			for _, step := range []struct {
				what    string
				do      func()
				pending bool
			}{
				{"puts", func() {}, true},
				{"a commit", func() { commit(t, m, ctx) }, false},
				{"what was there", func() { m.Put(ctx, "int", 1) }, false},
				{"a change", func() { change(ctx) }, true},
				{"another commit", func() { commit(t, m, ctx) }, false},
			} {
				if step.do(); m.Pending(ctx) != step.pending {
					t.Fatalf("after %s: pending %v", step.what, m.Pending(ctx))
				}
			}
		})
	}
}
