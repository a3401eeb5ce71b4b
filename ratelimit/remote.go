package ratelimit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// remote is what the limiters over Redis are made of: one of the algorithms, and
// a limit. It is small, and shares its engine with those that With returns.
type remote struct {
	*engine
	limit Limit
	// Arguments of the scripts, made once.
	requests, window any
}

// engine is one named limiter.
type engine struct {
	name      string
	algorithm algorithm
	script    *scripts.Script
	prefix    string // of keys, brace included
	timeout   time.Duration
	sender    *roundtrip.Sender
	breaker   *Breaker
	joiner    *joiner
	denials   *denials
	local     *Local // takes over in TakeLocally
	servers   int
	penalty   []any // arguments of the script with bans; nil: no bans
	onDecision
	// widest is the widest window in µs that a limit of this engine has had. A key
	// of the sliding window lives by it: limits of several windows may share it.
	widest atomic.Int64

	clock func() int64 // tests only: explicit now
}

func newRemote(a algorithm, script *scripts.Script, client redis.UniversalClient, name string, limit Limit, cfg Config) (remote, error) {
	var noClient error
	if client == nil {
		noClient = errors.New("nil client")
	}
	err := invalid(a.String(), noClient, validateName(name), limit.validate(a.maxRequests()), cfg.validate())
	if err != nil {
		return remote{}, err
	}
	cfg = cfg.withDefaults()
	e := &engine{
		name: name, algorithm: a, script: script,
		prefix:  cfg.Prefix + "rl:" + name + ":{",
		timeout: cfg.Timeout,
		sender:  roundtrip.New(client, cfg.Timeout),
		breaker: cfg.Breaker,
		joiner:  newJoiner(),
		denials: newDenials(cfg.MaxKeys),
		local:   newLocal(a, name, limit, Config{MaxKeys: cfg.MaxKeys}),
		servers: cfg.Servers, onDecision: cfg.OnDecision,
	}
	if e.penalty = cfg.Penalty.args(); e.penalty != nil {
		e.script = a.penaltyScript()
	}
	if e.breaker == nil {
		e.breaker = newBreaker(name, cfg.Logger)
	}
	return e.with(limit), nil
}

// maxRequests bounds a limit. An entry of a sliding window takes about 120 bytes,
// and Redis serves nobody else while a script adds them.
func (a algorithm) maxRequests() int {
	if a == sliding {
		return 1_000_000
	}
	return MaxRequests
}

func (e *engine) with(limit Limit) remote {
	for us := limit.Window.Microseconds(); ; {
		old := e.widest.Load()
		if us <= old || e.widest.CompareAndSwap(old, us) {
			break
		}
	}
	return remote{
		engine: e, limit: limit,
		requests: strconv.Itoa(limit.Requests),
		window:   strconv.FormatInt(limit.Window.Microseconds(), 10),
	}
}

// Name returns the name that the limiter was made with, the Policy of its results.
func (l *remote) Name() string { return l.name }

// Limit returns the limit.
func (l *remote) Limit() Limit { return l.limit }

// Take decides in Redis, in one round trip; or by a denial remembered in process,
// in none. It waits at most [Config.Timeout]. An [ErrUnavailable] wraps its cause.
// The request may have been counted then: it is never sent a second time.
func (l *remote) Take(ctx context.Context, key string, cost int) (res Result, err error) {
	if l.onDecision == nil {
		err = l.take(ctx, key, cost, &res)
		return res, err
	}
	started := l.onDecision.start()
	err = l.take(ctx, key, cost, &res)
	l.onDecision.end(started, key, cost, res, err)
	return res, err
}

// take is Take. It fills res, which is large, in place.
func (l *remote) take(ctx context.Context, key string, cost int, res *Result) error {
	if err := checkTake(key, cost); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	subject := escapeSubject(key)
	if l.denials.recall(subject, l.limit, cost, res) {
		return nil
	}
	k := flightKey{subject, cost, l.limit.rule()}
	out := l.joiner.do(ctx, l.timeout, k, l)
	if out.err != nil {
		return failure(ctx, out.err)
	}
	*res = out.verdict.result(out.i, demand{cost: int64(cost)}, l.limit, l.name, FromRedis)
	switch {
	case !res.Allowed:
		l.denials.remember(subject, cost, *res, out.sent)
	case cost > 0:
		res.receipt = newReceipt(l.engine, l.algorithm, subject, k.rule, int64(cost), out.verdict, out.i)
		l.denials.forget(subject)
	}
	return nil
}

// call runs the script. Its rule is that of l.
func (l *remote) call(ctx context.Context, k flightKey, n int64) (v verdict, sent time.Duration, err error) {
	sent = l.denials.now()
	err = l.breaker.ask(ctx, func() (err error) {
		v, err = l.decide(ctx, k, n)
		return err
	})
	return v, sent, err
}

