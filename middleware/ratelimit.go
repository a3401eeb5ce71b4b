package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// FailureMode is what becomes of a request that its limiter could not decide on,
// because Redis failed.
type FailureMode uint8

const (
	// FailLocal counts in process, if the limiter can (see
	// [ratelimit.LocalTaker]); if it cannot, this is FailClosed.
	FailLocal FailureMode = iota
	// FailOpen passes the request on, uncounted.
	FailOpen
	// FailClosed answers 503.
	FailClosed
)

// String returns "local", "open" or "closed".
func (m FailureMode) String() string {
	switch m {
	case FailLocal:
		return "local"
	case FailOpen:
		return "open"
	case FailClosed:
		return "closed"
	}
	return fmt.Sprintf("FailureMode(%d)", uint8(m))
}

// RateLimit asks a limiter about every request and refuses with 429 what it
// denies. The zero value is not usable: Limiter and Key are required.
//
// Every response to a request that a limit above 0 has decided carries
// X-RateLimit-Limit, X-RateLimit-Remaining and X-RateLimit-Reset (the second, in
// Unix time, at which the full quota is back), unless Fields or Shadow say
// otherwise, and a 429 also Retry-After, unless waiting can never help. Several
// RateLimits may stand on one request: each counts it once, and the tightest one's
// figures are sent. A RateLimit that is mounted twice counts
// a request once if key, cost and limiter are the same, and the path too, or what
// [http.StripPrefix] leaves of it. If a handler splits a request into several, as for
// a batch, the first one may count as the request itself; the others are counted.
//
// It starts no goroutines and does not wrap the ResponseWriter.
type RateLimit struct {
	Limiter ratelimit.Limiter // what decides; required
	Key     KeyFunc           // whom it counts; required

	// OnError is what becomes of a request when Redis fails. It does not cover
	// a request without a key: letting that through would let clients choose
	// not to be counted. Such a request is refused, with 400 if the error of
	// Key wraps ErrNoKey and with 503 otherwise.
	OnError FailureMode

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

	// FailuresOnly counts every request but those whose handler calls [Succeeded], such as
	// that of a login once the password was right. What nobody has called a success is a
	// failure, also where the handler panics, or another handler answers: no status is read.
	//
	// A request in flight counts until then, so that of 1,000 guesses at once no more are
	// checked than the limit allows. One that finds no permit left waits for others to
	// succeed, two seconds in all; once nothing has come back for that long, further ones are
	// refused at once. A handler that takes longer may look like a failure to those who wait on
	// another server, or at another mount of the limit; the entries of one [Routes] know of
	// each other.
	// Limiter must be a [ratelimit.Settler], see [ratelimit.Settles].
	//
	// Where Redis does not answer, OnError: FailLocal gives each server its share of the limit
	// anew. For guesses at a secret, FailClosed gives none.
	//
	// Of two RateLimits on one route the outer one also counts what the inner one refuses;
	// [ratelimit.All] in one RateLimit counts neither.
	FailuresOnly bool

	// Skip says which requests pass without being counted, such as health checks and
	// preflights of CORS. No limiter and no key is asked for then. nil: none.
	Skip func(*http.Request) bool

	// Refused answers in place of the problems that are sent by default, with d.Status: 429,
	// 400 where there is no key, 503 where there is no decision. The header fields, such as
	// Retry-After and Cache-Control: no-store, are set before it is called.
	Refused func(w http.ResponseWriter, r *http.Request, d Decision)

	// Shadow decides, counts and reports as ever but refuses nothing and sends
	// no fields, so that clients behave as if there were no limit.
	Shadow bool

	// Fields are the header fields that tell clients about the limit.
	Fields Fields

	// OnDecision is called with each decision, before the request goes on. It
	// must not block.
	OnDecision func(Decision)

	// Logger gets limiters that fail and requests without a key, at most one
	// line a second for each mounted RateLimit. nil: slog.Default().
	Logger *slog.Logger
}

// Validate returns all that is wrong with l, or nil.
func (l RateLimit) Validate() error {
	var errs []error
	if v := reflect.ValueOf(l.Limiter); l.Limiter == nil || v.Kind() == reflect.Pointer && v.IsNil() {
		errs = append(errs, errors.New("middleware: RateLimit.Limiter is nil"))
	} else if made, ok := l.Limiter.(interface{ Validate() error }); ok { // that of ratelimit.Keyed
		if err := made.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("middleware: RateLimit.Limiter: %w", err))
		}
	}
	if l.Key == nil {
		errs = append(errs, errors.New("middleware: RateLimit.Key is nil"))
	}
	if l.FailuresOnly && l.Limiter != nil && !ratelimit.Settles(l.Limiter) {
		errs = append(errs, fmt.Errorf("middleware: RateLimit.FailuresOnly needs a Limiter that is a ratelimit.Settler, which %T is not, or not all of what it is made of", l.Limiter))
	}
	if l.OnError > FailClosed {
		errs = append(errs, fmt.Errorf("middleware: RateLimit.OnError is %v", l.OnError))
	}
	return errors.Join(append(errs, l.Fields.validate())...)
}

