package ratelimit

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
)

func newRules(t testing.TB, client redis.UniversalClient, cfg RulesConfig) *Rules {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := NewRules(client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (r *Rules) set(t testing.TB, rule Rule) {
	t.Helper()
	rule.Actor, rule.Reason = "ops", "test"
	if err := r.Set(context.Background(), rule); err != nil {
		t.Fatal(err)
	}
}

// takes is Take, of which no error is expected.
func takes(t testing.TB, l Limiter, key string) Result {
	t.Helper()
	res, err := l.Take(context.Background(), key, 1)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 seconds: %s", what)
		}
	}
}

// The rule of a key beats With, that beats the rule for all, that beats the limiter's own.
func TestRulesHaveTheirOrder(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, secret := range [][]byte{nil, []byte(strings.Repeat("s", 32))} {
			prefix := fmt.Sprintf("order%d:", len(secret))
			rules := newRules(t, b.Client, RulesConfig{Prefix: prefix, KeySecret: secret})
			cfg := Config{Prefix: prefix, KeySecret: secret, Timeout: 10 * time.Second, Rules: rules}
			hour := PerHour(10)
			for name, l := range map[string]interface {
				Limiter
				LocalTaker
				Named
			}{
				"sliding": must(NewSlidingWindow(b.Client, "sliding", hour, cfg)),
				"fixed":   must(NewFixedWindow(b.Client, "fixed", hour, cfg)),
				"bucket":  must(NewTokenBucket(b.Client, "bucket", hour, cfg)),
				"quota":   must(NewQuota(b.Client, "quota", 10, Day, time.UTC, cfg)),
				"local":   must(NewLocal("local", hour, Config{KeySecret: secret, Rules: rules})),
				"banning": must(NewFixedWindow(b.Client, "banning", hour, Config{Prefix: prefix, KeySecret: secret, Timeout: 10 * time.Second, Rules: rules, Penalty: Penalty{Strikes: 3}})),
			} {
				planned := Limit{20, l.Limit().Window}
				var with Limiter
				switch l := l.(type) {
				case *SlidingWindow:
					with = must(l.With(planned))
				case *FixedWindow:
					with = must(l.With(planned))
				case *TokenBucket:
					with = must(l.With(planned))
				case *Quota:
					with = must(l.With(planned))
				case *Local:
					with = must(l.With(planned))
				}
				expect := func(when string, key string, own, plan int, ownOrigin, planOrigin Origin) {
					t.Helper()
					for _, of := range []struct {
						l      Limiter
						n      int
						origin Origin
					}{{l, own, ownOrigin}, {with, plan, planOrigin}} {
						if res := takes(t, of.l, key); res.Limit.Requests != of.n || res.Origin != of.origin || res.Limit.Window != l.Limit().Window {
							t.Errorf("%s, %s, %s: %v, origin %q; want %d, %q", name, when, key, res.Limit, res.Origin, of.n, of.origin)
						}
						local, err := of.l.(LocalTaker).TakeLocally(key, 1)
						if err != nil || local.Limit.Requests != of.n || local.Origin != of.origin {
							t.Errorf("%s, %s, %s, locally: %v, origin %q, %v; want %d, %q", name, when, key, local.Limit, local.Origin, err, of.n, of.origin)
						}
					}
				}
				expect("no rule", "user:1", 10, 20, FromConstructor, FromWith)
				rules.set(t, Rule{Policy: name, Key: "*", Requests: 30})
				expect("for all", "user:1", 30, 20, "rule *", FromWith)
				rules.set(t, Rule{Policy: name, Key: "user:1", Requests: 40})
				expect("for it", "user:1", 40, 40, "rule user:1", "rule user:1")
				expect("for another", "user:2", 30, 20, "rule *", FromWith)
				if err := rules.Remove(t.Context(), Rule{Policy: name, Key: "user:1", Actor: "a", Reason: "r"}); err != nil {
					t.Error(err)
				}
				expect("removed", "user:1", 30, 20, "rule *", FromWith)
				rules.set(t, Rule{Policy: name, Key: "user:1", Mode: Exempt})
				if res := takes(t, with, "user:1"); !res.Allowed || res.Source != FromRule || res.Limit != (Limit{}) {
					t.Errorf("%s: exempt: %+v", name, res)
				}
				rules.set(t, Rule{Policy: name, Key: "user:1", Mode: Deny, Until: b.Now(t).Add(time.Hour)})
				res := takes(t, with, "user:1")
				if res.Allowed || res.Source != FromRule || res.RetryAfter > time.Hour+time.Second || res.RetryAfter < 59*time.Minute {
					t.Errorf("%s: deny: %+v", name, res)
				}
				if err := l.(Settler).Settle(t.Context(), "user:1", res, 5); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			list, err := rules.List(t.Context())
			if err != nil || len(list) != 12 || list[0].Key != "*" || list[1].Key != "user:1" || list[1].Mode != Deny {
				t.Errorf("%d rules, %v: %+v", len(list), err, list)
			}
			if secret != nil {
				stands := fmt.Sprint(b.Client.HGetAll(t.Context(), rules.keys()[0]), b.Client.XRange(t.Context(), rules.keys()[1], "-", "+"))
				if strings.Contains(stands, "user:1") || strings.Contains(stands, "dXNlcjox") || !strings.Contains(stands, "deny") {
					t.Error("Redis shows keys, or there are no rules")
				}
			}
		}
	})
}

