package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// While a call is under way, those who come for its key wait, and then travel as one.
func TestTakesAreJoined(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	for _, a := range algorithms {
		l := newLimiter(t, a, client, "joined "+a.String(), PerDay(60))
		must(l.Take(ctx, "k", 1)) // the script is loaded
		proxy.Delay(100*time.Millisecond, "evalsha")
		before := proxy.Forwarded("evalsha")
		var (
			wg      sync.WaitGroup
			allowed atomic.Int64
		)
		for range 100 {
			wg.Go(func() {
				if must(l.Take(ctx, "k", 1)).Allowed {
					allowed.Add(1)
				}
			})
		}
		wg.Wait()
		proxy.Heal()
		if allowed.Load() != 59 {
			t.Errorf("%v: %d allowed, want 59", a, allowed.Load())
		}
		// Some go by themselves, others in pipelines, each of a quarter of those under way.
		if n := proxy.Forwarded("evalsha") - before; n > 20 {
			t.Errorf("%v: %d scripts for 100 Takes", a, n)
		}
	}
}

// Who gives up while waiting spends nothing, if the call has not gone yet; the
// others are decided whatever becomes of the first one's context.
func TestJoinedCallersWhoGiveUp(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	l := newLimiter(t, sliding, client, "give up", PerDay(1000))
	must(l.Take(ctx, "k", 1))
	proxy.Delay(time.Second, "evalsha")
	var wg sync.WaitGroup
	const under = 10 // calls that they all wait behind
	for range under {
		wg.Go(func() { must(l.Take(ctx, "k", 1)) })
		time.Sleep(5 * time.Millisecond)
	}
	impatient, cancel := context.WithCancel(ctx)
	for range 10 {
		wg.Go(func() {
			if _, err := l.Take(impatient, "k", 1); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
				t.Errorf("error = %v", err)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	for range 10 {
		wg.Go(func() {
			if res := must(l.Take(ctx, "k", 1)); !res.Allowed {
				t.Errorf("%+v", res)
			}
		})
	}
	time.Sleep(20 * time.Millisecond)
	cancel()
	wg.Wait()
	proxy.Heal()
	if res := must(l.Take(ctx, "k", 0)); res.Remaining != 1000-1-under-10 {
		t.Errorf("%d remain, want %d", res.Remaining, 1000-1-under-10)
	}
}

// A key that many wait for does not keep anybody from seeing that Redis is silent.
func TestJoinedCallsOpenTheCircuit(t *testing.T) {
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	const timeout = 200 * time.Millisecond
	l := must(NewFixedWindow(client, fmt.Sprintf("trip-%x", rand.Uint64()), PerDay(1<<20), Config{Timeout: timeout}))
	var (
		wg   sync.WaitGroup
		stop atomic.Bool
	)
	for range 32 {
		wg.Go(func() {
			for !stop.Load() {
				start := time.Now()
				_, err := l.Take(ctx, "hot", 1)
				if d := time.Since(start); d > 10*timeout {
					t.Errorf("waited for %v", d)
				}
				if err != nil && !errors.Is(err, ErrUnavailable) {
					t.Error(err)
				}
				if errors.Is(err, roundtrip.ErrNotAsked) {
					time.Sleep(time.Millisecond) // who spins keeps others from being woken
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	proxy.BlackHole()
	time.Sleep(2 * timeout)
	if _, err := l.Take(ctx, "another", 1); !errors.Is(err, roundtrip.ErrNotAsked) {
		t.Errorf("Redis is asked: %v", err)
	}
	stop.Store(true)
	wg.Wait()
}

// Permits of one joined call are given back one by one, in any order, and those
// who come in the same microsecond find their place.
func TestRefundsOfJoinedTakes(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			const limit = 300
			l := newLimiter(t, a, client, fmt.Sprintf("refunds-%x", rand.Uint64()), PerDay(limit))
			instant := time.Now().Add(time.Hour).UnixMicro()
			SetClock(l, func() int64 { return instant })
			left := limit
			var held []Result
			for range 6 {
				var (
					wg sync.WaitGroup
					mu sync.Mutex
				)
				for i := range 60 {
					wg.Go(func() {
						res := must(l.Take(ctx, "k", 1+i%3))
						mu.Lock()
						defer mu.Unlock()
						if res.Allowed {
							held = append(held, res)
							left -= 1 + i%3
						}
					})
				}
				wg.Wait()
				rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
				for range len(held) / 2 {
					res := held[0]
					held = held[1:]
					if err := l.(Settler).Refund(ctx, "k", res); err != nil {
						t.Fatal(err)
					}
					left += int(res.receipt.cost)
				}
				if res := must(l.Take(ctx, "k", 0)); res.Source == FromRedis && res.Remaining != left {
					t.Fatalf("%d remain, want %d", res.Remaining, left)
				}
			}
		})
	}
}
