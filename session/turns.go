package session

import (
	"context"
	"sync"
	"time"
)

// turns lets the commits of one session that got into a conflict go one after the other
// within this process. Without it, n writers of a session need about n²/2 attempts; with
// it, attempts fail only because of other processes. It is there for speed alone. The
// zero value is ready.
type turns struct {
	mu sync.Mutex
	m  map[string]*turn
}

type turn struct {
	slot    chan struct{}
	broken  chan struct{} // closed when a commit that had the turn has failed
	waiting int           // that hold or wait for the slot
}

// take waits for the turn of key or for ctx. It lets the caller go without it when a
// commit before has failed: if Redis hangs, those who wait must not find that out one
// after the other. done gives the turn back.
func (t *turns) take(ctx context.Context, key string) (done func(failed bool), err error) {
	t.mu.Lock()
	e := t.m[key]
	if e == nil {
		e = &turn{slot: make(chan struct{}, 1), broken: make(chan struct{})}
		if t.m == nil {
			t.m = make(map[string]*turn)
		}
		t.m[key] = e
	}
	e.waiting++
	t.mu.Unlock()

	leave := func(failed bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		e.waiting--
		if t.m[key] != e {
			return // broken already
		}
		if failed {
			close(e.broken)
		}
		if failed || e.waiting == 0 {
			delete(t.m, key)
		}
	}
	select {
	case e.slot <- struct{}{}:
		return func(failed bool) { <-e.slot; leave(failed) }, nil
	case <-e.broken:
	case <-ctx.Done():
		leave(false)
		return nil, ctx.Err()
	}
	leave(false)
	return func(bool) {}, nil
}

// myTurn is the turn of one commit; the zero value has none yet.
type myTurn struct{ give func(failed bool) }

// take waits for the turn, at the first conflict.
func (t *myTurn) take(ctx context.Context, turns *turns, at id) (err error) {
	if t.give == nil {
		t.give, err = turns.take(ctx, at.key+at.field)
	}
	return err
}

func (t *myTurn) done(err error) {
	if t.give != nil {
		t.give(err != nil)
	}
}

// take waits until no other goroutine of this request is in a commit or a Login, and
// returns what is left of the time within. Two at once would meet as a conflict, and of
// their replies the one that arrives last need not be that of the last write: what it
// brings would stay in ctx.
func (st *state) take(ctx context.Context, within time.Duration) (left time.Duration, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if !st.busy {
		st.busy = true
		return within, nil
	}
	until := time.Now().Add(within)
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for st.busy {
		if st.free == nil {
			st.free = make(chan struct{})
		}
		free := st.free
		st.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
		}
		st.mu.Lock()
		if ctx.Err() != nil {
			return 0, conflict(ctx.Err())
		}
	}
	st.busy = true
	return time.Until(until), nil
}

// give ends what take began.
func (st *state) give() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.busy = false
	if st.free != nil {
		close(st.free)
		st.free = nil
	}
}
