package middleware_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// form is a multipart body with one field, and its type.
func form(t *testing.T, name, value string) (*bytes.Buffer, string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if err := w.WriteField(name, value); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return &b, w.FormDataContentType()
}

// A handler further out that has parsed the form of a request does not hide its multipart body.
func TestByFormAfterSomebodyParsed(t *testing.T) {
	key := middleware.ByForm("user", nil)
	for query, want := range map[string]string{"?user=x": "", "?user=victim": "form:user:victim", "": "form:user:victim"} {
		body, kind := form(t, "user", "victim")
		r := httptest.NewRequest("POST", "/login"+query, body)
		r.Header.Set("Content-Type", kind)
		if err := r.ParseForm(); err != nil {
			t.Fatal(err)
		}
		if got, err := key(r); got != want {
			t.Errorf("%s: %q, %v", query, got, err)
		}
		if err := r.ParseMultipartForm(1 << 20); err != nil || r.PostFormValue("user") != "victim" {
			t.Errorf("%s: the handler sees %q, %v", query, r.PostFormValue("user"), err)
		}
	}
}

// What is mounted outside sees the route, and the server finds the files that it has to remove.
func TestRequestsAreHandedBack(t *testing.T) {
	limit := middleware.RateLimit{Limiter: local("many", 1000), Key: everybody}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /files/{id}", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
		}
	})
	m, _ := newManager(t)
	for name, h := range map[string]http.Handler{
		"RateLimit":           limit.Handler(mux),
		"Routes":              middleware.Routes{"/files/": limit}.Handler(mux),
		"Sessions, RateLimit": middleware.Sessions{Manager: m}.Handler(limit.Handler(mux)),
	} {
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		var pattern atomic.Value
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			pattern.Store(r.Pattern)
		}))
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		f, err := w.CreateFormFile("file", "large")
		if err != nil {
			t.Fatal(err)
		}
		f.Write(make([]byte, 1<<20))
		w.Close()
		res, err := http.Post(s.URL+"/files/7", w.FormDataContentType(), &body)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		s.Close()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %d files are left, %v", name, len(left), err)
		}
		if pattern.Load() != "POST /files/{id}" {
			t.Errorf("%s: outside, the pattern is %q", name, pattern.Load())
		}
	}
}

// That the failures of one limit, or of a dear request, are final says nothing about others, nor
// about a limit that was reset.
func TestWhatIsFinalForOneIsNotForOthers(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	limiter := func(name string, n int) *ratelimit.SlidingWindow {
		return must(ratelimit.NewSlidingWindow(server.Client(), name, ratelimit.PerMinute(n), patient))
	}
	spend := func(limiter ratelimit.Limiter, n int) {
		if _, err := limiter.Take(t.Context(), "everybody", n); err != nil {
			t.Fatal(err)
		}
	}
	rightOnes := func(name string, h http.Handler, want int) {
		t.Helper()
		var in atomic.Int64
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if answer(h, httptest.NewRequest("POST", "/login?password=right", nil)).StatusCode == 200 {
					in.Add(1)
				}
			})
		}
		wg.Wait()
		if in.Load() < int64(want) {
			t.Errorf("%s: %d of 5 got in", name, in.Load())
		}
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(30 * time.Millisecond)
		if r.FormValue("password") == "right" {
			middleware.Succeeded(r)
		}
	})
	wrong := func(h http.Handler, query string) {
		answer(h, httptest.NewRequest("POST", "/login?"+query, nil))
	}

	a := limiter("cost", 5)
	spend(a, 4)
	h := middleware.RateLimit{Limiter: a, Key: everybody, FailuresOnly: true, Cost: func(r *http.Request) int {
		if r.FormValue("dear") != "" {
			return 5
		}
		return 1
	}}.Handler(page)
	wrong(h, "dear=1")
	rightOnes("after a dear one", h, 5)

	a, b := limiter("a", 1), limiter("b", 1)
	h = middleware.RateLimit{Limiter: a, Key: everybody, FailuresOnly: true, LimiterFor: func(r *http.Request) (ratelimit.Limiter, error) {
		if r.FormValue("b") != "" {
			return b, nil
		}
		return a, nil
	}}.Handler(page)
	spend(a, 1)
	wrong(h, "")
	rightOnes("another limit", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.RawQuery += "&b=1"
		h.ServeHTTP(w, r)
	}), 5)

	a = limiter("reset", 1)
	h = middleware.RateLimit{Limiter: a, Key: everybody, FailuresOnly: true}.Handler(page)
	spend(a, 1)
	wrong(h, "")
	if err := a.Reset(t.Context(), "everybody"); err != nil {
		t.Fatal(err)
	}
	// Who is denied before the first has got in is refused.
	if res := answer(h, httptest.NewRequest("POST", "/login?password=right", nil)); res.StatusCode != 200 {
		t.Errorf("the first after a reset: %s", res.Status)
	}
	rightOnes("after a reset", h, 5)
}