// A Rule inside All skips or decides its own limit alone.
func TestRulesInsideAll(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		rules := newRules(t, b.Client, RulesConfig{})
		cfg := Config{Timeout: 10 * time.Second, Rules: rules}
		minute, day := must(NewTokenBucket(b.Client, "minute", PerMinute(5), cfg)), must(NewFixedWindow(b.Client, "day", PerDay(100), cfg))
		both := must(All(minute, day))
		rules.set(t, Rule{Policy: "minute", Key: "k", Mode: Exempt})
		for range 10 {
			if res := takes(t, both, "k"); !res.Allowed || res.Policy != "day" {
				t.Fatalf("%v", res)
			}
		}
		if res := must(day.Take(t.Context(), "k", 0)); res.Remaining != 90 {
			t.Errorf("%v, want 90 left", res)
		}
		res := takes(t, both, "k")
		if err := both.(Settler).Settle(t.Context(), "k", res, 11); err != nil {
			t.Error(err)
		}
		if res := must(day.Take(t.Context(), "k", 0)); res.Remaining != 79 {
			t.Errorf("%v, want 79 left", res)
		}
		rules.set(t, Rule{Policy: "day", Key: "k", Mode: Exempt})
		if res := takes(t, both, "k"); !res.Allowed || res.Source != FromRule {
			t.Errorf("both exempt: %v", res)
		}
		rules.set(t, Rule{Policy: "minute", Key: "k", Mode: Deny})
		if res := takes(t, both, "k"); res.Allowed || res.Policy != "minute" || res.RetryAfter != Never {
			t.Errorf("denied: %v", res)
		}
		// A look under a rule, settled: charged by the limit that it saw.
		rules.set(t, Rule{Policy: "minute", Key: "k", Requests: 500})
		look := must(both.Take(t.Context(), "k", 0))
		if err := both.(Settler).Settle(t.Context(), "k", look, 300); err != nil {
			t.Error(err)
		}
		if res := must(minute.Take(t.Context(), "k", 0)); res.Remaining > 205 || res.Remaining < 200 {
			t.Errorf("%v, want 200 left", res)
		}
	})
}

func TestConcurrencyObeysRules(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		rules := newRules(t, b.Client, RulesConfig{})
		c := must(NewConcurrency(b.Client, "jobs", 1, Config{Timeout: 10 * time.Second, Rules: rules}))
		acquire := func(key string) (*Lease, Result) {
			t.Helper()
			l, res, err := c.Acquire(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			return l, res
		}
		first, _ := acquire("k")
		rules.set(t, Rule{Policy: "jobs", Key: "k", Requests: 2})
		second, res := acquire("k")
		if second == nil || res.Limit.Requests != 2 || res.Origin != "rule k" {
			t.Fatalf("raised: %v", res)
		}
		if third, _ := acquire("k"); third != nil {
			t.Error("three of two")
		}
		if l, res, err := c.AcquireLocally("k"); l != nil || err != nil || res.Limit.Requests != 2 {
			t.Errorf("locally: %v, %v", res, err)
		}
		rules.set(t, Rule{Policy: "jobs", Key: "k", Mode: Exempt})
		free, res := acquire("k")
		if free == nil || !res.Allowed {
			t.Errorf("exempt: %v", res)
		}
		rules.set(t, Rule{Policy: "jobs", Key: "k", Mode: Deny})
		if l, res := acquire("k"); l != nil || res.Allowed {
			t.Errorf("denied: %v", res)
		}
		for _, l := range []*Lease{first, second, free} {
			if err := l.Release(); err != nil {
				t.Error(err)
			}
		}
		if n := len(c.held); n != 0 {
			t.Errorf("%d keys are held", n)
		}
	})
}

