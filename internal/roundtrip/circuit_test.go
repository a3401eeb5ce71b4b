package roundtrip_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

func overProxy(t *testing.T, set ...func(*redis.Options)) (*redistest.Proxy, *redis.Client) {
	t.Helper()
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	o := &redis.Options{Addr: proxy.Addr()}
	for _, f := range set {
		f(o)
	}
	client := redis.NewClient(o)
	t.Cleanup(func() { client.Close() })
	return proxy, client
}

// Silence is found out once. While it lasts, calls are refused at once, and those that must be
// made are made.
func TestASilentServerIsNotAsked(t *testing.T) {
	var log redistest.Journal
	proxy, client := overProxy(t)
	const timeout = 200 * time.Millisecond
	s := roundtrip.New(client, timeout, slog.New(slog.NewTextHandler(&log, nil)))
	if _, err := run(t.Context(), roundtrip.New(client, 20*time.Second, nil), "silent", "0"); err != nil {
		t.Fatal(err)
	}
	proxy.BlackHole()
	if _, err := run(t.Context(), s, "silent", "0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error = %v", err)
	}
	start := time.Now()
	for range 1000 {
		if _, err := run(t.Context(), s, "silent", "0"); !errors.Is(err, roundtrip.ErrNotAsked) {
			t.Fatalf("error = %v", err)
		}
	}
	if d := time.Since(start); d > roundtrip.Period*9/10 { // after a Period one would be asked
		t.Errorf("a thousand refusals took %v", d)
	}
	if n := s.Silent(); n != 1 {
		t.Errorf("%d silent servers", n)
	}
	s.LastAsked(time.Hour) // it may have left the cluster
	if n := s.Silent(); n != 0 {
		t.Errorf("%d silent servers, of which nobody knows", n)
	}
	s.LastAsked(-time.Minute)
	if _, err := run(t.Context(), s.Persistent(), "silent", "0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a call that must be made: %v", err)
	}
	s.LastAsked(0)
	proxy.Heal()
	for start = time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if _, err := run(t.Context(), s, "silent", "0"); err == nil {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("it is not asked again")
		}
	}
	for strings.Count(log.String(), "\n") < 2 && time.Since(start) < 10*time.Second {
		time.Sleep(time.Millisecond) // it may be about to be written
	}
	if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 2 ||
		!strings.Contains(lines[0], "WARN") || !strings.Contains(lines[1], "INFO") {
		t.Errorf("log:\n%s", log.String())
	}
}

// One cut connection, and one lost reply, say little about a server that answers others.
func TestOneConnectionIsNoOutage(t *testing.T) {
	for name, break_ := range map[string]func(p *redistest.Proxy){
		"cut":  func(p *redistest.Proxy) { p.Cut("evalsha") },
		"lost": func(p *redistest.Proxy) { p.LoseReply("evalsha") },
	} {
		t.Run(name, func(t *testing.T) {
			proxy, client := overProxy(t)
			s := roundtrip.New(client, 500*time.Millisecond, nil)
			call := func() error {
				_, err := run(t.Context(), s, "one", "0")
				return err
			}
			if err := call(); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var others sync.WaitGroup
			others.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
						if _, err := s.HGet(t.Context(), "none", "f"); err != nil && !errors.Is(err, redis.Nil) {
							t.Errorf("another call: %v", err)
						}
					}
				}
			})
			break_(proxy)
			if err := call(); err == nil {
				t.Error("no error")
			}
			proxy.Delay(0)
			if err := call(); err != nil {
				t.Errorf("the call after it: %v", err)
			}
			close(stop)
			others.Wait()
		})
	}
	t.Run("cut, alone", func(t *testing.T) {
		proxy, client := overProxy(t)
		s := roundtrip.New(client, 500*time.Millisecond, nil)
		for range 5 {
			if _, err := run(t.Context(), s, "one", "0"); err != nil {
				t.Fatal(err)
			}
			proxy.Cut("evalsha")
			if _, err := run(t.Context(), s, "one", "0"); err == nil {
				t.Error("no error")
			}
			proxy.Heal()
		}
	})
}

// A load balancer has forgotten all connections of a full pool: they are found out at once, not
// one a second.
func TestForgottenConnections(t *testing.T) {
	proxy, client := overProxy(t, func(o *redis.Options) { o.PoolSize = 10 })
	s := roundtrip.New(client, 250*time.Millisecond, nil)
	var warm sync.WaitGroup
	proxy.Delay(20*time.Millisecond, "ping")
	for range 10 {
		warm.Go(func() {
			client.Ping(t.Context())
			_, _ = client.Pipelined(t.Context(), func(p redis.Pipeliner) error { return p.Ping(t.Context()).Err() })
		})
	}
	warm.Wait()
	proxy.Delay(0)
	if stats := client.PoolStats(); stats.IdleConns < 10 || stats.PipelineStats.IdleConns < 5 {
		t.Fatalf("%d and %d connections", stats.IdleConns, stats.PipelineStats.IdleConns)
	}
	proxy.Forget()
	start := time.Now()
	for row := 0; row < 100; {
		if _, err := run(t.Context(), s, "forgotten", "0"); err != nil {
			row = 0
			time.Sleep(5 * time.Millisecond)
		} else {
			row++
		}
		if time.Since(start) > 5*time.Second {
			t.Fatal("no answers after five seconds")
		}
	}
	t.Logf("100 answers in a row after %v", time.Since(start))
}