// free reports whether l is the zero value, which in Routes limits nothing.
func (l RateLimit) free() bool { return reflect.ValueOf(l).IsZero() }

// Check decides on r and spends its permits. It knows nothing of responses, waits for nobody
// else's success, and [DecisionsOf] does not find what it returns.
func (l RateLimit) Check(r *http.Request) Decision {
	d := Decision{Request: r, Cost: 1, Passed: true}
	if !l.skips(r) {
		if l.ask(&d) {
			l.take(r.Context(), &d)
		}
		l.pass(&d)
	}
	return d
}

func (l *RateLimit) skips(r *http.Request) bool { return l.Skip != nil && l.Skip(r) }

// pass says whether a request that was decided on goes on.
func (l *RateLimit) pass(d *Decision) { d.Passed = d.Status == 0 || l.Shadow }

// ask fills in what is to be decided on: limiter, cost and key. It reports whether there is all
// that it takes; if not, d has its status.
func (l *RateLimit) ask(d *Decision) bool {
	if d.limiter, d.Err = l.limiterOf(d.Request); d.Err != nil {
		d.Status = http.StatusServiceUnavailable
		return false
	}
	if l.Cost != nil {
		d.Cost = l.Cost(d.Request)
	}
	d.identify(l.Key)
	return d.Status == 0
}

// take asks the limiter about d, of which limiter, key and cost are known. ctx is
// that of the request, or one of package untold made of it.
func (l *RateLimit) take(ctx context.Context, d *Decision) {
	d.Result, d.Err = d.limiter.Take(ctx, d.Key, d.Cost)
	decided := d.Err == nil
	switch {
	case decided:
	case ctx.Err() != nil, errors.Is(d.Err, ratelimit.ErrCost):
		// Nobody counted: a client must not get past a limit by hanging up, nor
		// by a cost of its choice.
	case l.OnError == FailOpen:
		d.Status = 0
		return
	case l.OnError == FailLocal:
		if local, ok := d.limiter.(ratelimit.LocalTaker); ok {
			if res, err := local.TakeLocally(d.Key, d.Cost); err == nil {
				d.Result, decided = res, true
			}
		}
	}
	d.conclude(decided)
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
	if l.FailuresOnly && !ratelimit.Settles(chosen) {
		return nil, fmt.Errorf("middleware: FailuresOnly: LimiterFor returned a %T, which is no ratelimit.Settler, or not all of what it is made of", chosen)
	}
	return chosen, nil
}

// Handler returns a handler that passes to next what the limit allows. It
// panics with the error of Validate.
func (l RateLimit) Handler(next http.Handler) http.Handler {
	m := l.mount()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, next) })
}

// mounted is a RateLimit in use.
type mounted struct {
	RateLimit
	log     occasional
	waiting *waiting // of FailuresOnly
}

func (l RateLimit) mount() *mounted {
	if err := l.Validate(); err != nil {
		panic(err)
	}
	l.Fields = l.Fields.withDefaults()
	return &mounted{RateLimit: l, waiting: new(waiting)}
}

func (m *mounted) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if m.skips(r) {
		next.ServeHTTP(w, r)
		return
	}
	d := Decision{Request: r, Cost: 1}
	up, again := takenOf(r), false // this RateLimit has counted the request
	if m.ask(&d) {
		switch again = up.countedBy(m, &d); {
		case again:
		case m.FailuresOnly && !m.Shadow:
			m.waiting.take(&m.RateLimit, &d)
		default:
			m.take(r.Context(), &d)
		}
	}
	if m.pass(&d); d.Err != nil {
		m.undecided(&d)
	}
	if m.OnDecision != nil && !again {
		m.OnDecision(d)
	}
	fields := 3 // of a response that is passed on
	if !d.Passed {
		fields = 7
	}
	values := make(singles, 0, fields)
	if !m.Shadow && d.decided() && d.Result.Limit.Requests > 0 {
		m.Fields.describe(w.Header(), &d.Result, &values)
	}
	if !d.Passed {
		m.refuse(w, &d, &values)
		return
	}
	if m.FailuresOnly && d.Key != "" && !again {
		of := d.counted()
		m.waiting.begin(of)
		defer m.waiting.end(of)
	}
	inside := m.remember(r, up, &d, again)
	defer handBack(r, inside)
	next.ServeHTTP(w, inside)
}

