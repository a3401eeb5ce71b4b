package ratelimit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/untold"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// remote is what the limiters over Redis are made of: one of the algorithms, and
// a limit. It is small, and shares its engine with those that With returns.
type remote struct {
	*engine
	limit    Limit
	origin   Origin // of the limit
	prefix   string // of keys, brace included
	requests any    // the limit's, as scripts take it
	args     arguments
}

// engine is one named limiter.
type engine struct {
	name      string
	algorithm algorithm
	config    Config
	take      *scripts.Script
	many      *scripts.Script // take for many keys
	settle    *scripts.Script
	sender    *roundtrip.Sender
	denials   *denials
	local     *Local // takes over in TakeLocally
	servers   int
	subjects
	*tally

	clock func() int64 // tests only: explicit now
}

func newRemote(a algorithm, client redis.UniversalClient, name string, limit Limit, cfg Config) (remote, error) {
	var noClient error
	if client == nil {
		noClient = errors.New("nil client")
	}
	err := invalid(a.String(), noClient, validateName(name), limit.validate(a.bounds(), 1), cfg.validate(), cfg.ignores("Lease"))
	if err != nil {
		return remote{}, err
	}
	cfg.Rules.include(name, a.bounds().requests)
	cfg = cfg.withDefaults()
	sender := roundtrip.New(client, cfg.Timeout, cfg.Logger)
	e := &engine{
		name: name, algorithm: a, config: cfg,
		take:     scripts.Get("limit/" + a.word() + ".lua"),
		many:     scripts.Get("limit/" + a.word() + "_many.lua"),
		settle:   scripts.Get("limit/" + a.word() + "_settle.lua"),
		sender:   sender,
		denials:  newDenials(cfg.MaxKeys, sender.Since),
		local:    newLocal(a, name, limit, Config{MaxKeys: cfg.MaxKeys, KeySecret: cfg.KeySecret}),
		servers:  cfg.Servers,
		subjects: newSubjects(cfg.KeySecret), tally: &tally{policy: name, own: limit, hook: cfg.OnDecision},
	}
	return e.remote(limit, FromConstructor), nil
}

func (e *engine) remote(limit Limit, origin Origin) remote {
	return remote{
		engine: e, limit: limit, origin: origin,
		prefix:   keyPrefix(e.config, e.algorithm.word(), e.name) + e.algorithm.part(limit) + "{",
		requests: strconv.Itoa(limit.Requests),
		args:     e.algorithm.args(limit.rule()),
	}
}

// with is the With of all kinds.
func (e *engine) with(limit Limit) (remote, error) {
	if err := invalid(e.algorithm.String(), limit.validate(e.algorithm.bounds(), 0)); err != nil {
		return remote{}, err
	}
	return e.remote(limit, FromWith), nil
}

// overRedis is a method of all limiters over Redis, and of no other type.
func (l *remote) overRedis() *remote { return l }

// Name returns the name that the limiter was made with, the Policy of its results.
func (l *remote) Name() string { return l.name }

// Limit returns the limit.
func (l *remote) Limit() Limit { return l.limit }

// Take decides in Redis, in one round trip; or by a denial remembered in process,
// in none. It waits at most [Config.Timeout]. An [ErrUnavailable] wraps its cause.
// The request may have been counted then: it is never sent a second time.
func (l *remote) Take(ctx context.Context, key string, cost int) (Result, error) {
	began := l.begin()
	res, err := l.decide(ctx, key, cost)
	l.end(began, key, cost, &res, err)
	return res, err
}

// checkSpend finds out whether a cost is too much for one call.
func (l *remote) checkSpend(cost int) error {
	if most := l.algorithm.bounds().spend; int64(cost) > most && cost <= l.limit.Requests {
		return fmt.Errorf("%w %d, at most %d in one call", ErrCost, cost, most)
	}
	return nil
}

