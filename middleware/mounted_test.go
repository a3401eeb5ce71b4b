package middleware_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// One RateLimit that stands on the way of a request twice counts it once.
func TestOneRateLimitMountedTwice(t *testing.T) {
	client := redistest.Shared(t).Client()
	other := must(ratelimit.NewSlidingWindow(client, t.Name()+"-other", ratelimit.PerHour(100), patient))
	succeed := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { middleware.Succeeded(r) })
	once := func(r *http.Request) int { return 1 }
	for _, tc := range []struct {
		name   string
		set    func(l *middleware.RateLimit)
		mount  func(l middleware.RateLimit) http.Handler
		status int
		spent  int // by one request
	}{
		{"around itself", nil, func(l middleware.RateLimit) http.Handler { return l.Handler(l.Handler(hello)) }, 200, 1},
		{"three times", nil, func(l middleware.RateLimit) http.Handler { return l.Handler(l.Handler(l.Handler(hello))) }, 200, 1},
		{"on the site and on a route", nil, func(l middleware.RateLimit) http.Handler {
			mux := http.NewServeMux()
			mux.Handle("GET /a/b", l.Handler(hello))
			return l.Handler(mux)
		}, 200, 1},
		{"behind StripPrefix", nil, func(l middleware.RateLimit) http.Handler {
			return l.Handler(http.StripPrefix("/a", l.Handler(hello)))
		}, 200, 1},
		{"in Routes and behind", nil, func(l middleware.RateLimit) http.Handler {
			return middleware.Routes{"GET /a/": l}.Handler(l.Handler(hello))
		}, 200, 1},
		{"by two readings of a path in Routes", nil, func(l middleware.RateLimit) http.Handler {
			h := middleware.Routes{"/": l, "/c": l}.Handler(hello)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.URL.Path = "/a/b/../../c"
				h.ServeHTTP(w, r)
			})
		}, 200, 1},
		{"with sessions between", nil, func(l middleware.RateLimit) http.Handler {
			m, _ := newManager(t)
			return l.Handler(middleware.Sessions{Manager: m}.Handler(l.Handler(hello)))
		}, 200, 1},
		{"with a plan", func(l *middleware.RateLimit) {
			l.LimiterFor = func(*http.Request) (ratelimit.Limiter, error) {
				return l.Limiter.(*ratelimit.SlidingWindow).With(ratelimit.PerHour(90))
			}
		}, func(l middleware.RateLimit) http.Handler { return l.Handler(l.Handler(hello)) }, 200, 1},
		{"of failures", func(l *middleware.RateLimit) { l.FailuresOnly = true },
			func(l middleware.RateLimit) http.Handler { return l.Handler(l.Handler(hello)) }, 200, 1},
		{"of failures, a success", func(l *middleware.RateLimit) { l.FailuresOnly = true },
			func(l middleware.RateLimit) http.Handler { return l.Handler(l.Handler(succeed)) }, 200, 0},
		{"around a Check", nil, func(l middleware.RateLimit) http.Handler {
			return l.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for range 3 { // messages of a WebSocket, say
					l.Check(r)
				}
			}))
		}, 200, 4},
		{"with another cost", nil, func(l middleware.RateLimit) http.Handler {
			expensive := l
			expensive.Cost = func(*http.Request) int { return 10 }
			return l.Handler(expensive.Handler(hello))
		}, 200, 11},
		{"with the same cost, said", nil, func(l middleware.RateLimit) http.Handler {
			said := l
			said.Cost = once
			return l.Handler(said.Handler(hello))
		}, 200, 1},
		{"with another limiter inside", nil, func(l middleware.RateLimit) http.Handler {
			inside := l
			inside.Limiter = other
			return l.Handler(inside.Handler(hello))
		}, 200, 1},
		{"for requests that a handler makes", nil, func(l middleware.RateLimit) http.Handler {
			api := l.Handler(hello)
			return l.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for range 2 {
					api.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/a/b", nil).WithContext(r.Context()))
					api.ServeHTTP(httptest.NewRecorder(), r.Clone(r.Context()))
					sub := r.WithContext(r.Context())
					url := *r.URL
					url.Path = "/other"
					sub.URL = &url
					api.ServeHTTP(httptest.NewRecorder(), sub)
				}
			}))
		}, 200, 6}, // the first of them can be the request itself
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := t.Name()[len("TestOneRateLimit"):]
			limiter := must(ratelimit.NewSlidingWindow(client, name, ratelimit.PerHour(100), patient))
			told := 0
			l := middleware.RateLimit{Limiter: limiter, Key: everybody, OnDecision: func(middleware.Decision) { told++ }}
			if tc.set != nil {
				tc.set(&l)
			}
			h := tc.mount(l)
			for i := 1; i <= 3; i++ {
				res := answer(h, httptest.NewRequest("GET", "/a/b", nil))
				if res.StatusCode != tc.status {
					t.Errorf("%s", res.Status)
				}
				if got := must(limiter.Take(t.Context(), "everybody", 0)); got.Remaining != 100-i*tc.spent {
					t.Errorf("%d left after %d requests, want %d", got.Remaining, i, 100-i*tc.spent)
				}
			}
			if tc.spent <= 1 && tc.name != "with another limiter inside" && told != 3 {
				t.Errorf("told of %d decisions", told)
			}
		})
	}
}

