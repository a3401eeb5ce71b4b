package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"net/http"
	"os"
	"strings"
	"time"
)

// limitCost is what decisions of one limiter cost for keys that use four fifths of their limit, and
// what a key takes that has used all of it.
type limitCost struct {
	lib      limiterLibrary
	requests int     // of the limit
	alone    float64 // µs: median of a decision with no other in flight
	cpu      float64 // µs of this process per decision, with 64 in flight
	redisCPU float64 // µs of Redis
	bytes    float64 // of Redis's memory per key
	denied   float64 // share of the requests; they cost less, so it has to be small
}

// sessionCost is what requests cost that read or write a session of one size.
type sessionCost struct {
	lib         sessionLibrary
	values      int // bytes
	read, write requestCost
	bytes       float64 // of Redis's memory per session
}

type requestCost struct{ alone, cpu, redisCPU float64 } // as in limitCost

var (
	sizedLimiters = []limiterLibrary{gatehouseSliding, gatehouseFixed, gatehouseBucket}
	sizedSessions = []sessionLibrary{gatehousePlain, gatehouseSealed}
	sessionSizes  = []int{200, 2_000, 20_000}
)

// sizing measures what limits and sessions cost as they grow, prints it, and computes from it
// what a given service needs.
func sizing(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench sizing", flag.ExitOnError)
	var (
		d       demand
		quick   = flags.Bool("quick", false, "less than a minute: short turns, limits up to 1,000")
		limiter = flags.String("limiter", "sliding", "of the calculation: sliding, fixed or bucket")
		sealed  = flags.Bool("sealed", true, "of the calculation: sessions are signed and sealed")
	)
	flags.Float64Var(&d.users, "users", 0, "sessions that are kept at a time; asks for the calculation")
	flags.Float64Var(&d.rate, "rps", 0, "requests per second, of all servers together; asks for the calculation")
	flags.Float64Var(&d.recordBytes, "record-bytes", 300, "values of a session")
	flags.Float64Var(&d.writes, "writes", 0.1, "share of the requests that change their session")
	flags.Float64Var(&d.limits, "limits", 2, "limits that each request passes")
	flags.Float64Var(&d.requests, "limit", 100, "requests per window of these limits")
	flags.Float64Var(&d.active, "active", 0.1, "share of the users who were active in the last window")
	if err := flags.Parse(args); err != nil {
		return err
	}
	lib, ok := map[string]limiterLibrary{"sliding": gatehouseSliding, "fixed": gatehouseFixed, "bucket": gatehouseBucket}[*limiter]
	if !ok {
		return fmt.Errorf("bench: -limiter %q is none of sliding, fixed, bucket", *limiter)
	}
	if err := d.validate(); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("bench: sizing takes no arguments but flags: %q", flags.Args())
	}
	p, sizes := pace{rounds: 3, warmUp: 100 * time.Millisecond, measure: time.Second}, []int{10, 100, 1_000, 10_000}
	if *quick {
		p, sizes = pace{rounds: 1, warmUp: 50 * time.Millisecond, measure: 300 * time.Millisecond}, sizes[:3]
	}

	var h host
	defer h.close()
	s := startServer(&h)
	if err := writeEnvironment(ctx, s); err != nil {
		return err
	}
	limits, sessions, err := measureSizes(ctx, s, p, sizes)
	if err != nil {
		return err
	}
	memory, err := s.sessionMemory(ctx, *quick)
	if err != nil {
		return err
	}
	writeSizes(limits, sessions)
	writeMemory(memory)
	if d.users > 0 || d.rate > 0 {
		library := gatehousePlain
		if *sealed {
			library = gatehouseSealed
		}
		d.write(os.Stdout, lib.name, costsOf(limits, lib), library.name, sessionCostsOf(sessions, library))
	}
	return nil
}

