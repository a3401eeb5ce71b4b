package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
)

// Period is a period of the calendar. The zero value is [Day].
type Period uint8

const (
	Day   Period = iota // from midnight to midnight: 23 or 25 hours where clocks are changed
	Week                // from Monday
	Month               // from the first
)

// String returns "day", "week" or "month".
func (p Period) String() string {
	switch p {
	case Day:
		return "day"
	case Week:
		return "week"
	case Month:
		return "month"
	}
	return fmt.Sprintf("Period(%d)", uint8(p))
}

// length is how long a period is in general: the Window of a Quota's Limit.
func (p Period) length() time.Duration {
	switch p {
	case Week:
		return 7 * 24 * time.Hour
	case Month:
		return 30 * 24 * time.Hour
	}
	return 24 * time.Hour
}

// Quota allows so many requests in each day, week or month of a calendar: what a plan
// sells. It is exact within a period; across the boundary of two, up to twice as many may
// pass in a short time. RetryAfter and ResetAfter lead to the end of the period, which is
// midnight in the time zone of the quota. It takes one number per key.
//
// Redis's clock decides which period it is; those of the servers may be off by up to one
// period. They must have the same time zone data. The Window of its Limit is the usual
// length of the period, 30 days for a month. The zero value is not usable; see [NewQuota].
type Quota struct{ remote }

var (
	_ Limiter    = (*Quota)(nil)
	_ LocalTaker = (*Quota)(nil)
	_ Settler    = (*Quota)(nil)
	_ Resetter   = (*Quota)(nil)
	_ Named      = (*Quota)(nil)

	_ Adjustable[*Quota] = (*Quota)(nil)
)

// NewQuota returns a limiter over Redis for requests, 1 to MaxRequests, per period in a
// time zone. [time.Local] is refused: it may differ between servers. Quotas of one name,
// prefix, period and zone share their keys; name is also the Policy of the results. The
// error names everything that is wrong.
func NewQuota(client redis.UniversalClient, name string, requests int, period Period, location *time.Location, cfg Config) (*Quota, error) {
	var errs []error
	if period > Month {
		errs = append(errs, fmt.Errorf("unknown Period %d", uint8(period)))
	}
	switch {
	case location == nil:
		errs = append(errs, errors.New("nil location: name a time zone, or time.UTC"))
	case location == time.Local, !check.KeyText(location.String()) || strings.Contains(location.String(), ":"):
		errs = append(errs, fmt.Errorf("invalid location %q: name a time zone, or time.UTC", location))
	}
	if err := invalid("quota", errs...); err != nil {
		_, also := newRemote(calendar{Day, time.UTC}, client, name, Limit{requests, Day.length()}, cfg)
		return nil, errors.Join(err, also)
	}
	r, err := newRemote(calendar{period, location}, client, name, Limit{requests, period.length()}, cfg)
	if err != nil {
		return nil, err
	}
	return &Quota{r}, nil
}

// With returns a quota of the same name, keys and period, but of another number of
// requests. limit.Window must be 0 or that of the Quota's Limit. What has been spent stays
// spent. A limit of 0 requests denies everything.
func (l *Quota) With(limit Limit) (*Quota, error) {
	if limit.Window == 0 {
		limit.Window = l.limit.Window
	}
	if limit.Window != l.limit.Window {
		return nil, invalid("quota", fmt.Errorf("invalid Limit.Window %v: a quota keeps its period", limit.Window))
	}
	r, err := l.with(limit)
	if err != nil {
		return nil, err
	}
	return &Quota{r}, nil
}

// calendar is the quota's algorithm.
type calendar struct {
	period Period
	zone   *time.Location
}

func (calendar) word() string   { return "quota" }
func (calendar) String() string { return "quota" }
func (calendar) bounds() bounds {
	return bounds{requests: MaxRequests, spend: MaxRequests, touch: math.MaxInt}
}
func (c calendar) newState() state { return &quotaState{calendar: c} }

