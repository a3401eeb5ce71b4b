package ratelimit

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// ErrNever is returned by [Wait] for a cost above the limit, and under a [Rule] that denies without
// an end.
var ErrNever = errors.New("ratelimit: no wait helps: the cost exceeds the limit, or a rule denies")

// Wait takes cost permits of key as soon as l allows it. It is for outgoing calls
// and workers, not for requests of clients, who would have to be kept waiting.
//
// From a [TokenBucket] it takes the permits at once, in the order of arrival over all
// servers, and returns when they are due: a caller that needs many does not starve beside
// callers that need one. At most one window's worth is taken ahead. If ctx ends first, the
// permits are given back. From other limiters, and beyond that bound, Wait tries again after
// RetryAfter and up to a tenth more, in no order.
//
// It returns at once, with the denial and [context.DeadlineExceeded], if the context's
// deadline comes before the permits; and with [ErrNever] if no wait would help. Errors of
// Take are returned as they are.
func Wait(ctx context.Context, l Limiter, key string, cost int) (Result, error) {
	for {
		res, err := takeAhead(ctx, l, key, cost)
		switch {
		case err != nil:
			return res, err
		case res.RetryAfter == Never:
			return res, ErrNever
		case res.Allowed && res.RetryAfter == 0:
			return res, nil
		}
		wait := res.RetryAfter
		if !res.Allowed {
			if res.Limit.Requests > 0 && res.Source != FromRule && bucketOf(l) != nil { // what can be taken ahead comes sooner
				wait = max(wait-res.Limit.Window, res.Limit.Window/time.Duration(res.Limit.Requests))
			}
			wait += rand.N(wait/10 + 1)
			if res.Source == FromRule { // an operator may lift it, and to look costs nothing
				wait = min(wait, time.Second)
			}
			if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < res.RetryAfter {
				return res, context.DeadlineExceeded
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if res.Allowed {
				_ = settle(ctx, l, key, res, 0) // bounded; if it fails, they come back by themselves
				res.Allowed = false
			}
			return res, ctx.Err()
		}
		if res.Allowed {
			res.RetryAfter = 0
			return res, nil
		}
	}
}

// takeAhead is Take, or of a token bucket, for as long as ctx and the bucket allow, of
// permits that will be there RetryAfter from now.
func takeAhead(ctx context.Context, l Limiter, key string, cost int) (Result, error) {
	bucket := bucketOf(l)
	if bucket == nil || cost < 1 {
		return l.Take(ctx, key, cost)
	}
	under := keyOf(l, key)
	if under == "" {
		return Result{}, ErrEmptyKey
	}
	b, _ := bucket.ruled(bucket.subject(under))
	if b == nil || cost > b.limit.Requests {
		return l.Take(ctx, key, cost)
	}
	patience := b.limit.Window
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(deadline))
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	began, asked := b.begin(), b.asks()
	// Without ctx's end, which would leave unknown what has been taken.
	res, err := b.reserve(context.WithoutCancel(ctx), under, cost, patience)
	b.answered(asked, err)
	b.end(began, under, cost, &res, err)
	return res, err
}

// bucketOf returns the token bucket that l is, below any Keyed, if permits of it can be taken
// ahead, or nil.
func bucketOf(l Limiter) *TokenBucket {
	switch l := l.(type) {
	case *keyed:
		return bucketOf(l.limiter)
	case *TokenBucket:
		if l.limit.Requests > 0 && l.config.Penalty.Strikes == 0 {
			return l
		}
	}
	return nil
}