// Wait takes a bucket's permits ahead by the rule's limit.
func TestWaitObeysRules(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		rules := newRules(t, b.Client, RulesConfig{})
		l := must(NewTokenBucket(b.Client, "jobs", PerHour(1), Config{Timeout: 10 * time.Second, Rules: rules}))
		rules.set(t, Rule{Policy: "jobs", Key: "k", Requests: 360_000})
		for range 5 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			res, err := Wait(ctx, l, "k", 3)
			cancel()
			if err != nil || res.Limit.Requests != 360_000 {
				t.Fatalf("%v, %v", res, err)
			}
		}
		rules.set(t, Rule{Policy: "jobs", Key: "k", Mode: Exempt})
		if res, err := Wait(t.Context(), l, "k", 3); err != nil || res.Source != FromRule {
			t.Errorf("%v, %v", res, err)
		}
		rules.set(t, Rule{Policy: "jobs", Key: "k", Mode: Deny})
		if _, err := Wait(t.Context(), l, "k", 3); !errors.Is(err, ErrNever) {
			t.Errorf("%v", err)
		}
		if _, err := Wait(t.Context(), l, "", 1); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("%v", err)
		}
		rules.set(t, Rule{Policy: "jobs", Key: "k", Mode: Deny, Until: rules.Now().Add(time.Hour)})
		lifted := make(chan error, 1)
		go func() {
			_, err := Wait(t.Context(), l, "k", 3)
			lifted <- err
		}()
		time.Sleep(50 * time.Millisecond)
		rules.set(t, Rule{Policy: "jobs", Key: "k", Mode: Exempt})
		select {
		case err := <-lifted:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("it waits for a rule that was lifted")
		}
	})
}

// A rule ends when Redis's clock says so, also if that is set meanwhile.
func TestRulesGoByTheClockOfRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		rules := newRules(t, b.Client, RulesConfig{})
		l := must(NewLocal("api", PerHour(10), Config{Rules: rules}))
		rules.set(t, Rule{Policy: "api", Key: "k", Mode: Deny, Until: rules.Now().Add(time.Hour)})
		if takes(t, l, "k").Allowed {
			t.Fatal("it does not hold")
		}
		b.Advance(t, 2*time.Hour)
		eventually(t, "its end", func() bool { return takes(t, l, "k").Allowed })
		b.Advance(t, -2*time.Hour)
		eventually(t, "it holds again", func() bool { return !takes(t, l, "k").Allowed })
	})
}

// around is a hook around each command that is not sent in a pipeline.
type around func(ctx context.Context, cmd redis.Cmder, next func(context.Context, redis.Cmder) error) error

func (h around) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return h(ctx, cmd, next) }
}
func (around) DialHook(next redis.DialHook) redis.DialHook { return next }
func (around) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// loads reports whether a command reads rules, and where the page begins.
func loads(cmd redis.Cmder) (cursor any, ok bool) {
	args := cmd.Args()
	if len(args) < 7 || args[1] != rulesLoad.SHA1() {
		return nil, false
	}
	return args[6], true
}

// Who sets a rule and hears nothing of it is not told that it holds here.
func TestRulesThatAreSetAndNotLoaded(t *testing.T) {
	client := redistest.Start(t).Client()
	var cut atomic.Bool
	var under atomic.Int64 // loads
	client.AddHook(around(func(ctx context.Context, cmd redis.Cmder, next func(context.Context, redis.Cmder) error) error {
		if _, ok := loads(cmd); ok {
			under.Add(1)
			defer under.Add(-1)
			if cut.Load() {
				return errors.New("cut off")
			}
		}
		return next(ctx, cmd)
	}))
	rules := newRules(t, client, RulesConfig{})
	l := must(NewLocal("api", PerHour(10), Config{Rules: rules}))
	rules.set(t, Rule{Policy: "api", Key: "other", Mode: Deny})
	cut.Store(true)
	eventually(t, "the load of the first rule is done", func() bool { return under.Load() == 0 })
	err := rules.Set(t.Context(), Rule{Policy: "api", Key: "k", Mode: Deny, Actor: "a", Reason: "r"})
	if !errors.Is(err, ErrUnavailable) || !takes(t, l, "k").Allowed {
		t.Error(err)
	}
	cut.Store(false)
	eventually(t, "it holds", func() bool { return !takes(t, l, "k").Allowed })
}

// Stats returns while Redis hangs.
func TestRulesStatsWaitForNobody(t *testing.T) {
	client := redistest.Start(t).Client()
	var hangs atomic.Bool
	let := make(chan struct{})
	client.AddHook(around(func(ctx context.Context, cmd redis.Cmder, next func(context.Context, redis.Cmder) error) error {
		if _, ok := loads(cmd); ok && hangs.Load() {
			<-let
			return errors.New("cut off")
		}
		return next(ctx, cmd)
	}))
	rules := newRules(t, client, RulesConfig{Timeout: 20 * time.Second})
	hangs.Store(true)
	done := make(chan error, 1)
	go func() { done <- rules.load(t.Context()) }()
	eventually(t, "a load", func() bool {
		if rules.mu.TryLock() {
			rules.mu.Unlock()
			return false
		}
		return true
	})
	told := make(chan bool, 1)
	go func() { rules.Stats(); told <- true }()
	select {
	case <-told:
	case <-time.After(5 * time.Second):
		t.Error("Stats waits")
	}
	close(let)
	<-done
}

