package session

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// All times of a session are those of the Redis that keeps it: a server whose own clock
// is wrong neither ends a session early nor keeps it. A read brings no time along, so
// each process keeps its estimate of Redis's clock, from the replies of scripts, and from
// asking once a minute where there were none.
type clocks struct {
	of [256]clock // by partition: in a cluster the masters' clocks may differ
	// single says that one server has all partitions.
	single bool
}

func newClocks(client redis.UniversalClient) *clocks {
	_, single := client.(*redis.Client)
	return &clocks{single: single}
}

func (c *clocks) at(at id) *clock {
	if c.single {
		return &c.of[0]
	}
	return &c.of[at.owner[0]]
}

// clock is the estimate of one server's clock. The zero value knows nothing yet.
type clock struct {
	sample atomic.Pointer[sample]
	past   history
	asking atomic.Bool
}

// sample is one reading. The server's clock said redis at some moment between sent and
// received.
type sample struct {
	redis    int64 // µs
	received time.Time
	within   time.Duration // between sent and received
}

const (
	clockAge   = time.Minute // after which a server is asked
	clockDrift = 100e-6      // of two clocks against each other
)

// now returns the estimate of the server's clock at a time of this process.
func (s *sample) now(at time.Time) int64 {
	// In the middle, the error is half of the round trip at most.
	return s.redis + (s.within / 2).Microseconds() + at.Sub(s.received).Microseconds()
}

// err is how far now may be off.
func (s *sample) err(age time.Duration) time.Duration {
	return s.within/2 + time.Duration(float64(age)*clockDrift)
}

// learn takes a reading from a reply. The better reading stays, unless the two contradict
// each other: then the server's clock was set.
func (c *clock) learn(redis int64, sent, received time.Time) {
	next := &sample{redis, received, received.Sub(sent)}
	if old := c.sample.Load(); old != nil {
		age := received.Sub(old.received)
		off := time.Duration(old.now(received)-next.now(received)) * time.Microsecond
		if age < clockAge/2 && old.err(age) <= next.err(0) && off.Abs() <= old.err(age)+next.err(0) {
			return
		}
	}
	c.sample.Store(next)
	c.past.add(next)
}

// history is what a server's clock has been ahead of this process's, at least: to say what it
// can have shown at a moment before it was set.
type history struct {
	mu   sync.Mutex
	list []ahead // older ones that were not lower are left out
}

type ahead struct {
	by    int64     // µs, of the process's time since epoch
	at    time.Time // of this process, when it was learned
	since time.Time // from then on it has not been less
}

const (
	historyLen = 64
	historyAge = time.Hour
)

var epoch = time.Now()

func (h *history) add(s *sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := ahead{s.redis - s.received.Sub(epoch).Microseconds(), s.received, s.received}
	for n := len(h.list) - 1; n >= 0 && h.list[n].by >= next.by; n-- {
		next.since, h.list = h.list[n].since, h.list[:n]
	}
	h.list = append(h.list, next)
	if over := len(h.list) - historyLen; over > 0 {
		h.list = slices.Delete(h.list, 1, 1+over) // the lowest stays: it is safe in the place of those
	}
	for len(h.list) > 1 && s.received.Sub(h.list[1].at) > historyAge {
		h.list = slices.Delete(h.list, 0, 1)
	}
}

// earliest returns the earliest that the server's clock can have shown at a moment of this
// process, however often it was set since. It is known if there was a reading before.
func (h *history) earliest(at time.Time) (shown int64, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.list) == 0 {
		return 0, false
	}
	// They rise, so that the one that held then is the lowest since.
	i, _ := slices.BinarySearchFunc(h.list, at, func(a ahead, at time.Time) int { return a.since.Compare(at) })
	a := h.list[max(0, i-1)]
	drift := time.Duration(float64(at.Sub(a.at).Abs()) * clockDrift)
	return at.Sub(epoch).Microseconds() + a.by - drift.Microseconds(), !a.since.After(at)
}

// earliest is that of the server that keeps a session. Where it has not been read before, any
// of the servers may be the one.
func (c *clocks) earliest(of id, at time.Time) int64 {
	shown, known := c.at(of).past.earliest(at)
	if known {
		return shown
	}
	for i := range c.of {
		if other, known := c.of[i].past.earliest(at); known {
			shown = min(shown, other)
		}
	}
	return shown
}

// known returns the estimate as it is, 0 if there is none.
func (c *clock) known(at time.Time) int64 {
	if s := c.sample.Load(); s != nil {
		return s.now(at)
	}
	return 0
}

// known is now by the estimate as it is, 0 if there is none.
func (s *records) known(at id) int64 { return s.clocks.at(at).known(s.redis.Now()) }

// loadedNow is now for a session that this process has read or written: the estimate is at
// hand, however old, and no command is sent.
func (s *records) loadedNow(ctx context.Context, at id) (int64, error) {
	if known := s.known(at); known != 0 {
		return known, nil
	}
	return s.now(ctx, at)
}

// now returns the time of the server that keeps a session, in microseconds.
func (s *records) now(ctx context.Context, at id) (int64, error) {
	c := s.clocks.at(at)
	known := c.sample.Load()
	if known != nil && (s.redis.Now().Sub(known.received) < clockAge || !c.asking.CompareAndSwap(false, true)) {
		return known.now(s.redis.Now()), nil
	}
	defer c.asking.Store(false)
	r, err := s.run(ctx, timeScript, at)
	var refused redis.Error
	switch {
	case err == nil:
		return r.now, nil
	case known != nil && errors.As(err, &refused): // an old estimate is better than none
		return known.now(s.redis.Now()), nil
	}
	return 0, err // no further command for who has waited for this one
}
