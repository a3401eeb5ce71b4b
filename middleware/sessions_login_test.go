package middleware_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session"
)

// shop is a site whose visitors have carts, and log in.
func shop(t *testing.T, m *session.Manager, handle func(w http.ResponseWriter, r *http.Request)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/cart", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "cart", "book") })
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := m.Login(r.Context(), r.FormValue("user")); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := m.Logout(r.Context()); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/see", func(w http.ResponseWriter, r *http.Request) { see(w, r, m) })
	if handle != nil {
		mux.HandleFunc("/", handle)
	}
	return middleware.Sessions{Manager: m, Logger: new(journal).logger()}.Handler(mux)
}

// see shows the user and the values of a session.
func see(w io.Writer, r *http.Request, m *session.Manager) {
	fmt.Fprintf(w, "%s cart=%s k=%s", m.UserID(r.Context()), m.GetString(r.Context(), "cart"), m.GetString(r.Context(), "k"))
}

// What a handler saves itself, and whom it logs in before or after, reaches the browser:
// the response carries the cookie, once.
func TestCommitInAHandler(t *testing.T) {
	type step = func(t *testing.T, m *session.Manager, ctx context.Context)
	put := func(value string) step {
		return func(t *testing.T, m *session.Manager, ctx context.Context) { m.Put(ctx, "k", value) }
	}
	login := func(user string) step {
		return func(t *testing.T, m *session.Manager, ctx context.Context) {
			if err := m.Login(ctx, user); err != nil {
				t.Error(err)
			}
		}
	}
	commit := func(t *testing.T, m *session.Manager, ctx context.Context) {
		if err := m.Commit(ctx); err != nil {
			t.Error(err)
		}
	}
	logout := func(t *testing.T, m *session.Manager, ctx context.Context) {
		if err := m.Logout(ctx); err != nil {
			t.Error(err)
		}
	}
	for _, tc := range []struct {
		name   string
		steps  []step
		user   string // "": who it was
		k      string
		newID  bool // also for who has a session
		logout bool // what was there before is gone
	}{
		{name: "a put", steps: []step{put("1"), commit}, k: "1"},
		{name: "several times", steps: []step{put("1"), commit, put("2"), commit, commit, put("3"), commit}, k: "3"},
		{name: "and a put after it", steps: []step{put("1"), commit, put("2")}, k: "2"},
		{name: "before a login", steps: []step{put("1"), commit, login("bob")}, user: "bob", k: "1", newID: true},
		{name: "after a login", steps: []step{login("bob"), put("1"), commit}, user: "bob", k: "1", newID: true},
		{name: "around a login", steps: []step{put("1"), commit, login("bob"), put("2"), commit, put("3")}, user: "bob", k: "3", newID: true},
		{name: "between two logins", steps: []step{login("bob"), put("1"), commit, login("bob")}, user: "bob", k: "1", newID: true},
		{name: "between the logins of two users", steps: []step{login("eve"), put("1"), commit, login("bob"), put("2"), commit}, user: "bob", k: "2", newID: true, logout: true},
		{name: "before a logout and a login", steps: []step{put("1"), commit, logout, login("bob"), commit}, user: "bob", newID: true, logout: true},
		{name: "after a logout and a put", steps: []step{put("1"), commit, logout, put("2"), commit}, k: "2", newID: true, logout: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, b redistest.Backend) {
				m := managerOn(t, b.Client)
				h := shop(t, m, func(w http.ResponseWriter, r *http.Request) {
					for _, step := range tc.steps {
						step(t, m, r.Context())
					}
					if r.URL.Path == "/redirect" {
						http.Redirect(w, r, "/there", http.StatusSeeOther)
					} else {
						io.WriteString(w, strings.Repeat("a long page ", 10_000))
					}
				})
				for _, who := range []string{"nobody", "a visitor", "ann", "bob"} {
					for _, path := range []string{"/page", "/redirect"} {
						s := serve(t, h)
						user, cart := "", ""
						if who != "nobody" {
							s.get("/cart")
							cart = "book"
						}
						if who == "ann" || who == "bob" {
							s.get("/login?user=" + who)
							user = who
						}
						want := 1
						if who != "nobody" && !tc.newID {
							want = 0 // the browser has the cookie
						}
						res := s.get(path)
						if n := len(res.Header["Set-Cookie"]); n != want || len(cookies(res.Header, ours)) != n {
							t.Errorf("%s, %s: %d cookies, want %d: %q", who, path, n, want, res.Header["Set-Cookie"])
						}
						if tc.logout || tc.user != "" && user != "" && user != tc.user {
							user, cart = "", ""
						}
						if tc.user != "" {
							user = tc.user
						}
						k := tc.k
						if who == "ann" && tc.name == "before a login" {
							k = "" // it was ann's
						}
						if got, want := s.get("/see").body, fmt.Sprintf("%s cart=%s k=%s", user, cart, k); got != want {
							t.Errorf("%s, %s: then the browser sees %q, want %q", who, path, got, want)
						}
						if res := s.get("/see"); res.Header["Set-Cookie"] != nil {
							t.Errorf("%s, %s: a read sets %q", who, path, res.Header["Set-Cookie"])
						}
					}
				}
				redistest.AssertAllTTL(t, b.Client)
			})
		})
	}
}

