package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// Each decision is counted once, under who decided and what; those that asked Redis are observed.
func TestStatsCountEachDecision(t *testing.T) {
	server := redistest.Start(t)
	rules := must(NewRules(server.Client(), RulesConfig{}))
	defer rules.Close()
	type key struct {
		policy, outcome string
		source          Source
	}
	var mu sync.Mutex
	told := map[key]uint64{}
	cfg := Config{Timeout: 10 * time.Second, Rules: rules, OnDecision: func(d Decision) {
		k := key{d.Policy, "denied", d.Result.Source}
		switch {
		case d.Err != nil:
			k.outcome = "error"
		case d.Result.Allowed:
			k.outcome = "allowed"
		case d.Result.Banned:
			k.outcome = "banned"
		}
		mu.Lock()
		told[k]++
		mu.Unlock()
	}}
	window := must(NewSlidingWindow(server.Client(), "window", PerHour(20), cfg))
	bucket := must(NewTokenBucket(server.Client(), "bucket", PerHour(30), cfg))
	both := must(All(window, bucket))
	punishing := cfg
	punishing.Penalty = Penalty{Strikes: 1}
	strict := must(NewFixedWindow(server.Client(), "strict", PerHour(2), punishing))
	plan := must(bucket.With(PerHour(5)))
	local := must(NewLocal("local", PerHour(3), Config{OnDecision: cfg.OnDecision}))
	for _, r := range []Rule{
		{Policy: "window", Key: "free", Mode: Exempt, Actor: "a", Reason: "r"},
		{Policy: "window", Key: "shut", Mode: Deny, Actor: "a", Reason: "r"},
	} {
		if err := rules.Set(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	all := []Limiter{both, strict, local}
	var asked atomic.Uint64
	stop := Observe(func(policy string, took time.Duration, err error) {
		if took <= 0 || err != nil {
			t.Errorf("%s: %v, %v", policy, took, err)
		}
		asked.Add(1)
	}, all...)
	punishing.OnDecision = nil
	elsewhere := must(NewFixedWindow(server.Client(), "strict", PerHour(2), punishing))
	for range 3 {
		must(elsewhere.Take(ctx, "hasty", 1))
	}
	server.Advance(time.Second)
	must(strict.Take(ctx, "hasty", 1))
	var work sync.WaitGroup
	for i, l := range []Limiter{window, bucket, both, strict, plan, local} {
		work.Go(func() {
			for n := range 40 {
				for _, k := range []string{"free", "shut", fmt.Sprint("k", n%2), ""} {
					_, _ = l.Take(ctx, k, 1+i%2)
				}
			}
		})
	}
	work.Wait()
	for range 2 { // the first is denied at the latest, the second by what is remembered of that
		must(window.Take(ctx, "k0", 1))
	}

	var redis uint64
	got := map[key]uint64{}
	for _, s := range StatsOf(all...) {
		for outcome, by := range map[string]By{"allowed": s.Allowed, "denied": s.Denied, "banned": s.Banned} {
			for source, n := range map[Source]uint64{FromRedis: by.Redis, FromCache: by.Cache, FromLocal: by.Local, FromRule: by.Rule} {
				if n > 0 {
					got[key{s.Policy, outcome, source}] = n
				}
			}
			redis += by.Redis
		}
		if s.Errors+s.Invalid > 0 {
			got[key{s.Policy, "error", FromRedis}] = s.Errors + s.Invalid
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(told) {
		t.Errorf("counted %v\ntold    %v", got, told)
	}
	for _, want := range []key{
		{"window", "allowed", FromRedis}, {"window", "allowed", FromRule}, {"window", "denied", FromRule}, {"window", "denied", FromCache},
		{"window", "error", FromRedis}, {"bucket", "denied", FromRedis}, {"strict", "banned", FromRedis}, {"local", "denied", FromLocal},
	} {
		if got[want] == 0 {
			t.Errorf("none of %v", want)
		}
	}
	// What one of All denies the other was asked for, too, though it decided nothing.
	if n := asked.Load(); n < redis {
		t.Errorf("%d decisions by Redis, %d observed", redis, n)
	}
	before := asked.Load()
	stop()
	if _, err := window.Take(ctx, "unseen", 1); err != nil || asked.Load() != before {
		t.Errorf("observed after stop: %v", err)
	}
}

// Places are counted, too: an Acquire once, and a Wait once, however long it takes.
func TestStatsOfConcurrency(t *testing.T) {
	c := must(NewConcurrency(redistest.Start(t).Client(), "c", 1, Config{Timeout: 10 * time.Second}))
	lease, _, err := c.Acquire(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	if second, _, err := c.Acquire(ctx, "k"); second != nil || err != nil {
		t.Fatal(second, err)
	}
	if _, _, err := c.AcquireLocally(""); err == nil {
		t.Fatal("no error")
	}
	time.AfterFunc(200*time.Millisecond, func() { _ = lease.Release() })
	waited, err := c.Wait(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	defer waited.Release()
	if s := c.Stats(); s != (Stats{Policy: "c", Limit: Limit{1, 15 * time.Second}, Allowed: By{Redis: 2}, Denied: By{Redis: 1}, Invalid: 1}) {
		t.Errorf("%+v", s)
	}
}

// While Redis is away what is decided in process is counted, and that Redis is silent is seen.
func TestStatsWhileRedisIsAway(t *testing.T) {
	server := redistest.Start(t)
	l := must(NewSlidingWindow(server.Client(), "l", PerHour(3), Config{}))
	var failed atomic.Uint64
	defer Observe(func(_ string, _ time.Duration, err error) {
		if errors.Is(err, ErrUnavailable) {
			failed.Add(1)
		}
	}, l)()
	server.Kill()
	for range 5 {
		if _, err := l.Take(ctx, "k", 1); err == nil {
			t.Fatal("no error")
		}
		if _, err := l.TakeLocally("k", 1); err != nil {
			t.Fatal(err)
		}
	}
	s := l.Stats()
	short, cancel := context.WithTimeout(ctx, -1)
	defer cancel()
	if _, err := l.Take(short, "k", 1); err == nil || l.Stats().Errors != 6 { // Redis had its part in it
		t.Errorf("%v: %+v", err, l.Stats())
	}
	asked := failed.Load() // the others were refused by the breaker
	if s.Errors != 5 || asked == 0 || asked == 5 || s.Allowed.Local != 3 || s.Denied.Local != 2 || s.Silent != 1 {
		t.Errorf("%+v, %d failed", s, failed.Load())
	}
	server.Restart()
	for deadline := time.Now().Add(10 * time.Second); l.Stats().Silent != 0; time.Sleep(10 * time.Millisecond) {
		if _, _ = l.Take(context.Background(), "k", 1); time.Now().After(deadline) {
			t.Fatal("it stays silent")
		}
	}
}