// decide is call without the breaker.
func (l *remote) decide(ctx context.Context, k flightKey, n int64) (verdict, error) {
	key, ttl := l.redisKey(k.key), l.ttl(k.rule)
	if l.penalty != nil {
		args := append([]any{l.requests, ttl, l.window, k.cost, n}, l.penalty...)
		if l.clock != nil {
			args = append(args, l.clock())
		}
		reply, err := l.sender.IntsOver(ctx, l.script, []string{key, l.recordKey(k.key)}, args...)
		if err != nil {
			return verdict{}, err
		}
		return verdictOf(reply)
	}
	var reply any
	var err error
	// An argument costs Redis about as much as a short command.
	switch {
	case l.clock != nil:
		reply, err = l.sender.Reply(ctx, l.script, key, l.requests, ttl, l.window, k.cost, n, l.clock())
	case k.cost != 1 || n != 1:
		reply, err = l.sender.Reply(ctx, l.script, key, l.requests, ttl, l.window, k.cost, n)
	case l.algorithm == fixed:
		reply, err = l.sender.Reply(ctx, l.script, key, l.requests, ttl)
	default:
		reply, err = l.sender.Reply(ctx, l.script, key, l.requests, ttl, l.window)
	}
	if err != nil {
		return verdict{}, err
	}
	return unpack(reply)
}

// verdictLen is how many numbers a script tells a verdict by.
const verdictLen = 7

// unpack returns the verdict in a reply of limit_take.lua.
func unpack(reply any) (verdict, error) {
	var numbers [verdictLen]int64
	switch reply := reply.(type) {
	case string:
		if len(reply) != 8*verdictLen {
			return verdict{}, fmt.Errorf("a reply of %d bytes", len(reply))
		}
		for i := range numbers {
			numbers[i] = int64(math.Float64frombits(binary.BigEndian.Uint64([]byte(reply[8*i : 8*i+8]))))
		}
	case []any:
		if len(reply) != verdictLen {
			return verdict{}, fmt.Errorf("a reply of %d values", len(reply))
		}
		for i := range numbers {
			numbers[i], _ = reply[i].(int64)
		}
	default:
		return verdict{}, fmt.Errorf("a reply of type %T", reply)
	}
	return verdictOf(numbers[:])
}

// verdictOf is the verdict that numbers tell.
func verdictOf(numbers []int64) (verdict, error) {
	if len(numbers) != verdictLen {
		return verdict{}, fmt.Errorf("a reply of %d numbers", len(numbers))
	}
	return verdict{
		granted: numbers[0], remaining: numbers[1], retry: numbers[2], reset: numbers[3], now: numbers[4],
		mark: numbers[5], part: numbers[6],
	}, nil
}

func (e *engine) redisKey(subject string) string { return e.prefix + subject + "}" }

// recordKey is the key of what a Penalty knows, in the same slot.
func (e *engine) recordKey(subject string) string { return e.prefix + subject + "}:ban" }

// ttl is for how many milliseconds what a script writes is kept.
func (e *engine) ttl(r rule) int64 {
	switch {
	case e.algorithm == fixed:
		return fixedTTL(r.window)
	case e.clock != nil:
		// The clock of a test may stand still while Redis's goes on.
		return time.Hour.Milliseconds()
	case e.algorithm == sliding:
		return 2*e.widest.Load()/1000 + 1
	default:
		return r.window/1000 + bucketSlack
	}
}

// bucketSlack is how many milliseconds longer than a window a token bucket is kept at
// first: ten seconds, see limit_fill.lua, and what is lost to whole milliseconds.
const bucketSlack = 10_000 + 2

// failure is the error of a Take that got no decision.
func failure(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && errors.Is(err, e) {
		return e
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// TakeLocally decides in process, without Redis and without what Redis knows.
func (l *remote) TakeLocally(key string, cost int) (Result, error) {
	share := l.limit
	share.Requests = max(1, share.Requests/l.servers)
	if cost <= l.limit.Requests {
		// What the limit allows must not be impossible because the share is small.
		cost = min(cost, share.Requests)
	}
	return l.local.take(share, key, cost)
}

// Reset frees key: here at once, on servers that remember a denial of it within
// a second.
func (l *remote) Reset(ctx context.Context, key string) error {
	if key == "" {
		return ErrEmptyKey
	}
	subject := escapeSubject(key)
	if err := l.local.Reset(ctx, key); err != nil {
		return err
	}
	keys := []string{l.redisKey(subject)}
	if l.penalty != nil {
		keys = append(keys, l.recordKey(subject))
	}
	err := l.breaker.ask(ctx, func() error {
		_, err := l.sender.IntsOver(ctx, scripts.LimitReset, keys)
		return err
	})
	l.denials.forget(subject)
	if err != nil {
		return failure(ctx, err)
	}
	return nil
}