// A handler that panics after a Login: the login is undone, and the session is what it was.
func TestPanicAfterLogin(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, outside := range []string{"a Recoverer", "the server"} {
			for _, who := range []string{"nobody", "a visitor", "ann", "eve"} {
				for _, end := range []string{"/panic", "/abort", "/exit"} {
					if end == "/exit" && outside == "a Recoverer" {
						continue // nothing recovers from it
					}
					name := fmt.Sprintf("%s, %s, %s", outside, who, end)
					m := managerOn(t, b.Client)
					h := shop(t, m, func(w http.ResponseWriter, r *http.Request) {
						m.Put(r.Context(), "k", "after")
						if err := m.Login(r.Context(), "ann"); err != nil {
							t.Error(err)
						}
						m.Put(r.Context(), "cart", "after")
						switch r.URL.Path {
						case "/panic":
							panic("oops")
						case "/abort":
							panic(http.ErrAbortHandler)
						default:
							runtime.Goexit()
						}
					})
					if outside == "a Recoverer" {
						inner := h
						h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							defer func() {
								if recover() != nil {
									http.Error(w, "sorry", http.StatusInternalServerError)
								}
							}()
							inner.ServeHTTP(w, r)
						})
					}
					s := serve(t, h)
					want := " cart= k="
					if who != "nobody" {
						s.get("/cart")
						want = " cart=book k="
					}
					if who == "ann" || who == "eve" {
						s.get("/login?user=" + who)
						want = who + want
					}
					before := records(t, m)
					res, err := s.client.Get(s.URL + end)
					if err == nil {
						res.Body.Close()
					}
					switch {
					case outside == "a Recoverer" && (err != nil || res.StatusCode != 500 || res.Header["Set-Cookie"] != nil):
						t.Errorf("%s: %v %v", name, res, err)
					case outside == "the server" && err == nil:
						t.Errorf("%s: %v", name, res)
					}
					if got := s.get("/see").body; got != want {
						t.Errorf("%s: then the browser sees %q, want %q", name, got, want)
					}
					if after := records(t, m); after != before {
						t.Errorf("%s: %d records, before there were %d", name, after, before)
					}
				}
			}
		}
	})
}

// records counts what leads to a session.
func records(t *testing.T, m *session.Manager) int {
	t.Helper()
	use, err := m.SecretUse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return use.Unsealed
}

