package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
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

func TestWaitTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := must(NewLocal("wait", Limit{2, time.Second}, Config{}))
		start := time.Now()
		for i := range 6 {
			if res, err := Wait(ctx, l, "k", 1); err != nil || !res.Allowed {
				t.Fatal(res, err)
			}
			if got, want := time.Since(start), time.Duration(i/2)*time.Second; got < want || got > want+want/10 {
				t.Errorf("permit %d after %v, want %v", i, got, want)
			}
		}
		short, cancel := context.WithTimeout(ctx, time.Second/2)
		defer cancel()
		start = time.Now()
		if res, err := Wait(short, l, "k", 1); !errors.Is(err, context.DeadlineExceeded) || res.RetryAfter != time.Second || time.Since(start) != 0 {
			t.Errorf("a deadline too soon: %+v, %v after %v", res, err, time.Since(start))
		}
		cancelled, cancel := context.WithCancel(ctx)
		time.AfterFunc(300*time.Millisecond, cancel)
		if _, err := Wait(cancelled, l, "k", 1); !errors.Is(err, context.Canceled) || time.Since(start) != 300*time.Millisecond {
			t.Errorf("cancelled: %v after %v", err, time.Since(start))
		}
		if _, err := Wait(ctx, l, "k", 3); !errors.Is(err, ErrNever) {
			t.Errorf("cost above the limit: %v", err)
		}
		if _, err := Wait(ctx, l, "", 1); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("empty key: %v", err)
		}
	})
}

// buckets are limiters over one token bucket, as several servers have them.
func buckets(t *testing.T, server *redistest.Server, n int, limit Limit) []*TokenBucket {
	t.Helper()
	name := fmt.Sprintf("wait-%x", rand.Uint64())
	all := make([]*TokenBucket, n)
	for i := range all {
		all[i] = must(NewTokenBucket(server.Client(), name, limit, Config{Timeout: 10 * time.Second}))
	}
	return all
}

