package ratelimit

import (
	"context"
	"time"
)

// Local decides in process, by the sliding window. It is for development, for
// tests, and for what one server alone can decide; it is also what TakeLocally
// of the other limiters decides by, with their algorithm. It remembers at most
// [Config.MaxKeys] keys; an entry that has to make room is one whose quota is
// back sooner than that of others, but it is forgotten all the same.
//
// Local goes by the monotonic clock: setting the system's clock changes no
// decision. It works inside testing/synctest if it was made there. Of Config it
// uses MaxKeys, KeySecret, Rules and OnDecision. The zero value is not usable; see [NewLocal].
type Local struct {
	limit  Limit
	origin Origin
	*localMemory
}

// localMemory is what the Locals that With returns have in common.
type localMemory struct {
	algorithm algorithm
	rules     *Rules
	*tally
	subjects
	buckets *bounded[*localBucket]
	start   time.Time
	clock   func() int64 // tests only
}

var (
	_ Limiter    = (*Local)(nil)
	_ LocalTaker = (*Local)(nil)
	_ Settler    = (*Local)(nil)
	_ Resetter   = (*Local)(nil)
	_ Named      = (*Local)(nil)
)

// NewLocal returns a Local. name is the Policy of its results.
func NewLocal(name string, limit Limit, cfg Config) (*Local, error) {
	if err := invalid("local", validateName(name), limit.validate(slidingWindow{}.bounds(), 1), cfg.validate(),
		cfg.ignores("Prefix", "Timeout", "Servers", "Penalty", "Lease", "Logger")); err != nil {
		return nil, err
	}
	cfg.Rules.include(name, slidingWindow{}.bounds().requests)
	return newLocal(slidingWindow{}, name, limit, cfg), nil
}

func newLocal(a algorithm, name string, limit Limit, cfg Config) *Local {
	cfg = cfg.withDefaults()
	return &Local{limit, FromConstructor, &localMemory{
		algorithm: a, rules: cfg.Rules,
		tally:    &tally{policy: name, own: limit, hook: cfg.OnDecision},
		subjects: newSubjects(cfg.KeySecret),
		buckets:  newBounded[*localBucket](cfg.MaxKeys),
		start:    time.Now(),
	}}
}

// Take decides. ctx is only asked whether it is done already.
func (l *Local) Take(ctx context.Context, key string, cost int) (Result, error) {
	began := l.begin()
	var (
		res Result
		err = ctx.Err()
	)
	if err == nil {
		res, err = l.decide(key, cost)
	}
	l.end(began, key, cost, &res, err)
	return res, err
}

// TakeLocally is Take without a context.
func (l *Local) TakeLocally(key string, cost int) (Result, error) {
	return l.Take(context.Background(), key, cost)
}

func (l *Local) decide(key string, cost int) (Result, error) {
	if err := checkTake(key, cost); err != nil {
		return Result{}, err
	}
	rule := l.rules.find(l.policy, l.subject(key), l.origin == FromWith)
	switch {
	case rule == nil:
		return l.take(l.limit, l.origin, key, cost)
	case rule.Mode != Enforce:
		return rule.result(l.limit), nil
	}
	return l.take(Limit{rule.Requests, l.limit.Window}, rule.origin, key, cost)
}

// take decides by a limit, of a key and a cost that are possible.
func (l *Local) take(limit Limit, origin Origin, key string, cost int) (Result, error) {
	if limit.Requests == 0 {
		return Result{Policy: l.policy, Limit: limit, RetryAfter: Never, Source: FromLocal, Origin: origin}, nil
	}
	d := demand{cost: int64(cost), n: 1, now: l.now()}
	subject := l.subject(key)
	s := l.buckets.lock(subject)
	b := s.m[subject]
	known := b != nil
	if !known {
		b = &localBucket{state: l.algorithm.newState()}
	}
	v := b.decide(limit.rule(), d)
	b.full = d.now + v.reset
	if !known && v.granted*d.cost > 0 {
		l.buckets.put(s, subject, b)
	}
	s.mu.Unlock()
	res := v.result(0, d, limit, l.policy, FromLocal)
	res.Origin = origin
	if res.Allowed && cost > 0 {
		res.receipt = newReceipt(l.localMemory, l.algorithm, subject, limit.rule(), cost, v, 0)
	}
	return res, nil
}

// Name returns the name that the Local was made with, the Policy of its results.
func (l *Local) Name() string { return l.policy }

// Limit returns the limit.
func (l *Local) Limit() Limit { return l.limit }

// With returns a Local of the same name and memory, but another limit, see
// [SlidingWindow.With].
func (l *Local) With(limit Limit) (*Local, error) {
	if err := invalid("local", limit.validate(l.algorithm.bounds(), 0)); err != nil {
		return nil, err
	}
	return &Local{limit, FromWith, l.localMemory}, nil
}

// Settle changes what the Take of key that returned r has spent to cost: see [Settler].
func (l *Local) Settle(_ context.Context, key string, r Result, cost int) error {
	if key == "" {
		return ErrEmptyKey
	}
	if r.Source == FromRule {
		return checkTake(key, cost) // nothing was counted
	}
	subject := l.subject(key)
	st, err := r.settlement(l.localMemory, subject, r.Limit, cost)
	if err != nil || st.delta == 0 {
		return err
	}
	now := l.now()
	s := l.buckets.lock(subject)
	defer s.mu.Unlock()
	b := s.m[subject]
	if b == nil {
		if st.delta < 0 {
			return nil
		}
		b = &localBucket{state: l.algorithm.newState()}
		l.buckets.put(s, subject, b)
	}
	b.settle(st.rule, st.receipt, st.delta, now)
	b.full = max(b.full, now+st.rule.window)
	return nil
}

// Refund is Settle with a cost of 0.
func (l *Local) Refund(ctx context.Context, key string, r Result) error {
	return l.Settle(ctx, key, r, 0)
}

func (l *Local) resetAll() int { return l.buckets.clear() }

// Reset frees key.
func (l *Local) Reset(ctx context.Context, key string) error {
	if key == "" {
		return ErrEmptyKey
	}
	subject := l.subject(key)
	s := l.buckets.lock(subject)
	l.buckets.drop(s, subject)
	s.mu.Unlock()
	return ctx.Err()
}

func (l *localMemory) now() int64 {
	if l.clock != nil {
		return l.clock()
	}
	return l.start.UnixMicro() + time.Since(l.start).Microseconds()
}

type localBucket struct {
	state
	full int64 // µs: when nothing is used any more
}

func (b *localBucket) forgettableAt() int64 { return b.full }
