package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// The same operations on Redis and in process, by the same clock, come to the same.
func TestRedisAndLocalAgree(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
		}
		for _, a := range algorithms {
			t.Run(a.String(), func(t *testing.T) {
				for round := range b.Rounds(40) {
					seed := rand.Uint64()
					r := rand.New(rand.NewPCG(seed, 0))
					now := time.Now().Add(24 * time.Hour).UnixMicro()
					clock := func() int64 { return now }
					limit := Limit{1 + r.IntN(12), time.Duration(1000+r.IntN(3_000_000)) * time.Microsecond}.of(a)
					there := newLimiter(t, a, b.Client, fmt.Sprintf("agree-%x", seed), limit)
					here := newLocal(a, "agree", limit, Config{})
					SetClock(there, clock)
					SetClock(here, clock)
					var taken [][2]Result
					for step := range 60 {
						now += r.Int64N(limit.Window.Microseconds() / 3)
						if len(taken) > 0 && r.IntN(3) == 0 {
							i, cost := r.IntN(len(taken)), r.IntN(4)*r.IntN(limit.Requests+2)
							err1 := there.(Settler).Settle(ctx, "k", taken[i][0], cost)
							err2 := here.Settle(ctx, "k", taken[i][1], cost)
							if err1 != nil || err2 != nil {
								t.Fatalf("seed %d, round %d, step %d: settling: %v, %v", seed, round, step, err1, err2)
							}
							now++ // of claims of one microsecond it is open which gives way to a later settlement
						}
						cost := r.IntN(4)
						x, y := must(there.Take(ctx, "k", cost)), must(here.Take(ctx, "k", cost))
						if x.Allowed && cost > 0 {
							taken = append(taken, [2]Result{x, y})
						}
						if x.Source == FromCache {
							continue // its figures are not those of this moment
						}
						y.Source, y.Policy, x.receipt, y.receipt = x.Source, x.Policy, nil, nil
						if x != y {
							t.Fatalf("seed %d, round %d, step %d, limit %v, cost %d:\nRedis %+v\nlocal %+v", seed, round, step, limit, cost, x, y)
						}
					}
				}
			})
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}
