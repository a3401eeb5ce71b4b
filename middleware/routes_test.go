package middleware_test

import (
	"maps"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

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

// However a path, a host or a method is spelled, what a router takes for a route is counted by
// its pattern.
func TestNoSpellingGetsAroundRoutes(t *testing.T) {
	for _, tc := range []struct {
		method, host, target string
		want                 string // "" where no router takes it for the route
	}{
		{"POST", "", "/api/login", "POST /api/login"},
		{"POST", "", "/api%2Flogin", "POST /api/login"},
		{"POST", "", "/api%2flogin", "POST /api/login"},
		{"POST", "", "/api%252Flogin", "POST /api/login"},
		{"POST", "", "/api%25252Flogin", "POST /api/login"},
		{"POST", "", "/%61pi/login", "POST /api/login"},
		{"POST", "", "//api/login", "POST /api/login"},
		{"POST", "", "/api//login", "POST /api/login"},
		{"POST", "", "/api/./login", "POST /api/login"},
		{"POST", "", "/x/../api/login", "POST /api/login"},
		{"POST", "", "/x/%2e%2e/api/login", "POST /api/login"},
		{"POST", "", "/x%2F..%2Fapi%2Flogin", "POST /api/login"},
		{"POST", "", "/api/login/", "POST /api/login"},
		{"POST", "", "/api/login//", "POST /api/login"},
		{"POST", "", "/api%2Flogin%2F", "POST /api/login"},
		{"POST", "", "http://example.com/api/login", "POST /api/login"},
		{"POST", "", "http://example.com//api%2flogin/", "POST /api/login"},
		{"HEAD", "", "/files/1", "GET /files/{id}"},
		{"HEAD", "", "/files%2f1/", "GET /files/{id}"},
		{"GET", "ADMIN.example.com", "/x", "admin.example.com/"},
		{"GET", "admin.example.com.", "/x", "admin.example.com/"},
		{"GET", "Admin.Example.Com.:8080", "/x", "admin.example.com/"},
		{"GET", "", "/api/login", ""},
		{"POST", "", "/api/login2", ""},
		{"POST", "", "/health%2f", "/health"},
	} {
		t.Run(tc.method+" "+tc.host+tc.target, func(t *testing.T) {
			counted := map[string]int{}
			table := middleware.Routes{"/health": {}}
			for _, pattern := range []string{"POST /api/login", "GET /files/{id}", "admin.example.com/"} {
				table[pattern] = middleware.RateLimit{
					Limiter: &script{result: allowed(pattern, 5, 3, 0)}, Key: middleware.ByRoute,
					OnDecision: func(d middleware.Decision) { counted[strings.TrimPrefix(d.Key, "route:")]++ },
				}
			}
			r := httptest.NewRequest(tc.method, tc.target, nil)
			if tc.host != "" {
				r.Host = tc.host
			}
			if res := answer(table.Handler(hello), r); res.StatusCode != 200 {
				t.Errorf("got %s", res.Status)
			}
			want := map[string]int{tc.want: 1}
			if tc.want == "" || tc.want == "/health" { // not counted, or free
				want = map[string]int{}
			}
			if !maps.Equal(counted, want) {
				t.Errorf("counted by %v, want %v", counted, want)
			}
		})
	}
}

// Where readings lead to several patterns, each counts.
func TestEachReadingOfARouteCounts(t *testing.T) {
	file, dir := &script{result: allowed("file", 5, 3, 0)}, &script{result: denied("dir", time.Second)}
	h := middleware.Routes{
		"/files/{name}":       {Limiter: file, Key: everybody},
		"/files/{dir}/{name}": {Limiter: dir, Key: everybody},
	}.Handler(hello)
	res := answer(h, httptest.NewRequest("GET", "/files/a%2Fb", nil))
	if res.StatusCode != 429 || len(dir.takes) != 1 {
		t.Errorf("%s, %v, %v", res.Status, file.takes, dir.takes)
	}
	dir.result = allowed("dir", 5, 3, 0)
	res = answer(h, httptest.NewRequest("GET", "/files/a%2Fb", nil))
	if res.StatusCode != 200 || len(file.takes) == 0 || len(dir.takes) != 2 {
		t.Errorf("%s, %v, %v", res.Status, file.takes, dir.takes)
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