// Once the header has left with the cookie, the login stands, whatever happens then.
func TestPanicAfterTheHeader(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		s := serve(shop(t, m, func(w http.ResponseWriter, r *http.Request) {
			if err := m.Login(r.Context(), "ann"); err != nil {
				t.Error(err)
			}
			m.Put(r.Context(), "k", "early")
			w.(http.Flusher).Flush()
			m.Put(r.Context(), "k", "late")
			panic(http.ErrAbortHandler)
		}))
		s.get("/cart")
		res, err := s.client.Get(s.URL + "/")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Error("the response is whole")
		}
		res.Body.Close()
		if len(cookies(res.Header, ours)) != 1 {
			t.Errorf("cookies %q", res.Header["Set-Cookie"])
		}
		if got := s.get("/see").body; got != "ann cart=book k=early" {
			t.Errorf("then the browser sees %q", got)
		}
	})
}

// faulty has a fault begin with the first command that sends a script.
type faulty struct {
	script *scripts.Script
	begin  func()
}

func (f *faulty) DialHook(next redis.DialHook) redis.DialHook { return next }

func (f *faulty) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		f.look(cmd)
		return next(ctx, cmd)
	}
}

func (f *faulty) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		f.look(cmds...)
		return next(ctx, cmds)
	}
}

func (f *faulty) look(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		if args := cmd.Args(); f.script != nil && len(args) > 1 && args[1] == f.script.SHA1() {
			f.script = nil
			f.begin()
		}
	}
}

// Redis goes away at any step of a login, having done it or not. The browser takes the
// cookie that it is given, if it is given one, and has its cart or the login, never neither.
// When it is not known whether the old ID lives, the 503 brings the new one.
func TestLoginWhileRedisGoesAway(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Shared(t)
	const timeout = 100 * time.Millisecond
	faults := map[string]func(*redistest.Proxy){
		"a lost reply":    func(p *redistest.Proxy) { p.LoseReply() },
		"a cut reply":     func(p *redistest.Proxy) { p.CutReply() },
		"a black hole":    func(p *redistest.Proxy) { p.BlackHole() },
		"a cut":           func(p *redistest.Proxy) { p.Cut() },
		"garbage instead": func(p *redistest.Proxy) { p.Garbage() },
	}
	for _, tc := range []struct {
		name   string
		script *scripts.Script
		who    string
		status int
		cookie bool
		sees   string // "": either
	}{
		{"a visitor's Login", scripts.Get("session/login.lua"), "a visitor", 503, false, " cart=book k="},
		{"a visitor's Login, its own life", scripts.Get("session/save.lua"), "a visitor", 503, false, " cart=book k="},
		{"a visitor's Login, the old ID", scripts.Get("session/end.lua"), "a visitor", 503, true, "ann cart=book k=1"},
		{"a Login again", scripts.Get("session/login.lua"), "ann", 503, false, "ann cart=book k="},
		{"a Login again, the old ID", scripts.Get("session/retire.lua"), "ann", 503, true, "ann cart=book k=1"},
		{"another's Login, its own life", scripts.Get("session/save.lua"), "eve", 503, false, "eve cart=book k="},
		{"another's Login, the old ID", scripts.Get("session/end.lua"), "eve", 503, true, "ann cart= k="},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for name, fault := range faults {
				proxy := redistest.NewProxy(t, server.Addr())
				client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
				defer client.Close()
				hook := &faulty{}
				client.AddHook(hook)
				cfg := session.Config{Prefix: t.Name() + name + ":", Timeout: time.Minute, Logger: new(journal).logger()}
				h := shop(t, must(session.New(client, cfg)), nil) // what comes before waits for Redis
				s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }))
				cfg.Timeout = timeout
				m := must(session.New(client, cfg))
				impatient := shop(t, m, func(w http.ResponseWriter, r *http.Request) {
					m.Put(r.Context(), "k", "1")
					if err := m.Login(r.Context(), "ann"); err != nil {
						if !errors.Is(err, session.ErrUnavailable) {
							t.Errorf("%s: %v", name, err)
						}
						m.Remove(r.Context(), "k") // as it was
						http.Error(w, "not logged in", http.StatusInternalServerError)
					}
				})
				// The scripts are loaded, so that a fault does not hit a NOSCRIPT.
				for _, step := range []string{"/cart", "/login?user=ann", "/login?user=ann", "/login?user=eve", "/logout"} {
					s.get(step)
				}
				s.forget()
				s.get("/cart")
				if tc.who != "a visitor" {
					s.get("/login?user=" + tc.who)
				}
				// What Login could not do Finish tries again, and so the answer is 503 either way.
				hook.script, hook.begin = tc.script, func() { fault(proxy) }
				h = impatient
				began := time.Now()
				res := s.get("/")
				if took := time.Since(began); took > 4*timeout+time.Second {
					t.Errorf("%s: the answer takes %v", name, took)
				}
				if hook.script != nil {
					t.Fatalf("%s: the script was not sent", name)
				}
				if n := len(cookies(res.Header, ours)); res.StatusCode != tc.status || n != len(res.Header["Set-Cookie"]) || (n == 1) != tc.cookie {
					t.Errorf("%s: %s, %q", name, res.Status, res.Header["Set-Cookie"])
				}
				proxy.Heal()
				proxy.Disconnect()
				if got := seen(s); got != tc.sees {
					t.Errorf("%s: then the browser sees %q, want %q", name, got, tc.sees)
				}
			}
		})
	}
}