// However often a limit is changed under load, a window admits no more than the highest one.
func TestTogglingRulesGivesNoQuota(t *testing.T) {
	server := redistest.Start(t)
	rules := newRules(t, server.Client(), RulesConfig{})
	cfg := Config{Timeout: 10 * time.Second, Rules: rules}
	for name, l := range map[string]Limiter{
		"sliding": must(NewSlidingWindow(server.Client(), "sliding", PerHour(100), cfg)),
		"fixed":   must(NewFixedWindow(server.Client(), "fixed", PerHour(100), cfg)),
		"bucket":  must(NewTokenBucket(server.Client(), "bucket", PerHour(100), cfg)),
	} {
		var admitted atomic.Int64
		var wg sync.WaitGroup
		over := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					if res, err := l.Take(context.Background(), "k", 1); err == nil && res.Allowed {
						admitted.Add(1)
					}
				}
			})
		}
		for i := range 500 {
			rules.set(t, Rule{Policy: name, Key: "k", Requests: []int{200, 7, 50, 1}[i%4]})
		}
		rules.set(t, Rule{Policy: name, Key: "k", Requests: 200})
		time.Sleep(50 * time.Millisecond)
		close(over)
		wg.Wait()
		// A bucket of 200 an hour refills one in 18 seconds, and one request under a limit of 1 empties it.
		if n := admitted.Load(); n < 190 && name != "bucket" || n > 203 {
			t.Errorf("%s: %d were admitted, want 200", name, n)
		}
	}
	// Raised after exhaustion: exactly the difference.
	l := must(NewSlidingWindow(server.Client(), "raised", PerHour(3), cfg))
	for range 5 {
		takes(t, l, "k")
	}
	rules.set(t, Rule{Policy: "raised", Key: "k", Requests: 5})
	if a, b, c := takes(t, l, "k"), takes(t, l, "k"), takes(t, l, "k"); !a.Allowed || !b.Allowed || c.Allowed {
		t.Errorf("%v, %v, %v", a, b, c)
	}
}

// A ban that came from one limit does not hold under the rule's, nor the other way round.
func TestBansUnderRules(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	rules := newRules(t, server.Client(), RulesConfig{})
	l := must(NewFixedWindow(server.Client(), "api", PerHour(1), Config{Timeout: 10 * time.Second, Rules: rules, Penalty: Penalty{Strikes: 1, First: 10 * time.Hour}}))
	takes(t, l, "k")
	takes(t, l, "k")
	eventually(t, "a ban", func() bool { server.Advance(time.Second); return takes(t, l, "k").Banned })
	if res := takes(t, l, "k"); !strings.Contains(res.String(), "banned") || res.RetryAfter < 9*time.Hour {
		t.Errorf("%v", res)
	}
	rules.set(t, Rule{Policy: "api", Key: "k", Requests: 3})
	if res := takes(t, l, "k"); !res.Allowed || res.Banned {
		t.Errorf("raised: %v", res)
	}
}

// Four processes hear of a change; with the channel cut they see it within the poll, and what
// Redis has lost they lose, too.
func TestRulesReachAll(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	admin := newRules(t, server.Client(), RulesConfig{})
	proxy := redistest.NewProxy(t, server.Addr())
	var limiters []*FixedWindow
	for i := range 4 {
		addr := server.Addr()
		if i == 3 {
			proxy.BlackHole("subscribe")
			addr = proxy.Addr()
		}
		client := redis.NewClient(&redis.Options{Addr: addr})
		t.Cleanup(func() { _ = client.Close() })
		limiters = append(limiters, must(NewFixedWindow(client, "api", PerHour(1000), Config{Timeout: 10 * time.Second, Rules: newRules(t, client, RulesConfig{})})))
	}
	must(NewFixedWindow(server.Client(), "api", PerHour(1000), Config{Rules: admin}))
	see := func(what string, n int) {
		t.Helper()
		for i, l := range limiters {
			eventually(t, fmt.Sprintf("%s, process %d", what, i), func() bool { return takes(t, l, "k").Limit.Requests == n })
		}
	}
	admin.set(t, Rule{Policy: "api", Key: "k", Requests: 5000})
	see("set", 5000)
	server.Flush() // as a failover that has lost it
	see("lost", 1000)
	admin.set(t, Rule{Policy: "api", Key: "k", Requests: 6000})
	see("set again", 6000)
	// Of two writers the last one holds, and both are in History.
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() { admin.set(t, Rule{Policy: "api", Key: "k", Requests: 7000 + i}) })
	}
	wg.Wait()
	list, err := admin.List(t.Context())
	history, err2 := admin.History(t.Context(), 2)
	if err != nil || err2 != nil || len(list) != 1 || len(history) != 2 || history[0].Rule.Requests != list[0].Requests || history[1].Rule.Requests == list[0].Requests {
		t.Errorf("%v, %v, %+v, %+v", err, err2, list, history)
	}
	see("the last one", list[0].Requests)
}

