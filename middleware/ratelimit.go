package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Policy is what becomes of a request that its limiter could not decide on,
// because Redis failed.
type Policy uint8

const (
	// DecideLocally counts in process, if the limiter can (see
	// [ratelimit.LocalTaker]); if it cannot, this is Refuse.
	DecideLocally Policy = iota
	// LetThrough passes the request on, uncounted.
	LetThrough
	// Refuse answers 503.
	Refuse
)

// String returns the name of the policy, for logs.
func (p Policy) String() string {
	switch p {
	case DecideLocally:
		return "decide locally"
	case LetThrough:
		return "let through"
	case Refuse:
		return "refuse"
	}
	return fmt.Sprintf("Policy(%d)", uint8(p))
}

// RateLimit asks a limiter about every request and refuses with 429 what it
// denies. The zero value is not usable: Limiter and Key are required.
//
// Every response that it passes on or refuses carries X-RateLimit-Limit,
// X-RateLimit-Remaining and X-RateLimit-Reset (the second, in Unix time, at
// which the full quota is back), and a 429 also Retry-After, unless waiting can
// never help. Several RateLimits may stand on one request: each counts it once,
// and the tightest one's figures are sent.
//
// It starts no goroutines and, but for CountIf, does not wrap the ResponseWriter.
type RateLimit struct {
	Limiter ratelimit.Limiter // what decides; required
	Key     KeyFunc           // whom it counts; required

	// LimiterFor chooses the limiter of a request, such as by the plan of the user:
	// limiters made by With share what has been spent, and [ratelimit.Unlimited] allows
	// everything. If LimiterFor is nil or returns nil, nil, Limiter decides. If it returns
	// an error, or an interface that holds a nil pointer, the request is refused with
	// 503, and the Logger gets a line.
	LimiterFor func(*http.Request) (ratelimit.Limiter, error)

	// Cost is the number of permits that a request takes; nil: 1. A cost of 0
	// takes none, but a limit that is used up refuses it, too. A negative cost
	// is refused with 503: beware of [http.Request.ContentLength], which is -1
	// if unknown.
	Cost func(*http.Request) int

	// CountIf decides by the status of the response whether the request counts: a
	// login form counts what fails. If it does not, its permits are given back
	// before the header is sent, in one more round trip; the fields describe the
	// limit as it was before. A handler that panics has its request counted.
	// Limiter must be a [ratelimit.Settler]. nil: every request counts, and the
	// ResponseWriter is not wrapped.
	CountIf func(status int) bool

	// PassDecision makes DecisionOf work in next, which can then settle the
	// cost, at the price of a copy of the request.
	PassDecision bool

	// OnError is what becomes of a request when Redis fails. It does not cover
	// a request without a key: letting that through would let clients choose
	// not to be counted. Such a request is refused, with 400 if the error of
	// Key wraps ErrNoKey and with 503 otherwise.
	OnError Policy

	// Denied answers in place of the 429 problem that is sent by default. The
	// header fields are set before it is called; [DecisionOf] tells it more.
	Denied http.Handler

	// IETFDraft11 adds the fields RateLimit-Policy and RateLimit in the form of
	// draft-ietf-httpapi-ratelimit-headers-11, and its problem type to the 429.
	// Since revision 08 the form has not changed. Policies whose names are not
	// printable ASCII cannot be named in them: these fields are left out then.
	IETFDraft11 bool

	// ExposeHeaders adds the header fields to Access-Control-Expose-Headers, so
	// that scripts of other origins can read them. Which origins may read the
	// response at all is not decided here.
	ExposeHeaders bool

	// Shadow decides, counts and reports as ever but refuses nothing and sends
	// no fields, so that clients behave as if there were no limit.
	Shadow bool
	// ShadowHeader names a response header field that, in Shadow mode, holds
	// the status that a request would have been refused with. Empty: none.
	ShadowHeader string

	// OnDecision is called with each decision, before the request goes on. It
	// must not block.
	OnDecision func(Decision)

	// Logger gets limiters that fail and requests without a key, at most one
	// line a second for each mounted RateLimit. nil: silent.
	Logger *slog.Logger
}

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

