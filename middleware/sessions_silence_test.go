package middleware_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// Vary: Cookie stands only where the response depended on the session, or sets its cookie.
func TestVaryOnlyWhereTheSessionIsLookedAt(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		var log journal
		mux := http.NewServeMux()
		handle := func(path string, f func(w http.ResponseWriter, r *http.Request)) { mux.HandleFunc(path, f) }
		handle("/static", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the same for all") })
		handle("/empty", func(w http.ResponseWriter, r *http.Request) {})
		handle("/get", func(w http.ResponseWriter, r *http.Request) { m.GetString(r.Context(), "a") })
		handle("/user", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, m.UserID(r.Context())) })
		handle("/info", func(w http.ResponseWriter, r *http.Request) { m.Info(r.Context()) })
		handle("/put", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "a", "b") })
		handle("/ended", func(w http.ResponseWriter, r *http.Request) { m.Ended(r.Context()) })
		handle("/lang", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Vary", "Accept-Language")
			m.GetString(r.Context(), "a")
		})
		mux.Handle("/guarded", middleware.RequireUser{Manager: m}.Handler(hello))
		mux.Handle("/limited", middleware.RateLimit{Limiter: local("x", 100), Key: middleware.FirstOf(middleware.ByUser(m), everybody)}.Handler(hello))
		handle("/late", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "hello ")
			w.(http.Flusher).Flush()
			fmt.Fprint(w, m.GetString(r.Context(), "a"))
		})
		s := serve(middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(mux))
		for range 2 { // without a session, and with one
			for path, want := range map[string]string{
				"/static": "", "/empty": "", "/get": "Cookie", "/user": "Cookie", "/info": "Cookie", "/ended": "Cookie",
				"/lang": "Accept-Language,Cookie", "/guarded": "Cookie", "/limited": "Cookie", "/late": "",
			} {
				if got := strings.Join(s.get(path).Header["Vary"], ","); got != want {
					t.Errorf("%s: Vary %q, want %q", path, got, want)
				}
			}
			if got := strings.Join(s.get("/put").Header["Vary"], ","); got != "Cookie" {
				t.Errorf("/put: Vary %q", got)
			}
		}
		if told := strings.Count(log.String(), "looked at after the header was sent"); told != 1 {
			t.Errorf("told %d times: %s", told, log.String())
		}
	})
}

// Polls are no use: a session that nothing else uses ends when it is idle, and its page knows when.
func TestSkipTouch(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		m := must(session.New(b.Client, session.Config{
			Prefix: t.Name() + ":", Timeout: time.Minute, IdleTimeout: 10 * time.Minute, Rotation: session.Rotation{Every: 5 * time.Minute},
			Logger: slog.New(slog.DiscardHandler),
		}))
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { _ = m.Login(r.Context(), "ann") })
		mux.HandleFunc("/put", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "a", 1) })
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, m.UserID(r.Context()), " ", m.Info(r.Context()).IdleExpires.Unix())
		})
		s := serve(t, middleware.Sessions{Manager: m, SkipTouch: func(r *http.Request) bool { return r.URL.Query().Has("poll") }}.Handler(mux))
		s.get("/login")
		began := s.get("/?poll").body
		var user string
		var idle int64
		fmt.Sscan(began, &user, &idle)
		for i := range 4 {
			advance(t, b, 2*time.Minute+20*time.Second, m)
			res := s.get("/?poll")
			if res.body != began || len(res.Cookies()) > 0 {
				t.Errorf("poll %d: %q %v, at first %q", i, res.body, res.Cookies(), began)
			}
		}
		advance(t, b, 90*time.Second, m) // 10 min 50 s in all
		if res := s.get("/?poll"); strings.HasPrefix(res.body, "ann") {
			t.Errorf("after IdleTimeout: %q", res.body)
		}
		if b.Name == "cluster" { // of which a Manager learns the time of each master by itself
			return
		}
		// What is no poll is a use; so is a poll that changes something.
		for _, path := range []string{"/", "/put?poll"} {
			s.forget()
			s.get("/login")
			for range 3 {
				advance(t, b, 4*time.Minute, m)
				var used, then int64
				fmt.Sscan(s.get(path).body, &user, &used)
				fmt.Sscan(s.get("/?poll").body, &user, &then)
				if path == "/" && (then < used || then > used+10) { // its own use counts
					t.Errorf("a use says %d, the next poll %d", used, then)
				}
			}
			if res := s.get("/?poll"); !strings.HasPrefix(res.body, "ann") {
				t.Errorf("%s is no use: %q", path, res.body)
			}
		}
	})
}