// What ends does so by itself, also while Redis is away, and by Redis's clock.
func TestRulesEndByThemselves(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	server.Advance(100 * time.Hour)
	rules := newRules(t, client, RulesConfig{})
	l := must(NewLocal("api", PerHour(1000), Config{Rules: rules}))
	until := server.Now().Add(1500 * time.Millisecond)
	rules.set(t, Rule{Policy: "api", Key: "k", Requests: 5, Until: until})
	if err := rules.Set(t.Context(), Rule{Policy: "api", Key: "k2", Requests: 5, Until: time.Now(), Actor: "a", Reason: "r"}); !errors.Is(err, ErrRule) {
		t.Errorf("one that is over: %v", err)
	}
	proxy.BlackHole()
	if res := takes(t, l, "k"); res.Limit.Requests != 5 {
		t.Errorf("%v", res)
	}
	eventually(t, "its end", func() bool { return takes(t, l, "k").Limit.Requests == 1000 })
	if now := server.Now(); now.Before(until.Add(-50 * time.Millisecond)) {
		t.Errorf("it ended %v too early", until.Sub(now))
	}
	proxy.Heal()
}

// What stands in the hash and is no rule does not hold, and is told; the others hold.
func TestRulesAmongGarbage(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var log redistest.Journal
		setter := newRules(t, b.Client, RulesConfig{})
		must(NewLocal("api", PerHour(10), Config{Rules: setter}))
		setter.set(t, Rule{Policy: "api", Key: "good", Requests: 77})
		_, good := setter.write(Rule{Policy: "api", Key: "good", Requests: 77, Actor: "a", Reason: "r"})
		garbage := map[string]any{
			"api": good, "": "version", ":x": good, "api:other": good, "api:a": "", "api:b": "x", "api:c": strings.Repeat("0", 16), "api:d": strings.Repeat("0", 16) + "{}",
			"api:e": good[:len(good)-1], "a{b}:e": good, "api:f": "99999999999999999" + good[16:], "api:*": good,
		}
		for i := range 988 {
			garbage[fmt.Sprintf("api:g%d", i)] = strings.Repeat("z", i)
		}
		b.Client.HSet(t.Context(), setter.keys()[0], garbage)
		rules := newRules(t, b.Client, RulesConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		l := must(NewLocal("api", PerHour(10), Config{Rules: rules}))
		eventually(t, "the good rule", func() bool { return takes(t, l, "good").Limit.Requests == 77 })
		if res := takes(t, l, "other"); res.Limit.Requests != 10 {
			t.Errorf("%v", res)
		}
		if s := rules.Stats(); s.Rules != 1 || s.Invalid != 999 || s.Version != "version" {
			t.Errorf("%+v", s)
		}
		if !strings.Contains(log.String(), "rules=999") || strings.Contains(log.String(), "zzz") {
			t.Errorf("log: %s", log.String())
		}
		tooMany := Rule{Policy: "api", Key: "x", Requests: MaxRequests + 1, Actor: "a", Reason: "r"} // that nobody obeys
		field, value := setter.write(tooMany)
		b.Client.HSet(t.Context(), setter.keys()[0], field, value)
		if list, err := rules.List(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("%v, %v", list, err)
		}
	})
}

