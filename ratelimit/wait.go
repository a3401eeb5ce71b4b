package ratelimit

import (
	"context"
	"errors"
	"time"
)

// ErrNever is returned by [Wait] for a cost above the limit.
var ErrNever = errors.New("ratelimit: cost exceeds the limit")

// Wait takes cost permits of key as soon as l allows it. It is for outgoing calls
// and workers, not for requests of clients, who would have to be kept waiting.
//
// It returns at once, with the denial and [context.DeadlineExceeded], if the
// context's deadline comes before RetryAfter; and with [ErrNever] if no wait would
// help. Errors of Take are returned as they are. Those who wait for one key have
// no order among them.
func Wait(ctx context.Context, l Limiter, key string, cost int) (Result, error) {
	for {
		res, err := l.Take(ctx, key, cost)
		if err != nil || res.Allowed {
			return res, err
		}
		if res.RetryAfter == Never {
			return res, ErrNever
		}
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < res.RetryAfter {
			return res, context.DeadlineExceeded
		}
		timer := time.NewTimer(res.RetryAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return res, ctx.Err()
		}
	}
}