func measureSizes(ctx context.Context, s *server, p pace, sizes []int) (limits []limitCost, sessions []sessionCost, err error) {
	overhead, err := s.keyOverhead(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, lib := range sizedLimiters {
		for _, n := range sizes {
			started := time.Now()
			fmt.Fprintf(os.Stderr, "%s of %d … ", lib.name, n)
			c, err := measureLimit(ctx, s, lib, n, p)
			if err != nil {
				return nil, nil, fmt.Errorf("%s of %d: %w", lib.name, n, err)
			}
			c.bytes += overhead
			limits = append(limits, c)
			fmt.Fprintln(os.Stderr, time.Since(started).Round(time.Second/10))
		}
	}
	for _, lib := range sizedSessions {
		for _, n := range sessionSizes {
			started := time.Now()
			fmt.Fprintf(os.Stderr, "%s of %d bytes … ", lib.name, n)
			c, err := measureSession(ctx, s, lib, n, p)
			if err != nil {
				return nil, nil, fmt.Errorf("%s of %d bytes: %w", lib.name, n, err)
			}
			c.bytes += overhead
			sessions = append(sessions, c)
			fmt.Fprintln(os.Stderr, time.Since(started).Round(time.Second/10))
		}
	}
	return limits, sessions, nil
}

const sizingInFlight = 64

// measureLimit measures in the steady state: each key is asked for at four fifths of its limit, in
// turn, so that a sliding window forgets one entry for each that it adds, and next to nobody is
// denied. How many keys that takes follows from the rate that the limiter reaches.
func measureLimit(ctx context.Context, s *server, lib limiterLibrary, requests int, p pace) (limitCost, error) {
	const used, fewest = 0.8, 200 // with fewer keys, Takes of one key would meet and be joined
	cost := limitCost{lib: lib, requests: requests}
	var err error
	if cost.bytes, err = measureFull(ctx, s, lib, requests); err != nil {
		return cost, err
	}

	e := &env{server: s, db: 1, inFlight: sizingInFlight, subjects: 10_000}
	defer e.close()
	probe, err := e.limitCrew(lib, policy{name: "probe", requests: 1_000_000, window: time.Second, key: bySubject})
	if err != nil {
		return cost, err
	}
	f, err := turn(ctx, s, &contender{db: e.db, env: e, crew: probe}, http.StatusOK, pace{warmUp: p.warmUp, measure: 300 * time.Millisecond})
	if err != nil {
		return cost, err
	}
	if err := s.flush(ctx); err != nil {
		return cost, err
	}
	perKey := used * float64(requests) // in a window
	window := max(time.Second, time.Duration(fewest*perKey/f.rate*float64(time.Second))).Round(time.Millisecond)
	e.subjects = int(math.Ceil(f.rate * window.Seconds() / perKey))
	steady, err := e.limitCrew(lib, policy{name: "steady", requests: requests, window: window, key: bySubject})
	if err != nil {
		return cost, err
	}
	if _, err := steady.run(window + window/10); err != nil {
		return cost, err
	}
	c := &contender{db: e.db, env: e, crew: steady}
	for range p.rounds {
		f, err := turn(ctx, s, c, http.StatusOK, p)
		if err != nil {
			return cost, err
		}
		c.rounds = append(c.rounds, f)
	}
	cost.cpu = c.median(func(f figures) float64 { return f.cpu })
	cost.redisCPU = c.median(func(f figures) float64 { return f.redisCPU })
	cost.denied = c.median(func(f figures) float64 { return f.statuses[http.StatusTooManyRequests] })
	if failed := 1 - cost.denied - c.median(func(f figures) float64 { return f.expected }); failed > 1-enough {
		return cost, fmt.Errorf("%s of the requests failed", percent(failed))
	}
	cost.alone, err = steady.alone(200 * time.Millisecond)
	return cost, err
}

// measureFull returns what a key takes that has used all of its limit.
func measureFull(ctx context.Context, s *server, lib limiterLibrary, requests int) (float64, error) {
	if err := s.flush(ctx); err != nil {
		return 0, err
	}
	r := row{name: memoryRow, inFlight: sizingInFlight, subjects: max(10, min(1000, 20_000/requests)), still: true}
	r.entrants = fullLimits(policy{name: "used", requests: requests, window: time.Hour, key: byAddress}, lib)
	contenders, err := measure(ctx, s, r, pace{})
	if err != nil {
		return 0, err
	}
	return contenders[0].rounds[0].keySize, s.flush(ctx)
}

func (e *env) limitCrew(lib limiterLibrary, p policy) (*crew, error) {
	wrap, err := lib.make(e, p)
	if err != nil {
		return nil, err
	}
	return newCrew(e.callers(wrap(answer), subjects(e.subjects), false), e.subjects, inTurn), nil
}

// alone returns the median time, in µs, of requests that one caller of the crew sends by itself.
func (c *crew) alone(d time.Duration) (float64, error) {
	single := newCrew(c.callers[:1], c.subjects, c.how)
	if _, err := single.run(d); err != nil {
		return 0, err
	}
	latencies, _ := single.seen()
	return micros(latencies.quantile(0.5)), nil
}

func measureSession(ctx context.Context, s *server, lib sessionLibrary, size int, p pace) (sessionCost, error) {
	cost := sessionCost{lib: lib, values: size}
	if err := s.flush(ctx); err != nil {
		return cost, err
	}
	e := &env{server: s, db: 1, inFlight: sizingInFlight, subjects: max(1000, min(5000, 10_000_000/size))}
	defer e.close()
	kit, err := lib.make(e, time.Hour)
	if err != nil {
		return cost, err
	}
	kit = kit.sized(size)
	headers, err := e.loggedIn(kit)
	if err != nil {
		return cost, err
	}
	for _, work := range []struct {
		handler http.HandlerFunc
		cost    *requestCost
	}{{kit.read, &cost.read}, {kit.write, &cost.write}} {
		callers := e.callers(kit.wrap(work.handler), headers, false)
		c := &contender{db: e.db, env: e, crew: newCrew(callers, e.subjects, atRandom)}
		for range p.rounds {
			f, err := turn(ctx, s, c, http.StatusOK, p)
			if err != nil {
				return cost, err
			}
			c.rounds = append(c.rounds, f)
		}
		if !c.valid() {
			return cost, fmt.Errorf("answers: %s", statusShares(c))
		}
		work.cost.cpu = c.median(func(f figures) float64 { return f.cpu })
		work.cost.redisCPU = c.median(func(f figures) float64 { return f.redisCPU })
		cost.bytes = c.median(func(f figures) float64 { return f.keySize })
		if work.cost.alone, err = c.crew.alone(200 * time.Millisecond); err != nil {
			return cost, err
		}
	}
	return cost, nil
}

// keyOverhead returns what a key that expires takes beyond its MEMORY USAGE: an entry among the
// keys that expire, its share of two hash tables, and what the allocator rounds up. It measures
// with many keys, beside which the buffers of connections do not count.
func (s *server) keyOverhead(ctx context.Context) (float64, error) {
	const n = 100_000
	if err := s.flush(ctx); err != nil {
		return 0, err
	}
	before, err := s.usage(ctx)
	if err != nil {
		return 0, err
	}
	pipe := s.admin.Pipeline()
	for i := range n {
		pipe.Set(ctx, fmt.Sprintf("key-%06d", i), strings.Repeat("v", 64), time.Hour)
		if pipe.Len() == 1000 {
			if _, err := pipe.Exec(ctx); err != nil {
				return 0, err
			}
		}
	}
	after, err := s.usage(ctx)
	if err != nil {
		return 0, err
	}
	size, err := s.keySize(ctx, 0)
	if err != nil {
		return 0, err
	}
	return max(0, float64(after.memory-before.memory)/n-size), s.flush(ctx)
}

func writeSizes(limits []limitCost, sessions []sessionCost) {
	fmt.Print("\n### Limits\n\nOver keys that use four fifths of their limit. Memory: of a key by IPv4 address that has used all of it.\n\n")
	t := table{w: os.Stdout}
	t.head("limiter", "limit", "alone µs", "CPU µs", "Redis CPU µs", "bytes/key")
	for _, c := range limits {
		name := c.lib.name
		if c.denied > 1-enough {
			name += fmt.Sprintf(" (%s denied)", percent(c.denied))
		}
		t.line(name, thousands(float64(c.requests)), short(c.alone), short(c.cpu), short(c.redisCPU), thousands(c.bytes))
	}
	fmt.Print("\n### Sessions\n\n")
	t.head("sessions", "bytes of values", "read: alone µs", "CPU µs", "Redis CPU µs", "write: alone µs", "CPU µs", "Redis CPU µs", "bytes/key")
	for _, c := range sessions {
		t.line(c.lib.name, thousands(float64(c.values)),
			short(c.read.alone), short(c.read.cpu), short(c.read.redisCPU),
			short(c.write.alone), short(c.write.cpu), short(c.write.redisCPU), thousands(c.bytes))
	}
	fmt.Print("\nCPU is that of this process and of Redis with 64 requests in flight; alone is the median time of a request that has no other beside it.\n")
}

func costsOf(all []limitCost, lib limiterLibrary) []limitCost {
	var costs []limitCost
	for _, c := range all {
		if c.lib.name == lib.name {
			costs = append(costs, c)
		}
	}
	return costs
}

func sessionCostsOf(all []sessionCost, lib sessionLibrary) []sessionCost {
	var costs []sessionCost
	for _, c := range all {
		if c.lib.name == lib.name {
			costs = append(costs, c)
		}
	}
	return costs
}

// sized is the application with values of the given size in place of the ordinary session.
func (k sessionKit) sized(bytes int) sessionKit {
	const filler = "filler"
	k.login = func(w http.ResponseWriter, r *http.Request) {
		k.values.Put(r.Context(), visitsKey, 1)
		k.values.Put(r.Context(), filler, strings.Repeat("x", bytes))
		k.renew(w, r)
	}
	k.read = func(w http.ResponseWriter, r *http.Request) {
		if len(k.values.GetString(r.Context(), filler)) != bytes {
			fail(w, errSession)
			return
		}
		answer(w, r)
	}
	return k
}