func TestRulesThatCannotBe(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	rules := newRules(t, server.Client(), RulesConfig{})
	must(NewSlidingWindow(server.Client(), "api", PerHour(10), Config{Rules: rules}))
	good := Rule{Policy: "api", Key: "k", Requests: 5, Actor: "a", Reason: "r"}
	for name, change := range map[string]func(*Rule){
		"Policy":           func(r *Rule) { r.Policy = "" },
		`the name "other"`: func(r *Rule) { r.Policy = "other" },
		"Key":              func(r *Rule) { r.Key = "" },
		"Key of 2000":      func(r *Rule) { r.Key = strings.Repeat("k", 2000) },
		"Requests 0":       func(r *Rule) { r.Requests = 0 },
		"Requests 1000001": func(r *Rule) { r.Requests = 1_000_001 },
		"Requests 5 do":    func(r *Rule) { r.Mode = Deny },
		"Mode 9":           func(r *Rule) { r.Mode = 9 },
		"Until":            func(r *Rule) { r.Until = time.Now().Add(-time.Hour) },
		"Until 9999":       func(r *Rule) { r.Until = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC) },
		"Actor":            func(r *Rule) { r.Actor = "" },
		"Actor of 200":     func(r *Rule) { r.Actor = strings.Repeat("a", 200) },
		"Reason":           func(r *Rule) { r.Reason = "\xff" },
	} {
		rule := good
		change(&rule)
		if err := rules.Set(t.Context(), rule); !errors.Is(err, ErrRule) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := rules.Remove(t.Context(), good); !errors.Is(err, ErrRule) {
		t.Errorf("removing what there is not: %v", err)
	}
	if history, err := rules.History(t.Context(), 10); err != nil || len(history) != 0 {
		t.Errorf("%v, %v", history, err)
	}
	if _, err := NewRules(nil, RulesConfig{Prefix: "{", KeySecret: []byte("x"), Timeout: -1}); err == nil ||
		!strings.Contains(err.Error(), "Prefix") || !strings.Contains(err.Error(), "KeySecret") || !strings.Contains(err.Error(), "Timeout") || !strings.Contains(err.Error(), "client") {
		t.Errorf("%v", err)
	}
	if _, err := NewLocal("l", PerHour(1), Config{Rules: rules, KeySecret: make([]byte, 32)}); err == nil || !strings.Contains(err.Error(), "KeySecret") {
		t.Errorf("another secret: %v", err)
	}
	server.Stop()
	if err := rules.Set(t.Context(), good); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without Redis: %v", err)
	}
	if _, err := rules.List(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("List: %v", err)
	}
	if _, err := rules.History(t.Context(), 1); !errors.Is(err, ErrUnavailable) {
		t.Errorf("History: %v", err)
	}
}

// Every change leaves who, why and until when, a Reset too; and a full Redis takes them.
func TestRulesHistory(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	rules := newRules(t, client, RulesConfig{})
	cfg := Config{Timeout: 10 * time.Second, Rules: rules}
	minute, day := must(NewFixedWindow(client, "minute", PerMinute(1), cfg)), must(NewFixedWindow(client, "day", PerDay(1), cfg))
	both := must(All(minute, Keyed(day, func(key string) string { return "all of " + key })))
	takes(t, both, "k")
	client.ConfigSet(t.Context(), "maxmemory", "1")
	until := time.Now().Add(time.Hour).Truncate(time.Microsecond)
	if err := rules.Set(t.Context(), Rule{Policy: "day", Key: "k", Mode: Deny, Until: until, Actor: "ann", Reason: "abuse"}); err != nil {
		t.Fatal(err)
	}
	if err := rules.Remove(t.Context(), Rule{Policy: "day", Key: "k", Actor: "bob", Reason: "sorry"}); err != nil {
		t.Fatal(err)
	}
	if err := rules.Reset(t.Context(), both, "k", "cleo", "unlock"); err != nil {
		t.Fatal(err)
	}
	client.ConfigSet(t.Context(), "maxmemory", "0")
	if res := takes(t, both, "k"); !res.Allowed {
		t.Errorf("after Reset: %v", res)
	}
	history, err := rules.History(t.Context(), 10)
	if err != nil || len(history) != 4 {
		t.Fatalf("%v, %+v", err, history)
	}
	resets := map[string]string{history[0].Rule.Policy: history[0].Rule.Key, history[1].Rule.Policy: history[1].Rule.Key}
	if history[0].What != "reset" || history[1].What != "reset" || resets["minute"] != "k" || resets["day"] != "all of k" || history[1].Rule.Actor != "cleo" || history[1].Rule.Reason != "unlock" {
		t.Errorf("resets: %+v", history[:2])
	}
	if h := history[2]; h.What != "removed" || h.Rule.Actor != "bob" || h.Rule.Reason != "sorry" || h.Rule.Policy != "day" || h.Rule.Key != "k" {
		t.Errorf("removed: %+v", h)
	}
	if h := history[3]; h.What != "set" || h.Rule.Mode != Deny || !h.Rule.Until.Equal(until) || h.Rule.Actor != "ann" || time.Since(h.Time).Abs() > time.Minute {
		t.Errorf("set: %+v", h)
	}
	if n := client.Exists(t.Context(), rules.keys()[0]).Val(); n != 0 {
		t.Error("without rules there is a hash")
	}
	redistest.AssertAllTTL(t, client)
}

