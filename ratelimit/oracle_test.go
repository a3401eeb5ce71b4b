package ratelimit_test

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

var (
	oracleFor  = flag.Duration("ratelimit.oracle", 3*time.Second, "how long a fleet takes from sliding windows whose keys expire, in rounds of at most 10s")
	oracleSeed = flag.Uint64("ratelimit.oracle.seed", 0, "seed of the first of these rounds; 0: random")
)

const (
	oracleEnv       = "GATEHOUSE_TEST_ORACLE"
	oracleProcesses = 3
	oracleRound     = 10 * time.Second
)

// Several processes spend and give back permits of sliding windows, by Redis's own clock and
// with keys that expire: no window ever admits more than its limit, and no key expires
// before its entries do. A limiter that forgets an entry is caught by what it admits; the
// judge knows nothing of how it counts.
func TestSlidingWindowForgetsNoLiveEntry(t *testing.T) {
	server := redistest.Start(t)
	total := *oracleFor
	if testing.Short() {
		total = min(total, time.Second)
	}
	seed := *oracleSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	var sum oracleLog
	expired := watchExpiry(t, server)
	started := time.Now()
	discarded := 0
	// On a machine that is too busy for enough in one round, there are more of them.
	for round := 0; time.Since(started) < total || !sum.enough(expired.Load()) && round < 5; round++ {
		if round > 0 {
			seed = rand.New(rand.NewPCG(seed, 1)).Uint64()
		}
		server.Flush()
		log := oracleFleet(t, server, seed, min(oracleRound, total))
		if log.SteppedBack > 0 {
			// What was admitted when is unknown then.
			t.Logf("seed %d: Redis's clock stepped back by %dµs, the round does not count", seed, log.SteppedBack)
			if discarded++; discarded == 3 {
				t.Fatal("no round without a step of the clock")
			}
			continue
		}
		sum.add(log)
		accused := judge(log.Admissions)
		for _, e := range accused[:min(3, len(accused))] {
			t.Errorf("%v after the start, %v", time.Duration(e.last.Until-log.Start)*time.Microsecond, e)
		}
		for _, lapse := range log.Lapses {
			t.Error(lapse)
		}
		if t.Failed() {
			t.Logf("%d windows admitted too much; to do the same again: -ratelimit.oracle=%v -ratelimit.oracle.seed=%d",
				len(accused), min(oracleRound, total), seed)
			break
		}
	}
	t.Logf("seed of the last round %d, %v: %d admissions, %d denials, %d refunds, %d settlements, %d keys expired, %d times the keys were looked at, %d of %d steps skipped",
		seed, time.Since(started).Round(100*time.Millisecond), sum.Admitted, sum.Denied, sum.Refunds, sum.Settlements, expired.Load(), sum.Looks, sum.Skipped, sum.Steps+sum.Skipped)
	if t.Failed() {
		return
	}
	if !sum.enough(expired.Load()) {
		t.Error("that is too little to test anything")
	}
}

// enough reports whether there was enough of everything to test anything.
func (l *oracleLog) enough(expired int64) bool {
	return l.Admitted >= 100 && l.Denied > 0 && l.Refunds > 0 && l.Settlements > 0 && l.Looks > 0 && expired > 0
}

// watchExpiry counts the keys of sliding windows that Redis expires.
func watchExpiry(t *testing.T, server *redistest.Server) *atomic.Int64 {
	client := server.Client()
	if err := client.ConfigSet(context.Background(), "notify-keyspace-events", "Ex").Err(); err != nil {
		t.Fatal(err)
	}
	sub := client.Subscribe(context.Background(), "__keyevent@0__:expired")
	t.Cleanup(func() { sub.Close() })
	if _, err := sub.Receive(context.Background()); err != nil {
		t.Fatal(err)
	}
	n := new(atomic.Int64)
	events := sub.Channel()
	go func() {
		for m := range events {
			if windowInKey.MatchString(m.Payload) {
				n.Add(1)
			}
		}
	}()
	return n
}

// oracleOrder is what a process of the fleet is told to do.
type oracleOrder struct {
	Addr    string
	Seed    uint64
	Process int
	For     time.Duration
}

