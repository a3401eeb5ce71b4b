package ratelimit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// waits returns when n callers wait for a place of a key.
func (c *Concurrency) waits(key string, n int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.lines[c.subject(key)]
	return q == nil && n == 0 || q != nil && q.turns.Len() == n
}

func awaitWaiters(t *testing.T, c *Concurrency, key string, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !c.waits(key, n); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never %d waiters", n)
		}
	}
}

func TestWaitForAPlaceInOrder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		c := must(NewConcurrency(b.Client, "order", 1, Config{Timeout: 10 * time.Second, Lease: time.Minute}))
		first, _, err := c.Acquire(t.Context(), "k")
		if err != nil || first == nil {
			t.Fatal(first, err)
		}
		const n = 10
		var served []int
		var all sync.WaitGroup
		gone, giveUp := context.WithCancel(t.Context())
		for i := range n {
			ctx := t.Context()
			if i == 0 || i == 5 { // the first in line and one amid it give up
				ctx = gone
			}
			all.Go(func() {
				lease, err := c.Wait(ctx, "k")
				if ctx == gone {
					if lease != nil || !errors.Is(err, context.Canceled) {
						t.Errorf("gave up: %v, %v", lease, err)
					}
					return
				}
				if err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				served = append(served, i) // only who has the place writes
				if err := lease.Release(); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
			awaitWaiters(t, c, "k", i+1)
		}
		giveUp()
		awaitWaiters(t, c, "k", n-2)
		if err := first.Release(); err != nil {
			t.Fatal(err)
		}
		all.Wait()
		for i, want := range []int{1, 2, 3, 4, 6, 7, 8, 9} {
			if i >= len(served) || served[i] != want {
				t.Fatalf("served %v", served)
			}
		}
		if lease, res, err := c.Acquire(t.Context(), "k"); err != nil || !res.Allowed {
			t.Errorf("after all: %v, %v", res, err)
		} else {
			_ = lease.Release()
		}
		if len(c.lines) != 0 || len(c.held) != 0 {
			t.Errorf("left: %d lines, %d held", len(c.lines), len(c.held))
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// Two processes, each with a client of its own: all get a place, and never more than there are.
func TestWaitForAPlaceOverTwoProcesses(t *testing.T) {
	server := redistest.Shared(t)
	server.Flush()
	const places, jobs = 2, 24
	var at, most, done atomic.Int64
	var all sync.WaitGroup
	for range 2 {
		c := must(NewConcurrency(server.Client(), "jobs", places, Config{Timeout: 10 * time.Second, Lease: time.Minute}))
		for range jobs / 2 {
			all.Go(func() {
				lease, err := c.Wait(t.Context(), "k")
				if err != nil {
					t.Error(err)
					return
				}
				n := at.Add(1)
				for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
				}
				time.Sleep(10 * time.Millisecond) // the job
				at.Add(-1)
				done.Add(1)
				if err := lease.Release(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	if most.Load() != places || done.Load() != jobs {
		t.Errorf("%d at once, %d of %d done", most.Load(), done.Load(), jobs)
	}
}

func TestWaitForAPlaceFails(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: time.Second})
	defer client.Close()
	c := must(NewConcurrency(client, "down", 1, Config{}))
	if lease, err := c.Wait(t.Context(), "k"); lease != nil || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Redis down: %v, %v", lease, err)
	}
	if lease, err := c.Wait(t.Context(), ""); lease != nil || !errors.Is(err, ErrEmptyKey) {
		t.Errorf("no key: %v, %v", lease, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if lease, err := c.Wait(ctx, "k"); lease != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("done: %v, %v", lease, err)
	}
	if len(c.lines) != 0 {
		t.Error("somebody waits")
	}
}

// A caller whose context ends while Redis is being asked holds no place.
func TestWhoGivesUpWhileAskedHoldsNoPlace(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	c := must(NewConcurrency(client, "late", 1, Config{Timeout: 10 * time.Second, Lease: time.Minute}))
	if lease, _, err := c.Acquire(t.Context(), "other"); err != nil { // the script is there
		t.Fatal(err)
	} else {
		_ = lease.Release()
	}
	for range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		server.Pause()
		got := make(chan error)
		go func() {
			_, err := c.Wait(ctx, "k")
			got <- err
		}()
		awaitWaiters(t, c, "k", 1)
		time.Sleep(20 * time.Millisecond) // it is being asked
		cancel()
		server.Resume()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if n, err := client.ZCard(t.Context(), c.prefix+c.subject("k")+"}").Result(); n != 0 || err != nil {
			t.Fatalf("%d places held, %v", n, err)
		}
	}
}

// 12 jobs of 50 ms on two places, in one process and over two.
func BenchmarkWaitForAPlace(b *testing.B) {
	server := redistest.Start(b)
	for name, processes := range map[string]int{"one": 1, "two": 2} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				var all sync.WaitGroup
				for range processes {
					c := must(NewConcurrency(server.Client(), "jobs", 2, Config{Timeout: 10 * time.Second}))
					for range 12 / processes {
						all.Go(func() {
							lease, err := c.Wait(b.Context(), "k")
							if err != nil {
								b.Error(err)
								return
							}
							time.Sleep(50 * time.Millisecond)
							_ = lease.Release()
						})
					}
				}
				all.Wait()
			}
		})
	}
}
