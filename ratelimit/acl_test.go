package ratelimit

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

var quoted = regexp.MustCompile("`([^`]+)`")

// aclOf returns the commands and the keys of the row of docs/acl.md that begins with feature.
func aclOf(t *testing.T, feature string) (commands []string, keys string) {
	t.Helper()
	text, err := os.ReadFile("../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		if len(cells) != 3 || !strings.HasPrefix(cells[0], "| "+feature) {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			commands = append(commands, strings.ReplaceAll(m[1], `\`, ""))
		}
		if m := quoted.FindStringSubmatch(cells[2]); m != nil {
			keys = strings.ReplaceAll(m[1], "<prefix>", "gatehouse:")
		}
		return commands, keys
	}
	t.Fatalf("docs/acl.md has no row of %s", feature)
	return nil, ""
}

// as returns a client of a user who may run commands on keys alone.
func as(t *testing.T, server *redistest.Server, keys string, commands []string) *redis.Client {
	t.Helper()
	args := []any{"ACL", "SETUSER", "service", "reset", "on", ">pw", "~" + keys, "+eval", "+evalsha"}
	for _, c := range commands {
		args = append(args, "+"+c)
	}
	if err := server.Client().Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	return server.Client(func(o *redis.Options) { o.Username, o.Password = "service", "pw" })
}

// Each limiter does all it can as a user who may run what docs/acl.md says and no more; without
// one of the commands Check names it.
func TestEachLimiterUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	patience := Config{Timeout: 10 * time.Second}
	for feature, of := range map[string]struct {
		use   func(t *testing.T, c redis.UniversalClient)
		check func(c redis.UniversalClient) ([]string, error)
	}{
		"`NewSlidingWindow`": limiterUse(func(c redis.UniversalClient) (Limiter, error) {
			return NewSlidingWindow(c, "acl", PerMinute(5), patience)
		}),
		"`NewFixedWindow`": limiterUse(func(c redis.UniversalClient) (Limiter, error) {
			return NewFixedWindow(c, "acl", PerMinute(5), patience)
		}),
		"`NewTokenBucket`": limiterUse(func(c redis.UniversalClient) (Limiter, error) {
			return NewTokenBucket(c, "acl", PerMinute(5), patience)
		}),
		"`NewQuota`": limiterUse(func(c redis.UniversalClient) (Limiter, error) {
			return NewQuota(c, "acl", 5, Day, time.UTC, patience)
		}),
		"`NewRules`": {
			use: func(t *testing.T, c redis.UniversalClient) {
				rules := newRules(t, c, RulesConfig{Timeout: 10 * time.Second})
				rules.include("acl", 5)
				rules.set(t, Rule{Policy: "acl", Key: "k", Requests: 3})
				list, err := rules.List(ctx)
				history, err2 := rules.History(ctx, 1)
				if err != nil || err2 != nil || len(list) != 1 || len(history) != 1 {
					t.Error(list, history, err, err2)
				}
				if err := rules.Remove(ctx, Rule{Policy: "acl", Key: "k", Actor: "a", Reason: "r"}); err != nil {
					t.Error(err)
				}
			},
			check: func(c redis.UniversalClient) ([]string, error) {
				warnings, err := newRules(t, c, RulesConfig{Timeout: 10 * time.Second}).Check(ctx)
				return slices.DeleteFunc(warnings, func(w string) bool { return strings.Contains(w, "may not publish and subscribe on the channel") }), err
			},
		},
		"`NewConcurrency`": {
			use: func(t *testing.T, c redis.UniversalClient) {
				places := must(NewConcurrency(c, "acl", 2, Config{Timeout: 10 * time.Second, Lease: 2 * time.Second}))
				lease, res, err := places.Acquire(ctx, "k")
				if err != nil || !res.Allowed {
					t.Fatal(res, err)
				}
				time.Sleep(time.Second) // it is renewed
				if err := lease.Release(); err != nil {
					t.Error(err)
				}
			},
			check: func(c redis.UniversalClient) ([]string, error) {
				return must(NewConcurrency(c, "acl", 2, patience)).Check(ctx)
			},
		},
	} {
		t.Run(feature, func(t *testing.T) {
			commands, keys := aclOf(t, feature)
			client := as(t, server, keys, commands)
			of.use(t, client)
			warnings, err := of.check(client)
			if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "INFO") {
				t.Errorf("Check: %v, %v", warnings, err)
			}
			for i, missing := range commands {
				client := as(t, server, keys, slices.Delete(slices.Clone(commands), i, i+1))
				if _, err := of.check(client); err == nil || !strings.Contains(err.Error(), missing) {
					t.Errorf("without %s: %v", missing, err)
				}
			}
			if _, err := of.check(as(t, server, "other:*", commands)); err == nil {
				t.Error("other keys: no error")
			}
		})
	}
}

