package ratelimit

import (
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// SlidingWindow allows at most Limit.Requests in every half-open trailing window
// (now-Window, now], exactly, however many servers ask at once. It remembers each
// permit: a key takes about 20 bytes per permit up to 128 of them, and 120 bytes
// beyond. It is the one to take unless that is too much.
//
// If the clock of Redis steps back, nobody is locked out for longer than one
// window; if it steps forward, everybody gets at most one fresh window. The clocks
// of the servers do not matter. The zero value is not usable; see [NewSlidingWindow].
type SlidingWindow struct{ remote }

var (
	_ Limiter    = (*SlidingWindow)(nil)
	_ LocalTaker = (*SlidingWindow)(nil)
	_ Settler    = (*SlidingWindow)(nil)
)

// NewSlidingWindow returns a limiter over Redis. Limiters of one name and prefix
// share their keys; name is also the Policy of the results. The limit may have at
// most 1,000,000 requests. The error names everything that is wrong.
func NewSlidingWindow(client redis.UniversalClient, name string, limit Limit, cfg Config) (*SlidingWindow, error) {
	r, err := newRemote(sliding, scripts.SlidingWindow, client, name, limit, cfg)
	if err != nil {
		return nil, err
	}
	return &SlidingWindow{r}, nil
}

// With returns a limiter of the same name and keys, but another limit: the plan of
// a customer, a changed configuration. What has been spent stays spent: after a
// lower limit Remaining is 0, after a higher one there is room at once. Of two
// windows over one key, what the shorter one has let go is gone for the longer.
func (l *SlidingWindow) With(limit Limit) (Limiter, error) {
	if err := invalid(l.algorithm.String(), limit.validate(l.algorithm.maxRequests())); err != nil {
		return nil, err
	}
	return &SlidingWindow{l.with(limit)}, nil
}
