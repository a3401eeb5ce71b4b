// Package ratelimit answers one question, the same on every server of a
// fleet: how often may they?
//
// A [Limiter] decides whether a key may spend permits now. [SlidingWindow],
// [FixedWindow] and [TokenBucket] keep their state in Redis (7.0 or later) and
// decide in one script, one round trip; [Local] keeps it in process. The package
// knows nothing of HTTP.
//
// Hooks are to be added to a client before it is given to a limiter: those that
// come later do not see all of its commands.
package ratelimit

import (
	"context"
	"errors"
	"math"
	"time"
)

// Limit is a number of requests in a window of time.
// The zero value is not a valid limit.
type Limit struct {
	Requests int           // permits per window, 1 to MaxRequests
	Window   time.Duration // MinWindow to MaxWindow, in whole microseconds
}

// Bounds of a [Limit]. Scripts count in whole microseconds below 2^53, the
// integers that Lua's numbers hold: the square of MaxRequests, and MaxWindow
// added to the time until the year 2235, stay below it.
const (
	MaxRequests = 1 << 26
	MinWindow   = time.Millisecond
	MaxWindow   = 10 * 365 * 24 * time.Hour
)

// PerSecond is n requests a second.
func PerSecond(n int) Limit { return Limit{n, time.Second} }

// PerMinute is n requests a minute.
func PerMinute(n int) Limit { return Limit{n, time.Minute} }

// PerHour is n requests an hour.
func PerHour(n int) Limit { return Limit{n, time.Hour} }

// PerDay is n requests in 24 hours.
func PerDay(n int) Limit { return Limit{n, 24 * time.Hour} }

// Never is the RetryAfter of a request that can never be allowed, because its
// cost exceeds the limit.
const Never time.Duration = math.MaxInt64

// Source tells who made a decision.
type Source uint8

const (
	FromRedis Source = iota // a script ran in Redis
	FromCache               // a denial remembered in process; Redis was not asked
	FromLocal               // decided in process
)

// String returns "redis", "cache" or "local".
func (s Source) String() string {
	switch s {
	case FromRedis:
		return "redis"
	case FromCache:
		return "cache"
	case FromLocal:
		return "local"
	}
	return "unknown"
}

// Result is a decision. The zero value is a denial of nothing in particular.
type Result struct {
	Allowed    bool
	Policy     string        // name of the policy that decided; of several, the tightest
	Limit      Limit         // the limit of that policy
	Remaining  int           // permits left right after this decision; never negative
	RetryAfter time.Duration // when the same request could be allowed; 0 if allowed, Never if it never can
	ResetAfter time.Duration // until the full quota is back
	Source     Source        // who decided

	at      int64    // of the decision, µs since 1970 on the clock of who decided; 0: unknown
	receipt *receipt // for what was spent; nil if nothing was
}

// ResetAt is the time at which the full quota is back, on the clock of whoever
// decided. All decisions of one fixed window give exactly the same time; adding
// ResetAfter to a clock of one's own would make it wobble.
func (r Result) ResetAt() time.Time {
	if r.at == 0 {
		return time.Now().Add(r.ResetAfter)
	}
	return time.UnixMicro(r.at).Add(r.ResetAfter)
}

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

// Settler is a Limiter that can change afterwards what a Take has spent: because
// the cost is known only now (bytes sent, rows read), or because the request is
// not to be counted after all (only failed logins are).
//
// Settle makes cost the permits that the Take of key which returned r has spent.
// More are spent without asking: up to a limit's worth, Remaining is never below
// 0, and what follows is denied. Fewer: the difference is given back, as far as it
// still counts against key; never to another window, and never twice: a Result is
// settled once, further calls do nothing. Nor do those with the Result of a
// denial. Refund is Settle with a cost of 0. A negative cost is [ErrCost], a
// result of another limiter or key is [ErrResult].
type Settler interface {
	Settle(ctx context.Context, key string, r Result, cost int) error
	Refund(ctx context.Context, key string, r Result) error
}

var (
	// ErrEmptyKey is returned for an empty key: it would be a bucket that all share.
	ErrEmptyKey = errors.New("ratelimit: empty key")
	// ErrCost is returned for a negative cost.
	ErrCost = errors.New("ratelimit: negative cost")
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
		return ErrCost
	}
	return nil
}
