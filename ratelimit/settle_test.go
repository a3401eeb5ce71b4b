package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

func settleName() string { return fmt.Sprintf("settle-%x", rand.Uint64()) }

// Work that is done is paid for: the context of a client that has hung up does not matter.
func TestSettleAfterTheClientHasHungUp(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			limit := Limit{1000, time.Hour}.of(a)
			for _, l := range []Limiter{
				newLimiter(t, a, client, settleName(), limit),
				newLocal(a, "local", limit, Config{}),
				must(All(newLimiter(t, a, client, settleName(), limit), newLimiter(t, fixed, client, settleName(), limit))),
			} {
				gone, hangUp := context.WithCancel(ctx)
				res := must(l.Take(gone, "k", 1))
				hangUp()
				if err := l.(Settler).Settle(gone, "k", res, 500); err != nil {
					t.Fatalf("%T: %v", l, err)
				}
				if got := must(l.Take(ctx, "k", 0)); got.Remaining < 499 || got.Remaining > 502 { // a bucket is refilled
					t.Errorf("%T: %v after 500 were spent", l, got)
				}
			}
		})
	}
}

// A settlement that has not changed anything is not settled: the next attempt counts. One
// whose reply was lost may have, and is not repeated.
func TestASettlementThatWasNotMadeCanBeRepeated(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Shared(t)
	for _, test := range []struct {
		name     string
		fail     func(p *redistest.Proxy, l Limiter)
		repeated bool
	}{
		{"refused by an open breaker", func(p *redistest.Proxy, l Limiter) {
			p.BlackHole()
			if _, err := l.Take(ctx, "another", 1); err == nil {
				panic("an answer from a black hole")
			}
		}, true},
		{"refused by Redis", func(p *redistest.Proxy, l Limiter) {
			engineOf(l).settle = scripts.New("return redis.error_reply('OOM command not allowed')")
		}, true},
		{"no connection", func(p *redistest.Proxy, l Limiter) { p.Close(); p.Disconnect() }, true},
		{"a lost reply", func(p *redistest.Proxy, l Limiter) { p.LoseReply("evalsha") }, false},
	} {
		for _, a := range []algorithm{sliding, fixed, quota} {
			t.Run(test.name+", "+a.String(), func(t *testing.T) {
				name, limit := settleName(), Limit{10, time.Hour}.of(a)
				proxy := redistest.NewProxy(t, server.Addr())
				client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1, DialerRetries: 1, ReadTimeout: 2 * time.Second})
				defer client.Close()
				l := newLimiter(t, a, client, name, limit)
				there := newLimiter(t, a, server.Client(), name, limit) // not through the proxy
				engineOf(l).sender = roundtrip.New(client, time.Second, nil)
				res := must(l.Take(ctx, "k", 4))
				before := *engineOf(l)
				test.fail(proxy, l)
				if err := l.(Settler).Refund(ctx, "k", res); err == nil {
					t.Fatal("no error")
				}
				*engineOf(l) = before
				// Redis answers again: over another client, since a proxy does not come back.
				engineOf(l).sender = engineOf(there).sender
				if got := must(there.Take(ctx, "k", 0)).Remaining; test.repeated && got != 6 {
					t.Fatalf("%d remain after the attempt that failed", got)
				}
				for range 2 {
					if err := l.(Settler).Refund(ctx, "k", res); err != nil {
						t.Fatal(err)
					}
					if got := must(there.Take(ctx, "k", 0)).Remaining; got != 10 {
						t.Errorf("%d remain", got)
					}
				}
			})
		}
	}
}