// oracleLog is what a process has to tell.
type oracleLog struct {
	Start                                                         int64 // on Redis's clock, in µs like all times here
	Admissions                                                    []*admission
	Lapses                                                        map[string]string // of keys that expire before their entries
	Admitted, Denied, Refunds, Settlements, Looks, Steps, Skipped int64
	SteppedBack                                                   int64
}

func (l *oracleLog) add(o oracleLog) {
	l.Admitted += int64(len(o.Admissions))
	l.Denied += o.Denied
	l.Refunds += o.Refunds
	l.Settlements += o.Settlements
	l.Looks += o.Looks
	l.Steps += o.Steps
	l.Skipped += o.Skipped
}

// admission is what was spent, and what of it was given back.
type admission struct {
	Key, How    string
	Process     int
	Requests    int   // of the limit that admitted it
	Window      int64 // of that limit
	Cost        int
	From, Until int64 // when: at one time if they are equal, else between them
	Back        int   // permits given back
	BackFrom    int64 // not before this
	More        int   // spent besides; told, not counted
}

// oracleFleet runs a round and gathers what its processes tell.
func oracleFleet(t *testing.T, server *redistest.Server, seed uint64, d time.Duration) oracleLog {
	t.Helper()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	all := oracleLog{Lapses: map[string]string{}}
	for i := range oracleProcesses {
		wg.Go(func() {
			told, _ := json.Marshal(oracleOrder{server.Addr(), seed, i, d})
			cmd := exec.Command(os.Args[0], "-test.run=^TestOracleProcess$")
			cmd.Env = append(os.Environ(), oracleEnv+"="+string(told))
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			var log oracleLog
			if err == nil {
				err = gob.NewDecoder(bytes.NewReader(out)).Decode(&log)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("-ratelimit.oracle.seed=%d: process %d: %v\n%s", seed, i, err, stderr.String())
			}
			all.add(log)
			all.Admissions = append(all.Admissions, log.Admissions...)
			maps.Copy(all.Lapses, log.Lapses)
			all.Start = log.Start
			all.SteppedBack = max(all.SteppedBack, log.SteppedBack)
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return all
}

// excess is a window that admitted too much.
type excess struct {
	last   *admission
	used   int
	window []*admission
}

// judge returns the admissions at which more than their limit was in use, by time. What is not known
// for certain counts for the limiter: an admission of which only an interval is known is in
// a window if all of the interval is, and permits are given back when the call that gives
// them back begins.
func judge(admissions []*admission) []excess {
	type counted struct {
		key    string
		window int64
	}
	groups := map[counted][]*admission{}
	for _, a := range admissions {
		c := counted{a.Key, a.Window}
		groups[c] = append(groups[c], a)
	}
	var found []excess
	for _, g := range groups {
		// Of one microsecond, those under the lowest limit may have come first.
		slices.SortFunc(g, func(a, b *admission) int {
			if a.Until != b.Until {
				return int(a.Until - b.Until)
			}
			return a.Requests - b.Requests
		})
		for i, a := range g {
			e := excess{last: a, used: a.Cost}
			for j := i - 1; j >= 0 && g[j].Until > a.Until-a.Window; j-- {
				b := g[j]
				before := b.Until < a.From || b.Until == a.From && a.From == a.Until && b.From == b.Until
				if !before || b.From <= a.Until-a.Window {
					continue
				}
				e.used += b.Cost
				if b.Back > 0 && b.BackFrom <= a.Until {
					e.used -= b.Back
				}
				e.window = append(e.window, b)
			}
			if e.used > a.Requests {
				slices.Reverse(e.window)
				e.window = append(e.window, a)
				found = append(found, e)
			}
		}
	}
	slices.SortFunc(found, func(a, b excess) int { return int(a.last.Until - b.last.Until) })
	return found
}

func (e excess) String() string {
	a := e.last
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d admitted within %dµs under a limit of %d; relative to the last of them, at %dµs:", a.Key, e.used, a.Window, a.Requests, a.Until)
	for _, o := range e.window {
		fmt.Fprintf(&b, "\n\t%8dµs", o.From-a.Until)
		if o.Until != o.From {
			fmt.Fprintf(&b, " to %dµs", o.Until-a.Until)
		}
		fmt.Fprintf(&b, ": %d permits, by process %d, %s, limit %d", o.Cost, o.Process, o.How, o.Requests)
		if o.Back > 0 {
			fmt.Fprintf(&b, "; gave %d back at %dµs or later", o.Back, o.BackFrom-a.Until)
		}
		if o.More > 0 {
			fmt.Fprintf(&b, "; spent %d more at %dµs or later", o.More, o.BackFrom-a.Until)
		}
	}
	return b.String()
}

// The judge accuses if, and only if, no order of what is not known would have been right.
func TestOracleAccusesWhatIsCertain(t *testing.T) {
	at := func(t int64, cost, requests int) *admission {
		return &admission{Key: "k", Window: 100, Requests: requests, Cost: cost, From: t, Until: t}
	}
	between := func(from, until int64, cost, requests int) *admission {
		a := at(until, cost, requests)
		a.From = from
		return a
	}
	back := func(a *admission, n int, from int64) *admission {
		a.Back, a.BackFrom = n, from
		return a
	}
	other := func(a *admission, key string, window int64) *admission {
		a.Key, a.Window = key, window
		return a
	}
	for _, tt := range []struct {
		name       string
		admissions []*admission
		want       bool
	}{
		{"at the limit", []*admission{at(1, 2, 5), at(50, 3, 5)}, false},
		{"above it", []*admission{at(1, 2, 5), at(50, 4, 5)}, true},
		{"above it alone", []*admission{at(1, 6, 5)}, true},
		{"a window old", []*admission{at(1, 5, 5), at(101, 5, 5)}, false},
		{"nearly a window old", []*admission{at(1, 5, 5), at(100, 1, 5)}, true},
		{"not in order", []*admission{at(100, 1, 5), at(1, 5, 5)}, true},
		{"another key", []*admission{at(1, 5, 5), other(at(50, 5, 5), "l", 100)}, false},
		{"another window", []*admission{at(1, 5, 5), other(at(50, 5, 5), "k", 99)}, false},
		{"given back before", []*admission{back(at(1, 5, 5), 3, 49), at(50, 3, 5)}, false},
		{"given back at that time", []*admission{back(at(1, 5, 5), 3, 50), at(50, 3, 5)}, false},
		{"given back too late", []*admission{back(at(1, 5, 5), 3, 51), at(50, 3, 5)}, true},
		{"too little given back", []*admission{back(at(1, 5, 5), 3, 49), at(50, 4, 5)}, true},
		{"given back and spent again", []*admission{back(at(1, 5, 5), 5, 2), at(50, 5, 5), at(101, 1, 5)}, true},
		{"a higher limit", []*admission{at(1, 5, 5), at(50, 5, 10)}, false},
		{"a lower limit", []*admission{at(1, 5, 10), at(50, 1, 5)}, true},
		{"both at once, the lower first", []*admission{at(1, 5, 10), at(1, 1, 5)}, false},
		{"both at once, in any order too many", []*admission{at(1, 6, 10), at(1, 5, 5)}, true},
		{"at once", []*admission{at(1, 3, 5), at(1, 3, 5)}, true},
		{"perhaps in the window", []*admission{between(1, 3, 5, 5), at(102, 1, 5)}, false},
		{"certainly in the window", []*admission{between(3, 5, 5, 5), at(102, 1, 5)}, true},
		{"perhaps before or after", []*admission{between(40, 60, 5, 5), at(50, 1, 5)}, false},
		{"perhaps before or after, also at the end", []*admission{between(40, 60, 5, 5), at(60, 1, 5)}, false},
		{"certainly before", []*admission{at(50, 1, 5), between(51, 60, 5, 5)}, true},
		{"perhaps given back", []*admission{back(at(1, 5, 5), 5, 59), between(50, 60, 5, 5)}, false},
		{"certainly not given back", []*admission{back(at(1, 5, 5), 5, 61), between(50, 60, 5, 5)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := judge(tt.admissions); (len(got) > 0) != tt.want {
				t.Errorf("judge = %v, want an accusation: %v", got, tt.want)
			}
		})
	}
}

// TestOracleProcess is a process of TestSlidingWindowForgetsNoLiveEntry.
func TestOracleProcess(t *testing.T) {
	var order oracleOrder
	if err := json.Unmarshal([]byte(os.Getenv(oracleEnv)), &order); err != nil {
		t.Skip("not started by TestSlidingWindowForgetsNoLiveEntry")
	}
	log, err := oracleProcess(order)
	if err == nil {
		err = gob.NewEncoder(os.Stdout).Encode(log)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// family is a sliding window, and what is used with it.
type family struct {
	name          string
	limit         ratelimit.Limit
	plan          ratelimit.Limit // other requests
	other         ratelimit.Limit // another window too; zero: none
	fixed, bucket ratelimit.Limit
}

// windowInKey finds the windows of a family in the keys that bear its name, whatever else
// they are made of.
var windowInKey = regexp.MustCompile(`(\d+)us`)

// families are those of a round: of windows from 20 ms to 2 s. Every other one has one
// window only, so that what becomes of its keys is not blurred by another.
func families(seed uint64) []family {
	const n = 8
	r := rand.New(rand.NewPCG(seed, 0))
	var all []family
	for i := range n {
		draw := func(requests int) ratelimit.Limit {
			us := 20_000 * math.Pow(100, (float64(i)+r.Float64())/n)
			return ratelimit.Limit{Requests: requests, Window: time.Duration(us) * time.Microsecond}
		}
		f := family{limit: draw(1 + r.IntN(20)), fixed: draw(20 + r.IntN(80)), bucket: draw(20 + r.IntN(80))}
		f.plan = ratelimit.Limit{Requests: 1 + r.IntN(20), Window: f.limit.Window}
		f.name = fmt.Sprintf("w%d-%dus", i, f.limit.Window.Microseconds())
		if i%2 == 1 {
			thirds := []time.Duration{2, 4, 5, 6}[r.IntN(4)]
			f.other = ratelimit.Limit{Requests: 1 + r.IntN(20), Window: (f.limit.Window * thirds / 3).Truncate(time.Microsecond)}
			f.name += fmt.Sprintf("-%dus", f.other.Window.Microseconds())
		}
		all = append(all, f)
	}
	return all
}

// taker is one way to spend of a sliding window.
type taker struct {
	how     string
	limiter interface {
		ratelimit.Limiter
		ratelimit.Settler
	}
	limit ratelimit.Limit
	all   bool // other limiters decide, too
}

// takers are the ways to spend of f. The first is the plain one.
func (f family) takers(client redis.UniversalClient) ([]*taker, error) {
	cfg := ratelimit.Config{Timeout: 30 * time.Second}
	sliding, err1 := ratelimit.NewSlidingWindow(client, f.name, f.limit, cfg)
	fixed, err2 := ratelimit.NewFixedWindow(client, "f-"+f.name, f.fixed, cfg)
	bucket, err3 := ratelimit.NewTokenBucket(client, "b-"+f.name, f.bucket, cfg)
	shared, err4 := ratelimit.NewFixedWindow(client, "s-"+f.name, f.fixed, cfg)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	var (
		takers []*taker
		errs   []error
	)
	add := func(how string, limit ratelimit.Limit, l ratelimit.Limiter, err error) {
		t := &taker{how: how, limit: limit, all: strings.Contains(how, "All")}
		if err == nil {
			t.limiter = l.(interface {
				ratelimit.Limiter
				ratelimit.Settler
			})
		}
		takers, errs = append(takers, t), append(errs, err)
	}
	add("Take", f.limit, sliding, nil)
	var plan, other ratelimit.Limiter
	plan, err := sliding.With(f.plan)
	add("With", f.plan, plan, err)
	everybody := ratelimit.Keyed(shared, func(string) string { return "everybody" })
	for _, m := range []struct {
		how      string
		limit    ratelimit.Limit
		limiters []ratelimit.Limiter
	}{
		{"All with bucket", f.limit, []ratelimit.Limiter{sliding, bucket}},
		{"All with fixed and bucket", f.limit, []ratelimit.Limiter{fixed, sliding, bucket}},
		{"All of With and fixed", f.plan, []ratelimit.Limiter{plan, fixed}},
		{"All with another subject", f.limit, []ratelimit.Limiter{sliding, everybody}},
	} {
		l, err := ratelimit.All(m.limiters...)
		add(m.how, m.limit, l, err)
	}
	if f.other.Window != 0 {
		other, err = sliding.With(f.other)
		add("With another window", f.other, other, err)
	}
	return takers, errors.Join(errs...)
}

// step is what the processes by do with one key at one time.
type step struct {
	at time.Duration
	do action
	by int // a bit for each process
}

type action int

const (
	takeSome action = iota
	takeUntilDenied
	countFailures // take, and give back on success
	refundOldest
	refundAny
	settleToLess // after a take
	settleToMore
	ask // costs that spend nothing: 0 and above the limit
)

// weighted are the actions, as often as they are to be drawn.
var weighted = []action{
	takeSome, takeSome, takeSome, takeSome, takeUntilDenied, takeUntilDenied, takeUntilDenied, takeUntilDenied,
	countFailures, countFailures, refundOldest, refundOldest, refundOldest, refundAny, refundAny,
	settleToLess, settleToLess, settleToMore, settleToMore, ask,
}

// schedule draws the steps for a key with window w. Pauses are such that windows run out
// and keys expire: around w/2, w and 2w. Often an entry goes for which the key was given
// its life, and what came later must live on without it.
func schedule(r *rand.Rand, w, d time.Duration) []step {
	var steps []step
	at := time.Duration(0)
	wait := func(from, to float64) { at += time.Duration((from + r.Float64()*(to-from)) * float64(w)) }
	do := func(a action) {
		by := 1 + r.IntN(1<<oracleProcesses-1)
		if a == refundOldest && r.IntN(2) == 0 {
			by = 1<<oracleProcesses - 1
		}
		steps = append(steps, step{at, a, by})
	}
	for at < d {
		if r.IntN(3) == 0 {
			wait(1, 2.3)
			do(takeSome)
			wait(0.3, 0.95)
			do(takeSome)
			wait(0, 0.2)
			do(refundOldest)
			wait(0.3, 0.7)
			do(takeUntilDenied)
			wait(0.2, 0.9)
			do(takeUntilDenied)
			continue
		}
		switch r.IntN(8) {
		case 0, 1:
			wait(0, 0.1)
		case 2, 3:
			wait(0.4, 0.6)
		case 4, 5:
			wait(0.95, 1.05)
		case 6:
			wait(1.9, 2.1)
		case 7:
			wait(0, 3)
		}
		do(weighted[r.IntN(len(weighted))])
	}
	return slices.DeleteFunc(steps, func(s step) bool { return s.at > d })
}

// server is one process of the fleet.
type server struct {
	order  oracleOrder
	client *redis.Client
	begin  time.Time    // log.Start, on the clock of this process
	latest atomic.Int64 // time that was seen on Redis's clock

	mu  sync.Mutex
	log oracleLog
	err error
}

func oracleProcess(order oracleOrder) (oracleLog, error) {
	s := &server{order: order, client: redis.NewClient(&redis.Options{Addr: order.Addr, PoolSize: 32})}
	defer s.client.Close()
	if err := s.gather(); err != nil {
		return oracleLog{}, err
	}
	var wg sync.WaitGroup
	for i, f := range families(order.Seed) {
		takers, err := f.takers(s.client)
		if err != nil {
			return oracleLog{}, err
		}
		for j := range 4 + i { // the longer the window, the fewer run out
			k := &keeper{
				server: s, family: f, takers: takers, key: fmt.Sprint("k", j),
				r: rand.New(rand.NewPCG(order.Seed, uint64(1_000_000+1000*i+10*j+order.Process))),
			}
			// All processes draw the same steps.
			steps := schedule(rand.New(rand.NewPCG(order.Seed, uint64(1000+1000*i+10*j))), f.limit.Window, order.For)
			wg.Go(func() { k.run(steps) })
		}
	}
	wg.Wait()
	return s.log, s.err
}

// gather waits for the other processes, to begin together with them.
func (s *server) gather() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ready, err := s.client.Incr(ctx, "oracle ready").Result()
	if err == nil && ready == oracleProcesses {
		err = s.client.Set(ctx, "oracle start", s.now()+50_000, 0).Err()
	}
	for err == nil {
		s.log.Start, err = s.client.Get(ctx, "oracle start").Int64()
		if err == nil {
			s.begin = time.Now().Add(time.Duration(s.log.Start-s.now()) * time.Microsecond)
			return nil
		}
		if err == redis.Nil {
			err = nil
			time.Sleep(5 * time.Millisecond)
		}
	}
	return fmt.Errorf("waiting for the other processes: %w", err)
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *server) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

func (s *server) count(n *int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}

// now asks Redis for the time.
func (s *server) now() int64 {
	before := s.latest.Load()
	t, err := s.client.Time(context.Background()).Result()
	if err != nil {
		s.fail(err)
		return before
	}
	s.saw(before, t.UnixMicro())
	return t.UnixMicro()
}

// saw notes a time on Redis's clock, and whether it is earlier than one that had been seen
// before it was asked for.
func (s *server) saw(before, t int64) {
	if t < before {
		s.mu.Lock()
		s.log.SteppedBack = max(s.log.SteppedBack, before-t)
		s.mu.Unlock()
		return
	}
	for {
		latest := s.latest.Load()
		if t <= latest || s.latest.CompareAndSwap(latest, t) {
			return
		}
	}
}

// keeper is what one process does with one key.
type keeper struct {
	*server
	family family
	takers []*taker
	key    string

	mu   sync.Mutex
	r    *rand.Rand
	held []*held // in order, what has not been settled
}

// held is an admission that can be settled.
type held struct {
	*admission
	taker *taker
	res   ratelimit.Result
}

func (k *keeper) run(steps []step) {
	for _, s := range steps {
		if s.by>>k.order.Process&1 == 0 {
			continue
		}
		late := time.Since(k.begin.Add(s.at))
		if late > k.family.limit.Window/4 {
			// On a busy machine, fewer steps are better than steps without the pauses.
			k.count(&k.log.Skipped)
			continue
		}
		time.Sleep(-late)
		if k.failed() {
			return
		}
		k.do(s.do)
		k.count(&k.log.Steps)
		if k.intN(4) == 0 {
			k.look()
		}
	}
}

func (k *keeper) intN(n int) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.r.IntN(n)
}

func (k *keeper) do(a action) {
	switch a {
	case takeSome:
		t := k.taker()
		for range 1 + k.intN(3) {
			k.take(t, 1+k.intN(max(1, t.limit.Requests/2)))
		}
	case takeUntilDenied:
		var wg sync.WaitGroup
		for range 1 + k.intN(3) {
			wg.Go(func() {
				t := k.taker()
				for range t.limit.Requests + 1 {
					cost := 1 + k.intN(2)*k.intN(t.limit.Requests)
					if k.take(t, cost) == nil && cost == 1 {
						return
					}
				}
			})
		}
		wg.Wait()
	case countFailures:
		var wg sync.WaitGroup
		for range 1 + k.intN(4) {
			wg.Go(func() {
				if h := k.take(k.taker(), 1); h != nil && k.intN(3) > 0 && k.drop(h) {
					k.settle(h, 0)
				}
			})
		}
		wg.Wait()
	case refundOldest:
		for range 1 + k.intN(6) {
			k.settleOne(0, func(*held) int { return 0 })
		}
	case refundAny:
		k.settleOne(k.intN(64), func(*held) int { return 0 })
	case settleToLess:
		k.do(takeSome)
		k.settleOne(k.intN(64), func(h *held) int { return k.intN(h.Cost) })
	case settleToMore:
		k.do(takeSome)
		k.settleOne(k.intN(64), func(h *held) int { return h.Cost + 1 + k.intN(h.Requests) })
	case ask:
		t := k.taker()
		k.take(t, 0)
		if k.take(t, t.limit.Requests+1) != nil {
			k.fail(fmt.Errorf("%s: a cost above the limit was admitted", k.family.name))
		}
	}
}

// taker draws one: half the time the plain one.
func (k *keeper) taker() *taker {
	if k.intN(2) == 0 {
		return k.takers[0]
	}
	return k.takers[k.intN(len(k.takers))]
}

// take returns nil if nothing was spent.
func (k *keeper) take(t *taker, cost int) *held {
	before := k.latest.Load()
	if t.all {
		before = k.now()
	}
	started := time.Now()
	res, err := t.limiter.Take(context.Background(), k.key, cost)
	if err != nil {
		k.fail(err)
		return nil
	}
	if !res.Allowed {
		k.count(&k.log.Denied)
		return nil
	}
	if cost == 0 {
		return nil
	}
	a := &admission{
		Key: k.family.name + " " + k.key, How: t.how, Process: k.order.Process,
		Requests: t.limit.Requests, Window: t.limit.Window.Microseconds(), Cost: cost,
	}
	at := res.ResetAt().Add(-res.ResetAfter).UnixMicro()
	// Fixed windows tell the time by the millisecond, and a result that is a second late
	// may tell it by this process's clock.
	if res.Policy == k.family.name && time.Since(started) < time.Second {
		k.saw(before, at)
		a.From, a.Until = at, at
	} else {
		a.From, a.Until = before, k.now()
	}
	h := &held{a, t, res}
	k.server.mu.Lock()
	k.log.Admissions = append(k.log.Admissions, a)
	k.server.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held = append(k.held, h); len(k.held) > 64 {
		k.held = k.held[1:]
	}
	return h
}

// drop reports whether h was held, and no longer is.
func (k *keeper) drop(h *held) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.Index(k.held, h)
	if i >= 0 {
		k.held = slices.Delete(k.held, i, i+1)
	}
	return i >= 0
}

// settleOne settles one of those that may still count, if there is one: the oldest is 0.
func (k *keeper) settleOne(i int, cost func(*held) int) {
	old := k.now() - max(k.family.limit.Window, k.family.other.Window).Microseconds()
	k.mu.Lock()
	k.held = slices.DeleteFunc(k.held, func(h *held) bool { return h.Until < old-1000 })
	if len(k.held) == 0 {
		k.mu.Unlock()
		return
	}
	h := k.held[i%len(k.held)]
	k.mu.Unlock()
	if k.drop(h) {
		k.settle(h, cost(h))
	}
}

// settle is called once for h. What is spent besides is not noted: it only leaves less room.
func (k *keeper) settle(h *held, cost int) {
	h.BackFrom, h.Back, h.More = k.now(), max(0, h.Cost-cost), max(0, cost-h.Cost)
	var err error
	if cost == 0 {
		k.count(&k.log.Refunds)
		err = h.taker.limiter.Refund(context.Background(), k.key, h.res)
	} else {
		k.count(&k.log.Settlements)
		err = h.taker.limiter.Settle(context.Background(), k.key, h.res, cost)
	}
	if err != nil {
		k.fail(err)
	}
}

// lastEntries returns, for each set of a limiter, its name, its highest score and the
// millisecond of its expiry: at one time, since a script is.
var lastEntries = redis.NewScript(`
local found, cursor = {}, '0'
repeat
  local page = redis.call('SCAN', cursor, 'MATCH', '*rl:*', 'COUNT', 1000, 'TYPE', 'zset')
  cursor = page[1]
  for _, key in ipairs(page[2]) do
    local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
    if last then
      found[#found + 1] = {key, last, redis.call('PEXPIRETIME', key)}
    end
  end
until cursor == '0'
return found`)

// look checks that no key expires before its last entry stops counting. The millisecond of
// an expiry is the last one of the key.
func (k *keeper) look() {
	found, err := lastEntries.Run(context.Background(), k.client, nil).Slice()
	if err != nil {
		k.fail(err)
		return
	}
	k.count(&k.log.Looks)
	for _, f := range found {
		f := f.([]any)
		key, expires := f[0].(string), f[2].(int64)
		score, err := strconv.ParseFloat(f[1].(string), 64)
		windows := windowInKey.FindAllStringSubmatch(key, -1)
		if err != nil || windows == nil {
			k.fail(fmt.Errorf("key %q: highest score %v, windows %v, %v", key, f[1], windows, err))
			return
		}
		window := int64(math.MaxInt64) // of several, it may be the key of the shortest
		for _, w := range windows {
			us, _ := strconv.ParseInt(w[1], 10, 64)
			window = min(window, us)
		}
		end := int64(score) + window
		switch {
		case expires < 0:
			k.lapse(key, "key %s has no expiry", key)
		case end > (expires+1)*1000:
			k.lapse(key, "key %s expires %dµs before its last entry stops counting: entry at %dµs, window %dµs, PEXPIRETIME %dms",
				key, end-(expires+1)*1000, int64(score), window, expires)
		}
	}
}

func (k *keeper) lapse(key, format string, args ...any) {
	k.server.mu.Lock()
	defer k.server.mu.Unlock()
	if k.log.Lapses == nil {
		k.log.Lapses = map[string]string{}
	}
	if len(k.log.Lapses) < 3 {
		k.log.Lapses[key] = fmt.Sprintf(format, args...)
	}
}
