package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var ctx = context.Background()

// crowd takes 1,000 permits of one key in parallel, as four servers would, and
// reports how many passed.
func crowd(t *testing.T, b redistest.Backend, take func(c redis.UniversalClient) func() (bool, error)) int {
	var (
		wg     sync.WaitGroup
		passed atomic.Int64
	)
	for range 4 {
		f := take(b.NewClient(t))
		for range 250 {
			wg.Go(func() {
				ok, err := f()
				if err != nil {
					t.Error(err)
				}
				if ok {
					passed.Add(1)
				}
			})
		}
	}
	wg.Wait()
	return int(passed.Load())
}

func limiterOf(a algorithm, name string, limit Limit, clock func() int64) func(c redis.UniversalClient) func() (bool, error) {
	return func(c redis.UniversalClient) func() (bool, error) {
		l := newLimiter(nil, a, c, name, limit)
		if clock != nil {
			SetClock(l, clock)
		}
		return func() (bool, error) {
			res, err := l.Take(ctx, "k", 1)
			return res.Allowed, err
		}
	}
}

func TestExactlyTheLimitPasses(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, a := range algorithms {
			instant := time.Now().Add(time.Hour).UnixMicro()
			for name, clock := range map[string]func() int64{
				"crowd": nil, "one microsecond": func() int64 { return instant },
			} {
				t.Run(a.String()+", "+name, func(t *testing.T) {
					if n := crowd(t, b, limiterOf(a, name+" "+a.String(), PerDay(100), clock)); n != 100 {
						t.Errorf("%d passed, want 100", n)
					}
					if a != sliding {
						return
					}
					key := RedisKey(newLimiter(t, a, b.Client, name+" "+a.String(), PerDay(100)), "k")
					if n := b.Client.ZCard(ctx, key).Val(); n != 100 {
						t.Errorf("%d entries, want 100", n)
					}
				})
			}
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// The same crowd finds out those who check first and add then.
func TestTheCrowdCatchesCheckThenAdd(t *testing.T) {
	b := redistest.Backend{Name: "standalone", Addrs: []string{redistest.Shared(t).Addr()}}
	key := fmt.Sprintf("naive:%x", rand.Uint64())
	n := crowd(t, b, func(c redis.UniversalClient) func() (bool, error) {
		return func() (bool, error) {
			now := time.Now()
			used, err := c.ZCard(ctx, key).Result()
			if err != nil || used >= 100 {
				return false, err
			}
			c.ZAdd(ctx, key, redis.Z{Score: float64(now.UnixMilli()), Member: now.UnixMilli()})
			return true, c.Expire(ctx, key, time.Minute).Err()
		}
	})
	if n == 100 {
		t.Error("not caught")
	}
	t.Logf("%d passed of a limit of 100", n)
}

// A denial leaves the key as it is, byte for byte, and does not renew its TTL.
func TestDenialsWriteNothing(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			l := newLimiter(t, a, client, fmt.Sprintf("denied-%x", rand.Uint64()), PerHour(3))
			engineOf(l).denials = newDenials(0, time.Since)
			key := RedisKey(l, "k")
			for range 3 {
				must(l.Take(ctx, "k", 1))
			}
			dump, expires := client.Dump(ctx, key).Val(), client.PExpireTime(ctx, key).Val()
			for i := range 100 {
				engineOf(l).denials.forget("k") // so that Redis is asked
				if res := must(l.Take(ctx, "k", 1+i%5)); res.Allowed || res.Source != FromRedis {
					t.Fatalf("%+v", res)
				}
			}
			if d := client.Dump(ctx, key).Val(); d != dump {
				t.Errorf("the key has changed:\n%q\n%q", dump, d)
			}
			if e := client.PExpireTime(ctx, key).Val(); e != expires {
				t.Errorf("the expiry moved from %v to %v", expires, e)
			}
		})
	}
}

// heals reports whether a counter that lost its TTL gets one with the next hit,
// and whether later hits leave a TTL alone.
func heals(client redis.UniversalClient, l Limiter) error {
	key := RedisKey(l, "k")
	if _, err := l.Take(ctx, "k", 1); err != nil {
		return err
	}
	first := client.PExpireTime(ctx, key).Val()
	if _, err := l.Take(ctx, "k", 1); err != nil {
		return err
	}
	if e := client.PExpireTime(ctx, key).Val(); e != first {
		return fmt.Errorf("the second hit moved the expiry from %v to %v", first, e)
	}
	for _, cost := range []int{1, 100, 0} { // an admission, a denial, a look
		client.Persist(ctx, key)
		engineOf(l).denials.forget("k")
		if _, err := l.Take(ctx, "k", cost); err != nil {
			return err
		}
		if ttl := client.PTTL(ctx, key).Val(); ttl <= 0 || ttl > time.Hour {
			return fmt.Errorf("TTL %v after a Take of %d from a key without", ttl, cost)
		}
	}
	return nil
}

