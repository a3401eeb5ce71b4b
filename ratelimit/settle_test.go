package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
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
	server := redistest.Shared(t)
	for _, test := range []struct {
		name     string
		fail     func(p *redistest.Proxy, l Limiter)
		repeated bool
	}{
		{"refused by an open breaker", func(p *redistest.Proxy, l Limiter) {
			e := engineOf(l)
			_ = e.breaker.ask(ctx, func() error { return errors.New("silence") })
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
				client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), MaxRetries: -1})
				defer client.Close()
				l := newLimiter(t, a, client, name, limit)
				there := newLimiter(t, a, server.Client(), name, limit) // not through the proxy
				remoteOf(l).timeout = 300 * time.Millisecond
				res := must(l.Take(ctx, "k", 4))
				before := *engineOf(l)
				test.fail(proxy, l)
				if err := l.(Settler).Refund(ctx, "k", res); err == nil {
					t.Fatal("no error")
				}
				*engineOf(l) = before
				// Redis answers again: over another client, since a proxy does not come back.
				engineOf(l).sender, engineOf(l).breaker = engineOf(there).sender, NewBreaker(nil)
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
