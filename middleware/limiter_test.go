package middleware_test

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// patient limiters wait for loaded machines.
var patient = ratelimit.Config{Timeout: time.Minute}

// The limiters themselves, behind a server, on each kind of Redis.
func TestRateLimitOnRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		const limit = 5
		limits := map[string]ratelimit.Limiter{
			"sliding": must(ratelimit.NewSlidingWindow(b.Client, "sliding", ratelimit.PerHour(limit), patient)),
			"fixed":   must(ratelimit.NewFixedWindow(b.Client, "fixed", ratelimit.PerHour(limit), patient)),
			"bucket":  must(ratelimit.NewTokenBucket(b.Client, "bucket", ratelimit.PerHour(limit), patient)),
		}
		for name, limiter := range limits {
			t.Run(name, func(t *testing.T) {
				mux := http.NewServeMux()
				byRoute := middleware.Join(middleware.ByRoute, middleware.ByIP(middleware.PeerIP))
				mux.Handle("GET /users/{id}", middleware.RateLimit{Limiter: limiter, Key: byRoute, Fields: middleware.Fields{IETF: true}}.Handler(hello))
				mux.Handle("GET /other", middleware.RateLimit{Limiter: limiter, Key: byRoute}.Handler(hello))
				s := serve(t, mux)

				var passed atomic.Int64
				var wg sync.WaitGroup
				for i := range 4 * limit {
					wg.Go(func() {
						if s.get(fmt.Sprint("/users/", i)).StatusCode == 200 {
							passed.Add(1)
						}
					})
				}
				wg.Wait()
				if n := passed.Load(); n != limit {
					t.Errorf("%d requests pass, want %d", n, limit)
				}
				res := s.get("/users/1")
				retry := must(strconv.Atoi(res.Header.Get("Retry-After")))
				if res.StatusCode != 429 || retry < 1 || retry > 3600 || res.Header.Get("X-RateLimit-Limit") != "5" || res.Header.Get("X-RateLimit-Remaining") != "0" {
					t.Errorf("%s %v", res.Status, res.Header)
				}
				if within := param(t, res.Response, "RateLimit", name, "t"); within != int64(retry) {
					t.Errorf("t=%d, Retry-After %d", within, retry)
				}
				if res := s.get("/other"); res.StatusCode != 200 || res.Header.Get("X-RateLimit-Remaining") != "4" {
					t.Errorf("another route: %s %v", res.Status, res.Header)
				}
			})
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// Waiting exactly as long as Retry-After says lets a single client through, on
// the clock of Redis.
func TestRetryAfterIsEnough(t *testing.T) {
	for name, newLimiter := range map[string]func(redis.UniversalClient) (ratelimit.Limiter, error){
		"sliding": func(c redis.UniversalClient) (ratelimit.Limiter, error) {
			return ratelimit.NewSlidingWindow(c, "l", ratelimit.Limit{Requests: 3, Window: 2500 * time.Millisecond}, patient)
		},
		"fixed": func(c redis.UniversalClient) (ratelimit.Limiter, error) {
			return ratelimit.NewFixedWindow(c, "l", ratelimit.Limit{Requests: 3, Window: 2500 * time.Millisecond}, patient)
		},
		"bucket": func(c redis.UniversalClient) (ratelimit.Limiter, error) {
			return ratelimit.NewTokenBucket(c, "l", ratelimit.Limit{Requests: 3, Window: 2500 * time.Millisecond}, patient)
		},
	} {
		t.Run(name, func(t *testing.T) {
			mini := miniredis.RunT(t)
			client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
			defer client.Close()
			now := time.Date(2026, 1, 1, 0, 0, 0, 123456000, time.UTC)
			mini.SetTime(now)
			step := func(d time.Duration) {
				now = now.Add(d)
				mini.SetTime(now)
				mini.FastForward(d)
			}
			for round := range 20 {
				// A limiter of its own each time: none remembers a denial, which
				// would be on the clock of this process.
				h := middleware.RateLimit{Limiter: must(newLimiter(client)), Key: everybody}.Handler(hello)
				for {
					res := answer(h, request(""))
					if res.StatusCode == 200 {
						step(37 * time.Millisecond)
						continue
					}
					wait := must(strconv.Atoi(res.Header.Get("Retry-After")))
					if wait < 1 {
						t.Fatalf("Retry-After %d", wait)
					}
					step(time.Duration(wait) * time.Second)
					break
				}
				h = middleware.RateLimit{Limiter: must(newLimiter(client)), Key: everybody}.Handler(hello)
				if res := answer(h, request("")); res.StatusCode != 200 {
					t.Fatalf("round %d: %s after Retry-After", round, res.Status)
				}
			}
		})
	}
}

// X-RateLimit-Reset is the same for all requests of one fixed window.
func TestResetIsStable(t *testing.T) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	h := middleware.RateLimit{
		Limiter: must(ratelimit.NewFixedWindow(client, "l", ratelimit.PerMinute(1000), patient)), Key: everybody,
	}.Handler(hello)
	// Within a second of ours, and over the end of one.
	now := time.Now().Truncate(time.Second).Add(999_999 * time.Microsecond)
	if time.Until(now) > 500*time.Millisecond {
		now = now.Add(-time.Second)
	}
	seen := map[string]int{}
	for range 50 {
		mini.SetTime(now)
		seen[answer(h, request("")).Header.Get("X-RateLimit-Reset")]++
		now = now.Add(10 * time.Millisecond)
		mini.FastForward(10 * time.Millisecond)
	}
	if len(seen) != 1 {
		t.Errorf("resets %v", seen)
	}
}

