package roundtrip

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// node sends to one server.
//
// While few calls are under way, each is sent by its own caller, over a connection of its own.
// When there are more, they are queued and sent by up to maxLanes goroutines, in pipelines of
// what has gathered.
type node struct {
	*shared
	addr    string        // "" of a single server
	server  *redis.Client // nil if it is not known
	circuit circuit
	yield   Yield

	under atomic.Int64 // calls under way
	held  atomic.Bool  // others held the connections a moment ago

	mu    sync.Mutex
	queue []*call
	lanes int // under way and not stuck
}

// maxAlone is how many callers send for themselves at once. With four in flight, limits decide
// 1.1 to 1.5 times as many requests as where all but the first are queued.
const maxAlone = 4

func newNode(s *shared, addr string, server *redis.Client) *node {
	return &node{shared: s, addr: addr, server: server}
}

// call is a command or a Question on its way. Its caller may give up at any time; then the
// command is left to its pipeline, and dropped if it has not been sent.
type call struct {
	of       *shared
	ctx      context.Context
	first    command // sent in one go with cmd, if it is not nil
	cmd      command // nil: question
	question Question
	answer   Answer // of question
	err      error
	timeout  time.Duration
	by       *redis.Client // Sender.bounded
	wait     time.Duration // Sender.wait
	before   uint64        // answers of the server, when the call came
	state    atomic.Uint32
	next     *call         // asks the same; of a batch
	done     chan struct{} // buffered: one token when it is callDone
	timer    *time.Timer
}

const (
	callQueued uint32 = iota
	callSent
	callDone
	callAbandoned // its lane may still write to it
)

func newCall(s *shared) *call {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &call{of: s, done: make(chan struct{}, 1), timer: t}
}

func (s *Sender) newCall(ctx context.Context) *call {
	c := s.calls.Get().(*call)
	c.ctx, c.timeout, c.wait, c.by = ctx, s.timeout, s.wait, s.bounded
	return c
}

func (c *call) release() {
	if c.state.Load() == callAbandoned {
		return
	}
	c.ctx, c.first, c.cmd, c.question, c.answer, c.err, c.next = nil, nil, nil, Question{}, Answer{}, nil, nil
	c.state.Store(callQueued)
	c.of.calls.Put(c)
}

// do has c, which concerns key, answered. It waits for that, for the caller's context, or for the
// timeout.
func (s *Sender) do(c *call, key string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	n := s.node(c.ctx, key)
	permit, err := n.circuit.allow(s.persistent)
	if err != nil {
		return err
	}
	defer permit.end()
	c.before = n.circuit.answers.Load()
	defer n.under.Add(-1)
	if n.under.Add(1) <= maxAlone && !n.held.Load() && s.bounded != nil && s.patient(c.ctx) {
		return unquoted(s.alone(n, c))
	}
	return unquoted(n.await(c))
}

// unquoted is err without the arguments that Redis quotes of a command that it does not know: keys
// and values, which must not get into a log.
func unquoted(err error) error {
	var said redis.Error
	if err == nil || !errors.As(err, &said) {
		return err
	}
	if text, _, quotes := strings.Cut(err.Error(), ", with args beginning with:"); quotes {
		return refusal(text)
	}
	return err
}

// refusal is a redis.Error.
type refusal string

func (r refusal) Error() string { return string(r) }
func (refusal) RedisError()     {}

// patient reports whether a caller may wait for as long as the client does. If its ctx is
// cancelled meanwhile it is not let go before that, which does not show while Redis answers.
func (s *Sender) patient(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return !ok || time.Until(deadline) >= s.timeout
}

// alone sends c on the goroutine of its caller.
func (s *Sender) alone(n *node, c *call) error {
	// A context that ends with the caller's request would cost go-redis a connection.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), c.timeout)
	defer cancel()
	if c.cmd != nil {
		return s.process(ctx, n, c, c.cmd)
	}
	sent := s.Now()
	cmd := decide([]ask{{c, c, 1}})
	err := s.process(ctx, n, c, cmd)
	if isNoScript(err) {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		cmd = cmd.withSource(c.ctx, c.question.One)
		err = s.process(ctx, n, c, cmd)
	}
	c.answer = Answer{Reply: cmd.Val(), N: 1, Sent: sent}
	return err
}

// process sends cmd, which is that of c, and returns its error.
func (s *Sender) process(ctx context.Context, n *node, c *call, cmd command) error {
	cmd.bind(s.bounded)
	if c.first == nil {
		_ = s.client.Process(ctx, cmd)
	} else {
		c.first.bind(s.bounded)
		pipe := s.client.Pipeline()
		_ = pipe.BatchProcess(ctx, c.first, cmd)
		_, _ = pipe.Exec(ctx)
	}
	err := cmd.Err()
	n.learn(err, c.before)
	if err == context.DeadlineExceeded && n.poolIsHeld() {
		n.held.Store(true)
	}
	return c.timeoutOf(err)
}

// timeoutOf returns the TimeoutError of an error that go-redis noticed before the caller did, by
// the connection's deadline or by that of the context.
func (c *call) timeoutOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &TimeoutError{After: c.wait}
	case errors.Is(err, context.DeadlineExceeded):
		return &TimeoutError{After: c.timeout}
	}
	return err
}

// await queues c and waits.
func (n *node) await(c *call) error {
	c.timer.Reset(c.timeout)
	defer c.timer.Stop()
	n.mu.Lock()
	n.queue = append(n.queue, c)
	if n.lanes < maxLanes {
		n.start()
	}
	n.mu.Unlock()

	select {
	case <-c.done:
		return c.err
	case <-c.ctx.Done():
		if _, abandoned := c.abandon(); abandoned {
			return c.ctx.Err()
		}
	case <-c.timer.C:
		if unsent, abandoned := c.abandon(); abandoned {
			err := &TimeoutError{After: c.timeout, Unsent: unsent}
			n.learn(err, c.before)
			return err
		}
	}
	<-c.done // the answer came at the same moment
	return c.err
}

// abandon ends a call that is not done, and reports whether it has not been sent.
func (c *call) abandon() (unsent, abandoned bool) {
	if c.state.CompareAndSwap(callQueued, callAbandoned) {
		return true, true
	}
	return false, c.state.CompareAndSwap(callSent, callAbandoned)
}
