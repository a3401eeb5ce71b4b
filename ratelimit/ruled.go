package ratelimit

import (
	"math"
	"sync/atomic"
	"time"
)

// The way from rules to the decisions of limiters, which ask nobody: Rules keeps a snapshot, and
// each decision looks into it.

// snapshots holds the current snapshot; nil: none was loaded.
type snapshots = atomic.Pointer[snapshot]

// snapshot is the rules of each policy. It does not change.
type snapshot map[string]*policyRules

type policyRules struct {
	all *ruled            // nil: none
	of  map[string]*ruled // by subject
}

// ruled is a rule in force.
type ruled struct {
	Rule
	origin Origin
	end    time.Time // by this process's clock; zero: never
	// made is what the rule makes of the limiter that asked last.
	made atomic.Pointer[remote]
}

func (s snapshot) add(rule Rule, subject string, end time.Time) {
	p := s[rule.Policy]
	if p == nil {
		p = &policyRules{of: make(map[string]*ruled)}
		s[rule.Policy] = p
	}
	r := &ruled{Rule: rule, origin: Origin(ruleOrigin + rule.Key), end: end}
	if rule.Key == forAll {
		p.all = r
	} else {
		p.of[subject] = r
	}
}

func (s snapshot) len() (n int) {
	for _, p := range s {
		n += len(p.of)
		if p.all != nil {
			n++
		}
	}
	return n
}

// find returns the rule for a subject of a policy, or nil. planned says that With has given the
// subject its limit.
func (r *Rules) find(policy, subject string, planned bool) *ruled {
	if r == nil {
		return nil
	}
	set := r.snapshot.Load()
	if set == nil {
		return nil
	}
	p := (*set)[policy]
	switch {
	case p == nil:
		return nil
	case p.of[subject].holds():
		return p.of[subject]
	case !planned && p.all.holds():
		return p.all
	}
	return nil
}

func (r *ruled) holds() bool {
	return r != nil && (r.end.IsZero() || time.Now().Before(r.end))
}

// ruled returns the limiter that decides for a subject, by the rules; or nil, and the rule that
// decides without one.
func (l *remote) ruled(subject string) (*remote, *ruled) {
	rule := l.config.Rules.find(l.name, subject, l.origin == FromWith)
	switch {
	case rule == nil || rule.Mode == Enforce && int64(rule.Requests) > l.algorithm.bounds().requests:
		return l, nil
	case rule.Mode != Enforce:
		return nil, rule
	}
	if made := rule.made.Load(); made != nil && made.engine == l.engine && made.limit.Window == l.limit.Window {
		return made, nil
	}
	made := l.remote(Limit{rule.Requests, l.limit.Window}, rule.origin)
	rule.made.Store(&made)
	return &made, nil
}

// result is the denial or the exemption by a rule of what has a limit otherwise.
func (r *ruled) result(l Limit) Result {
	res := Result{Policy: r.Policy, Source: FromRule, Origin: r.origin}
	if r.Mode == Exempt {
		res.Allowed, res.Remaining = true, math.MaxInt
		return res
	}
	res.Limit, res.RetryAfter = l, Never
	if !r.end.IsZero() {
		res.RetryAfter = max(time.Microsecond, time.Until(r.end))
		res.ResetAfter = res.RetryAfter
	}
	return res
}
