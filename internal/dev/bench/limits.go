package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/go-chi/httprate"
	httprateredis "github.com/go-chi/httprate-redis"
	"github.com/go-redis/redis_rate/v10"
	"github.com/throttled/throttled/v2"
	throttledstore "github.com/throttled/throttled/v2/store/goredisstore.v9"
	"github.com/ulule/limiter/v3"
	"github.com/ulule/limiter/v3/drivers/middleware/stdlib"
	ululestore "github.com/ulule/limiter/v3/drivers/store/redis"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// policy is a limit as any library can express it.
type policy struct {
	name     string // distinct among the policies of one entrant
	requests int
	window   time.Duration
	key      key
}

// key is whom a policy counts, in the form that Gatehouse takes and in the one that others do.
type key struct {
	ours   middleware.KeyFunc
	theirs func(*http.Request) string
}

var bySubject = key{
	ours:   func(r *http.Request) (string, error) { return "user:" + r.Header.Get(subjectField), nil },
	theirs: func(r *http.Request) string { return r.Header.Get(subjectField) },
}

// byAddress counts subjects that are IP addresses. The field stands for what a trusted proxy sets.
var byAddress = key{
	ours: middleware.ByIP(func(r *http.Request) (netip.Addr, error) {
		return netip.ParseAddr(r.Header.Get(subjectField))
	}),
	theirs: bySubject.theirs,
}

// limiterLibrary makes middleware that enforces a policy.
type limiterLibrary struct {
	name string
	kind kind
	make func(*env, policy) (wrapper, error)
}

var (
	ululeFixed   = limiterLibrary{"ulule/limiter (fixed window)", peer, newUlule}
	redisRate    = limiterLibrary{"redis_rate (GCRA)", peer, newRedisRate}
	throttledCAS = limiterLibrary{"throttled (GCRA by CAS)", peer, newThrottled}
	chiRate      = limiterLibrary{"httprate + httprate-redis", peer, newHTTPRate}

	gatehouseSliding = limiterLibrary{"Gatehouse sliding window", ours, gatehouseLimit(newSliding)}
	gatehouseFixed   = limiterLibrary{"Gatehouse fixed window", ours, gatehouseLimit(newFixed)}
	gatehouseBucket  = limiterLibrary{"Gatehouse token bucket", ours, gatehouseLimit(newBucket)}
)

var limiterLibraries = []limiterLibrary{
	ululeFixed, redisRate, throttledCAS, chiRate, rueidisFixed,
	gatehouseSliding, gatehouseFixed, gatehouseBucket,
}

// newUlule follows the README of ulule/limiter, but for the error handler: the default panics.
func newUlule(e *env, p policy) (wrapper, error) {
	store, err := ululestore.NewStoreWithOptions(e.goredis(), limiter.StoreOptions{Prefix: p.name})
	if err != nil {
		return nil, err
	}
	return stdlib.NewMiddleware(
		limiter.New(store, limiter.Rate{Period: p.window, Limit: int64(p.requests)}),
		stdlib.WithKeyGetter(p.key.theirs),
		stdlib.WithErrorHandler(func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}),
	).Handler, nil
}

// newRedisRate is the middleware that redis_rate leaves to its users. It sets the fields that the
// other ones set.
func newRedisRate(e *env, p policy) (wrapper, error) {
	rl := redis_rate.NewLimiter(e.goredis())
	limit := redis_rate.Limit{Rate: p.requests, Burst: p.requests, Period: p.window}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			res, err := rl.Allow(r.Context(), p.name+":"+p.key.theirs(r), limit)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			h := w.Header()
			h.Set("X-RateLimit-Limit", strconv.Itoa(limit.Burst))
			h.Set("X-RateLimit-Remaining", strconv.Itoa(res.Remaining))
			h.Set("X-RateLimit-Reset", strconv.FormatInt(time.Now().Add(res.ResetAfter).Unix(), 10))
			if res.Allowed == 0 {
				h.Set("Retry-After", strconv.Itoa(int(res.RetryAfter/time.Second)+1))
				http.Error(w, "Too Many Requests", http.StatusTooManyRequests)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}

// newThrottled follows the README of throttled, in the form with contexts.
func newThrottled(e *env, p policy) (wrapper, error) {
	store, err := throttledstore.NewCtx(e.goredis(), p.name+":")
	if err != nil {
		return nil, err
	}
	rl, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{
		MaxRate: throttled.PerDuration(p.requests, p.window), MaxBurst: p.requests - 1,
	})
	if err != nil {
		return nil, err
	}
	h := throttled.HTTPRateLimiterCtx{RateLimiter: rl, VaryBy: varyBy(p.key.theirs)}
	return h.RateLimit, nil
}

