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
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	name := fmt.Sprintf("leases-%x", rand.Uint64())
	const length = 2 * time.Second
	cfg := Config{Timeout: 5 * time.Second, Lease: length}
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	mortal := must(NewConcurrency(client, name, 2, Config{Timeout: time.Second, Lease: length}))
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
	for time.Since(start) < 2*length {
		if acquire(living) != nil {
			t.Fatal("a lease of a living server ended")
		}
		time.Sleep(20 * time.Millisecond)
	}
	proxy.Close() // as good as a crash
	start = time.Now()
	var freed *Lease
	for freed == nil {
		if time.Since(start) > 5*length {
			t.Fatal("the lease of a crashed server did not end")
		}
		time.Sleep(20 * time.Millisecond)
		freed = acquire(living)
	}
	if d := time.Since(start); d > 3*length {
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
		if time.Since(start) > 5*length {
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
	var now atomic.Int64 // leases are renewed meanwhile
	now.Store(time.Now().Add(time.Hour).UnixMicro())
	c.clock = now.Load
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
	now.Add(-(30 * time.Minute).Microseconds())
	if try() {
		t.Fatal("two at once")
	}
	now.Add((10 * time.Second).Microseconds())
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

// A hiccup of Redis that is shorter than a lease costs no place, though the breaker has opened:
// the lease is renewed as soon as Redis answers. A longer one does, and the holder is told.
func TestLeasesOverAHiccup(t *testing.T) {
	t.Parallel() // with others that wait
	for _, test := range []struct {
		name   string
		freeze time.Duration
		lost   bool
	}{{"shorter than a lease", 800 * time.Millisecond, false}, {"longer than a lease", 6 * time.Second, true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			cfg := Config{Timeout: 250 * time.Millisecond, Lease: 4 * time.Second}
			here := must(NewConcurrency(server.Client(func(o *redis.Options) { o.MaxRetries = -1 }), "jobs", 1, cfg))
			lease, res, err := here.Acquire(ctx, "k")
			if err != nil || !res.Allowed {
				t.Fatal(res, err)
			}
			time.Sleep(time.Second) // the freeze begins before the first renewal
			server.Pause()
			if _, _, err := here.Acquire(ctx, "k"); err == nil { // opens the breaker
				t.Error("a frozen server has answered")
			}
			time.Sleep(test.freeze)
			server.Resume()
			there := must(NewConcurrency(server.Client(), "jobs", 1, Config{Timeout: 10 * time.Second, Lease: 2 * time.Second}))
			for start := time.Now(); time.Since(start) < 3*time.Second; time.Sleep(20 * time.Millisecond) {
				other, res, err := there.Acquire(ctx, "k")
				if err == nil && res.Allowed != test.lost && !test.lost {
					t.Fatalf("the place was given away: %v", res)
				}
				if other != nil {
					break
				}
			}
			select {
			case <-lease.Lost():
				if !test.lost {
					t.Error("lost")
				}
			case <-time.After(50 * time.Millisecond):
				if test.lost {
					t.Error("not told of the loss")
				}
			}
			if err := lease.Release(); errors.Is(err, ErrLeaseLost) != test.lost || err != nil && !test.lost {
				t.Errorf("Release: %v", err)
			}
		})
	}
}

// acquireOnce has a client connect and Redis know the scripts, however long that takes.
func acquireOnce(t *testing.T, client redis.UniversalClient) {
	t.Helper()
	lease, _, err := must(NewConcurrency(client, fmt.Sprintf("once-%x", rand.Uint64()), 1, Config{Timeout: 10 * time.Second})).Acquire(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := lease.Release(); err != nil {
		t.Fatal(err)
	}
}

// While Redis is not asked, since calls got lost, leases are renewed all the same.
func TestLeasesWhileRedisIsNotAsked(t *testing.T) {
	const length = 2 * time.Second
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
	defer client.Close()
	name := fmt.Sprintf("leases-%x", rand.Uint64())
	acquireOnce(t, client)
	here := must(NewConcurrency(client, name, 1, Config{Timeout: 250 * time.Millisecond, Lease: length}))
	there := must(NewConcurrency(server.Client(), name, 1, Config{Timeout: 10 * time.Second, Lease: length}))
	lease, _, err := here.Acquire(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	proxy.BlackHole()
	for range 2 {
		if _, _, err = here.Acquire(ctx, "k"); err == nil {
			t.Fatal("an answer from a black hole")
		}
	}
	if !errors.Is(err, roundtrip.ErrNotAsked) {
		t.Fatalf("Redis is asked: %v", err)
	}
	time.Sleep(100 * time.Millisecond)
	proxy.Heal()
	for start := time.Now(); time.Since(start) < 2*length; time.Sleep(5 * time.Millisecond) {
		if other, _, err := there.Acquire(ctx, "k"); err != nil || other != nil {
			t.Fatalf("after %v the place is given away (%v)", time.Since(start), err)
		}
	}
	select {
	case <-lease.Lost():
		t.Error("lost")
	default:
	}
}

// A renewal reaches Redis also within the second in which nothing else is sent to it.
func TestRenewalsAreSentWhileRedisIsNotAsked(t *testing.T) {
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
	defer client.Close()
	acquireOnce(t, client)
	c := must(NewConcurrency(client, fmt.Sprintf("leases-%x", rand.Uint64()), 1, Config{Timeout: 150 * time.Millisecond, Lease: 900 * time.Millisecond}))
	lease, _, err := c.Acquire(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	sent := func() int { return proxy.Forwarded("evalsha") + proxy.Forwarded("eval") }
	proxy.LoseReply("evalsha", "eval", "ping")
	began := time.Now()
	for range 2 {
		if _, _, err = c.Acquire(ctx, "k"); err == nil {
			t.Fatal("an answer that was lost")
		}
	}
	if !errors.Is(err, roundtrip.ErrNotAsked) {
		t.Fatalf("Redis is asked: %v", err)
	}
	before := sent()
	for ; sent() == before; time.Sleep(time.Millisecond) {
		if time.Since(began) > roundtrip.Period { // since when others may try again
			t.Fatal("no renewal is sent")
		}
	}
}

// A lease that could not be renewed in time is lost, no later than it ends by the holder's
// clock, however long Timeout is; and it stays lost, though Redis may still have it.
func TestALostLeaseStaysLost(t *testing.T) {
	t.Parallel() // with others that wait
	const length = 1500 * time.Millisecond
	server := redistest.Shared(t)
	for _, timeout := range []time.Duration{250 * time.Millisecond, 10 * time.Second} {
		t.Run(timeout.String(), func(t *testing.T) {
			name := fmt.Sprintf("leases-%x", rand.Uint64())
			proxy := redistest.NewProxy(t, server.Addr())
			client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
			defer client.Close()
			acquireOnce(t, client)
			cut := must(NewConcurrency(client, name, 2, Config{Timeout: timeout, Lease: length}))
			other := must(NewConcurrency(server.Client(), name, 2, Config{Timeout: 10 * time.Second, Lease: length}))
			acquired := time.Now()
			lost, _, err := cut.Acquire(ctx, "k")
			if err != nil {
				t.Fatal(err)
			}
			beside, _, err := other.Acquire(ctx, "k") // keeps the key, and nobody trims it
			if err != nil {
				t.Fatal(err)
			}
			proxy.BlackHole()
			select {
			case <-lost.Lost():
				if d := time.Since(acquired); d < length-time.Millisecond || d > length+time.Second {
					t.Errorf("told after %v", d)
				}
			case <-time.After(5 * time.Second):
				t.Error("not told of the loss")
			}
			proxy.Heal()
			if n := server.Client().ZCard(ctx, other.prefix+"k}").Val(); n != 2 {
				t.Errorf("Redis has %d leases, want both", n)
			}
			if err := lost.Release(); !errors.Is(err, ErrLeaseLost) {
				t.Errorf("Release of a lost lease: %v", err)
			}
			if err := lost.Release(); err != nil {
				t.Errorf("Release the second time: %v", err)
			}
			select {
			case <-beside.Lost():
				t.Error("the lease beside it is lost, too")
			default:
			}
			if err := beside.Release(); err != nil {
				t.Error(err)
			}
		})
	}
}

// One renewal that gets no answer does not cost the lease: there is time for another one over
// another connection, also if Timeout is longer than the lease.
func TestALeaseOutlivesOneHungConnection(t *testing.T) {
	t.Parallel() // with others that wait
	const length = 2 * time.Second
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
	defer client.Close()
	c := must(NewConcurrency(client, fmt.Sprintf("leases-%x", rand.Uint64()), 1, Config{Timeout: 10 * time.Second, Lease: length}))
	lease, _, err := c.Acquire(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	before := proxy.Forwarded("evalsha") + proxy.Forwarded("eval")
	proxy.LoseReply("evalsha")
	for start := time.Now(); proxy.Forwarded("evalsha")+proxy.Forwarded("eval") == before; time.Sleep(time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("no renewal")
		}
	}
	proxy.Delay(0) // for other connections; the one that was hit stays mute
	select {
	case <-lease.Lost():
		t.Error("lost by one renewal without an answer")
	case <-time.After(3 * length):
	}
	if err := lease.Release(); err != nil {
		t.Error(err)
	}
}

// Leases do not lose their places to one another, and a Release is not a loss.
func TestReleaseIsNoLoss(t *testing.T) {
	t.Parallel() // with others that wait
	c := must(NewConcurrency(redistest.Shared(t).Client(), fmt.Sprintf("leases-%x", rand.Uint64()), 3, Config{Timeout: 10 * time.Second, Lease: 1500 * time.Millisecond}))
	var leases []*Lease
	for range 3 {
		lease, _, err := c.Acquire(ctx, "k")
		if err != nil || lease == nil {
			t.Fatal(lease, err)
		}
		leases = append(leases, lease)
	}
	if err := leases[0].Release(); err != nil {
		t.Error(err)
	}
	select {
	case <-leases[0].Lost():
		t.Error("released, and told to be lost")
	case <-leases[1].Lost():
		t.Error("lost beside one that was released")
	case <-time.After(2 * time.Second):
	}
	for _, l := range leases[1:] {
		if err := l.Release(); err != nil {
			t.Error(err)
		}
	}
}

// A place is kept while Redis is full.
func TestPlacesInAFullRedis(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	c := must(NewConcurrency(server.Client(), "c", 1, Config{Timeout: 10 * time.Second, Lease: 2 * time.Second}))
	lease, _, err := c.Acquire(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Client().ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-lease.Lost():
		t.Error("lost")
	case <-time.After(3 * time.Second):
	}
	if err := lease.Release(); err != nil {
		t.Error(err)
	}
}
