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
	"errors"
	"fmt"
	"os"
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
// ran is unknown, unless it is Unsent.
type TimeoutError struct {
	After  time.Duration
	Unsent bool // the command was not sent, and will not be
}

func (e *TimeoutError) Error() string { return fmt.Sprintf("redis: no answer within %v", e.After) }

// Timeout makes it a net.Error-like timeout.
func (e *TimeoutError) Timeout() bool { return true }

// Is makes errors.Is(err, context.DeadlineExceeded) true.
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Sender sends commands over one client, each within its timeout. It is safe for concurrent
// use and owns no goroutine while nothing is under way.
type Sender struct {
	*shared
	timeout time.Duration
	wait    time.Duration // for one reply: timeout, or the client's own if that is shorter

	// bounded is the client, made to give up reading and writing after wait; nil if
	// it cannot be. With it, a caller may wait for a command itself.
	bounded *redis.Client
}

// New returns a Sender whose calls take at most timeout each. All Senders over one client
// share what they send by.
func New(client redis.UniversalClient, timeout time.Duration) *Sender {
	return sharedBy(client).sender(timeout)
}

// shared is what all Senders over one client stand on.
type shared struct {
	client redis.UniversalClient

	// cached tells that the client caches reads in process, and cache in what; it
	// is nil if the client keeps that to itself.
	cached bool
	cache  redis.Cache
	// cachePrefix is what go-redis puts before a key in its cache. It is not told
	// to anybody; a test notices when it changes.
	cachePrefix string

	// Each client has its own calls: a timer or channel that was made in a
	// bubble of testing/synctest must not get out of it.
	calls sync.Pool

	mu      sync.RWMutex
	senders map[time.Duration]*Sender
	only    *node            // of a single server, and of one that is not known yet
	nodes   map[string]*node // the others, by address
	routed  atomic.Bool      // a cluster's client knows where its slots are
}

func newShared(client redis.UniversalClient) *shared {
	s := &shared{
		client:  client,
		calls:   sync.Pool{New: newCall},
		senders: make(map[time.Duration]*Sender),
		nodes:   make(map[string]*node),
	}
	s.only = &node{shared: s}
	if c, ok := client.(*redis.Client); ok {
		o := c.Options()
		s.cached, s.cache = o.ClientSideCacheConfig != nil || o.ClientSideCache != nil, o.ClientSideCache
		s.cachePrefix = fmt.Sprintf("%d\x00%d:%s\x00", o.DB, len(o.Username), o.Username)
	}
	return s
}

func (s *shared) sender(timeout time.Duration) *Sender {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sender := s.senders[timeout]; sender != nil {
		return sender
	}
	sender := &Sender{shared: s, timeout: timeout, wait: timeout}
	if read := readTimeout(s.client); read > 0 {
		sender.wait = min(timeout, read)
	}
	if c, ok := s.client.(*redis.Client); ok {
		sender.bounded = c.WithTimeout(sender.wait)
	}
	s.senders[timeout] = sender
	return sender
}

// readTimeout returns for how long a client itself waits for a reply; 0 or less: for ever, or
// it does not say.
func readTimeout(client redis.UniversalClient) time.Duration {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ReadTimeout
	case *redis.ClusterClient:
		return c.Options().ReadTimeout
	case *redis.Ring:
		return c.Options().ReadTimeout
	}
	return 0
}

// Client returns the client that the Sender was made with.
func (s *shared) Client() redis.UniversalClient { return s.client }

// Node returns the address of the server that has key; "" if there is but one, or as long as
// it is not known which.
func (s *shared) Node(ctx context.Context, key string) string {
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		// A client that does not know its slots yet would ask for them here, for as long as
		// its own timeouts let it.
		if s.routed.Load() {
			if master, err := c.MasterForKey(ctx, key); err == nil {
				return master.Options().Addr
			}
		}
	case *redis.Ring:
		if shard, err := c.GetShardClientForKey(key); err == nil {
			return shard.Options().Addr
		}
	}
	return ""
}

