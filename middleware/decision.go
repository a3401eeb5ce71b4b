package middleware

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"

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
	t := takenOf(r)
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Decision, len(t.list))
	for i := range t.list {
		all[i] = t.list[i].Decision
	}
	return all
}

// Succeeded tells each RateLimit with FailuresOnly that r has come through that it does not
// count: its permits are given back at once, in one round trip for each, also when the client
// has hung up. Call it when the password was right, before the response is written, so that
// those who wait for a permit get it. If they cannot be given back, the Logger of the RateLimit
// gets a line. Further calls do nothing. The response's fields were written before: they show the
// permit as spent.
func Succeeded(r *http.Request) {
	t := takenOf(r)
	if t == nil {
		return
	}
	for _, d := range t.successes() {
		err := d.Settle(r.Context(), 0)
		if err != nil {
			d.by.warn(r, "rate limit: permits of a success were not given back", err)
		}
		d.by.waiting.free(d.counted(), d.Cost)
	}
}

// taken is a context with what the limits of one request have decided so far.
type taken struct {
	context.Context
	mu    sync.Mutex
	list  []takenBy
	first [1]takenBy // most requests come through one limit
}

type takenBy struct {
	Decision
	by        *mounted // whose decision it is
	succeeded bool     // by has been told of a success
	over      bool     // the handler has returned
}

type takenKey struct{}

func (t *taken) Value(key any) any {
	if key == (takenKey{}) {
		return t
	}
	return t.Context.Value(key)
}

// successes returns the decisions whose RateLimits are to be told of a success, once.
func (t *taken) successes() []takenBy {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []takenBy
	for i := range t.list {
		if e := &t.list[i]; e.Passed && e.by.FailuresOnly && e.Key != "" && !e.succeeded {
			all = append(all, *e)
			e.succeeded = true
		}
	}
	slices.Reverse(all) // the innermost limit is mostly the one that others wait for
	return all
}

// takenOf returns what the limits further out have decided on r, or nil if there are none.
func takenOf(r *http.Request) *taken {
	t, _ := r.Context().Value(takenKey{}).(*taken)
	return t
}

// remember returns r, or a copy of it if t is nil, on which DecisionsOf finds d, and where d is.
func (t *taken) remember(r *http.Request, d *Decision, by *mounted) (*http.Request, place) {
	if t == nil {
		t = &taken{Context: r.Context()}
		t.list = append(t.first[:0], takenBy{Decision: *d, by: by})
		return r.WithContext(t), place{t, 0}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, takenBy{Decision: *d, by: by})
	return r, place{t, len(t.list) - 1}
}

// place is where a decision is remembered.
type place struct {
	in *taken
	at int
}

// end says that the handler has returned.
func (p place) end() {
	p.in.mu.Lock()
	p.in.list[p.at].over = true
	p.in.mu.Unlock()
}

// counted reports whether m, mounted further out, has counted the request of d, and gives d what
// it found.
func (t *taken) counted(m *mounted, d *Decision) bool {
	if t == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.list {
		e := &t.list[i]
		if !e.over && e.decided() && e.Key == d.Key && e.Cost == d.Cost && isSame(&e.by.RateLimit, &m.RateLimit) && isSameRequest(e.Request, d.Request) {
			d.Result = e.Result
			d.conclude(true)
			return true
		}
	}
	return false
}

// isSame reports whether a and b are one RateLimit mounted twice.
func isSame(a, b *RateLimit) bool {
	return reflect.TypeOf(b.Limiter).Comparable() && a.Limiter == b.Limiter && a.FailuresOnly == b.FailuresOnly &&
		reflect.ValueOf(a.LimiterFor).Pointer() == reflect.ValueOf(b.LimiterFor).Pointer()
}

// isSameRequest reports whether inside is the request outside, as middleware hands it on. What a
// handler makes of one request, to have several answered, are requests of their own.
func isSameRequest(outside, inside *http.Request) bool {
	return outside.Method == inside.Method && strings.HasSuffix(outside.URL.Path, inside.URL.Path) &&
		reflect.ValueOf(outside.Header).Pointer() == reflect.ValueOf(inside.Header).Pointer()
}
