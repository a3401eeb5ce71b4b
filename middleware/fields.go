package middleware

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Fields says which header fields tell clients about a limit. The zero value: X-RateLimit-Limit,
// X-RateLimit-Remaining and X-RateLimit-Reset. Retry-After is sent with each refusal that
// waiting can help.
type Fields struct {
	// None sends none.
	None bool
	// Names are other names for the three fields; those that are empty stay as they are. Fields that mean
	// something else, such as Retry-After, are an error.
	Names FieldNames
	// IETF adds RateLimit-Policy and RateLimit in the form of
	// draft-ietf-httpapi-ratelimit-headers-11, and its problem type to the 429.
	// Since revision 08 the form has not changed. Policies whose names are not
	// printable ASCII cannot be named in them: these fields are left out then.
	IETF bool
	// Expose adds the fields to Access-Control-Expose-Headers, so that scripts of other
	// origins can read them. Which origins may read the response at all is not decided here.
	Expose bool

	exposed string // what Expose adds
}

// FieldNames are names of header fields, such as RateLimit-Remaining.
type FieldNames struct{ Limit, Remaining, Reset string }

func (f Fields) validate() error {
	var errs []error
	if f.None && f != (Fields{None: true}) {
		errs = append(errs, errors.New("middleware: RateLimit.Fields: with None nothing else has a meaning"))
	}
	for _, name := range []string{f.Names.Limit, f.Names.Remaining, f.Names.Reset} {
		switch {
		case name == "":
		case !isToken(name):
			errs = append(errs, fmt.Errorf("middleware: RateLimit.Fields.Names: %q is no header name", name))
		case meansMore(http.CanonicalHeaderKey(name)):
			errs = append(errs, fmt.Errorf("middleware: RateLimit.Fields.Names: %s is a field with another meaning", http.CanonicalHeaderKey(name)))
		}
	}
	n := f.withDefaults().Names
	if n.Limit == n.Remaining || n.Remaining == n.Reset || n.Limit == n.Reset {
		errs = append(errs, fmt.Errorf("middleware: RateLimit.Fields.Names: two are %s", n.Remaining))
	}
	return errors.Join(errs...)
}

// meansMore reports whether HTTP, browsers or Fields itself take a field of a response for something
// other than a figure of a limit.
func meansMore(name string) bool {
	switch name {
	case fieldPolicy, fieldRateLimit, "Retry-After", "Age", "Allow", "Cache-Control", "Connection", "Date", "Etag", "Expires", "Keep-Alive",
		"Last-Modified", "Link", "Location", "Set-Cookie", "Strict-Transport-Security", "Trailer", "Transfer-Encoding", "Upgrade", "Vary", "Www-Authenticate":
		return true
	}
	return strings.HasPrefix(name, "Content-") || strings.HasPrefix(name, "Access-Control-")
}

// withDefaults is f with canonical names for all fields.
func (f Fields) withDefaults() Fields {
	var names []string
	for _, n := range []struct {
		name  *string
		byDef string
	}{{&f.Names.Limit, "X-RateLimit-Limit"}, {&f.Names.Remaining, "X-RateLimit-Remaining"}, {&f.Names.Reset, "X-RateLimit-Reset"}} {
		if *n.name == "" {
			*n.name = n.byDef
		}
		names = append(names, *n.name)
		*n.name = http.CanonicalHeaderKey(*n.name)
	}
	names = append(names, "Retry-After")
	if f.IETF {
		names = append(names, "RateLimit-Policy", "RateLimit")
	}
	f.exposed = strings.Join(names, ", ")
	return f
}

// Header fields besides those that have Names, in canonical form.
const (
	fieldPolicy    = "Ratelimit-Policy"
	fieldRateLimit = "Ratelimit"
	fieldExpose    = "Access-Control-Expose-Headers"
)

// singles makes slices of one string each, for header fields, out of one allocation
// for as many as it has room for.
type singles []string

func (v *singles) of(s string) []string {
	*v = append(*v, s)
	n := len(*v)
	return (*v)[n-1 : n : n]
}

