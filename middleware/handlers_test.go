package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/ratelimit/ratelimittest"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/sessiontest"
)

// exampleT is a *testing.T of an Example.
type exampleT struct {
	testing.TB
	cleanups []func()
}

func (*exampleT) Helper()                  {}
func (*exampleT) Logf(string, ...any)      {}
func (*exampleT) Context() context.Context { return context.Background() }
func (t *exampleT) Cleanup(f func())       { t.cleanups = append(t.cleanups, f) }
func (t *exampleT) end() {
	for _, f := range slices.Backward(t.cleanups) {
		f()
	}
}

// A test of one's own handlers needs no Redis and no login page. In it t is its *testing.T.
func Example_testingHandlers() {
	t := new(exampleT)
	defer t.end()
	redis := sessiontest.NewServer(t)
	sessions := redis.Manager(t, session.Config{IdleTimeout: time.Hour})
	limiter, err := ratelimit.NewSlidingWindow(redis.Client, "devices", ratelimit.PerMinute(3), ratelimit.Config{})
	if err != nil {
		panic(err)
	}
	devices := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "devices of", sessions.UserID(r.Context()))
	})
	limit := middleware.RateLimit{Limiter: limiter, Key: middleware.ByUser(sessions), OnError: middleware.FailClosed}
	site := middleware.Sessions{Manager: sessions}.Handler(middleware.RequireUser{Manager: sessions}.Handler(limit.Handler(devices)))

	ann := sessiontest.LoggedIn(t, sessions, httptest.NewRequest("GET", "/devices", nil), "ann")
	get := func(what string) {
		w := httptest.NewRecorder()
		site.ServeHTTP(w, ann)
		fmt.Println(what+":", w.Code)
	}
	get("logged in")
	ratelimittest.Fill(t, limiter, middleware.UserKey("ann"))
	get("the limit is used up")
	redis.Advance(time.Minute)
	get("a minute later")
	redis.Fail(errors.New("down"))
	get("without Redis")
	redis.Fail(nil)
	redis.Advance(2 * time.Hour)
	get("two hours later")
	// Output:
	// logged in: 200
	// the limit is used up: 429
	// a minute later: 200
	// without Redis: 503
	// two hours later: 401
}

// Fill fills each kind of limiter, and Reset empties it.
func TestFill(t *testing.T) {
	redis := sessiontest.NewServer(t)
	limit := ratelimit.PerHour(25_000)
	for _, l := range []ratelimit.Limiter{
		must(ratelimit.NewSlidingWindow(redis.Client, "s", limit, patient)),
		must(ratelimit.NewFixedWindow(redis.Client, "f", limit, patient)),
		must(ratelimit.NewQuota(redis.Client, "q", 25_000, ratelimit.Month, time.UTC, patient)),
		must(ratelimit.NewLocal("l", limit, ratelimit.Config{})),
	} {
		ratelimittest.Fill(t, l, "k")
		if res := must(l.Take(t.Context(), "k", 1)); res.Allowed || res.Remaining != 0 {
			t.Errorf("%T: %v", l, res)
		}
		if res := must(l.Take(t.Context(), "other", 1)); !res.Allowed {
			t.Errorf("%T: another key: %v", l, res)
		}
		if err := l.(ratelimit.Resetter).Reset(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		if res := must(l.Take(t.Context(), "k", 1)); !res.Allowed {
			t.Errorf("%T: after Reset %v", l, res)
		}
	}
}

// The recipe for handlers of others takes only one status with one Location for a success.
func TestOnlyTheAnswerOfASuccessSucceeds(t *testing.T) {
	to := func(w http.ResponseWriter, status int, location string) {
		w.Header().Set("Location", location)
		w.WriteHeader(status)
	}
	for _, tc := range []struct {
		name   string
		theirs func(w http.ResponseWriter)
		ok     bool
	}{
		{"a success", func(w http.ResponseWriter) { to(w, 303, "/account") }, true},
		{"a success after 103", func(w http.ResponseWriter) { w.WriteHeader(103); to(w, 303, "/account") }, true},
		{"a redirect elsewhere", func(w http.ResponseWriter) { to(w, 303, "/login?wrong") }, false},
		{"another status", func(w http.ResponseWriter) { to(w, 302, "/account") }, false},
		{"a page", func(w http.ResponseWriter) { io.WriteString(w, "wrong") }, false},
		{"a page, and then a success", func(w http.ResponseWriter) { io.WriteString(w, "wrong"); to(w, 303, "/account") }, false},
		{"a flushed 200, and then a success", func(w http.ResponseWriter) {
			http.NewResponseController(w).Flush()
			to(w, 401, "")
			to(w, 303, "/account")
		}, false},
		{"401, and then a success", func(w http.ResponseWriter) { w.WriteHeader(401); to(w, 303, "/account") }, false},
		{"nothing", func(http.ResponseWriter) {}, false},
	} {
		l := local("others", 1)
		h := middleware.RateLimit{Limiter: l, Key: everybody, FailuresOnly: true}.Handler(
			succeedsBy(303, "/account", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tc.theirs(w) })))
		answer(h, request(""))
		if left := must(l.Take(t.Context(), "everybody", 0)).Remaining; (left == 1) != tc.ok {
			t.Errorf("%s: %d left", tc.name, left)
		}
	}
}
