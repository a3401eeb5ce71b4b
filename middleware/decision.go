package middleware

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Decision is what a RateLimit found about one request.
type Decision struct {
	Request *http.Request
	Key     string           // whom it counts for; empty if there is none
	Cost    int              // permits asked for
	Result  ratelimit.Result // of the limiter, or of the fallback in process; zero if neither decided
	Err     error            // why the limiter did not decide; nil if it did
	Status  int              // what the request is refused with: 429, 400, 503; 0 if it is not
	Passed  bool             // the request goes on: Status is 0, or the limit is in Shadow mode

	limiter ratelimit.Limiter
}

// Settle changes what the request has spent to cost, once that is known: see
// [ratelimit.Settler]. Of ctx it uses only the values, so that a client who hangs up is
// charged all the same. It does nothing if no limiter counted the request.
func (d Decision) Settle(ctx context.Context, cost int) error {
	if !d.decided() {
		return nil
	}
	settler, ok := d.limiter.(ratelimit.Settler)
	if !ok {
		return fmt.Errorf("middleware: %T does not settle", d.limiter)
	}
	return settler.Settle(ctx, d.Key, d.Result, cost)
}

// Policy returns the name of the limiter that the request was to be decided by, also where it
// did not decide; "" if there is none, or it has no name.
func (d Decision) Policy() string {
	if d.decided() {
		return d.Result.Policy
	}
	if l, ok := d.limiter.(interface{ Name() string }); ok {
		return l.Name()
	}
	return ""
}

// decided reports whether there is a Result.
func (d *Decision) decided() bool { return d.Result != ratelimit.Result{} }

// identify gives d its key, or the status of a request without one.
func (d *Decision) identify(key KeyFunc) {
	d.Key, d.Err = existing(key(d.Request))
	switch {
	case errors.Is(d.Err, ErrNoKey):
		d.Status = http.StatusBadRequest
	case d.Err != nil:
		d.Status = http.StatusServiceUnavailable
	}
}

// conclude gives d the status for what was decided, if it was.
func (d *Decision) conclude(decided bool) {
	switch {
	case !decided:
		d.Status = http.StatusServiceUnavailable
	case !d.Result.Allowed:
		d.Status = http.StatusTooManyRequests
	default:
		d.Status = 0
	}
}

// DecisionsOf returns the decisions on r of each RateLimit that it has come through, outermost
// first: in handlers, to settle a cost, and in Refused.
func DecisionsOf(r *http.Request) []Decision {
	var all []Decision
	for t := takenOf(r); t != nil; t = t.up {
		if !t.again {
			all = append(all, t.d)
		}
	}
	slices.Reverse(all)
	return all
}

// Succeeded tells each RateLimit with FailuresOnly that r has come through that it does not
// count: its permits are given back at once, in one round trip for each, also when the client
// has hung up. Call it when the password was right, before the response is written, so that
// those who wait for a permit get it. If they cannot be given back, the Logger of the RateLimit
// gets a line. Further calls do nothing. The response's fields were written before: they show the
// permit as spent.
func Succeeded(r *http.Request) {
	// The innermost limit is mostly the one that others wait for.
	for t := takenOf(r); t != nil; t = t.up {
		if t.again || !t.by.FailuresOnly || t.d.Key == "" || !t.d.Passed || !t.succeeded.CompareAndSwap(false, true) {
			continue
		}
		if err := t.d.Settle(r.Context(), 0); err != nil {
			t.by.warn(r, "rate limit: permits of a success were not given back", err)
		}
		t.by.waiting.free(t.d.counted(), t.d.Cost)
	}
}

// taken is the context of what a RateLimit has decided on, and passes on.
type taken struct {
	context.Context
	up        *taken // of the RateLimit further out
	d         Decision
	by        *mounted
	again     bool        // the decision is that of one further out
	succeeded atomic.Bool // by has been told of a success
	met       atomic.Bool // by, mounted once more, has taken the decision for its own
}

type takenKey struct{}

func (t *taken) Value(key any) any {
	if key == (takenKey{}) {
		return t
	}
	return t.Context.Value(key)
}

// takenOf returns what the innermost RateLimit has decided that r has come through, or nil.
func takenOf(r *http.Request) *taken {
	t, _ := r.Context().Value(takenKey{}).(*taken)
	return t
}

// remember returns a copy of r on which DecisionsOf finds d. up is what takenOf finds on r.
func (m *mounted) remember(r *http.Request, up *taken, d *Decision, again bool) *http.Request {
	return r.WithContext(&taken{Context: r.Context(), up: up, d: *d, by: m, again: again})
}

// countedBy reports whether m, mounted further out, has counted the request of d, and gives d what
// it found. Of several requests that a handler makes of one, that holds for the first alone.
func (t *taken) countedBy(m *mounted, d *Decision) bool {
	for ; t != nil; t = t.up {
		if t.d.decided() && t.d.Key == d.Key && t.d.Cost == d.Cost && isSame(t.by, m) && isSameLimiter(t.d.limiter, d.limiter) &&
			isSameRequest(t.d.Request, d.Request) && t.met.CompareAndSwap(false, true) {
			d.Result = t.d.Result
			d.conclude(true)
			return true
		}
	}
	return false
}

// isSame reports whether a and b are one RateLimit mounted twice, as far as that can be seen.
func isSame(a, b *mounted) bool {
	return isIdentical(a.Limiter, b.Limiter) && a.FailuresOnly == b.FailuresOnly && (a.LimiterFor == nil) == (b.LimiterFor == nil)
}

// isSameLimiter reports whether a and b, which two RateLimits have chosen for a request, are one
// limiter, or made alike by With.
func isSameLimiter(a, b ratelimit.Limiter) bool {
	if isIdentical(a, b) {
		return true
	}
	x, ok1 := a.(ratelimit.Named)
	y, ok2 := b.(ratelimit.Named)
	return ok1 && ok2 && reflect.TypeOf(a) == reflect.TypeOf(b) && x.Name() == y.Name() && x.Limit() == y.Limit()
}

func isIdentical(a, b ratelimit.Limiter) bool {
	return reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.ValueOf(b).Comparable() && a == b
}

// isSameRequest reports whether inside can be the request outside, as middleware hands it on:
// [http.StripPrefix] leaves the end of its path.
func isSameRequest(outside, inside *http.Request) bool {
	return outside.Method == inside.Method && strings.HasSuffix(outside.URL.Path, inside.URL.Path)
}
