package ratelimit

import (
	"context"
	"sync/atomic"

	"github.com/gatehouse-go/gatehouse/scripts"
)

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

// newReceipt is the receipt of the i-th of the requests that v grants.
func newReceipt(owner any, a algorithm, subject string, r rule, cost int64, v verdict, i int64) *receipt {
	rc := &receipt{owner: owner, subject: subject, rule: r, cost: cost, mark: v.mark, part: v.part}
	switch a {
	case sliding:
		rc.part = v.granted * cost
	case bucket:
		rc.mark, rc.part = r.without(v.mark, v.part, (v.granted-1-i)*cost)
	}
	return rc
}

// delta is what settling r for cost has to change about the receipt. Of a
// request that was allowed to look, all of cost is still to be spent. It is
// asked once: then it is 0.
func (r Result) delta(owner any, subject string, limit Limit, cost int) (*receipt, int64, error) {
	if cost < 0 {
		return nil, 0, ErrCost
	}
	rc := r.receipt
	switch {
	case rc == nil && r.Allowed:
		return &receipt{owner: owner, subject: subject, rule: limit.rule()}, int64(min(cost, limit.Requests)), nil
	case rc == nil:
		return nil, 0, nil
	case rc.owner != owner || rc.subject != subject:
		return nil, 0, ErrResult
	case rc.settled.Swap(true):
		return nil, 0, nil
	}
	return rc, min(int64(cost)-rc.cost, rc.rule.requests), nil
}

// Settle makes cost what the Take of key that returned r has spent: see [Settler].
// A result of TakeLocally is settled in process.
func (l *remote) Settle(ctx context.Context, key string, r Result, cost int) error {
	if key == "" {
		return ErrEmptyKey
	}
	if r.Source == FromLocal {
		return l.local.Settle(ctx, key, r, cost)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	subject := escapeSubject(key)
	rc, delta, err := r.delta(l.engine, subject, l.limit, cost)
	if err != nil || delta == 0 {
		return err
	}
	err = l.breaker.ask(ctx, func() error {
		_, err := l.sender.Ints(ctx, l.algorithm.settleScript(), l.redisKey(subject), l.settleArgs(rc, delta)...)
		return err
	})
	l.denials.forget(subject)
	if err != nil {
		return failure(ctx, err)
	}
	return nil
}

func (l *remote) settleArgs(rc *receipt, delta int64) []any {
	args := []any{rc.rule.requests, l.ttl(rc.rule), delta, rc.mark, rc.part, rc.rule.window}
	if l.clock != nil {
		args = append(args, l.clock())
	}
	return args
}

func (a algorithm) settleScript() *scripts.Script {
	switch a {
	case sliding:
		return scripts.SettleSliding
	case fixed:
		return scripts.SettleFixed
	default:
		return scripts.SettleBucket
	}
}

// Refund is Settle with a cost of 0.
func (l *remote) Refund(ctx context.Context, key string, r Result) error {
	return l.Settle(ctx, key, r, 0)
}

// Settle makes cost what the Take of key that returned r has spent: see [Settler].
func (l *Local) Settle(ctx context.Context, key string, r Result, cost int) error {
	if key == "" {
		return ErrEmptyKey
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	subject := escapeSubject(key)
	rc, delta, err := r.delta(l, subject, r.Limit, cost)
	if err != nil || delta == 0 {
		return err
	}
	now := l.now()
	s := l.buckets.lock(subject)
	defer s.mu.Unlock()
	b := s.m[subject]
	if b == nil {
		if delta < 0 {
			return nil
		}
		b = &localBucket{state: l.algorithm.newState()}
		l.buckets.put(s, subject, b)
	}
	b.settle(rc.rule, rc, delta, now)
	b.full = max(b.full, now+rc.rule.window)
	return nil
}

// Refund is Settle with a cost of 0.
func (l *Local) Refund(ctx context.Context, key string, r Result) error {
	return l.Settle(ctx, key, r, 0)
}