// The first call over a connection that takes long to make ends in time.
func TestSlowConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept() // and says nothing
			if err != nil {
				return
			}
			defer c.Close()
		}
	}()
	for name, config := range map[string]*tls.Config{"plain": nil, "TLS": {InsecureSkipVerify: true}} {
		t.Run(name, func(t *testing.T) {
			client := redis.NewClient(&redis.Options{Addr: l.Addr().String(), TLSConfig: config})
			defer client.Close()
			const timeout = 200 * time.Millisecond
			s := roundtrip.New(client, timeout, nil).Persistent()
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					start := time.Now()
					_, err := run(t.Context(), s, "slow", "0")
					if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d > 2*time.Second {
						t.Errorf("%v after %v", err, d)
					}
				})
			}
			wg.Wait()
		})
	}
}

// Connections that others hold are not the server's silence.
func TestAPoolThatOthersHold(t *testing.T) {
	t.Parallel() // with others that wait
	client := redistest.Shared(t).Client(func(o *redis.Options) { o.PoolSize = 2 })
	ctx, cancel := context.WithCancel(t.Context())
	var held sync.WaitGroup
	for range 2 {
		held.Go(func() { client.BLPop(ctx, 10*time.Second, "a list that nobody fills") })
	}
	defer held.Wait()
	defer cancel()
	for start := time.Now(); client.PoolStats().TotalConns < 2 || client.PoolStats().IdleConns > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > 5*time.Second {
			t.Fatal("the pool is not held")
		}
	}
	s := roundtrip.New(client, time.Second, nil)
	late := 0
	for range 200 {
		_, err := run(t.Context(), s, "held", "0")
		if errors.Is(err, roundtrip.ErrNotAsked) {
			t.Fatal("the server is not asked")
		}
		if err != nil {
			late++
		}
	}
	if late > 1 {
		t.Errorf("%d of 200 calls failed", late)
	}
}

// tracing is a hook that records which requests the commands belong to.
type tracing struct {
	mu      sync.Mutex
	own     map[string]int // commands that were sent for one request, by request
	batches [][]string     // the requests of each pipeline
	panics  atomic.Bool
}

type requestKey struct{}

func (h *tracing) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *tracing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if h.panics.Load() {
			panic("a hook")
		}
		h.mu.Lock()
		if name, ok := ctx.Value(requestKey{}).(string); ok && cmd.Name() == "hget" {
			h.own[name]++
		}
		h.mu.Unlock()
		return next(ctx, cmd)
	}
}

func (h *tracing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if h.panics.Load() {
			panic("a hook")
		}
		if cmds[0].Name() != "hget" { // that of a new connection
			return next(ctx, cmds)
		}
		h.mu.Lock()
		var names []string
		for _, c := range roundtrip.Callers(ctx) {
			name, _ := c.Value(requestKey{}).(string)
			names = append(names, name)
		}
		if name, ok := ctx.Value(requestKey{}).(string); ok {
			if len(names) > 0 {
				names = append(names, "all of them by "+name)
			} else {
				h.own[name]++
			}
		}
		h.batches = append(h.batches, names)
		h.mu.Unlock()
		return next(ctx, cmds)
	}
}

// Each request has its own command, or is one of those that a pipeline names: none has everybody's.
func TestEachRequestHasItsOwnTrace(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		client, h := b.NewClient(t), &tracing{own: make(map[string]int)}
		client.AddHook(h)
		s := roundtrip.New(client, 20*time.Second, nil)
		var wg sync.WaitGroup
		const n = 300
		for i := range n {
			wg.Go(func() {
				name := fmt.Sprint("request ", i)
				if _, err := s.HGet(context.WithValue(t.Context(), requestKey{}, name), "trace", "f"); !errors.Is(err, redis.Nil) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		h.mu.Lock()
		defer h.mu.Unlock()
		seen, joined := make(map[string]int), 0
		for name, count := range h.own {
			seen[name] += count
		}
		for _, names := range h.batches {
			joined += len(names)
			for _, name := range names {
				seen[name]++
			}
		}
		for name, count := range seen {
			if count != 1 {
				t.Errorf("%s: %d times", name, count)
			}
		}
		if len(seen) != n || joined == 0 {
			t.Errorf("%d requests, %d of them in pipelines", len(seen), joined)
		}
	})
}

// A hook that panics, which net/http survives, is the end of its calls alone.
func TestAHookThatPanics(t *testing.T) {
	client, h := redistest.Shared(t).Client(), &tracing{own: make(map[string]int)}
	client.AddHook(h)
	s := roundtrip.New(client, 20*time.Second, nil)
	h.panics.Store(true)
	var wg sync.WaitGroup
	var failed atomic.Int64
	for range 200 {
		wg.Go(func() {
			defer func() {
				if recover() != nil {
					failed.Add(1)
				}
			}()
			if _, err := run(t.Context(), s, "panic", "0"); err != nil {
				failed.Add(1)
			}
		})
	}
	wg.Wait()
	if failed.Load() != 200 {
		t.Errorf("%d of 200 calls failed", failed.Load())
	}
	h.panics.Store(false)
	for range 20 {
		wg.Go(func() {
			if _, err := run(t.Context(), s, "panic", "0"); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	wg.Wait()
}
