package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// Penalty bans keys that do not wait, for longer and longer, on all servers. The zero value
// bans none.
//
// A strike is a denial of a key that was denied before and came back before its RetryAfter
// was over. A client that waits makes none. Requests within half a second of a denial, or
// within half of its RetryAfter if that is less, were under way already and make none
// either; so there is at most one strike in that time, however many requests come. During a
// ban nothing is allowed or counted, and RetryAfter is its end. Reset lifts it. A request that waits
// for others to succeed, as with FailuresOnly of package middleware, makes none. Strikes and
// bans hold only under the limit that they came from. [All] asks a limiter with a Penalty on
// its own.
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

// inFlight is how long requests may be under way that began before a denial was answered.
const inFlight = 500 * time.Millisecond

var penaltyScript = scripts.Get("limit/penalty.lua")

// askWithPenalty is ask with bans. impatient says that the key came back before its RetryAfter
// was over, told that the client learns of a denial.
func (l *remote) askWithPenalty(ctx context.Context, subject string, cost int, impatient, told bool) (verdict, error) {
	p := l.config.Penalty.withDefaults()
	how := ""
	switch {
	case !told:
		how = "untold"
	case impatient:
		how = "impatient"
	}
	args := []any{
		l.requests, l.ttl(), l.args.window, cost, 1, l.algorithm.word(),
		p.Strikes, p.First.Microseconds(), p.Longest.Microseconds(), p.Memory.Microseconds(), how,
	}
	if l.clock != nil {
		args = append(args, l.clock())
	}
	return unpack(l.sender.Run(ctx, penaltyScript, []string{l.redisKey(subject), l.recordKey(subject)}, args...))
}
