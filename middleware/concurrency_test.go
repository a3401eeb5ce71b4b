package middleware_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

func TestConcurrencyLimit(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		const places = 2
		limiter := must(ratelimit.NewConcurrency(b.Client, "reports", places, ratelimit.Config{Timeout: time.Minute}))
		entered, leave := make(chan bool), make(chan bool)
		mux := http.NewServeMux()
		mux.HandleFunc("/wait", func(w http.ResponseWriter, r *http.Request) { entered <- true; <-leave })
		mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {})
		var decisions []int
		s := serve(t, middleware.ConcurrencyLimit{
			Limiter: limiter, Key: everybody,
			OnDecision: func(d middleware.Decision) {
				if d.Request.URL.Path == "/" {
					decisions = append(decisions, d.Status)
				}
			},
		}.Handler(mux))
		expect := func(status int) {
			t.Helper()
			res := s.get("/")
			if res.StatusCode != status || (status == 429) != (res.Header.Get("Retry-After") == "1") || res.Header.Get("X-RateLimit-Limit") != "" {
				t.Errorf("%s %v, want %d", res.Status, res.Header, status)
			}
		}

		expect(200)
		done := make(chan bool)
		ctx, hangUp := context.WithCancel(t.Context())
		for i := range places {
			go func() {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/wait", nil)
				if i == 0 {
					req = req.WithContext(ctx)
				}
				if res, err := s.client.Do(req); err == nil {
					res.Body.Close()
				}
				done <- true
			}()
			<-entered
		}
		expect(429)
		hangUp() // the work goes on, and keeps its place
		<-done
		expect(429)
		leave <- true
		leave <- true
		<-done
		// The place of the one that hung up is free a moment later.
		deadline := time.Now().Add(10 * time.Second)
		for s.get("/").StatusCode != 200 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		for range places + 1 {
			if res, err := s.client.Get(s.URL + "/panic"); err == nil {
				res.Body.Close()
			}
		}
		expect(200)
		if len(decisions) < 5 || decisions[0] != 0 || decisions[1] != 429 {
			t.Errorf("decisions %v", decisions)
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func TestConcurrencyLimitUndecided(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: time.Second})
	defer client.Close()
	for _, tc := range []struct {
		limit   middleware.ConcurrencyLimit
		outside int // status of a request
		inside  int // and of one that is made meanwhile
		log     string
	}{
		{middleware.ConcurrencyLimit{Key: everybody}, 200, 429, "decided in process"},
		{middleware.ConcurrencyLimit{Key: everybody, OnError: middleware.FailOpen}, 200, 200, "let through"},
		{middleware.ConcurrencyLimit{Key: everybody, OnError: middleware.FailClosed}, 503, 0, "refused"},
		{middleware.ConcurrencyLimit{Key: middleware.ByHeader("X-Missing"), OnError: middleware.FailOpen}, 400, 0, "refused"},
	} {
		t.Run(tc.limit.OnError.String(), func(t *testing.T) {
			var log journal
			tc.limit.Limiter = must(ratelimit.NewConcurrency(client, "l", 1, ratelimit.Config{}))
			tc.limit.Logger = log.logger()
			var h http.Handler
			meanwhile, depth := 0, 0
			h = tc.limit.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				if depth++; depth == 1 {
					meanwhile = answer(h, request("")).StatusCode
				}
			}))
			for range 2 { // the place is given back
				depth = 0
				if res := answer(h, request("")); res.StatusCode != tc.outside || meanwhile != tc.inside {
					t.Errorf("%d, meanwhile %d; want %d, %d", res.StatusCode, meanwhile, tc.outside, tc.inside)
				}
			}
			if !strings.Contains(log.String(), "limiter: "+tc.log) {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

func TestConcurrencyLimitValidate(t *testing.T) {
	l := middleware.ConcurrencyLimit{OnError: 9}
	expectErrors(t, l.Validate(), []string{"Limiter", "Key", "FailureMode(9)"})
	defer expectPanic(t, l.Validate())
	l.Handler(hello)
}