// A client without a cookie jar gets a header field, and never both.
func TestToken(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		mux := http.NewServeMux()
		mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
			n := m.GetInt(r.Context(), "n") + 1
			m.Put(r.Context(), "n", n)
			w.Header().Set("CDN-Cache-Control", "max-age=60")
			fmt.Fprint(w, n)
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "!")
		})
		mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { _ = m.Login(r.Context(), "ann") })
		mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) { _ = m.Logout(r.Context()) })
		mux.HandleFunc("/user", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, m.UserID(r.Context()), r.Header["X-Session"], r.Header["Cookie"])
		})
		s := serve(middleware.Sessions{Manager: m, Token: "x-session", StripCookie: true}.Handler(mux))
		token := ""
		send := func(path string, values ...string) reply {
			t.Helper()
			res := s.do("GET", path, http.Header{"X-Session": values, "Accept": {"*/*"}})
			if len(res.Header["Set-Cookie"]) > 0 || len(res.Header["X-Session"]) > 1 {
				t.Errorf("%s: %v", path, res.Header)
			}
			if set := res.Header["X-Session"]; len(set) == 1 {
				token = set[0]
				if res.Header.Get("Cache-Control") != "no-store" || res.Header["Cdn-Cache-Control"] != nil {
					t.Errorf("%s: %v", path, res.Header)
				}
			}
			return res
		}
		if res := send("/count", ""); res.body != "1!" || token == "" || strings.Join(res.Header["Vary"], ",") != "Cookie,X-Session" {
			t.Errorf("%q, token %q, %v", res.body, token, res.Header)
		}
		first := token
		if res := send("/count", token); res.body != "2!" || res.Header["X-Session"] != nil {
			t.Errorf("%q %v", res.body, res.Header)
		}
		send("/login", token)
		if token == first {
			t.Error("a login keeps the token")
		}
		if res := send("/user", token); res.body != "ann[] []" {
			t.Errorf("%q", res.body)
		}
		// A browser beside it has a session of its own.
		if res := s.get("/count"); res.body != "1!" || len(res.Cookies()) != 1 || res.Header["X-Session"] != nil {
			t.Errorf("a browser: %q %v", res.body, res.Header)
		}
		if res := s.get("/count"); res.body != "2!" {
			t.Errorf("a browser: %q", res.body)
		}
		if res := send("/count", token); res.body != "3!" { // and its cookie does not count here
			t.Errorf("both: %q", res.body)
		}
		for name, values := range map[string][]string{
			"nonsense": {"nonsense"}, "another's signature": {token[:len(token)-2] + "xx"}, "large": {strings.Repeat("x", 500<<10)},
			"ten, the last one right": {"a", "b", "c", "d", "e", "f", "g", "h", "i", token}, "with strange bytes": {"\"%&{}<\xff"},
		} {
			before := token
			res := s.do("GET", "/user", http.Header{"X-Session": values})
			if right := strings.HasPrefix(name, "ten"); strings.HasPrefix(res.body, "ann") != right && res.StatusCode == 200 {
				t.Errorf("%s: %s %q", name, res.Status, res.body)
			}
			token = before
		}
		old := token
		if res := send("/logout", token); token != "" || res.Header["X-Session"] == nil {
			t.Errorf("after a logout: %q %v", token, res.Header)
		}
		if res := send("/user", old); strings.HasPrefix(res.body, "ann") {
			t.Errorf("after a logout: %q", res.body)
		}
	})
	m, _ := newManager(t)
	for _, name := range []string{"Cookie", "set-cookie", "authorization", "X Session", "X\n"} {
		if err := (middleware.Sessions{Manager: m, Token: name}).Validate(); err == nil || !strings.Contains(err.Error(), "Token") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// Sessions that would have each other's session are refused, and the log says why; others are not.
func TestSessionsInsideOfSessions(t *testing.T) {
	m, _ := newManager(t)
	other, _ := newManager(t)
	var log journal
	of := func(m *session.Manager, cookie, token string, next http.Handler) http.Handler {
		return middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: cookie}, Token: token, Logger: log.logger()}.Handler(next)
	}
	mount := func(m *session.Manager, cookie string, next http.Handler) http.Handler {
		return of(m, cookie, "", next)
	}
	through := func(next http.Handler) http.Handler { // a ResponseWriter of others between
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(&statusWriter{w, 0}, r) })
	}
	for name, tc := range map[string]struct {
		h      http.Handler
		status int
	}{
		"one Manager":            {mount(m, "", mount(m, "", hello)), 500},
		"one Manager, two names": {mount(m, "", mount(m, "__Host-admin", hello)), 500},
		"two Managers":           {mount(m, "", mount(other, "", hello)), 500},
		"with others between":    {mount(m, "a", through(through(mount(other, "a", hello)))), 500},
		"three":                  {mount(m, "a", mount(other, "b", mount(m, "a", hello))), 500},
		"one name on localhost":  {mount(m, "", mount(other, "__Secure-session", hello)), 500},
		"one Token":              {of(m, "a", "X-S", of(other, "b", "x-s", hello)), 500},
		"two Tokens":             {of(m, "a", "X-One", of(other, "b", "X-Other", hello)), 200},
		"two names":              {mount(m, "a", mount(other, "b", hello)), 200},
		"with prefixes":          {mount(m, "", mount(other, "__Host-other", hello)), 200},
		"beside a gateway":       {mount(m, "a", middleware.Gateway(mount(other, "b", hello))), 200},
	} {
		log.Reset()
		res := serve(t, tc.h).get("/")
		if res.StatusCode != tc.status || (tc.status == 500) != strings.Contains(log.String(), "inside of Sessions") {
			t.Errorf("%s: %s, log %s", name, res.Status, log.String())
		}
	}
}

