package ratelimit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var decisions = flag.Int("decisions", ordinaryDecisions(), "decisions of the property tests, for each algorithm on a real server")

// ordinaryDecisions are many more than any of the broken scripts below has lived through: 700.
func ordinaryDecisions() int {
	if redistest.RaceDetector {
		return 25_000
	}
	return 120_000
}

// schedule is a client's behaviour: what it asks for, and when.
type schedule struct {
	rule  rule
	steps []step
}

type step struct {
	after   int64 // µs since the step before; negative: the clock steps back
	cost, n int64
}

func (s schedule) decisions() (n int) {
	for _, st := range s.steps {
		n += int(st.n)
	}
	return n
}

func (s schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d requests per %dµs:", s.rule.requests, s.rule.window)
	for _, st := range s.steps {
		fmt.Fprintf(&b, " +%dµs %d×%d", st.after, st.n, st.cost)
	}
	return b.String()
}

// randomSchedule draws limits, windows, costs and gaps over all orders of magnitude.
// clockSteps lets the clock step back and forth as well.
func randomSchedule(r *rand.Rand, clockSteps bool) schedule {
	requests := []int64{1, 2, 3, 5, 7, 10, 33, 100, 997}[r.IntN(9)]
	window := []int64{1000, 1001, 1500, 10_000, 999_983, 1_000_000, 60_000_000, 3_600_000_000, 30 * 86_400_000_000}[r.IntN(9)]
	s := schedule{rule: rule{requests, window}, steps: make([]step, 20+r.IntN(60))}
	for i := range s.steps {
		st := step{cost: 1, n: 1}
		switch r.IntN(8) {
		case 0, 1: // the same microsecond
		case 2:
			st.after = 1
		case 3:
			st.after = window // the very edge
		case 4:
			st.after = window - 1 + r.Int64N(3)
		case 5:
			st.after = r.Int64N(window/requests*2 + 2)
		default:
			st.after = r.Int64N(window/4 + 1)
		}
		switch r.IntN(8) {
		case 0:
			st.cost = 0
		case 1:
			st.cost = 1 + r.Int64N(requests+1)
		case 2, 3:
			st.cost = 1 + r.Int64N(max(1, requests/3))
		}
		if r.IntN(4) == 0 {
			st.n = 1 + r.Int64N(8)
		}
		if clockSteps && r.IntN(6) == 0 {
			st.after = (r.Int64N(5) - 3) * window
		}
		s.steps[i] = st
	}
	return s
}

// oracle judges a sliding window by its definition alone, in time quadratic in
// what was admitted.
type oracle struct {
	rule     rule
	admitted []int64
}

func (o *oracle) used(now int64) (n int64) {
	for _, t := range o.admitted {
		if t > now-o.rule.window && t <= now {
			n++
		}
	}
	return n
}

func (o *oracle) judge(now int64, st step, v verdict) error {
	left := o.rule.requests - o.used(now)
	want := min(st.n, left/max(st.cost, 1))
	if st.cost == 0 && left > 0 {
		want = st.n
	}
	if v.granted != want {
		return fmt.Errorf("granted %d of %d×%d with %d permits left", v.granted, st.n, st.cost, left)
	}
	for range v.granted * st.cost {
		o.admitted = append(o.admitted, now)
	}
	if u := o.used(now); u > o.rule.requests || v.remaining != o.rule.requests-u {
		return fmt.Errorf("%d used of %d, and %d said to remain", u, o.rule.requests, v.remaining)
	}
	// Not earlier and not later: one microsecond before retry there is no room.
	if unit := max(st.cost, 1); v.retry > 0 {
		if o.rule.requests-o.used(now+v.retry) < unit || o.rule.requests-o.used(now+v.retry-1) >= unit {
			return fmt.Errorf("room for %d does not come after %dµs", unit, v.retry)
		}
	}
	return nil
}

