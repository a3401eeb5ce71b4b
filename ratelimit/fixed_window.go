package ratelimit

import (
	"math"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// FixedWindow counts requests in windows that begin with the first request and last
// Limit.Window, rounded up to whole milliseconds (Redis keeps a key for at least two, so a
// window of 1ms lasts 2). Within one window it is exact. Across the boundary of two, up to twice the limit may pass
// in a short time. It takes one small number per key, and the least of Redis's time.
//
// If the clock of Redis steps back, nobody is locked out for longer than one
// window. The zero value is not usable; see [NewFixedWindow].
type FixedWindow struct{ remote }

var (
	_ Limiter    = (*FixedWindow)(nil)
	_ LocalTaker = (*FixedWindow)(nil)
	_ Settler    = (*FixedWindow)(nil)
	_ Resetter   = (*FixedWindow)(nil)
	_ Named      = (*FixedWindow)(nil)

	_ Adjustable[*FixedWindow] = (*FixedWindow)(nil)
)

// NewFixedWindow returns a limiter over Redis. Limiters of one name, prefix and window
// share their keys; name is also the Policy of the results. The error names everything that
// is wrong.
func NewFixedWindow(client redis.UniversalClient, name string, limit Limit, cfg Config) (*FixedWindow, error) {
	r, err := newRemote(fixedWindow{}, client, name, limit, cfg)
	if err != nil {
		return nil, err
	}
	return &FixedWindow{r}, nil
}

// With returns a limiter of the same name, but another limit: the plan of a customer, a
// changed configuration. What has been spent stays spent: after a lower limit Remaining is
// 0, after a higher one there is room at once. A limit of 0 requests denies everything.
// Another window counts apart, in keys of its own.
func (l *FixedWindow) With(limit Limit) (*FixedWindow, error) {
	r, err := l.with(limit)
	if err != nil {
		return nil, err
	}
	return &FixedWindow{r}, nil
}

type fixedWindow struct{}

func (fixedWindow) word() string        { return "fixed" }
func (fixedWindow) String() string      { return "fixed window" }
func (fixedWindow) part(l Limit) string { return windowPart(l) }
func (fixedWindow) newState() state     { return new(fixedState) }
func (fixedWindow) bounds() bounds {
	return bounds{requests: MaxRequests, spend: MaxRequests, touch: math.MaxInt}
}

func (fixedWindow) verdict(r rule, d demand, f found) verdict {
	// Redis goes by the time at which the script began: the window was not over then, even if
	// it is by TIME, which is later.
	d.now = min(d.now, f.b*1000+999)
	return (&fixedState{used: f.a, last: f.b}).decide(r, d)
}

func (fixedWindow) args(r rule) arguments {
	return arguments{ttl: strconv.FormatInt(fixedTTL(r.window), 10), window: ""}
}

// The mark is the end of the window.
func (fixedWindow) mark(rc *receipt, v verdict, _ int64) { rc.mark = v.mark }

// fixedState is a counter and the end of its window.
type fixedState struct {
	used int64
	last int64 // the window's last millisecond; 0: no window
}

func (s *fixedState) decide(r rule, d demand) verdict {
	used, last := s.used, s.last
	if (last+1)*1000 <= d.now {
		used, last = 0, 0
	} else if last > fixedEnd(r.window, d.now) {
		last = fixedEnd(r.window, d.now)
		s.last = last
	}
	v := verdict{granted: d.grant(r.requests - used), now: d.now}
	if spent := v.granted * d.cost; spent > 0 {
		used += spent
		if last == 0 {
			last = fixedEnd(r.window, d.now)
		}
		s.used, s.last = used, last
	}
	if last != 0 {
		v.reset = (last+1)*1000 - d.now
	}
	if v.granted < d.n {
		v.retry = v.reset
		if d.unit() > r.requests {
			v.retry = -1
		}
	}
	v.mark = last
	v.remaining = max(0, r.requests-used)
	return v
}

func (s *fixedState) settle(r rule, rc *receipt, delta, now int64) {
	open := (s.last+1)*1000 > now
	switch {
	case delta > 0 && open:
		s.used += delta
	case delta > 0:
		*s = fixedState{used: delta, last: fixedEnd(r.window, now)}
	case open && s.last == rc.mark:
		s.used = max(0, s.used+delta)
	}
}

// fixedTTL is how many milliseconds after its first hit a window of µs ends, itself not
// counted: Redis keeps a key through the millisecond of its expiry.
func fixedTTL(window int64) int64 { return max(1, ceilDiv(window, 1000)-1) }

// fixedEnd is the last millisecond of a window that begins now.
func fixedEnd(window, now int64) int64 { return now/1000 + fixedTTL(window) }
