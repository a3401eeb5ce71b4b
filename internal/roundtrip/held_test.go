package roundtrip_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// Callers who give up before the timeout leave connections that hang behind: those who come
// later are answered all the same, by any client.
func TestCallersWhoGaveUpHoldUpNobody(t *testing.T) {
	t.Parallel() // with others that wait
	const timeout = 2 * time.Second
	type anyClient struct{ redis.UniversalClient }
	for name, of := range map[string]struct {
		read time.Duration
		wrap bool
	}{"as it comes": {}, "patient": {read: time.Minute}, "of another type": {read: time.Minute, wrap: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
			client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ReadTimeout: of.read, PoolSize: 100})
			defer client.Close()
			var universal redis.UniversalClient = client
			if of.wrap {
				universal = anyClient{client}
			}
			s := roundtrip.New(universal, timeout, nil).Persistent()
			if _, err := run(t.Context(), s, "before", "0"); err != nil {
				t.Fatal(err)
			}
			proxy.LoseReply("evalsha")
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
					defer cancel()
					if _, err := run(ctx, s, "hangs", "0"); err == nil {
						t.Error("an answer")
					}
				})
			}
			wg.Wait()
			proxy.Delay(0) // what hangs goes on hanging
			time.Sleep(timeout * 6 / 5)
			for range 40 {
				ctx, cancel := context.WithTimeout(t.Context(), timeout*3/4)
				if _, err := run(ctx, s, "later", "0"); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
}

// A script that Redis has to be told first takes no longer than the timeout, and no longer than
// its caller waits.
func TestAnUnknownScriptTakesOneTimeout(t *testing.T) {
	for name, ask := range map[string]func(context.Context, *roundtrip.Sender) error{
		"Ask": func(ctx context.Context, s *roundtrip.Sender) error {
			_, err := s.Ask(ctx, roundtrip.Question{Key: "k", Terms: hits})
			return err
		},
		"Run": func(ctx context.Context, s *roundtrip.Sender) error {
			_, err := s.Run(ctx, hits.One, []string{"k"}, "1000000", "86400000")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := redistest.NewProxy(t, redistest.Start(t).Addr()) // which knows no script
			client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
			defer client.Close()
			const timeout = 400 * time.Millisecond
			s := roundtrip.New(client, timeout, nil).Persistent()
			if err := client.Ping(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			proxy.Delay(timeout * 3 / 4) // there is time for one of the two
			began := time.Now()
			err := ask(t.Context(), s)
			if after := time.Since(began); err == nil || after > 2*timeout {
				t.Errorf("%v after %v", err, after)
			}
		})
	}
}

// Connections whose replies are lost are given up in time: they do not fill the pool.
func TestLostRepliesLeaveThePoolFree(t *testing.T) {
	t.Parallel() // with others that wait
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), PoolSize: 10, ReadTimeout: time.Minute})
	defer client.Close()
	const timeout = 200 * time.Millisecond
	s := roundtrip.New(client, timeout, nil)
	if _, err := run(t.Context(), roundtrip.New(client, 20*time.Second, nil), "k", "0"); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var good, bad atomic.Int64
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for !stop.Load() {
				if _, err := run(t.Context(), s, "k", "0"); err == nil {
					good.Add(1)
				} else {
					bad.Add(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	defer wg.Wait()
	defer stop.Store(true)
	proxy.LoseReply("evalsha")
	time.Sleep(4 * time.Second)
	proxy.Delay(0) // what hangs goes on hanging
	// A busy machine may hold up some calls for the timeout once more; a full pool would for a minute.
	for range 20 {
		time.Sleep(2 * timeout)
		good.Store(0)
		bad.Store(0)
		time.Sleep(time.Second)
		if g, b := good.Load(), bad.Load(); g > 0 && b <= g/100 {
			return
		}
	}
	t.Errorf("of the last second %d calls are answered, %d are not", good.Load(), bad.Load())
}
