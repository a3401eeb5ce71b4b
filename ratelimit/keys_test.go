package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// everyKind returns limiters of all kinds under one name.
func everyKind(t *testing.T, c redis.UniversalClient, name string, cfg Config) []Limiter {
	t.Helper()
	cfg.Timeout = 10 * time.Second
	sliding := must(NewSlidingWindow(c, name, PerHour(3), cfg))
	return []Limiter{
		sliding, must(sliding.With(PerDay(3))), must(sliding.With(PerHour(2))),
		must(NewFixedWindow(c, name, PerHour(3), cfg)), must(NewTokenBucket(c, name, PerHour(3), cfg)),
		must(NewQuota(c, name, 3, Day, time.UTC, cfg)),
	}
}

// With a KeySecret Redis holds nothing that a key could be guessed by, and servers with the
// same secret share their limits.
func TestKeySecretHidesSubjects(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	secret := []byte(strings.Repeat("s", 32))
	keys := []string{"user:42", "ip:203.0.113.7", "marker"}
	for _, l := range everyKind(t, client, "hidden", Config{KeySecret: secret, Penalty: Penalty{Strikes: 2}}) {
		for _, key := range keys {
			for range 5 {
				must(l.Take(ctx, key, 1))
			}
		}
	}
	places := must(NewConcurrency(client, "hidden", 3, Config{KeySecret: secret}))
	if _, _, err := places.Acquire(ctx, "marker"); err != nil {
		t.Fatal(err)
	}
	all := client.Keys(ctx, "*").Val()
	for _, redisKey := range all {
		held := redisKey + client.Dump(ctx, redisKey).Val()
		for _, key := range keys {
			if strings.Contains(held, key) {
				t.Errorf("%q stands in %q", key, redisKey)
			}
			if strings.Contains(redisKey, "{"+escapeSubject(key)+"}") {
				t.Errorf("%q can be found", key)
			}
		}
	}
	if len(all) < 16 {
		t.Errorf("%d keys", len(all))
	}
	there := must(NewFixedWindow(server.Client(), "hidden", PerHour(3), Config{KeySecret: secret, Timeout: 10 * time.Second}))
	if res := must(there.Take(ctx, "user:42", 1)); res.Allowed {
		t.Error("another server counts by itself")
	}
	other := must(NewFixedWindow(server.Client(), "hidden", PerHour(3), Config{KeySecret: []byte(strings.Repeat("t", 32)), Timeout: 10 * time.Second}))
	if res := must(other.Take(ctx, "user:42", 1)); !res.Allowed {
		t.Error("another secret names the same keys")
	}
	for _, short := range [][]byte{{}, secret[:31]} {
		if _, err := NewFixedWindow(client, "n", PerHour(1), Config{KeySecret: short}); err == nil || !strings.Contains(err.Error(), "KeySecret") {
			t.Errorf("%d bytes: %v", len(short), err)
		}
	}
}

// ResetAll frees all keys of a limiter, of each window and With, bans included, on all nodes,
// and no others; whatever its name looks like as a pattern.
func TestResetAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
		}
		salt := fmt.Sprintf("%x", rand.Uint64())
		cfg := Config{Penalty: Penalty{Strikes: 1}}
		for _, name := range []string{"a*b" + salt, "a[b]" + salt, "a?b" + salt, `a\b` + salt, "plain" + salt} {
			ours := everyKind(t, b.Client, name, cfg)
			// Names that these match as a pattern, and prefixes of them.
			var others []Limiter
			for _, near := range []string{"axb" + salt, "ab" + salt, name + "x"} {
				others = append(others, everyKind(t, b.Client, near, cfg)...)
			}
			keys := b.Rounds(12)
			for i := range keys {
				for _, l := range append(others, ours...) {
					for range 4 {
						must(l.Take(ctx, fmt.Sprint("k", i), 1))
					}
				}
			}
			total := 0
			for _, l := range ours {
				n, err := ResetAll(ctx, l)
				if err != nil {
					t.Fatal(err)
				}
				total += n
			}
			if total < 5*keys {
				t.Errorf("%s: %d keys deleted", name, total)
			}
			for i := range keys {
				for _, l := range ours {
					if res := must(l.Take(ctx, fmt.Sprint("k", i), 0)); !res.Allowed || res.Remaining != l.(Named).Limit().Requests {
						t.Fatalf("%s: %v", name, res)
					}
				}
				for _, l := range others {
					if res := must(l.Take(ctx, fmt.Sprint("k", i), 1)); res.Allowed {
						t.Fatalf("%s: another limiter was freed: %v", name, res)
					}
				}
			}
		}
	})
}

func TestResetAllInPages(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	l := must(NewFixedWindow(client, "pages", PerHour(3), Config{Timeout: 10 * time.Second}))
	for from := 0; from < 20_000; from += 1000 {
		pipe := client.Pipeline()
		for i := from; i < from+1000; i++ {
			pipe.Set(ctx, RedisKey(l, fmt.Sprint(i)), 3, time.Hour)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			t.Fatal(err)
		}
	}
	client.Set(ctx, "gatehouse:another", 1, time.Hour)
	if n, err := ResetAll(ctx, l); n != 20_000 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n := client.DBSize(ctx).Val(); n != 1 {
		t.Errorf("%d keys are left", n)
	}
	stats := client.Info(ctx, "commandstats").Val()
	if strings.Contains(stats, "cmdstat_keys:") || strings.Contains(stats, "cmdstat_del:") {
		t.Error("KEYS or DEL was used")
	}
}

func TestResetAllThatCannotBe(t *testing.T) {
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer dead.Close()
	l := must(NewFixedWindow(dead, "dead", PerHour(3), Config{}))
	if _, err := ResetAll(ctx, l); err == nil {
		t.Error("no error without Redis")
	}
	wrapped := must(NewFixedWindow(struct{ redis.UniversalClient }{dead}, "wrapped", PerHour(3), Config{}))
	if _, err := ResetAll(ctx, wrapped); err == nil || !strings.Contains(err.Error(), "masters") {
		t.Errorf("%v", err)
	}
	if _, err := ResetAll(ctx, Unlimited); err == nil {
		t.Error("Unlimited has keys")
	}
}

// ResetAll frees what was counted in process, too.
func TestResetAllInProcess(t *testing.T) {
	l := must(NewFixedWindow(redistest.Shared(t).Client(), fmt.Sprintf("all-%x", rand.Uint64()), PerHour(1), Config{}))
	for _, want := range []bool{true, false} {
		if res := must(l.TakeLocally("k", 1)); res.Allowed != want {
			t.Fatal(res)
		}
	}
	if _, err := ResetAll(ctx, l); err != nil {
		t.Fatal(err)
	}
	if res := must(l.TakeLocally("k", 1)); !res.Allowed {
		t.Error(res)
	}
}
