package ratelimit

import (
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// TokenBucket holds up to Limit.Requests permits and is refilled evenly, one every
// Limit.Window/Limit.Requests, by the generic cell rate algorithm. A burst of the
// whole limit may pass at once, and what is refilled meanwhile after it: up to
// twice the limit in one window, never more. It takes one number per key. Nothing
// is rounded: after any number of requests, the rate is exact.
//
// If the clock of Redis steps back, nobody is locked out for longer than one
// window. The zero value is not usable; see [NewTokenBucket].
type TokenBucket struct{ remote }

var (
	_ Limiter    = (*TokenBucket)(nil)
	_ LocalTaker = (*TokenBucket)(nil)
	_ Settler    = (*TokenBucket)(nil)
)

// NewTokenBucket returns a limiter over Redis. Limiters of one name and prefix
// share their keys; name is also the Policy of the results. The error names
// everything that is wrong.
func NewTokenBucket(client redis.UniversalClient, name string, limit Limit, cfg Config) (*TokenBucket, error) {
	r, err := newRemote(bucket, scripts.TokenBucket, client, name, limit, cfg)
	if err != nil {
		return nil, err
	}
	return &TokenBucket{r}, nil
}

// With returns a limiter of the same name and keys, but another limit: the plan of
// a customer, a changed configuration. The bucket keeps the time in which it would
// have been full again, at most the new window, and is refilled at the new rate at
// once: half full under one limit is half full under another of the same window.
func (l *TokenBucket) With(limit Limit) (Limiter, error) {
	if err := invalid(l.algorithm.String(), limit.validate(l.algorithm.maxRequests())); err != nil {
		return nil, err
	}
	return &TokenBucket{l.with(limit)}, nil
}
