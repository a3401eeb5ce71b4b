package ratelimit

import (
	"fmt"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// SetClock makes l decide by now, in µs since 1970, which must not be behind
// Redis's clock.
func SetClock(l Limiter, now func() int64) {
	switch l := l.(type) {
	case *Local:
		l.clock = now
		return
	case *allOf:
		for _, m := range l.limiters {
			SetClock(m, now)
		}
		return
	case *keyed:
		SetClock(l.limiter, now)
		return
	}
	e := engineOf(l)
	e.clock, e.denials.clock, e.local.clock = now, now, now
}

// SetScript makes l run another script.
func SetScript(l Limiter, source string) { engineOf(l).script = scripts.New(source) }

// RedisKey is the key under which l keeps what key has used.
func RedisKey(l Limiter, key string) string { return engineOf(l).redisKey(escapeSubject(key)) }

func engineOf(l Limiter) *engine {
	switch l := l.(type) {
	case *SlidingWindow:
		return l.engine
	case *FixedWindow:
		return l.engine
	case *TokenBucket:
		return l.engine
	}
	panic(fmt.Sprintf("no engine in %T", l))
}
