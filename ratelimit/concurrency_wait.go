package ratelimit

import (
	"container/list"
	"context"
	"math/rand/v2"
	"time"
)

// Wait is [Concurrency.Acquire] for workers: it returns once there is a place. Those who wait in
// one process get theirs in the order in which they asked, and at once when a lease of this
// process is released. For the places of other processes the first in line asks again every 10 to
// 50 ms; between processes, and between Wait and Acquire, there is no order. ctx bounds the waiting
// alone: the Lease is renewed until Release. Under a [Rule] that denies it waits, too, for the rule
// to be lifted.
//
// Its errors are those of Acquire, and that of ctx if it ends before there is a place: then none
// is held.
func (c *Concurrency) Wait(ctx context.Context, key string) (l *Lease, err error) {
	var res Result
	defer func() { c.tally.count(&res, err) }()
	if key == "" {
		return nil, ErrEmptyKey
	}
	subject := c.subject(key)
	q, turn := c.enter(subject)
	defer c.leave(subject, q, turn)
	select {
	case <-turn.Value.(chan struct{}):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// Without ctx's end, which would leave unknown whether there is a place.
		l, res, err = c.acquire(context.WithoutCancel(ctx), subject)
		switch {
		case err != nil:
			return nil, err
		case l != nil && ctx.Err() != nil:
			_ = l.Release() // bounded; if it fails, it ends by itself
			return nil, ctx.Err()
		case l != nil:
			return l, nil
		}
		again := time.NewTimer(10*time.Millisecond + rand.N(40*time.Millisecond))
		select {
		case <-again.C:
		case <-q.freed:
		case <-ctx.Done():
		}
		again.Stop()
	}
}

// queue is those of one process who wait for a place of one key.
type queue struct {
	turns list.List     // a chan struct{} of each, closed when it is the first
	freed chan struct{} // a lease of this process was released
}

func (c *Concurrency) enter(subject string) (*queue, *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.lines[subject]
	if q == nil {
		q = &queue{freed: make(chan struct{}, 1)}
		c.lines[subject] = q
	}
	turn := make(chan struct{})
	if q.turns.Len() == 0 {
		close(turn)
	}
	return q, q.turns.PushBack(turn)
}

func (c *Concurrency) leave(subject string, q *queue, turn *list.Element) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := turn.Prev() == nil
	q.turns.Remove(turn)
	switch next := q.turns.Front(); {
	case next == nil:
		delete(c.lines, subject)
	case first:
		close(next.Value.(chan struct{}))
	}
}

// wake has the first of those who wait ask again.
func (c *Concurrency) wake(subject string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q := c.lines[subject]; q != nil {
		select {
		case q.freed <- struct{}{}:
		default:
		}
	}
}
