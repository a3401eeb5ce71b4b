package ratelimit

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// The hot paths' allocations, so that they do not creep back. A Take in Redis
// contains go-redis's own: its command, arguments and reply.
func TestAllocations(t *testing.T) {
	client := redistest.Shared(t).Client()
	denied := newLimiter(t, sliding, client, "allocs denied", PerHour(1))
	must(denied.Take(ctx, "user-1", 1))
	local := must(NewLocal("local", PerHour(1_000_000), Config{}))
	localDenied := must(NewLocal("local", PerHour(1), Config{}))
	must(localDenied.Take(ctx, "user-1", 1))
	take := func(l Limiter, cost int) func() {
		return func() { must(l.Take(ctx, "user-1", cost)) }
	}
	for _, test := range []struct {
		name string
		most float64
		f    func()
	}{
		{"remembered denial", 0, take(denied, 1)},
		{"sliding window", 23, take(newLimiter(t, sliding, client, "allocs", PerHour(1_000_000)), 1)},
		{"fixed window", 23, take(newLimiter(t, fixed, client, "allocs fixed", PerHour(1<<20)), 1)},
		{"token bucket", 23, take(newLimiter(t, bucket, client, "allocs bucket", PerHour(1<<20)), 1)},
		{"look", 22, take(newLimiter(t, fixed, client, "allocs fixed", PerHour(1<<20)), 0)},
		{"local", 1, take(local, 1)},
		{"local denial", 0, take(localDenied, 1)},
		{"plain key", 0, func() { escapeSubject("user-1") }},
	} {
		test.f()
		if n := testing.AllocsPerRun(500, test.f); n > test.most {
			t.Errorf("%s: %v allocations, want at most %v", test.name, n, test.most)
		} else {
			t.Logf("%s: %v allocations", test.name, n)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	client := redistest.Shared(b).Client()
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = fmt.Sprint("user-", i)
	}
	for _, a := range algorithms {
		l := newLimiter(b, a, client, "bench "+a.String(), PerMinute(1000))
		b.Run(a.String()+"/one in flight", func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				must(l.Take(ctx, keys[i%len(keys)], 1))
			}
		})
		for _, inFlight := range []int{64, 256} {
			b.Run(fmt.Sprintf("%v/%d in flight", a, inFlight), func(b *testing.B) {
				b.ReportAllocs()
				spread(b, inFlight, func(i int) { must(l.Take(ctx, keys[i%len(keys)], 1)) })
			})
		}
		hot := newLimiter(b, a, client, "hot "+a.String(), PerMinute(1_000_000))
		b.Run(a.String()+"/hot key, 64 in flight", func(b *testing.B) {
			b.ReportAllocs()
			must(true, hot.(interface {
				Reset(ctx context.Context, key string) error
			}).Reset(ctx, "k"))
			spread(b, 64, func(int) { must(hot.Take(ctx, "k", 1)) })
		})
		none := newLimiter(b, a, client, "denied "+a.String(), PerHour(1))
		must(none.Take(ctx, "k", 1))
		b.Run(a.String()+"/denied", func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				must(none.Take(ctx, "k", 1))
			}
		})
	}
}

func spread(b *testing.B, inFlight int, f func(i int)) {
	var (
		wg   sync.WaitGroup
		next atomic.Int64
	)
	for range inFlight {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				f(int(i))
			}
		})
	}
	wg.Wait()
}