// There may be 10,000 rules; what is over makes room. None of them costs a decision an allocation.
func TestTenThousandRules(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	rules := newRules(t, client, RulesConfig{})
	l := must(NewLocal("api", PerHour(1), Config{Rules: rules}))
	entries := map[string]any{"": "v"}
	for i := range maxRules {
		field, value := rules.write(Rule{Policy: "api", Key: fmt.Sprintf("user:%d", i), Requests: 3, Actor: "a", Reason: "r"})
		entries[field] = value
	}
	client.HSet(t.Context(), rules.keys()[0], entries)
	eventually(t, "all rules", func() bool { return rules.Stats().Rules == maxRules })
	err := rules.Set(t.Context(), Rule{Policy: "api", Key: "one more", Requests: 3, Actor: "a", Reason: "r"})
	if !errors.Is(err, ErrRule) || !strings.Contains(err.Error(), "10000") {
		t.Errorf("one too many: %v", err)
	}
	rules.set(t, Rule{Policy: "api", Key: "user:7", Requests: 4}) // in the place of another
	field, value := rules.write(Rule{Policy: "api", Key: "user:8", Requests: 3, Until: time.Now().Add(-time.Second), Actor: "a", Reason: "r"})
	client.HSet(t.Context(), rules.keys()[0], field, value)
	rules.set(t, Rule{Policy: "api", Key: "one more", Requests: 3})
	if n := client.HLen(t.Context(), rules.keys()[0]).Val(); n != maxRules+1 {
		t.Errorf("%d entries", n)
	}
	remote := must(NewFixedWindow(client, "api", PerHour(1), Config{Timeout: 10 * time.Second, Rules: rules}))
	for _, key := range []string{"user:1", "nobody"} {
		for range 5 {
			takes(t, remote, key)
			takes(t, l, key)
		}
		for name, l := range map[string]Limiter{"local": l, "remembered": remote} {
			ctx := context.Background()
			if n := testing.AllocsPerRun(100, func() { _, _ = l.Take(ctx, key, 1) }); n > 0 && !redistest.RaceDetector {
				t.Errorf("%s, %s: %v allocations", name, key, n)
			}
		}
	}
}

// Nothing waits for Redis at start-up; its rules hold once it is there.
func TestRulesWithoutRedis(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	setter := newRules(t, client, RulesConfig{})
	must(NewLocal("api", PerHour(10), Config{Rules: setter}))
	setter.set(t, Rule{Policy: "api", Key: "k", Mode: Deny})
	proxy := redistest.NewProxy(t, server.Addr())
	proxy.BlackHole()
	behind := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer behind.Close()
	rules := newRules(t, behind, RulesConfig{Timeout: 200 * time.Millisecond})
	l := must(NewLocal("api", PerHour(10), Config{Rules: rules}))
	if res := takes(t, l, "k"); !res.Allowed || res.Origin != FromConstructor {
		t.Errorf("%v", res)
	}
	proxy.Heal()
	eventually(t, "the rule", func() bool { return !takes(t, l, "k").Allowed })
	if err := rules.Close(); err != nil {
		t.Error(err)
	}
	if err := rules.Close(); err != nil {
		t.Error(err)
	}
	if takes(t, l, "k").Allowed {
		t.Error("after Close the rule is forgotten")
	}
}

// What cannot be noted is not done: neither set nor removed, and others go on to hold.
func TestRulesWithoutTheirTrace(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	admin := newRules(t, client, RulesConfig{})
	must(NewLocal("api", PerHour(9), Config{Rules: admin}))
	admin.set(t, Rule{Policy: "api", Key: "kept", Mode: Deny})
	if err := client.Do(t.Context(), "ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-xadd").Err(); err != nil {
		t.Fatal(err)
	}
	rules := newRules(t, server.Client(func(o *redis.Options) { o.Username, o.Password = "u", "p" }), RulesConfig{})
	must(NewLocal("api", PerHour(9), Config{Rules: rules}))
	if err := rules.Set(t.Context(), Rule{Policy: "api", Key: "k", Mode: Deny, Actor: "a", Reason: "r"}); err == nil {
		t.Error("set without a trace")
	}
	if err := rules.Remove(t.Context(), Rule{Policy: "api", Key: "kept", Actor: "a", Reason: "r"}); err == nil {
		t.Error("removed without a trace")
	}
	if list := must(admin.List(t.Context())); len(list) != 1 || list[0].Key != "kept" {
		t.Errorf("%+v", list)
	}
}

// preceded is a limiter before which something happens.
type preceded struct {
	*Local
	happens func()
}

func (l preceded) Take(ctx context.Context, key string, cost int) (Result, error) {
	l.happens()
	return l.Local.Take(ctx, key, cost)
}

// A rule that is removed while others of All decide holds no more, and a plan stays one.
func TestRulesThatChangeWithinAll(t *testing.T) {
	client := redistest.Start(t).Client()
	rules := newRules(t, client, RulesConfig{})
	l := must(NewFixedWindow(client, "api", PerHour(10), Config{Timeout: 10 * time.Second, Rules: rules}))
	rules.set(t, Rule{Policy: "api", Key: "*", Requests: 1000})
	rules.set(t, Rule{Policy: "api", Key: "k", Requests: 500})
	first := preceded{must(NewLocal("first", PerHour(1e6), Config{})), func() {
		if err := rules.Remove(context.Background(), Rule{Policy: "api", Key: "k", Actor: "a", Reason: "r"}); err != nil {
			t.Error(err)
		}
	}}
	if res := takes(t, must(All(first, must(l.With(PerHour(20))))), "k"); res.Limit.Requests != 20 {
		t.Errorf("%v", res)
	}
}

