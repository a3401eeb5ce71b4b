package ratelimit

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var (
	acquireScript = scripts.Get("limit/acquire.lua")
	renewScript   = scripts.Get("limit/renew.lua")
	releaseScript = scripts.Get("limit/release.lua")
)

// ErrLeaseLost is returned by Release of a Lease that was not renewed in time: its place may
// have been given away.
var ErrLeaseLost = errors.New("ratelimit: lease lost")

// Concurrency allows a key at most n leases at once, over all servers: requests
// that run, jobs, connections. A lease is renewed while its holder lives, and ends
// by itself [Config.Lease] after its server crashes or loses Redis. It is not a
// lock: while Redis is away, the place of a lease that is still in use may be given
// to another holder, see [Lease.Lost]. The zero value is not usable; see [NewConcurrency].
type Concurrency struct {
	name   string
	prefix string // of keys, brace included
	subjects
	limit   int
	servers int
	rules   *Rules
	lease   time.Duration
	sender  *roundtrip.Sender
	tally   tally
	clock   func() int64 // tests only
	mu      sync.Mutex
	held    map[string]int    // leases of this process
	lines   map[string]*queue // who waits for a place, in this process
}

const maxPlaces = 1_000_000

// NewConcurrency returns a concurrency limit of n over Redis. Those of one name
// and prefix share their keys. Of cfg it uses Prefix, KeySecret, Timeout, Servers,
// Rules, Lease and Logger. The error names everything that is wrong.
func NewConcurrency(client redis.UniversalClient, name string, n int, cfg Config) (*Concurrency, error) {
	var errs []error
	if client == nil {
		errs = append(errs, errors.New("nil client"))
	}
	if n < 1 || n > maxPlaces {
		errs = append(errs, fmt.Errorf("invalid limit %d: 1 to %d", n, maxPlaces))
	}
	errs = append(errs, validateName(name), cfg.validate(), cfg.ignores("MaxKeys", "Penalty", "OnDecision"))
	if err := invalid("concurrency", errs...); err != nil {
		return nil, err
	}
	cfg.Rules.include(name, maxPlaces)
	cfg = cfg.withDefaults()
	c := &Concurrency{
		name: name, prefix: keyPrefix(cfg, "concurrency", name) + "{", subjects: newSubjects(cfg.KeySecret),
		limit: n, servers: cfg.Servers, rules: cfg.Rules, lease: cfg.Lease,
		sender: roundtrip.New(client, cfg.Timeout, cfg.Logger),
		tally:  tally{policy: name, own: Limit{n, cfg.Lease}},
		held:   make(map[string]int), lines: make(map[string]*queue),
	}
	return c, nil
}

// Lease is a place taken. Its methods are safe for concurrent use.
type Lease struct {
	c       *Concurrency
	subject string
	id      string // "": held in process only
	ctx     context.Context
	end     func() bool // of the watch over ctx

	lost chan struct{} // closed when the place is lost

	mu    sync.Mutex
	timer *time.Timer // nil: not renewed any more
	until time.Time   // when the lease ends by this process's clock, if it is not renewed
	done  bool
}

// Lost returns a channel that is closed when the place has been lost: the lease was not
// renewed in time, since Redis was away for longer than it lasts, or it was given away. The
// holder should stop what the limit is for. Releasing it is not a loss.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Acquire takes a place of key, or returns a nil Lease and the denial. The Lease
// is renewed until Release, or until ctx is done: then it ends within Config.Lease.
// In the Result, the Limit's Window is Config.Lease. When a place will be free is
// not known: RetryAfter is one second.
//
// Errors are [ErrEmptyKey], [ErrUnavailable], and that of a context that is done.
// Then the place may be taken all the same, and ends by itself.
func (c *Concurrency) Acquire(ctx context.Context, key string) (l *Lease, res Result, err error) {
	defer func() { c.tally.count(&res, err) }()
	if key == "" {
		return nil, Result{}, ErrEmptyKey
	}
	if err := ctx.Err(); err != nil {
		return nil, Result{}, err
	}
	return c.acquire(ctx, c.subject(key))
}

