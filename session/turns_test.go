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
				done, err := turns.take(t.Context(), string(rune('a'+i%2)))
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

// TestTurnsOfOneThatHangs has one commit keep its turn, as when Redis hangs: the others
// must not wait for each other as well.
func TestTurnsOfOneThatHangs(t *testing.T) {
	const patience = time.Minute // of each that waits: the deadline of its commit
	for _, tc := range []struct {
		name   string
		failed bool
		after  time.Duration
		want   time.Duration // all are let go then
		err    error
	}{
		{"fails", true, time.Second, time.Second, nil},
		{"takes too long", false, time.Hour, patience, context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var turns turns
				start := time.Now()
				held, err := turns.take(t.Context(), "k")
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				wg.Go(func() { time.Sleep(tc.after); held(tc.failed) })
				for range 50 {
					wg.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), patience)
						defer cancel()
						done, err := turns.take(ctx, "k")
						if err != tc.err || time.Since(start) != tc.want {
							t.Errorf("after %v: %v", time.Since(start), err)
						}
						if err != nil {
							return
						}
						time.Sleep(2 * time.Hour) // hangs, too
						done(true)
					})
				}
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
					defer cancel()
					if _, err := turns.take(ctx, "k"); err != context.DeadlineExceeded {
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

// TestTurnsPassOn has one commit after the other: the next waiter gets the turn, and with
// it the key stays until the last is done.
func TestTurnsPassOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		var wg sync.WaitGroup
		start := time.Now()
		for range 10 {
			wg.Go(func() {
				done, err := turns.take(t.Context(), "k")
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Second)
				done(false)
			})
		}
		wg.Wait()
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("ten turns of a second took %v", took)
		}
		if len(turns.m) != 0 {
			t.Errorf("%d keys are left", len(turns.m))
		}
	})
}
