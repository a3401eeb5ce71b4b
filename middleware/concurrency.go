package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// ConcurrencyLimit lets at most so many requests of a key run at once, over all
// servers, and answers 429 with Retry-After to the others. A request holds its
// place until its handler returns or panics, also when its client hangs up: what
// is limited is the work. If the handler hijacks the connection, as WebSockets do, the
// place is held until that is closed, too, or nobody can close it any more; what Hijack
// returns is then a [net.Conn] of its own type. The zero value is not usable: Limiter and Key are
// required.
//
// It sends no X-RateLimit fields, which speak of requests in a window.
type ConcurrencyLimit struct {
	Limiter *ratelimit.Concurrency // gives out the places; required
	Key     KeyFunc                // whom it counts; required
	OnError FailureMode            // what becomes of a request when Redis fails, see [RateLimit.OnError]

	// Refused answers in place of the problems, see [RateLimit.Refused].
	Refused func(w http.ResponseWriter, r *http.Request, d Decision)

	OnDecision func(Decision) // is called with each decision, see [RateLimit.OnDecision]
	Logger     *slog.Logger   // gets what the limiter did not decide, see [RateLimit.Logger]
}

// Validate returns all that is wrong with l, or nil.
func (l ConcurrencyLimit) Validate() error {
	var errs []error
	if l.Limiter == nil {
		errs = append(errs, errors.New("middleware: ConcurrencyLimit.Limiter is nil"))
	}
	if l.Key == nil {
		errs = append(errs, errors.New("middleware: ConcurrencyLimit.Key is nil"))
	}
	if l.OnError > FailClosed {
		errs = append(errs, fmt.Errorf("middleware: ConcurrencyLimit.OnError is %v", l.OnError))
	}
	return errors.Join(errs...)
}

// Handler returns a handler that passes to next as many requests at once as the
// limit allows. It panics with the error of Validate.
func (l ConcurrencyLimit) Handler(next http.Handler) http.Handler {
	if err := l.Validate(); err != nil {
		panic(err)
	}
	// Whatever is not about leases is as in a RateLimit.
	as := &mounted{RateLimit: RateLimit{Refused: l.Refused, Logger: l.Logger}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lease, d := l.acquire(r)
		if lease != nil {
			var busy atomic.Int32 // the handler, and the connection that it hijacks
			done := func() {
				if busy.Add(-1) > 0 {
					return
				}
				if err := lease.Release(); err != nil {
					what := "concurrency limit: a place stays taken until its lease ends"
					if errors.Is(err, ratelimit.ErrLeaseLost) {
						what = "concurrency limit: a place was lost before it was given back: more than the limit may have run"
					}
					as.warn(r, what, err)
				}
			}
			busy.Add(1)
			defer done()
			hw := &headerWriter{ResponseWriter: w, conn: func(c net.Conn) net.Conn {
				busy.Add(1)
				return hold(c, sync.OnceFunc(done))
			}}
			if wrapped, ok := hw.wrap().(hijackWriter); ok { // others have no connection to give
				w = wrapped
			}
		}
		if d.Err != nil {
			as.undecided(&d)
		}
		if l.OnDecision != nil {
			l.OnDecision(d)
		}
		if d.Passed {
			next.ServeHTTP(w, r)
			return
		}
		values := make(singles, 0, 7)
		if d.Status == http.StatusTooManyRequests {
			setRetryAfter(w.Header(), &d.Result, &values)
		}
		as.refuse(w, &d, &values)
	})
}

func (l ConcurrencyLimit) acquire(r *http.Request) (lease *ratelimit.Lease, d Decision) {
	d = Decision{Request: r, Cost: 1}
	if d.identify(l.Key); d.Status != 0 {
		return nil, d
	}
	ctx := r.Context()
	if d.Err = ctx.Err(); d.Err == nil {
		lease, d.Result, d.Err = l.Limiter.Acquire(context.WithoutCancel(ctx), d.Key)
	}
	if d.Err != nil && ctx.Err() == nil {
		switch l.OnError {
		case FailOpen:
			d.Passed = true
			return nil, d
		case FailLocal:
			if place, res, err := l.Limiter.AcquireLocally(d.Key); err == nil {
				lease, d.Result = place, res
			}
		}
	}
	d.conclude(d.decided())
	d.Passed = d.Status == 0
	return lease, d
}

// hold returns c, with release called when it is closed, or when nobody can close it any more.
func hold(c net.Conn, release func()) net.Conn {
	held := &heldConn{c, release}
	runtime.AddCleanup(held, func(release func()) { go release() }, release)
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return halfConn{held, half.CloseWrite}
	}
	return held
}

type heldConn struct {
	net.Conn
	release func()
}

func (c *heldConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// halfConn can be closed for writing alone.
type halfConn struct {
	*heldConn
	closeWrite func() error
}

func (c halfConn) CloseWrite() error { return c.closeWrite() }
