package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := must(NewLocal("wait", Limit{2, time.Second}, Config{}))
		start := time.Now()
		for i := range 6 {
			if res, err := Wait(ctx, l, "k", 1); err != nil || !res.Allowed {
				t.Fatal(res, err)
			}
			if got, want := time.Since(start), time.Duration(i/2)*time.Second; got < want || got > want+want/10 {
				t.Errorf("permit %d after %v, want %v", i, got, want)
			}
		}
		short, cancel := context.WithTimeout(ctx, time.Second/2)
		defer cancel()
		start = time.Now()
		if res, err := Wait(short, l, "k", 1); !errors.Is(err, context.DeadlineExceeded) || res.RetryAfter != time.Second || time.Since(start) != 0 {
			t.Errorf("a deadline too soon: %+v, %v after %v", res, err, time.Since(start))
		}
		cancelled, cancel := context.WithCancel(ctx)
		time.AfterFunc(300*time.Millisecond, cancel)
		if _, err := Wait(cancelled, l, "k", 1); !errors.Is(err, context.Canceled) || time.Since(start) != 300*time.Millisecond {
			t.Errorf("cancelled: %v after %v", err, time.Since(start))
		}
		if _, err := Wait(ctx, l, "k", 3); !errors.Is(err, ErrNever) {
			t.Errorf("cost above the limit: %v", err)
		}
		if _, err := Wait(ctx, l, "", 1); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("empty key: %v", err)
		}
	})
}

func TestPenalty(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
		}
		for _, a := range algorithms {
			t.Run(a.String(), func(t *testing.T) {
				now := time.Now().Add(24 * time.Hour)
				cfg := Config{Timeout: 10 * time.Second, Penalty: Penalty{
					Strikes: 3, First: time.Minute, Longest: 3 * time.Minute, Memory: time.Hour,
				}}
				name, limit := fmt.Sprintf("penalty-%x", rand.Uint64()), Limit{2, time.Second}
				make := map[algorithm]func() Limiter{
					sliding: func() Limiter { return must(NewSlidingWindow(b.Client, name, limit, cfg)) },
					fixed:   func() Limiter { return must(NewFixedWindow(b.Client, name, limit, cfg)) },
					bucket:  func() Limiter { return must(NewTokenBucket(b.Client, name, limit, cfg)) },
					quota:   func() Limiter { return must(NewQuota(b.Client, name, 2, Day, time.UTC, cfg)) },
				}[a]
				one, two := make(), make()
				for _, l := range []Limiter{one, two} {
					SetClock(l, func() int64 { return now.UnixMicro() })
				}
				take := func(l Limiter) Result {
					t.Helper()
					engineOf(l).denials.forget("k")
					return must(l.Take(ctx, "k", 1))
				}
				for _, ban := range []time.Duration{time.Minute, 2 * time.Minute, 3 * time.Minute, 3 * time.Minute} {
					for strikes := 0; strikes < 2; {
						if res := take(one); !res.Allowed {
							if strikes++; res.RetryAfter > time.Second {
								t.Fatalf("banned after %d strikes: %+v", strikes, res)
							}
						}
					}
					var res Result
					for res = take(one); res.Allowed; res = take(one) {
					}
					if res.RetryAfter != ban {
						t.Fatalf("banned for %v, want %v", res.RetryAfter, ban)
					}
					now = now.Add(ban - time.Microsecond)
					for range 5 { // trying does not prolong it, here or elsewhere
						if res := take(two); res.Allowed || res.RetryAfter != time.Microsecond {
							t.Fatalf("within the ban: %+v", res)
						}
					}
					if res := must(two.Take(ctx, "another", 1)); !res.Allowed {
						t.Fatal("another key is banned")
					}
					now = now.Add(time.Microsecond)
					if res := take(two); !res.Allowed {
						t.Fatalf("after the ban: %+v", res)
					}
				}
				// Forgotten: the next ban is the first. On a real server the clock of the
				// test does not expire keys.
				for range 3 {
					for take(one).Allowed {
					}
				}
				if err := one.(interface {
					Reset(context.Context, string) error
				}).Reset(ctx, "k"); err != nil {
					t.Fatal(err)
				}
				if res := take(two); !res.Allowed || res.Remaining != 1 {
					t.Fatalf("after Reset: %+v", res)
				}
				all := must(All(one, newLimiter(t, fixed, b.Client, name+" all", PerHour(5))))
				SetClock(all, func() int64 { return now.UnixMicro() })
				if res := must(all.Take(ctx, "in all", 1)); !res.Allowed || res.Remaining != 1 {
					t.Errorf("inside All: %+v", res)
				}
			})
		}
		redistest.AssertAllTTL(t, b.Client)
	})
	if _, err := NewFixedWindow(redis.NewClient(&redis.Options{}), "p", PerHour(1), Config{Penalty: Penalty{First: time.Hour}}); err == nil {
		t.Error("a Penalty without Strikes is accepted")
	}
}

