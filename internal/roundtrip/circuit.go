package roundtrip

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// ErrNotAsked is returned while a server that did not answer is not asked.
var ErrNotAsked = errors.New("redis: not asked, since it did not answer a moment ago")

// Period is for how long a server that did not answer is not asked.
const Period = time.Second

// circuit keeps callers from waiting for a server that does not answer. A call that got no answer
// while nobody else did opens it, and so do two broken connections in a row: one may be no more
// than that. While it is open, calls are refused, and the client's connections are tested; any
// answer closes it. After Period one call may try.
//
// An error that Redis answers with (OOM, READONLY, LOADING, WRONGTYPE, CLUSTERDOWN) is an answer:
// it made no caller wait, and may concern one key or one slot only. Two failures do not count: a
// caller that gave up, and a call that got no connection because others hold all of the pool.
type circuit struct {
	answers atomic.Uint64 // how often the server has answered
	cuts    atomic.Int32  // connections broken since
	open    atomic.Bool

	mu     sync.Mutex
	until  time.Time // calls are refused until here
	trying bool      // one may try, and does
}

// permit is the right to make a call.
type permit struct{ of *circuit }

// end gives a permit back, whatever came of its call.
func (p permit) end() {
	if p.of != nil {
		p.of.mu.Lock()
		p.of.trying = false
		p.of.mu.Unlock()
	}
}

// allow returns the permit for a call, or ErrNotAsked.
func (c *circuit) allow(persistent bool) (permit, error) {
	if persistent || !c.open.Load() {
		return permit{}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open.Load() {
		return permit{}, nil
	}
	if c.trying || time.Now().Before(c.until) {
		return permit{}, ErrNotAsked
	}
	c.trying = true
	return permit{c}, nil
}

// silent reports whether calls are refused. Of a server that nobody has asked for a minute, as when
// it has left the cluster, that is not known.
func (c *circuit) silent() bool {
	if !c.open.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open.Load() && time.Since(c.until) < time.Minute
}

// answered notes an answer and reports whether it closes the circuit.
func (c *circuit) answered() (closed bool) {
	c.answers.Add(1)
	if c.cuts.Load() != 0 {
		c.cuts.Store(0)
	}
	return c.open.Load() && c.open.CompareAndSwap(true, false)
}

// fail refuses calls for a Period. It reports whether it has begun one, and whether that is the
// first.
func (c *circuit) fail() (begun, first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.open.Load() && now.Before(c.until) {
		return false, false
	}
	c.until = now.Add(Period)
	return true, !c.open.Swap(true)
}

// learn notes the outcome of a call, before which the server had answered a number of times.
func (n *node) learn(err error, before uint64) {
	var answer redis.Error
	var network *net.OpError
	switch {
	case err == nil || errors.As(err, &answer):
		if n.circuit.answered() {
			n.log(false)
		}
		return
	case errors.Is(err, context.Canceled), errors.Is(err, redis.ErrClosed), errors.Is(err, redis.ErrPoolTimeout),
		errors.Is(err, redis.ErrPoolExhausted), unsent(err) && n.poolIsHeld():
		return
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		if n.circuit.answers.Load() != before {
			return
		}
	case errors.As(err, &network) && network.Op == "dial":
	default:
		if n.circuit.cuts.Add(1) < 2 {
			return
		}
	}
	begun, first := n.circuit.fail()
	if first {
		n.log(true)
	}
	if begun {
		go n.testConnections()
	}
}

// unsent reports whether a call ended before it had a connection.
func unsent(err error) bool {
	var timeout *TimeoutError
	return err == context.DeadlineExceeded || errors.As(err, &timeout) && timeout.Unsent
}

// poolIsHeld reports whether all connections are in use, which is not the server's silence.
func (n *node) poolIsHeld() bool {
	if n.server == nil {
		return false
	}
	stats := n.server.PoolStats()
	return stats.IdleConns == 0 && int(stats.TotalConns) >= n.server.Options().PoolSize
}

// testConnections asks on each idle connection whether the server is there, and on a new one.
// Those that lead nowhere any more, because a load balancer has forgotten them, say, are closed
// by the client: a call would have to find that out for each of them, one Period after the other.
func (n *node) testConnections() {
	if n.server == nil {
		return
	}
	const timeout = Period / 2
	bounded := n.server.WithTimeout(timeout) // has no hooks
	ctx, cancel := context.WithTimeout(context.Background(), 3*timeout)
	defer cancel()
	stats := n.server.PoolStats()
	var wg sync.WaitGroup
	ping := func(times uint32, send func() error) {
		for range times {
			wg.Go(func() {
				if send() == nil && n.circuit.answered() {
					n.log(false)
				}
			})
		}
	}
	ping(stats.IdleConns+1, func() error { return bounded.Ping(ctx).Err() })
	if stats.PipelineStats != nil {
		ping(stats.PipelineStats.IdleConns, func() error {
			_, err := bounded.Pipelined(ctx, func(p redis.Pipeliner) error { return p.Ping(ctx).Err() })
			return err
		})
	}
	wg.Wait()
}

func (n *node) log(silent bool) {
	logger := n.logger.Load()
	if logger == nil {
		logger = slog.Default()
	}
	var attrs []any
	if n.addr != "" {
		attrs = append(attrs, "node", n.addr)
	}
	if silent {
		logger.Warn("redis: no answer, calls are refused", append(attrs, "retry_after", Period)...)
	} else {
		logger.Info("redis: answers again", attrs...)
	}
}
