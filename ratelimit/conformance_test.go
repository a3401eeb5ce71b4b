package ratelimit_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/ratelimit/ratelimittest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

type constructor struct {
	name string
	make func(redis.UniversalClient, string, ratelimit.Limit, ratelimit.Config) (ratelimit.Limiter, error)
}

// constructors are the limiters over Redis.
var constructors = []constructor{
	{"sliding window", func(c redis.UniversalClient, name string, l ratelimit.Limit, cfg ratelimit.Config) (ratelimit.Limiter, error) {
		return ratelimit.NewSlidingWindow(c, name, l, cfg)
	}},
	{"fixed window", func(c redis.UniversalClient, name string, l ratelimit.Limit, cfg ratelimit.Config) (ratelimit.Limiter, error) {
		return ratelimit.NewFixedWindow(c, name, l, cfg)
	}},
	{"token bucket", func(c redis.UniversalClient, name string, l ratelimit.Limit, cfg ratelimit.Config) (ratelimit.Limiter, error) {
		return ratelimit.NewTokenBucket(c, name, l, cfg)
	}},
	{"all of one subject", func(c redis.UniversalClient, name string, l ratelimit.Limit, cfg ratelimit.Config) (ratelimit.Limiter, error) {
		wide := ratelimit.Limit{Requests: 1 << 24, Window: l.Window}
		a, err1 := ratelimit.NewFixedWindow(c, name+" wide", wide, cfg)
		b, err2 := ratelimit.NewSlidingWindow(c, name, l, cfg)
		d, err3 := ratelimit.NewTokenBucket(c, name+" bucket", wide, cfg)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, err
		}
		return ratelimit.All(a, b, d)
	}},
	{"all of several subjects", func(c redis.UniversalClient, name string, l ratelimit.Limit, cfg ratelimit.Config) (ratelimit.Limiter, error) {
		everybody, err1 := ratelimit.NewFixedWindow(c, name+" wide", ratelimit.Limit{Requests: 1 << 24, Window: ratelimit.MaxWindow}, cfg)
		each, err2 := ratelimit.NewTokenBucket(c, name, l, cfg)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return ratelimit.All(ratelimit.Keyed(everybody, func(string) string { return "everybody" }), each)
	}},
}

// testClock is an explicit now. It begins a day ahead of the server's, so that
// keys do not expire under a test whose clock stands still.
type testClock struct{ us atomic.Int64 }

func newTestClock() *testClock {
	c := new(testClock)
	c.us.Store(time.Now().Add(24 * time.Hour).UnixMicro())
	return c
}

func (c *testClock) now() int64              { return c.us.Load() }
func (c *testClock) advance(d time.Duration) { c.us.Add(d.Microseconds()) }

// slow is a timeout for tests that are not about it, on a busy machine.
var slow = ratelimit.Config{Timeout: time.Minute}

// freeze stops miniredis's clock: while that goes on, a TTL does not (see its
// ClockTTL), and every EXPIRETIME is later than the one before.
func freeze(b redistest.Backend) {
	if b.Mini != nil {
		b.Mini.SetTime(time.Now())
	}
}

func TestConformance(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		freeze(b)
		for _, c := range constructors {
			t.Run(c.name, func(t *testing.T) {
				clock := newTestClock()
				ratelimittest.Run(t, ratelimittest.Subject{
					New: func(t testing.TB, limit ratelimit.Limit) ratelimit.Limiter {
						l, err := c.make(b.Client, t.Name()[max(0, len(t.Name())-50):], limit, slow)
						if err != nil {
							t.Fatal(err)
						}
						ratelimit.SetClock(l, clock.now)
						return l
					},
					Advance: clock.advance,
				})
			})
		}
		redistest.AssertAllTTL(t, b.Client)
	})
	t.Run("local", func(t *testing.T) {
		clock := newTestClock()
		ratelimittest.Run(t, ratelimittest.Subject{
			New: func(t testing.TB, limit ratelimit.Limit) ratelimit.Limiter {
				l, err := ratelimit.NewLocal("local", limit, ratelimit.Config{})
				if err != nil {
					t.Fatal(err)
				}
				ratelimit.SetClock(l, clock.now)
				return l
			},
			Advance: clock.advance,
		})
	})
}

// The same suite by Redis's own clock, as far as it can do without moving it.
func TestConformanceOnTheServersClock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		freeze(b)
		for _, c := range constructors {
			t.Run(c.name, func(t *testing.T) {
				ratelimittest.Run(t, ratelimittest.Subject{
					New: func(t testing.TB, limit ratelimit.Limit) ratelimit.Limiter {
						l, err := c.make(b.Client, t.Name()[max(0, len(t.Name())-50):], limit, slow)
						if err != nil {
							t.Fatal(err)
						}
						return l
					},
				})
			})
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}
