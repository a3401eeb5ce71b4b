package ratelimit

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// TokenBucket holds up to Limit.Requests permits and is refilled evenly, one every
// Limit.Window/Limit.Requests, by the generic cell rate algorithm. A burst of the
// whole limit may pass at once, and what is refilled meanwhile after it: up to
// twice the limit in one window, never more. It takes one number per key. Nothing
// is rounded: after any number of requests, the rate is exact.
//
// If the clock of Redis steps back, nobody is locked out for longer than one
// window. The zero value is not usable; see [NewTokenBucket].
type TokenBucket struct{ remote }

var (
	_ Limiter    = (*TokenBucket)(nil)
	_ LocalTaker = (*TokenBucket)(nil)
	_ Settler    = (*TokenBucket)(nil)
	_ Resetter   = (*TokenBucket)(nil)
	_ Named      = (*TokenBucket)(nil)

	_ Adjustable[*TokenBucket] = (*TokenBucket)(nil)
)

// NewTokenBucket returns a limiter over Redis. Limiters of one name and prefix
// share their keys; name is also the Policy of the results. The limit may have at most 2²⁶
// requests. The error names everything that is wrong.
func NewTokenBucket(client redis.UniversalClient, name string, limit Limit, cfg Config) (*TokenBucket, error) {
	r, err := newRemote(tokenBucket{}, client, name, limit, cfg)
	if err != nil {
		return nil, err
	}
	return &TokenBucket{r}, nil
}

// With returns a limiter of the same name and keys, but another limit: the plan of
// a customer, a changed configuration. The bucket keeps the time in which it would
// have been full again, at most the new window, and is refilled at the new rate at
// once: half full under one limit is half full under another of the same window. A limit
// of 0 requests denies everything.
func (l *TokenBucket) With(limit Limit) (*TokenBucket, error) {
	r, err := l.with(limit)
	if err != nil {
		return nil, err
	}
	return &TokenBucket{r}, nil
}

type tokenBucket struct{}

func (tokenBucket) word() string      { return "bucket" }
func (tokenBucket) String() string    { return "token bucket" }
func (tokenBucket) part(Limit) string { return "" }
func (tokenBucket) newState() state   { return new(bucketState) }

// The square of the requests must be an integer that Lua's numbers hold.
func (tokenBucket) bounds() bounds {
	return bounds{requests: 1 << 26, spend: 1 << 26, touch: math.MaxInt}
}

func (tokenBucket) verdict(r rule, d demand, f found) verdict {
	return (&bucketState{whole: f.a, part: f.b, lent: true}).decide(r, d)
}

func (tokenBucket) args(r rule) arguments {
	return arguments{
		ttl:     strconv.FormatInt(r.window/1000+bucketSlack, 10),
		window:  strconv.FormatInt(r.window, 10),
		atLeast: true,
	}
}

// bucketSlack is how many milliseconds longer than a window a token bucket is kept at
// first: ten seconds, see the comment at SET in bucket.lua, and what is lost to whole
// milliseconds.
const bucketSlack = 10_000 + 2

// The mark is the level after the i-th request.
func (tokenBucket) mark(rc *receipt, v verdict, i int64) {
	rc.mark, rc.part = rc.rule.without(v.mark, v.part, (v.granted-1-i)*rc.cost)
}

var bucketWait = scripts.Get("limit/bucket_wait.lua")

// reserve takes permits that are there within patience. RetryAfter of its Result says when
// they are, also if it is allowed.
func (l *remote) reserve(ctx context.Context, key string, cost int, patience time.Duration) (Result, error) {
	if err := l.checkSpend(cost); err != nil {
		return Result{}, err
	}
	subject := l.subject(key)
	r := l.limit.rule()
	patience = min(patience, l.limit.Window)
	args := []any{l.requests, strconv.FormatInt(2*r.window/1000+bucketSlack, 10), l.args.window, cost, patience.Microseconds()}
	if l.clock != nil {
		args = append(args, l.clock())
	}
	sent := l.denials.now()
	v, err := unpack(l.sender.Run(ctx, bucketWait, []string{l.redisKey(subject)}, args...))
	if err != nil {
		return Result{}, failure(ctx, err)
	}
	res := l.result(v, 0, cost, sent)
	if res.Allowed {
		res.RetryAfter = time.Duration(v.retry) * time.Microsecond
		res.receipt = l.newReceipt(subject, r, cost, v, 0)
	}
	return res, nil
}

