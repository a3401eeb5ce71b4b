package ratelimit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

var ctx = context.Background()

func eachAlgorithm(t *testing.T, f func(t *testing.T, c constructor)) {
	for _, c := range constructors[:3] {
		t.Run(c.name, func(t *testing.T) { f(t, c) })
	}
}

func (c constructor) must(t testing.TB, client redis.UniversalClient, name string, l ratelimit.Limit, cfg ratelimit.Config) ratelimit.Limiter {
	t.Helper()
	limiter, err := c.make(client, name, l, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return limiter
}

// A black hole costs the first request its timeout and the others nothing; then
// one of them tries. Nothing that was asked meanwhile runs after the recovery.
func TestBlackHole(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		server := redistest.Shared(t)
		proxy := redistest.NewProxy(t, server.Addr())
		client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
		defer client.Close()
		var log redistest.Journal
		const timeout = 150 * time.Millisecond
		of := func(timeout time.Duration) ratelimit.Limiter {
			return c.must(t, client, "black hole "+c.name, ratelimit.PerHour(1000), ratelimit.Config{
				Timeout: timeout, Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
		}
		l, patient := of(timeout), of(10*time.Second)
		key := fmt.Sprint(time.Now().UnixNano())
		take := func() (ratelimit.Result, error) { return l.Take(ctx, key, 1) }
		if res, err := patient.Take(ctx, key, 1); err != nil || res.Remaining != 999 {
			t.Fatal(res, err)
		}

		proxy.BlackHole()
		start := time.Now()
		if _, err := take(); !errors.Is(err, ratelimit.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error = %v", err)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("the first request waited for %v", d)
		}
		start = time.Now()
		for range 1000 {
			if _, err := take(); !errors.Is(err, ratelimit.ErrUnavailable) {
				t.Fatalf("error = %v", err)
			}
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("a thousand requests of an open breaker took %v", d)
		}

		proxy.Heal()
		for start = time.Now(); ; time.Sleep(10 * time.Millisecond) {
			res, err := patient.Take(ctx, key, 1)
			if err == nil {
				// What was black-holed was never counted, nor will it be.
				if res.Remaining != 998 {
					t.Errorf("%d remain after the outage, want 998", res.Remaining)
				}
				break
			}
			if time.Since(start) > 10*time.Second {
				t.Fatal("no recovery")
			}
		}
		for strings.Count(log.String(), "\n") < 2 && time.Since(start) < 10*time.Second {
			time.Sleep(time.Millisecond) // it may be about to be written
		}
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "WARN") || !strings.Contains(lines[1], "INFO") {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

// While Redis is silent, one request at a time finds out whether it still is.
func TestOneProbeAtATime(t *testing.T) {
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
	defer client.Close()
	l := constructors[1].must(t, client, "probe", ratelimit.PerHour(1000), ratelimit.Config{Timeout: 300 * time.Millisecond})
	other := constructors[2].must(t, client, "probe too", ratelimit.PerHour(1000), ratelimit.Config{Timeout: 300 * time.Millisecond})
	proxy.BlackHole()
	if _, err := l.Take(ctx, "k", 1); err == nil {
		t.Fatal("an answer from a black hole")
	}
	start := time.Now()
	if _, err := other.Take(ctx, "k", 1); err == nil || time.Since(start) > 50*time.Millisecond {
		t.Errorf("another limiter over the client waits: %v after %v", err, time.Since(start))
	}
	time.Sleep(1100 * time.Millisecond)
	var (
		wg   sync.WaitGroup
		slow atomic.Int32
	)
	for i := range 100 {
		wg.Go(func() {
			start := time.Now()
			if _, err := l.Take(ctx, fmt.Sprint(i), 1); err == nil {
				t.Error("an answer from a black hole")
			}
			if time.Since(start) > 200*time.Millisecond {
				slow.Add(1)
			}
		})
	}
	wg.Wait()
	if n := slow.Load(); n != 1 {
		t.Errorf("%d requests waited, want 1", n)
	}
}

// A caller who gives up is no failure of Redis: no breaker trips, nothing is logged.
func TestCallersWhoGiveUp(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
		client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
		defer client.Close()
		var log redistest.Journal
		l := c.must(t, client, "give up "+c.name, ratelimit.PerHour(1000), ratelimit.Config{
			Timeout: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		proxy.Delay(100 * time.Millisecond)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				short, cancel := context.WithTimeout(ctx, time.Duration(i)*2*time.Millisecond)
				defer cancel()
				_, err := l.Take(short, "k", 1)
				if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ratelimit.ErrUnavailable) {
					t.Errorf("error = %v", err)
				}
			})
		}
		wg.Wait()
		proxy.Heal()
		if _, err := l.Take(ctx, "another", 1); err != nil {
			t.Errorf("after callers gave up: %v", err)
		}
		if log.String() != "" {
			t.Errorf("log:\n%s", log.String())
		}
	})
}

