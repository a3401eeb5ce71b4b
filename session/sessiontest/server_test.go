package sessiontest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/sessiontest"
)

// page says who is logged in, as a handler of an application behind middleware.Sessions.
func page(m *session.Manager) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var cookies []string
		for _, c := range r.CookiesNamed("__Host-session") {
			cookies = append(cookies, c.Value)
		}
		ctx, err := m.Load(r.Context(), cookies...)
		if err == nil {
			_, err = m.Finish(ctx)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, m.UserID(ctx))
	})
}

func TestServer(t *testing.T) {
	redis := sessiontest.NewServer(t)
	m := redis.Manager(t, session.Config{IdleTimeout: time.Hour, Lifetime: 24 * time.Hour})
	h := page(m)
	get := func(r *http.Request) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.Clone(context.Background()))
		return w.Code, w.Body.String()
	}
	ann := sessiontest.LoggedIn(t, m, httptest.NewRequest("GET", "/", nil), "ann")
	expect := func(r *http.Request, code int, user string) {
		t.Helper()
		if c, b := get(r); c != code || code == 200 && b != user {
			t.Errorf("%d %q, want %d %q", c, b, code, user)
		}
	}
	expect(ann, 200, "ann")
	down := errors.New("down")
	redis.Fail(down)
	for range 3 {
		expect(ann, 503, "")
	}
	bob := sessiontest.LoggedIn(t, m, httptest.NewRequest("GET", "/", nil), "bob") // also while it fails
	if _, err := m.Load(t.Context(), sessiontest.Cookie(t, m, "carl")); !errors.Is(err, down) {
		t.Errorf("the error is %v", err)
	}
	redis.Fail(nil)
	expect(ann, 200, "ann") // at once
	redis.Advance(50 * time.Minute)
	expect(ann, 200, "ann") // a use
	redis.Advance(50 * time.Minute)
	expect(ann, 200, "ann")
	expect(bob, 200, "") // idle for too long
	for range 23 {
		redis.Advance(time.Hour)
		get(ann)
	}
	expect(ann, 200, "")
}

// Two sessions of one user end each at its own time.
func TestAdvanceEndsOneSessionOfTwo(t *testing.T) {
	redis := sessiontest.NewServer(t)
	m := redis.Manager(t, session.Config{IdleTimeout: -1, Lifetime: 2 * time.Hour})
	user := func(cookie string) string {
		ctx, err := m.Load(t.Context(), cookie)
		if err != nil {
			t.Fatal(err)
		}
		return m.UserID(ctx)
	}
	first := sessiontest.Cookie(t, m, "ann")
	redis.Advance(time.Hour)
	second := sessiontest.Cookie(t, m, "ann")
	redis.Advance(90 * time.Minute)
	if a, b := user(first), user(second); a != "" || b != "ann" {
		t.Errorf("%q, %q", a, b)
	}
}

// LoggedIn works beside others while the server fails, replaces who was logged in, and works when
// the test is over, too.
func TestLoggedInWhileTheServerFails(t *testing.T) {
	s := sessiontest.NewServer(t)
	m := s.Manager(t, session.Config{})
	s.Fail(errors.New("down"))
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if i%2 == 0 {
				_, _ = m.Load(context.Background(), "x", strings.Repeat("A", 64))
				return
			}
			sessiontest.LoggedIn(t, m, httptest.NewRequest("GET", "/", nil), "ann")
		})
	}
	wg.Wait()
	s.Fail(nil)
	r := sessiontest.LoggedIn(t, m, httptest.NewRequest("GET", "/", nil), "ann")
	r.AddCookie(&http.Cookie{Name: "other", Value: "x"})
	r = sessiontest.LoggedIn(t, m, r, "bob")
	if c := r.CookiesNamed("__Host-session"); len(c) != 1 || len(r.CookiesNamed("other")) != 1 {
		t.Fatalf("%v", r.Cookies())
	} else if ctx, err := m.Load(t.Context(), c[0].Value); err != nil || m.UserID(ctx) != "bob" {
		t.Errorf("%q, %v", m.UserID(ctx), err)
	}
	t.Cleanup(func() { sessiontest.Cookie(t, m, "ann") })
}