// level is when the bucket of "k" is full, in µs, and whether permits are lent.
func level(t *testing.T, l *TokenBucket) (whole int64, lent bool) {
	t.Helper()
	raw, err := l.sender.Client().Get(ctx, RedisKey(l, "k")).Result()
	if err != nil {
		t.Fatal(err)
	}
	whole, err = strconv.ParseInt(strings.Split(raw, ":")[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return whole, strings.HasSuffix(raw, ":l")
}

// Beside workers on two servers that take one permit as often as they can, a caller that
// waits for many gets them within a second more than its share of the rate. One that takes
// again and again does not.
func TestNobodyStarvesWhoWaits(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Shared(t)
	const rate, many = 100, 80
	share := many * time.Second / rate
	for _, test := range []struct {
		name    string
		workers int // on each server
		work    func(ctx context.Context, l Limiter)
	}{
		{"workers that take", 8, func(ctx context.Context, l Limiter) {
			if res, err := l.Take(ctx, "k", 1); err == nil && !res.Allowed {
				time.Sleep(min(res.RetryAfter, time.Millisecond)) // for the other goroutines
			}
		}},
		{"workers that wait", 8, func(ctx context.Context, l Limiter) { _, _ = Wait(ctx, l, "k", 1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			servers := buckets(t, server, 3, PerSecond(rate))
			work, stop := context.WithCancel(ctx)
			var (
				wg   sync.WaitGroup
				done atomic.Int64
			)
			defer wg.Wait()
			defer stop()
			for i := range 2 * test.workers {
				wg.Go(func() {
					for work.Err() == nil {
						test.work(work, servers[i%2])
						done.Add(1)
					}
				})
			}
			for must(servers[2].Take(ctx, "k", 0)).Remaining > 0 {
				time.Sleep(10 * time.Millisecond) // the burst
			}
			// The control.
			start, tries := time.Now(), 0
			for time.Since(start) < share+time.Second {
				res := must(servers[2].Take(ctx, "k", many))
				if tries++; res.Allowed {
					break
				}
				time.Sleep(res.RetryAfter)
			}
			t.Logf("%d Takes of %d within %v got nothing; it waits", tries, many, time.Since(start))

			limited, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			start = time.Now()
			res, err := Wait(limited, servers[2], "k", many)
			if d := time.Since(start); err != nil || !res.Allowed || d > share+time.Second {
				t.Errorf("%v, %v after %v, want at most %v", res, err, d, share+time.Second)
			} else {
				t.Logf("in after %v", d)
			}
		})
	}
}

// Who comes first is served first, whatever the others want, and nobody before time.
func TestWaitersAreServedInOrder(t *testing.T) {
	t.Parallel() // with others that wait
	const permit = 200 * time.Millisecond
	limit := Limit{20, 20 * permit}
	servers := buckets(t, redistest.Shared(t), 2, limit)
	due := time.Now()
	must(servers[0].Take(ctx, "k", limit.Requests))
	empty, _ := level(t, servers[0])
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		order []int
	)
	before := empty
	for i, cost := range []int{5, 1, 3, 1, 1, 4} {
		wg.Go(func() {
			res, err := Wait(ctx, servers[i%2], "k", cost)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, i)
			if err != nil || !res.Allowed || res.RetryAfter != 0 {
				t.Errorf("waiter %d: %+v, %v", i, res, err)
			}
		})
		after, lent := level(t, servers[0])
		for start := time.Now(); after == before; after, lent = level(t, servers[0]) {
			if time.Since(start) > 5*time.Second {
				t.Fatalf("waiter %d has not taken its permits ahead", i)
			}
		}
		if got, want := after-before, int64(cost)*permit.Microseconds(); got != want || !lent {
			t.Fatalf("waiter %d moves the level by %d µs, want %d (lent: %v)", i, got, want, lent)
		}
		before, due = after, due.Add(time.Duration(cost)*permit)
	}
	wg.Wait()
	if early := time.Until(due); early > 10*time.Millisecond {
		t.Errorf("all served %v early", early)
	}
	for i, waiter := range order {
		if waiter != i {
			t.Fatalf("served in the order %v", order)
		}
	}
}

// Where the deadline comes before the permits, Wait does not wait, and spends nothing.
func TestWaitKnowsThatTheDeadlineIsTooSoon(t *testing.T) {
	t.Parallel() // with others that wait
	l := buckets(t, redistest.Shared(t), 1, Limit{10, 100 * time.Second})[0]
	must(l.Take(ctx, "k", 10))
	before, _ := level(t, l)
	for _, test := range []struct {
		cost int
		in   time.Duration
		want time.Duration // RetryAfter
	}{
		{1, 5 * time.Second, 10 * time.Second},
		{5, 40 * time.Second, 50 * time.Second},
		{10, time.Millisecond, 100 * time.Second},
	} {
		short, cancel := context.WithTimeout(ctx, test.in)
		start := time.Now()
		res, err := Wait(short, l, "k", test.cost)
		if d := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || d > test.in/2 && d > 2*time.Second {
			t.Errorf("%+v: %v after %v", test, err, d)
		}
		if short.Err() == nil && (res.Allowed || (res.RetryAfter-test.want).Abs() > 5*time.Second) {
			t.Errorf("%+v: %+v", test, res)
		}
		cancel()
		if after, lent := level(t, l); after != before || lent {
			t.Errorf("%+v: the level has moved by %d µs (lent: %v)", test, after-before, lent)
		}
	}
	// One that is late enough, just so, waits.
	l = buckets(t, redistest.Shared(t), 1, Limit{10, 20 * time.Second})[0]
	must(l.Take(ctx, "k", 10))
	long, cancel := context.WithTimeout(ctx, 3500*time.Millisecond)
	defer cancel()
	if res, err := Wait(long, l, "k", 1); err != nil || !res.Allowed {
		t.Errorf("a deadline late enough: %v, %v", res, err)
	}
}

// Who gives up while waiting has spent nothing.
func TestWaitGivesBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		l := must(NewTokenBucket(b.Client, "gives back", Limit{10, 100 * time.Second}, Config{Timeout: 10 * time.Second}))
		keyed := Keyed(l, func(string) string { return "k" })
		must(l.Take(ctx, "k", 10))
		before, _ := level(t, l)
		for _, limiter := range []Limiter{l, keyed} {
			for _, cost := range []int{1, 7} {
				giveUp, cancel := context.WithCancel(ctx)
				outcome := make(chan error, 1)
				go func() {
					res, err := Wait(giveUp, limiter, "k", cost)
					if res.Allowed {
						err = errors.Join(err, errors.New("it is allowed"))
					}
					outcome <- err
				}()
				for start := time.Now(); ; {
					if whole, lent := level(t, l); whole == before+int64(cost)*10_000_000 && lent {
						break
					}
					if time.Since(start) > 5*time.Second {
						t.Fatal("no permits are taken ahead")
					}
				}
				cancel()
				if err := <-outcome; err != context.Canceled {
					t.Errorf("%v", err)
				}
				if after, lent := level(t, l); after != before || lent {
					t.Errorf("cost %d: the level is %d µs from where it was (lent: %v)", cost, after-before, lent)
				}
			}
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func TestWaitForWhatNeverComes(t *testing.T) {
	client := redistest.Shared(t).Client()
	dead := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer dead.Close()
	over, cancel := context.WithCancel(ctx)
	cancel()
	for _, a := range algorithms {
		l := newLimiter(t, a, client, fmt.Sprintf("never-%x", rand.Uint64()), PerHour(5))
		none := with(t, l, Limit{0, l.(Named).Limit().Window})
		for _, test := range []struct {
			name string
			ctx  context.Context
			l    Limiter
			key  string
			cost int
			want error
		}{
			{"cost above the limit", ctx, l, "k", 6, ErrNever},
			{"a limit of 0", ctx, none, "k", 1, ErrNever},
			{"empty key", ctx, l, "", 1, ErrEmptyKey},
			{"negative cost", ctx, l, "k", -1, ErrCost},
			{"context over", over, l, "k", 1, context.Canceled},
			{"no Redis", ctx, newLimiter(t, a, dead, "dead", PerHour(5)), "k", 1, ErrUnavailable},
		} {
			t.Run(a.String()+", "+test.name, func(t *testing.T) {
				start := time.Now()
				if res, err := Wait(test.ctx, test.l, test.key, test.cost); !errors.Is(err, test.want) || res.Allowed || time.Since(start) > 5*time.Second {
					t.Errorf("%v, %v after %v", res, err, time.Since(start))
				}
			})
		}
		if res := must(l.Take(ctx, "k", 0)); res.Remaining != 5 {
			t.Errorf("%v: %d left of 5", a, res.Remaining)
		}
	}
}

// However far permits are lent, and however far Redis's clock steps back, a client that never
// waits for them in advance gets in within a window and the time of one permit.
func TestWaitersLockNobodyOutWhenTheClockStepsBack(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, limit := range []Limit{{10, 10 * time.Second}, {7, time.Second}, PerHour(1)} {
		for _, ahead := range []int{0, 1, limit.Requests / 2, limit.Requests} {
			for _, back := range []time.Duration{0, time.Microsecond, limit.Window / 10, limit.Window / 2, limit.Window, 2 * limit.Window, 100 * limit.Window} {
				t.Run(fmt.Sprintf("%v, %d ahead, %v back", limit, ahead, back), func(t *testing.T) {
					l := must(NewTokenBucket(client, fmt.Sprintf("back-%x", rand.Uint64()), limit, Config{Timeout: 10 * time.Second}))
					now := time.Now().Add(10_000 * time.Hour)
					SetClock(l, func() int64 { return now.UnixMicro() })
					must(l.Take(ctx, "k", limit.Requests))
					if ahead > 0 {
						if res := must(l.reserve(ctx, "k", ahead, limit.Window)); !res.Allowed {
							t.Fatal(res)
						}
					}
					now = now.Add(-back)
					most := limit.Window + limit.Window/time.Duration(limit.Requests) + time.Microsecond
					for from := now; ; {
						l.denials.forget("k")
						res := must(l.Take(ctx, "k", 1))
						if res.Allowed {
							break
						}
						now = now.Add(res.RetryAfter)
						if now.Sub(from) > most {
							t.Fatalf("locked out for %v at least, want at most %v: %v", now.Sub(from), most, res)
						}
					}
				})
			}
		}
	}
}

// reserveAndTake takes from one bucket by limits of several windows, now and in advance, and
// settles, and reports whether its key may expire before the bucket is full again, or is
// kept for long after.
func reserveAndTake(client redis.UniversalClient, wait *scripts.Script, seed uint64) error {
	first := must(NewTokenBucket(client, fmt.Sprintf("kept-%x", rand.Uint64()), PerMinute(60), Config{Timeout: 10 * time.Second}))
	limits := []*TokenBucket{first}
	for _, l := range []Limit{PerSecond(5), {7, 3 * time.Second}, {10, 10 * time.Second}, PerMinute(7)} {
		limits = append(limits, must(first.With(l)))
	}
	defer func(was *scripts.Script) { bucketWait = was }(bucketWait)
	bucketWait = wait
	type taken struct {
		by  Limiter
		res Result
	}
	var past []taken
	key, random := RedisKey(first, "k"), rand.New(rand.NewPCG(seed, 0))
	for i := range 3000 {
		l := limits[random.IntN(len(limits))]
		first.denials.forget("k")
		var res Result
		var err error
		switch random.IntN(7) {
		case 0:
			client.Del(ctx, key)
			continue
		case 1, 2:
			if len(past) == 0 {
				continue
			}
			n := max(0, len(past)-1-random.IntN(5))
			t := past[n]
			past = append(past[:n], past[n+1:]...)
			err = t.by.(Settler).Settle(ctx, "k", t.res, random.IntN(6))
		case 3, 4:
			res, err = l.reserve(ctx, "k", 1+random.IntN(6), time.Duration(random.Int64N(int64(l.limit.Window)+1)))
		default:
			res, err = l.Take(ctx, "k", random.IntN(6))
		}
		if err != nil {
			return fmt.Errorf("seed %d, step %d: %w", seed, i, err)
		}
		if res.Allowed {
			past = append(past, taken{l, res})
		}
		raw, err := client.Get(ctx, key).Result()
		if err != nil {
			continue // there is none
		}
		full, err := strconv.ParseInt(strings.Split(raw, ":")[0], 10, 64)
		if err != nil {
			return err
		}
		const ten = 10_000_000
		until := time.Duration(full-full%ten+ten) * time.Microsecond
		if expires := client.PExpireTime(ctx, key).Val(); expires < until {
			return fmt.Errorf("seed %d, step %d: full at %d µs, gone at %v", seed, i, full, expires)
		}
		if ttl := client.PTTL(ctx, key).Val(); ttl <= 0 || ttl > 2*time.Minute+11*time.Second {
			return fmt.Errorf("seed %d, step %d: TTL %v", seed, i, ttl)
		}
	}
	return nil
}

// A bucket from which permits are lent is kept until it is full, and not for long after.
func TestLentPermitsExpireInTime(t *testing.T) {
	client := redistest.Shared(t).Client()
	if err := reserveAndTake(client, bucketWait, rand.Uint64()); err != nil {
		t.Error(err)
	}
	for name, wrong := range map[string]*scripts.Script{
		"never renewed": redistest.Break(bucketWait, "local near, loan = whole < kept,", "local near, loan = raw,"),
		"short":         redistest.Break(bucketWait, "'PX', ttl", "'PX', ttl - 9000"),
		"none":          redistest.Break(bucketWait, "call('SET', key, level, 'PX', ttl)", "call('SET', key, level)"),
	} {
		if err := reserveAndTake(client, wrong, 1); err == nil {
			t.Errorf("an expiry %s is not caught", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// What stays after a Wait that nobody settles is gone two windows later, by Redis's own
// clock.
func TestKeysOfWaitersExpire(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		b.Advance(t, 0)
		l := must(NewTokenBucket(b.Client, "expires", PerMinute(10), Config{Timeout: 10 * time.Second}))
		must(l.Take(ctx, "k", 10))
		must(l.reserve(ctx, "k", 10, time.Minute))
		b.Advance(t, 2*time.Minute-time.Second)
		if res := must(l.Take(ctx, "k", 0)); res.Remaining > 9 {
			t.Errorf("forgotten early: %v", res)
		}
		b.Advance(t, 20*time.Second)
		if n := b.Client.Exists(ctx, RedisKey(l, "k")).Val(); n != 0 {
			t.Error("the key is still there")
		}
	})
}

// eval runs a script over a key.
func eval(client redis.UniversalClient, s *scripts.Script, key string, args ...any) *redis.Cmd {
	cmd := client.EvalSha(ctx, s.SHA1(), []string{key}, args...)
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		cmd = client.Eval(ctx, s.Source(), []string{key}, args...)
	}
	return cmd
}

// agreeOnWaiting runs a random schedule over a fresh bucket by the scripts and by Go, and compares the
// verdicts.
func agreeOnWaiting(client redis.UniversalClient, seed uint64, take, wait, settle *scripts.Script) error {
	r := rand.New(rand.NewPCG(seed, 0))
	limit := rule{
		[]int64{1, 2, 3, 7, 10, 33, 100, 997, 1 << 26}[r.IntN(9)],
		[]int64{1000, 1001, 10_000, 999_983, 1_000_000, 60_000_000, 3_600_000_000, 30 * 86_400_000_000}[r.IntN(8)],
	}
	key := fmt.Sprintf("gatehouse:rl:bucket:agree:{%x}", rand.Uint64())
	defer client.Del(ctx, key)
	now := time.Now().Add(1000 * 24 * time.Hour).UnixMicro()
	state := new(bucketState)
	const ttl = 3_600_000
	var grants []*receipt
	log := []string{fmt.Sprintf("seed %d: %d requests per %d µs", seed, limit.requests, limit.window)}
	for i := range 60 {
		switch r.IntN(6) {
		case 0: // the same microsecond
		case 1:
			now += 1 + r.Int64N(3)
		case 2:
			now += limit.window - 1 + r.Int64N(3)
		case 3:
			now += (r.Int64N(5) - 3) * limit.window / 2 // back, too
		default:
			now += r.Int64N(limit.window/4 + 1)
		}
		if len(grants) > 0 && r.IntN(4) == 0 {
			g := grants[r.IntN(len(grants))]
			delta := r.Int64N(2*g.cost+1) - g.cost
			if delta == 0 {
				continue
			}
			log = append(log, fmt.Sprintf("%d: at %d settle by %d of mark %d+%d", i, now, delta, g.mark, g.part))
			if err := eval(client, settle, key, limit.requests, ttl, delta, g.mark, g.part, limit.window, now).Err(); err != nil {
				return err
			}
			state.settle(limit, g, delta, now)
			continue
		}
		d := demand{cost: 1, n: 1, now: now}
		if r.IntN(2) == 0 {
			d.cost = 1 + r.Int64N(limit.requests+1)
		}
		var reply any
		var err error
		patience := int64(0)
		if r.IntN(3) > 0 {
			patience = []int64{0, 1, limit.window / limit.requests, r.Int64N(limit.window + 1), limit.window, 3 * limit.window}[r.IntN(6)]
			reply, err = eval(client, wait, key, limit.requests, ttl, limit.window, d.cost, patience, now).Result()
		} else {
			d.n = 1 + r.Int64N(3)
			if r.IntN(4) == 0 {
				d.cost = 0
			}
			reply, err = eval(client, take, key, limit.requests, ttl, limit.window, d.cost, now, d.n).Result()
		}
		if err != nil {
			return err
		}
		log = append(log, fmt.Sprintf("%d: at %d %d×%d, patience %d", i, now, d.n, d.cost, patience))
		got, err := unpack(reply, nil)
		if err != nil {
			return err
		}
		if want := state.decideFor(limit, d, patience); got != want {
			return fmt.Errorf("%s\nthe script decides %+v\nGo              %+v", strings.Join(log, "\n"), got, want)
		}
		if got.mark-now > 2*limit.window {
			return fmt.Errorf("%s\nmore than two windows ahead: %+v", strings.Join(log, "\n"), got)
		}
		if got.granted > 0 && d.cost > 0 {
			rc := &receipt{rule: limit, cost: d.cost}
			bucket.mark(rc, got, r.Int64N(got.granted))
			grants = append(grants, rc)
		}
	}
	return nil
}

// The script and the Go function decide alike for clients that wait, beside others that do
// not, refunds, settlements and clocks that step back.
func TestWaitDecidesAsGoDoes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		freezeMini(b)
		rounds := 1000
		if b.Name != "standalone" || redistest.RaceDetector || testing.Short() {
			rounds = b.Rounds(100)
		}
		take, settle := engineScript(bucket), scripts.Get("limit/bucket_settle.lua")
		for range rounds {
			if err := agreeOnWaiting(b.Client, rand.Uint64(), take, bucketWait, settle); err != nil {
				t.Fatal(err)
			}
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func TestDisagreementOnWaitingIsCaught(t *testing.T) {
	client := redistest.Shared(t).Client()
	take, settle := engineScript(bucket), scripts.Get("limit/bucket_settle.lua")
	for _, test := range []struct {
		name               string
		take, wait, settle *scripts.Script
	}{
		{"patience beyond a window", take, redistest.Break(bucketWait, "math.min(ARGV[5], ARGV[3])", "ARGV[5] + 0"), settle},
		{"no patience", take, redistest.Break(bucketWait, "full + patience - whole", "full - whole"), settle},
		{"a wait without an end", take, redistest.Break(bucketWait, "elseif patience > 0 then", "elseif false then"), settle},
		{"a loan without a mark", take, redistest.Break(bucketWait, "(loan and '%d%06d:%.0f:l') or", ""), settle},
		{"a loan that others cut", redistest.Break(take, "(lent ~= ':l' or whole - full > window)", "true"), bucketWait, settle},
		{"a loan that nobody cuts", redistest.Break(take, "(lent ~= ':l' or whole - full > window)", "lent ~= ':l'"), bucketWait, settle},
		{"a settlement that forgets the loan", take, bucketWait, redistest.Break(settle, "(loan and '%d%06d:%.0f:l') or", "")},
	} {
		t.Run(test.name, func(t *testing.T) {
			for seed := range uint64(2000) {
				if err := agreeOnWaiting(client, seed, test.take, test.wait, test.settle); err != nil {
					if _, ok := errors.AsType[redis.Error](err); ok {
						t.Fatal(err)
					}
					lines := strings.Split(err.Error(), "\n")
					t.Logf("caught after %d schedules: %s", seed+1, strings.Join(lines[max(0, len(lines)-3):], "\n"))
					return
				}
			}
			t.Error("not caught")
		})
	}
}