func limiterUse(newLimiter func(redis.UniversalClient) (Limiter, error)) (of struct {
	use   func(t *testing.T, c redis.UniversalClient)
	check func(c redis.UniversalClient) ([]string, error)
}) {
	of.use = func(t *testing.T, c redis.UniversalClient) {
		l := must(newLimiter(c))
		var last Result
		for range 7 { // beyond the limit
			if res := must(l.Take(ctx, "k", 1)); res.Allowed {
				last = res
			}
		}
		if err := l.(Settler).Refund(ctx, "k", last); err != nil {
			t.Error(err)
		}
		if err := l.(Settler).Settle(ctx, "k", must(l.Take(ctx, "k", 1)), 3); err != nil {
			t.Error(err)
		}
		if b, ok := l.(*TokenBucket); ok {
			waiting, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
			defer cancel()
			_, _ = Wait(waiting, b, "k", 1)
		}
		if err := l.(Resetter).Reset(ctx, "k"); err != nil {
			t.Error(err)
		}
	}
	of.check = func(c redis.UniversalClient) ([]string, error) { return Check(ctx, must(newLimiter(c))) }
	return of
}

// ResetAll needs what the table says besides.
func TestResetAllUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	commands, keys := aclOf(t, "`NewFixedWindow`")
	besides, _ := aclOf(t, "`ResetAll`")
	l := must(NewFixedWindow(as(t, server, keys, append(besides, commands...)), "acl", PerMinute(5), Config{Timeout: 10 * time.Second}))
	for _, key := range []string{"a", "b", "c"} {
		must(l.Take(ctx, key, 1))
	}
	if n, err := ResetAll(ctx, l); err != nil || n != 3 {
		t.Errorf("%d keys, %v", n, err)
	}
	l = must(NewFixedWindow(as(t, server, keys, commands), "acl", PerMinute(5), Config{Timeout: 10 * time.Second}))
	if _, err := ResetAll(ctx, l); err == nil || !strings.Contains(err.Error(), "scan") {
		t.Errorf("without scan: %v", err)
	}
}

// A Penalty and All need what the table says besides.
func TestPenaltyAndAllUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	besides, _ := aclOf(t, "a `Penalty`")
	sliding, _ := aclOf(t, "`NewSlidingWindow`")
	client := as(t, server, "gatehouse:rl:*", append(besides, sliding...))
	cfg := Config{Timeout: 10 * time.Second, Penalty: Penalty{Strikes: 1}}
	l := must(NewSlidingWindow(client, "acl", PerMinute(1), cfg))
	other := must(NewSlidingWindow(client, "acl2", PerMinute(1), Config{Timeout: 10 * time.Second}))
	third := must(NewSlidingWindow(client, "acl3", PerMinute(1), Config{Timeout: 10 * time.Second}))
	all := must(All(other, third))
	for range 3 {
		must(l.Take(ctx, "k", 1))
		must(all.Take(ctx, "k", 1))
	}
	if _, err := Check(ctx, l, all); err != nil {
		t.Error(err)
	}
	client = as(t, server, "gatehouse:rl:*", sliding)
	if _, err := Check(ctx, must(NewSlidingWindow(client, "acl", PerMinute(1), cfg))); err == nil || !strings.Contains(err.Error(), "pexpiretime") {
		t.Errorf("a Penalty without its commands: %v", err)
	}
}

// What is likely to surprise is told, and what cannot work is an error.
func TestCheckLooksAtTheServer(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	l := must(NewFixedWindow(server.Client(), "c", PerMinute(5), Config{Timeout: 10 * time.Second}))
	warnings, err := Check(ctx, l, Unlimited, must(NewLocal("l", PerMinute(1), Config{})))
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "allkeys-lru") {
		t.Errorf("%v, %v", warnings, err)
	}
	if keys := server.Client().DBSize(ctx).Val(); keys != 0 {
		t.Errorf("%d keys written", keys)
	}
	server.Client().Do(ctx, "REPLICAOF", "127.0.0.1", "1")
	if _, err := Check(ctx, l); err == nil || !strings.Contains(err.Error(), "replica") {
		t.Errorf("of a replica: %v", err)
	}
	server.Client().Do(ctx, "REPLICAOF", "NO", "ONE")
	server.Advance(90 * time.Second)
	if warnings, _ := Check(ctx, l); !strings.Contains(strings.Join(warnings, "\n"), "1m30s off") {
		t.Errorf("90 seconds ahead: %v", warnings)
	}
	server.Stop()
	if _, err := Check(ctx, l); err == nil {
		t.Error("of no server: no error")
	}
}