// varyBy spares throttled its own VaryBy, which builds keys in a buffer.
type varyBy func(*http.Request) string

func (f varyBy) Key(r *http.Request) string { return f(r) }

// newHTTPRate follows the README of httprate-redis, with two differences. The client is the one
// that all have, not the ten connections it makes for itself. And there is no fallback: it would
// go on counting in process after the first timeout.
func newHTTPRate(e *env, p policy) (wrapper, error) {
	counter, err := httprateredis.NewRedisLimitCounter(&httprateredis.Config{
		Client: e.goredis(), PrefixKey: p.name, WindowLength: p.window, FallbackDisabled: true,
	})
	if err != nil {
		return nil, err
	}
	byKey := func(r *http.Request) (string, error) { return p.key.theirs(r), nil }
	return httprate.LimitBy(p.requests, p.window, byKey, httprate.WithLimitCounter(counter)), nil
}

// newLimiter is a constructor of one of our limiters.
type newLimiter func(*env, policy) (ratelimit.Limiter, error)

func newSliding(e *env, p policy) (ratelimit.Limiter, error) {
	return ratelimit.NewSlidingWindow(e.goredis(), p.name, p.limit(), ratelimit.Config{})
}

func newFixed(e *env, p policy) (ratelimit.Limiter, error) {
	return ratelimit.NewFixedWindow(e.goredis(), p.name, p.limit(), ratelimit.Config{})
}

func newBucket(e *env, p policy) (ratelimit.Limiter, error) {
	return ratelimit.NewTokenBucket(e.goredis(), p.name, p.limit(), ratelimit.Config{})
}

func (p policy) limit() ratelimit.Limit {
	return ratelimit.Limit{Requests: p.requests, Window: p.window}
}

// gatehouseLimit refuses what Redis did not decide, so that a decision in process, which costs
// next to nothing, is counted as the failure that it is here.
func gatehouseLimit(limiter newLimiter) func(*env, policy) (wrapper, error) {
	return func(e *env, p policy) (wrapper, error) {
		l, err := limiter(e, p)
		if err != nil {
			return nil, err
		}
		return middleware.RateLimit{Limiter: l, Key: p.key.ours, OnError: middleware.FailClosed}.Handler, nil
	}
}

// limits returns the entrants of a row about limits. Each subject has spent a number of requests
// beforehand.
func limits(p policy, spent int, libraries ...limiterLibrary) []entrant {
	var entrants []entrant
	for _, lib := range libraries {
		entrants = append(entrants, entrant{name: lib.name, kind: lib.kind, enter: func(e *env) ([]caller, error) {
			wrap, err := lib.make(e, p)
			if err != nil {
				return nil, err
			}
			h, headers := wrap(answer), subjects(e.subjects)
			if err := e.spend(h, headers, spent); err != nil {
				return nil, err
			}
			return e.callers(h, headers, false), nil
		}})
	}
	return entrants
}

// fullLimits returns the entrants of a row that looks at what a limit keeps when all of it is
// used. Its subjects are addresses, since these are what most limits count by: names count, too.
func fullLimits(p policy, libraries ...limiterLibrary) []entrant {
	var entrants []entrant
	for _, lib := range libraries {
		entrants = append(entrants, entrant{name: lib.name, kind: lib.kind, enter: func(e *env) ([]caller, error) {
			wrap, err := lib.make(e, p)
			if err != nil {
				return nil, err
			}
			return nil, e.spend(wrap(answer), addresses(e.subjects), p.requests)
		}})
	}
	return entrants
}

// spend sends a number of requests of every subject.
func (e *env) spend(h http.Handler, headers []http.Header, requests int) error {
	for range requests {
		err := e.each(h, headers, func(_ int, r *response) error {
			if r.status != http.StatusOK && r.status != http.StatusTooManyRequests {
				return fmt.Errorf("status %d", r.status)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
