package middleware_test

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/middleware"
)

func TestRoutes(t *testing.T) {
	limits := map[string]*script{}
	table := middleware.Routes{}
	for _, pattern := range []string{"POST /login", "/api/", "GET /api/users/{id}", "admin.example.com/"} {
		limits[pattern] = &script{result: allowed(pattern, 5, 3, 0)}
		table[pattern] = middleware.RateLimit{Limiter: limits[pattern], Key: middleware.ByRoute}
	}
	h := table.Handler(hello)
	for _, tc := range []struct {
		method, target string
		want           string // the pattern that counts it
	}{
		{"POST", "/login", "POST /login"},
		{"GET", "/login", ""},
		{"POST", "//login", "POST /login"},
		{"POST", "/x/../login", "POST /login"},
		{"GET", "/api/users/1", "GET /api/users/{id}"},
		{"GET", "/api/users/2", "GET /api/users/{id}"},
		{"DELETE", "/api/users/2", "/api/"},
		{"GET", "/api/x/y", "/api/"},
		{"GET", "/api", "/api/"},
		{"GET", "/", ""},
		{"GET", "http://admin.example.com/login", "admin.example.com/"},
		{"CONNECT", "/api/x", "/api/"},
	} {
		t.Run(tc.method+" "+tc.target, func(t *testing.T) {
			r := httptest.NewRequest(tc.method, tc.target, nil)
			res := answer(h, r)
			if res.StatusCode != 200 {
				t.Errorf("got %s", res.Status)
			}
			if r.Pattern != "" {
				t.Errorf("the request has got the pattern %q", r.Pattern)
			}
			for pattern, l := range limits {
				switch takes := l.takes; {
				case pattern != tc.want && len(takes) != 0:
					t.Errorf("%s counts %v", pattern, takes)
				case pattern == tc.want && (len(takes) != 1 || takes[0].key != "route:"+pattern):
					t.Errorf("%s counts %v", pattern, takes)
				}
				l.takes = nil
			}
		})
	}
}

func TestRoutesValidate(t *testing.T) {
	valid := middleware.RateLimit{Limiter: &script{}, Key: everybody}
	for _, tc := range []struct {
		name  string
		table middleware.Routes
		want  []string
	}{
		{"empty", nil, nil},
		{"valid", middleware.Routes{"/a": valid, "GET /a": valid}, nil},
		{"everything", middleware.Routes{
			"/{a}/b": valid, "/a/{b}": valid, // conflict
			"GET": valid, "": valid, "/{": valid,
			"/x": {Key: everybody},
		}, []string{`route "": `, `conflicts`, `Limiter is nil`, `route "/{": `, `route "GET": `}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.table.Validate()
			var lines []string
			if err != nil {
				for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
					lines = append(lines, e.Error())
				}
			}
			if len(lines) != len(tc.want) {
				t.Errorf("%d errors, want %d: %q", len(lines), len(tc.want), lines)
			}
			for _, part := range tc.want {
				found := false
				for _, line := range lines {
					found = found || strings.Contains(line, part)
				}
				if !found {
					t.Errorf("no error says %q: %q", part, lines)
				}
			}
			defer expectPanic(t, err)
			tc.table.Handler(hello)
		})
	}
}
