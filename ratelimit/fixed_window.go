package ratelimit

import (
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// FixedWindow counts requests in windows that begin with the first request and
// last Limit.Window, rounded up to whole milliseconds (Redis keeps a key for at
// least two, so a window of 1ms lasts 2). Within one window it is exact. Across
// the boundary of two, up to twice the limit may pass in a short time. It takes
// one small number per key, and the least of Redis's time.
//
// If the clock of Redis steps back, nobody is locked out for longer than one
// window. The zero value is not usable; see [NewFixedWindow].
type FixedWindow struct{ remote }

var (
	_ Limiter    = (*FixedWindow)(nil)
	_ LocalTaker = (*FixedWindow)(nil)
	_ Settler    = (*FixedWindow)(nil)
)

// NewFixedWindow returns a limiter over Redis. Limiters of one name and prefix
// share their keys; name is also the Policy of the results. The error names
// everything that is wrong.
func NewFixedWindow(client redis.UniversalClient, name string, limit Limit, cfg Config) (*FixedWindow, error) {
	r, err := newRemote(fixed, scripts.FixedWindow, client, name, limit, cfg)
	if err != nil {
		return nil, err
	}
	return &FixedWindow{r}, nil
}

// With returns a limiter of the same name and keys, but another limit: the plan of
// a customer, a changed configuration. What has been spent stays spent: after a
// lower limit Remaining is 0, after a higher one there is room at once. A window
// under way keeps its end, unless that is further off than the new window is long.
func (l *FixedWindow) With(limit Limit) (Limiter, error) {
	if err := invalid(l.algorithm.String(), limit.validate(l.algorithm.maxRequests())); err != nil {
		return nil, err
	}
	return &FixedWindow{l.with(limit)}, nil
}
