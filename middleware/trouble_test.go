package middleware_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// The whole stack while Redis is in trouble: who has a cookie gets 503 in time
// and keeps it, who has none is served, and the limit holds in process.
func TestRedisInTrouble(t *testing.T) {
	t.Parallel() // with others that wait
	const timeout = 200 * time.Millisecond
	server := redistest.Shared(t)
	for name, trouble := range map[string]func(*redistest.Proxy){
		"black hole": func(p *redistest.Proxy) { p.BlackHole() },
		"cut":        func(p *redistest.Proxy) { p.Cut() },
		"garbage":    func(p *redistest.Proxy) { p.Garbage() },
		"slow":       func(p *redistest.Proxy) { p.Delay(10 * timeout) },
	} {
		t.Run(name, func(t *testing.T) {
			proxy := redistest.NewProxy(t, server.Addr())
			client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
			defer client.Close()
			m := must(session.New(client, session.Config{Prefix: t.Name(), Timeout: timeout}))
			limiter := must(ratelimit.NewSlidingWindow(client, "l", ratelimit.PerHour(3), ratelimit.Config{Prefix: t.Name(), Timeout: timeout}))
			mux := http.NewServeMux()
			calm := must(session.New(client, session.Config{Prefix: t.Name(), Timeout: time.Minute}))
			login := func(w http.ResponseWriter, r *http.Request) { calm.Login(r.Context(), "ann") }
			mux.Handle("/login", middleware.Sessions{Manager: calm}.Handler(http.HandlerFunc(login)))
			mux.Handle("/", middleware.Sessions{Manager: m}.Handler(middleware.RateLimit{Limiter: limiter, Key: everybody}.Handler(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "user ", m.UserID(r.Context())) }))))
			user, visitor := serve(t, mux), serve(t, mux)
			if res := user.get("/login"); res.StatusCode != 200 {
				t.Fatal(res.Status)
			}

			trouble(proxy)
			began := time.Now()
			res := user.get("/")
			if took := time.Since(began); took > timeout+time.Second {
				t.Errorf("503 takes %v, the timeout is %v", took, timeout)
			}
			if res.StatusCode != 503 || res.Header["Set-Cookie"] != nil || res.Header.Get("Retry-After") == "" {
				t.Errorf("a user: %s %v", res.Status, res.Header)
			}
			for _, want := range []int{200, 200, 200, 429} {
				if res := visitor.get("/"); res.StatusCode != want || res.Header.Get("X-RateLimit-Limit") != "3" {
					t.Errorf("a visitor: %s %v, want %d", res.Status, res.Header, want)
				}
			}

			proxy.Heal()
			proxy.Disconnect()
			deadline := time.Now().Add(20 * time.Second)
			for res = user.get("/"); res.StatusCode == 503 && time.Now().Before(deadline); res = user.get("/") {
				time.Sleep(10 * time.Millisecond)
			}
			if res.body != "user ann" && res.StatusCode != 429 { // the limit may still be held in process
				t.Errorf("afterwards: %s %q", res.Status, res.body)
			}
		})
	}
}

// A command that Redis refuses is logged once, with its name, and is no outage: what Redis permits
// goes on.
func TestARefusedCommandIsToldOnce(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	if err := server.Client().Do(t.Context(), "ACL", "SETUSER", "service", "on", ">pw", "~*", "+@all", "-eval", "-evalsha").Err(); err != nil {
		t.Fatal(err)
	}
	client := server.Client(func(o *redis.Options) { o.Username, o.Password = "service", "pw" })
	var log journal
	m := must(session.New(client, session.Config{Logger: log.logger(), Timeout: time.Minute}))
	cfg := ratelimit.Config{Logger: log.logger(), Timeout: time.Minute}
	limiter := must(ratelimit.NewFixedWindow(client, "l", ratelimit.PerHour(1000), cfg))
	places := must(ratelimit.NewConcurrency(client, "c", 1000, cfg))
	mux := http.NewServeMux()
	mux.HandleFunc("/put", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "a", 1) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {})
	for _, tc := range []struct {
		name   string
		h      http.Handler
		status int
	}{
		{"rate limit", middleware.RateLimit{Limiter: limiter, Key: everybody, Logger: log.logger()}.Handler(mux), 200},
		{"concurrency limit", middleware.ConcurrencyLimit{Limiter: places, Key: everybody, Logger: log.logger()}.Handler(mux), 200},
		{"sessions", middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(mux), 503},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log.Reset()
			path := "/"
			if tc.status == 503 {
				path = "/put"
			}
			for until := time.Now().Add(2500 * time.Millisecond); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
				if res := answer(tc.h, httptest.NewRequest("GET", path, nil)); res.StatusCode != tc.status {
					t.Fatal(res.Status)
				}
			}
			if told := log.String(); strings.Count(told, "\n") != 1 || !strings.Contains(told, "'evalsha'") {
				t.Errorf("told:\n%s", told)
			}
			if res := answer(tc.h, request("")); res.StatusCode != 200 {
				t.Errorf("what needs no script: %s", res.Status)
			}
		})
	}
}
