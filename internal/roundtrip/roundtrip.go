// Package roundtrip sends commands to Redis for the packages above it. It
// bounds every call by a deadline, batches calls that happen at the same time
// into one pipeline, and never sends a script twice.
//
// go-redis has an automatic pipeline of its own. It is not used here because
// its commands ignore the context once they are queued: a black-holed server
// would hold a request for the client's read timeout (and its retries) instead
// of ours, and commands queued during an outage would still run after it.
package roundtrip

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// maxBatch bounds the commands of one pipeline, so that a burst does not make
// the first of its callers wait for the last.
const maxBatch = 256

// TimeoutError reports that Redis did not answer in time. Whether the command
// ran is unknown.
type TimeoutError struct{ After time.Duration }

func (e *TimeoutError) Error() string { return fmt.Sprintf("redis: no answer within %v", e.After) }

// Timeout makes it a net.Error-like timeout.
func (e *TimeoutError) Timeout() bool { return true }

// Is makes errors.Is(err, context.DeadlineExceeded) true.
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Sender sends commands over one client. It is safe for concurrent use and
// owns no goroutine while nothing is under way.
type Sender struct {
	client  redis.UniversalClient
	timeout time.Duration
	reader  redis.UniversalClient // set if the client caches reads in process
	cache   redis.Cache           // what it caches them in; nil if it keeps that to itself
	// cachePrefix is what go-redis puts before a key in its cache. It is not told
	// to anybody; a test notices when it changes.
	cachePrefix string

	// Each Sender has its own calls: a timer or channel that was made in a
	// bubble of testing/synctest must not get out of it.
	calls sync.Pool

	mu      sync.Mutex
	queue   []*call
	current *batch // under way; nil: the next call starts one
}

// New returns a Sender whose calls take at most timeout each.
func New(client redis.UniversalClient, timeout time.Duration) *Sender {
	s := &Sender{client: client, timeout: timeout, calls: sync.Pool{New: newCall}}
	if c, ok := client.(*redis.Client); ok {
		if o := c.Options(); o.ClientSideCacheConfig != nil || o.ClientSideCache != nil {
			s.reader, s.cache = c.WithTimeout(timeout), o.ClientSideCache
			s.cachePrefix = fmt.Sprintf("%d\x00%d:%s\x00", o.DB, len(o.Username), o.Username)
		}
	}
	return s
}

// Client returns the client that the Sender was made with.
func (s *Sender) Client() redis.UniversalClient { return s.client }

// Get returns the string at key, or redis.Nil.
func (s *Sender) Get(ctx context.Context, key string) (string, error) {
	cmd := redis.NewStringCmd(ctx, "get", key)
	if s.reader != nil {
		// A pipeline would pass the cache by.
		within := &timeoutIfAsked{Context: ctx, timeout: s.timeout}
		defer within.stop()
		_ = s.reader.Process(within, cmd)
		if cmd.Err() != nil && ctx.Err() == nil && within.Err() != nil {
			return "", &TimeoutError{After: s.timeout}
		}
		return cmd.Result()
	}
	if err := s.do(ctx, cmd); err != nil {
		return "", err
	}
	return cmd.Val(), nil
}

// timeoutIfAsked is context.WithTimeout for a call that hardly ever waits: there
// is no timer until somebody asks for the channel. Without it a read that misses
// the cache would wait for another's that hangs, and then be tried again.
type timeoutIfAsked struct {
	context.Context
	timeout time.Duration

	mu     sync.Mutex
	inner  context.Context
	cancel context.CancelFunc
}

func (c *timeoutIfAsked) start() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithTimeout(c.Context, c.timeout)
	}
	return c.inner
}

func (c *timeoutIfAsked) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
	}
}

func (c *timeoutIfAsked) Done() <-chan struct{}       { return c.start().Done() }
func (c *timeoutIfAsked) Deadline() (time.Time, bool) { return c.start().Deadline() }

func (c *timeoutIfAsked) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner != nil {
		return c.inner.Err()
	}
	return c.Context.Err()
}

// Set sets the string at key, whatever is there, for ttl milliseconds.
func (s *Sender) Set(ctx context.Context, key string, value []byte, ttl int64) error {
	defer s.forget(key)
	return s.do(ctx, once{redis.NewCmd(ctx, "set", key, value, "px", ttl)})
}

// forget drops what this process has cached of a key that it has written.
func (s *Sender) forget(key string) {
	if s.cache != nil {
		s.cache.DeleteByRedisKey(s.cachePrefix + key)
	}
}

// Ints runs a script whose reply is an array of integers.
func (s *Sender) Ints(ctx context.Context, script *scripts.Script, key string, args ...any) ([]int64, error) {
	return run(ctx, s, script, "1", key, args, ints(ctx))
}

// IntsOver is Ints over several keys, which must be of one slot.
func (s *Sender) IntsOver(ctx context.Context, script *scripts.Script, keys []string, args ...any) ([]int64, error) {
	all := make([]any, 0, len(keys)+len(args))
	for _, k := range keys[1:] {
		all = append(all, k)
	}
	return run(ctx, s, script, strconv.Itoa(len(keys)), keys[0], append(all, args...), ints(ctx))
}

func ints(ctx context.Context) func([]any) (redis.Cmder, func() ([]int64, error)) {
	return func(args []any) (redis.Cmder, func() ([]int64, error)) {
		cmd := redis.NewIntSliceCmd(ctx, args...)
		return onceInts{cmd}, cmd.Result
	}
}