func (c *Concurrency) acquire(ctx context.Context, subject string) (*Lease, Result, error) {
	n, origin, res, decided := c.ruled(subject)
	if decided {
		return c.byRule(subject, res), res, nil
	}
	var random [9]byte
	_, _ = rand.Read(random[:])
	l := &Lease{
		c: c, subject: subject, id: base64.RawURLEncoding.EncodeToString(random[:]),
		ctx: context.WithoutCancel(ctx), lost: make(chan struct{}), until: time.Now().Add(c.lease),
	}
	reply, err := c.run(ctx, acquireScript, l.subject, strconv.Itoa(n), c.lease.Microseconds(), c.ttl(), l.id)
	if err == nil && len(reply) != 3 {
		err = fmt.Errorf("%w: a reply of %d integers", ErrUnavailable, len(reply))
	}
	if err != nil {
		return nil, Result{}, err
	}
	res = c.result(reply[0] == 1, n, int(reply[1]), time.Duration(reply[2])*time.Microsecond, FromRedis, origin)
	if !res.Allowed {
		return nil, res, nil
	}
	c.count(l.subject, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = time.AfterFunc(c.lease/3, l.renew)
	l.end = context.AfterFunc(ctx, l.stop)
	return l, res, nil
}

// AcquireLocally is Acquire without Redis: it counts the leases of this process
// against this server's share of the limit, see [Config.Servers].
func (c *Concurrency) AcquireLocally(key string) (l *Lease, res Result, err error) {
	defer func() { c.tally.count(&res, err) }()
	if key == "" {
		return nil, Result{}, ErrEmptyKey
	}
	subject := c.subject(key)
	n, origin, res, decided := c.ruled(subject)
	if decided {
		return c.byRule(subject, res), res, nil
	}
	share := max(1, n/c.servers)
	l = &Lease{c: c, subject: subject, lost: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	used := c.held[l.subject]
	if used >= share {
		return nil, c.result(false, share, 0, c.lease, FromLocal, origin), nil
	}
	c.held[l.subject]++
	return l, c.result(true, share, share-used-1, c.lease, FromLocal, origin), nil
}

// ruled returns the limit of a subject and where it comes from, or what a rule has decided.
func (c *Concurrency) ruled(subject string) (n int, origin Origin, res Result, decided bool) {
	rule := c.rules.find(c.name, subject, false)
	switch {
	case rule == nil || rule.Mode == Enforce && rule.Requests > maxPlaces:
		return c.limit, FromConstructor, res, false
	case rule.Mode != Enforce:
		return 0, rule.origin, rule.result(Limit{c.limit, c.lease}), true
	}
	return rule.Requests, rule.origin, res, false
}

// byRule returns a lease that takes no place, if a rule says that none is needed.
func (c *Concurrency) byRule(subject string, res Result) *Lease {
	if !res.Allowed {
		return nil
	}
	c.count(subject, 1)
	return &Lease{c: c, subject: subject, lost: make(chan struct{})}
}

func (c *Concurrency) result(allowed bool, limit, remaining int, reset time.Duration, src Source, origin Origin) Result {
	res := Result{
		Allowed: allowed, Policy: c.name, Limit: Limit{limit, c.lease},
		Remaining: remaining, ResetAfter: reset, Source: src, Origin: origin,
	}
	if !allowed {
		res.RetryAfter = time.Second
	}
	return res
}

// Release gives the place back. It is for a defer: it does nothing the second
// time, and works when the request's context is done. [ErrLeaseLost] means that the place
// was lost before. Another error means that it will be free only when the lease ends.
func (l *Lease) Release() error {
	l.stop()
	l.mu.Lock()
	done := l.done
	l.done = true
	l.mu.Unlock()
	if done {
		return nil
	}
	if l.end != nil {
		l.end()
	}
	l.c.count(l.subject, -1)
	defer l.c.wake(l.subject)
	if l.id == "" {
		return nil
	}
	reply, err := l.c.run(l.ctx, releaseScript, l.subject, l.id)
	select {
	case <-l.lost: // even if nobody had asked for the place
		return ErrLeaseLost
	default:
	}
	if err == nil && reply[0] == 0 {
		return ErrLeaseLost
	}
	return err
}

// stop ends the renewal.
func (l *Lease) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// renew runs on a goroutine of its timer, for the length of one call. It asks Redis also
// while the breaker is open: a hiccup that is over must not cost the place.
func (l *Lease) renew() {
	sent := time.Now()
	// A call that hangs must leave time for another one, and is of no use after the lease.
	ctx, cancel := context.WithTimeout(l.ctx, min(l.c.lease/3, time.Until(l.until)))
	defer cancel()
	reply, err := l.c.runAnyway(ctx, renewScript, l.subject, l.c.lease.Microseconds(), l.c.ttl(), l.id)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil {
		return
	}
	if err == nil && reply[0] == 1 {
		l.until = sent.Add(l.c.lease)
	}
	left := time.Until(l.until)
	if err == nil && reply[0] == 0 || left <= 0 {
		l.timer = nil
		close(l.lost)
		return
	}
	next := l.c.lease / 3
	if err != nil { // the next one may come in time
		next = min(next/4, left)
	}
	l.timer = time.AfterFunc(next, l.renew)
}

func (c *Concurrency) count(subject string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held[subject] += by; c.held[subject] <= 0 {
		delete(c.held, subject)
	}
}

func (c *Concurrency) ttl() int64 {
	if c.clock != nil {
		return time.Hour.Milliseconds()
	}
	return c.lease.Milliseconds() + 1
}

// run sends a script.
func (c *Concurrency) run(ctx context.Context, script *scripts.Script, subject string, args ...any) ([]int64, error) {
	return c.send(ctx, c.sender, script, subject, args)
}

// runAnyway is run also while Redis is not asked because it did not answer.
func (c *Concurrency) runAnyway(ctx context.Context, script *scripts.Script, subject string, args ...any) ([]int64, error) {
	return c.send(ctx, c.sender.Persistent(), script, subject, args)
}

func (c *Concurrency) send(ctx context.Context, by *roundtrip.Sender, script *scripts.Script, subject string, args []any) ([]int64, error) {
	numbers, err := integers(by.Run(ctx, script, []string{c.prefix + subject + "}"}, c.withClock(args)...))
	if err == nil && len(numbers) == 0 {
		err = errors.New("an empty reply")
	}
	if err != nil {
		return nil, failure(ctx, err)
	}
	return numbers, nil
}

func (c *Concurrency) withClock(args []any) []any {
	if c.clock != nil {
		args = append(args, c.clock())
	}
	return args
}