func TestMissingTTLIsHealed(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
		}
		l := newLimiter(t, fixed, b.Client, "heal", PerHour(10))
		if err := heals(b.Client, l); err != nil {
			t.Error(err)
		}
		naive := newLimiter(t, fixed, b.Client, "naive", PerHour(10))
		SetScript(naive, redistest.Break(engineScript(fixed), "if ends < 0 or ends >", "if ends >").Source())
		if err := heals(b.Client, naive); err == nil {
			t.Error("a script that does not heal is not caught")
		}
	})
}

// outlives takes from one bucket by limits of several windows, gives back what was taken
// now or long ago, and reports whether its key may expire before the bucket is full
// again, or is kept for long after. A key is to last until the end of the ten seconds
// in which the bucket is full, so that it does whenever the clock enters others.
func outlives(client redis.UniversalClient, name, script string) error {
	widest := must(NewTokenBucket(client, name, PerMinute(60), Config{Timeout: 10 * time.Second}))
	SetScript(widest, script)
	limits := []Limiter{widest}
	for _, l := range []Limit{PerSecond(5), {Requests: 7, Window: 3 * time.Second}, {Requests: 10, Window: 10 * time.Second},
		PerMinute(1000), PerMinute(12), PerMinute(7)} {
		limits = append(limits, must(widest.With(l)))
	}
	type taken struct {
		by  Limiter
		res Result
	}
	var past []taken
	key, random := RedisKey(widest, "k"), rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		switch {
		case random.IntN(100) == 0:
			client.Del(ctx, key)
		case random.IntN(3) == 0 && len(past) > 0:
			n := max(0, len(past)-1-random.IntN(5))
			t := past[n]
			past = append(past[:n], past[n+1:]...)
			if err := t.by.(Settler).Settle(ctx, "k", t.res, random.IntN(6)); err != nil {
				return err
			}
		default:
			l := limits[random.IntN(len(limits))]
			engineOf(widest).denials.forget("k")
			res, err := l.Take(ctx, "k", random.IntN(6))
			if err != nil {
				return err
			}
			if res.Allowed {
				past = append(past, taken{l, res})
			}
		}
		level, err := client.Get(ctx, key).Result()
		if err != nil {
			continue // there is none
		}
		var full int64
		if _, err := fmt.Sscan(strings.Split(level, ":")[0], &full); err != nil {
			return err
		}
		const ten = 10_000_000
		until := time.Duration(full-full%ten+ten) * time.Microsecond
		if expires := client.PExpireTime(ctx, key).Val(); expires < until {
			return fmt.Errorf("step %d: full at %d µs, gone at %v", i, full, expires)
		}
		if ttl := client.PTTL(ctx, key).Val(); ttl <= 0 || ttl > time.Minute+11*time.Second {
			return fmt.Errorf("step %d: TTL %v", i, ttl)
		}
	}
	return nil
}

