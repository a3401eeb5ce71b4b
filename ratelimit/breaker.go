package ratelimit

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// breakerPeriod is for how long a Redis that did not answer is not asked.
const breakerPeriod = time.Second

// Breaker keeps limiters from waiting for a Redis that does not answer. The first
// call without an answer opens it: calls are refused at once for one second, then
// one of them is let through to try. Each node of a cluster, and each shard of a ring, is
// judged by itself. It has no use of its own: see [Config.Breaker]. A Breaker must be made
// by [NewBreaker].
//
// Only silence counts: a timeout, a broken or refused connection. An error that
// Redis answers with (OOM, READONLY, LOADING, WRONGTYPE, CLUSTERDOWN) made no caller
// wait, and may concern one key or one slot only. A caller that gave up does not
// count either.
type Breaker struct {
	*circuit          // of a single server, and of a cluster whose slots are not known yet
	nodes    sync.Map // the circuits of the others, by address
	name     string
	logger   *slog.Logger
}

// circuit is the Breaker of one node.
type circuit struct {
	steps *gobreaker.TwoStepCircuitBreaker[struct{}]
	// open spares the common case gobreaker's lock. While the circuit is closed,
	// only failures concern it.
	open atomic.Bool
}

// NewBreaker returns a Breaker that logs to logger, if that is not nil, when it
// opens and when it closes again.
func NewBreaker(logger *slog.Logger) *Breaker { return newBreaker("", logger) }

func newBreaker(name string, logger *slog.Logger) *Breaker {
	return &Breaker{circuit: newCircuit(name, "", logger), name: name, logger: logger}
}

// askFor is ask of the circuit of the node that has key.
func (b *Breaker) askFor(ctx context.Context, s *roundtrip.Sender, key string, f func() error) error {
	return b.at(s.Node(ctx, key)).ask(ctx, f)
}

// at returns the circuit of a node, by what [roundtrip.Sender.Node] calls it.
func (b *Breaker) at(node string) *circuit {
	if node == "" {
		return b.circuit
	}
	c, ok := b.nodes.Load(node)
	if !ok {
		c, _ = b.nodes.LoadOrStore(node, newCircuit(b.name, node, b.logger))
	}
	return c.(*circuit)
}

func newCircuit(name, node string, logger *slog.Logger) *circuit {
	b := new(circuit)
	b.steps = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		Name:         name,
		Timeout:      breakerPeriod,
		ReadyToTrip:  func(gobreaker.Counts) bool { return true },
		IsSuccessful: func(err error) bool { return !unanswered(err) },
		IsExcluded:   func(err error) bool { return errors.Is(err, errGaveUp) },
		OnStateChange: func(name string, from, to gobreaker.State) {
			b.open.Store(to != gobreaker.StateClosed)
			if logger == nil {
				return
			}
			attrs := []any{"retry_after", breakerPeriod}
			if name != "" {
				attrs = append(attrs, "limiter", name)
			}
			if node != "" {
				attrs = append(attrs, "node", node)
			}
			switch {
			case from == gobreaker.StateClosed:
				logger.Warn("ratelimit: Redis does not answer, limits are not decided there", attrs...)
			case to == gobreaker.StateClosed:
				logger.Info("ratelimit: Redis answers again", attrs[2:]...)
			}
		},
	})
	return b
}

// errGaveUp stands for the outcome of a call whose caller gave up.
var errGaveUp = errors.New("the caller gave up")

// ask calls f if Redis may be asked, and records the outcome. A panic in a hook of the
// client says nothing about Redis and does not count.
func (b *circuit) ask(ctx context.Context, f func() error) (err error) {
	permission, err := b.allow()
	if err != nil {
		return err
	}
	err = errGaveUp
	defer func() { b.done(permission, ctx, err) }()
	err = f()
	return err
}

// allow reports whether Redis may be asked. The outcome of an allowed call must
// be given to done, with the permission that allow returned.
func (b *circuit) allow() (permission func(error), err error) {
	if !b.open.Load() {
		return nil, nil
	}
	return b.steps.Allow()
}

func (b *circuit) done(permission func(error), ctx context.Context, err error) {
	if err != nil && ctx.Err() != nil && context.Cause(ctx) != errSilence {
		err = errGaveUp
	}
	switch {
	case permission != nil:
		permission(err)
	case unanswered(err):
		if report, e := b.steps.Allow(); e == nil {
			report(err)
		}
	}
}

// unanswered reports whether err means that Redis did not answer at all.
func unanswered(err error) bool {
	var answer redis.Error
	return err != nil && !errors.Is(err, errGaveUp) && !errors.As(err, &answer)
}
