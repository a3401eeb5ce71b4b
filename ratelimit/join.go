package ratelimit

import (
	"context"
	"errors"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// joiner coalesces concurrent Takes: those that arrive during a call for their key go out
// together as the next call, which asks for n grants and gets k of them. So a hot key costs
// one script per round trip, not one per request. A Take that is alone makes its own call on
// its own goroutine, at the price of two locks.
type joiner struct {
	seed   maphash.Seed
	yield  roundtrip.Yield
	shards [64]joinShard
}

type joinShard struct {
	mu sync.Mutex
	m  map[flightKey]*flight
	_  [40]byte // a cache line each
}

// flightKey is what must be equal for Takes to be one call.
type flightKey struct {
	key  string
	cost int
	rule rule
}

// flight is the calls for one key that are under way.
type flight struct {
	calls   int
	waiting []*waiter // for the next one
}

// When crowded Takes wait for a call under way, a second one is made: otherwise this
// process and Redis would wait for each other in turn.
const (
	maxCalls = 2
	crowded  = 24
)

// maxGather bounds how long waiting Takes are kept for others to join them: it is less than
// a call takes.
const maxGather = 50 * time.Microsecond

// waiter is a Take that waits for the next call.
type waiter struct {
	ctx   context.Context
	state atomic.Uint32 // waiterWaits, waiterDone or waiterGone
	done  chan struct{} // buffered: one token when out is set
	since time.Time
	out   outcome
}

const (
	waiterWaits uint32 = iota
	waiterDone
	waiterGone
)

// outcome is what came of a call, for the i-th of its requests.
type outcome struct {
	answer
	i   int64
	err error
}

var (
	flights = sync.Pool{New: func() any { return new(flight) }}
	waiters = sync.Pool{New: func() any { return &waiter{done: make(chan struct{}, 1)} }}
)

func newJoiner() *joiner {
	j := &joiner{seed: maphash.MakeSeed()}
	for i := range j.shards {
		j.shards[i].m = make(map[flightKey]*flight)
	}
	return j
}

// caller asks Redis about n equal requests, at most most of them.
type caller interface {
	ask(ctx context.Context, k flightKey, n int64) (answer, error)
	most(k flightKey) int
}

// answer is Redis's verdict, and when it was asked, as denials.now.
type answer struct {
	verdict verdict
	sent    time.Duration
}

// do has c decide about one request, alone or together with others. A call must
// return within timeout, and so does do: one that arrives during a call waits for
// the rest of that one's time, and then for what is left of its own. A joined call
// does not end with the context of any Take that waits for it.
func (j *joiner) do(ctx context.Context, timeout time.Duration, k flightKey, c caller) outcome {
	s := &j.shards[maphash.String(j.seed, k.key)%uint64(len(j.shards))]
	s.mu.Lock()
	f := s.m[k]
	if f == nil {
		f = flights.Get().(*flight)
		f.calls = 1
		s.m[k] = f
		s.mu.Unlock()
		defer func() { // also if a hook of the client panics
			s.mu.Lock()
			defer s.mu.Unlock()
			if group := f.next(); group != nil {
				go s.fly(&j.yield, f, group, timeout, k, c)
			} else {
				s.land(f, k)
			}
		}()
		var out outcome
		out.answer, out.err = c.ask(ctx, k, 1)
		return out
	}
	w := waiters.Get().(*waiter)
	w.ctx, w.since = ctx, time.Now()
	w.state.Store(waiterWaits)
	f.waiting = append(f.waiting, w)
	if len(f.waiting) >= crowded && f.calls < maxCalls {
		f.calls++
		go s.fly(&j.yield, f, f.next(), timeout, k, c)
	}
	s.mu.Unlock()

	select {
	case <-w.done:
		return w.collect()
	case <-ctx.Done():
	}
	if w.state.CompareAndSwap(waiterWaits, waiterGone) {
		return outcome{err: ctx.Err()} // not pooled: a call may still have it in hand
	}
	<-w.done // the outcome came at the same moment
	return w.collect()
}

// next returns the Takes that wait, or nil. The shard is locked.
func (f *flight) next() []*waiter {
	group := f.waiting
	f.waiting = nil
	return group
}

// land notes the end of a call. The shard is locked.
func (s *joinShard) land(f *flight, k flightKey) {
	if f.calls--; f.calls == 0 {
		delete(s.m, k)
		flights.Put(f)
	}
}

// fly makes calls for group and then for the Takes that wait, until there are none.
func (s *joinShard) fly(yield *roundtrip.Yield, f *flight, group []*waiter, timeout time.Duration, k flightKey, c caller) {
	for group != nil {
		decideAll(group, timeout, k, c)
		s.gather(yield, f, len(group))
		s.mu.Lock()
		if group = f.next(); group == nil {
			s.land(f, k)
		}
		s.mu.Unlock()
	}
}

// gather lets the Takes that a call has answered go on, since their callers may Take again
// at once: it waits for up to n of them, as long as more arrive.
func (s *joinShard) gather(yield *roundtrip.Yield, f *flight, n int) {
	started := time.Now()
	for idle, before := 0, 0; idle < 8 && yield.Now(); idle++ {
		s.mu.Lock()
		waiting := len(f.waiting)
		s.mu.Unlock()
		if waiting >= n || time.Since(started) > maxGather {
			return
		}
		if waiting > before {
			idle = 0
		}
		before = waiting
	}
}

// errSilence ends a joined call that Redis did not answer in time.
var errSilence = errors.New("no answer")

// collect returns the outcome of a waiter that is done and gives it back.
func (w *waiter) collect() outcome {
	out := w.out
	w.ctx, w.out = nil, outcome{}
	waiters.Put(w)
	return out
}

// decideAll makes calls for those of group who have not given up, one if c can ask for all
// of them at once.
func decideAll(group []*waiter, timeout time.Duration, k flightKey, c caller) {
	group = slices.DeleteFunc(group, func(w *waiter) bool {
		return w.state.Load() != waiterWaits || w.ctx.Err() != nil
	})
	for chunk := range slices.Chunk(group, c.most(k)) {
		decideTogether(chunk, timeout, k, c)
	}
}

// decideTogether makes one call for group. Of its k grants, the first k who still wait then
// get one: a grant is lost only if more than the others gave up meanwhile, and none is given
// twice.
func decideTogether(group []*waiter, timeout time.Duration, k flightKey, c caller) {
	var out outcome
	// Only values, such as a trace span, are taken from the first one's context.
	ctx, cancel := context.WithDeadlineCause(context.WithoutCancel(group[0].ctx), group[0].since.Add(timeout), errSilence)
	out.answer, out.err = c.ask(ctx, k, int64(len(group)))
	cancel()
	for _, w := range group {
		w.out = out
		if w.state.CompareAndSwap(waiterWaits, waiterDone) {
			w.done <- struct{}{}
			out.i++
		}
	}
}