// bucketState is the time at which the bucket is full again, whole+part/requests µs. That is
// at most a window ahead, or two where permits have been lent to those who wait.
type bucketState struct {
	whole, part int64
	lent        bool
}

// set sets the level, of a bucket that is empty at edge.
func (s *bucketState) set(whole, part, edge int64) {
	*s = bucketState{whole, part, whole > edge || whole == edge && part > 0}
}

func (s *bucketState) decide(r rule, d demand) verdict {
	return s.decideFor(r, d, 0)
}

// decideFor is decide for one who waits up to patience, in µs: then retry is for how long.
func (s *bucketState) decideFor(r rule, d demand, patience int64) verdict {
	edge := d.now + r.window
	whole, part := s.level(r, d.now)
	if (whole > edge || whole == edge && part > 0) && (!s.lent || whole-edge > r.window) {
		whole, part = edge, 0
		s.set(whole, part, edge)
	}
	after := func(permits int64) (int64, int64) {
		by, byPart := r.spread(permits)
		p := part + byPart
		return whole + by + p/r.requests, p % r.requests
	}
	// The most permits for which whole+part/requests + permits*window/requests ≤ edge.
	left := bucketLeft(r, edge+min(patience, r.window)-whole, part)
	v := verdict{granted: d.grant(left), now: d.now}
	if spent := v.granted * d.cost; spent > 0 {
		whole, part = after(spent)
		s.set(whole, part, edge)
		left -= spent
	}
	if v.granted == d.n && patience > 0 {
		v.retry = max(0, whole+ceilDiv(part, r.requests)-edge)
	}
	if v.granted < d.n {
		w, p := after(d.unit())
		v.retry = w + ceilDiv(p, r.requests) - edge
		if d.unit() > r.requests {
			v.retry = -1
		}
	}
	v.reset = whole + ceilDiv(part, r.requests) - d.now
	v.remaining = left
	v.mark, v.part = whole, part
	return v
}

// level is the time at which the bucket is full again, now if that is later.
func (s *bucketState) level(r rule, now int64) (whole, part int64) {
	whole, part = s.whole, s.part
	if part >= r.requests { // left by another limit
		whole, part = whole+1, 0
	}
	if whole < now {
		return now, 0
	}
	return whole, part
}

// spread is the time in which a bucket is refilled with permits.
func (r rule) spread(permits int64) (whole, part int64) {
	part = permits * (r.window % r.requests)
	return permits*(r.window/r.requests) + part/r.requests, part % r.requests
}

// without is the level whole+part/requests before permits were spent.
func (r rule) without(whole, part, permits int64) (int64, int64) {
	by, byPart := r.spread(permits)
	whole, part = whole-by, part-byPart
	if part < 0 {
		whole, part = whole-1, part+r.requests
	}
	return whole, part
}

func (s *bucketState) settle(r rule, rc *receipt, delta, now int64) {
	whole, part := s.level(r, now)
	edge := now + r.window
	if delta > 0 {
		if whole >= edge {
			return
		}
		by, byPart := r.spread(delta)
		part += byPart
		whole, part = whole+by+part/r.requests, part%r.requests
		if whole >= edge {
			whole, part = edge, 0
		}
	} else {
		// What the bucket has been refilled with since is not given back again.
		by, byPart := r.spread(-delta)
		if rest := rc.mark - now; rest < by || rest == by && rc.part < byPart {
			by, byPart = rest, rc.part
		}
		if by < 0 {
			return
		}
		whole, part = whole-by, part-byPart
		if part < 0 {
			whole, part = whole-1, part+r.requests
		}
		if whole < now {
			whole, part = now, 0
		}
	}
	s.set(whole, part, edge)
}

// bucketLeft is the greatest m with part/requests + m*window/requests ≤ room.
func bucketLeft(r rule, room, part int64) int64 {
	// room*requests may exceed 63 bits. The quotient of floats is off by less than 1.
	m := max(0, int64(float64(room)*float64(r.requests)/float64(r.window))+1)
	for m > 0 && m*(r.window/r.requests)+ceilDiv(part+m*(r.window%r.requests), r.requests) > room {
		m--
	}
	return m
}