// Rules are read page by page while others change them; in the end each process has all.
func TestRulesThatChangeWhileTheyAreRead(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	admin, reader := newRules(t, client, RulesConfig{}), newRules(t, server.Client(), RulesConfig{})
	must(NewLocal("api", PerHour(10), Config{Rules: admin}))
	l := must(NewLocal("api", PerHour(10), Config{Rules: reader}))
	many := map[string]any{"": "first"}
	for i := range 600 {
		field, value := admin.write(Rule{Policy: "api", Key: fmt.Sprint("k", i), Requests: 5, Actor: "a", Reason: strings.Repeat("r", 100)})
		many[field] = value
	}
	client.HSet(t.Context(), admin.keys()[0], many)
	var g sync.WaitGroup
	for w := range 2 {
		g.Go(func() {
			for i := range 6 {
				key := fmt.Sprint("k", 40*i+w)
				if err := admin.Set(t.Context(), Rule{Policy: "api", Key: key, Requests: 7 + w, Actor: "a", Reason: "r"}); err != nil {
					t.Error(err)
				}
				if err := admin.Remove(t.Context(), Rule{Policy: "api", Key: fmt.Sprint("k", 40*i+10+w), Actor: "a", Reason: "r"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	eventually(t, "the same version", func() bool { return reader.Stats().Version == admin.Stats().Version })
	if s := reader.Stats(); s.Rules != 588 || s.Invalid != 0 {
		t.Errorf("%+v", s)
	}
	for i := range 600 {
		want := 5
		switch n := i % 40; {
		case i < 240 && n < 2:
			want = 7 + n
		case i < 240 && n >= 10 && n < 12:
			want = 10
		}
		if res := takes(t, l, fmt.Sprint("k", i)); res.Limit.Requests != want {
			t.Errorf("k%d: %v, want %d", i, res.Limit, want)
		}
	}
}

// Where a page begins only one server knows: a failover between two pages loses no rule.
func TestRulesAreAllReadOverAFailover(t *testing.T) {
	client, promoted := redistest.Start(t).Client(), redistest.Start(t).Client()
	admin := newRules(t, client, RulesConfig{})
	must(NewLocal("api", PerHour(10), Config{Rules: admin}))
	many := map[string]any{"": "first"}
	for i := range 3000 {
		field, value := admin.write(Rule{Policy: "api", Key: fmt.Sprint("k", i), Mode: Deny, Actor: "a", Reason: strings.Repeat("r", 100)})
		many[field] = value
	}
	promoted.ScriptLoad(t.Context(), rulesLoad.Source())
	for _, c := range []redis.UniversalClient{client, promoted} {
		c.HSet(t.Context(), admin.keys()[0], many)
		c.PExpire(t.Context(), admin.keys()[0], rulesKept)
	}
	over := redis.NewClient(client.Options())
	defer over.Close()
	var pages atomic.Int64 // after the first ones, to be read from the other server
	pages.Store(10)
	over.AddHook(around(func(ctx context.Context, cmd redis.Cmder, next func(context.Context, redis.Cmder) error) error {
		if cursor, ok := loads(cmd); ok && cursor != "0" && pages.Add(-1) >= 0 {
			return promoted.Process(ctx, cmd)
		}
		return next(ctx, cmd)
	}))
	reader := newRules(t, over, RulesConfig{})
	l := must(NewLocal("api", PerHour(1000), Config{Rules: reader}))
	eventually(t, "its rules", func() bool { return reader.Stats().Version == "first" })
	if pages.Load() > 0 {
		t.Fatal("no page came from the other server")
	}
	for i := range 3000 {
		if takes(t, l, fmt.Sprint("k", i)).Allowed {
			t.Fatalf("the rule of k%d is lost: %+v", i, reader.Stats())
		}
	}
}

// Rules that are over go by and by, as others are set.
func TestRulesThatAreOverGo(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		rules := newRules(t, b.Client, RulesConfig{})
		must(NewLocal("api", PerHour(10), Config{Rules: rules}))
		for i := range 30 {
			rules.set(t, Rule{Policy: "api", Key: fmt.Sprint("over", i), Mode: Deny, Until: rules.Now().Add(time.Hour)})
		}
		b.Advance(t, 2*time.Hour)
		for i := range 20 {
			rules.set(t, Rule{Policy: "api", Key: fmt.Sprint("k", i), Mode: Deny})
		}
		if n := b.Client.HLen(t.Context(), rules.keys()[0]).Val(); n > 25 {
			t.Errorf("%d fields, with 20 rules that hold", n)
		}
	})
}
