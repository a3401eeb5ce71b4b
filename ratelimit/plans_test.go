package ratelimit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// A plan of 0 denies everything, forever, without asking Redis. A limiter has no such limit of
// its own.
func TestAPlanOfZero(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // nobody is asked
	defer client.Close()
	var none Limiter
	for _, a := range algorithms {
		l := newLimiter(t, a, client, "plan", Limit{5, time.Hour}.of(a))
		var err error
		switch l := l.(type) {
		case *SlidingWindow:
			none, err = l.With(Limit{0, time.Hour})
		case *FixedWindow:
			none, err = l.With(Limit{0, time.Hour})
		case *TokenBucket:
			none, err = l.With(Limit{0, time.Hour})
		case *Quota:
			none, err = l.With(Limit{})
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, cost := range []int{0, 1, 7} {
			if res, err := none.Take(ctx, "k", cost); err != nil || res.Allowed || res.RetryAfter != Never {
				t.Errorf("%v, cost %d: %v, %v", a, cost, res, err)
			}
			if res, err := none.(LocalTaker).TakeLocally("k", cost); err != nil || res.Allowed || res.RetryAfter != Never {
				t.Errorf("%v, cost %d, locally: %v, %v", a, cost, res, err)
			}
		}
		all := must(All(none, newLimiter(t, bucket, client, "other", PerHour(1))))
		if res, err := all.Take(ctx, "k", 1); err != nil || res.Allowed || res.RetryAfter != Never {
			t.Errorf("%v, in All: %v, %v", a, res, err)
		}
		if _, err := Wait(ctx, none, "k", 1); err != ErrNever {
			t.Errorf("%v, Wait: %v", a, err)
		}
	}
}

func TestLimitsThatCannotBe(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for _, limit := range []Limit{
		{0, time.Hour}, {-1, time.Hour}, {math.MaxInt64, time.Hour},
		{1, time.Microsecond}, {1, 0}, {1, 100 * 365 * 24 * time.Hour}, {1, -time.Hour},
	} {
		_, err1 := NewSlidingWindow(client, "n", limit, Config{})
		_, err2 := NewFixedWindow(client, "n", limit, Config{})
		_, err3 := NewTokenBucket(client, "n", limit, Config{})
		_, err4 := NewLocal("n", limit, Config{})
		l := must(NewSlidingWindow(client, "n", PerHour(1), Config{}))
		var err5 error
		if limit.Requests != 0 {
			_, err5 = l.With(limit)
		} else {
			err5 = err1
		}
		want := fmt.Sprintf("Limit.Requests %d", limit.Requests)
		if limit.Requests == 1 {
			want = fmt.Sprintf("Limit.Window %v", limit.Window)
		}
		for i, err := range []error{err1, err2, err3, err4, err5} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%d: %v, want %s", i, err, want)
			}
		}
	}
	// A billion tokens a month is no large number.
	for _, n := range []int{1_000_000_000, MaxRequests} {
		if _, err := NewFixedWindow(client, "n", Limit{n, 30 * 24 * time.Hour}, Config{}); err != nil {
			t.Error(err)
		}
	}
}

// Counters stay exact up to the largest limit, in one Take and in many at once.
func TestTheLargestLimit(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range []algorithm{fixed, quota} {
		l := newLimiter(t, a, client, fmt.Sprintf("large-%x", rand.Uint64()), Limit{MaxRequests, time.Hour}.of(a))
		if res := must(l.Take(ctx, "k", MaxRequests-100)); res.Remaining != 100 {
			t.Fatal(res)
		}
		var wg sync.WaitGroup
		allowed := make(chan bool, 300)
		for range 300 {
			wg.Go(func() { allowed <- must(l.Take(ctx, "k", 1)).Allowed })
		}
		wg.Wait()
		close(allowed)
		n := 0
		for ok := range allowed {
			if ok {
				n++
			}
		}
		if n != 100 {
			t.Errorf("%v: %d of 100 passed", a, n)
		}
		if res := must(l.Take(ctx, "other", MaxRequests/2)); res.Remaining != MaxRequests/2 {
			t.Error(res)
		}
	}
}

func TestUnlimited(t *testing.T) {
	for _, cost := range []int{0, 1, math.MaxInt} {
		if res, err := Unlimited.Take(ctx, "k", cost); err != nil || !res.Allowed || res.Limit != (Limit{}) {
			t.Errorf("cost %d: %v, %v", cost, res, err)
		}
	}
	if _, err := Unlimited.Take(ctx, "", 1); err != ErrEmptyKey {
		t.Error(err)
	}
	all := must(All(Unlimited, must(NewLocal("one", PerHour(1), Config{}))))
	if res := must(all.Take(ctx, "k", 1)); !res.Allowed || res.Policy != "one" {
		t.Errorf("%v", res)
	}
	if res := must(all.Take(ctx, "k", 1)); res.Allowed {
		t.Errorf("%v", res)
	}
}

