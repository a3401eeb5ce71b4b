package ratelimit

import (
	"sync/atomic"
	"time"
)

// maxRemembered is how long a denial may be remembered: a key that another
// server frees is free everywhere after it.
const maxRemembered = time.Second

// denials are the denials that a limiter remembers, so that a client which
// hammers costs Redis one command per second and server.
type denials struct {
	keys  *bounded[*denial]
	start time.Time
	since func(time.Time) time.Duration
	clock func() int64 // tests only: µs
}

// denial is the answer to a Take of some cost. Times are since denials.start. It does
// not change, but for impatient.
type denial struct {
	cost     int
	answered time.Duration // the durations in res count from here
	expires  time.Duration // it denies until here
	res      Result
	told     bool // a Penalty has noted it

	impatient atomic.Bool // it was denied again, later than requests that were under way already
}

func (d *denial) forgettableAt() int64 { return int64(d.expires) }

func newDenials(maxKeys int, since func(time.Time) time.Duration) *denials {
	return &denials{keys: newBounded[*denial](maxKeys), start: time.Now(), since: since}
}

// now is the time since start.
func (d *denials) now() time.Duration {
	if d.clock != nil {
		return time.Duration(d.clock()) * time.Microsecond
	}
	return d.since(d.start)
}

// at is what now was at a time.
func (d *denials) at(t time.Time) time.Duration {
	if d.clock != nil {
		return d.now()
	}
	return t.Sub(d.start)
}

// remember stores a denial that was asked for at the time sent. The denial is
// over RetryAfter after Redis decided; from sent on, that is never too late.
func (d *denials) remember(subject string, cost int, res Result, sent time.Duration, told bool) {
	now := d.now()
	entry := &denial{
		cost:     max(cost, 1),
		answered: now,
		expires:  sent + min(res.RetryAfter, maxRemembered),
		res:      res,
		told:     told,
	}
	if entry.expires <= now {
		return
	}
	s := d.keys.lock(subject)
	d.keys.put(s, subject, entry)
	s.mu.Unlock()
}

// rememberFrom is remember with a time sent by the clock of o.
func (d *denials) rememberFrom(o *denials, subject string, cost int, res Result, sent time.Duration) {
	d.remember(subject, cost, res, d.now()-(o.now()-sent), false)
}

// recalled is what is known of a key.
type recalled struct {
	denies bool
	res    Result // if it denies
	// impatient says that the key came back before its RetryAfter was over. It is set once
	// the denial is no longer remembered.
	impatient bool
}

// recall answers a Take from a remembered denial: of the same limit, and of no
// greater cost, for where there is no room for 3, there is none for 5. When there
// will be room for 5 is not known then; when the whole quota is back, there is. told says that a
// Penalty notes the denial: it has to know of it, and that the key has come early.
func (d *denials) recall(subject string, limit Limit, cost int, told bool) recalled {
	if d.keys.count.Load() == 0 {
		return recalled{}
	}
	s := d.keys.lock(subject)
	entry, ok := s.m[subject]
	s.mu.Unlock()
	if !ok {
		return recalled{}
	}
	now := d.now()
	if now >= entry.expires {
		if entry.told && !told { // that the key came early is for the next one to tell
			return recalled{}
		}
		s.mu.Lock()
		if s.m[subject] == entry { // not a later one
			d.keys.drop(s, subject)
		}
		s.mu.Unlock()
		return recalled{impatient: entry.impatient.Load() && entry.res.Limit == limit}
	}
	if entry.res.Limit != limit || max(cost, 1) < entry.cost || told && !entry.told {
		return recalled{}
	}
	res := entry.res
	res.Source = FromCache
	passed := now - entry.answered
	if res.at != 0 {
		res.at += passed.Microseconds()
	}
	passed = passed.Truncate(time.Microsecond)
	if told && passed > min(inFlight, entry.res.RetryAfter/2) && !entry.impatient.Load() {
		entry.impatient.Store(true)
	}
	switch {
	case cost > limit.Requests:
		res.RetryAfter = Never
	case max(cost, 1) > entry.cost:
		res.RetryAfter = res.ResetAfter - passed
	default:
		res.RetryAfter -= passed
	}
	// A cost above the limit is denied for longer than until the reset.
	res.ResetAfter = max(0, res.ResetAfter-passed)
	return recalled{denies: true, res: res}
}

// forget makes room for what is true now: the key was freed, or permits that
// were too few for the remembered cost have been spent on another.
func (d *denials) forget(subject string) {
	if d.keys.count.Load() == 0 {
		return
	}
	s := d.keys.lock(subject)
	d.keys.drop(s, subject)
	s.mu.Unlock()
}

func (d *denials) forgetAll() { d.keys.clear() }