// replay runs a schedule over a fresh key and compares each reply with what the
// Go function of the algorithm decides and, if there is one, with the oracle.
func replay(client redis.UniversalClient, a algorithm, script *scripts.Script, s schedule, judge *oracle) error {
	ctx := context.Background()
	key := fmt.Sprintf("gatehouse:rl:property:{%x}", rand.Uint64())
	now := time.Now().Add(1000 * 24 * time.Hour).UnixMicro()
	e := &engine{algorithm: a, clock: func() int64 { return now }}
	l := e.remote(Limit{int(s.rule.requests), time.Duration(s.rule.window) * time.Microsecond}, FromConstructor)
	times := make([]int64, len(s.steps))
	pipe := client.Pipeline()
	for i, st := range s.steps {
		now += st.after
		times[i] = now
		pipe.Eval(ctx, script.Source(), []string{key}, s.rule.requests, l.ttl(), s.rule.window, st.cost, now, st.n)
		if i > 0 { // the first one has loaded it
			args := pipe.Cmds()[i].Args()
			args[0], args[1] = "evalsha", script.SHA1()
		}
	}
	cmds, err := pipe.Exec(ctx)
	if err != nil {
		return err
	}
	client.Del(ctx, key)
	state := a.newState()
	for i, st := range s.steps {
		got, err := unpack(cmds[i].(*redis.Cmd).Val(), nil)
		if err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		want := state.decide(s.rule, demand{cost: st.cost, n: st.n, now: times[i]})
		if a == sliding {
			got.mark, want.mark = 0, 0 // of its members, which Go does not have
		}
		if got != want {
			return fmt.Errorf("step %d at %d: the script decides %+v, Go %+v", i, times[i], got, want)
		}
		if judge != nil {
			if err := judge.judge(times[i], st, got); err != nil {
				return fmt.Errorf("step %d at %d: %w", i, times[i], err)
			}
		}
	}
	return nil
}

// shrink returns a smaller schedule that fails as well: fewer steps, then simpler ones.
func shrink(s schedule, fails func(schedule) error) (schedule, error) {
	err := fails(s)
	for again := true; again; {
		again = false
		for size := len(s.steps) / 2; size >= 1; size /= 2 {
			for i := 0; i+size <= len(s.steps); {
				c := schedule{s.rule, append(append([]step(nil), s.steps[:i]...), s.steps[i+size:]...)}
				if e := fails(c); e != nil && len(c.steps) > 0 {
					s, err, again = c, e, true
				} else {
					i += size
				}
			}
		}
		for i, st := range s.steps {
			for _, simpler := range []step{{0, st.cost, st.n}, {st.after, 1, st.n}, {st.after, st.cost, 1}} {
				if simpler == st || again {
					continue
				}
				c := schedule{s.rule, append([]step(nil), s.steps...)}
				c.steps[i] = simpler
				if e := fails(c); e != nil {
					s, err, again = c, e, true
				}
			}
		}
	}
	return s, err
}

// hold replays random schedules until n decisions are made, and returns the
// smallest schedule found that fails.
func hold(client redis.UniversalClient, a algorithm, script *scripts.Script, n int, seed uint64, clockSteps bool) error {
	r := rand.New(rand.NewPCG(seed, uint64(len(a.word()))))
	fails := func(s schedule) error {
		var judge *oracle
		if a == sliding && !clockSteps {
			judge = &oracle{rule: s.rule}
		}
		return replay(client, a, script, s, judge)
	}
	for n > 0 {
		s := randomSchedule(r, clockSteps)
		if c, ok := a.(calendar); ok {
			s.rule.window = c.period.length().Microseconds()
		}
		n -= s.decisions()
		if err := fails(s); err != nil {
			s, err = shrink(s, fails)
			return fmt.Errorf("seed %d: %v\n%w", seed, s, err)
		}
	}
	return nil
}

