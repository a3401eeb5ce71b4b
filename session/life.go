package session

import (
	"math/bits"
	"time"
)

// life is how long a session lasts.
type life struct {
	lifetime time.Duration
	idle     time.Duration // 0: none
	step     int64         // how often a use is noted, µs
	arg      string        // of a life that is kept, as scripts take it
}

// newLife returns a life that notes uses as often as its times want it, and at least as often
// as another: of a user's sessions of any kind the idlest is to be found.
func newLife(lifetime, idle time.Duration, another ...life) life {
	l := life{lifetime: lifetime, idle: idle, step: lifetime.Microseconds() / lastSeenShare}
	if idle > 0 {
		l.step = l.slack().Microseconds() / (touchShare + 1)
	}
	for _, o := range another {
		l.step = min(l.step, o.step)
	}
	l.arg = l.argOf(l.slack())
	return l
}

// argOf renders l as scripts take it, with idle in the place of its own. scripts/README.md has the
// format.
func (l life) argOf(idle time.Duration) string {
	b := make([]byte, 0, 3*timeLen+1)
	for _, µs := range [...]int64{l.lifetime.Microseconds(), idle.Microseconds(), l.step} {
		b = appendTime(b, µs)
	}
	return string(append(b, power(l.step)))
}

const (
	// A use is noted at most every idle/touchShare, and so a session lives up to that much
	// longer than idle after its last use.
	touchShare = 20
	// A session without an idle timeout notes its use, so that LastSeen means something, a
	// hundred times in its lifetime.
	lastSeenShare = 100
)

// slack is how long a session that is not used is there.
func (l life) slack() time.Duration { return l.idle + l.idle/touchShare }

// after renders l as scripts take it that write over a record of another life: in front is how
// long that may be unused.
func (l life) after(old life) string {
	b := appendTime(make([]byte, 0, 4*timeLen+1), old.slack().Microseconds())
	return string(append(b, l.arg...))
}

// kept is how long Redis keeps a record after a write: for short, if that is not 0.
func (l life) kept(short time.Duration) life {
	if l.idle = l.slack(); short > 0 && (l.idle == 0 || short < l.idle) {
		l.idle = short
		l.arg = l.argOf(short)
	}
	return l
}

// deadline is the absolute end of a record under this life.
func (l life) deadline(r *record) int64 {
	if r.head.copied {
		return r.times.deadline
	}
	return r.times.born + l.lifetime.Microseconds()
}

// over reports whether a record's time has passed. The record alone decides: a key that
// outlived its TTL, on a replica or after a restore, is no session. If uses were noted less
// often when the last one was, the session may have been used since: then it has that much
// longer, or a shorter idle timeout would log out users who are active.
func (l life) over(r *record, now int64) bool {
	if now >= r.times.until || now >= l.deadline(r) {
		return true
	}
	end := r.times.touched + l.slack().Microseconds()
	if r.times.step > power(l.step) {
		end += 1<<min(r.times.step, 62) - l.step
	}
	return l.idle > 0 && now >= end
}

// touchDue reports whether a use is to be noted.
func (l life) touchDue(r *record, now int64) bool { return l.kept(0).moves(r, now) }

// moves reports whether a write at now sets the times of a record: each idle/touchShare,
// when the configured life would move its end by as much, or when uses were noted less often
// before. It is the script's own rule (save.lua), of a life that is kept.
func (l life) moves(r *record, now int64) bool {
	end := l.deadline(r)
	if l.idle > 0 {
		end = min(end, now+l.idle.Microseconds())
	}
	return now-r.times.touched >= l.step || end-r.times.until >= l.step || r.times.step > power(l.step)
}

// power is the power of two that is above a step.
func power(step int64) uint8 { return uint8(bits.Len64(uint64(step))) }
