package ratelimit

import "time"

// The arithmetic of the algorithms is on whole microseconds. It is the engine of Local and,
// decision by decision, what the Lua scripts are tested against.

// rule is a Limit in the unit of the arithmetic.
type rule struct {
	requests int64
	window   int64 // µs
}

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
	part      int64 // second mark; -1: a Penalty denies
}

func (v verdict) banned() bool { return v.granted == 0 && v.part == -1 }

// algorithm is one way to count, and all that the rest of the package knows of it. Each has
// a file of its own, with its state in process, and two scripts, limit/<word>.lua and
// limit/<word>_settle.lua. The word stands in its keys, and in limit/parts/_algorithms.lua.
type algorithm interface {
	word() string
	String() string // in errors
	bounds() bounds
	part(l Limit) string // what of a limit stands in its keys: "", or a word and a colon
	args(r rule) arguments
	newState() state
	// verdict is that on d, which a script over many keys has decided, from what it found.
	verdict(r rule, d demand, f found) verdict
	// mark notes in rc what identifies the i-th of the requests that v grants.
	mark(rc *receipt, v verdict, i int64)
}

// found is what a script over many keys replies about one: how it was before the decision. See
// limit/parts/_many.lua.
type found struct{ a, b, c int64 }

// bounds are what an algorithm can do without keeping Redis from others, and without
// leaving the integers that Lua's numbers hold.
type bounds struct {
	requests int64 // of a Limit
	spend    int64 // permits in one call
	touch    int   // permits of the limits of the keys in one call
}

// arguments are the arguments of a limit's scripts, besides its requests.
type arguments struct {
	ttl    any
	window any // "": it is not used
	// ends is set if the ttl depends on the time, in µs since 1970.
	ends func(now int64) string
	// atLeast says that a longer ttl changes no decision, as a test's clock needs it.
	atLeast bool
}

// state is what one key has used. decide changes it by what it grants, settle by
// delta permits: spent besides (> 0) or of what the receipt is for (< 0).
type state interface {
	decide(r rule, d demand) verdict
	settle(r rule, rc *receipt, delta, now int64)
}

// grant is how many of d's requests fit into left permits.
func (d demand) grant(left int64) int64 {
	if d.cost == 0 && left > 0 {
		return d.n
	}
	return max(0, min(d.n, left/d.unit()))
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
