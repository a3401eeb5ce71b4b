package stacktest

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/sessiontest"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var quiet = slog.New(slog.DiscardHandler)

// patient waits for a slow machine.
var patient = ratelimit.Config{Timeout: time.Minute, Logger: quiet}

const quota = 12 // of a kit's limit, an hour

// kit is the kit's middleware on a Redis of its own.
type kit struct {
	sessions *session.Manager
	limit    middleware.RateLimit        // quota an hour
	routes   middleware.Routes           // one GET /few an hour
	places   middleware.ConcurrencyLimit // one request at once
}

func newKit(t testing.TB) *kit {
	t.Helper()
	redis := sessiontest.NewServer(t)
	byIP := middleware.ByIP(middleware.PeerIP)
	window := func(name string, n int) ratelimit.Limiter {
		return must(ratelimit.NewSlidingWindow(redis.Client, name, ratelimit.PerHour(n), patient))
	}
	return &kit{
		sessions: redis.Manager(t, session.Config{Logger: quiet}),
		limit:    middleware.RateLimit{Limiter: window("all", quota), Key: byIP, Logger: quiet},
		routes:   middleware.Routes{"GET /few": {Limiter: window("few", 1), Key: byIP}},
		places:   middleware.ConcurrencyLimit{Limiter: must(ratelimit.NewConcurrency(redis.Client, "places", 1, patient)), Key: byIP},
	}
}

func (k *kit) withSessions(next http.Handler) http.Handler {
	return middleware.Sessions{Manager: k.sessions, Logger: quiet}.Handler(next)
}

func (k *kit) limits(next http.Handler) http.Handler {
	return k.limit.Handler(k.routes.Handler(k.places.Handler(next)))
}

func (k *kit) all(next http.Handler) http.Handler { return k.withSessions(k.limits(next)) }

// site is a server over TLS with a client that keeps its cookies.
type site struct {
	*httptest.Server
	t      testing.TB
	client *http.Client
}

// serve serves h over HTTP/1.1, or over HTTP/2.
func serve(t testing.TB, http2 bool, h http.Handler) *site {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = http2
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c := srv.Client()
	c.Jar = must(cookiejar.New(nil))
	c.Timeout = time.Minute
	return &site{srv, t, c}
}

// reply is a response that was read to its end.
type reply struct {
	*http.Response
	body string
}

func (s *site) get(path string) reply {
	s.t.Helper()
	return s.do("GET", path, "", nil)
}

func (s *site) do(method, path, body string, header http.Header) reply {
	s.t.Helper()
	req := must(http.NewRequestWithContext(s.t.Context(), method, s.URL+path, strings.NewReader(body)))
	if header != nil {
		req.Header = header
	}
	return s.send(req)
}

func (s *site) send(req *http.Request) reply {
	s.t.Helper()
	res, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Errorf("%s %s: the body breaks off: %v", req.Method, req.URL.Path, err)
	}
	return reply{res, string(b)}
}

// expect fails the test unless the response has the status and the body.
func (r reply) expect(t testing.TB, status int, body string) {
	t.Helper()
	if r.StatusCode != status || r.body != body {
		t.Errorf("%s: %d %q, want %d %q", r.Request.URL.Path, r.StatusCode, r.body, status, body)
	}
}

// sets returns how many cookies of a name a response sets.
func sets(r *http.Response, name string) (n int) {
	for _, c := range r.Cookies() {
		if c.Name == name {
			n++
		}
	}
	return n
}

// figures fails the test unless each X-RateLimit field is there once, with these figures.
func figures(t testing.TB, what string, h http.Header, limit, remaining int) {
	t.Helper()
	for name, want := range map[string]int{"X-RateLimit-Limit": limit, "X-RateLimit-Remaining": remaining} {
		if got := h.Values(name); !slices.Equal(got, []string{strconv.Itoa(want)}) {
			t.Errorf("%s: %s: %q, want %d", what, name, got, want)
		}
	}
	reset := h.Values("X-RateLimit-Reset")
	if len(reset) != 1 {
		t.Errorf("%s: X-RateLimit-Reset: %q", what, reset)
		return
	}
	at, err := strconv.ParseInt(reset[0], 10, 64)
	if in := time.Until(time.Unix(at, 0)); err != nil || in < 50*time.Minute || in > time.Hour+2*time.Second {
		t.Errorf("%s: X-RateLimit-Reset: %q, in %v", what, reset, in)
	}
}