func (calendar) verdict(r rule, d demand, f found) verdict {
	v, _ := quotaVerdict(r, d, f.a, f.b)
	return v
}

func (c calendar) part(Limit) string { return c.period.String() + "@" + c.zone.String() + ":" }

// The mark is the end of the period.
func (calendar) mark(rc *receipt, v verdict, _ int64) { rc.mark = v.mark }

func (c calendar) args(rule) arguments { return arguments{ends: c.ends, window: ""} }

// ends returns the ends of four periods, that of now third, as quota.lua takes them.
func (c calendar) ends(now int64) string {
	begin := c.begin(time.UnixMicro(now), 0)
	var b []byte
	for i := -1; i <= 2; i++ {
		b = strconv.AppendInt(b, c.begin(begin, i).UnixMilli(), 10)
		b = append(b, ',')
	}
	return string(b)
}

// end is when the period of now ends, in ms.
func (c calendar) end(now int64) int64 {
	return c.begin(c.begin(time.UnixMicro(now), 0), 1).UnixMilli()
}

// begin returns the beginning of the period that is by periods after that of t.
func (c calendar) begin(t time.Time, by int) time.Time {
	t = t.In(c.zone)
	of := func(by int) time.Time {
		year, month, day := t.Date()
		switch c.period {
		case Week:
			day += 7*by - (int(t.Weekday())+6)%7
		case Month:
			month, day = month+time.Month(by), 1
		default:
			day += by
		}
		return midnight(year, month, day, c.zone)
	}
	// Where a change of the clocks gives a date two midnights, t may be beyond them.
	switch {
	case !t.Before(of(1)):
		by++
	case t.Before(of(0)):
		by--
	}
	return of(by)
}

// midnight is when a day begins. That is not at 0 o'clock where clocks are set forward then,
// nor on that day where the date line was moved: there is no such time, and time.Date returns
// one before or after the change.
func midnight(year int, month time.Month, day int, zone *time.Location) time.Time {
	want := time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
	t := time.Date(year, month, day, 0, 0, 0, 0, zone)
	from, to := t.ZoneBounds()
	_, offset := t.Zone()
	switch wall := t.Add(time.Duration(offset) * time.Second); {
	case wall.Before(want):
		return to
	case wall.After(want):
		return from
	}
	// Where clocks are set back over midnight it comes twice: the first one counts.
	if !from.IsZero() {
		_, before := from.Add(-time.Nanosecond).Zone()
		if first := want.Add(-time.Duration(before) * time.Second); first.Before(from) && first.Before(t) {
			return first.In(zone)
		}
	}
	return t
}

// quotaState is a counter and the end of its period in ms.
type quotaState struct {
	calendar
	used, end int64
}

func (s *quotaState) decide(r rule, d demand) verdict {
	end, used := s.calendar.end(d.now), s.used
	if s.end*1000 <= d.now {
		used = 0
	}
	v, spent := quotaVerdict(r, d, used, end)
	if d.cost > 0 && d.cost <= r.requests {
		s.used, s.end = used+spent, end
	}
	return v
}

// quotaVerdict is the verdict on d, where so much of a period is used, and what d spends.
func quotaVerdict(r rule, d demand, used, end int64) (v verdict, spent int64) {
	v = verdict{granted: d.grant(r.requests - used), now: d.now, mark: end}
	spent = v.granted * d.cost
	used += spent
	if used > 0 {
		v.reset = end*1000 - d.now
	}
	if v.granted < d.n {
		v.retry = end*1000 - d.now
		if d.unit() > r.requests {
			v.retry = -1
		}
	}
	v.remaining = max(0, r.requests-used)
	return v, spent
}

func (s *quotaState) settle(r rule, rc *receipt, delta, now int64) {
	end := s.calendar.end(now)
	there := s.end*1000 > now
	switch {
	case delta > 0 && there:
		s.used, s.end = s.used+delta, end
	case delta > 0:
		s.used, s.end = delta, end
	case there && end == rc.mark:
		s.used = max(0, s.used+delta)
	}
}
