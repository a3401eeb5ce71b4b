package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// Keyed returns a limiter that gives l another key than it was given, say one part
// of a joined one:
//
//	perRoute = Keyed(perRoute, func(key string) string { return SplitKey(key)[1] })
//
// It settles, resets and takes locally if l does: see [Settles]. Of a nil limiter or function it is an
// error of [All], and of whatever in package middleware it is mounted in.
func Keyed(l Limiter, key func(string) string) Limiter { return &keyed{l, key} }

type keyed struct {
	limiter Limiter
	key     func(string) string
}

// Validate returns what is wrong with k, or nil.
func (k *keyed) Validate() error {
	switch {
	case isNil(k.limiter):
		return errors.New("ratelimit: Keyed: limiter is nil")
	case k.key == nil:
		return errors.New("ratelimit: Keyed: key is nil")
	}
	if below, ok := k.limiter.(*keyed); ok {
		return below.Validate()
	}
	return nil
}

// isNil reports whether l is nil, or holds a nil pointer, as where the error of a constructor was not
// looked at.
func isNil(l Limiter) bool {
	v := reflect.ValueOf(l)
	return l == nil || v.Kind() == reflect.Pointer && v.IsNil()
}

var (
	_ LocalTaker = (*keyed)(nil)
	_ Settler    = (*keyed)(nil)
	_ Resetter   = (*keyed)(nil)
)

func (k *keyed) Take(ctx context.Context, key string, cost int) (Result, error) {
	return k.limiter.Take(ctx, k.key(key), cost)
}

// Name returns that of the limiter below it.
func (k *keyed) Name() string { return nameOf(k) }

func (k *keyed) TakeLocally(key string, cost int) (Result, error) {
	return takeLocally(k.limiter, k.key(key), cost)
}

func (k *keyed) Settle(ctx context.Context, key string, r Result, cost int) error {
	return settle(ctx, k.limiter, k.key(key), r, cost)
}

func (k *keyed) Refund(ctx context.Context, key string, r Result) error {
	return k.Settle(ctx, key, r, 0)
}

func (k *keyed) Reset(ctx context.Context, key string) error {
	return reset(ctx, k.limiter, k.key(key))
}

func takeLocally(l Limiter, key string, cost int) (Result, error) {
	if l, ok := l.(LocalTaker); ok {
		return l.TakeLocally(key, cost)
	}
	return Result{}, fmt.Errorf("%w: %T does not decide locally", ErrUnavailable, l)
}

func settle(ctx context.Context, l Limiter, key string, r Result, cost int) error {
	if l, ok := l.(Settler); ok {
		return l.Settle(ctx, key, r, cost)
	}
	return fmt.Errorf("ratelimit: %T does not settle", l)
}

func reset(ctx context.Context, l Limiter, key string) error {
	if l, ok := l.(Resetter); ok {
		return l.Reset(ctx, key)
	}
	return fmt.Errorf("ratelimit: %T does not reset", l)
}

// Settles reports whether l is a [Settler] that can settle. What [Keyed] and [All] return is always
// a Settler by its methods, and settles only if all limiters below it do.
func Settles(l Limiter) bool {
	switch l := l.(type) {
	case *keyed:
		return Settles(l.limiter)
	case *allOf:
		for _, l := range l.limiters {
			if !Settles(l) {
				return false
			}
		}
	}
	_, ok := l.(Settler)
	return ok
}

// All returns a limiter that allows what all of limiters allow: ten a second and
// a thousand an hour, per user and per route. A denial spends nothing anywhere. Its
// RetryAfter is the longest of those that deny, whose figures it bears too; an
// admission bears those of the limiter with the least remaining.
//
// Limiters over the same client whose keys have the same subject are asked in one
// script and one round trip, atomically. Others (see [Keyed]) are asked one after
// the other, and those that allowed are settled to 0 when one denies: nothing more
// passes than each of them allows, but for the length of a round trip the others
// may deny what they would have allowed, and a process that dies within it leaves
// its permits spent until they are back by themselves.
//
// The result is a [Settler] and a [LocalTaker], and resets, as far as limiters do.
// It is an error if more than one of them is no Settler (that one is asked last),
// or if two of them would share their keys. Each Config.OnDecision is called
// for what is allowed, and for the denials of its own limiter.
func All(limiters ...Limiter) (Limiter, error) {
	var errs []error
	a := &allOf{}
	var last []Limiter
	names := map[string]bool{}
	var flat []Limiter
	for _, l := range limiters {
		if inner, ok := l.(*allOf); ok {
			flat = append(flat, inner.limiters...) // to be asked in one script
		} else {
			flat = append(flat, l)
		}
	}
	for i, l := range flat {
		if isNil(l) {
			errs = append(errs, fmt.Errorf("limiter %d is nil", i))
			continue
		}
		if k, ok := l.(*keyed); ok {
			if err := k.Validate(); err != nil {
				errs = append(errs, fmt.Errorf("limiter %d: %w", i, err))
				continue
			}
		}
		if r := remoteOf(l); r != nil {
			if names[r.prefix] {
				errs = append(errs, fmt.Errorf("two limiters named %q", r.name))
			}
			names[r.prefix] = true
		}
		if Settles(l) {
			a.limiters = append(a.limiters, l)
		} else {
			last = append(last, l)
		}
	}
	if len(limiters) == 0 {
		errs = append(errs, errors.New("no limiters"))
	}
	if len(last) > 1 {
		errs = append(errs, fmt.Errorf("%d limiters that cannot give back what they spent: %T, %T", len(last), last[0], last[1]))
	}
	a.limiters = append(a.limiters, last...)
	if err := invalid("all", errs...); err != nil {
		return nil, err
	}
	return a, nil
}

