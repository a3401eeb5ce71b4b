package ratelimit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// must is for constructors in tests.
func must[L any](l L, err error) L {
	if err != nil {
		panic(err)
	}
	return l
}

// Any mix of the algorithms: all or nothing, step by step as the Go functions say.
func TestAllOrNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
		}
		r := rand.New(rand.NewPCG(1, 2))
		now := time.Now().Add(24 * time.Hour).UnixMicro()
		for round := range b.Rounds(60) {
			var (
				limiters []Limiter
				rules    []rule
				states   []state
			)
			for i := range 1 + r.IntN(4) {
				limit := Limit{1 + r.IntN(8), time.Duration(1+r.IntN(30)) * time.Second / 3}.truncated()
				a := algorithms[r.IntN(len(algorithms))]
				limit = limit.of(a)
				limiters = append(limiters, newLimiter(t, a, b.Client, fmt.Sprintf("all-%d-%d", round, i), limit))
				rules = append(rules, limit.rule())
				states = append(states, a.newState())
			}
			all := must(All(limiters...))
			SetClock(all, func() int64 { return now })
			for step := range 40 {
				now += r.Int64N(3_000_000)
				cost := r.IntN(4)
				allowed, retry := true, time.Duration(0)
				var after []state
				for i, s := range states {
					after = append(after, clone(s))
					v := after[i].decide(rules[i], demand{cost: int64(cost), n: 1, now: now})
					allowed = allowed && v.granted == 1
					retry = max(retry, v.result(0, demand{}, Limit{}, "", 0).RetryAfter)
				}
				if allowed {
					states = after
				}
				got, err := all.Take(context.Background(), "k", cost)
				if err != nil {
					t.Fatal(err)
				}
				if got.Allowed != allowed || !allowed && got.Source == FromRedis && got.RetryAfter != retry {
					t.Fatalf("round %d, step %d, cost %d: %+v, want allowed %v after %v", round, step, cost, got, allowed, retry)
				}
				for i, l := range limiters {
					look := must(l.Take(context.Background(), "k", 0))
					want := clone(states[i]).decide(rules[i], demand{n: 1, now: now})
					if look.Source == FromRedis && int64(look.Remaining) != want.remaining {
						t.Fatalf("round %d, step %d: %d remain in limiter %d, want %d", round, step, look.Remaining, i, want.remaining)
					}
				}
			}
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func (l Limit) truncated() Limit { return Limit{l.Requests, l.Window.Truncate(time.Microsecond)} }

func newLimiter(_ testing.TB, a algorithm, c redis.UniversalClient, name string, l Limit) Limiter {
	cfg := Config{Timeout: 10 * time.Second}
	switch a {
	case sliding:
		return must(NewSlidingWindow(c, name, l, cfg))
	case fixed:
		return must(NewFixedWindow(c, name, l, cfg))
	case quota:
		return must(NewQuota(c, name, l.Requests, Day, time.UTC, cfg))
	default:
		return must(NewTokenBucket(c, name, l, cfg))
	}
}

// of is l as an algorithm can have it: a quota has its own window.
func (l Limit) of(a algorithm) Limit {
	if c, ok := a.(calendar); ok {
		l.Window = c.period.length()
	}
	return l
}

func clone(s state) state {
	switch s := s.(type) {
	case *slidingState:
		return &slidingState{append([]int64(nil), s.entries...)}
	case *quotaState:
		c := *s
		return &c
	case *fixedState:
		c := *s
		return &c
	case *bucketState:
		c := *s
		return &c
	}
	panic("unknown state")
}

// commands counts the commands that reach a server.
func commands(t *testing.T, c redis.UniversalClient, f func()) int {
	t.Helper()
	ctx := context.Background()
	c.ConfigResetStat(ctx)
	f()
	info := c.Info(ctx, "commandstats").Val()
	n := 0
	for line := range strings.Lines(info) {
		var calls int
		name, rest, _ := strings.Cut(line, ":")
		if _, err := fmt.Sscanf(rest, "calls=%d", &calls); err == nil && strings.HasPrefix(name, "cmdstat_eval") {
			n += calls
		}
	}
	return n
}

func TestAllInOneRoundTrip(t *testing.T) {
	c := redistest.Start(t).Client()
	second := newLimiter(t, sliding, c, "second", PerSecond(10))
	hour := newLimiter(t, fixed, c, "hour", PerHour(5))
	day := newLimiter(t, bucket, c, "day", PerDay(100))
	all := must(All(second, must(All(hour, day))))
	ctx := context.Background()
	must(all.Take(ctx, "warm the script up", 1))
	if n := commands(t, c, func() {
		for i := range 5 {
			if res := must(all.Take(ctx, "k", 1)); !res.Allowed || res.Policy != "hour" || res.Remaining != 4-i {
				t.Errorf("%+v, want the figures of the tightest", res)
			}
		}
		for range 10 {
			res := must(all.Take(ctx, "k", 1))
			if res.Allowed || res.Policy != "hour" || res.RetryAfter < 59*time.Minute {
				t.Errorf("%+v, want a denial by the hour", res)
			}
		}
	}); n != 6 {
		t.Errorf("%d scripts for five admissions, one denial and nine remembered ones, want 6", n)
	}
}

// Two subjects: the one that denies leaves nothing spent of the other, whatever
// the concurrency, and neither lets more pass than it allows.
func TestAllOverSeveralSubjects(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		user := newLimiter(t, bucket, b.Client, "user", PerHour(30))
		route := newLimiter(t, sliding, b.Client, "route", PerHour(100))
		part := func(i int) func(string) string { return func(key string) string { return SplitKey(key)[i] } }
		all := must(All(Keyed(route, part(1)), Keyed(user, part(0))))
		var (
			wg     sync.WaitGroup
			mu     sync.Mutex
			passed = map[string]int{}
		)
		for i := range 300 {
			wg.Go(func() {
				u := fmt.Sprintf("u%d", i%5)
				res, err := all.Take(context.Background(), JoinKey(u, "/x"), 1)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				} else if res.Allowed {
					passed[u]++
					passed["all"]++
				}
			})
		}
		wg.Wait()
		left := must(route.Take(context.Background(), "/x", 0))
		if left.Source == FromRedis && passed["all"]+left.Remaining != 100 {
			t.Errorf("%d passed and %d remain of 100", passed["all"], left.Remaining)
		}
		for u, n := range passed {
			if u != "all" && n > 30 {
				t.Errorf("%d passed of %s", n, u)
			}
		}
		if passed["all"] > 100 || passed["all"] < 90 {
			t.Errorf("%d passed", passed["all"])
		}
	})
}