func TestBucketIsKeptUntilItIsFull(t *testing.T) {
	client := redistest.Shared(t).Client()
	if err := outlives(client, "kept", engineScript(bucket).Source()); err != nil {
		t.Error(err)
	}
	for name, wrong := range map[string]*scripts.Script{
		"never renewed":      redistest.Break(engineScript(bucket), "local near, loan = whole < kept,", "local near, loan = raw,"),
		"renewed too late":   redistest.Break(engineScript(bucket), "kept = whole - whole % 10000000 + 10000000", "kept = whole - whole % 10000000 + 20000000"),
		"nine seconds short": redistest.Break(engineScript(bucket), "'PX', ttl", "'PX', ttl - 9000"),
	} {
		if err := outlives(client, name, wrong.Source()); err == nil {
			t.Errorf("an expiry %s is not caught", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

func TestMemoryPerKey(t *testing.T) {
	client := redistest.Start(t).Client()
	usage := func(l Limiter, takes int) int64 {
		for range takes {
			must(l.Take(ctx, "user-1", 1))
		}
		return client.MemoryUsage(ctx, RedisKey(l, "user-1")).Val()
	}
	for _, test := range []struct {
		a     algorithm
		takes int
		most  int64
	}{{sliding, 100, 2160}, {fixed, 100, 96}, {bucket, 100, 96}, {quota, 100, 96}} {
		l := newLimiter(t, test.a, client, "api", PerMinute(1000))
		if n := usage(l, test.takes); n > test.most {
			t.Errorf("%v: %d bytes, want at most %d", test.a, n, test.most)
		} else {
			t.Logf("%v: %d bytes", test.a, n)
		}
	}
}

// A remembered denial costs no command, counts down, and is over when it says.
func TestRememberedDenials(t *testing.T) {
	t.Parallel() // with others that wait
	client := redistest.Start(t).Client()
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			l := newLimiter(t, a, client, "remember "+a.String(), Limit{2, 2 * time.Second})
			must(l.Take(ctx, "k", 2))
			first := must(l.Take(ctx, "k", 1))
			if first.Allowed || first.Source != FromRedis {
				t.Fatalf("%+v", first)
			}
			start, last, late := time.Now(), first, false
			n := commands(t, client, func() {
				for range 1000 {
					res := must(l.Take(ctx, "k", 1))
					if late = time.Since(start) > 500*time.Millisecond; late {
						break // a busy machine
					}
					if res.Allowed || res.Source != FromCache || res.RetryAfter > last.RetryAfter || res.ResetAfter > last.ResetAfter {
						t.Fatalf("%+v after %+v", res, last)
					}
					if d := res.ResetAt().Sub(first.ResetAt()); d < -time.Microsecond || d > time.Microsecond {
						t.Fatalf("ResetAt moved by %v", d)
					}
					last = res
				}
			})
			if n != 0 && !late {
				t.Errorf("%d scripts for remembered denials", n)
			}
			if res := must(l.Take(ctx, "k", 2)); res.Source != FromCache || res.RetryAfter < last.RetryAfter-time.Second {
				t.Errorf("a greater cost: %+v", res)
			}
			if first.RetryAfter > 5*time.Second {
				return // a quota ends with its day
			}
			for time.Since(start) < 10*time.Second {
				if res := must(l.Take(ctx, "k", 1)); res.Allowed {
					break
				}
			}
			if d := time.Since(start); d > first.RetryAfter+2*time.Second {
				t.Errorf("allowed after %v, RetryAfter was %v", d, first.RetryAfter)
			}
		})
	}
}

// manyKeys is many times what MaxKeys of the tests below allows.
func manyKeys() int {
	if redistest.RaceDetector {
		return 100_000
	}
	return 1_000_000
}

func TestDenialsAreBounded(t *testing.T) {
	d := newDenials(1<<12, time.Since)
	res := Result{Limit: PerHour(1), RetryAfter: time.Hour, ResetAfter: time.Hour}
	for i := range manyKeys() {
		d.remember(fmt.Sprint("key-", i), 1, res, d.now(), false)
	}
	n := 0
	for i := range d.keys.shards {
		n += len(d.keys.shards[i].m)
	}
	if n > 1<<12 || int64(n) != d.keys.count.Load() {
		t.Errorf("%d keys, counted as %d, want at most %d", n, d.keys.count.Load(), 1<<12)
	}
}

func TestDenialsEndInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDenials(100, time.Since)
		limit := PerHour(1)
		for _, test := range []struct{ retry, want time.Duration }{
			{10 * time.Millisecond, 10 * time.Millisecond},
			{time.Hour, time.Second},
			{Never, time.Second},
		} {
			sent := d.now()
			time.Sleep(5 * time.Millisecond) // the round trip
			d.remember("k", 1, Result{Limit: limit, RetryAfter: test.retry, ResetAfter: time.Hour}, sent, false)
			time.Sleep(test.want - 5*time.Millisecond - time.Nanosecond)
			if !d.recall("k", limit, 1, false).denies {
				t.Errorf("%v: forgotten early", test.retry)
			}
			if d.recall("k", PerHour(2), 1, false).denies {
				t.Errorf("%v: denies under another limit", test.retry)
			}
			time.Sleep(time.Nanosecond)
			if d.recall("k", limit, 1, false).denies {
				t.Errorf("%v: outlives the denial", test.retry)
			}
		}
	})
}

