package session

import (
	"math/bits"
	"strconv"
	"time"
)

// life is how long a session lasts.
type life struct {
	lifetime time.Duration
	idle     time.Duration // 0: none
	args     *[2]any       // lifetime, and idle with its tolerance, as scripts take them; nil: not made yet
}

// withArgs makes the arguments of scripts once for all writes.
func (l life) withArgs() life {
	l.args = &[2]any{
		strconv.FormatInt(l.lifetime.Microseconds(), 10), strconv.FormatInt(l.slack().Microseconds(), 10),
	}
	return l
}

// lifetimeArg and idleArg are what a script is told of a life that is kept.
func (l life) lifetimeArg() any { return l.args[0] }
func (l life) idleArg() any     { return l.args[1] }

// A use is noted at most every idle/touchShare, and so a session lives up to that much
// longer than idle after its last use.
const touchShare = 20

// slack is how long a session that is not used is there.
func (l life) slack() time.Duration { return l.idle + l.idle/touchShare }

// kept is how long Redis keeps a record after a write: for short, if that is not 0.
func (l life) kept(short time.Duration) life {
	if l.idle = l.slack(); short > 0 && (l.idle == 0 || short < l.idle) {
		l.idle = short
		l.args = &[2]any{l.args[0], short.Microseconds()}
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
	if step := l.kept(0).step(); r.times.step > power(step) {
		end += 1<<min(r.times.step, 62) - step
	}
	return l.idle > 0 && now >= end
}

// touchDue reports whether a use is to be noted.
func (l life) touchDue(r *record, now int64) bool { return l.kept(0).moves(r, now) }

// moves reports whether a write at now sets the times of a record: each idle/touchShare,
// or when the configured life would move its end by as much. It is the script's own rule
// (save.lua), of a life that is kept.
func (l life) moves(r *record, now int64) bool {
	step, end := l.step(), l.deadline(r)
	if l.idle > 0 {
		end = min(end, now+l.idle.Microseconds())
	}
	return now-r.times.touched >= step || end-r.times.until >= step || r.times.step > power(step)
}

// power is the power of two that is above a step, as math.frexp has it in the scripts.
func power(step int64) uint8 { return uint8(bits.Len64(uint64(step))) }

// step is how often a use is noted, in microseconds, under a life that is kept.
func (l life) step() int64 {
	if l.idle > 0 {
		return l.idle.Microseconds() / (touchShare + 1)
	}
	return l.lifetime.Microseconds() / lastSeenShare
}

// lastSeenShare is how often a session without an idle timeout notes its use, so that
// LastSeen means something: a hundred times in its lifetime.
const lastSeenShare = 100
