package ratelimit

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// Source says who made a decision.
type Source uint8

const (
	FromRedis Source = iota // a script ran in Redis
	FromCache               // a denial remembered in process; Redis was not asked
	FromLocal               // decided in process
	FromRule                // a Rule that denies or exempts; nobody was asked
)

// String returns "redis", "cache", "local" or "rule".
func (s Source) String() string {
	switch s {
	case FromRedis:
		return "redis"
	case FromCache:
		return "cache"
	case FromLocal:
		return "local"
	case FromRule:
		return "rule"
	}
	return "unknown"
}

// Origin says where a limit comes from: [FromConstructor], [FromWith], or "rule " and the Key of a
// Rule.
type Origin string

const (
	FromConstructor Origin = ""
	FromWith        Origin = "plan"

	ruleOrigin = "rule "
)

// Rule returns the Key of the Rule that the limit comes from.
func (o Origin) Rule() (key string, ok bool) { return strings.CutPrefix(string(o), ruleOrigin) }

// Result is a decision. The zero value is a denial of nothing in particular.
type Result struct {
	Allowed    bool
	Policy     string        // name of the policy that decided; of several, the tightest
	Limit      Limit         // the limit of that policy
	Remaining  int           // permits left right after this decision; never negative
	RetryAfter time.Duration // when the same request could be allowed; 0 if allowed, Never if it never can

	ResetAfter time.Duration // until the full quota is back
	Source     Source        // who decided
	Origin     Origin        // where the limit comes from
	Banned     bool          // denied by a Penalty

	at      int64    // of the decision, µs since 1970 on the clock of who decided; 0: unknown
	receipt *receipt // for what was spent; nil if nothing was
}

// ResetAt is the time at which the full quota is back, by the clock that decided. All
// decisions of one fixed window give exactly the same time; adding ResetAfter to this
// server's clock would make it wobble. If Redis's clock differs from this server's by more
// than a second, ResetAt is by this server's, to go with the Date of a response.
func (r Result) ResetAt() time.Time {
	if r.at == 0 {
		return time.Now().Add(r.ResetAfter)
	}
	return time.UnixMicro(r.at).Add(r.ResetAfter)
}

// String says what was decided and why, such as
//
//	denied by login-account: 5 in 15m used, limit of rule user:42, asked redis, retry in 40s
//	allowed by api: 7 of 10 in 1m left, asked redis
//
// The Key of a rule may be data of a user.
func (r Result) String() string {
	by := "asked " + r.Source.String()
	if r.Origin != FromConstructor {
		by = "limit of " + string(r.Origin) + ", " + by
	}
	retry := "never"
	if r.RetryAfter != Never {
		retry = "in " + short(upTo(r.RetryAfter))
	}
	switch {
	case r == Result{}:
		return "no decision"
	case r.Allowed && r.Source == FromRule:
		return fmt.Sprintf("allowed by %s: exempt by %s", r.Policy, r.Origin)
	case r.Allowed && r.Limit == Limit{}:
		return "allowed: no limit"
	case r.Allowed:
		return fmt.Sprintf("allowed by %s: %d of %v left, %s", r.Policy, r.Remaining, r.Limit, by)
	case r.Source == FromRule:
		return fmt.Sprintf("denied by %s: by %s, retry %s", r.Policy, r.Origin, retry)
	case r.Limit.Requests == 0 && r.RetryAfter == Never:
		return fmt.Sprintf("denied by %s: its limit is 0", r.Policy)
	case r.RetryAfter == Never:
		return fmt.Sprintf("denied by %s: costs more than %v allow, %s", r.Policy, r.Limit, by)
	case r.Banned:
		return fmt.Sprintf("denied by %s: banned, since it came back too early for %v, %s, retry %s", r.Policy, r.Limit, by, retry)
	case r.Remaining > 0:
		return fmt.Sprintf("denied by %s: %d of %v left, %s, retry %s", r.Policy, r.Remaining, r.Limit, by, retry)
	}
	return fmt.Sprintf("denied by %s: %v used, %s, retry %s", r.Policy, r.Limit, by, retry)
}

// upTo rounds what is to be read by people up: to a second, or a millisecond where that is short.
func upTo(d time.Duration) time.Duration {
	unit := time.Second
	if d < 10*time.Second {
		unit = time.Millisecond
	}
	return (d + unit - 1).Truncate(unit)
}

// receipt is what a Take has spent, and where. It is shared by the copies of its
// Result, so that they are settled once.
type receipt struct {
	owner   any // *engine, *Local or *allOf
	subject string
	rule    rule
	cost    int64
	mark    int64 // see the scripts
	part    int64 // of a sliding window: how many permits have this mark
	members []Result
	settled atomic.Bool
}

func newReceipt(owner any, a algorithm, subject string, r rule, cost int, v verdict, i int64) *receipt {
	rc := &receipt{owner: owner, subject: subject, rule: r, cost: int64(cost)}
	a.mark(rc, v, i)
	return rc
}

// settlement is what settling a Result has to change. It is made once: its receipt is then
// settled, unless it turns out that nothing was done.
type settlement struct {
	*receipt
	delta int64 // permits to spend besides (> 0) or to give back (< 0); 0: nothing is to be done
}

// settlement returns what settling r for cost has to change. Of a request that was allowed
// to look, all of cost is still to be spent.
func (r Result) settlement(owner any, subject string, limit Limit, cost int) (settlement, error) {
	if cost < 0 {
		return settlement{}, fmt.Errorf("%w %d", ErrCost, cost)
	}
	rc := r.receipt
	switch {
	case rc == nil && r.Allowed:
		return settlement{&receipt{owner: owner, subject: subject, rule: limit.rule()}, int64(min(cost, limit.Requests))}, nil
	case rc == nil:
		return settlement{}, nil
	case rc.owner != owner || rc.subject != subject:
		return settlement{}, ErrResult
	case rc.settled.Swap(true):
		return settlement{}, nil
	}
	return settlement{rc, min(int64(cost)-rc.cost, rc.rule.requests)}, nil
}