// A reply lost after the script ran: spent once at most, with a client of default
// options, which repeats commands.
func TestLostReplies(t *testing.T) {
	t.Parallel() // with others that wait
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		for _, fault := range []struct {
			name  string
			apply func(*redistest.Proxy)
			spent int
		}{
			{"the connection stays", func(p *redistest.Proxy) { p.LoseReply("evalsha", "eval") }, 1},
			{"the connection breaks", func(p *redistest.Proxy) { p.CutReply("evalsha", "eval") }, 1},
			{"the request gets lost", func(p *redistest.Proxy) { p.Cut("evalsha", "eval") }, 0},
			{"the reply is garbage", func(p *redistest.Proxy) { p.Garbage("evalsha", "eval") }, 0},
			{"the script comes late", func(p *redistest.Proxy) { p.Delay(400*time.Millisecond, "evalsha", "eval") }, 1},
		} {
			t.Run(fault.name, func(t *testing.T) {
				t.Parallel() // with its siblings, which also wait
				server := redistest.Shared(t)
				proxy := redistest.NewProxy(t, server.Addr())
				client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
				defer client.Close()
				name := strings.ReplaceAll(t.Name(), "/", " ")
				name = name[max(0, len(name)-60):]
				l := c.must(t, client, name, ratelimit.PerHour(100), ratelimit.Config{})
				direct := c.must(t, server.Client(), name, ratelimit.PerHour(100), slow)
				key := fmt.Sprint(time.Now().UnixNano())
				for tries := 0; ; tries++ { // the machine may be busy
					if _, err := l.Take(ctx, key, 0); err == nil {
						break
					} else if tries == 20 {
						t.Fatal(err)
					}
					time.Sleep(100 * time.Millisecond)
				}
				fault.apply(proxy)
				if _, err := l.Take(ctx, key, 10); !errors.Is(err, ratelimit.ErrUnavailable) {
					t.Fatalf("error = %v", err)
				}
				proxy.Heal()
				time.Sleep(500 * time.Millisecond) // for a repetition to come, or a late script
				res, err := direct.Take(ctx, key, 0)
				if err != nil {
					t.Fatal(err)
				}
				if spent := 100 - res.Remaining; spent > 10*fault.spent {
					t.Errorf("%d permits spent by a Take of 10", spent)
				}
			})
		}
	})
}

// Scripts forgotten, servers restarted, in mid-traffic: every Take is decided once.
func TestForgottenScripts(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		server := redistest.Start(t)
		client := server.Client()
		l := c.must(t, client, "forgotten", ratelimit.PerHour(100_000), slow)
		var (
			wg      sync.WaitGroup
			allowed atomic.Int64
			stop    = make(chan struct{})
		)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					client.ScriptFlush(ctx)
				}
			}
		})
		var takers sync.WaitGroup
		for i := range 16 {
			takers.Go(func() {
				for range 200 {
					// Half of them on one key, which joins them; half on their own.
					key := "hot"
					if i%2 == 0 {
						key = fmt.Sprint(i)
					}
					res, err := l.Take(ctx, key, 1)
					if err != nil || !res.Allowed {
						t.Errorf("%+v, %v", res, err)
						return
					}
					allowed.Add(1)
				}
			})
		}
		takers.Wait()
		close(stop)
		wg.Wait()
		spent := int64(0)
		for _, key := range []string{"hot", "0", "2", "4", "6", "8", "10", "12", "14"} {
			res, err := l.Take(ctx, key, 0)
			if err != nil {
				t.Fatal(err)
			}
			spent += int64(100_000 - res.Remaining)
		}
		if c.name != "token bucket" && spent != allowed.Load() {
			t.Errorf("%d permits spent by %d Takes", spent, allowed.Load())
		}
		server.Restart()
		for start := time.Now(); ; {
			if _, err := l.Take(ctx, "hot", 1); err == nil {
				break
			} else if time.Since(start) > 10*time.Second {
				t.Fatal(err)
			}
		}
	})
}

// A user of Redis who may not call SCRIPT can run scripts all the same.
func TestScriptCommandsForbidden(t *testing.T) {
	server := redistest.Start(t)
	if err := server.Client().Do(ctx, "ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-script").Err(); err != nil {
		t.Fatal(err)
	}
	client := server.Client(func(o *redis.Options) { o.Username, o.Password = "app", "pw" })
	if err := client.ScriptFlush(ctx).Err(); err == nil {
		t.Fatal("SCRIPT is not forbidden")
	}
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		l := c.must(t, client, "acl "+c.name, ratelimit.PerHour(2), slow)
		for _, want := range []bool{true, true, false} {
			if res, err := l.Take(ctx, "k", 1); err != nil || res.Allowed != want {
				t.Fatalf("%+v, %v", res, err)
			}
		}
	})
}

