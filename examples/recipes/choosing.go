package recipes

import (
	"errors"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// oneOfEach makes a limiter of each kind, each for what it suits.
func oneOfEach(client redis.UniversalClient, berlin *time.Location) error {
	cfg := ratelimit.Config{} // shared: prefix, timeout, rules, hooks
	_, err1 := ratelimit.NewSlidingWindow(client, "login", ratelimit.Limit{Requests: 5, Window: 15 * time.Minute}, cfg)
	_, err2 := ratelimit.NewFixedWindow(client, "exports", ratelimit.PerDay(50_000), cfg)
	_, err3 := ratelimit.NewTokenBucket(client, "api", ratelimit.PerSecond(20), cfg)
	_, err4 := ratelimit.NewQuota(client, "plan", 1_000_000, ratelimit.Month, berlin, cfg)
	_, err5 := ratelimit.NewConcurrency(client, "reports", 4, cfg)
	_, err6 := ratelimit.NewLocal("health", ratelimit.PerSecond(5), cfg)
	return errors.Join(err1, err2, err3, err4, err5, err6)
}

// evenAndCapped allows an even 10 a second with bursts of 10, and no more than 10,000 in any day. A
// denial of one spends nothing of the other.
func evenAndCapped(client redis.UniversalClient) (ratelimit.Limiter, error) {
	second, err1 := ratelimit.NewTokenBucket(client, "api-second", ratelimit.PerSecond(10), ratelimit.Config{})
	day, err2 := ratelimit.NewSlidingWindow(client, "api-day", ratelimit.PerDay(10_000), ratelimit.Config{})
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return ratelimit.All(second, day)
}
