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

// Concurrency allows a key at most n leases at once, over all servers: requests
// that run, jobs, connections. A lease is renewed while its holder lives, and ends
// by itself [Config.Lease] after its server crashed or lost Redis. It is not a
// lock: during such a loss, somebody else may be given the place of a lease that
// is still in use. The zero value is not usable; see [NewConcurrency].
type Concurrency struct {
	name    string
	prefix  string // of keys, brace included
	limit   int
	share   int // of the limit, when this server decides alone
	lease   time.Duration
	sender  *roundtrip.Sender
	breaker *Breaker
	clock   func() int64 // tests only
	mu      sync.Mutex
	held    map[string]int // leases of this process
}

// NewConcurrency returns a concurrency limit of n over Redis. Those of one name
// and prefix share their keys. Of cfg it uses Prefix, Timeout, Breaker, Servers,
// Lease and Logger. The error names everything that is wrong.
func NewConcurrency(client redis.UniversalClient, name string, n int, cfg Config) (*Concurrency, error) {
	var errs []error
	if client == nil {
		errs = append(errs, errors.New("nil client"))
	}
	if n < 1 || n > 1_000_000 {
		errs = append(errs, fmt.Errorf("invalid limit %d: 1 to 1000000", n))
	}
	errs = append(errs, validateName(name), cfg.validate())
	if err := invalid("concurrency", errs...); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := &Concurrency{
		name: name, prefix: cfg.Prefix + "rl:" + name + ":{",
		limit: n, share: max(1, n/cfg.Servers), lease: cfg.Lease,
		sender:  roundtrip.New(client, cfg.Timeout),
		breaker: cfg.Breaker,
		held:    make(map[string]int),
	}
	if c.breaker == nil {
		c.breaker = newBreaker(name, cfg.Logger)
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

	mu    sync.Mutex
	timer *time.Timer // nil: not renewed any more
	done  bool
}

// Acquire takes a place of key, or returns a nil Lease and the denial. The Lease
// is renewed until Release, or until ctx is done: then it ends within Config.Lease.
// In the Result, the Limit's Window is Config.Lease. When a place will be free
// nobody knows: RetryAfter is one second.
//
// Errors are [ErrEmptyKey], [ErrUnavailable], and that of a context that is done.
// Then the place may be taken all the same, and ends by itself.
func (c *Concurrency) Acquire(ctx context.Context, key string) (*Lease, Result, error) {
	if key == "" {
		return nil, Result{}, ErrEmptyKey
	}
	if err := ctx.Err(); err != nil {
		return nil, Result{}, err
	}
	var random [9]byte
	_, _ = rand.Read(random[:])
	l := &Lease{c: c, subject: escapeSubject(key), id: base64.RawURLEncoding.EncodeToString(random[:]), ctx: context.WithoutCancel(ctx)}
	reply, err := c.run(ctx, scripts.LimitAcquire, l.subject, strconv.Itoa(c.limit), c.lease.Microseconds(), c.ttl(), l.id)
	if err == nil && len(reply) != 3 {
		err = fmt.Errorf("%w: a reply of %d integers", ErrUnavailable, len(reply))
	}
	if err != nil {
		return nil, Result{}, err
	}
	res := c.result(reply[0] == 1, int(reply[1]), time.Duration(reply[2])*time.Microsecond, FromRedis)
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
func (c *Concurrency) AcquireLocally(key string) (*Lease, Result, error) {
	if key == "" {
		return nil, Result{}, ErrEmptyKey
	}
	l := &Lease{c: c, subject: escapeSubject(key)}
	c.mu.Lock()
	defer c.mu.Unlock()
	used := c.held[l.subject]
	if used >= c.share {
		return nil, c.result(false, 0, c.lease, FromLocal), nil
	}
	c.held[l.subject]++
	return l, c.result(true, c.share-used-1, c.lease, FromLocal), nil
}

func (c *Concurrency) result(allowed bool, remaining int, reset time.Duration, src Source) Result {
	res := Result{
		Allowed: allowed, Policy: c.name, Limit: Limit{c.limit, c.lease},
		Remaining: remaining, ResetAfter: reset, Source: src,
	}
	if src == FromLocal {
		res.Limit.Requests = c.share
	}
	if !allowed {
		res.RetryAfter = time.Second
	}
	return res
}

// Release gives the place back. It is for a defer: it does nothing the second
// time, and works when the request's context is done. An error means that the
// place will be free only when the lease ends.
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
	if l.id == "" {
		return nil
	}
	_, err := l.c.run(l.ctx, scripts.LimitRelease, l.subject, l.id)
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

// renew runs on a goroutine of its timer, for the length of one call.
func (l *Lease) renew() {
	reply, err := l.c.run(l.ctx, scripts.LimitRenew, l.subject, l.c.lease.Microseconds(), l.c.ttl(), l.id)
	if err == nil && reply[0] == 0 {
		return // it has ended
	}
	// After an error too: the next one may come in time.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer = time.AfterFunc(l.c.lease/3, l.renew)
	}
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

func (c *Concurrency) run(ctx context.Context, script *scripts.Script, subject string, args ...any) ([]int64, error) {
	if c.clock != nil {
		args = append(args, c.clock())
	}
	var reply []int64
	err := c.breaker.ask(ctx, func() (err error) {
		reply, err = c.sender.Ints(ctx, script, c.prefix+subject+"}", args...)
		return err
	})
	if err == nil && len(reply) == 0 {
		err = errors.New("an empty reply")
	}
	if err != nil {
		return nil, failure(ctx, err)
	}
	return reply, nil
}
