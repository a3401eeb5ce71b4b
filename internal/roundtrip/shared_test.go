package roundtrip_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// One of three masters hangs: calls for the others are answered, and soon; those for it end at
// the timeout.
func TestOneHungNodeHoldsUpNoOther(t *testing.T) {
	t.Parallel() // with others that wait
	const timeout = 500 * time.Millisecond
	// The node that hangs is not taken for dead.
	cluster := redistest.StartCluster(t, "--cluster-node-timeout", "60000")
	client := cluster.Client()
	s := roundtrip.New(client, timeout, nil)
	hung := cluster.Nodes()[1]
	ask := func(s *roundtrip.Sender, key string) error {
		if _, err := run(t.Context(), s, key, "0"); err != nil {
			return err
		}
		_, err := s.HGet(t.Context(), "h"+key, "f")
		if err == redis.Nil {
			err = nil
		}
		return err
	}
	call := func(key string) error { return ask(s, key) }
	var there, elsewhere []string
	for i := range 300 {
		key := fmt.Sprintf("{k%d}", i)
		master, err := client.MasterForKey(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if master.Options().Addr == hung.Addr() {
			there = append(there, key)
		} else {
			elsewhere = append(elsewhere, key)
		}
		if err := ask(roundtrip.New(client, 20*time.Second, nil), key); err != nil {
			t.Fatal(err)
		}
	}
	hung.Pause()
	var wg sync.WaitGroup
	var calls, failed, slow, missed atomic.Int64
	stop := make(chan struct{})
	for i := range 32 {
		wg.Go(func() { // these hang
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond): // who spins keeps others from being woken
				}
				start := time.Now()
				if call(there[(i+n)%len(there)]) == nil || time.Since(start) > 4*timeout {
					missed.Add(1)
				}
			}
		})
	}
	time.Sleep(2 * timeout)
	var others sync.WaitGroup
	for i := range 32 {
		others.Go(func() {
			for n := range 100 {
				start := time.Now()
				err := call(elsewhere[(i*100+n)%len(elsewhere)])
				if err != nil {
					failed.Add(1)
				}
				if time.Since(start) > timeout/2 {
					slow.Add(1)
				}
				calls.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
	}
	others.Wait()
	close(stop)
	wg.Wait()
	hung.Resume()
	t.Logf("%d calls, %d failed, %d slow", calls.Load(), failed.Load(), slow.Load())
	if failed.Load() > calls.Load()/20 || slow.Load() > calls.Load()/20 {
		t.Errorf("of %d calls to nodes that answer, %d failed and %d took over %v", calls.Load(), failed.Load(), slow.Load(), timeout/2)
	}
	if missed.Load() > 0 {
		t.Errorf("%d calls to the node that hangs were answered, or waited on", missed.Load())
	}
	for start := time.Now(); call(there[0]) != nil; {
		if time.Since(start) > 20*time.Second {
			t.Fatal("the node is not asked again")
		}
	}
}

// depth is a hook that records how deep the stack is where the hooks before it call it.
type depth struct{ last atomic.Int64 }

func (d *depth) DialHook(next redis.DialHook) redis.DialHook {
	return next
}

func (d *depth) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (d *depth) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		d.last.Store(int64(runtime.Callers(0, make([]uintptr, 20_000))))
		return next(ctx, cmd)
	}
}

// However many Senders stand on one client: it has one hook, and Senders of one timeout are one.
func TestSendersOverOneClientAreOne(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		client := b.NewClient(t)
		first := roundtrip.New(client, time.Second, nil)
		inner := new(depth)
		client.AddHook(inner)
		client.Get(t.Context(), "k")
		before := inner.last.Load()
		for i := range 5000 {
			if roundtrip.New(client, time.Second, nil) != first {
				t.Fatal("another Sender")
			}
			roundtrip.New(client, time.Second+time.Duration(i%3), nil)
		}
		last := new(depth) // behind all the hooks there are
		client.AddHook(last)
		client.Get(t.Context(), "k")
		if now := last.last.Load(); before == 0 || now > before+10 {
			t.Errorf("a command goes through %d calls, and through %d after 5,000 Senders", before, now)
		}
		if roundtrip.New(b.NewClient(t), time.Second, nil) == first {
			t.Error("two clients have one Sender")
		}
	})
}

// What a client's Senders share goes with the client.
func TestSendersGoWithTheirClient(t *testing.T) {
	server := redistest.Shared(t)
	start := roundtrip.Registered()
	for range 100 {
		client := redis.NewClient(&redis.Options{Addr: server.Addr()})
		if _, err := run(t.Context(), roundtrip.New(client, 20*time.Second, nil), "gone", "0"); err != nil {
			t.Fatal(err)
		}
		client.Close()
	}
	for begin := time.Now(); roundtrip.Registered() > start; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d are left of 100", roundtrip.Registered()-start)
		}
	}
}

// Calls of different timeouts share a client, and each ends at its own.
func TestEachCallHasItsOwnTimeout(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ReadTimeout: 20 * time.Second})
	defer client.Close()
	if _, err := run(t.Context(), roundtrip.New(client, 20*time.Second, nil), "own", "0"); err != nil {
		t.Fatal(err)
	}
	proxy.Delay(3*time.Second, "evalsha")
	short, long := roundtrip.New(client, 100*time.Millisecond, nil), roundtrip.New(client, 20*time.Second, nil)
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			start := time.Now()
			if _, err := run(t.Context(), short, "own", "0"); err == nil || time.Since(start) > 2*time.Second {
				t.Errorf("short: %v after %v", err, time.Since(start))
			}
		})
		wg.Go(func() {
			if _, err := run(t.Context(), long, "own", "0"); err != nil {
				t.Errorf("long: %v", err)
			}
		})
	}
	wg.Wait()
}
