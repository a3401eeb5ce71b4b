package middleware_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// A backend never sees the session's cookie; what is outside of Sessions does.
func TestStripCookie(t *testing.T) {
	m, _ := newManager(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header["Cookie"])
	}))
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	inside := middleware.Sessions{Manager: m, StripCookie: true}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.Put(r.Context(), "seen", m.GetString(r.Context(), "seen")+"x")
		w.Header().Set("Seen", m.GetString(r.Context(), "seen"))
		proxy.ServeHTTP(w, r)
	}))
	front := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before := fmt.Sprint(r.Header)
		inside.ServeHTTP(w, r)
		if fmt.Sprint(r.Header) != before {
			t.Error("the request outside was changed")
		}
	})
	cookie := ""
	for i := range 3 {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/", nil)
		r.Header["Cookie"] = []string{"a=1; " + cookie + "; b=\"2 3\"", cookie}
		if cookie == "" {
			r.Header["Cookie"] = []string{"a=1; b=\"2 3\""}
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		if got := w.Body.String(); !strings.Contains(got, "a=1;") || !strings.Contains(got, `b="2 3"`) || strings.Contains(got, "session") {
			t.Errorf("the backend gets %s", got)
		}
		if got := w.Header().Get("Seen"); len(got) != i+1 {
			t.Errorf("request %d sees %q", i, got)
		}
		for _, c := range w.Result().Cookies() {
			cookie = c.Name + "=" + c.Value
		}
	}
	if cookie == "" {
		t.Error("no cookie")
	}
}

// fixed is a limiter that says the same of every request.
type fixed ratelimit.Result

func (f fixed) Take(context.Context, string, int) (ratelimit.Result, error) {
	return ratelimit.Result(f), nil
}

// A gateway and the service behind it both limit, and the service may send early hints: the
// client sees one value of each field, and what stands outside of the proxy.
func TestGatewayFields(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		passes := fixed{Allowed: true, Limit: ratelimit.PerMinute(10), Remaining: 7, ResetAfter: time.Minute}
		for _, tc := range []struct {
			name    string
			fields  middleware.Fields
			shadow  bool
			backend func(h http.Header)
			status  int
			want    map[string]string // all values of a field, joined; "" for none
		}{
			{"both", middleware.Fields{}, false, func(h http.Header) {
				h.Set("X-RateLimit-Limit", "99")
				h.Set("X-RateLimit-Remaining", "98")
				h.Set("X-RateLimit-Limit-Minute", "97")
			}, 200, map[string]string{"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "7", "X-RateLimit-Limit-Minute": ""}},
			{"only ours", middleware.Fields{}, false, func(http.Header) {}, 200, map[string]string{"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "7"}},
			{"only theirs", middleware.Fields{None: true}, false, func(h http.Header) {
				h.Set("X-RateLimit-Limit", "99")
				h.Set("RateLimit", `"x";r=1`)
			}, 200, map[string]string{"X-RateLimit-Limit": "99", "RateLimit": `"x";r=1`}},
			{"in shadow", middleware.Fields{}, true, func(h http.Header) { h.Set("X-RateLimit-Limit", "99") }, 200, map[string]string{"X-RateLimit-Limit": "99"}},
			{"the other draft", middleware.Fields{IETF: true}, false, func(h http.Header) {
				h.Set("RateLimit-Limit", "99")
				h.Set("RateLimit", `"x";r=1`)
				h.Set("RateLimit-Policy", `"x";q=1`)
			}, 200, map[string]string{"RateLimit-Limit": "", "RateLimit": `"";r=7;t=60`}},
			{"other names", middleware.Fields{Names: middleware.FieldNames{Remaining: "My-Remaining"}}, false, func(h http.Header) {
				h.Set("My-Remaining", "98")
				h.Set("X-Rate-Limit-Remaining", "97")
			}, 200, map[string]string{"My-Remaining": "7", "X-Rate-Limit-Remaining": ""}},
			{"refused behind", middleware.Fields{}, false, func(h http.Header) {
				h.Set("X-RateLimit-Limit", "1")
				h.Set("X-RateLimit-Remaining", "0")
				h.Set("Retry-After", "33")
			}, 429, map[string]string{"X-RateLimit-Limit": "1", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "", "Retry-After": "33"}},
			{"refused without figures", middleware.Fields{}, false, func(h http.Header) { h.Set("Retry-After", "33") },
				429, map[string]string{"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "7", "Retry-After": "33"}},
		} {
			for _, hints := range []int{0, 1, 3} {
				t.Run(fmt.Sprintf("%s, %d hints", tc.name, hints), func(t *testing.T) {
					m, _ := newManager(t)
					backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						for range hints {
							w.Header().Add("Link", "</a.css>; rel=preload")
							w.WriteHeader(http.StatusEarlyHints)
						}
						w.Header().Set("Vary", "Accept")
						w.Header().Set("X-Content-Type-Options", "nosniff") // as outside
						tc.backend(w.Header())
						w.WriteHeader(tc.status)
					}))
					defer backend.Close()
					h := middleware.Gateway(httputil.NewSingleHostReverseProxy(must(url.Parse(backend.URL))))
					h = middleware.RateLimit{Limiter: passes, Key: everybody, Fields: tc.fields, Shadow: tc.shadow}.Handler(h)
					inner := h
					h = middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						m.Put(r.Context(), "a", 1)
						inner.ServeHTTP(w, r)
					}))
					inside := h
					h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						w.Header()["Vary"] = []string{"Origin"}
						w.Header()["X-Content-Type-Options"] = []string{"nosniff"}
						w.Header()["X-Empty"] = nil
						w.Header().Set("Access-Control-Allow-Origin", "https://a.example")
						inside.ServeHTTP(w, r)
					})
					res := serve(h).get("/")
					if res.StatusCode != tc.status {
						t.Fatal(res.Status)
					}
					for name, want := range tc.want {
						if got := strings.Join(res.Header.Values(name), " and "); got != want {
							t.Errorf("%s: %q, want %q", name, got, want)
						}
					}
					vary := strings.Join(res.Header.Values("Vary"), ",")
					if !strings.Contains(vary, "Origin") || !strings.Contains(vary, "Accept") || !strings.Contains(vary, "Cookie") {
						t.Errorf("Vary: %s", vary)
					}
					if got := res.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 {
						t.Errorf("Access-Control-Allow-Origin: %v", got)
					}
					if len(res.Cookies()) != 1 {
						t.Errorf("cookies %v", res.Cookies())
					}
				})
			}
		}
	})
}