// node returns what sends to the server at addr: one that hangs must not hold up what goes to
// the others.
func (s *shared) node(addr string) *node {
	if addr == "" {
		return s.only
	}
	s.mu.RLock()
	n := s.nodes[addr]
	s.mu.RUnlock()
	if n != nil {
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[addr] == nil {
		s.nodes[addr] = &node{shared: s}
	}
	return s.nodes[addr]
}

// node sends to one server.
//
// A call that is alone is made by its caller. Those that come meanwhile are sent by
// up to maxLanes goroutines, in pipelines of what has gathered.
type node struct {
	*shared
	yield Yield

	mu    sync.Mutex
	queue []*call
	lanes int // under way and not stuck
}

// lane is a goroutine that sends pipelines, one after the other.
type lane struct {
	stuck bool // one of its calls has timed out; guarded by node.mu
}

// maxLanes is how many pipelines are under way at once. With one, this process
// and Redis would wait for each other in turn; with more than four, the pipelines
// get short without getting done any sooner.
const maxLanes = 4

// HGet returns a field of the hash at key, or redis.Nil. The bytes are not to be changed.
func (s *Sender) HGet(ctx context.Context, key, field string) ([]byte, error) {
	cmd := &hget{StringCmd: *redis.NewStringCmd(ctx, "hget", key, field)}
	if s.cached {
		// A pipeline would pass the cache by.
		within := &timeoutIfAsked{Context: ctx, timeout: s.timeout}
		defer within.stop()
		cmd.bind(s.bounded)
		_ = s.client.Process(within, cmd)
		if cmd.Err() != nil && ctx.Err() == nil && within.Err() != nil {
			return nil, &TimeoutError{After: s.timeout}
		}
		return cmd.Bytes()
	}
	if err := s.do(ctx, key, cmd); err != nil {
		return nil, err
	}
	return cmd.Bytes()
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

// forget drops what this process has cached of a key that it has written.
func (s *shared) forget(key string) {
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

func ints(ctx context.Context) func([]any) (command, func() ([]int64, error)) {
	return func(args []any) (command, func() ([]int64, error)) {
		cmd := redis.NewIntSliceCmd(ctx, args...)
		return &onceInts{IntSliceCmd: cmd}, cmd.Result
	}
}

// Reply runs a script with a reply of any kind.
func (s *Sender) Reply(ctx context.Context, script *scripts.Script, key string, args ...any) (any, error) {
	return run(ctx, s, script, "1", key, args, func(args []any) (command, func() (any, error)) {
		cmd := redis.NewCmd(ctx, args...)
		return &once{Cmd: cmd}, cmd.Result
	})
}

func run[T any](ctx context.Context, s *Sender, script *scripts.Script, numKeys, key string, args []any,
	build func([]any) (command, func() (T, error))) (T, error) {
	defer s.forget(key)
	full := make([]any, 0, 4+len(args))
	full = append(append(full, "evalsha", script.SHA1(), numKeys, key), args...)
	cmd, result := build(full)
	err := s.do(ctx, key, cmd)
	if err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT") {
		// The one answer after which a script may be sent again: it did not run.
		// The command above may not be reused, so its arguments are not either.
		full = append([]any{"eval", script.Source()}, full[2:]...)
		cmd, result = build(full)
		err = s.do(ctx, key, cmd)
	}
	if err != nil {
		var zero T
		return zero, err
	}
	return result()
}

// command is a command of ours. Before a caller waits for it itself, it is
// bound to a client that gives up in time.
type command interface {
	redis.Cmder
	bind(*redis.Client)
	bound() (*redis.Client, redis.Cmder)
}

// onceInts and once are writes: go-redis must not repeat them, because a
// reply that got lost does not mean that the command did not run.
type onceInts struct {
	*redis.IntSliceCmd
	by *redis.Client
}

func (*onceInts) NoRetry() bool                         { return true }
func (c *onceInts) bind(by *redis.Client)               { c.by = by }
func (c *onceInts) bound() (*redis.Client, redis.Cmder) { return c.by, c }

type once struct {
	*redis.Cmd
	by *redis.Client
}

func (*once) NoRetry() bool                         { return true }
func (c *once) bind(by *redis.Client)               { c.by = by }
func (c *once) bound() (*redis.Client, redis.Cmder) { return c.by, c }

type hget struct {
	redis.StringCmd
	by *redis.Client
}

func (c *hget) bind(by *redis.Client)               { c.by = by }
func (c *hget) bound() (*redis.Client, redis.Cmder) { return c.by, &c.StringCmd }

// divert is a hook that has a bound command processed by the client that it is
// bound to. That one, made by WithTimeout, has none of the hooks of its origin:
// going through the origin, the command meets those that were there before this
// one, such as those that trace. Each client has one, which keeps shared for as long as it.
type divert struct{ *shared }

func (divert) DialHook(next redis.DialHook) redis.DialHook { return next }

func (divert) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (divert) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if c, ok := cmd.(command); ok {
			if by, cmd := c.bound(); by != nil {
				return by.Process(ctx, cmd)
			}
		}
		return next(ctx, cmd)
	}
}

