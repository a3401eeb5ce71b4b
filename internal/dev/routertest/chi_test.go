package routertest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// chi sets the request's Pattern when it has found the route, so ByRoute works
// in With and Group.
func TestByRouteInChi(t *testing.T) {
	seen := map[string]string{}
	limiter, err := ratelimit.NewLocal("routes", ratelimit.PerHour(100), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	limit := middleware.RateLimit{
		Limiter: limiter,
		Key:     middleware.ByRoute,
		OnDecision: func(d middleware.Decision) {
			if d.Err != nil {
				t.Error(d.Err)
			}
			seen[d.Request.Method+" "+d.Request.URL.Path] = d.Key
		},
	}.Handler
	nothing := func(http.ResponseWriter, *http.Request) {}

	r := chi.NewRouter()
	r.With(limit).Get("/users/{id}", nothing)
	r.Group(func(r chi.Router) {
		r.Use(limit)
		r.Get("/posts/{id}", nothing)
		r.Post("/posts/{id}", nothing)
	})
	r.Route("/api", func(r chi.Router) {
		r.With(limit).Get("/things/{id}", nothing)
		r.Route("/v2", func(r chi.Router) {
			r.Use(limit) // runs before the route below is found
			r.Get("/things/{id}", nothing)
		})
	})
	for _, tc := range []struct{ method, path, want string }{
		{"GET", "/users/1", "route:/users/{id}"},
		{"GET", "/users/2", "route:/users/{id}"},
		{"GET", "/posts/1", "route:/posts/{id}"},
		{"POST", "/posts/2", "route:/posts/{id}"},
		{"GET", "/api/things/1", "route:/api/things/{id}"},
		{"GET", "/api/v2/things/1", "route:/api/v2/*"},
	} {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, nil))
		if got := seen[tc.method+" "+tc.path]; w.Code != 200 || got != tc.want {
			t.Errorf("%s %s: %d, counted by %q, want %q", tc.method, tc.path, w.Code, got, tc.want)
		}
	}
}

// A table of limits in front of chi.
func TestRoutesInFrontOfChi(t *testing.T) {
	limiter, err := ratelimit.NewLocal("users", ratelimit.PerHour(2), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	r := chi.NewRouter()
	r.Use(middleware.Routes{
		"GET /users/{id}": {Limiter: limiter, Key: middleware.ByRoute},
	}.Handler)
	r.Get("/users/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, chi.URLParam(r, "id"), " ", r.Pattern)
	})
	r.Get("/other", func(http.ResponseWriter, *http.Request) {})
	for _, tc := range []struct {
		path string
		code int
		body string
	}{
		{"/users/1", 200, "1 /users/{id}"}, {"/users/2", 200, "2 /users/{id}"}, {"/users/3", 429, ""}, {"/other", 200, ""},
	} {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest("GET", tc.path, nil))
		if w.Code != tc.code || tc.code == 200 && w.Body.String() != tc.body {
			t.Errorf("%s: %d %q", tc.path, w.Code, w.Body)
		}
	}
}