// A move between nodes of a cluster makes the end of a window some milliseconds later: a
// refund still counts in it. It does not count in another window.
func TestRefundAfterTheKeyHasMoved(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, later := range []time.Duration{-time.Millisecond, 0, time.Millisecond, 2 * time.Millisecond, 12 * time.Millisecond} {
		l := newLimiter(t, fixed, client, settleName(), Limit{10, 2 * time.Second})
		res := must(l.Take(ctx, "k", 4))
		key := RedisKey(l, "k")
		dump, ttl := client.Dump(ctx, key).Val(), client.PTTL(ctx, key).Val()
		client.Del(ctx, key)
		if err := client.Restore(ctx, key, ttl+later, dump).Err(); err != nil {
			t.Fatal(err)
		}
		if err := l.(Settler).Refund(ctx, "k", res); err != nil {
			t.Fatal(err)
		}
		if got := must(l.Take(ctx, "k", 0)); got.Remaining != 10 {
			t.Errorf("moved by %v: %v", later, got)
		}
	}
	l := newLimiter(t, fixed, client, settleName(), Limit{10, 40 * time.Millisecond})
	res := must(l.Take(ctx, "k", 4))
	for client.Exists(ctx, RedisKey(l, "k")).Val() == 1 {
	}
	next := must(l.Take(ctx, "k", 1))
	if err := l.(Settler).Refund(ctx, "k", res); err != nil {
		t.Fatal(err)
	}
	if got := must(l.Take(ctx, "k", 0)); got.ResetAt().Equal(next.ResetAt()) && got.Remaining != 9 {
		t.Errorf("another window: %v", got)
	}
}

// Settlements are made in steps that do not keep Redis from others, and a sliding window never
// holds more entries than its limit, or than it held.
func TestLargeSettlements(t *testing.T) {
	client := redistest.Shared(t).Client()
	l := must(NewSlidingWindow(client, settleName(), Limit{35_000, time.Hour}, Config{Timeout: 30 * time.Second}))
	for range 3 {
		res := must(l.Take(ctx, "k", 1))
		if !res.Allowed {
			break
		}
		if err := l.Settle(ctx, "k", res, 34_000); err != nil {
			t.Fatal(err)
		}
		if n := client.ZCard(ctx, RedisKey(l, "k")).Val(); n < 34_000 || n > 35_000 {
			t.Errorf("%d entries", n)
		}
	}
	small := must(l.With(Limit{5, time.Hour}))
	res := must(small.Take(ctx, "other", 1))
	if err := small.Settle(ctx, "other", res, 100_000); err != nil {
		t.Fatal(err)
	}
	if n := client.ZCard(ctx, RedisKey(l, "other")).Val(); n != 5 {
		t.Errorf("%d entries of a limit of 5", n)
	}
	if _, err := l.Take(ctx, "k", 20_000); !errors.Is(err, ErrCost) {
		t.Errorf("a cost that would keep Redis from others: %v", err)
	}
	if res := must(l.Take(ctx, "k", 40_000)); res.Allowed || res.RetryAfter != Never {
		t.Errorf("a cost above the limit: %v", res)
	}
}

// mishap is a hook of a client that makes commands fail: before they are sent, or after.
type mishap struct {
	err  error // nil: none
	sent bool
	ctx  context.Context // of the last command
}

func (*mishap) DialHook(next redis.DialHook) redis.DialHook { return next }

func (*mishap) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (m *mishap) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		m.ctx = ctx
		if m.err == nil || m.sent {
			if err := next(ctx, cmd); err != nil || m.err == nil {
				return err
			}
		}
		cmd.SetErr(m.err)
		return m.err
	}
}

type refusal string

func (e refusal) Error() string { return string(e) }
func (refusal) RedisError()     {}

