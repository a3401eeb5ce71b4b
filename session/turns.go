package session

import (
	"context"
	"sync"
	"time"
)

// turns lets the commits of one session that got into a conflict go one after
// the other within this process. Without it, n writers of a session need about
// n²/2 attempts; with it, attempts fail only because of other processes. The
// zero value is ready.
type turns struct {
	mu sync.Mutex
	m  map[string]*turn
}

type turn struct {
	slot    chan struct{}
	waiting int // that hold or wait for the slot
}

// take waits for the turn of key, or for ctx. The turn is given back by done.
// After patience it lets the caller go without: the turns are there for speed,
// and when Redis hangs, all who wait must not find that out one after the other.
func (t *turns) take(ctx context.Context, key string, patience time.Duration) (done func(), err error) {
	t.mu.Lock()
	e := t.m[key]
	if e == nil {
		e = &turn{slot: make(chan struct{}, 1)}
		if t.m == nil {
			t.m = make(map[string]*turn)
		}
		t.m[key] = e
	}
	e.waiting++
	t.mu.Unlock()

	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if e.waiting--; e.waiting == 0 {
			delete(t.m, key)
		}
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case e.slot <- struct{}{}:
		return func() { <-e.slot; leave() }, nil
	case <-timer.C:
		leave()
		return func() {}, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