func (l *remote) decide(ctx context.Context, key string, cost int) (Result, error) {
	if err := checkTake(key, cost); err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	subject := l.subject(key)
	of, rule := l.ruled(subject)
	if of == nil {
		return rule.result(l.limit), nil
	}
	l = of
	if err := l.checkSpend(cost); err != nil {
		return Result{}, err
	}
	told := l.told(ctx, cost)
	known := l.known(subject, cost, told)
	if known.denies {
		return known.res, nil
	}
	asked := l.asks()
	a, err := l.ask(ctx, subject, cost, known.impatient, told)
	if err != nil {
		err = failure(ctx, err)
	}
	l.answered(asked, err)
	if err != nil {
		return Result{}, err
	}
	res := l.result(a.verdict, a.i, cost, a.sent)
	switch {
	case !res.Allowed:
		l.denials.remember(subject, cost, res, a.sent, told)
	case cost > 0:
		res.receipt = l.newReceipt(subject, l.limit.rule(), cost, a.verdict, a.i)
		l.denials.forget(subject)
	}
	return res, nil
}

// told reports whether a Penalty notes a denial.
func (l *remote) told(ctx context.Context, cost int) bool {
	return l.config.Penalty.Strikes > 0 && cost > 0 && !untold.Is(ctx)
}

// known is what is known of a subject without Redis. told is as in denials.recall.
func (l *remote) known(subject string, cost int, told bool) recalled {
	if l.limit.Requests == 0 {
		return recalled{denies: true, res: l.blocked(FromLocal)}
	}
	k := l.denials.recall(subject, l.limit, cost, told)
	k.res.Origin = l.origin // that limit may have been of another one
	return k
}

// answer is Redis's verdict on some requests, of which the caller's is the i-th.
type answer struct {
	verdict verdict
	i       int64
	sent    time.Duration // when it was asked at the earliest, as denials.now
}

// ask has Redis decide about a request, together with others that come at the same time: many of
// one key are decided by one run of its script, as are many keys of one limit. What a Penalty
// knows is asked for one by one.
func (l *remote) ask(ctx context.Context, subject string, cost int, impatient, told bool) (a answer, err error) {
	if l.config.Penalty.Strikes > 0 {
		a.sent = l.denials.now()
		a.verdict, err = l.askWithPenalty(ctx, subject, cost, impatient, told)
		return a, err
	}
	reply, err := l.sender.Ask(ctx, roundtrip.Question{Key: l.redisKey(subject), Terms: l.terms(cost)})
	a.verdict, err = l.verdict(reply, cost, err)
	a.i, a.sent = reply.I, l.denials.at(reply.Sent)
	return a, err
}

// terms are what requests must have in common to be decided together. An argument costs Redis
// about as much as a short command, so that those left out of Short count.
func (l *remote) terms(cost int) roundtrip.Terms {
	b := l.algorithm.bounds()
	t := roundtrip.Terms{
		One: l.take, Args: [5]any{l.requests, l.ttl(), l.args.window, 1, ""}, Short: 3,
		Most: int(max(1, b.spend/max(1, int64(cost)))),
	}
	if l.args.window == "" {
		t.Short = 2
	}
	if cost == 1 {
		t.Many, t.Keys = l.many, min(64, b.touch/l.limit.Requests)
	} else {
		t.Args[3], t.Short = cost, 4
	}
	if l.clock != nil {
		t.Args[4], t.Short = l.clock(), 5
	}
	return t
}

// result makes a Result of Redis's verdict on the i-th of several requests. Its time is not
// kept if Redis's clock is off by more than a second; a late reply is no sign of that.
func (l *remote) result(v verdict, i int64, cost int, sent time.Duration) Result {
	res := v.result(i, demand{cost: int64(cost)}, l.limit, l.name, FromRedis)
	res.Origin, res.Banned = l.origin, v.banned()
	if l.clock == nil {
		behind := time.Since(time.UnixMicro(v.now))
		if behind < -time.Second || behind > time.Second && behind > time.Second+l.denials.now()-sent {
			res.at = 0
		}
	}
	return res
}