// refused fails the test unless r is a 429 that says when to come back and that nobody stores.
func refused(t testing.TB, what string, r reply) {
	t.Helper()
	after, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if r.StatusCode != http.StatusTooManyRequests || err != nil || after < 1 || after > 3601 || r.Header.Get("Cache-Control") != "no-store" ||
		!strings.Contains(r.body, `"title":"Too Many Requests"`) {
		t.Errorf("%s: %s %v %s", what, r.Status, r.Header, r.body)
	}
}

// app is the application behind all middleware. It uses the sessions of k unless that is nil.
type app struct {
	*http.ServeMux
	entered, leave chan bool // of GET /hold
}

func newApp(k *kit) *app {
	a := &app{http.NewServeMux(), make(chan bool), make(chan bool)}
	a.HandleFunc("GET /text", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, text)
	})
	a.HandleFunc("GET /few", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "few") })
	a.HandleFunc("GET /count", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "max-age=60") // not where the cookie is set
		n := k.sessions.GetInt(r.Context(), "n") + 1
		k.sessions.Put(r.Context(), "n", n)
		fmt.Fprint(w, n)
	})
	a.HandleFunc("POST /form", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.PostFormValue("a")) })
	a.HandleFunc("GET /items/{id}", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.PathValue("id")) })
	a.HandleFunc("GET /hang", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	a.HandleFunc("GET /panic", func(w http.ResponseWriter, r *http.Request) {
		if k != nil {
			k.sessions.Put(r.Context(), "n", 100)
		}
		panic("at the disco")
	})
	a.HandleFunc("GET /hold", func(w http.ResponseWriter, r *http.Request) {
		a.entered <- true
		<-a.leave
		io.WriteString(w, "held")
	})
	return a
}

var text = strings.Repeat("What compresses well. ", 200)

// keeps fails the test unless the kit, mounted in s around a, keeps what it promises.
func keeps(t *testing.T, s *site, a *app) {
	t.Helper()
	first := s.get("/count")
	first.expect(t, 200, "1")
	if n := sets(first.Response, "__Host-session"); n != 1 || first.Header.Get("Cache-Control") != "no-store" || len(first.Header["Cache-Control"]) != 1 {
		t.Errorf("a new session: %d cookies, Cache-Control: %q", n, first.Header["Cache-Control"])
	}
	if vary := strings.Join(first.Header["Vary"], ","); !strings.Contains(vary, "Cookie") {
		t.Errorf("a new session: Vary: %s", vary)
	}
	figures(t, "the first request", first.Header, quota, quota-1)
	second := s.get("/count")
	second.expect(t, 200, "2")
	if n := sets(second.Response, "__Host-session"); n != 0 || second.Header.Get("Cache-Control") != "max-age=60" {
		t.Errorf("the same session: %d cookies, Cache-Control: %q", n, second.Header["Cache-Control"])
	}
	figures(t, "the second request", second.Header, quota, quota-2)

	few := s.get("/few")
	few.expect(t, 200, "few")
	figures(t, "the tightest limit", few.Header, 1, 0)
	few = s.get("/few")
	refused(t, "the limit of a route is used up", few)
	figures(t, "the limit of a route is used up", few.Header, 1, 0)

	held := make(chan reply)
	go func() { held <- s.get("/hold") }()
	<-a.entered
	beside := s.get("/text")
	refused(t, "no place is free", beside)
	figures(t, "no place is free", beside.Header, quota, quota-6)
	a.leave <- true
	(<-held).expect(t, 200, "held")

	for left := quota - 7; left >= 0; left-- {
		r := s.get("/text")
		r.expect(t, 200, text)
		figures(t, "another request", r.Header, quota, left)
	}
	last := s.get("/count")
	refused(t, "the limit is used up", last)
	figures(t, "the limit is used up", last.Header, quota, 0)
}
