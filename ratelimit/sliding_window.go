package ratelimit

import (
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// SlidingWindow allows at most Limit.Requests in every half-open trailing window
// (now-Window, now], exactly, however many servers ask at once. It remembers each
// permit: a key takes about 20 bytes per permit up to 128 of them, and 120 bytes
// beyond. It is the one to take unless that is too much.
//
// If the clock of Redis steps back, nobody is locked out for longer than one
// window; if it steps forward, everybody gets at most one fresh window. The clocks
// of the servers do not matter. The zero value is not usable; see [NewSlidingWindow].
type SlidingWindow struct{ remote }

var (
	_ Limiter    = (*SlidingWindow)(nil)
	_ LocalTaker = (*SlidingWindow)(nil)
	_ Settler    = (*SlidingWindow)(nil)
	_ Resetter   = (*SlidingWindow)(nil)
	_ Named      = (*SlidingWindow)(nil)

	_ Adjustable[*SlidingWindow] = (*SlidingWindow)(nil)
)

// NewSlidingWindow returns a limiter over Redis. Limiters of one name, prefix and window
// share their keys; name is also the Policy of the results. The limit may have at most
// 1,000,000 requests, and a Take cost at most 10,000, as Redis serves nobody else meanwhile.
// The error names everything that is wrong.
func NewSlidingWindow(client redis.UniversalClient, name string, limit Limit, cfg Config) (*SlidingWindow, error) {
	r, err := newRemote(slidingWindow{}, client, name, limit, cfg)
	if err != nil {
		return nil, err
	}
	return &SlidingWindow{r}, nil
}

// With returns a limiter of the same name, but another limit: the plan of a customer, a
// changed configuration. What has been spent stays spent: after a lower limit Remaining is
// 0, after a higher one there is room at once. A limit of 0 requests denies everything.
// Another window counts apart, in keys of its own.
func (l *SlidingWindow) With(limit Limit) (*SlidingWindow, error) {
	r, err := l.with(limit)
	if err != nil {
		return nil, err
	}
	return &SlidingWindow{r}, nil
}

type slidingWindow struct{}

func (slidingWindow) word() string        { return "sliding" }
func (slidingWindow) String() string      { return "sliding window" }
func (slidingWindow) part(l Limit) string { return windowPart(l) }
func (slidingWindow) newState() state     { return new(slidingState) }

// An entry of the sorted set takes some 120 bytes, and Redis 3 µs to add. To trim one takes it
// 0.15 µs: 64 sets of 10,000 at once would keep it from others for 95 ms.
func (slidingWindow) bounds() bounds {
	return bounds{requests: 1_000_000, spend: 10_000, touch: 64_000}
}

func (slidingWindow) verdict(r rule, d demand, f found) verdict {
	v := verdict{granted: d.grant(r.requests - f.a), retry: f.c, now: d.now}
	v.remaining = max(0, r.requests-f.a-v.granted*d.cost)
	if v.granted > 0 {
		v.reset, v.mark = r.window, f.b
	} else {
		v.reset = f.b
	}
	return v
}

// A key lives for two windows after its expiry was set: sliding.lua says why.
func (slidingWindow) args(r rule) arguments {
	return arguments{
		ttl:     strconv.FormatInt(2*r.window/1000+1, 10),
		window:  strconv.FormatInt(r.window, 10),
		atLeast: true,
	}
}

// The mark is that of the claim, whose entries are all alike.
func (slidingWindow) mark(rc *receipt, v verdict, _ int64) {
	rc.mark, rc.part = v.mark, v.granted*rc.cost
}

// slidingState is the times of the permits spent, in ascending order.
type slidingState struct{ entries []int64 }

func (s *slidingState) decide(r rule, d demand) verdict {
	old := d.now - r.window
	stale, _ := slices.BinarySearch(s.entries, old+1)
	used := int64(len(s.entries) - stale)
	v := verdict{granted: d.grant(r.requests - used), reset: r.window, now: d.now}
	if spent := v.granted * d.cost; spent > 0 {
		s.entries = s.entries[:copy(s.entries, s.entries[stale:])]
		for range spent {
			s.entries = append(s.entries, d.now)
		}
		// In order unless the clock stepped back.
		slices.Sort(s.entries)
		used += spent
		stale = 0
		v.mark = d.now
	}
	if v.granted < d.n || d.cost == 0 {
		// Entries of a future from which the clock stepped back are made entries of
		// now, so that nobody waits for longer than a window.
		for i := len(s.entries) - 1; i >= 0 && s.entries[i] > d.now; i-- {
			s.entries[i] = d.now
		}
		v.reset = 0
		if used > 0 {
			v.reset = s.entries[len(s.entries)-1] - old
		}
		switch {
		case v.granted == d.n:
		case d.unit() > r.requests:
			v.retry = -1
		default:
			v.retry = s.entries[stale+int(used+d.unit()-r.requests-1)] - old
		}
	}
	v.remaining = max(0, r.requests-used)
	return v
}

func (s *slidingState) settle(r rule, rc *receipt, delta, now int64) {
	before := len(s.entries)
	for ; delta > 0; delta-- {
		s.entries = append(s.entries, now)
	}
	slices.Sort(s.entries)
	if over := len(s.entries) - max(int(r.requests), before); over > 0 {
		s.entries = slices.Delete(s.entries, 0, over)
	}
	for ; delta < 0; delta++ {
		// The entries of one microsecond are all alike.
		i, ok := slices.BinarySearch(s.entries, rc.mark)
		if !ok {
			return
		}
		s.entries = slices.Delete(s.entries, i, i+1)
	}
}
