package routertest

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"

	"github.com/gatehouse-go/gatehouse/internal/dev/spelling"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Whatever a client calls a route: if the router behind takes it for that, it has been counted.
func TestNoSpellingGetsPastTheLimitOfARoute(t *testing.T) {
	var calls, counted atomic.Int64
	login := func(http.ResponseWriter, *http.Request) { calls.Add(1) }
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/login", login)
	mux.HandleFunc("POST /api/login/{$}", login)
	routes := func(use ...func(http.Handler) http.Handler) http.Handler {
		r := chi.NewRouter()
		r.Use(use...)
		r.Post("/api/login", login)
		return r
	}
	switched := func(read func(*http.Request) string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if read(r) == "/api/login" && r.Method == http.MethodPost {
				login(w, r)
			}
		}
	}
	for name, router := range map[string]http.Handler{
		"ServeMux":               mux,
		"ServeMux, StripPrefix":  http.StripPrefix("/", switched(func(r *http.Request) string { return "/" + r.URL.Path })),
		"chi":                    routes(),
		"chi, StripSlashes":      routes(chimiddleware.StripSlashes),
		"chi, CleanPath":         routes(chimiddleware.CleanPath),
		"switch on the path":     switched(func(r *http.Request) string { return r.URL.Path }),
		"switch on a clean path": switched(func(r *http.Request) string { return path.Clean("/" + r.URL.Path) }),
		"switch without slashes": switched(func(r *http.Request) string { return strings.TrimRight(r.URL.Path, "/") }),
	} {
		t.Run(name, func(t *testing.T) {
			limiter, err := ratelimit.NewLocal("login", ratelimit.PerHour(1000), ratelimit.Config{})
			if err != nil {
				t.Fatal(err)
			}
			srv := httptest.NewServer(middleware.Routes{"POST /api/login": {
				Limiter: limiter, Key: middleware.ByRoute,
				OnDecision: func(middleware.Decision) { counted.Add(1) },
			}}.Handler(router))
			defer srv.Close()
			reached := 0
			for _, target := range []string{
				"/api/login", "/api%2Flogin", "/api%2flogin", "/api%252Flogin", "/%61pi/login", "/%2561pi/login", "//api/login", "/api//login",
				"/./api/login", "/x/../api/login", "/x/%2e%2e/api/login", "/x%2f..%2fapi%2flogin", "/api/login/", "/api/login//",
				"/api/login/.", "/api/x/../login/", "/api%2flogin%2f", "http://example.com/api/login", "http://EXAMPLE.com.//api/login/", "/api/login?x=%2f",
				"/api/login%3f", "/api/login;x=1", "/api/login%00", "/API/login",
			} {
				calls.Store(0)
				counted.Store(0)
				if err := send(srv.Listener.Addr().String(), target); err != nil {
					t.Fatalf("%s: %v", target, err)
				}
				if calls.Load() > counted.Load() {
					t.Errorf("%s: %d logins, %d counted", target, calls.Load(), counted.Load())
				}
				reached += int(calls.Load())
			}
			if reached < 2 {
				t.Errorf("%d logins reached", reached)
			}
		})
	}
}

// No spelling gets past the limit of a route with wildcards. Routers differ in what these match.
func TestNoSpellingGetsPastTheLimitOfAWildcard(t *testing.T) {
	type router func(pattern string, login http.HandlerFunc) http.Handler
	routes := func(use ...func(http.Handler) http.Handler) router {
		return func(pattern string, login http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.Use(use...)
			r.Post(pattern, login)
			return r
		}
	}
	for name, route := range map[string]router{
		"ServeMux": func(pattern string, login http.HandlerFunc) http.Handler {
			mux := http.NewServeMux()
			mux.HandleFunc("POST "+pattern, login)
			return mux
		},
		"chi":                routes(),
		"chi, StripSlashes":  routes(chimiddleware.StripSlashes),
		"chi, CleanPath":     routes(chimiddleware.CleanPath),
		"chi, without empty": routes(withoutEmpty),
	} {
		for _, pattern := range []string{"/{page}", "/{locale}/login", "/tenants/{t}/login", "/files/{name}", "/{a}/{b}/x"} {
			t.Run(name+" "+pattern, func(t *testing.T) {
				spelling.Try(t, pattern, func(login http.HandlerFunc) http.Handler { return route(pattern, login) })
			})
		}
	}
}

// withoutEmpty has the router see no empty segments.
func withoutEmpty(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for strings.Contains(r.URL.Path, "//") {
			r.URL.Path = strings.ReplaceAll(r.URL.Path, "//", "/")
		}
		r.URL.RawPath = ""
		next.ServeHTTP(w, r)
	})
}

// send sends a POST as it is: clients tidy their targets up.
func send(addr, target string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: example.com\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", target)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	return res.Body.Close()
}
