package main

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"
)

// kind says what a contender's figures are good for.
type kind uint8

const (
	floor kind = iota // what nobody can be below
	peer
	ours
)

// entrant is a way to do a row's work, before it is set up.
type entrant struct {
	name string
	kind kind
	// enter sets it up and returns the callers of its handler.
	enter func(*env) ([]caller, error)
	// inDatabase0 is for clients that refuse any other.
	inDatabase0 bool
	// restless ones use the CPU even while they wait for their turn. They are set up for each
	// turn anew, so that nobody else pays for it.
	restless bool
}

// row is one kind of work that all its entrants do.
type row struct {
	name, title string
	inFlight    int
	subjects    int // keys or sessions
	want        int // status of a response that counts
	entrants    []entrant

	// still: only the memory that the set-up took is of interest.
	still bool
}

// env is what an entrant is set up in. It closes what it hands out.
type env struct {
	server   *server
	db       int
	inFlight int
	subjects int
	closers  []func()
}

func (e *env) close() {
	for _, f := range slices.Backward(e.closers) {
		f()
	}
}

// onClose has f called after the measurement, before what was handed out earlier is closed.
func (e *env) onClose(f func()) { e.closers = append(e.closers, f) }

func (e *env) goredis() *redis.Client {
	c := e.server.client(e.db, e.inFlight)
	e.onClose(func() { c.Close() })
	return c
}

// redigo returns a pool that never closes a connection that the load will want again, nor makes
// a caller wait for one.
func (e *env) redigo() *redigo.Pool {
	p := &redigo.Pool{
		MaxIdle: e.inFlight,
		Dial: func() (redigo.Conn, error) {
			return redigo.Dial("tcp", e.server.addr, redigo.DialDatabase(e.db))
		},
	}
	e.onClose(func() { p.Close() })
	return p
}

// callers returns the callers of a handler in this process.
func (e *env) callers(h http.Handler, headers []http.Header, follow bool) []caller {
	callers := make([]caller, e.inFlight)
	for n := range callers {
		c := newInProcess(h, headers)
		if follow {
			c.follow(n, e.inFlight)
		}
		e.onClose(c.end)
		callers[n] = c
	}
	return callers
}