// seen asks until Redis answers again.
func seen(s *site) string {
	deadline := time.Now().Add(20 * time.Second)
	for {
		res := s.get("/see")
		if res.StatusCode == 200 || time.Now().After(deadline) {
			return res.body
		}
	}
}

// Once the header has left, or the connection was taken over, no cookie can be sent: who
// logs in then is told, and the session is what it was.
func TestLoginAfterTheHeader(t *testing.T) {
	late := func(t *testing.T, m *session.Manager, r *http.Request) {
		user := m.UserID(r.Context())
		if err := m.Login(r.Context(), "bob"); !errors.Is(err, session.ErrFinished) {
			t.Errorf("Login: %v", err)
		}
		if err := m.Rotate(r.Context()); !errors.Is(err, session.ErrFinished) {
			t.Errorf("Rotate: %v", err)
		}
		if got := m.UserID(r.Context()); got != user {
			t.Errorf("the user is %q, and was %q", got, user)
		}
	}
	for _, tc := range []struct {
		name string
		send func(w http.ResponseWriter) // what cannot be taken back
	}{
		{"Write", func(w http.ResponseWriter) { w.Write([]byte("hello")) }},
		{"WriteHeader", func(w http.ResponseWriter) { w.WriteHeader(204) }},
		{"Flush", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }},
		{"Hijack", func(w http.ResponseWriter) {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			answerBy(conn, rw)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, _ := newManager(t)
			done := make(chan bool, 1)
			s := serve(t, shop(t, m, func(w http.ResponseWriter, r *http.Request) {
				defer func() { done <- true }()
				tc.send(w)
				late(t, m, r)
				// What a session that is there has may still be saved; a first one cannot begin.
				m.Put(r.Context(), "k", "late")
				err := m.Commit(r.Context())
				if known := m.Info(r.Context()).Handle != ""; known && err != nil || !known && !errors.Is(err, session.ErrFinished) {
					t.Errorf("Commit: %v", err)
				}
			}))
			for _, who := range []string{"nobody", "a visitor", "ann"} {
				s.forget()
				want := " cart= k="
				if who != "nobody" {
					s.get("/cart")
					want = " cart=book k=late"
				}
				if who == "ann" {
					s.get("/login?user=ann")
					want = who + want
				}
				if res := s.get("/"); res.Header["Set-Cookie"] != nil {
					t.Errorf("%s: cookies %q", who, res.Header["Set-Cookie"])
				}
				<-done
				if got := s.get("/see").body; got != want {
					t.Errorf("%s: then the browser sees %q, want %q", who, got, want)
				}
			}
		})
	}
}

// answerBy answers over a connection that was taken over.
func answerBy(conn net.Conn, rw *bufio.ReadWriter) {
	rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
	rw.Flush()
	conn.Close()
}

