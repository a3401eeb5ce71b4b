// Package ratelimit answers one question, the same on every server of a
// fleet: how often may they?
//
// A [Limiter] decides whether a key may spend permits now. [SlidingWindow],
// [FixedWindow] and [TokenBucket] keep their state in Redis and decide in one
// script, one round trip; [Local] keeps it in process. The package knows
// nothing of HTTP.
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
	Requests int           // permits per window, at least 1
	Window   time.Duration // at least one millisecond, in whole microseconds
}

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

// Result is a decision. The zero value is a denial of nothing in particular.
type Result struct {
	Allowed    bool
	Policy     string        // name of the policy that decided; of several, the tightest
	Limit      Limit         // the limit of that policy
	Remaining  int           // permits left right after this decision; never negative
	RetryAfter time.Duration // when the same request could be allowed; 0 if allowed, Never if it never can
	ResetAfter time.Duration // until the full quota is back
	Source     Source        // who decided
}

// Limiter decides whether key may spend cost permits now.
//
// Take spends the permits if it allows the request; a denial spends nothing.
// A cost of 0 looks and spends nothing. A negative cost is [ErrCost], an empty
// key [ErrEmptyKey]. Any other error means that no decision could be made: it
// is never a denial. Implementations are safe for concurrent use.
type Limiter interface {
	Take(ctx context.Context, key string, cost int) (Result, error)
}

var (
	// ErrEmptyKey is returned for an empty key: it would be a bucket that all share.
	ErrEmptyKey = errors.New("ratelimit: empty key")
	// ErrCost is returned for a negative cost.
	ErrCost = errors.New("ratelimit: negative cost")
)