func TestResultString(t *testing.T) {
	hour := Limit{5, time.Hour}
	for _, test := range []struct {
		res  Result
		want string
	}{
		{Result{}, "no decision"},
		{must(Unlimited.Take(ctx, "k", 1)), "allowed: no limit"},
		{Result{Allowed: true, Policy: "api", Limit: PerMinute(10), Remaining: 7}, "allowed by api: 7 of 10 in 1m left, asked redis"},
		{Result{Policy: "login", Limit: Limit{5, 15 * time.Minute}, RetryAfter: 40 * time.Second}, "denied by login: 5 in 15m used, asked redis, retry in 40s"},
		{Result{Policy: "login", Limit: hour, RetryAfter: 39*time.Second + 1}, "denied by login: 5 in 1h used, asked redis, retry in 40s"},
		{Result{Policy: "login", Limit: hour, RetryAfter: 1234567 * time.Microsecond}, "denied by login: 5 in 1h used, asked redis, retry in 1.235s"},
		{Result{Policy: "login", Limit: hour, RetryAfter: 90 * time.Minute, Source: FromCache}, "denied by login: 5 in 1h used, asked cache, retry in 1h30m"},
		{Result{Policy: "login", Limit: hour, Remaining: 2, RetryAfter: time.Second, Source: FromLocal}, "denied by login: 2 of 5 in 1h left, asked local, retry in 1s"},
		{Result{Policy: "login", Limit: hour, RetryAfter: Never}, "denied by login: costs more than 5 in 1h allow, asked redis"},
		{Result{Policy: "login", Limit: hour, RetryAfter: 40 * time.Second, Origin: "rule user:42"}, "denied by login: 5 in 1h used, limit of rule user:42, asked redis, retry in 40s"},
		{Result{Allowed: true, Policy: "api", Limit: PerMinute(10), Remaining: 7, Origin: FromWith}, "allowed by api: 7 of 10 in 1m left, limit of plan, asked redis"},
		{Result{Policy: "login", Limit: hour, RetryAfter: time.Minute, Banned: true}, "denied by login: banned, since it came back too early for 5 in 1h, asked redis, retry in 1m"},
		{Result{Allowed: true, Policy: "api", Source: FromRule, Origin: "rule *"}, "allowed by api: exempt by rule *"},
		{Result{Policy: "api", Limit: hour, RetryAfter: Never, Source: FromRule, Origin: "rule a"}, "denied by api: by rule a, retry never"},
		{Result{Policy: "free", Limit: Limit{0, time.Hour}, RetryAfter: Never}, "denied by free: its limit is 0"},
	} {
		if got := test.res.String(); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// With gives a limiter of the same type, name and memory.
func TestWithKeepsTheType(t *testing.T) {
	client := redistest.Shared(t).Client()
	name := fmt.Sprintf("with-%x", rand.Uint64())
	var (
		s *SlidingWindow = must(must(NewSlidingWindow(client, name, PerHour(5), Config{})).With(PerHour(7)))
		f *FixedWindow   = must(must(NewFixedWindow(client, name, PerHour(5), Config{})).With(PerHour(7)))
		b *TokenBucket   = must(must(NewTokenBucket(client, name, PerHour(5), Config{})).With(PerHour(7)))
		q *Quota         = must(must(NewQuota(client, name, 5, Day, time.UTC, Config{})).With(Limit{Requests: 7}))
		l *Local         = must(must(NewLocal(name, PerHour(5), Config{})).With(PerHour(7)))
	)
	for _, raised := range []Limiter{s, f, b, q, l} {
		t.Run(fmt.Sprintf("%T", raised), func(t *testing.T) {
			limit := raised.(Named).Limit()
			if raised.(Named).Name() != name || limit.Requests != 7 || raised != Limiter(q) && limit.Window != time.Hour {
				t.Errorf("%s, %v", raised.(Named).Name(), limit)
			}
			limit.Requests = 5
			own := with(t, raised, limit)
			for range 5 {
				if res := must(own.Take(ctx, "k", 1)); !res.Allowed {
					t.Fatal(res)
				}
			}
			if res := must(own.Take(ctx, "k", 1)); res.Allowed {
				t.Errorf("5 are used: %v", res)
			}
			if res := must(raised.Take(ctx, "k", 1)); raised != Limiter(b) && (!res.Allowed || res.Remaining != 1) {
				t.Errorf("5 of 7 are used: %v", res)
			}
			limit.Requests = 3
			if res := must(with(t, raised, limit).Take(ctx, "k", 1)); res.Allowed || res.Remaining != 0 {
				t.Errorf("6 of 3 are used: %v", res)
			}
			limit.Requests = 0
			if res := must(with(t, raised, limit).Take(ctx, "k", 1)); res.Allowed || res.RetryAfter != Never {
				t.Errorf("of 0: %v", res)
			}
		})
	}
}

// The bounds of each kind, to the request.
func TestBoundsOfTheKinds(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for _, test := range []struct {
		name string
		make func(n int) error
		most int
		want string
	}{
		{"sliding window", func(n int) error { _, err := NewSlidingWindow(client, "n", PerHour(n), Config{}); return err }, 1_000_000, "Limit.Requests"},
		{"fixed window", func(n int) error { _, err := NewFixedWindow(client, "n", PerHour(n), Config{}); return err }, 1 << 50, "Limit.Requests"},
		{"token bucket", func(n int) error { _, err := NewTokenBucket(client, "n", PerHour(n), Config{}); return err }, 1 << 26, "Limit.Requests"},
		{"quota", func(n int) error { _, err := NewQuota(client, "n", n, Month, time.UTC, Config{}); return err }, 1 << 50, "Limit.Requests"},
		{"concurrency", func(n int) error { _, err := NewConcurrency(client, "n", n, Config{}); return err }, 1_000_000, "limit"},
		{"local", func(n int) error { _, err := NewLocal("n", PerHour(n), Config{}); return err }, 1_000_000, "Limit.Requests"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, n := range []int{1, test.most} {
				if err := test.make(n); err != nil {
					t.Errorf("%d: %v", n, err)
				}
			}
			for _, n := range []int{0, -1, math.MinInt, test.most + 1, math.MaxInt} {
				if err := test.make(n); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s %d", test.want, n)) {
					t.Errorf("%d: %v", n, err)
				}
			}
		})
	}
}
