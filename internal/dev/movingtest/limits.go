package movingtest

import (
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/go-chi/httprate"
	httprateredis "github.com/go-chi/httprate-redis"
	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/middleware/stdlib"
	ululestore "github.com/ulule/limiter/v3/drivers/store/redis"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// beside mounts a new limit inside of an old one, until that is removed. At first limit.Shadow is
// true: the old limit decides, and the new one counts what it lets through.
func beside(old func(http.Handler) http.Handler, limit middleware.RateLimit, next http.Handler) http.Handler {
	return old(limit.Handler(next))
}

// httprateBefore is a limit of httprate over Redis.
func httprateBefore(client *redis.Client) func(http.Handler) http.Handler {
	peer := func(r *http.Request) (string, error) {
		host, _, err := net.SplitHostPort(r.RemoteAddr)
		return httprate.CanonicalizeIP(host), err
	}
	return httprate.LimitBy(100, time.Minute, peer, httprateredis.WithRedisLimitCounter(&httprateredis.Config{Client: client}))
}

// httprateAfter is the same limit here.
func httprateAfter(client *redis.Client) (middleware.RateLimit, error) {
	limiter, err := ratelimit.NewSlidingWindow(client, "api", ratelimit.PerMinute(100), ratelimit.Config{})
	return middleware.RateLimit{Limiter: limiter, Key: middleware.ByIP(middleware.PeerIP)}, err
}

// ululeBefore is a limit of ulule/limiter.
func ululeBefore(client *redis.Client) (func(http.Handler) http.Handler, error) {
	rate, err1 := limiter.NewRateFromFormatted("100-M")
	store, err2 := ululestore.NewStoreWithOptions(client, limiter.StoreOptions{Prefix: "api"})
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return stdlib.NewMiddleware(limiter.New(store, rate)).Handler, nil
}

// ululeAfter is the same limit here.
func ululeAfter(client *redis.Client) (middleware.RateLimit, error) {
	limiter, err := ratelimit.NewFixedWindow(client, "api", ratelimit.PerMinute(100), ratelimit.Config{})
	return middleware.RateLimit{Limiter: limiter, Key: middleware.ByIPPrefix(middleware.PeerIP, 128)}, err
}

// bucket is a limit of redis_rate in the terms of a TokenBucket: Burst permits, which come back
// within the time in which Rate gives as many.
func bucket(l redis_rate.Limit) ratelimit.Limit {
	window := time.Duration(l.Burst) * l.Period / time.Duration(l.Rate)
	return ratelimit.Limit{Requests: l.Burst, Window: window.Round(time.Microsecond)}
}

// redisRateAfter is a limit of redis_rate here.
func redisRateAfter(client *redis.Client, l redis_rate.Limit) (*ratelimit.TokenBucket, error) {
	return ratelimit.NewTokenBucket(client, "api", bucket(l), ratelimit.Config{})
}