// What a live server refuses is no decision, no denial, and no reason to stop
// asking it: one poisoned key does not take the limiter down.
func TestErrorReplies(t *testing.T) {
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		server := redistest.Start(t)
		client := server.Client()
		l := c.must(t, client, "errors", ratelimit.PerHour(10), slow)
		refused := func(what, key string) {
			t.Helper()
			for range 5 {
				res, err := l.Take(ctx, key, 1)
				if !errors.Is(err, ratelimit.ErrUnavailable) || res.Allowed || !strings.Contains(err.Error(), what) {
					t.Fatalf("%+v, %v, want an error of %q", res, err, what)
				}
			}
			if what != "WRONGTYPE" && what != "integer" {
				return
			}
			if _, err := l.Take(ctx, "fine", 0); err != nil {
				t.Fatalf("another key: %v", err)
			}
		}
		client.HSet(ctx, ratelimit.RedisKey(l, "hash"), "f", "v")
		refused("WRONGTYPE", "hash")
		if c.name != "sliding window" {
			for i, garbage := range []string{"", "x", "1.5", "1e3", "0x7fffffff", "9e99", "12:", ":12", "nan", "inf"} {
				key := fmt.Sprint("garbage", i)
				client.Set(ctx, ratelimit.RedisKey(l, key), garbage, time.Hour)
				res, err := l.Take(ctx, key, 1)
				if c.name == "fixed window" && !errors.Is(err, ratelimit.ErrUnavailable) {
					t.Errorf("%q: %+v, %v", garbage, res, err)
				}
				if err == nil && (!res.Allowed || res.Remaining > 9) {
					t.Errorf("%q: %+v", garbage, res)
				}
			}
		}
		client.ConfigSet(ctx, "maxmemory", "1")
		refused("OOM", "oom")
		client.ConfigSet(ctx, "maxmemory", "0")
		if err := client.Do(ctx, "REPLICAOF", "127.0.0.1", "1").Err(); err != nil {
			t.Fatal(err)
		}
		refused("READONLY", "readonly")
		client.Do(ctx, "REPLICAOF", "NO", "ONE")
		if res, err := l.Take(ctx, "fine", 1); err != nil || !res.Allowed {
			t.Errorf("afterwards: %+v, %v", res, err)
		}
	})
}

// TakeLocally decides without Redis, this server's share.
func TestTakeLocallyDividesTheLimit(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer client.Close()
	eachAlgorithm(t, func(t *testing.T, c constructor) {
		for _, test := range []struct{ limit, servers, cost, want int }{
			{10, 1, 1, 10}, {10, 3, 1, 3}, {2, 5, 1, 1}, {10, 4, 5, 1}, {10, 4, 11, 0},
		} {
			l := c.must(t, client, "share", ratelimit.PerHour(test.limit), ratelimit.Config{Servers: test.servers})
			passed := 0
			for range 20 {
				res, err := l.(ratelimit.LocalTaker).TakeLocally("k", test.cost)
				if err != nil {
					t.Fatal(err)
				}
				if res.Allowed {
					passed++
				}
			}
			if passed != test.want {
				t.Errorf("%+v: %d passed", test, passed)
			}
		}
	})
}

// A server that is still loading its data answers, and does not decide.
func TestLoading(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t, "--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024")
	client := server.Client(func(o *redis.Options) { o.ReadTimeout = time.Minute })
	l, err := ratelimit.NewSlidingWindow(server.Client(), "loading", ratelimit.PerHour(10), slow)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Take(ctx, "k", 1); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]any{
		{"debug", "populate", 500, "filler", 1000},
		{"config", "set", "key-load-delay", 4000}, // microseconds: two seconds in all
	} {
		if err := client.Do(ctx, command...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	loaded := make(chan error, 1)
	go func() { loaded <- client.Do(ctx, "debug", "reload").Err() }()
	refused := 0
	for {
		select {
		case err := <-loaded:
			if err != nil {
				t.Fatal(err)
			}
			if refused == 0 {
				t.Error("the server was never seen loading")
			}
			if res, err := l.Take(ctx, "k", 0); err != nil || res.Remaining != 9 {
				t.Errorf("afterwards: %+v, %v", res, err)
			}
			return
		default:
		}
		res, err := l.Take(ctx, "k", 0)
		switch {
		case err == nil: // not loading yet
		case !errors.Is(err, ratelimit.ErrUnavailable) || res.Allowed:
			t.Fatalf("%+v, %v", res, err)
		case strings.Contains(err.Error(), "LOADING"):
			refused++
			if res, err := l.TakeLocally("k", 1); err != nil {
				t.Fatalf("in process: %+v, %v", res, err)
			}
		default:
			t.Fatal(err)
		}
	}
}