// Reply runs a script with a reply of any kind.
func (s *Sender) Reply(ctx context.Context, script *scripts.Script, key string, args ...any) (any, error) {
	return run(ctx, s, script, "1", key, args, func(args []any) (redis.Cmder, func() (any, error)) {
		cmd := redis.NewCmd(ctx, args...)
		return once{cmd}, cmd.Result
	})
}

func run[T any](ctx context.Context, s *Sender, script *scripts.Script, numKeys, key string, args []any,
	command func([]any) (redis.Cmder, func() (T, error))) (T, error) {
	defer s.forget(key)
	full := make([]any, 0, 4+len(args))
	full = append(append(full, "evalsha", script.SHA1, numKeys, key), args...)
	cmd, result := command(full)
	err := s.do(ctx, cmd)
	if err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
		// The one answer after which a script may be sent again: it did not run.
		// The command above may not be reused, so its arguments are not either.
		full = append([]any{"eval", script.Source}, full[2:]...)
		cmd, result = command(full)
		err = s.do(ctx, cmd)
	}
	if err != nil {
		var zero T
		return zero, err
	}
	return result()
}

// onceInts and once are writes: go-redis must not repeat them, because a
// reply that got lost does not mean that the command did not run.
type onceInts struct{ *redis.IntSliceCmd }

func (onceInts) NoRetry() bool { return true }

type once struct{ *redis.Cmd }

func (once) NoRetry() bool { return true }

// call is one command on its way. Its caller may give up at any time; then the
// command is left to the batch, and dropped if it has not been sent.
type call struct {
	ctx   context.Context
	cmd   redis.Cmder
	batch *batch        // that took it; set before state is callSent
	state atomic.Uint32 // callQueued, callSent or callAbandoned
	done  chan struct{} // buffered: one token when cmd has its result
	timer *time.Timer
}

const (
	callQueued uint32 = iota
	callSent
	callAbandoned
)

func newCall() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &call{done: make(chan struct{}, 1), timer: t}
}

// batch is one pipeline under way.
type batch struct {
	calls []*call
	stuck bool // guarded by Sender.mu: its callers gave up, it owns the queue no longer
}

// do sends cmd and waits for its result, for ctx, or for the timeout.
func (s *Sender) do(ctx context.Context, cmd redis.Cmder) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := s.calls.Get().(*call)
	c.ctx, c.cmd = ctx, cmd
	c.state.Store(callQueued)
	c.timer.Reset(s.timeout)

	s.mu.Lock()
	s.queue = append(s.queue, c)
	if s.current == nil {
		s.start()
	}
	s.mu.Unlock()

	select {
	case <-c.done:
		c.timer.Stop()
		c.ctx, c.cmd, c.batch = nil, nil, nil
		s.calls.Put(c)
		return cmd.Err()
	case <-ctx.Done():
		c.timer.Stop()
		s.giveUp(c, false)
		return ctx.Err()
	case <-c.timer.C:
		s.giveUp(c, true)
		return &TimeoutError{After: s.timeout}
	}
}

// giveUp leaves c behind. It is not pooled: its batch may still write to it.
func (s *Sender) giveUp(c *call, timedOut bool) {
	queued := c.state.CompareAndSwap(callQueued, callAbandoned)
	if !timedOut {
		return
	}
	// Redis has not answered for a whole timeout: let the next batch go by
	// another connection rather than wait behind this one.
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.current; b != nil && (queued || c.batch == b) {
		b.stuck = true
		s.current = nil
		s.start()
	}
}

// start takes the queue and sends it. It is called with mu held.
func (s *Sender) start() {
	b := &batch{}
	if s.take(b) {
		go s.send(b)
	}
}

// take moves what is queued into b, which becomes the current batch. It reports
// whether there was anything. It is called with mu held.
func (s *Sender) take(b *batch) bool {
	n := min(len(s.queue), maxBatch)
	b.calls = b.calls[:0]
	for _, c := range s.queue[:n] {
		c.batch = b
		if c.state.CompareAndSwap(callQueued, callSent) {
			b.calls = append(b.calls, c)
		}
	}
	rest := copy(s.queue, s.queue[n:])
	clear(s.queue[rest:])
	s.queue = s.queue[:rest]
	s.current = nil
	if len(b.calls) > 0 {
		s.current = b
		return true
	}
	if rest > 0 {
		return s.take(b)
	}
	return false
}

// send runs batches until nothing is queued, or until it got stuck and another
// goroutine has taken over.
func (s *Sender) send(b *batch) {
	for {
		s.exec(b.calls)
		for _, c := range b.calls {
			c.done <- struct{}{}
		}
		s.mu.Lock()
		if b.stuck || !s.take(b) {
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
	}
}

func (s *Sender) exec(calls []*call) {
	// The caller's context ends with its request, the commands of the others do
	// not: only values such as a trace span are taken from it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(calls[0].ctx), s.timeout)
	defer cancel()
	if len(calls) == 1 {
		_ = s.client.Process(ctx, calls[0].cmd)
		return
	}
	pipe := s.client.Pipeline()
	for _, c := range calls {
		_ = pipe.Process(ctx, c.cmd)
	}
	_, _ = pipe.Exec(ctx)
}