func TestRateLimitTooMuch(t *testing.T) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	cost := 6
	h := middleware.RateLimit{
		Limiter: must(ratelimit.NewSlidingWindow(client, "l", ratelimit.PerMinute(5), patient)), Key: everybody,
		Cost: func(*http.Request) int { return cost },
	}.Handler(hello)
	res := answer(h, request(""))
	if res.StatusCode != 429 || res.Header["Retry-After"] != nil || res.Header.Get("X-RateLimit-Remaining") != "5" {
		t.Errorf("cost above the limit: %s %v", res.Status, res.Header)
	}
	for cost = range 3 { // 0, 1 and 2
		answer(h, request(""))
	}
	if res := answer(h, request("")); res.Header.Get("X-RateLimit-Remaining") != "0" {
		t.Errorf("after 0+1+2 and 2: %s %v", res.Status, res.Header)
	}
}

func TestRateLimitSettle(t *testing.T) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	limiter := must(ratelimit.NewSlidingWindow(client, "bytes", ratelimit.PerHour(100), patient))
	h := middleware.RateLimit{
		Limiter: limiter, Key: everybody,
		Cost: func(*http.Request) int { return 10 },
	}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := middleware.DecisionsOf(r)[0]
		n, _ := io.WriteString(w, "123456789012345678901234567890")
		if err := d.Settle(r.Context(), n); err != nil {
			t.Error(err)
		}
	}))
	for _, want := range []int{70, 40, 10} {
		answer(h, request(""))
		if res := must(limiter.Take(t.Context(), "everybody", 0)); res.Remaining != want {
			t.Errorf("%d left, want %d", res.Remaining, want)
		}
	}
}

func TestRateLimitLimiterFor(t *testing.T) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	free := must(ratelimit.NewSlidingWindow(client, "api", ratelimit.PerHour(2), patient))
	paid := must(free.With(ratelimit.PerHour(4)))
	h := middleware.RateLimit{
		Limiter: free, Key: everybody,
		LimiterFor: func(r *http.Request) (ratelimit.Limiter, error) {
			if r.Header.Get("Plan") == "paid" {
				return paid, nil
			}
			return nil, nil
		},
	}.Handler(hello)
	get := func(plan string) string {
		r := request("")
		r.Header.Set("Plan", plan)
		res := answer(h, r)
		return fmt.Sprint(res.StatusCode, " ", res.Header.Get("X-RateLimit-Limit"), " ", res.Header.Get("X-RateLimit-Remaining"))
	}
	for i, step := range []struct{ plan, want string }{
		{"free", "200 2 1"}, {"free", "200 2 0"}, {"free", "429 2 0"},
		{"paid", "200 4 1"}, {"paid", "200 4 0"}, {"paid", "429 4 0"}, {"free", "429 2 0"},
	} {
		if got := get(step.plan); got != step.want {
			t.Errorf("%d: %s: %s, want %s", i, step.plan, got, step.want)
		}
	}
}