// A change after the handler has returned is logged, once per request; a Commit saves it.
func TestAPutAfterTheEndIsTold(t *testing.T) {
	client := redistest.Shared(t).Client()
	var log journal
	m := must(session.New(client, session.Config{Prefix: t.Name() + ":", Timeout: time.Minute, Logger: log.logger()}))
	done := make(chan bool)
	cookie := ""
	visit := func(after func(ctx context.Context)) {
		t.Helper()
		returned := make(chan bool)
		h := middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "a", m.GetInt(r.Context(), "a")+1)
			go func() {
				<-returned
				after(r.Context())
				done <- true
			}()
		}))
		r := httptest.NewRequest("GET", "http://localhost/", nil)
		r.Header.Set("Cookie", cookie)
		for _, c := range answer(h, r).Cookies() {
			cookie = c.Name + "=" + c.Value
		}
		close(returned)
		<-done
	}
	visit(func(ctx context.Context) {})
	for name, tc := range map[string]struct {
		after func(ctx context.Context)
		told  int
	}{
		"put":                      {func(ctx context.Context) { m.Put(ctx, "late", 1); m.Put(ctx, "late", 2) }, 1},
		"remove":                   {func(ctx context.Context) { m.Remove(ctx, "a") }, 1},
		"clear":                    {func(ctx context.Context) { _ = m.Clear(ctx) }, 1},
		"pop":                      {func(ctx context.Context) { m.PopInt(ctx, "a") }, 1},
		"get":                      {func(ctx context.Context) { m.GetInt(ctx, "a") }, 0},
		"remove what is not there": {func(ctx context.Context) { m.Remove(ctx, "nothing") }, 0},
	} {
		log.Reset()
		visit(tc.after)
		if told := strings.Count(log.String(), "after the handler had returned"); told != tc.told {
			t.Errorf("%s: told %d times: %s", name, told, log.String())
		}
	}
	visit(func(ctx context.Context) {
		m.Put(ctx, "saved", true)
		if err := m.Commit(ctx); err != nil {
			t.Error(err)
		}
	})
	visit(func(ctx context.Context) {
		if !m.GetBool(ctx, "saved") {
			t.Error("a Commit after the end was lost")
		}
	})
}

// What browsers drop in silence is refused at the start, or told once.
func TestCookiesThatBrowsersDrop(t *testing.T) {
	m, _ := newManager(t)
	of := func(domain string) middleware.Sessions {
		return middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Domain: domain}}
	}
	for domain, ok := range map[string]bool{
		"com": false, ".com": false, "co.uk": false, "CO.UK": false, "github.io": false, "localhost": false, "127.0.0.1": false, "::1": false,
		"example.com": true, ".example.com": true, "app.example.co.uk": true, "user.github.io": true,
	} {
		if err := of(domain).Validate(); (err == nil) != ok || err != nil && !strings.Contains(err.Error(), domain) {
			t.Errorf("%s: %v", domain, err)
		}
	}
	for _, tc := range []struct {
		domain, url, host string
		field             string // of a proxy, or of a browser
		told              bool
	}{
		{"example.com", "https://x/", "example.com", "", false}, {"example.com", "https://x/", "app.example.com:8443", "", false},
		{".example.com", "https://x/", "APP.Example.com.", "", false}, {"example.com", "https://x/", "example.org", "", true},
		{"example.com", "https://x/", "notexample.com", "", true}, {"app.example.com", "https://x/", "example.com", "", true},
		{"example.com", "https://x/", "10.0.0.7:8080", "", true}, {"", "https://x/", "anything", "", false},
		{"", "http://x/", "app.example.com", "", true}, {"", "http://x/", "192.168.1.5:8080", "", true}, {"", "http://x/", "localhost:8080", "", false},
		{"", "http://x/", "app.example.com", "X-Forwarded-Proto", false}, {"", "http://x/", "app.example.com", "Via", false},
		{"", "http://x/", "app.example.com", "Sec-Fetch-Mode", false},
	} {
		var log journal
		s := of(tc.domain)
		s.Logger = log.logger()
		h := s.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "a", 1) }))
		for range 3 {
			r := httptest.NewRequest("GET", tc.url, nil)
			r.Host = tc.host
			if tc.field != "" {
				r.Header.Set(tc.field, "https")
			}
			answer(h, r)
		}
		if told := strings.Count(log.String(), "browsers drop"); (told == 1) != tc.told || told > 1 {
			t.Errorf("%+v: told %d times: %s", tc, told, log.String())
		}
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (s *statusWriter) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

func (s *statusWriter) Unwrap() http.ResponseWriter { return s.ResponseWriter }
