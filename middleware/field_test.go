package middleware_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// A Redis that does not know EVALSHA or HGET any more quotes keys in its errors. They get into no log, and
// what is wrong is told once.
func TestWhatRedisQuotesIsInNoLog(t *testing.T) {
	const canary = "canary@example.com"
	for _, args := range [][]string{
		{"--rename-command", "EVALSHA", ""}, {"--rename-command", "EVALSHA", "", "--rename-command", "EVAL", ""}, {"--rename-command", "HGET", ""},
	} {
		client := redistest.Start(t, args...).Client()
		var log journal
		cfg := ratelimit.Config{Logger: log.logger()}
		key := middleware.By("mail", func(*http.Request) string { return canary })
		m := must(session.New(client, session.Config{Logger: log.logger()}))
		var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := m.Login(r.Context(), canary); err == nil || strings.Contains(err.Error(), canary) || strings.Contains(err.Error(), "gatehouse:") {
				t.Errorf("%v: %v", args, err)
			}
		})
		h = middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(h)
		h = middleware.ConcurrencyLimit{Limiter: must(ratelimit.NewConcurrency(client, "c", 5, cfg)), Key: key, Logger: log.logger()}.Handler(h)
		h = middleware.RateLimit{Limiter: must(ratelimit.NewSlidingWindow(client, "l", ratelimit.PerMinute(5), cfg)), Key: key, Logger: log.logger()}.Handler(h)
		for range 2 {
			answer(h, httptest.NewRequest("GET", "https://x.example/", nil))
			time.Sleep(1100 * time.Millisecond) // a line a second could come
		}
		if text := log.String(); strings.Contains(text, canary) || strings.Contains(text, "gatehouse:rl") || strings.Contains(text, "with args") || strings.Count(text, "rate limit: ") > 2 { // one of each limit
			t.Errorf("%v:\n%s", args, text)
		}
	}
}

// A backend cannot replace the session of the gateway before it, neither by a cookie nor by a token.
func TestABackendCannotReplaceTheSession(t *testing.T) {
	m, _ := newManager(t)
	backend := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, name := range []string{"__Host-session", "session", "old", "theirs"} {
			http.SetCookie(w, &http.Cookie{Name: name, Value: "x", Path: "/"})
		}
		w.Header().Set("X-Session", "x")
		fmt.Fprint(w, "page")
	})
	h := middleware.Sessions{Manager: m, Token: "X-Session", StripCookie: true}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			if err := m.Login(r.Context(), "ann"); err != nil {
				t.Error(err)
			}
			return
		}
		middleware.Gateway(backend).ServeHTTP(w, r)
	}))
	login := answer(h, httptest.NewRequest("GET", "https://x.example/login", nil)).Cookies()
	if len(login) != 1 {
		t.Fatal(login)
	}
	r := httptest.NewRequest("GET", "https://x.example/", nil)
	r.AddCookie(login[0])
	res := answer(h, r)
	if set := res.Header["Set-Cookie"]; len(set) != 2 || !strings.HasPrefix(set[0], "old=") || !strings.HasPrefix(set[1], "theirs=") || res.Header.Get("X-Session") != "" {
		t.Errorf("%v %q", set, res.Header.Get("X-Session"))
	}
}

// Sessions that would have each other's session are told from those that would not.
func TestSessionsThatWouldHaveEachOthers(t *testing.T) {
	one, server := newManager(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	other := must(session.New(client, session.Config{Prefix: "other:"}))
	cookie := func(name string) http.Cookie { return http.Cookie{Name: name} }
	for name, tc := range map[string]struct {
		outer, inner middleware.Sessions
		want         int
	}{
		"two of their own":         {middleware.Sessions{Manager: one}, middleware.Sessions{Manager: other, Cookie: cookie("__Host-other")}, 200},
		"with tokens of their own": {middleware.Sessions{Manager: one, Token: "X-One"}, middleware.Sessions{Manager: other, Cookie: cookie("o"), Token: "X-Other"}, 200},
		"one Manager":              {middleware.Sessions{Manager: one}, middleware.Sessions{Manager: one, Cookie: cookie("__Host-admin")}, 500},
		"one name":                 {middleware.Sessions{Manager: one}, middleware.Sessions{Manager: other}, 500},
		"one name on localhost":    {middleware.Sessions{Manager: one}, middleware.Sessions{Manager: other, Cookie: cookie("__Secure-session")}, 500},
		"one Token":                {middleware.Sessions{Manager: one, Token: "X-S"}, middleware.Sessions{Manager: other, Cookie: cookie("o"), Token: "x-s"}, 500},
	} {
		var log journal
		tc.outer.Logger, tc.inner.Logger = log.logger(), log.logger()
		h := tc.outer.Handler(tc.inner.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
		if res := answer(h, httptest.NewRequest("GET", "https://x.example/", nil)); res.StatusCode != tc.want || strings.Contains(log.String(), "inside of Sessions") != (tc.want == 500) {
			t.Errorf("%s: %d, %s", name, res.StatusCode, log.String())
		}
	}
}

// A rotation that nobody asked for fails no request: a Redis that is full, or takes no writes, goes on to
// serve those who read.
func TestARotationThatIsDueFailsNoReader(t *testing.T) {
	for setting, value := range map[string]string{"maxmemory": "1", "min-replicas-to-write": "1"} {
		client := redistest.Start(t).Client()
		var log journal
		m := must(session.New(client, session.Config{Rotation: session.Rotation{Every: 100 * time.Millisecond, Grace: time.Second}, Logger: log.logger()}))
		h := middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/login":
				_ = m.Login(r.Context(), "ann")
			case "/put":
				m.Put(r.Context(), "a", r.URL.RawQuery)
			case "/rotate":
				_ = m.Rotate(r.Context())
			}
			fmt.Fprint(w, m.UserID(r.Context()))
		}))
		cookies := answer(h, httptest.NewRequest("GET", "https://x.example/login", nil)).Cookies()
		if len(cookies) != 1 {
			t.Fatal(cookies)
		}
		if err := client.ConfigSet(t.Context(), setting, value).Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		for path, want := range map[string]int{"/": 200, "/put?1": 503, "/rotate": 503} {
			r := httptest.NewRequest("GET", "https://x.example"+path, nil)
			r.AddCookie(cookies[0])
			if res := answer(h, r); res.StatusCode != want {
				t.Errorf("%s %s: %d, want %d: %s", setting, path, res.StatusCode, want, log.String())
			}
		}
		if !strings.Contains(log.String(), "no new ID") {
			t.Errorf("%s: nothing is told: %s", setting, log.String())
		}
	}
}
