// Package roundtrip is how a command gets to Redis and back, for the packages above it. It bounds
// every call by a deadline, sends calls that happen at the same time together, stops asking a
// server that does not answer, and never sends a command twice that may have run.
//
// The path of a call: Sender.Run, Ask, HGet or HMGetTwo makes it; Sender.do has its caller send it, or
// queues it (node.go) for a lane, which sends pipelines (lanes.go); a batch makes one script of
// many questions (batch.go). The circuit of the node learns from each outcome (circuit.go).
//
// go-redis has an automatic pipeline of its own. It is not used here because its commands ignore
// the context once they are queued: commands queued during an outage would still run after it.
package roundtrip

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

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
//
// An error of a method is that of a context that is done, a [TimeoutError], [ErrNotAsked], or
// what go-redis reports.
type Sender struct {
	*shared
	timeout time.Duration
	wait    time.Duration // for one reply: timeout, or the client's own if that is shorter

	// bounded is the client, made to give up reading and writing after wait; nil if
	// it cannot be. With it, a caller may wait for a command itself.
	bounded *redis.Client

	persistent bool
}

// Persistent returns a Sender that also asks a server that did not answer a moment ago.
func (s *Sender) Persistent() *Sender {
	p := *s
	p.persistent = true
	return &p
}

// Run runs a script over keys, which must be of one slot, and returns its reply as go-redis reads
// it: an int64, a string, or a []any of them.
func (s *Sender) Run(ctx context.Context, script *scripts.Script, keys []string, args ...any) (any, error) {
	defer s.forget(keys)
	c := s.newCall(ctx)
	defer c.release()
	cmd := evalsha(ctx, script, keys, args)
	c.cmd = cmd
	began := time.Now()
	err := s.do(c, keys[0])
	if isNoScript(err) {
		// The one answer after which a script may be sent again: it did not run. The command
		// may not be reused.
		again := s.newCall(ctx)
		defer again.release()
		again.timeout = max(0, s.timeout-time.Since(began)) // of both together
		cmd = cmd.withSource(ctx, script)
		again.cmd = cmd
		err = s.do(again, keys[0])
	}
	if err != nil {
		return nil, err
	}
	return cmd.Val(), nil
}

// Ask has a question answered, together with others that are asked at the same time.
func (s *Sender) Ask(ctx context.Context, q Question) (Answer, error) {
	c := s.newCall(ctx)
	defer c.release()
	c.question = q
	if err := s.do(c, q.Key); err != nil {
		return Answer{}, err
	}
	return c.answer, nil
}

// HGet returns a field of the hash at key, or redis.Nil. The bytes are not to be changed.
func (s *Sender) HGet(ctx context.Context, key, field string) ([]byte, error) {
	cmd := &hget{StringCmd: *redis.NewStringCmd(ctx, "hget", key, field)}
	if s.cached && !s.written.take(key) {
		// A pipeline would pass the cache by.
		return s.hgetCached(ctx, key, cmd)
	}
	c := s.newCall(ctx)
	defer c.release()
	c.cmd = cmd
	if err := s.do(c, key); err != nil {
		return nil, err
	}
	return cmd.Bytes()
}

// Fields names fields of the hash at Key.
type Fields struct {
	Key   string
	Names []string
}

// HMGetTwo returns fields of two hashes, whose keys are of one slot; nil for those that are not
// there, else strings. It is one round trip, but not one moment, and neither is read before the
// other.
func (s *Sender) HMGetTwo(ctx context.Context, a, b Fields) (ofA, ofB []any, err error) {
	first, second := newHMGet(ctx, a), newHMGet(ctx, b)
	c := s.newCall(ctx)
	defer c.release()
	c.first, c.cmd = first, second
	if err := s.do(c, b.Key); err != nil {
		return nil, nil, err
	}
	if err := first.Err(); err != nil {
		return nil, nil, unquoted(err)
	}
	return first.Val(), second.Val(), nil
}
