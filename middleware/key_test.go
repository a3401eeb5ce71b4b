package middleware_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestByHeader(t *testing.T) {
	for _, tc := range []struct {
		name   string
		values []string
		want   string
	}{
		{"one", []string{"abc"}, middleware.HeaderKey("abc")},
		{"missing", nil, ""},
		{"empty", []string{""}, ""},
		{"twice", []string{"abc", "def"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expectKey(t, middleware.ByHeader("x-api-key"), from("192.0.2.1:1", "X-Api-Key", tc.values...), tc.want)
		})
	}
}

func expectKey(t *testing.T, key middleware.KeyFunc, r *http.Request, want string) {
	t.Helper()
	got, err := key(r)
	switch {
	case want == "" && !errors.Is(err, middleware.ErrNoKey):
		t.Errorf("got %q, %v; want ErrNoKey", got, err)
	case want != "" && (err != nil || got != want):
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

// In an http.ServeMux; chi and gin have tests where they are imported.
func TestByRoute(t *testing.T) {
	seen := map[string]string{}
	show := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := middleware.ByRoute(r)
		if err != nil {
			t.Error(err)
		}
		seen[r.URL.Path] = key
	})
	mux := http.NewServeMux()
	mux.Handle("GET /users/{id}", show)
	mux.Handle("/files/", show)
	for _, path := range []string{"/users/1", "/users/2", "/files/a", "/files/b/c"} {
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	for path, want := range map[string]string{
		"/users/1": "route:GET /users/{id}", "/users/2": "route:GET /users/{id}",
		"/files/a": "route:/files/", "/files/b/c": "route:/files/",
	} {
		if seen[path] != want {
			t.Errorf("%s: %q, want %q", path, seen[path], want)
		}
	}
	if key, err := middleware.ByRoute(request("")); !errors.Is(err, middleware.ErrNoRoute) || key != "" {
		t.Errorf("without a pattern: %q, %v", key, err)
	}
}

func TestJoinAndFirstOf(t *testing.T) {
	constant := func(key string) middleware.KeyFunc {
		return func(*http.Request) (string, error) { return key, nil }
	}
	none := middleware.ByHeader("X-Missing")
	broken := errors.New("database is down")
	fails := func(*http.Request) (string, error) { return "", broken }
	r := request("")

	ab, _ := middleware.Join(constant("a:b"), constant("c"))(r)
	bc, _ := middleware.Join(constant("a"), constant("b:c"))(r)
	if ab == bc || ab == "" {
		t.Errorf("a:b+c is %q, a+b:c is %q", ab, bc)
	}
	expectKey(t, middleware.Join(constant("a"), none), r, "")
	expectKey(t, middleware.FirstOf(none, constant("b"), constant("c")), r, "b")
	expectKey(t, middleware.FirstOf(none, none), r, "")
	for name, key := range map[string]middleware.KeyFunc{
		"Join":    middleware.Join(constant("a"), fails),
		"FirstOf": middleware.FirstOf(none, fails, constant("b")),
	} {
		if k, err := key(r); !errors.Is(err, broken) || k != "" {
			t.Errorf("%s: %q, %v", name, k, err)
		}
	}
}

func TestByUserAndBySession(t *testing.T) {
	m, _ := newManager(t)
	byUser, bySession := middleware.ByUser(m), middleware.BySession(m)
	either := middleware.FirstOf(byUser, middleware.ByIP(middleware.PeerIP))
	mux := http.NewServeMux()
	mux.HandleFunc("/visitor", func(w http.ResponseWriter, r *http.Request) {
		expectKey(t, byUser, r, "")
		expectKey(t, bySession, r, "")
		expectKey(t, either, r, "ip:127.0.0.1")
	})
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { m.Login(r.Context(), "ip:127.0.0.1") })
	mux.HandleFunc("/user", func(w http.ResponseWriter, r *http.Request) {
		// A user cannot be called like an address.
		expectKey(t, byUser, r, middleware.UserKey("ip:127.0.0.1"))
		expectKey(t, either, r, "user:ip:127.0.0.1")
		key, err := bySession(r)
		if err != nil {
			t.Error(err)
		}
		io.WriteString(w, key)
	})
	s := serve(t, middleware.Sessions{Manager: m}.Handler(mux))
	s.get("/visitor")
	s.get("/login")
	first := s.get("/user").body
	if again := s.get("/user").body; again != first || first == "" {
		t.Errorf("the session's keys are %q and %q", first, again)
	}
	s.forget()
	s.get("/login")
	if other := s.get("/user").body; other == first {
		t.Errorf("two sessions have the key %q", first)
	}

	for name, key := range map[string]middleware.KeyFunc{"ByUser": byUser, "BySession": bySession, "FirstOf": either} {
		if k, err := key(from("192.0.2.1:1", "X-Nothing")); !errors.Is(err, session.ErrNoSession) || k != "" {
			t.Errorf("%s outside of Sessions: %q, %v", name, k, err)
		}
	}
	if middleware.IPKey(netip.MustParseAddr("127.0.0.1")) != "ip:127.0.0.1" {
		t.Error("IPKey is not what ByIP makes")
	}
}

// What could never make a key is refused when it is made, not by the first request.
func TestKeyFunctionsOfNothingPanic(t *testing.T) {
	value := func(*http.Request) string { return "x" }
	for name, f := range map[string]func(){
		"By of a nil function":      func() { middleware.By("tenant", nil) },
		"ByIP of nil":               func() { middleware.ByIP(nil) },
		"ByIPPrefix of nil":         func() { middleware.ByIPPrefix(nil, 64) },
		"ByUser of nil":             func() { middleware.ByUser(nil) },
		"BySession of nil":          func() { middleware.BySession(nil) },
		"ByForm of no name":         func() { middleware.ByForm("", nil) },
		"ByHeader of no name":       func() { middleware.ByHeader("") },
		"ByHeader of no header":     func() { middleware.ByHeader("X Key") },
		"SingleHeader of no name":   func() { middleware.SingleHeader("", proxyRanges...) },
		"Join of nothing":           func() { middleware.Join() },
		"Join of nil":               func() { middleware.Join(everybody, nil) },
		"FirstOf of nothing":        func() { middleware.FirstOf() },
		"FirstOf of nil":            func() { middleware.FirstOf(everybody, nil) },
		"ForwardedFor, no prefix":   func() { middleware.ForwardedFor(netip.Prefix{}) },
		"SingleHeader, no prefix":   func() { middleware.SingleHeader("X-Real-IP", netip.Prefix{}) },
		"ForwardedFor, a bad one":   func() { middleware.ForwardedFor(netip.PrefixFrom(netip.IPv6Unspecified(), 129)) },
		"By of the word of ByUser":  func() { middleware.By("user", value) },
		"By of the word of ByIP":    func() { middleware.By("ip", value) },
		"By of the word of ByRoute": func() { middleware.By("route", value) },
	} {
		panics(t, name, f)
	}
}