// blocked is the denial of a limit of 0.
func (l *remote) blocked(src Source) Result {
	return Result{Policy: l.name, Limit: l.limit, RetryAfter: Never, Source: src, Origin: l.origin}
}

func (e *engine) newReceipt(subject string, r rule, cost int, v verdict, i int64) *receipt {
	return newReceipt(e, e.algorithm, subject, r, cost, v, i)
}

// A script for one key replies with the numbers of a verdict, one for many with what it found.
const verdictLen, foundLen = 7, 4

// verdict returns the one in an answer on requests of a cost, or err.
func (l *remote) verdict(a roundtrip.Answer, cost int, err error) (verdict, error) {
	var numbers numbers
	if err := numbers.read(a.Reply, err); err != nil {
		return verdict{}, err
	}
	if numbers.n == foundLen {
		d := demand{cost: int64(cost), n: a.N, now: numbers.at[0]}
		return l.algorithm.verdict(l.limit.rule(), d, found{numbers.at[1], numbers.at[2], numbers.at[3]}), nil
	}
	return verdictOf(numbers.at[:numbers.n])
}

// unpack returns the verdict in a reply of a script for one key, or err.
func unpack(reply any, err error) (verdict, error) {
	var numbers numbers
	if err := numbers.read(reply, err); err != nil {
		return verdict{}, err
	}
	return verdictOf(numbers.at[:numbers.n])
}

// numbers are those of a reply.
type numbers struct {
	at [verdictLen]int64
	n  int
}

// read reads a reply of a script that decides, a string of doubles or an array; or returns err.
func (n *numbers) read(reply any, err error) error {
	packed, ok := reply.(string)
	if !ok || err != nil {
		integers, err := integers(reply, err)
		if err == nil && len(integers) > len(n.at) {
			err = fmt.Errorf("a reply of %d numbers", len(integers))
		}
		n.n = copy(n.at[:], integers)
		return err
	}
	if len(packed)%8 != 0 || len(packed) > 8*len(n.at) {
		return fmt.Errorf("a reply of %d bytes", len(packed))
	}
	n.n = len(packed) / 8
	for i := range n.n {
		n.at[i] = int64(math.Float64frombits(binary.BigEndian.Uint64([]byte(packed[8*i : 8*i+8]))))
	}
	return nil
}

// integers returns the numbers of a reply that is an array of integers, or err.
func integers(reply any, err error) ([]int64, error) {
	if err != nil {
		return nil, err
	}
	values, ok := reply.([]any)
	if !ok {
		return nil, fmt.Errorf("a reply of type %T", reply)
	}
	numbers := make([]int64, len(values))
	for i, v := range values {
		if numbers[i], ok = v.(int64); !ok {
			return nil, fmt.Errorf("a reply with a %T", v)
		}
	}
	return numbers, nil
}

// verdictOf reads a verdict from the numbers of a reply.
func verdictOf(numbers []int64) (verdict, error) {
	if len(numbers) != verdictLen {
		return verdict{}, fmt.Errorf("a reply of %d numbers", len(numbers))
	}
	return verdict{
		granted: numbers[0], remaining: numbers[1], retry: numbers[2], reset: numbers[3], now: numbers[4],
		mark: numbers[5], part: numbers[6],
	}, nil
}

func (l *remote) redisKey(subject string) string { return l.prefix + subject + "}" }

// recordKey is the key of what a Penalty knows, in the same slot.
func (l *remote) recordKey(subject string) string { return l.redisKey(subject) + ":ban" }

// ttl is the argument for how long what a script writes is kept.
func (l *remote) ttl() any {
	switch {
	case l.args.ends != nil:
		return l.args.ends(l.now())
	case l.args.atLeast && l.clock != nil:
		return strconv.FormatInt(time.Hour.Milliseconds(), 10) // a test's clock may stand still while Redis's goes on
	}
	return l.args.ttl
}

func (e *engine) now() int64 {
	if e.clock != nil {
		return e.clock()
	}
	return time.Now().UnixMicro()
}