// describe writes what res says into the header fields of a response.
//
// Of several limiters on one request the tightest one's figures stand: those of
// a denial, or else those with the fewest permits left, and of equals those
// that take longest to come back. The figures of the others are in the header
// already, so that is where they are compared; a value in the request's context
// would copy the request once for each limiter.
func (f *Fields) describe(h http.Header, res *ratelimit.Result, values *singles) {
	if f.None {
		setRetryAfter(h, res, values)
		return
	}
	reset := epochSeconds(res)
	others := h[f.Names.Remaining]
	if !res.Allowed || len(others) == 0 || f.tighter(res.Remaining, reset, others[0], h) {
		var buf [80]byte // four numbers, and one allocation for their digits
		b := strconv.AppendInt(buf[:0], int64(res.Limit.Requests), 10)
		limit := len(b)
		b = strconv.AppendInt(b, int64(res.Remaining), 10)
		remaining := len(b)
		b = strconv.AppendInt(b, reset, 10)
		until := len(b)
		if canRetry(res) {
			b = strconv.AppendInt(b, retrySeconds(res), 10)
		}
		digits := string(b)
		h[f.Names.Limit] = values.of(digits[:limit])
		h[f.Names.Remaining] = values.of(digits[limit:remaining])
		h[f.Names.Reset] = values.of(digits[remaining:until])
		if until < len(digits) {
			h["Retry-After"] = values.of(digits[until:])
		}
		if f.IETF {
			describeIETF(h, res)
		} else if len(others) > 0 {
			// Those of a looser limit would contradict.
			delete(h, fieldPolicy)
			delete(h, fieldRateLimit)
		}
	}
	if f.Expose && !slices.Contains(h[fieldExpose], f.exposed) {
		h.Add(fieldExpose, f.exposed)
	}
}

// setRetryAfter says when a request that was denied can be allowed, if ever.
func setRetryAfter(h http.Header, res *ratelimit.Result, values *singles) {
	if canRetry(res) {
		h["Retry-After"] = values.of(strconv.FormatInt(retrySeconds(res), 10))
	}
}

func canRetry(res *ratelimit.Result) bool { return !res.Allowed && res.RetryAfter != ratelimit.Never }

// describeIETF writes the fields of draft-ietf-httpapi-ratelimit-headers, which
// speak of whole seconds only: a window is rounded up, so that a client that
// keeps to it is never refused. The figures are those of one policy; the draft
// has lists, but nothing that says which member a Retry-After belongs to.
func describeIETF(h http.Header, res *ratelimit.Result) {
	within := ceilSeconds(res.ResetAfter)
	if canRetry(res) {
		within = retrySeconds(res) // section 6: Retry-After is not before the end of the effective window
	}
	policy := httpsfv.NewItem(res.Policy)
	policy.Params.Add("q", min(int64(res.Limit.Requests), maxInteger))
	policy.Params.Add("w", max(1, ceilSeconds(res.Limit.Window)))
	left := httpsfv.NewItem(res.Policy)
	left.Params.Add("r", min(int64(res.Remaining), maxInteger))
	left.Params.Add("t", within)

	policyField, err1 := httpsfv.Marshal(httpsfv.List{policy})
	leftField, err2 := httpsfv.Marshal(httpsfv.List{left})
	if err1 != nil || err2 != nil { // the name is not ASCII: there is no field for it
		delete(h, fieldPolicy)
		delete(h, fieldRateLimit)
		return
	}
	h[fieldPolicy] = []string{policyField}
	h[fieldRateLimit] = []string{leftField}
}

// maxInteger is the largest Integer of RFC 9651.
const maxInteger = 999_999_999_999_999

// tighter reports whether the figures of a request that passed are tighter than
// those in h, where figure is what remains.
func (f *Fields) tighter(remaining int, reset int64, figure string, h http.Header) bool {
	before, err := strconv.Atoi(figure)
	if err != nil || remaining != before {
		return err != nil || remaining < before
	}
	resetBefore, err := strconv.ParseInt(h.Get(f.Names.Reset), 10, 64)
	return err != nil || reset > resetBefore
}

// epochSeconds is when the full quota is back, rounded up to a second of Unix
// time. ResetAt is on the clock that decided: ours would make it wobble.
func epochSeconds(res *ratelimit.Result) int64 {
	at := res.ResetAt()
	s := at.Unix()
	if at.Nanosecond() > 0 {
		s++
	}
	return s
}

// retrySeconds is the Retry-After of a denial: whole seconds, never earlier than
// a permit is free, and at least 1, because 0 invites the same request at once.
func retrySeconds(res *ratelimit.Result) int64 { return max(1, ceilSeconds(res.RetryAfter)) }

func ceilSeconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/time.Second) + 1
}