// What another server resets is free here within a second.
func TestResetReachesOtherServers(t *testing.T) {
	server := redistest.Shared(t)
	name := fmt.Sprintf("reset-%x", rand.Uint64())
	here := newLimiter(t, sliding, server.Client(), name, PerHour(1)).(*SlidingWindow)
	there := newLimiter(t, sliding, server.Client(), name, PerHour(1)).(*SlidingWindow)
	must(here.Take(ctx, "k", 1))
	must(here.Take(ctx, "k", 1)) // denied, and remembered
	if err := there.Reset(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; {
		asked := time.Since(start)
		if must(here.Take(ctx, "k", 1)).Allowed {
			break
		}
		if asked > 1100*time.Millisecond {
			t.Fatalf("denied after %v", asked)
		}
	}
}

func TestLocalIsBounded(t *testing.T) {
	l := must(NewLocal("local", PerHour(2), Config{MaxKeys: 1 << 12}))
	must(l.Take(ctx, "victim", 2))
	for i := range manyKeys() {
		must(l.Take(ctx, fmt.Sprint("key-", i), 1))
	}
	if n := l.buckets.count.Load(); n > 1<<12 {
		t.Errorf("%d keys, want at most %d", n, 1<<12)
	}
}

func TestLocalInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := must(NewLocal("local", PerMinute(2), Config{}))
		must(l.Take(ctx, "k", 1))
		time.Sleep(20 * time.Second)
		must(l.Take(ctx, "k", 1))
		res := must(l.Take(ctx, "k", 1))
		if res.Allowed || res.RetryAfter != 40*time.Second || res.ResetAfter != time.Minute {
			t.Fatalf("%+v", res)
		}
		time.Sleep(res.RetryAfter)
		if res := must(l.Take(ctx, "k", 1)); !res.Allowed {
			t.Fatalf("%+v", res)
		}
	})
}

func TestBucketDoesNotDrift(t *testing.T) {
	s := new(bucketState)
	r := rule{7, 1_000_000}
	start := int64(1_700_000_000_000_000)
	now := start
	admitted := int64(0)
	for range 1_000_000 {
		v := s.decide(r, demand{cost: 1, n: 1, now: now})
		if v.granted == 1 {
			admitted++
			// The burst, and from then on exactly seven a second.
			if most := 7 + (now-start)*7/1_000_000; admitted > most || now > start && admitted < most {
				t.Fatalf("%d admitted in %dµs, want %d", admitted, now-start, most)
			}
			continue
		}
		now += v.retry
	}
}

// A field that a limiter would not look at is an error that names it.
func TestConstructorsIgnoreNothing(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	rules, err := NewRules(client, RulesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	set := map[string]Config{
		"Rules": {Rules: rules}, "Prefix": {Prefix: "p:"}, "KeySecret": {KeySecret: make([]byte, 32)}, "Timeout": {Timeout: time.Second}, "Servers": {Servers: 2},
		"MaxKeys": {MaxKeys: 10}, "Penalty": {Penalty: Penalty{Strikes: 1}}, "Lease": {Lease: time.Second},
		"Logger": {Logger: slog.Default()}, "OnDecision": {OnDecision: func(Decision) {}},
	}
	if n := reflect.TypeFor[Config]().NumField(); n != len(set) {
		t.Errorf("Config has %d fields, this test knows %d", n, len(set))
	}
	for kind, of := range map[string]struct {
		make func(Config) error
		uses string
	}{
		"sliding":     {func(c Config) error { _, err := NewSlidingWindow(client, "n", PerHour(1), c); return err }, "Prefix KeySecret Timeout Servers MaxKeys Penalty Rules Logger OnDecision"},
		"fixed":       {func(c Config) error { _, err := NewFixedWindow(client, "n", PerHour(1), c); return err }, "Prefix KeySecret Timeout Servers MaxKeys Penalty Rules Logger OnDecision"},
		"bucket":      {func(c Config) error { _, err := NewTokenBucket(client, "n", PerHour(1), c); return err }, "Prefix KeySecret Timeout Servers MaxKeys Penalty Rules Logger OnDecision"},
		"quota":       {func(c Config) error { _, err := NewQuota(client, "n", 1, Day, time.UTC, c); return err }, "Prefix KeySecret Timeout Servers MaxKeys Penalty Rules Logger OnDecision"},
		"local":       {func(c Config) error { _, err := NewLocal("n", PerHour(1), c); return err }, "KeySecret MaxKeys Rules OnDecision"},
		"concurrency": {func(c Config) error { _, err := NewConcurrency(client, "n", 1, c); return err }, "Prefix KeySecret Timeout Servers Rules Lease Logger"},
	} {
		for field, cfg := range set {
			err := of.make(cfg)
			if uses := slices.Contains(strings.Fields(of.uses), field); uses != (err == nil) || err != nil && !strings.Contains(err.Error(), "Config."+field) {
				t.Errorf("%s with %s: %v", kind, field, err)
			}
		}
	}
}

// With no Logger set, a Redis that falls silent leaves a line in slog's default logger.
func TestSilenceIsTold(t *testing.T) {
	var log redistest.Journal
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	server := redistest.Start(t)
	client := server.Client()
	l := must(NewFixedWindow(client, "silent", PerHour(5), Config{Timeout: 50 * time.Millisecond}))
	must(newLimiter(t, fixed, client, "patient", PerHour(5)).Take(ctx, "k", 1))
	server.Pause()
	defer server.Resume()
	for range 5 {
		_, _ = l.Take(ctx, "k", 1)
	}
	if got := log.String(); strings.Count(got, "no answer") != 1 {
		t.Errorf("logged %q", got)
	}
}

func TestConstructorsNameAllThatIsWrong(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	bad := Config{Prefix: "{x}", Timeout: -1, Servers: -2, MaxKeys: -3}
	wants := []string{`Prefix "{x}"`, "Timeout -1ns", "Servers -2", "MaxKeys -3", `name "a:b"`, "Limit.Requests 0", "Limit.Window 999µs"}
	limit := Limit{0, 999 * time.Microsecond}
	_, err1 := NewSlidingWindow(nil, "a:b", limit, bad)
	_, err2 := NewFixedWindow(nil, "a:b", limit, bad)
	_, err3 := NewTokenBucket(nil, "a:b", limit, bad)
	_, err4 := NewLocal("a:b", limit, bad)
	for _, err := range []error{err1, err2, err3, err4} {
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v\ndoes not name %s", err, want)
			}
		}
	}
	if !strings.Contains(err1.Error(), "nil client") {
		t.Error(err1)
	}
	for _, test := range []struct {
		limit Limit
		ok    bool
	}{
		{Limit{1, time.Millisecond}, true},
		{Limit{200_000, MaxWindow}, true},
		{Limit{1_000_001, time.Hour}, false},
		{Limit{-1, time.Hour}, false},
		{Limit{1, -time.Hour}, false},
		{Limit{1, time.Millisecond + 1}, false},
		{Limit{1, MaxWindow + time.Microsecond}, false},
		{PerDay(3), true},
		{Limit{5, 40 * 24 * time.Hour}, true},
	} {
		if _, err := NewSlidingWindow(client, "n", test.limit, Config{}); (err == nil) != test.ok {
			t.Errorf("%v: %v", test.limit, err)
		}
	}
	for _, name := range []string{"", "a{b", "a}b", "a\nb", "é", strings.Repeat("x", 65)} {
		if _, err := NewFixedWindow(client, name, PerHour(1), Config{}); err == nil {
			t.Errorf("name %q is accepted", name)
		}
	}
}