// What is mounted twice refuses where any of it does, and what has not been counted is counted.
func TestMountedTwiceRefuses(t *testing.T) {
	client := redistest.Shared(t).Client()
	newLimit := func() middleware.RateLimit {
		return middleware.RateLimit{Limiter: must(ratelimit.NewFixedWindow(client, t.Name(), ratelimit.PerHour(1), patient)), Key: everybody}
	}
	l := newLimit()
	shadow := l
	shadow.Shadow = true
	h := shadow.Handler(l.Handler(hello))
	for i, want := range []int{200, 429, 429} {
		if res := answer(h, request("")); res.StatusCode != want || res.Header.Get("X-RateLimit-Limit") != "1" {
			t.Errorf("request %d: %s %v", i, res.Status, res.Header)
		}
	}
	nobody := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: time.Second})
	defer nobody.Close()
	down := middleware.RateLimit{Limiter: must(ratelimit.NewFixedWindow(nobody, "x", ratelimit.PerHour(1), ratelimit.Config{})), Key: everybody, OnError: middleware.FailOpen}
	closed := down
	closed.OnError = middleware.FailClosed
	if res := answer(down.Handler(closed.Handler(hello)), request("")); res.StatusCode != 503 {
		t.Errorf("open around closed: %s", res.Status)
	}
}

// A quota by the calendar stands in Routes like any limit, and a route within may be free.
func TestQuotasInRoutes(t *testing.T) {
	client := redistest.Shared(t).Client()
	zone := must(time.LoadLocation("America/Santiago"))
	quota := must(ratelimit.NewQuota(client, t.Name(), 2, ratelimit.Month, zone, patient))
	h := middleware.Routes{
		"/api/":            {Limiter: quota, Key: everybody},
		"GET /api/healthz": {},
	}.Handler(hello)
	for range 5 {
		if res := answer(h, httptest.NewRequest("GET", "/api/healthz", nil)); res.StatusCode != 200 || res.Header["X-Ratelimit-Limit"] != nil {
			t.Errorf("free: %s %v", res.Status, res.Header)
		}
	}
	for i, want := range []int{200, 200, 429} {
		before := time.Now()
		res := answer(h, httptest.NewRequest("GET", "/api/x", nil))
		if res.StatusCode != want {
			t.Errorf("request %d: %s", i, res.Status)
		}
		year, month, _ := before.In(zone).Date()
		midnight := time.Date(year, month+1, 1, 0, 0, 0, 0, zone).Unix()
		if got := must(strconv.ParseInt(res.Header.Get("X-RateLimit-Reset"), 10, 64)); got != midnight {
			t.Errorf("Reset %d, not at midnight %d", got, midnight)
		}
		if want == 429 {
			if got := must(strconv.ParseInt(res.Header.Get("Retry-After"), 10, 64)); got < midnight-time.Now().Unix()-1 || got > midnight-before.Unix()+1 {
				t.Errorf("Retry-After %d", got)
			}
		}
	}
	for range 2 { // what has no limit sends no figures
		l := middleware.RateLimit{Limiter: ratelimit.Unlimited, Key: everybody}
		if res := answer(middleware.Routes{"/": l}.Handler(hello), request("")); res.StatusCode != 200 || res.Header["X-Ratelimit-Limit"] != nil {
			t.Errorf("unlimited: %s %v", res.Status, res.Header)
		}
	}
}

