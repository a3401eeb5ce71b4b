// Package ratelimit answers one question, the same on every server of a
// fleet: how often may they?
//
// A [Limiter] decides whether a key may spend permits now. [SlidingWindow],
// [FixedWindow], [TokenBucket] and [Quota] keep their state in Redis (7.0 or later) and
// decide in one script, one round trip; [Local] keeps it in process. The package
// knows nothing of HTTP.
//
// Hooks are to be added to a client before it is given to a limiter: those that
// come later do not see all of its commands.
package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// Limiter decides whether key may spend cost permits now.
//
// Take spends the permits if it allows the request; a denial spends nothing.
// A cost of 0 looks: it answers as for a cost of 1 and spends nothing. A negative
// cost is [ErrCost], an empty key [ErrEmptyKey], a context that is done its own
// error. [ErrUnavailable] means that no decision could be made: it is never a
// denial. Implementations are safe for concurrent use.
type Limiter interface {
	Take(ctx context.Context, key string, cost int) (Result, error)
}

// LocalTaker is a Limiter that can also decide in process, for when Redis cannot:
// by the same algorithm and limit, or this server's share of it (see
// [Config.Servers]), from nothing but what this process itself has let through
// while it was deciding. Its errors are those of Take but for [ErrUnavailable].
type LocalTaker interface {
	TakeLocally(key string, cost int) (Result, error)
}

// Resetter is a Limiter that can forget what key has spent, and lift its ban: here at once,
// on servers that remember a denial of it within a second.
type Resetter interface {
	Reset(ctx context.Context, key string) error
}

// Named is a Limiter with a name, the Policy of its results, and a limit.
type Named interface {
	Name() string
	Limit() Limit
}

// Adjustable is a Limiter of which there can be one with another limit: see With of each.
type Adjustable[L Limiter] interface {
	With(Limit) (L, error)
}

// Settler is a Limiter that can change afterwards what a Take has spent: because
// the cost is known only now (bytes sent, rows read), or because the request is
// not to be counted after all (only failed logins are).
//
// Settle changes what the Take of key that returned r has spent to cost. If that is more,
// the difference is spent without asking, up to a limit's worth: Remaining is never below
// 0, and what follows is denied. If it is less, the difference is given back, as far as it
// still counts against key, and never to another window. A Result is settled once, further
// calls do nothing, and nor do calls with the Result of a denial. Refund is Settle with a
// cost of 0.
//
// Work that is done is paid for: of ctx only the values are used, and Config.Timeout bounds
// the call, so that a client who hangs up is charged all the same. After an error that says
// that nothing was done, such as while Redis is not asked, Settle can be called again; after
// a timeout it may have been done, and is not done twice. A negative cost is [ErrCost], a
// result of another limiter or key is [ErrResult].
type Settler interface {
	Settle(ctx context.Context, key string, r Result, cost int) error
	Refund(ctx context.Context, key string, r Result) error
}

var (
	// ErrEmptyKey is returned for an empty key: it would be a bucket that all share.
	ErrEmptyKey = errors.New("ratelimit: empty key")
	// ErrCost is returned for a negative cost, and for one that a limit would allow but
	// that would keep Redis from others for too long: above 10,000 for a SlidingWindow.
	ErrCost = errors.New("ratelimit: invalid cost")
	// ErrResult is returned for the settling of a Result that another limiter or key
	// has given.
	ErrResult = errors.New("ratelimit: result of another limiter or key")
	// ErrUnavailable is returned when Redis could not decide: it did not answer in
	// time, could not be reached, or answered with an error, which is wrapped too.
	ErrUnavailable = errors.New("ratelimit: no decision")
)

func checkTake(key string, cost int) error {
	if key == "" {
		return ErrEmptyKey
	}
	if cost < 0 {
		return fmt.Errorf("%w %d", ErrCost, cost)
	}
	return nil
}

// Unlimited is a Limiter that allows everything, without asking Redis and without a limit to
// report: the plan of customers who have none.
var Unlimited Limiter = unlimited{}

type unlimited struct{}

var (
	_ LocalTaker = unlimited{}
	_ Settler    = unlimited{}
	_ Resetter   = unlimited{}
)

func (unlimited) Take(ctx context.Context, key string, cost int) (Result, error) {
	if err := checkTake(key, cost); err != nil {
		return Result{}, err
	}
	return Result{Allowed: true, Remaining: math.MaxInt, Source: FromLocal}, ctx.Err()
}

func (u unlimited) TakeLocally(key string, cost int) (Result, error) {
	return u.Take(context.Background(), key, cost)
}

func (unlimited) Settle(_ context.Context, key string, _ Result, cost int) error {
	return checkTake(key, cost)
}

func (u unlimited) Refund(ctx context.Context, key string, r Result) error {
	return u.Settle(ctx, key, r, 0)
}

func (unlimited) Reset(_ context.Context, key string) error { return checkTake(key, 0) }