// A CONNECT, of which a ServeMux leaves port and path as they are, is counted as others are.
func TestRoutesCountConnect(t *testing.T) {
	for pattern, path := range map[string]string{"example.com/login": "/login", "example.com/login/": "/login", "/login": "//login"} {
		limit := middleware.RateLimit{Limiter: local("login", 2), Key: everybody}
		h := middleware.Routes{pattern: limit}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		passed := 0
		for range 5 {
			r := httptest.NewRequest("GET", "http://example.com:80"+path, nil)
			r.Method = "CONNECT"
			if answer(h, r).StatusCode == 200 {
				passed++
			}
		}
		if passed != 2 {
			t.Errorf("%s: %d of 5 passed", pattern, passed)
		}
	}
}

func TestEmptyKeysAreNone(t *testing.T) {
	empty := func(*http.Request) (string, error) { return "", nil }
	byIP := middleware.ByIP(middleware.PeerIP)
	r := httptest.NewRequest("GET", "/", nil)
	if key, err := middleware.Join(empty, byIP)(r); err == nil {
		t.Errorf("Join: %q", key)
	}
	if key, err := middleware.FirstOf(empty, byIP)(r); key != "ip:192.0.2.1" {
		t.Errorf("FirstOf: %q, %v", key, err)
	}
	if key, err := middleware.ByIP(func(*http.Request) (netip.Addr, error) { return netip.Addr{}, nil })(r); err == nil {
		t.Errorf("no address: %q", key)
	}
	if err := (middleware.RateLimit{Limiter: (*ratelimit.Local)(nil), Key: byIP}).Validate(); err == nil || !strings.Contains(err.Error(), "Limiter is nil") {
		t.Errorf("a nil pointer: %v", err)
	}
}

// A proxy that names its own machine is not the browser's, and cookies go out Secure.
func TestNoInsecureCookieBehindAProxy(t *testing.T) {
	m, _ := newManager(t)
	h := middleware.Sessions{Manager: m, Cookie: http.Cookie{Domain: "", Path: "/"}}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "k", 1) }))
	for _, name := range []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"} {
		r := httptest.NewRequest("GET", "http://127.0.0.1:8080/", nil)
		r.Header.Set(name, "https")
		if c := answer(h, r).Cookies(); len(c) != 1 || !c[0].Secure || c[0].Name != "__Host-session" {
			t.Errorf("%s: %v", name, c)
		}
	}
}

func TestOddCookiesHideNoGoodOne(t *testing.T) {
	m, _ := newManager(t)
	h := middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "sid"}}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/put" {
			m.Put(r.Context(), "k", "v")
			w.Header().Set("Cloudflare-CDN-Cache-Control", "max-age=60")
			w.Header().Set("X-Accel-Expires", "60")
		}
		fmt.Fprint(w, m.GetString(r.Context(), "k"))
	}))
	res := answer(h, httptest.NewRequest("GET", "https://example.com/put", nil))
	if res.Header.Get("Cloudflare-CDN-Cache-Control")+res.Header.Get("X-Accel-Expires") != "" {
		t.Error("a response with a cookie may be cached")
	}
	c := res.Cookies()[0]
	r := httptest.NewRequest("GET", "https://example.com/", nil)
	r.Header.Set("Cookie", strings.Repeat("sid=x; ", 40)+"sid="+c.Value)
	if got, _ := io.ReadAll(answer(h, r).Body); string(got) != "v" {
		t.Errorf("%q", got)
	}
}

// No path stands in the log: it may be a token that resets a password.
func TestNoPathInTheLog(t *testing.T) {
	m, mini := newManager(t)
	var log journal
	mini.SetError("ERR down")
	h := middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(http.NotFoundHandler())
	r := httptest.NewRequest("GET", "https://example.com/reset/SECRET-TOKEN", nil)
	r.TLS = &tls.ConnectionState{}
	r.AddCookie(&http.Cookie{Name: "__Host-session", Value: anyCookie(t)})
	if res := answer(h, r); res.StatusCode != 503 || !strings.Contains(log.String(), "not loaded") || strings.Contains(log.String(), "SECRET") {
		t.Errorf("%d, %s", res.StatusCode, log.String())
	}
}

// anyCookie is a cookie of another server's session.
func anyCookie(t *testing.T) string {
	t.Helper()
	m, _ := newManager(t)
	ctx, err := m.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Put(ctx, "k", 1)
	out, err := m.Finish(ctx)
	if err != nil || out.Action != session.CookieSet {
		t.Fatal(out, err)
	}
	return out.Value
}

func local(name string, n int) *ratelimit.Local {
	return must(ratelimit.NewLocal(name, ratelimit.PerMinute(n), ratelimit.Config{}))
}

// A Redis that does not know EVALSHA or HMGET any more quotes keys in its errors. They get into no log, and
// what is wrong is logged once.
func TestWhatRedisQuotesIsInNoLog(t *testing.T) {
	const canary = "canary@example.com"
	for _, args := range [][]string{
		{"--rename-command", "EVALSHA", ""}, {"--rename-command", "EVALSHA", "", "--rename-command", "EVAL", ""}, {"--rename-command", "HMGET", ""},
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