// Validate returns all that is wrong with l, or nil.
func (l RateLimit) Validate() error {
	var errs []error
	if l.Limiter == nil {
		errs = append(errs, errors.New("middleware: RateLimit.Limiter is nil"))
	}
	if l.Key == nil {
		errs = append(errs, errors.New("middleware: RateLimit.Key is nil"))
	}
	if _, ok := l.Limiter.(ratelimit.Settler); l.CountIf != nil && l.Limiter != nil && !ok {
		errs = append(errs, fmt.Errorf("middleware: RateLimit.CountIf needs a Limiter that is a ratelimit.Settler, which %T is not", l.Limiter))
	}
	if l.OnError > Refuse {
		errs = append(errs, fmt.Errorf("middleware: RateLimit.OnError is %v", l.OnError))
	}
	if l.ShadowHeader != "" && !isToken(l.ShadowHeader) {
		errs = append(errs, fmt.Errorf("middleware: RateLimit.ShadowHeader %q is no header name", l.ShadowHeader))
	}
	return errors.Join(errs...)
}

// Check decides on r and spends its permits. It knows nothing of responses.
func (l RateLimit) Check(r *http.Request) Decision {
	d := l.decide(r)
	d.Passed = d.Status == 0 || l.Shadow
	return d
}

func (l *RateLimit) decide(r *http.Request) Decision {
	d := Decision{Request: r, Cost: 1}
	if d.limiter, d.Err = l.limiterOf(r); d.Err != nil {
		d.Status = http.StatusServiceUnavailable
		return d
	}
	if l.Cost != nil {
		d.Cost = l.Cost(r)
	}
	if d = d.identified(l.Key); d.Status != 0 {
		return d
	}
	ctx := r.Context()
	d.Result, d.Err = d.limiter.Take(ctx, d.Key, d.Cost)
	decided := d.Err == nil
	switch {
	case decided:
	case ctx.Err() != nil, errors.Is(d.Err, ratelimit.ErrCost):
		// Nobody counted: a client must not get past a limit by hanging up, nor
		// by a cost of its choice.
	case l.OnError == LetThrough:
		return d
	case l.OnError == DecideLocally:
		if local, ok := d.limiter.(ratelimit.LocalTaker); ok {
			if res, err := local.TakeLocally(d.Key, d.Cost); err == nil {
				d.Result, decided = res, true
			}
		}
	}
	return d.concluded(decided)
}

// identified is d with its key, or with the status of a request without one.
func (d Decision) identified(key KeyFunc) Decision {
	d.Key, d.Err = key(d.Request)
	if d.Key == "" && d.Err == nil {
		d.Err = fmt.Errorf("%w: its key is empty", ErrNoKey)
	}
	switch {
	case errors.Is(d.Err, ErrNoKey):
		d.Status = http.StatusBadRequest
	case d.Err != nil:
		d.Status = http.StatusServiceUnavailable
	}
	return d
}

// concluded is d with the status for what was decided, if it was.
func (d Decision) concluded(decided bool) Decision {
	switch {
	case !decided:
		d.Status = http.StatusServiceUnavailable
	case !d.Result.Allowed:
		d.Status = http.StatusTooManyRequests
	}
	return d
}

// limiterOf returns what decides on r.
func (l *RateLimit) limiterOf(r *http.Request) (ratelimit.Limiter, error) {
	if l.LimiterFor == nil {
		return l.Limiter, nil
	}
	chosen, err := l.LimiterFor(r)
	switch {
	case err != nil:
		return nil, fmt.Errorf("middleware: LimiterFor: %w", err)
	case chosen == nil:
		return l.Limiter, nil
	}
	if v := reflect.ValueOf(chosen); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, fmt.Errorf("middleware: LimiterFor returned a nil %T", chosen)
	}
	return chosen, nil
}

// decided reports whether there is a Result.
func (d Decision) decided() bool { return d.Result != ratelimit.Result{} }