// handBack brings out of a copy of a request what those further out want: the server removes
// the files of its own request alone, and what logs requests wants the route.
func handBack(outside, inside *http.Request) {
	if outside != inside {
		outside.MultipartForm, outside.Pattern = inside.MultipartForm, inside.Pattern
	}
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
	denied = problem{
		Status: http.StatusTooManyRequests,
		Detail: "Requests of this client are refused at present.",
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
func (m *mounted) refuse(w http.ResponseWriter, d *Decision, values *singles) {
	if d.Status == http.StatusServiceUnavailable {
		w.Header()["Retry-After"] = values.of(unavailableRetry)
	}
	if m.Refused != nil {
		w.Header()["Cache-Control"] = values.of(noStore)
		m.Refused(w, m.remember(d.Request, takenOf(d.Request), d, false), *d)
		return
	}
	p := m.problem(d)
	p.serve(w, d.Request, values)
}

// problem is what answers a request that is not passed on.
func (l *RateLimit) problem(d *Decision) *problem {
	switch {
	case d.Status == http.StatusServiceUnavailable:
		return uncounted
	case d.Status == http.StatusBadRequest:
		return nobody
	case l.Fields.IETF:
		p := *exceeded(&d.Result)
		p.Type = "https://iana.org/assignments/http-problem-types#quota-exceeded"
		p.ViolatedPolicies = []string{d.Result.Policy}
		return p.ready()
	}
	return exceeded(&d.Result)
}

// exceeded returns the problem of a denial.
func exceeded(res *ratelimit.Result) *problem {
	if res.Source == ratelimit.FromRule {
		return denied
	}
	if res.RetryAfter == ratelimit.Never {
		return tooMuch
	}
	return tooMany
}

// unavailableRetry is the Retry-After of a 503, in seconds: long enough for a
// failover of Redis to have begun, and short enough for a person to wait.
const unavailableRetry = "5"

// undecided logs a request that the limiter did not decide on, and what became
// of it. A client that has hung up is no failure, and a request without a key is not the limiter's.
func (m *mounted) undecided(d *Decision) {
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
	what := "rate limit: not decided by its limiter: "
	if d.Status == http.StatusBadRequest {
		what = "rate limit: the request has no key (400): "
	}
	m.warn(d.Request, what+outcome, d.Err, slog.String("policy", d.Policy()))
}

func (m *mounted) warn(r *http.Request, message string, err error, more ...slog.Attr) {
	if skipped, now := m.log.now(err); now {
		loggerOr(m.Logger).LogAttrs(r.Context(), slog.LevelWarn, message, append([]slog.Attr{
			slog.Any("error", err),
			slog.String("method", r.Method),
			slog.String("route", route(r)),
			slog.Int64("lines_left_out", skipped)}, more...)...)
	}
}

// loggerOr is a configured Logger, or the default one of the time of the line.
func loggerOr(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.Default()
	}
	return l
}

// route names a request in logs by the pattern that matched, if one has yet. Its path may hold
// a token that resets a password.
func route(r *http.Request) string {
	return r.Pattern
}

// occasional holds log lines down to one a second, whatever the traffic, and to one an hour of what
// Redis does not permit, which lasts until somebody permits it.
type occasional struct {
	last    atomic.Int64 // Unix second of the latest line
	refusal atomic.Pointer[refusal]
	skipped atomic.Int64
}

type refusal struct {
	said string
	at   time.Time
}

// now reports whether it is time for a line about err, and how many were skipped since the
// latest.
func (o *occasional) now(err error) (skipped int64, ok bool) {
	now := time.Now()
	if isRefusal(err) {
		last := o.refusal.Load()
		next := &refusal{err.Error(), now}
		if last != nil && last.said == next.said && now.Sub(last.at) < time.Hour || !o.refusal.CompareAndSwap(last, next) {
			o.skipped.Add(1)
			return 0, false
		}
		return o.skipped.Swap(0), true
	}
	if last := o.last.Load(); now.Unix() == last || !o.last.CompareAndSwap(last, now.Unix()) {
		o.skipped.Add(1)
		return 0, false
	}
	return o.skipped.Swap(0), true
}

// isRefusal reports whether Redis does not permit a command to this user, or one of a script, or
// does not know it.
func isRefusal(err error) bool {
	if err == nil {
		return false
	}
	if redis.HasErrorPrefix(err, "NOPERM") {
		return true
	}
	for _, text := range [...]string{"The user executing the script can't run this command", "ERR unknown command '", "Unknown Redis command called from script"} {
		if strings.Contains(err.Error(), text) {
			return true
		}
	}
	return false
}
