package ratelimit

import (
	"math"
	"sync/atomic"
	"time"
)

// The way from rules to the decisions of limiters, which ask nobody: Rules keeps a snapshot, and
// each decision looks into it.

// snapshot is the rules that a process obeys. It does not change.
type snapshot struct {
	version string
	invalid int // entries that could not be read
	of      map[string]*policyRules
}

// policyRules are the rules of a policy.
type policyRules struct {
	all *ruled            // nil: none
	of  map[string]*ruled // by subject
}

// ruled is a rule in force.
type ruled struct {
	Rule
	rules  *Rules
	origin Origin
	until  int64 // by Redis's clock, µs since 1970; 0: for good
	// made is what the rule makes of the limiter that asked last.
	made atomic.Pointer[remote]
}

func (s *snapshot) add(r *Rules, rule Rule, subject string) {
	p := s.of[rule.Policy]
	if p == nil {
		p = &policyRules{of: make(map[string]*ruled)}
		s.of[rule.Policy] = p
	}
	made := &ruled{Rule: rule, rules: r, origin: Origin(ruleOrigin + rule.Key)}
	if !rule.Until.IsZero() {
		made.until = rule.Until.UnixMicro()
	}
	if rule.Key == forAll {
		p.all = made
	} else {
		p.of[subject] = made
	}
}

func (s *snapshot) len() (n int) {
	for _, p := range s.of {
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
	p := r.snapshot.Load().of[policy]
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
	return r != nil && (r.until == 0 || r.rules.now() < r.until)
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
	if r.until != 0 {
		res.RetryAfter = time.Duration(max(1, r.until-r.rules.now())) * time.Microsecond
		res.ResetAfter = res.RetryAfter
	}
	return res
}