// call is one command on its way. Its caller may give up at any time; then the
// command is left to its pipeline, and dropped if it has not been sent.
type call struct {
	ctx     context.Context
	cmd     redis.Cmder
	timeout time.Duration
	state   atomic.Uint32 // callQueued, callSent or callAbandoned
	lane    *lane         // that has sent it; guarded by node.mu
	done    chan struct{} // buffered: one token when cmd has its result
	timer   *time.Timer
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

// do sends cmd, which concerns key, and waits for its result, for ctx, or for the timeout.
func (s *Sender) do(ctx context.Context, key string, cmd command) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	n := s.node(s.Node(ctx, key))
	n.mu.Lock()
	if s.bounded != nil && n.lanes == 0 && s.patient(ctx) {
		n.lanes++
		n.mu.Unlock()
		return s.alone(ctx, n, cmd)
	}
	c := s.calls.Get().(*call)
	c.ctx, c.cmd, c.timeout, c.lane = ctx, cmd, s.timeout, nil
	c.state.Store(callQueued)
	c.timer.Reset(s.timeout)
	n.queue = append(n.queue, c)
	if n.lanes < maxLanes {
		n.start()
	}
	n.mu.Unlock()

	select {
	case <-c.done:
		c.timer.Stop()
		c.ctx, c.cmd = nil, nil
		s.calls.Put(c)
		return s.answer(cmd)
	case <-ctx.Done():
		c.timer.Stop()
		c.state.CompareAndSwap(callQueued, callAbandoned)
		// c is not pooled: its pipeline may still write to it.
		return ctx.Err()
	case <-c.timer.C:
		unsent := c.state.CompareAndSwap(callQueued, callAbandoned)
		n.mu.Lock()
		// Redis has not answered for a whole timeout: what is queued goes by
		// another connection rather than wait behind this one.
		if c.lane != nil && !c.lane.stuck {
			c.lane.stuck = true
			n.lanes--
		}
		n.start()
		n.mu.Unlock()
		return &TimeoutError{After: s.timeout, Unsent: unsent}
	}
}

// alone makes a call on the goroutine of its caller, which has taken a lane of n.
func (s *Sender) alone(ctx context.Context, n *node, cmd command) error {
	ctx, cancel := detach(ctx, s.timeout)
	defer func() { // also if a hook panics
		cancel()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.lanes--
		if n.lanes < maxLanes {
			n.start()
		}
	}()
	cmd.bind(s.bounded)
	_ = s.client.Process(ctx, cmd)
	return s.answer(cmd)
}

// answer is the error of a command that has been processed. go-redis may notice
// the end of the time before its caller does, by the connection's deadline or by
// that of the context.
func (s *Sender) answer(cmd command) error {
	err := cmd.Err()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &TimeoutError{After: s.wait}
	case errors.Is(err, context.DeadlineExceeded):
		return &TimeoutError{After: s.timeout}
	}
	return err
}

// patient reports whether a caller may wait for as long as the client does. If its ctx is
// cancelled meanwhile it is not let go before that, which does not show while Redis answers.
func (s *Sender) patient(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return !ok || time.Until(deadline) >= s.timeout
}

// start has a goroutine send what is queued, if anything is. It is called with mu
// held.
func (n *node) start() {
	if len(n.queue) > 0 {
		n.lanes++
		go n.send(new(lane))
	}
}

// take moves what is queued into calls, which l will send: those of the same timeout as the
// first, since a pipeline has one. It is called with mu held.
func (n *node) take(calls []*call, l *lane) []*call {
	calls = calls[:0]
	rest := n.queue[:0]
	for _, c := range n.queue { // in their order
		if len(calls) == maxBatch || len(calls) > 0 && c.timeout != calls[0].timeout {
			rest = append(rest, c)
			continue
		}
		if c.state.CompareAndSwap(callQueued, callSent) {
			c.lane = l
			calls = append(calls, c)
		}
	}
	clear(n.queue[len(rest):])
	n.queue = rest
	return calls
}

// send sends what is queued, until nothing is, or until there are lanes enough
// without it.
func (n *node) send(l *lane) {
	var calls []*call
	for first := true; ; first = false {
		n.yield.Now()
		n.mu.Lock()
		calls = calls[:0]
		if !l.stuck && (first || n.lanes <= maxLanes) {
			calls = n.take(calls, l)
		}
		if len(calls) == 0 {
			if !l.stuck {
				n.lanes--
			}
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		n.exec(calls)
		for _, c := range calls {
			c.done <- struct{}{}
		}
	}
}

func (n *node) exec(calls []*call) {
	ctx, cancel := detach(calls[0].ctx, calls[0].timeout)
	defer cancel()
	if len(calls) == 1 {
		_ = n.client.Process(ctx, calls[0].cmd)
	} else {
		pipe := n.client.Pipeline()
		for _, c := range calls {
			_ = pipe.Process(ctx, c.cmd)
		}
		_, _ = pipe.Exec(ctx)
	}
	if !n.routed.Load() && calls[0].cmd.Err() == nil {
		n.routed.Store(true)
	}
}

// detach returns the context of a pipeline. A caller's ends with its request,
// the commands of the others do not, and one that ends halfway costs go-redis a
// connection: only values such as a trace span are taken from it.
func detach(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}