// failure is the error of a Take that got no decision.
func failure(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && errors.Is(err, e) {
		return e
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// TakeLocally decides in process, without Redis and without what Redis knows.
func (l *remote) TakeLocally(key string, cost int) (res Result, err error) {
	defer func() { l.count(&res, err) }()
	if err := checkTake(key, cost); err != nil {
		return Result{}, err
	}
	of, rule := l.ruled(l.subject(key))
	if of == nil {
		return rule.result(l.limit), nil
	}
	l = of
	if err := l.checkSpend(cost); err != nil {
		return Result{}, err
	}
	if l.limit.Requests == 0 {
		return l.blocked(FromLocal), nil
	}
	share := l.limit
	share.Requests = max(1, share.Requests/l.servers)
	if cost <= l.limit.Requests {
		// What the limit allows must not be impossible because the share is small.
		cost = min(cost, share.Requests)
	}
	return l.local.take(share, l.origin, key, cost)
}

// Settle changes what the Take of key that returned r has spent to cost: see [Settler].
// A result of TakeLocally is settled in process.
func (l *remote) Settle(ctx context.Context, key string, r Result, cost int) error {
	if key == "" {
		return ErrEmptyKey
	}
	if r.Source == FromRule {
		return checkTake(key, cost) // nothing was counted
	}
	if r.Source == FromLocal {
		return l.local.Settle(ctx, key, r, cost)
	}
	limit := l.limit
	if r.Policy == l.name && r.Limit.Window == limit.Window { // of a Take by another limit, such as a rule's
		limit = r.Limit
	}
	subject := l.subject(key)
	s, err := r.settlement(l.engine, subject, limit, cost)
	if err != nil || s.delta == 0 {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	of := l.under(s.rule) // the limit that it was taken under
	redisKey := of.redisKey(subject)
	most := l.algorithm.bounds().spend
	for left := s.delta; left != 0 && err == nil; {
		delta := max(-most, min(left, most))
		left -= delta
		args := []any{s.rule.requests, of.ttl(), delta, s.mark, s.part, s.rule.window}
		if l.clock != nil {
			args = append(args, l.clock())
		}
		_, err = l.sender.Run(ctx, l.settle, []string{redisKey}, args...)
		if err != nil && undone(err) && left == s.delta-delta {
			s.settled.Store(false) // the next attempt counts
		}
	}
	l.denials.forget(subject)
	if err != nil {
		return failure(ctx, err)
	}
	return nil
}

// undone reports whether an error means that a command has changed nothing: Redis was not
// asked, or refused.
func undone(err error) bool {
	var answer redis.Error
	var timeout *roundtrip.TimeoutError
	var network *net.OpError
	return errors.Is(err, roundtrip.ErrNotAsked) ||
		errors.As(err, &answer) ||
		errors.As(err, &timeout) && timeout.Unsent ||
		errors.As(err, &network) && network.Op == "dial"
}

// under is with for a limit that has been in use.
func (l *remote) under(r rule) *remote {
	limit := Limit{int(r.requests), time.Duration(r.window) * time.Microsecond}
	if limit == l.limit {
		return l
	}
	of := l.remote(limit, l.origin)
	return &of
}

// Refund is Settle with a cost of 0.
func (l *remote) Refund(ctx context.Context, key string, r Result) error {
	return l.Settle(ctx, key, r, 0)
}

var resetScript = scripts.Get("limit/reset.lua")

// Reset frees key and lifts its ban: here at once, on servers that remember a denial of it
// within a second.
func (l *remote) Reset(ctx context.Context, key string) error {
	if key == "" {
		return ErrEmptyKey
	}
	subject := l.subject(key)
	if err := l.local.Reset(ctx, key); err != nil {
		return err
	}
	keys := []string{l.redisKey(subject)}
	if l.config.Penalty.Strikes > 0 {
		keys = append(keys, l.recordKey(subject))
	}
	_, err := l.sender.Run(ctx, resetScript, keys)
	l.denials.forget(subject)
	if err != nil {
		return failure(ctx, err)
	}
	return nil
}
