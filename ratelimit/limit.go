package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// Limit is a number of requests in a window of time.
// The zero value is no valid limit.
type Limit struct {
	Requests int           // permits per window, from 1; 0 denies everything, see With of the limiters
	Window   time.Duration // MinWindow to MaxWindow, in whole microseconds
}

// Bounds of a [Limit]. A SlidingWindow and a TokenBucket have lower ones of requests,
// 1,000,000 and 2²⁶. Scripts count in whole microseconds below 2⁵³, the integers that Lua's numbers
// hold: MaxWindow added to the time until the year 2235 stays below it.
const (
	MaxRequests = 1 << 50
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

// String returns such as "5 in 15m".
func (l Limit) String() string { return fmt.Sprintf("%d in %s", l.Requests, short(l.Window)) }

// short is how a duration is written without units of zero: 15m, not 15m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// windowPart is the part of keys that keeps limits of different windows apart.
func windowPart(l Limit) string { return strings.Replace(short(l.Window), "µ", "u", 1) + ":" }

func (l Limit) rule() rule { return rule{int64(l.Requests), l.Window.Microseconds()} }

// validate returns what is wrong with a limit of an algorithm: with one that denies
// everything nothing is, unless the limiter has no other.
func (l Limit) validate(b bounds, least int) error {
	var errs []error
	if l.Requests < least || int64(l.Requests) > b.requests {
		errs = append(errs, fmt.Errorf("invalid Limit.Requests %d: %d to %d", l.Requests, least, b.requests))
	}
	if l.Window < MinWindow || l.Window > MaxWindow {
		errs = append(errs, fmt.Errorf("invalid Limit.Window %v: %v to %v", l.Window, MinWindow, MaxWindow))
	} else if l.Window%time.Microsecond != 0 {
		errs = append(errs, fmt.Errorf("invalid Limit.Window %v: not in whole microseconds", l.Window))
	}
	return errors.Join(errs...)
}
