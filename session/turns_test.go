package session

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurns(t *testing.T) {
	var turns turns
	var inside, most atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for range 20 {
				done, err := turns.take(t.Context(), string(rune('a'+i%2)), time.Minute)
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), inside.Add(1)))
				inside.Add(-1)
				done(false)
			}
		})
	}
	wg.Wait()
	if most.Load() > 2 {
		t.Errorf("%d had the turn of two keys", most.Load())
	}
	if len(turns.m) != 0 {
		t.Errorf("%d keys are left", len(turns.m))
	}
}

// TestTurnsOfOneWhoHangs has one keep his turn, as he does when Redis hangs: the
// others must not wait for each other as well.
func TestTurnsOfOneWhoHangs(t *testing.T) {
	for _, tc := range []struct {
		name           string
		failed         bool
		after, patient time.Duration
		want           time.Duration
	}{
		{"fails", true, time.Second, time.Minute, time.Second},
		{"takes too long", false, time.Hour, time.Minute, time.Minute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var turns turns
				start := time.Now()
				held, err := turns.take(t.Context(), "k", tc.patient)
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() { time.Sleep(tc.after); held(tc.failed) })
				for range 50 {
					wg.Go(func() {
						done, err := turns.take(t.Context(), "k", tc.patient)
						if err != nil || time.Since(start) > tc.want {
							t.Errorf("after %v: %v", time.Since(start), err)
						}
						time.Sleep(2 * time.Hour) // hangs, too
						done(true)
					})
				}
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
					defer cancel()
					if _, err := turns.take(ctx, "k", tc.patient); err != context.DeadlineExceeded {
						t.Error(err)
					}
				})
				wg.Wait()
				if len(turns.m) != 0 {
					t.Errorf("%d keys are left", len(turns.m))
				}
			})
		})
	}
}