func TestAllRefuses(t *testing.T) {
	c := redis.NewClient(&redis.Options{})
	defer c.Close()
	a := newLimiter(t, fixed, c, "a", PerHour(1))
	for _, test := range []struct {
		name     string
		limiters []Limiter
		want     string
	}{
		{"nothing", nil, "no limiters"},
		{"nil", []Limiter{a, nil}, "limiter 1 is nil"},
		{"a nil pointer", []Limiter{(*SlidingWindow)(nil), a}, "limiter 0 is nil"},
		{"a Keyed of nil", []Limiter{a, Keyed(nil, strings.ToUpper)}, "limiter 1: ratelimit: Keyed: limiter is nil"},
		{"a Keyed of a Keyed without a function", []Limiter{a, Keyed(Keyed(stubborn{}, nil), strings.ToUpper)}, "limiter 1: ratelimit: Keyed: key is nil"},
		{"the same name twice", []Limiter{a, newLimiter(t, fixed, c, "a", PerHour(2))}, `two limiters named "a"`},
		{"two that cannot give back", []Limiter{stubborn{}, a, Keyed(stubborn{}, strings.ToUpper)}, "2 limiters that cannot give back"},
	} {
		if _, err := All(test.limiters...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	if _, err := All(stubborn{}, a); err != nil {
		t.Error(err)
	}
}

// stubborn is a limiter with no optional power.
type stubborn struct{}

func (stubborn) Take(context.Context, string, int) (Result, error) { return Result{Allowed: true}, nil }