// An answer that was under way since before somebody logged in anew neither saves nor sets
// a cookie: the browser stays logged in.
func TestLateAnswers(t *testing.T) {
	for _, tc := range []struct {
		name  string
		clock bool                                                                 // Redis's is moved
		begin string                                                               // what the browser was when the request set out
		while func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) // what came meanwhile
	}{
		{name: "logout and login", begin: "ann", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/logout")
			s.get("/login?user=bob")
		}},
		{name: "logout by a browser that keeps its cookie, and login", begin: "ann", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			jar := s.client.Jar
			s.client.Jar = frozen{jar}
			s.get("/logout")
			s.client.Jar = jar
			s.get("/login?user=bob")
		}},
		{name: "login of a visitor", begin: "a visitor", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/login?user=bob")
		}},
		{name: "login of a user again", begin: "bob", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/login?user=bob")
		}},
		{name: "login of another user", begin: "ann", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/login?user=bob")
		}},
		{name: "expiry and login", clock: true, begin: "ann", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			advance(t, b, 25*time.Hour, m)
			s.get("/login?user=bob")
		}},
		{name: "expiry before, and login", clock: true, begin: "expired", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/login?user=bob")
		}},
		{name: "logout before, and login", begin: "logged out", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/login?user=bob")
		}},
		{name: "logout and login long ago", clock: true, begin: "ann", while: func(t *testing.T, b redistest.Backend, s *site, m *session.Manager) {
			s.get("/logout")
			s.get("/login?user=bob")
			advance(t, b, 10*time.Minute, m)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, b redistest.Backend) {
				if tc.clock && b.Name == "cluster" {
					return // its servers' clocks are learned one by one
				}
				for way, write := range map[string]func(ctx context.Context, m *session.Manager) error{
					"puts":       func(ctx context.Context, m *session.Manager) error { m.Put(ctx, "k", "late"); return nil },
					"commits":    func(ctx context.Context, m *session.Manager) error { m.Put(ctx, "k", "late"); return m.Commit(ctx) },
					"rotates":    func(ctx context.Context, m *session.Manager) error { return m.Rotate(ctx) },
					"remembers":  func(ctx context.Context, m *session.Manager) error { m.Remember(ctx, true); return nil },
					"is touched": func(ctx context.Context, m *session.Manager) error { return nil },
				} {
					m := managerOn(t, b.Client)
					// Not yet known whether it leads somewhere, the request waits in the handler.
					entered, goOn := make(chan bool), make(chan bool)
					s := serve(t, shop(t, m, func(w http.ResponseWriter, r *http.Request) {
						entered <- true
						<-goOn
						if err := write(r.Context(), m); err != nil && !errors.Is(err, session.ErrEnded) {
							t.Errorf("%s: %v", way, err)
						}
						see(w, r, m)
					}))
					s.get("/cart")
					switch tc.begin {
					case "a visitor":
					case "expired":
						s.get("/login?user=ann")
						advance(t, b, 25*time.Hour, m)
					case "logged out":
						s.get("/login?user=ann")
						jar := s.client.Jar
						s.client.Jar = frozen{jar}
						s.get("/logout")
						s.client.Jar = jar
					default:
						s.get("/login?user=" + tc.begin)
					}
					slow := make(chan reply)
					go func() { slow <- s.get("/slow") }()
					<-entered
					tc.while(t, b, s, m)
					close(goOn)
					res := <-slow
					if res.StatusCode != 200 || res.Header["Set-Cookie"] != nil {
						t.Errorf("%s: the late answer is %s and sets %q", way, res.Status, res.Header["Set-Cookie"])
					}
					if strings.Contains(res.body, "bob") && tc.begin != "bob" {
						t.Errorf("%s: the late answer shows %q", way, res.body)
					}
					if got := s.get("/see").body; !strings.HasPrefix(got, "bob ") || strings.Contains(got, "late") {
						t.Errorf("%s: then the browser sees %q", way, got)
					}
				}
			})
		})
	}
}

// frozen is a jar that takes nothing.
type frozen struct{ http.CookieJar }

func (frozen) SetCookies(*url.URL, []*http.Cookie) {}
