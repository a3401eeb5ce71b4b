package ratelimit

import (
	"context"
	"time"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// The algorithms, as tests name them.
var (
	sliding algorithm = slidingWindow{}
	fixed   algorithm = fixedWindow{}
	bucket  algorithm = tokenBucket{}
	quota   algorithm = calendar{Day, time.UTC}

	algorithms = []algorithm{sliding, fixed, bucket, quota}
)

func engineScript(a algorithm) *scripts.Script { return scripts.Get("limit/" + a.word() + ".lua") }

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
func SetScript(l Limiter, source string) {
	engineOf(l).take, engineOf(l).many = scripts.New(source), nil
}

// RedisKey is the key under which l keeps what key has used.
func RedisKey(l Limiter, key string) string {
	r := remoteOf(l)
	return r.redisKey(r.subject(key))
}

func engineOf(l Limiter) *engine { return remoteOf(l).engine }

// askMany has Redis decide about n requests at once.
func askMany(l *remote, key string, cost int, n int64) (verdict, error) {
	args := l.terms(cost).Args
	return unpack(l.sender.Run(context.Background(), l.take, []string{l.redisKey(l.subject(key))}, append(args[:], n)...))
}
