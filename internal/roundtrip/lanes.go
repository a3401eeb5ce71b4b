package roundtrip

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// maxLanes is how many pipelines are under way at once, and into how many parts the calls under
// way are divided: while Redis works on one part, this process works on the others. If a pipeline
// took all that is queued, soon all calls would be in one, and the two sides would wait for each
// other in turn. Compared with three that take all, in decisions: with 16 in flight 1.3 times as
// many of a sliding window, 1.4 of a fixed one; with 64, 1.1; with 256, as many. Divided by six
// or eight they are too short for keys to be decided together, and there are fewer again.
const maxLanes = 4

// maxBatch bounds the calls of one pipeline, so that a burst does not make
// the first of its callers wait for the last.
const maxBatch = 256

// lane is a goroutine that sends pipelines, one after the other.
type lane struct {
	stuck bool // a pipeline of it has not been answered for a whole timeout; guarded by node.mu
}

// stick takes l for stuck: what is queued goes by another connection rather than wait behind this
// one, whether or not somebody still waits for it.
func (n *node) stick(l *lane) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !l.stuck {
		l.stuck = true
		n.lanes--
		n.start()
	}
}

// start has a goroutine send what is queued, if anything is. It is called with mu
// held.
func (n *node) start() {
	if len(n.queue) > 0 {
		n.lanes++
		go n.send(new(lane))
	}
}

var batches = sync.Pool{New: func() any { return newBatch() }}

// send sends what is queued, until nothing is, or until there are lanes enough
// without it.
func (n *node) send(l *lane) {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for first := true; ; first = false {
		n.yield.Now()
		n.mu.Lock()
		b.calls = b.calls[:0]
		if !l.stuck && (first || n.lanes <= maxLanes) {
			b.calls = n.take(b.calls)
		}
		if len(b.calls) == 0 {
			if !l.stuck {
				n.lanes--
			}
			n.mu.Unlock()
			return
		}
		n.mu.Unlock()
		timeout, before := b.calls[0].timeout, n.circuit.answers.Load()
		watch := time.AfterFunc(timeout, func() {
			n.stick(l)
			n.learn(&TimeoutError{After: timeout}, before)
		})
		n.answer(b)
		watch.Stop()
	}
}

// take moves a part of what is queued into calls: those of the same timeout as
// the first, since a pipeline has one. It is called with mu held.
func (n *node) take(calls []*call) []*call {
	part := max(1, min(maxBatch, (int(n.under.Load())+maxLanes-1)/maxLanes)) // calls given up are not under way
	rest := n.queue[:0]
	for _, c := range n.queue { // in their order
		if len(calls) >= part || len(calls) > 0 && c.timeout != calls[0].timeout {
			rest = append(rest, c)
			continue
		}
		if c.ctx.Err() == nil && c.state.CompareAndSwap(callQueued, callSent) {
			calls = append(calls, c)
		}
	}
	clear(n.queue[len(rest):])
	n.queue = rest
	return calls
}

// answer sends a batch and hands the answers out.
func (n *node) answer(b *batch) {
	defer b.clear()
	joins := n.joins.state.Load() == joinAllowed
	if b.pack(joins) && !joins {
		n.joins.find(n.server)
	}
	ctx, timeout, by := b.context(), b.calls[0].timeout, b.calls[0].by // a call is another's once it is finished
	when := n.Now()
	// What has not been decided is asked again: by the text of its script, each key by itself.
	for left := 3; len(b.sent) > 0; left-- {
		panicked := n.exec(ctx, timeout, by, b)
		done := b.sent
		b.sent, b.spare = b.spare[:0], done
		for _, s := range done {
			err := s.cmd().Err()
			switch {
			case panicked != nil:
				s.finish(when, panicked)
			case left > 1 && s.asks != nil && isNoScript(err):
				b.sent = append(b.sent, s.withSource())
			case left > 1 && len(s.asks) > 1 && didNotRun(err):
				n.joins.state.Store(joinForbidden)
				for i := range s.asks {
					b.send(s.asks[i : i+1])
				}
			default:
				s.finish(when, err)
			}
		}
	}
}

// exec sends the commands of b at once, by a client that gives up in time, if there is one. A hook of the client that panics is an error of
// its calls: on this goroutine nobody would recover.
func (n *node) exec(ctx context.Context, timeout time.Duration, by *redis.Client, b *batch) (panicked error) {
	defer func() {
		if p := recover(); p != nil {
			panicked = fmt.Errorf("redis: a hook panicked: %v", p)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	before := n.circuit.answers.Load()
	if n.held.Load() && !n.poolIsHeld() {
		n.held.Store(false)
	}
	for _, s := range b.sent {
		s.cmd().bind(by)
	}
	if len(b.sent) == 1 && !n.held.Load() { // pipelines have connections of their own
		_ = n.client.Process(ctx, b.sent[0].cmd())
	} else {
		pipe := n.client.Pipeline()
		for _, s := range b.sent {
			_ = pipe.Process(ctx, s.cmd())
		}
		_, _ = pipe.Exec(ctx)
	}
	err := b.sent[0].cmd().Err() // that of a pipeline which got no answer is that of all
	n.learn(err, before)
	if err == nil && !n.routed.Load() {
		n.routed.Store(true)
	}
	return nil
}

// Callers returns the contexts of the calls that a pipeline was made for; nil, if ctx is that of
// one call. A hook that traces can link its span to theirs: the span of a pipeline belongs to
// none of them.
func Callers(ctx context.Context) []context.Context {
	all, _ := ctx.Value(callersKey{}).([]context.Context)
	return all
}

type callersKey struct{}

// context returns the context that b is sent with. One that ends with a caller's request would
// end the others' calls, and cost go-redis a connection.
func (b *batch) context() context.Context {
	if len(b.calls) == 1 {
		return context.WithoutCancel(b.calls[0].ctx)
	}
	all := make([]context.Context, len(b.calls))
	for i, c := range b.calls {
		all[i] = c.ctx
	}
	return context.WithValue(context.Background(), callersKey{}, all)
}