// What only looks like one RateLimit mounted twice counts each time.
func TestWhatIsNotMountedTwice(t *testing.T) {
	t.Parallel() // with others that wait
	client := redistest.Shared(t).Client()
	limiter := func(name string, n int) *ratelimit.SlidingWindow {
		return must(ratelimit.NewSlidingWindow(client, t.Name()+name, ratelimit.PerHour(n), patient))
	}
	base, site, strict := limiter("base", 1000), limiter("site", 1000), limiter("strict", 3)
	choose := func(l ratelimit.Limiter) func(*http.Request) (ratelimit.Limiter, error) {
		return func(*http.Request) (ratelimit.Limiter, error) { return l, nil }
	}
	passed := func(h http.Handler) (n int) {
		for range 10 {
			if answer(h, request("")).StatusCode == 200 {
				n++
			}
		}
		return n
	}
	outer := middleware.RateLimit{Limiter: base, Key: everybody, LimiterFor: choose(site)}
	inner := middleware.RateLimit{Limiter: base, Key: everybody, LimiterFor: choose(strict)}
	if n := passed(outer.Handler(inner.Handler(hello))); n != 3 {
		t.Errorf("another plan further in: %d of 10 pass a limit of 3", n)
	}
	found := limiter("found", 2) // a plan that is known further in
	plans := middleware.RateLimit{Limiter: base, Key: everybody, LimiterFor: func(r *http.Request) (ratelimit.Limiter, error) {
		if r.Header.Get("Plan") != "" {
			return found, nil
		}
		return nil, nil
	}}
	in := plans.Handler(hello)
	if n := passed(plans.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("Plan", "strict")
		in.ServeHTTP(w, r)
	}))); n != 2 {
		t.Errorf("a plan that is found between: %d of 10 pass a limit of 2", n)
	}

	// Requests that a handler makes of one, at once and one after the other.
	for _, parallel := range []bool{false, true} {
		once, twice := limiter("once", 1000), limiter("twice", 1000)
		each := middleware.RateLimit{Limiter: once, Key: everybody}
		both := middleware.RateLimit{Limiter: twice, Key: everybody}
		gate, entered := make(chan bool), make(chan bool, 50)
		call := both.Handler(each.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			if entered <- true; parallel {
				<-gate
			}
		})))
		h := both.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var all sync.WaitGroup
			for range 50 {
				sub := r.WithContext(r.Context())
				sub.Body = io.NopCloser(strings.NewReader("another"))
				all.Go(func() { call.ServeHTTP(httptest.NewRecorder(), sub) })
				<-entered
			}
			close(gate)
			all.Wait()
		}))
		answer(h, httptest.NewRequest("POST", "/rpc", nil))
		a, b := must(once.Take(t.Context(), "everybody", 0)).Remaining, must(twice.Take(t.Context(), "everybody", 0)).Remaining
		if a != 950 || b != 950 {
			t.Errorf("parallel %v: of 50 calls %d are counted by a limit that is mounted once, and %d by one that is twice", parallel, 1000-a, 1000-b)
		}
		if err := errors.Join(once.Reset(t.Context(), "everybody"), twice.Reset(t.Context(), "everybody")); err != nil {
			t.Fatal(err)
		}
	}
	// 100 guesses in one request under a limit of 5.
	guesses := middleware.RateLimit{Limiter: limiter("guesses", 5), Key: everybody, FailuresOnly: true}
	checked := 0
	check := guesses.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { checked++ }))
	answer(guesses.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel() // nobody waits for others to succeed
		for i := range 100 {
			if i > 20 {
				r = r.WithContext(ctx)
			}
			if i < 8 || i > 20 {
				check.ServeHTTP(httptest.NewRecorder(), r)
			}
		}
	})), request(""))
	if checked > 5 {
		t.Errorf("%d guesses are checked under a limit of 5", checked)
	}

	type byValue struct{ ratelimit.Limiter } // of which == panics
	odd := middleware.RateLimit{Limiter: byValue{steadies{allowed("l", 5, 3, time.Minute)}}, Key: everybody}
	if res := answer(odd.Handler(odd.Handler(hello)), request("")); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	m, _ := newManager(t)
	strip := limiter("strip", 1000)
	l := middleware.RateLimit{Limiter: strip, Key: everybody}
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Cookie", "a=1")
	answer(l.Handler(middleware.Sessions{Manager: m, StripCookie: true}.Handler(l.Handler(hello))), r)
	if left := must(strip.Take(t.Context(), "everybody", 0)).Remaining; left != 999 {
		t.Errorf("with StripCookie between: %d are spent", 1000-left)
	}
}

// steadies is a limiter that cannot be compared.
type steadies []ratelimit.Result

func (s steadies) Take(context.Context, string, int) (ratelimit.Result, error) { return s[0], nil }