type allOf struct{ limiters []Limiter }

var (
	_ Limiter    = (*allOf)(nil)
	_ LocalTaker = (*allOf)(nil)
	_ Settler    = (*allOf)(nil)
	_ Resetter   = (*allOf)(nil)
)

// remoteOf returns the limiter over Redis that l is, below any Keyed, or nil.
func remoteOf(l Limiter) *remote {
	switch l := l.(type) {
	case interface{ overRedis() *remote }:
		return l.overRedis()
	case *keyed:
		return remoteOf(l.limiter)
	}
	return nil
}

// keyOf returns the key that l, given key, gives to what is below any Keyed.
func keyOf(l Limiter, key string) string {
	if k, ok := l.(*keyed); ok {
		return keyOf(k.limiter, k.key(key))
	}
	return key
}

// member is one of the limiters, for one Take.
type member struct {
	index   int // in allOf.limiters
	limiter Limiter
	remote  *remote // nil: not over Redis, or not for a shared script
	key     string
	subject string
}

// Take decides by all of them.
func (a *allOf) Take(ctx context.Context, key string, cost int) (Result, error) {
	if err := checkTake(key, cost); err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	members := make([]member, 0, len(a.limiters))
	results := make([]Result, len(a.limiters))
	var denial Result
	denied := false
	for i, l := range a.limiters {
		m := member{index: i, limiter: l, key: key}
		if r := remoteOf(l); r != nil {
			k := keyOf(l, key)
			if err := checkTake(k, cost); err != nil {
				return Result{}, err
			}
			m.key, m.subject = k, r.subject(k)
			var res Result
			under, rule := r.ruled(m.subject)
			decided := under == nil
			if decided {
				res = rule.result(r.limit)
			} else {
				if err := under.checkSpend(cost); err != nil {
					return Result{}, err
				}
				known := under.known(m.subject, cost, under.told(ctx, cost))
				res, decided = known.res, known.denies
			}
			if decided {
				r.end(r.begin(), k, cost, &res, nil)
			}
			switch {
			case !decided:
				m.remote = under
			case res.Allowed: // exempt
				results[i] = res
				continue
			case !denied || res.RetryAfter > denial.RetryAfter:
				denial, denied = res, true
			}
		}
		members = append(members, m)
	}
	if denied {
		return denial, nil // what one of them knows spares all the way to Redis
	}
	taken := make([]member, 0, len(members))
	for len(members) > 0 {
		// The next one, and all that can be asked together with it.
		group := members[:1]
		for i := 1; i < len(members); i++ {
			if group[0].joins(members[i]) {
				members[len(group)], members[i] = members[i], members[len(group)]
				group = members[:len(group)+1]
			}
		}
		members = members[len(group):]
		if err := takeGroup(ctx, group, cost, results); err != nil {
			giveBack(ctx, taken, results)
			return Result{}, err
		}
		if denial, denied := worst(group, results); denied {
			giveBack(ctx, taken, results)
			return denial, nil
		}
		taken = append(taken, group...)
	}
	res := tightest(results)
	res.receipt = &receipt{owner: a, subject: key, cost: int64(cost), members: results}
	return res, nil
}

// joins reports whether m and o can be decided by one script.
func (m member) joins(o member) bool {
	return m.remote != nil && o.remote != nil && m.subject == o.subject &&
		m.remote.config.Penalty.Strikes == 0 && o.remote.config.Penalty.Strikes == 0 &&
		sameClient(m.remote.sender.Client(), o.remote.sender.Client())
}

func sameClient(a, b redis.UniversalClient) (same bool) {
	// A client type from outside may not be comparable.
	defer func() { _ = recover() }()
	return a == b
}

var allScript = scripts.Get("limit/all.lua")

