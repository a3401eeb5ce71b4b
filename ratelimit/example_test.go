package ratelimit_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// embedded stands for your Redis.
func embedded() (client *redis.Client, server *miniredis.Miniredis) {
	server, err := miniredis.Run()
	if err != nil {
		log.Fatal(err)
	}
	server.SetTime(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC))
	server.ClockTTL(true)
	return redis.NewClient(&redis.Options{Addr: server.Addr()}), server
}

// A limit of three a minute for each key, the same on all servers over one Redis.
func Example() {
	client, _ := embedded() // in a service redis.NewClient(…)
	logins, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(3), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for range 4 {
		res, err := logins.Take(context.Background(), "user:alice", 1)
		if err != nil {
			log.Fatal(err) // Redis did not decide: let through, refuse, or logins.TakeLocally
		}
		fmt.Println(res)
	}
	// Output:
	// allowed by login: 2 of 3 in 1m left, asked redis
	// allowed by login: 1 of 3 in 1m left, asked redis
	// allowed by login: 0 of 3 in 1m left, asked redis
	// denied by login: 3 in 1m used, asked redis, retry in 1m
}

func ExampleNewSlidingWindow() {
	client, _ := embedded()
	logins, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(3), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for range 4 {
		res, err := logins.Take(context.Background(), "alice", 1)
		if err != nil {
			log.Fatal(err) // no decision: let through, refuse, or logins.TakeLocally
		}
		fmt.Println(res.Allowed, res.Remaining, res.RetryAfter)
	}
	// Output:
	// true 2 0s
	// true 1 0s
	// true 0 0s
	// false 0 1m0s
}

// The boundary burst: a fixed window forgets all at once, so twice its limit may
// pass around the end of a window. In a sliding window it may not, ever.
func ExampleNewFixedWindow() {
	client, server := embedded()
	limit := ratelimit.PerMinute(10)
	fixed, err := ratelimit.NewFixedWindow(client, "fixed", limit, ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	sliding, err := ratelimit.NewSlidingWindow(client, "sliding", limit, ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	start := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	burst := func(l ratelimit.Limiter, requests int) (passed int) {
		for range requests {
			res, err := l.Take(context.Background(), "alice", 1)
			if err != nil {
				log.Fatal(err)
			}
			if res.Allowed {
				passed++
			}
		}
		return passed
	}
	// One request opens the window; nine more come as it is about to end.
	for _, l := range []ratelimit.Limiter{fixed, sliding} {
		server.SetTime(start)
		burst(l, 1)
		server.SetTime(start.Add(59900 * time.Millisecond))
		before := burst(l, 9)
		server.SetTime(start.Add(60100 * time.Millisecond))
		fmt.Printf("%s: %d within 200ms\n", l.(interface{ Name() string }).Name(), before+burst(l, 10))
		start = start.Add(time.Hour)
	}
	// Output:
	// fixed: 19 within 200ms
	// sliding: 10 within 200ms
}

func ExampleNewTokenBucket() {
	client, server := embedded()
	search, err := ratelimit.NewTokenBucket(client, "search", ratelimit.PerSecond(5), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	res, _ := search.Take(context.Background(), "alice", 5) // a burst of all of it
	fmt.Println(res.Allowed, res.Remaining)
	server.SetTime(time.Date(2026, 1, 1, 12, 0, 0, 200e6, time.UTC)) // one is back every 200ms
	res, _ = search.Take(context.Background(), "alice", 1)
	fmt.Println(res.Allowed, res.Remaining, res.ResetAfter)
	// Output:
	// true 0
	// true 0 1s
}

func ExampleNewLocal() {
	l, err := ratelimit.NewLocal("local", ratelimit.PerHour(1), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		res, _ := l.Take(context.Background(), "alice", 1)
		fmt.Println(res.Allowed, res.Source)
	}
	// Output:
	// true local
	// false local
}

func ExampleAll() {
	client, _ := embedded()
	burst, err := ratelimit.NewSlidingWindow(client, "burst", ratelimit.PerSecond(10), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	daily, err := ratelimit.NewFixedWindow(client, "daily", ratelimit.PerDay(1000), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	both, err := ratelimit.All(burst, daily)
	if err != nil {
		log.Fatal(err)
	}
	res, _ := both.Take(context.Background(), "alice", 1)
	fmt.Println(res.Allowed, res.Policy, res.Remaining)
	res, _ = both.Take(context.Background(), "alice", 10)
	fmt.Println(res.Allowed, res.Policy, res.Remaining)
	// Output:
	// true burst 9
	// false burst 9
}

func ExampleKeyed() {
	client, _ := embedded()
	perUser, err := ratelimit.NewSlidingWindow(client, "user", ratelimit.PerMinute(100), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	perRoute, err := ratelimit.NewTokenBucket(client, "route", ratelimit.PerSecond(50), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	both, err := ratelimit.All(
		ratelimit.Keyed(perUser, func(key string) string { return ratelimit.SplitKey(key)[0] }),
		ratelimit.Keyed(perRoute, func(key string) string { return ratelimit.SplitKey(key)[1] }),
	)
	if err != nil {
		log.Fatal(err)
	}
	res, _ := both.Take(context.Background(), ratelimit.JoinKey("alice", "GET /search"), 1)
	fmt.Println(res.Allowed, res.Policy, res.Remaining)
	// Output: true route 49
}

// A worker that keeps to the limit of the service it calls.
func ExampleWait() {
	client, _ := embedded()
	calls, err := ratelimit.NewTokenBucket(client, "calls", ratelimit.PerMinute(2), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	soon, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for range 3 {
		res, err := ratelimit.Wait(soon, calls, "partner", 1)
		fmt.Println(res.Allowed, err)
	}
	// Output:
	// true <nil>
	// true <nil>
	// false context deadline exceeded
}

func ExampleJoinKey() {
	fmt.Println(ratelimit.JoinKey("a:b", "c"))
	fmt.Println(ratelimit.JoinKey("a", "b:c"))
	// Output:
	// a\:b:c
	// a:b\:c
}

// Only failed logins count.
func ExampleSettler() {
	client, _ := embedded()
	failures, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(3), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	login := func(password string) {
		res, err := failures.Take(context.Background(), "alice", 1)
		if err != nil || !res.Allowed {
			fmt.Println("too many failures")
			return
		}
		if password == "secret" {
			_ = failures.Refund(context.Background(), "alice", res)
		}
		fmt.Println(password == "secret")
	}
	for _, password := range []string{"secret", "secret", "x", "secret", "y", "z", "secret"} {
		login(password)
	}
	// Output:
	// true
	// true
	// false
	// true
	// false
	// false
	// too many failures
}

func ExampleNewConcurrency() {
	client, _ := embedded()
	exports, err := ratelimit.NewConcurrency(client, "exports", 1, ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	export := func(inner func()) {
		lease, res, err := exports.Acquire(context.Background(), "alice")
		if err != nil {
			log.Fatal(err)
		}
		if lease == nil {
			fmt.Println("one is running already, try again in", res.RetryAfter)
			return
		}
		defer lease.Release()
		inner()
		fmt.Println("exported")
	}
	export(func() { export(func() {}) })
	export(func() {})
	// Output:
	// one is running already, try again in 1s
	// exported
	// exported
}