// Handler returns a handler that passes to next what the limit allows. It
// panics with the error of Validate.
func (l RateLimit) Handler(next http.Handler) http.Handler {
	if err := l.Validate(); err != nil {
		panic(err)
	}
	var log occasional
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := l.Check(r)
		if d.Err != nil && l.Logger != nil {
			l.undecided(&log, d)
		}
		if l.OnDecision != nil {
			l.OnDecision(d)
		}
		fields := 3 // of a response that is passed on
		if !d.Passed {
			fields = 7
		}
		values := make(singles, 0, fields)
		switch {
		case !l.Shadow && d.decided() && d.Result.Limit.Requests > 0:
			l.describe(w.Header(), d.Result, &values)
		case l.Shadow && l.ShadowHeader != "" && d.Status != 0:
			w.Header().Set(l.ShadowHeader, strconv.Itoa(d.Status))
		}
		if !d.Passed {
			l.refuse(w, d, &values)
			return
		}
		if l.PassDecision {
			r = d.in(r)
		}
		if l.CountIf != nil {
			l.watch(w, r, next, &log, d)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// watch calls next and gives back the permits of a request that does not count
// by its status.
func (l *RateLimit) watch(w http.ResponseWriter, r *http.Request, next http.Handler, log *occasional, d Decision) {
	hw := &headerWriter{ResponseWriter: w, before: func(status int) error {
		if l.CountIf(status) {
			return nil
		}
		// Whether the client still listens does not matter to what it spent.
		err := d.Settle(context.WithoutCancel(r.Context()), 0)
		if err != nil && l.Logger != nil {
			l.warn(log, r, "rate limit: permits of a request that does not count were not given back", err)
		}
		return nil // either way the response goes out
	}}
	next.ServeHTTP(hw.wrap(), r)
	hw.begin(http.StatusOK) // of a handler that has written nothing
}

var (
	tooMany = problem{
		Status: http.StatusTooManyRequests,
		Detail: "The limit on requests is used up. Retry-After tells when to try again.",
	}.ready()
	tooMuch = problem{
		Status: http.StatusTooManyRequests,
		Detail: "This request needs more than the limit allows at all. Trying again does not help.",
	}.ready()
	nobody = problem{
		Status: http.StatusBadRequest,
		Detail: "The request does not tell who sent it, so it cannot be counted.",
	}.ready()
	uncounted = problem{
		Status: http.StatusServiceUnavailable,
		Detail: "The limit on requests cannot be checked at the moment.",
	}.ready()
)

// refuse answers a request that is not passed on.
func (l *RateLimit) refuse(w http.ResponseWriter, d Decision, values *singles) {
	switch {
	case d.Status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", unavailableRetry)
		uncounted.serve(w, d.Request, values)
	case d.Status == http.StatusBadRequest:
		nobody.serve(w, d.Request, values)
	case l.Denied != nil:
		w.Header().Set("Cache-Control", noStore)
		l.Denied.ServeHTTP(w, d.in(d.Request))
	case l.IETFDraft11:
		p := *exceeded(d.Result)
		p.Type = "https://iana.org/assignments/http-problem-types#quota-exceeded"
		p.ViolatedPolicies = []string{d.Result.Policy}
		p.ready().serve(w, d.Request, values)
	default:
		exceeded(d.Result).serve(w, d.Request, values)
	}
}

// exceeded returns the problem of a denial.
func exceeded(res ratelimit.Result) *problem {
	if res.RetryAfter == ratelimit.Never {
		return tooMuch
	}
	return tooMany
}

// unavailableRetry is the Retry-After of a 503, in seconds: long enough for a
// failover of Redis to have begun, and short enough for a person to wait.
const unavailableRetry = "5"

type decisionKey struct{}

// in returns a copy of r that DecisionOf finds d in.
func (d Decision) in(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), decisionKey{}, d))
}

// DecisionOf returns the decision on r: in a Denied handler, and, behind a
// RateLimit with PassDecision, in the handler. Of several, it is the innermost.
func DecisionOf(r *http.Request) (Decision, bool) {
	d, ok := r.Context().Value(decisionKey{}).(Decision)
	return d, ok
}

// undecided logs a request that the limiter did not decide on, and what became
// of it. A client that has hung up is no failure.
func (l *RateLimit) undecided(o *occasional, d Decision) {
	if d.Request.Context().Err() != nil {
		return
	}
	outcome := "refused"
	switch {
	case d.decided():
		outcome = "decided in process"
	case d.Passed:
		outcome = "let through"
	}
	l.warn(o, d.Request, "rate limit: not decided by its limiter: "+outcome, d.Err)
}

func (l *RateLimit) warn(o *occasional, r *http.Request, message string, err error) {
	if skipped, now := o.now(); now {
		l.Logger.LogAttrs(r.Context(), slog.LevelWarn, message,
			slog.Any("error", err),
			slog.String("method", r.Method),
			slog.String("route", route(r)),
			slog.Int64("lines_left_out", skipped))
	}
}

// route names a request in logs: by the pattern that matched, or by its path.
func route(r *http.Request) string {
	if r.Pattern != "" {
		return r.Pattern
	}
	return r.URL.Path
}

// occasional holds log lines down to one a second, whatever the traffic.
type occasional struct {
	last    atomic.Int64 // Unix second of the latest line
	skipped atomic.Int64
}

// now reports whether it is time for a line, and how many were skipped since
// the latest.
func (o *occasional) now() (skipped int64, ok bool) {
	last, now := o.last.Load(), time.Now().Unix()
	if now == last || !o.last.CompareAndSwap(last, now) {
		o.skipped.Add(1)
		return 0, false
	}
	return o.skipped.Swap(0), true
}
