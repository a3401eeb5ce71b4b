package ratelimit

import (
	"errors"
	"fmt"
	"time"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// Penalty bans a key that goes on when it is denied: for longer and longer, on
// all servers. The zero value bans nobody.
//
// A strike is a denial that Redis decides. A client that hammers makes one in a
// second and server, because denials are remembered; one that waits for RetryAfter
// makes none. During a ban nothing is allowed or counted, and RetryAfter is its
// end. Reset lifts it. A limiter with a Penalty inside [All] is asked on its own.
type Penalty struct {
	Strikes int           // denials that lead to a ban; 0: no bans
	First   time.Duration // length of the first ban, each is twice as long as the last; default one minute
	Longest time.Duration // of a ban; default 24 hours
	Memory  time.Duration // strikes and bans are forgotten after this much time without another; default one hour
}

func (p Penalty) withDefaults() Penalty {
	if p.First == 0 {
		p.First = time.Minute
	}
	if p.Longest == 0 {
		p.Longest = max(p.First, 24*time.Hour)
	}
	if p.Memory == 0 {
		p.Memory = time.Hour
	}
	return p
}

func (p Penalty) validate() error {
	if p == (Penalty{}) {
		return nil
	}
	var errs []error
	if p.Strikes < 1 {
		errs = append(errs, fmt.Errorf("invalid Penalty.Strikes %d: at least 1", p.Strikes))
	}
	p = p.withDefaults()
	for _, d := range []struct {
		name string
		time.Duration
	}{{"First", p.First}, {"Longest", p.Longest}, {"Memory", p.Memory}} {
		if d.Duration < MinWindow || d.Duration > MaxWindow {
			errs = append(errs, fmt.Errorf("invalid Penalty.%s %v: %v to %v", d.name, d.Duration, MinWindow, MaxWindow))
		}
	}
	if p.Longest < p.First {
		errs = append(errs, fmt.Errorf("Penalty.Longest %v is shorter than Penalty.First %v", p.Longest, p.First))
	}
	return errors.Join(errs...)
}

// args are those of limit_penalty.lua, nil without a penalty.
func (p Penalty) args() []any {
	if p.Strikes == 0 {
		return nil
	}
	p = p.withDefaults()
	return []any{p.Strikes, p.First.Microseconds(), p.Longest.Microseconds(), p.Memory.Microseconds()}
}

func (a algorithm) penaltyScript() *scripts.Script {
	switch a {
	case sliding:
		return scripts.SlidingWindowPenalty
	case fixed:
		return scripts.FixedWindowPenalty
	default:
		return scripts.TokenBucketPenalty
	}
}