// Connections that a backend upgrades go through a gateway, sessions and limits.
func TestGatewayUpgrade(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-RateLimit-Limit", "99")
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "echo")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, buffered)
	}))
	defer backend.Close()
	m, _ := newManager(t)
	client := redistest.Shared(t).Client()
	places := must(ratelimit.NewConcurrency(client, t.Name(), 1, patient))
	h := middleware.Gateway(httputil.NewSingleHostReverseProxy(must(url.Parse(backend.URL))))
	h = middleware.RateLimit{Limiter: fixed{Allowed: true, Limit: ratelimit.PerMinute(10), Remaining: 7}, Key: everybody}.Handler(h)
	h = middleware.ConcurrencyLimit{Limiter: places, Key: everybody}.Handler(h)
	h = middleware.Sessions{Manager: m}.Handler(h)
	srv := httptest.NewServer(h)
	defer srv.Close()
	conn := must(net.Dial("tcp", srv.Listener.Addr().String()))
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(conn)
	res := must(http.ReadResponse(in, nil))
	if got := res.Header.Values("X-RateLimit-Limit"); res.StatusCode != http.StatusSwitchingProtocols || len(got) != 1 || got[0] != "99" || res.Header["X-Ratelimit-Remaining"] != nil {
		t.Fatal(res.Status, res.Header)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := in.ReadString('\n'); line != "hello\n" || err != nil {
		t.Error(line, err)
	}
	if _, res, err := places.Acquire(t.Context(), "everybody"); res.Allowed || err != nil {
		t.Error("a place beside an open connection", res, err)
	}
	_ = conn.(*net.TCPConn).CloseWrite() // what is said to the end is still answered
	if rest, err := io.ReadAll(in); len(rest) > 0 || err != nil {
		t.Error(rest, err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		lease, res, err := places.Acquire(t.Context(), "everybody")
		if err != nil || time.Now().After(deadline) {
			t.Fatal("the place is not free", res, err)
		}
		if res.Allowed {
			_ = lease.Release()
			break
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