func TestOnDecision(t *testing.T) {
	client := redistest.Shared(t).Client()
	var told []Decision
	l := must(NewFixedWindow(client, fmt.Sprintf("hook-%x", rand.Uint64()), PerHour(1), Config{
		Timeout: 10 * time.Second, OnDecision: func(d Decision) { told = append(told, d) },
	}))
	must(l.Take(ctx, "k", 1))
	must(l.Take(ctx, "k", 1))
	must(l.Take(ctx, "k", 1))
	if _, err := l.Take(ctx, "", 1); err == nil {
		t.Fatal("no error")
	}
	if len(told) != 4 {
		t.Fatalf("told of %d decisions", len(told))
	}
	for i, want := range []struct {
		allowed bool
		source  Source
		err     error
	}{{true, FromRedis, nil}, {false, FromRedis, nil}, {false, FromCache, nil}, {false, 0, ErrEmptyKey}} {
		d := told[i]
		if d.Result.Allowed != want.allowed || d.Result.Source != want.source || !errors.Is(d.Err, want.err) || d.Took <= 0 || d.Cost != 1 {
			t.Errorf("%d: %+v", i, d)
		}
	}
}

func FuzzKeys(f *testing.F) {
	for _, s := range []string{"", "a", "a:b", "{a}", "%", "%7B", "\x00", "\xff", `a\`, strings.Repeat("x", 200)} {
		f.Add(s, "b")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		ea, eb := escapeSubject(a), escapeSubject(b)
		if (ea == eb) != (a == b) {
			t.Errorf("%q and %q become %q and %q", a, b, ea, eb)
		}
		if len(ea) > maxSubject || strings.ContainsAny(ea, "{} \r\n\x00") {
			t.Errorf("%q becomes %q", a, ea)
		}
		if j := JoinKey(a, b); a != "" || b != "" {
			if got := SplitKey(j); len(got) != 2 || got[0] != a || got[1] != b {
				t.Errorf("%q, %q are joined to %q and split to %q", a, b, j, got)
			}
			if j == JoinKey(a+":"+b) || a != "" && j == JoinKey(a[:len(a)-1], a[len(a)-1:]+b) && len(a) > 0 && b == "" {
				t.Errorf("%q, %q collide", a, b)
			}
		}
	})
}
