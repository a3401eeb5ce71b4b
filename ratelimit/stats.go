package ratelimit

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/observe"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// Stats counts what a limiter has decided since it was made, together with what With made of it,
// in this process.
type Stats struct {
	Policy string // its name
	Limit  Limit  // its own, that no plan and no rule has changed

	Allowed By
	Denied  By     // by the limit
	Banned  By     // by a Penalty
	Errors  uint64 // calls that returned an ErrUnavailable, or whose deadline came first
	Invalid uint64 // calls that returned another error: for an empty key, a cost, or a context that was cancelled

	// Silent is how many servers of its client are not asked for now, as they did not answer. One
	// that nobody has tried for a minute is not counted.
	Silent int
}

// By counts by who has decided, see [Source].
type By struct{ Redis, Cache, Local, Rule uint64 }

// StatsOf returns the Stats of limiters; of an [All], those of each that it consists of, which count
// what they were asked: of a denial that is who has denied, and perhaps others. A Take with a cost of 0
// counts, too, and so does each try of [Wait]. Limiters of other packages have none.
func StatsOf(limiters ...Limiter) (all []Stats) {
	for _, c := range countedOf(limiters) {
		all = append(all, c.Stats())
	}
	return all
}

// Observe calls f whenever Redis has been asked for a decision, with how long that took, and its
// error, until stop is called. It does so at the end of a Take, on its goroutine: f must not block.
// What needed no Redis costs nothing. Limiters of other packages are passed over.
func Observe(f func(policy string, took time.Duration, err error), limiters ...Limiter) (stop func()) {
	var stops []func()
	for _, c := range countedOf(limiters) {
		stops = append(stops, c.observed().Add(f))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// counted is a limiter that counts.
type counted interface {
	Stats() Stats
	observed() *observe.List[observer]
}

func countedOf(limiters []Limiter) (all []counted) {
	for _, l := range limiters {
		switch l := l.(type) {
		case *allOf:
			all = append(all, countedOf(l.limiters)...)
		case *keyed:
			all = append(all, countedOf([]Limiter{l.limiter})...)
		case counted:
			all = append(all, l)
		}
	}
	return all
}

type observer = func(policy string, took time.Duration, err error)

// tally is where the decisions of a limiter are counted, and told.
type tally struct {
	policy string
	own    Limit          // of the constructor
	hook   func(Decision) // Config.OnDecision
	counts [3][FromRule + 1]atomic.Uint64
	asked  observe.List[observer]

	errors, invalid atomic.Uint64
}

const (
	allowed = iota
	denied
	banned
)

func (t *tally) observed() *observe.List[observer] { return &t.asked }

// begin is when a decision begins, for end; the zero Time if nobody is told.
func (t *tally) begin() (now time.Time) {
	if t.hook != nil {
		now = time.Now()
	}
	return now
}

// end counts a decision, and tells of it.
func (t *tally) end(began time.Time, key string, cost int, res *Result, err error) {
	t.count(res, err)
	if t.hook != nil {
		t.hook(Decision{Policy: t.policy, Key: key, Cost: cost, Result: *res, Err: err, Took: time.Since(began)})
	}
}

func (t *tally) count(res *Result, err error) {
	outcome := denied
	switch {
	case errors.Is(err, ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		t.errors.Add(1)
		return
	case err != nil:
		t.invalid.Add(1)
		return
	case res.Allowed:
		outcome = allowed
	case res.Banned:
		outcome = banned
	}
	t.counts[outcome][res.Source].Add(1)
}

// asks is when Redis is asked, for answered; the zero Time if nobody measures.
func (t *tally) asks() (now time.Time) {
	if t.asked.Any() {
		now = time.Now()
	}
	return now
}

// answered tells those who measure that Redis has answered, or has not.
func (t *tally) answered(asked time.Time, err error) {
	if !asked.IsZero() && !errors.Is(err, roundtrip.ErrNotAsked) {
		took := time.Since(asked)
		t.asked.Each(func(f observer) { f(t.policy, took, err) })
	}
}

func (t *tally) stats() Stats {
	by := func(outcome int) By {
		c := &t.counts[outcome]
		return By{Redis: c[FromRedis].Load(), Cache: c[FromCache].Load(), Local: c[FromLocal].Load(), Rule: c[FromRule].Load()}
	}
	return Stats{
		Policy: t.policy, Limit: t.own, Allowed: by(allowed), Denied: by(denied), Banned: by(banned),
		Errors: t.errors.Load(), Invalid: t.invalid.Load(),
	}
}

// Stats may be called at any time. Decisions that were made in process while Redis was away are
// among them.
func (l *remote) Stats() Stats {
	s := l.stats()
	s.Silent = l.sender.Silent()
	return s
}

// Stats may be called at any time.
func (l *Local) Stats() Stats { return l.stats() }

// Stats may be called at any time. A Wait counts once, as what it came to.
func (c *Concurrency) Stats() Stats {
	s := c.tally.stats()
	s.Silent = c.sender.Silent()
	return s
}