// A settlement that has not left this process, or that Redis has refused, can be made again. One
// of which that is not known is made once at most.
func TestWhatIsKnownOfASettlement(t *testing.T) {
	for _, test := range []struct {
		name string
		mishap
		again bool
	}{
		{"refused connection", mishap{err: &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("refused")}}, true},
		{"wrapped refused connection", mishap{err: fmt.Errorf("pool: %w", &net.OpError{Op: "dial", Err: errors.New("refused")})}, true},
		{"OOM", mishap{err: refusal("OOM command not allowed when used memory > 'maxmemory'.")}, true},
		{"READONLY", mishap{err: refusal("READONLY You can't write against a read only replica.")}, true},
		{"sent, and no answer in time", mishap{err: context.DeadlineExceeded, sent: true}, false},
		{"sent, and the connection broke", mishap{err: io.EOF, sent: true}, false},
		{"sent, and the connection was reset", mishap{err: &net.OpError{Op: "read", Net: "tcp", Err: errors.New("reset")}, sent: true}, false},
	} {
		for _, a := range algorithms {
			for _, cost := range []int{0, 7} {
				t.Run(fmt.Sprintf("%s, %v, from 4 to %d", test.name, a, cost), func(t *testing.T) {
					client, m := redistest.Shared(t).Client(), new(mishap)
					client.AddHook(m)
					l := newLimiter(t, a, client, settleName(), Limit{20, time.Hour}.of(a))
					now := time.Now().UTC().Truncate(24 * time.Hour).Add(36 * time.Hour).UnixMicro()
					SetClock(l, func() int64 { return now })
					left := func() int { return must(l.Take(ctx, "k", 0)).Remaining }
					res := must(l.Take(ctx, "k", 4))
					must(l.Take(ctx, "k", 4)) // another one's, which must stay
					*m = test.mishap
					err := l.(Settler).Settle(ctx, "k", res, cost)
					if !errors.Is(err, ErrUnavailable) || !errors.Is(err, test.err) {
						t.Fatalf("error = %v", err)
					}
					*m = mishap{}
					engineOf(l).sender = roundtrip.New(redistest.Shared(t).Client(), time.Second, nil)
					want := 16 - cost // once it is settled
					if got := left(); test.again && got != 12 || !test.again && got != want {
						t.Errorf("%d left after the error", got)
					}
					for range 2 {
						if err := l.(Settler).Settle(ctx, "k", res, cost); err != nil {
							t.Fatal(err)
						}
						if got := left(); got != want {
							t.Errorf("%d left, want %d", got, want)
						}
					}
				})
			}
		}
	}
}

// The same of errors that a test cannot bring about at will.
func TestUndone(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"not sent in time", &roundtrip.TimeoutError{After: time.Second, Unsent: true}, true},
		{"sent, and no answer in time", &roundtrip.TimeoutError{After: time.Second}, false},
		{"not asked", roundtrip.ErrNotAsked, true},
		{"wrapped", fmt.Errorf("why: %w", roundtrip.ErrNotAsked), true},
		{"a deadline", context.DeadlineExceeded, false},
		{"unknown", errors.New("unknown"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := undone(test.err); got != test.want {
				t.Errorf("undone(%v) = %v", test.err, got)
			}
		})
	}
}

// A Redis that is full refuses what is to be spent besides; once it is not, that can be spent.
func TestSettlingWhileRedisIsFull(t *testing.T) {
	client := redistest.Start(t).Client()
	for _, a := range algorithms {
		l := newLimiter(t, a, client, "full", Limit{20, time.Hour}.of(a))
		res := must(l.Take(ctx, "k", 1))
		client.ConfigSet(ctx, "maxmemory", "1")
		err := l.(Settler).Settle(ctx, "k", res, 15)
		client.ConfigSet(ctx, "maxmemory", "0")
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("%v: error = %v", a, err)
		}
		if got := must(l.Take(ctx, "k", 0)).Remaining; got != 19 {
			t.Errorf("%v: %d left after the error", a, got)
		}
		if err := l.(Settler).Settle(ctx, "k", res, 15); err != nil {
			t.Errorf("%v: %v", a, err)
		}
		if got := must(l.Take(ctx, "k", 0)).Remaining; got != 5 {
			t.Errorf("%v: %d left", a, got)
		}
	}
}