// takeGroup asks the members of group, one or several that join, and puts their
// results in place. Unless all allow, nothing is spent.
func takeGroup(ctx context.Context, group []member, cost int, results []Result) (err error) {
	if len(group) == 1 {
		m := group[0]
		if m.remote != nil {
			results[m.index], err = remoteOf(m.limiter).Take(ctx, m.key, cost) // by the rules of now
		} else {
			results[m.index], err = m.limiter.Take(ctx, m.key, cost)
		}
		return err
	}
	lead := group[0].remote
	started := time.Now()
	sent := lead.denials.now()
	keys := make([]string, len(group))
	args := make([]any, 2, 2+4*len(group))
	args[0], args[1] = cost, ""
	if lead.clock != nil {
		args[1] = lead.clock()
	}
	for i, m := range group {
		keys[i] = m.remote.redisKey(m.subject)
		args = append(args, m.remote.algorithm.word(), m.remote.requests, m.remote.ttl(), m.remote.args.window)
	}
	reply, err := integers(lead.sender.Run(ctx, allScript, keys, args...))
	if err == nil && len(reply) != verdictLen*len(group) {
		err = fmt.Errorf("a reply of %d numbers", len(reply))
	}
	if err != nil {
		err = failure(ctx, err)
		for _, m := range group {
			m.remote.answered(started, err)
			m.remote.end(started, m.key, cost, &Result{}, err)
		}
		return err
	}
	all := true
	for i := range group {
		all = all && reply[verdictLen*i] > 0
	}
	for i, m := range group {
		v, _ := verdictOf(reply[verdictLen*i : verdictLen*(i+1)]) // of the right length
		r := m.remote
		r.answered(started, nil)
		res := r.result(v, 0, cost, r.denials.now()-(lead.denials.now()-sent))
		switch {
		case !res.Allowed:
			r.denials.rememberFrom(lead.denials, m.subject, cost, res, sent)
			r.end(started, m.key, cost, &res, nil)
		case all:
			if cost > 0 {
				res.receipt = r.newReceipt(m.subject, r.limit.rule(), cost, v, 0)
				r.denials.forget(m.subject)
			}
			r.end(started, m.key, cost, &res, nil)
		}
		results[m.index] = res
	}
	return nil
}

// giveBack settles what the members taken have spent, with the request's context
// or without: it must not stay spent because the client went away.
func giveBack(ctx context.Context, taken []member, results []Result) {
	ctx = context.WithoutCancel(ctx)
	for _, m := range taken {
		l := m.limiter
		if m.remote != nil {
			// Its timeout bounds it. If it fails the permits are lost, as they are if
			// the process dies now.
			_ = m.remote.Settle(ctx, m.key, results[m.index], 0)
			continue
		}
		_ = settle(ctx, l, m.key, results[m.index], 0)
	}
}

// worst returns the denial with the longest wait, if any member of group denies;
// of several, the one with the least remaining.
func worst(group []member, results []Result) (denial Result, denied bool) {
	for _, m := range group {
		r := results[m.index]
		if !r.Allowed && (!denied || r.RetryAfter > denial.RetryAfter ||
			r.RetryAfter == denial.RetryAfter && r.Remaining < denial.Remaining) {
			denial, denied = r, true
		}
	}
	return denial, denied
}

// tightest returns the result with the least remaining; of several, the one that
// is back to its full quota last.
func tightest(results []Result) Result {
	t := results[0]
	for _, r := range results[1:] {
		if r.Remaining < t.Remaining || r.Remaining == t.Remaining && r.ResetAfter > t.ResetAfter {
			t = r
		}
	}
	return t
}

// Name returns the names of all of them, separated by commas.
func (a *allOf) Name() string {
	names := make([]string, len(a.limiters))
	for i, l := range a.limiters {
		names[i] = nameOf(l)
	}
	return strings.Join(names, ",")
}

func nameOf(l Limiter) string {
	switch l := l.(type) {
	case *keyed:
		return nameOf(l.limiter)
	case interface{ Name() string }:
		return l.Name()
	}
	return fmt.Sprintf("%T", l)
}

// TakeLocally decides by all of them in process. All must be LocalTakers.
func (a *allOf) TakeLocally(key string, cost int) (Result, error) {
	if err := checkTake(key, cost); err != nil {
		return Result{}, err
	}
	results := make([]Result, len(a.limiters))
	for i, l := range a.limiters {
		res, err := takeLocally(l, key, cost)
		if err != nil || !res.Allowed {
			for j := range i {
				_ = settle(context.Background(), a.limiters[j], key, results[j], 0)
			}
			return res, err
		}
		results[i] = res
	}
	res := tightest(results)
	res.receipt = &receipt{owner: a, subject: key, cost: int64(cost), members: results}
	return res, nil
}

// Settle settles with each of them.
func (a *allOf) Settle(ctx context.Context, key string, r Result, cost int) error {
	switch {
	case key == "":
		return ErrEmptyKey
	case cost < 0:
		return fmt.Errorf("%w %d", ErrCost, cost)
	}
	if r.receipt == nil {
		return nil // a denial
	}
	if r.receipt.owner != a || r.receipt.subject != key {
		return ErrResult
	}
	// Each member's own receipt is settled once: after an error the others stay as they are.
	var errs []error
	for i, l := range a.limiters {
		errs = append(errs, settle(ctx, l, key, r.receipt.members[i], cost))
	}
	return errors.Join(errs...)
}

// Refund is Settle with a cost of 0.
func (a *allOf) Refund(ctx context.Context, key string, r Result) error {
	return a.Settle(ctx, key, r, 0)
}

// Reset resets each of them.
func (a *allOf) Reset(ctx context.Context, key string) error {
	var errs []error
	for _, l := range a.limiters {
		errs = append(errs, reset(ctx, l, key))
	}
	return errors.Join(errs...)
}
