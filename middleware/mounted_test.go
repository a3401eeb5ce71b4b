package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
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
		}, 200, 7},
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
