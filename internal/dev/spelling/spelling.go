// Package spelling tries to get past the limit of a route by how a path is written.
package spelling

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Try sends many spellings of paths to a router behind a limit of POST on pattern. t fails if one of
// them reaches login without being counted, or if none reaches it. route returns the router.
func Try(t *testing.T, pattern string, route func(login http.HandlerFunc) http.Handler) {
	t.Helper()
	limiter, err := ratelimit.NewLocal("login", ratelimit.PerHour(1_000_000), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	calls, counted, reached := 0, 0, 0
	h := middleware.Routes{"POST " + pattern: {
		Limiter: limiter, Key: middleware.ByRoute, OnDecision: func(middleware.Decision) { counted++ },
	}}.Handler(route(func(http.ResponseWriter, *http.Request) { calls++ }))
	for _, target := range targets() {
		calls, counted = 0, 0
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "http://example.com"+target, nil))
		if reached += calls; calls > counted {
			t.Errorf("%s reached the handler and was not counted", target)
		}
	}
	if reached == 0 {
		t.Error("none reached the handler")
	}
}

// targets returns some that are known to be read in different ways, and random ones.
func targets() []string {
	all := []string{"/", "//", "/en/login", "//login", "/./login", "/../login", "/%2e%2e/login", "/%2F/login", "/tenants/a/login",
		"/tenants//login", "/tenants/./login", "/a/b/x", "/files/", "/files/.."}
	segments := []string{"", ".", "..", "%2e", "%2E%2e", "%2F", "%252F", "%252e", "a", "login", "tenants", "files", "x", "a%2Fb"}
	for range 1_000 {
		target := ""
		for range 1 + rand.N(4) {
			target += "/" + segments[rand.N(len(segments))]
		}
		all = append(all, target)
	}
	return all
}