// What must hold: for every trailing window, at microsecond steps, admitted ≤ limit; and
// whatever has room is admitted. All three scripts decide as the Go functions do.
func TestDecisionsMatchTheOracle(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		n := *decisions
		if b.Mini != nil {
			b.Mini.SetTime(time.Now())
			n /= 20
		} else if b.Name == "cluster" {
			n /= 5
		}
		if testing.Short() {
			n /= 10
		}
		for _, a := range algorithms {
			script := engineScript(a)
			for _, clockSteps := range []bool{false, true} {
				name := a.String()
				if clockSteps {
					name += ", clock steps"
				}
				t.Run(name, func(t *testing.T) {
					seed := rand.Uint64()
					if err := hold(b.Client, a, script, n/2, seed, clockSteps); err != nil {
						t.Error(err)
					}
				})
			}
		}
	})
}

// The property catches scripts that are wrong in the ways that have been seen.
func TestThePropertyCatchesBrokenScripts(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, test := range []struct {
		name       string
		algorithm  algorithm
		old, new   string
		clockSteps bool
	}{
		{name: "members of one microsecond collide", algorithm: sliding,
			old: "call('ZADD', key, 'NX', score, first) == 0", new: "call('ZADD', key, 'NX', score, first) == 2"},
		{name: "an entry a window old still counts", algorithm: sliding,
			old: "local old, unit, card = now - window,", new: "local old, unit, card = now - window - 1,"},
		{name: "an entry leaves a microsecond early", algorithm: sliding,
			old: "local old, unit, card = now - window,", new: "local old, unit, card = now - window + 1,"},
		{name: "a cost adds one entry", algorithm: sliding,
			old: "local total, trimmed = granted * cost, 0", new: "local total, trimmed = granted, 0"},
		{name: "the future is left alone", algorithm: sliding, clockSteps: true,
			old: "if last > now then", new: "if false then"},
		{name: "every hit begins a window", algorithm: fixed,
			old: "if ends < 0 or ends > at / 1000 + ttl then", new: "if true then"},
		{name: "a denial keeps what it has counted", algorithm: fixed,
			old: "call('INCRBY', key, granted * cost - total)", new: ""},
		{name: "an expiry too far off is left alone", algorithm: fixed, clockSteps: true,
			old: "ends > at / 1000 + ttl", new: "false"},
		{name: "permits of whole microseconds", algorithm: bucket,
			old: "local rest, room = window % limit,", new: "local rest, room = 0,"},
		{name: "a level too far ahead is left alone", algorithm: bucket, clockSteps: true,
			old: "whole, part, ahead = full, 0, true", new: ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			script := redistest.Break(engineScript(test.algorithm), test.old, test.new)
			err := hold(client, test.algorithm, script, 100_000, 1, test.clockSteps)
			var server redis.Error
			if err == nil || errors.As(err, &server) {
				t.Fatalf("not caught: %v", err)
			}
			if n := strings.Count(err.Error(), "×"); n > 12 {
				t.Errorf("not shrunk: %v", err)
			}
			t.Logf("caught: %v", err)
		})
	}
}

// On Redis's own clock the scripts decide as the Go functions do at the times that
// they tell.
func TestDecisionsOnRedisClock(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		if b.Mini != nil {
			t.Skip("its clock stands still")
		}
		for _, a := range algorithms {
			t.Run(a.String(), func(t *testing.T) {
				t.Parallel()
				limit := Limit{Requests: 7, Window: 5 * time.Millisecond}
				l := remoteOf(newLimiter(t, a, b.Client, "redis clock "+a.String(), limit))
				oracle := a.newState()
				granted := int64(0)
				for i := range 2000 {
					cost := rand.IntN(4)
					n := 1 + rand.Int64N(3)
					if rand.IntN(50) == 0 {
						cost = 8 // more than the limit
					}
					got, err := askMany(l, "k", cost, n)
					if err != nil {
						t.Fatal(err)
					}
					want := oracle.decide(limit.rule(), demand{int64(cost), n, got.now})
					if a == sliding {
						got.mark, want.mark = 0, 0 // which members stand for permits is the script's own
					}
					if got != want {
						t.Fatalf("decision %d, %d × cost %d:\n%+v, want\n%+v", i, n, cost, got, want)
					}
					granted += got.granted * int64(cost)
				}
				t.Logf("%d permits granted", granted)
				if granted < 100 && a != quota {
					t.Errorf("%d permits granted", granted)
				}
			})
		}
	})
}
