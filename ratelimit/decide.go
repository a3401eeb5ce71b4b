package ratelimit

import (
	"slices"
	"time"
)

// The algorithms, as arithmetic on whole microseconds. They are the engine of
// Local and, decision by decision, what the Lua scripts are tested against.

// rule is a Limit in the unit of the arithmetic.
type rule struct {
	requests int64
	window   int64 // µs
}

func (l Limit) rule() rule { return rule{int64(l.Requests), l.Window.Microseconds()} }

// demand is n equal requests, decided in their order.
type demand struct {
	cost int64 // of each; 0: decide as for 1, spend nothing
	n    int64
	now  int64 // µs since 1970
}

func (d demand) unit() int64 { return max(d.cost, 1) }

// verdict is the decision on a demand. Times are in µs.
type verdict struct {
	granted   int64 // of n
	remaining int64 // after what was granted
	retry     int64 // for those not granted; 0 if all were, -1 if none ever can be
	reset     int64
	now       int64
	mark      int64 // identifies what was granted, see the scripts
	part      int64 // second mark
}

// state is what one key has used. decide changes it by what it grants, settle by
// delta permits: spent besides (> 0) or of what the receipt is for (< 0).
type state interface {
	decide(r rule, d demand) verdict
	settle(r rule, rc *receipt, delta, now int64)
}

// algorithm is one way to count.
type algorithm uint8

const (
	sliding algorithm = iota
	fixed
	bucket
)

func (a algorithm) String() string {
	return [...]string{"sliding window", "fixed window", "token bucket"}[a]
}

func (a algorithm) newState() state {
	switch a {
	case sliding:
		return new(slidingState)
	case fixed:
		return new(fixedState)
	default:
		return new(bucketState)
	}
}

// grant is how many of d's requests fit into left permits.
func (d demand) grant(left int64) int64 {
	if d.cost == 0 && left > 0 {
		return d.n
	}
	return max(0, min(d.n, left/d.unit()))
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
	for ; delta > 0; delta-- {
		s.entries = append(s.entries, now)
	}
	slices.Sort(s.entries)
	for ; delta < 0; delta++ {
		// The entries of one microsecond are all alike.
		i, ok := slices.BinarySearch(s.entries, rc.mark)
		if !ok {
			return
		}
		s.entries = slices.Delete(s.entries, i, i+1)
	}
}

// fixedState is a counter and the end of its window.
type fixedState struct {
	used int64
	last int64 // the window's last millisecond; 0: no window
}

func (s *fixedState) decide(r rule, d demand) verdict {
	// Redis expires keys by the millisecond, after the millisecond of the expiry.
	ttl := fixedTTL(r.window)
	used, last := s.used, s.last
	if (last+1)*1000 <= d.now {
		used, last = 0, 0
	} else if last > d.now/1000+ttl {
		last = d.now/1000 + ttl
		s.last = last
	}
	v := verdict{granted: d.grant(r.requests - used), now: d.now}
	if spent := v.granted * d.cost; spent > 0 {
		used += spent
		if last == 0 {
			last = d.now/1000 + ttl
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
		*s = fixedState{used: delta, last: now/1000 + fixedTTL(r.window)}
	case open && s.last == rc.mark:
		s.used = max(0, s.used+delta)
	}
}

// fixedTTL is how many milliseconds after its first hit a window of µs ends,
// itself not counted.
func fixedTTL(window int64) int64 { return max(1, ceilDiv(window, 1000)-1) }

// bucketState is the time at which the bucket is full again, whole+part/requests µs.
type bucketState struct{ whole, part int64 }

func (s *bucketState) decide(r rule, d demand) verdict {
	edge := d.now + r.window
	whole, part := s.level(r, d.now)
	if whole > edge || whole == edge && part > 0 {
		whole, part = edge, 0
		s.whole, s.part = whole, part
	}
	after := func(permits int64) (int64, int64) {
		by, byPart := r.spread(permits)
		p := part + byPart
		return whole + by + p/r.requests, p % r.requests
	}
	// The most permits for which whole+part/requests + permits*window/requests ≤ edge.
	left := bucketLeft(r, edge-whole, part)
	v := verdict{granted: d.grant(left), now: d.now}
	if spent := v.granted * d.cost; spent > 0 {
		whole, part = after(spent)
		s.whole, s.part = whole, part
		left -= spent
	}
	if v.granted < d.n {
		w, p := after(d.unit())
		v.retry = w + ceilDiv(p, r.requests) - edge
		if d.unit() > r.requests {
			v.retry = -1
		}
	}
	v.reset = whole + ceilDiv(part, r.requests) - d.now
	v.remaining = left
	v.mark, v.part = whole, part
	return v
}

// level is the time at which the bucket is full again, now if that is later.
func (s *bucketState) level(r rule, now int64) (whole, part int64) {
	whole, part = s.whole, s.part
	if part >= r.requests { // left by another limit
		whole, part = whole+1, 0
	}
	if whole < now {
		return now, 0
	}
	return whole, part
}

// spread is the time in which a bucket is refilled with permits.
func (r rule) spread(permits int64) (whole, part int64) {
	part = permits * (r.window % r.requests)
	return permits*(r.window/r.requests) + part/r.requests, part % r.requests
}

// without is the level whole+part/requests before permits were spent.
func (r rule) without(whole, part, permits int64) (int64, int64) {
	by, byPart := r.spread(permits)
	whole, part = whole-by, part-byPart
	if part < 0 {
		whole, part = whole-1, part+r.requests
	}
	return whole, part
}

func (s *bucketState) settle(r rule, rc *receipt, delta, now int64) {
	whole, part := s.level(r, now)
	if delta > 0 {
		by, byPart := r.spread(delta)
		part += byPart
		whole, part = whole+by+part/r.requests, part%r.requests
		if whole >= now+r.window {
			whole, part = now+r.window, 0
		}
	} else {
		// What the bucket has been refilled with since is not given back again.
		by, byPart := r.spread(-delta)
		if rest := rc.mark - now; rest < by || rest == by && rc.part < byPart {
			by, byPart = rest, rc.part
		}
		if by < 0 {
			return
		}
		whole, part = whole-by, part-byPart
		if part < 0 {
			whole, part = whole-1, part+r.requests
		}
		if whole < now {
			whole, part = now, 0
		}
	}
	s.whole, s.part = whole, part
}

// bucketLeft is the greatest m with part/requests + m*window/requests ≤ room.
func bucketLeft(r rule, room, part int64) int64 {
	// room*requests may exceed 63 bits. The quotient of floats is off by less than 1.
	m := int64(float64(room)*float64(r.requests)/float64(r.window)) + 1
	for m > 0 && m*(r.window/r.requests)+ceilDiv(part+m*(r.window%r.requests), r.requests) > room {
		m--
	}
	return m
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

// result makes a Result of a verdict, as seen by the i-th of its requests.
func (v verdict) result(i int64, d demand, l Limit, policy string, src Source) Result {
	res := Result{
		Policy:     policy,
		Limit:      l,
		Remaining:  int(v.remaining),
		ResetAfter: time.Duration(v.reset) * time.Microsecond,
		Source:     src,
		at:         v.now,
	}
	switch {
	case i < v.granted:
		res.Allowed = true
		res.Remaining += int((v.granted - 1 - i) * d.cost)
	case v.retry < 0:
		res.RetryAfter = Never
	default:
		res.RetryAfter = time.Duration(v.retry) * time.Microsecond
	}
	return res
}
