package ratelimit

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// 5,000 limiters of tenants over one client share what they send by, and are gone when nobody
// has them any more, though their client is in use.
func TestLimitersOfManyTenants(t *testing.T) {
	client := redistest.Shared(t).Client()
	first := must(NewSlidingWindow(client, "tenant", PerHour(10), Config{}))
	limiters := make([]weak.Pointer[engine], 5000)
	for i := range limiters {
		l := must(NewSlidingWindow(client, fmt.Sprint("tenant-", i), PerHour(10), Config{MaxKeys: 100}))
		if l.sender != first.sender {
			t.Fatal("a Sender of its own")
		}
		if i%100 == 0 {
			must(l.Take(ctx, "k", 1))
		}
		limiters[i] = weak.Make(l.engine)
	}
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		left := 0
		for _, l := range limiters {
			if l.Value() != nil {
				left++
			}
		}
		if left == 0 {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d of 5,000 are left", left)
		}
	}
	must(first.Take(ctx, "k", 1))
	runtime.KeepAlive(client)
}