// Of the context Settle uses the values, say a trace; its end is that of Timeout.
func TestSettleIsBoundedByTimeout(t *testing.T) {
	type traceKey struct{}
	const timeout = 150 * time.Millisecond
	for _, a := range algorithms {
		proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
		client, m := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1, DialerRetries: 1, ReadTimeout: 10 * time.Second}), new(mishap)
		defer client.Close()
		client.AddHook(m)
		name, limit, cfg := settleName(), Limit{20, time.Hour}, Config{Timeout: timeout}
		l := map[algorithm]func() Limiter{
			sliding: func() Limiter { return must(NewSlidingWindow(client, name, limit, cfg)) },
			fixed:   func() Limiter { return must(NewFixedWindow(client, name, limit, cfg)) },
			bucket:  func() Limiter { return must(NewTokenBucket(client, name, limit, cfg)) },
			quota:   func() Limiter { return must(NewQuota(client, name, 20, Day, time.UTC, cfg)) },
		}[a]()
		e := engineOf(l)
		bounded := e.sender
		e.sender = roundtrip.New(client, 10*time.Second, nil)
		res := must(l.Take(ctx, "k", 1))
		e.sender = bounded
		proxy.BlackHole()
		traced, cancel := context.WithCancel(context.WithValue(ctx, traceKey{}, "trace"))
		cancel()
		start := time.Now()
		err := l.(Settler).Settle(traced, "k", res, 5)
		if d := time.Since(start); !errors.Is(err, ErrUnavailable) || d < timeout*9/10 || d > 2*time.Second {
			t.Errorf("%v: %v after %v", a, err, d)
		}
		if m.ctx.Value(traceKey{}) != "trace" {
			t.Errorf("%v: the values of the context are lost", a)
		}
	}
}

// No Take, settlement or refund makes a set of a sliding window longer than the limit that it
// is made under, or than it was.
func TestASlidingWindowKeepsNoMoreThanItsLimit(t *testing.T) {
	client := redistest.Shared(t).Client()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20 {
		l := must(NewSlidingWindow(client, settleName(), Limit{20, time.Minute}, Config{Timeout: 10 * time.Second}))
		now := time.Now().Add(time.Hour).UnixMicro()
		SetClock(l, func() int64 { return now })
		limits := []*SlidingWindow{l, must(l.With(PerMinute(3))), must(l.With(PerMinute(70)))}
		type taken struct {
			by  *SlidingWindow
			res Result
		}
		var held []taken
		before := int64(0)
		for step := range 60 {
			now += r.Int64N(10_000_000)
			if r.IntN(8) == 0 {
				now -= 30_000_000
			}
			l.denials.forget("k")
			by := limits[r.IntN(len(limits))]
			most := int64(by.limit.Requests)
			if len(held) == 0 || r.IntN(2) == 0 {
				if res := must(by.Take(ctx, "k", r.IntN(by.limit.Requests+1))); res.Allowed {
					held = append(held, taken{by, res})
				}
			} else {
				i := r.IntN(len(held))
				h := held[i]
				held = append(held[:i], held[i+1:]...)
				most = int64(h.by.limit.Requests)
				if err := h.by.Settle(ctx, "k", h.res, r.IntN(40_000)); err != nil {
					t.Fatal(err)
				}
			}
			n := client.ZCard(ctx, RedisKey(l, "k")).Val()
			if n > max(most, before) {
				t.Fatalf("seed %d, step %d: %d entries, before %d, under a limit of %d", seed, step, n, before, most)
			}
			before = n
		}
	}
}

// What was taken under a limit of With is settled there, whichever of the limiters is asked:
// another window is another key.
func TestAnyOfTheLimitersSettles(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range []algorithm{sliding, fixed, bucket} {
		t.Run(a.String(), func(t *testing.T) {
			l := newLimiter(t, a, client, settleName(), Limit{5, time.Hour})
			raised := with(t, l, Limit{7, 2 * time.Hour})
			res := must(raised.Take(ctx, "k", 4))
			if err := l.(Settler).Settle(ctx, "k", res, 1); err != nil {
				t.Fatal(err)
			}
			if got := must(raised.Take(ctx, "k", 0)).Remaining; got != 6 {
				t.Errorf("%d remain of 7, of which 4 were taken and 3 given back", got)
			}
		})
	}
}