// A plan that nobody can read, or a nil pointer in an interface, is no plan: nobody gets in
// by it, nothing panics, and the log says what is wrong.
func TestRateLimitLimiterForWithoutALimiter(t *testing.T) {
	free := must(ratelimit.NewLocal("api", ratelimit.PerHour(2), ratelimit.Config{}))
	for _, test := range []struct {
		name    string
		limiter func() (ratelimit.Limiter, error)
		status  int
		log     string
	}{
		{"nothing chosen", func() (ratelimit.Limiter, error) { return nil, nil }, 200, ""},
		{"an error", func() (ratelimit.Limiter, error) { return nil, errors.New("no such plan") }, 503, "no such plan"},
		{"a limiter and an error", func() (ratelimit.Limiter, error) { return free, errors.New("no such plan") }, 503, "no such plan"},
		{"a nil pointer", func() (ratelimit.Limiter, error) { return (*ratelimit.SlidingWindow)(nil), nil }, 503, "nil *ratelimit.SlidingWindow"},
		{"unlimited", func() (ratelimit.Limiter, error) { return ratelimit.Unlimited, nil }, 200, ""},
		{"a plan of 0", func() (ratelimit.Limiter, error) { return free.With(ratelimit.PerHour(0)) }, 429, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log strings.Builder
			h := middleware.RateLimit{
				Limiter: free, Key: everybody, Logger: slog.New(slog.NewTextHandler(&log, nil)),
				LimiterFor: func(*http.Request) (ratelimit.Limiter, error) { return test.limiter() },
			}.Handler(hello)
			res := answer(h, request(""))
			if res.StatusCode != test.status || !strings.Contains(log.String(), test.log) || test.log == "" && log.String() != "" {
				t.Errorf("%d, log %q", res.StatusCode, log.String())
			}
			if test.name == "nothing chosen" {
				return
			}
			for name, values := range res.Header {
				if strings.HasPrefix(name, "X-Ratelimit") || strings.HasPrefix(name, "Ratelimit") {
					t.Errorf("%s: %q", name, values)
				}
			}
			if test.status == 429 && res.Header.Get("Retry-After") != "" {
				t.Errorf("Retry-After %q", res.Header.Get("Retry-After"))
			}
		})
	}
}

// No credential stands in a key.
func TestByHeaderHashes(t *testing.T) {
	const secret = "sk_live_0123456789"
	r := request("")
	r.Header.Set("X-Api-Key", secret)
	key, err := middleware.ByHeader("x-api-key")(r)
	if err != nil || strings.Contains(key, secret) || key != middleware.HeaderKey(secret) {
		t.Errorf("%q, %v", key, err)
	}
	r.Header.Set("X-Api-Key", secret+"0")
	if other, _ := middleware.ByHeader("X-Api-Key")(r); other == key || other == "" {
		t.Errorf("%q for another value", other)
	}
}

// Where Redis's clock is off, X-RateLimit-Reset goes with the Date of the response.
func TestResetGoesWithTheDate(t *testing.T) {
	for _, off := range []time.Duration{-90 * time.Second, 0, 90 * time.Second} {
		mini := miniredis.RunT(t)
		mini.SetTime(time.Now().Add(off))
		client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
		defer client.Close()
		limiter := must(ratelimit.NewSlidingWindow(client, "api", ratelimit.PerMinute(1), patient))
		h := middleware.RateLimit{Limiter: limiter, Key: everybody}.Handler(hello)
		for i := range 3 { // the last one from memory
			res := answer(h, request(""))
			reset, err := strconv.ParseInt(res.Header.Get("X-RateLimit-Reset"), 10, 64)
			if left := reset - time.Now().Unix(); err != nil || left < 58 || left > 61 {
				t.Errorf("off by %v, request %d: reset in %ds, %v", off, i, left, err)
			}
		}
	}
}

// With Redis gone the limit holds in process.
func TestRateLimitWithoutRedis(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: time.Second})
	defer client.Close()
	for name, limiter := range map[string]ratelimit.Limiter{
		"one": must(ratelimit.NewSlidingWindow(client, "l", ratelimit.PerHour(3), ratelimit.Config{})),
		"all": must(ratelimit.All(
			must(ratelimit.NewSlidingWindow(client, "a", ratelimit.PerHour(3), ratelimit.Config{})),
			must(ratelimit.NewFixedWindow(client, "b", ratelimit.PerDay(100), ratelimit.Config{})),
		)),
	} {
		t.Run(name, func(t *testing.T) {
			var sources []ratelimit.Source
			h := middleware.RateLimit{Limiter: limiter, Key: everybody, OnDecision: func(d middleware.Decision) {
				sources = append(sources, d.Result.Source)
				if !errors.Is(d.Err, ratelimit.ErrUnavailable) {
					t.Errorf("the error is %v", d.Err)
				}
			}}.Handler(hello)
			var got []int
			for range 5 {
				got = append(got, answer(h, request("")).StatusCode)
			}
			if fmt.Sprint(got) != "[200 200 200 429 429]" {
				t.Errorf("got %v", got)
			}
			if fmt.Sprint(sources) != "[local local local local local]" {
				t.Errorf("decided by %v", sources)
			}
		})
	}
}