func TestConcurrency(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		name := fmt.Sprintf("leases-%x", rand.Uint64())
		servers := []*Concurrency{
			must(NewConcurrency(b.Client, name, 10, Config{Timeout: 10 * time.Second})),
			must(NewConcurrency(b.NewClient(t), name, 10, Config{Timeout: 10 * time.Second})),
		}
		// Never more than ten at once, and all of them get their turn.
		var (
			wg             sync.WaitGroup
			running, turns atomic.Int64
		)
		for i := range 50 {
			wg.Go(func() {
				for {
					lease, res, err := servers[i%2].Acquire(ctx, "k")
					if err != nil {
						t.Error(err)
						return
					}
					if lease == nil {
						if res.Allowed || res.Remaining != 0 || res.RetryAfter != time.Second {
							t.Errorf("%+v", res)
						}
						time.Sleep(time.Millisecond) // the work of others
						continue
					}
					if n := running.Add(1); n > 10 {
						t.Errorf("%d at once", n)
					}
					time.Sleep(time.Millisecond) // work
					running.Add(-1)
					turns.Add(1)
					if err := errors.Join(lease.Release(), lease.Release()); err != nil {
						t.Error(err)
					}
					return
				}
			})
		}
		wg.Wait()
		if turns.Load() != 50 {
			t.Errorf("%d turns", turns.Load())
		}
		lease, res, err := servers[0].Acquire(ctx, "k")
		if err != nil || !res.Allowed || res.Remaining != 9 || res.Limit.Requests != 10 || res.Policy != name {
			t.Errorf("all released: %+v, %v", res, err)
		}
		redistest.AssertAllTTL(t, b.Client)
		_ = lease.Release()
		if _, _, err := servers[0].Acquire(ctx, ""); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("empty key: %v", err)
		}
	})
}

// The lease of a server that crashed ends by itself; that of one that lives does not.
func TestLeases(t *testing.T) {
	server := redistest.Start(t)
	name := fmt.Sprintf("leases-%x", rand.Uint64())
	const length = 300 * time.Millisecond
	cfg := Config{Timeout: 5 * time.Second, Lease: length}
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	mortal := must(NewConcurrency(client, name, 2, Config{Timeout: 100 * time.Millisecond, Lease: length}))
	living := must(NewConcurrency(server.Client(), name, 2, cfg))
	acquire := func(c *Concurrency) *Lease {
		t.Helper()
		lease, _, err := c.Acquire(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	kept := acquire(living)
	if acquire(mortal) == nil || acquire(living) != nil {
		t.Fatal("not two at once")
	}
	start := time.Now()
	for time.Since(start) < 3*length {
		if acquire(living) != nil {
			t.Fatal("a lease of a living server ended")
		}
		time.Sleep(20 * time.Millisecond)
	}
	proxy.Close() // as good as a crash
	start = time.Now()
	var freed *Lease
	for freed == nil {
		if time.Since(start) > 5*time.Second {
			t.Fatal("the lease of a crashed server did not end")
		}
		time.Sleep(20 * time.Millisecond)
		freed = acquire(living)
	}
	if d := time.Since(start); d > length+length/2 {
		t.Errorf("it ended after %v", d)
	}
	// One whose context is done ends as well, even if nobody releases it.
	_ = freed.Release()
	request, cancel := context.WithCancel(ctx)
	if l, _, err := living.Acquire(request, "k"); l == nil || err != nil {
		t.Fatal(err)
	}
	cancel()
	start = time.Now()
	for freed = nil; freed == nil; freed = acquire(living) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("the lease of a request that is over did not end")
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = freed.Release()
	if err := kept.Release(); err != nil {
		t.Error(err)
	}
}

func TestLeasesWhenTheClockSteps(t *testing.T) {
	client := redistest.Shared(t).Client()
	c := must(NewConcurrency(client, fmt.Sprintf("steps-%x", rand.Uint64()), 1, Config{Timeout: 5 * time.Second, Lease: 10 * time.Second}))
	now := time.Now().Add(time.Hour)
	c.clock = func() int64 { return now.UnixMicro() }
	try := func() bool {
		lease, _, err := c.Acquire(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		return lease != nil
	}
	if !try() || try() {
		t.Fatal("not one at once")
	}
	now = now.Add(-30 * time.Minute)
	if try() {
		t.Fatal("two at once")
	}
	now = now.Add(10 * time.Second)
	if !try() {
		t.Fatal("locked out for longer than a lease")
	}
}

func TestAcquireLocally(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer client.Close()
	c := must(NewConcurrency(client, "local", 5, Config{Servers: 2}))
	if _, _, err := c.Acquire(ctx, "k"); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	one, res, _ := c.AcquireLocally("k")
	two, _, _ := c.AcquireLocally("k")
	three, denial, _ := c.AcquireLocally("k")
	if one == nil || two == nil || three != nil || denial.Allowed || res.Source != FromLocal || res.Remaining != 1 {
		t.Errorf("%+v, %+v", res, denial)
	}
	_ = one.Release()
	_ = one.Release()
	if again, _, _ := c.AcquireLocally("k"); again == nil {
		t.Error("a released place is not free")
	}
	if last, _, _ := c.AcquireLocally("k"); last != nil {
		t.Error("a place was released twice")
	}
}

// The same operations on Redis and in process, by the same clock, come to the same.
func TestRedisAndLocalAgree(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
		}
		for _, a := range algorithms {
			t.Run(a.String(), func(t *testing.T) {
				for round := range 40 {
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