// each calls the handler once for every subject, in parallel, and has see look at the answers.
func (e *env) each(h http.Handler, headers []http.Header, see func(i int, r *response) error) error {
	errs := make([]error, e.inFlight)
	var wg sync.WaitGroup
	for n := range e.inFlight {
		wg.Go(func() {
			c := newInProcess(h, headers)
			defer c.end()
			for i := n; i < len(headers) && errs[n] == nil; i += e.inFlight {
				if _, errs[n] = c.call(i); errs[n] == nil {
					errs[n] = see(i, &c.response)
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// subjectField is the header field that says whom a limit counts, and who logs in.
const subjectField = "X-Api-Key"

// subjects returns the headers of requests by n clients.
func subjects(n int) []http.Header {
	headers := make([]http.Header, n)
	for i := range headers {
		headers[i] = http.Header{
			"Accept":     {"*/*"},
			"User-Agent": {"bench"},
			subjectField: {fmt.Sprintf("client-%06d", i)},
		}
	}
	return headers
}

// addresses returns the headers of requests by n clients that are told by their IPv4 addresses.
func addresses(n int) []http.Header {
	headers := subjects(n)
	for i := range headers {
		headers[i][subjectField] = []string{fmt.Sprintf("203.0.%d.%d", 100+i/100%100, 100+i%100)}
	}
	return headers
}

// contender is an entrant that is set up, and its figures so far, one for each round.
type contender struct {
	entrant
	db     int
	env    *env // nil: not set up
	crew   *crew
	rounds []figures
}

// figures are what a contender did in one round. Times are in microseconds.
type figures struct {
	rate          float64 // requests per second
	p50, p99      float64
	cpu, redisCPU float64         // per request; cpu is all of this process
	commands      float64         // of Redis, per request
	allocs, bytes float64         // per request
	keySize       float64         // bytes of an average key in Redis
	expected      float64         // share of the responses that had the row's status
	statuses      map[int]float64 // shares of all statuses
}

// median returns the median over the rounds of what pick picks.
func (c *contender) median(pick func(figures) float64) float64 {
	values := make([]float64, len(c.rounds))
	for i, f := range c.rounds {
		values[i] = pick(f)
	}
	return median(values)
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// pace is how long everything takes.
type pace struct {
	rounds          int
	warmUp, measure time.Duration
}

// serviceHeap is kept alive while contenders are measured, as a service keeps what it is there
// for. With next to no heap the garbage collector would run a hundred times a second.
const serviceHeap = 64 << 20

// measure lets the row's entrants take turns for the given number of rounds, so that whatever
// else the machine does meanwhile hits all of them.
func measure(ctx context.Context, s *server, r row, p pace) ([]*contender, error) {
	heap := make([]byte, serviceHeap)
	defer runtime.KeepAlive(heap)
	if len(r.entrants) >= databases {
		return nil, fmt.Errorf("%s: more than %d entrants", r.name, databases-1)
	}
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	var contenders []*contender
	defer func() {
		for _, c := range contenders {
			c.takeDown()
		}
	}()
	for i, entrant := range r.entrants {
		c := &contender{entrant: entrant, db: i + 1}
		if entrant.inDatabase0 {
			c.db = 0
		}
		contenders = append(contenders, c)
		if entrant.restless {
			continue
		}
		if err := c.setUp(s, r); err != nil {
			return nil, err
		}
	}
	if r.still {
		for _, c := range contenders {
			size, err := s.keySize(ctx, c.db)
			if err != nil {
				return nil, err
			}
			c.rounds = []figures{{keySize: size, expected: 1}}
		}
		return contenders, nil
	}
	for round := range p.rounds {
		for i := range contenders {
			// Nobody always comes after the same one.
			c := contenders[(i+round)%len(contenders)]
			if c.restless {
				if err := c.setUp(s, r); err != nil {
					return nil, err
				}
			}
			f, err := turn(ctx, s, c, r.want, p)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", r.name, c.name, err)
			}
			c.rounds = append(c.rounds, f)
			if c.restless {
				c.takeDown()
			}
		}
	}
	return contenders, nil
}

func (c *contender) setUp(s *server, r row) error {
	c.env = &env{server: s, db: c.db, inFlight: r.inFlight, subjects: r.subjects}
	callers, err := c.enter(c.env)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", r.name, c.name, err)
	}
	c.crew = newCrew(callers, r.subjects, atRandom)
	return nil
}

func (c *contender) takeDown() {
	if c.env != nil {
		c.env.close()
		c.env = nil
	}
}

// turn measures a contender once.
func turn(ctx context.Context, s *server, c *contender, want int, p pace) (figures, error) {
	if _, err := c.crew.run(p.warmUp); err != nil {
		return figures{}, err
	}
	runtime.GC() // of what was left by those before

	redisBefore, err := s.usage(ctx)
	if err != nil {
		return figures{}, err
	}
	var memBefore, memAfter runtime.MemStats
	runtime.ReadMemStats(&memBefore)
	cpu := cpuTime()
	elapsed, err := c.crew.run(p.measure)
	cpu = cpuTime() - cpu
	if err != nil {
		return figures{}, err
	}
	runtime.ReadMemStats(&memAfter)
	redisAfter, err := s.usage(ctx)
	if err != nil {
		return figures{}, err
	}
	spent := redisAfter.minus(redisBefore)

	keySize, err := s.keySize(ctx, c.db)
	if err != nil {
		return figures{}, err
	}
	latencies, statuses := c.crew.seen()
	n := max(1, float64(latencies.total))
	f := figures{
		rate:     n / elapsed.Seconds(),
		p50:      micros(latencies.quantile(0.50)),
		p99:      micros(latencies.quantile(0.99)),
		cpu:      micros(cpu) / n,
		redisCPU: micros(spent.cpu) / n,
		commands: float64(spent.commands) / n,
		allocs:   float64(memAfter.Mallocs-memBefore.Mallocs) / n,
		bytes:    float64(memAfter.TotalAlloc-memBefore.TotalAlloc) / n,
		keySize:  keySize,
		expected: float64(statuses[want]) / n,
		statuses: make(map[int]float64),
	}
	for status, count := range statuses {
		f.statuses[status] = float64(count) / n
	}
	return f, nil
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
