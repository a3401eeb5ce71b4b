// Package otelgatehouse gives the figures of limits and sessions to OpenTelemetry. It needs its API
// alone; where the figures go is up to the MeterProvider.
//
//	unregister, err := otelgatehouse.Register(otelgatehouse.Config{
//		Limiters: []ratelimit.Limiter{login, api}, Managers: []*session.Manager{sessions},
//	})
//	onDecision, err := otelgatehouse.OnDecision(nil)
//	limit := middleware.RateLimit{Limiter: api, Key: byUser, OnDecision: onDecision}
//
// The counters are read from the Stats of each, so that a decision costs what it did without.
// Durations alone are measured: of decisions that asked Redis, and of each operation of a Manager.
// No metric has a key, address, user, session, path or host among its attributes: how many series
// there are depends on the code, not on clients.
//
// Calls of several requests travel to Redis together, under the context of one of them. What
// redisotel notes of a command on a span is thus not about the request of that span alone, and
// shows keys: take its WithDBStatement(false), or leave its tracing out.
package otelgatehouse

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
	"github.com/gatehouse-go/gatehouse/session/profile"
)

const scope = "github.com/gatehouse-go/gatehouse/middleware/otelgatehouse"

// Config says what there is to see.
type Config struct {
	// MeterProvider gets the metrics. nil: the global one.
	MeterProvider metric.MeterProvider

	// Limiters are those that constructors return; what With made of them is counted by
	// them. An All stands for what it consists of. Each of Limiters and Concurrency has a
	// name of its own. What is registered twice with one provider is counted twice.
	Limiters    []ratelimit.Limiter
	Concurrency []*ratelimit.Concurrency
	// All Managers are added up, and so are all Rules.
	Managers []*session.Manager
	Rules    []*ratelimit.Rules
	// Caches are each a *profile.Cache; those of one name are added up.
	Caches []Cache
	// Readers have a Group of their own each, or are added up.
	Readers []*events.Reader
}

// Cache is what is asked of a [profile.Cache], whatever its values are.
type Cache interface {
	Name() string
	Stats() profile.Stats
}

func (c Config) validate() error {
	var errs []error
	if err := distinct("Limiters", c.Limiters); err != nil {
		return err
	}
	for i, l := range c.Limiters {
		if len(ratelimit.StatsOf(l)) == 0 {
			errs = append(errs, fmt.Errorf("otelgatehouse: Limiters[%d], a %T, has no Stats", i, l))
		}
	}
	errs = append(errs, distinct("Concurrency", c.Concurrency), distinct("Managers", c.Managers), distinct("Rules", c.Rules), distinct("Caches", c.Caches), distinct("Readers", c.Readers))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, s := range c.stats() {
		if known[s.Policy] {
			errs = append(errs, fmt.Errorf("otelgatehouse: two limiters are named %q", s.Policy))
		}
		known[s.Policy] = true
	}
	return errors.Join(errs...)
}

// distinct names those of a list that are nil, or there twice.
func distinct[T any](name string, list []T) error {
	var errs []error
	known := map[any]bool{}
	for i, of := range list {
		v := reflect.ValueOf(of)
		switch {
		case !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil():
			errs = append(errs, fmt.Errorf("otelgatehouse: %s[%d] is nil", name, i))
		case v.Comparable() && known[of]:
			errs = append(errs, fmt.Errorf("otelgatehouse: %s[%d] is there twice", name, i))
		case v.Comparable():
			known[of] = true
		}
	}
	return errors.Join(errs...)
}

// stats are those of all limiters.
func (c Config) stats() []ratelimit.Stats {
	all := ratelimit.StatsOf(c.Limiters...)
	for _, l := range c.Concurrency {
		all = append(all, l.Stats())
	}
	return all
}

// Register has the figures of what cfg names read whenever the MeterProvider collects, and
// durations recorded, until unregister. The error names everything that is wrong.
func Register(cfg Config) (unregister func() error, err error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	in := &instruments{meter: meterOf(cfg.MeterProvider)}
	decisions := in.counter("gatehouse.ratelimit.decisions", "{decision}", "Decisions of a limiter, by outcome and by who decided.")
	limit := in.gauge("gatehouse.ratelimit.limit", "{request}", "Requests that a limiter allows in its window, by its constructor.")
	open := in.gauge("gatehouse.ratelimit.breaker.open", "{server}", "Servers of Redis that are not asked, since they did not answer.")
	unheard := in.gauge("gatehouse.session.breaker.open", "{server}", "Servers of Redis that sessions do not ask, since they did not answer.")
	loads := in.counter("gatehouse.session.loads", "{load}", "Sessions looked up for a request, by result.")
	commits := in.counter("gatehouse.session.commits", "{commit}", "Changes of requests, by whether they were written.")
	changes := in.counter("gatehouse.session.changes", "{change}", "Logins, logouts, rotations and other acts, by kind.")
	unreadable := in.counter("gatehouse.session.unreadable", "{record}", "Records of sessions that could not be read.")
	lost := in.counter("gatehouse.session.events.lost", "{event}", "Events of sessions that could not be appended to their stream.")
	version := in.gauge("gatehouse.rules.version", "{version}", "A number that differs where processes know different rules.")
	age := in.seconds("gatehouse.rules.age", "Time since Redis has last said which rules there are.")
	invalid := in.gauge("gatehouse.rules.invalid", "{rule}", "Rules that cannot be read.")
	gets := in.counter("gatehouse.profile.gets", "{get}", "Values asked of a profile.Cache, by how they came.")
	loaded := in.counter("gatehouse.profile.loads", "{load}", "Calls of the loader of a profile.Cache.")
	untold := in.counter("gatehouse.profile.untold", "{change}", "Changes of which Redis could not be told: others see the older value for a while.")
	told := in.counter("gatehouse.events.entries", "{event}", "Events of sessions, by what became of them.")
	failures := in.counter("gatehouse.events.failures", "{call}", "Calls of an events handler that failed.")
	lag := in.seconds("gatehouse.events.lag", "Age of the oldest event that is not handled.")
	decided := in.histogram("gatehouse.ratelimit.decision.duration", "Time that a decision took which asked Redis.")
	operated := in.histogram("gatehouse.session.operation.duration", "Time that a method of a Manager took.")
	if err := errors.Join(in.errs...); err != nil {
		return nil, fmt.Errorf("otelgatehouse: %w", err)
	}

	collect := func(_ context.Context, o metric.Observer) error {
		for _, s := range cfg.stats() {
			policy := attribute.String("policy", s.Policy)
			for outcome, by := range map[string]ratelimit.By{"allowed": s.Allowed, "denied": s.Denied, "banned": s.Banned} {
				for source, n := range map[string]uint64{"redis": by.Redis, "cache": by.Cache, "local": by.Local, "rule": by.Rule} {
					o.ObserveInt64(decisions, int64(n), with(policy, attribute.String("outcome", outcome), attribute.String("source", source)))
				}
			}
			for source, n := range map[string]uint64{"redis": s.Errors, "local": s.Invalid} {
				o.ObserveInt64(decisions, int64(n), with(policy, attribute.String("outcome", "error"), attribute.String("source", source)))
			}
			o.ObserveInt64(limit, int64(s.Limit.Requests), with(policy))
			o.ObserveInt64(open, int64(s.Silent), with(policy))
		}
		if len(cfg.Managers) > 0 {
			all := sumOf(cfg.Managers)
			observeSessions(o, all, loads, commits, changes)
			o.ObserveInt64(unreadable, int64(all.Unreadable))
			o.ObserveInt64(lost, int64(all.LostEvents))
			o.ObserveInt64(unheard, int64(all.Silent))
		}
		if len(cfg.Rules) > 0 {
			var bad, oldest int64
			versions := fnv.New32a()
			for _, r := range cfg.Rules {
				s := r.Stats()
				bad, oldest = bad+int64(s.Invalid), max(oldest, int64(s.Age))
				_, _ = versions.Write([]byte(s.Version + " "))
			}
			o.ObserveInt64(version, int64(versions.Sum32()))
			o.ObserveInt64(invalid, bad)
			o.ObserveFloat64(age, time.Duration(oldest).Seconds())
		}
		caches := map[string]profile.Stats{}
		for _, c := range cfg.Caches {
			s, sum := c.Stats(), caches[c.Name()]
			caches[c.Name()] = profile.Stats{
				Hits: sum.Hits + s.Hits, Waited: sum.Waited + s.Waited, Loaded: sum.Loaded + s.Loaded, Direct: sum.Direct + s.Direct,
				Failed: sum.Failed + s.Failed, Loads: sum.Loads + s.Loads, NotTold: sum.NotTold + s.NotTold,
			}
		}
		for name, s := range caches {
			cache := attribute.String("cache", name)
			for result, n := range map[string]uint64{"hit": s.Hits, "waited": s.Waited, "loaded": s.Loaded, "direct": s.Direct, "error": s.Failed} {
				o.ObserveInt64(gets, int64(n), with(cache, attribute.String("result", result)))
			}
			o.ObserveInt64(loaded, int64(s.Loads), with(cache))
			o.ObserveInt64(untold, int64(s.NotTold), with(cache))
		}
		groups := map[string]events.Stats{}
		for _, r := range cfg.Readers {
			s, sum := r.Stats(), groups[r.Group]
			groups[r.Group] = events.Stats{
				Handled: sum.Handled + s.Handled, Failed: sum.Failed + s.Failed, Dead: sum.Dead + s.Dead, Missed: sum.Missed + s.Missed,
				Lag: max(sum.Lag, s.Lag),
			}
		}
		for name, s := range groups {
			group := attribute.String("group", name)
			for result, n := range map[string]uint64{"handled": s.Handled, "dead": s.Dead, "missed": s.Missed} {
				o.ObserveInt64(told, int64(n), with(group, attribute.String("result", result)))
			}
			o.ObserveInt64(failures, int64(s.Failed), with(group))
			o.ObserveFloat64(lag, s.Lag.Seconds(), with(group))
		}
		return nil
	}
	registration, err := in.meter.RegisterCallback(collect, in.observed...)
	if err != nil {
		return nil, fmt.Errorf("otelgatehouse: %w", err)
	}
	stops := []func(){measureDecisions(decided, cfg.Limiters)}
	for _, m := range cfg.Managers {
		stops = append(stops, measureOperations(operated, m))
	}
	return func() error {
		for _, stop := range stops {
			stop()
		}
		return registration.Unregister()
	}, nil
}

// changed are the operations that change who is logged in or where, by their kind.
var changed = map[string]string{
	"Login": "login", "BeginLogin": "login-begun", "Confirm": "confirmed", "Rotate": "rotated", "Logout": "logout",
	"End": "ended", "EndAll": "all-ended", "EndOthers": "others-ended",
}

// sumOf adds up the Stats of Managers. Silent is that of the one with the most.
func sumOf(managers []*session.Manager) (all session.Stats) {
	all.Operations = map[string]session.Outcomes{}
	for _, m := range managers {
		s := m.Stats()
		all.Found, all.None, all.Saved, all.NotSaved = all.Found+s.Found, all.None+s.None, all.Saved+s.Saved, all.NotSaved+s.NotSaved
		all.Dropped, all.Unreadable, all.LostEvents = all.Dropped+s.Dropped, all.Unreadable+s.Unreadable, all.LostEvents+s.LostEvents
		all.Silent = max(all.Silent, s.Silent)
		for name, n := range s.Operations {
			sum := all.Operations[name]
			all.Operations[name] = session.Outcomes{
				Done: sum.Done + n.Done, Failed: sum.Failed + n.Failed, Cancelled: sum.Cancelled + n.Cancelled, Refused: sum.Refused + n.Refused,
			}
		}
	}
	return all
}

func observeSessions(o metric.Observer, all session.Stats, loads, commits, changes metric.Int64Observable) {
	load := all.Operations["Load"]
	for result, n := range map[string]uint64{"found": all.Found, "none": all.None, "cancelled": load.Cancelled, "error": load.Failed + load.Refused} {
		o.ObserveInt64(loads, int64(n), with(attribute.String("result", result)))
	}
	for result, n := range map[string]uint64{"saved": all.Saved, "dropped": all.Dropped, "error": all.NotSaved} {
		o.ObserveInt64(commits, int64(n), with(attribute.String("result", result)))
	}
	for name, kind := range changed {
		n := all.Operations[name]
		for result, n := range map[string]uint64{"done": n.Done, "refused": n.Refused, "cancelled": n.Cancelled, "error": n.Failed} {
			o.ObserveInt64(changes, int64(n), with(attribute.String("kind", kind), attribute.String("result", result)))
		}
	}
}

// measureDecisions records what Observe tells. The options are made once: a decision makes none.
func measureDecisions(h metric.Float64Histogram, limiters []ratelimit.Limiter) (stop func()) {
	options := map[string][2][]metric.RecordOption{}
	for _, s := range ratelimit.StatsOf(limiters...) {
		policy := attribute.String("policy", s.Policy)
		options[s.Policy] = [2][]metric.RecordOption{
			{with(policy, attribute.String("outcome", "decided"))}, {with(policy, attribute.String("outcome", "error"))},
		}
	}
	return ratelimit.Observe(func(policy string, took time.Duration, err error) {
		failed := 0
		if err != nil {
			failed = 1
		}
		h.Record(context.Background(), took.Seconds(), options[policy][failed]...)
	}, limiters...)
}

func measureOperations(h metric.Float64Histogram, m *session.Manager) (stop func()) {
	options := map[string][]metric.RecordOption{}
	for name := range m.Stats().Operations {
		options[name] = []metric.RecordOption{with(attribute.String("operation", name))}
	}
	return m.Observe(func(o session.Operation) {
		h.Record(context.Background(), o.Took.Seconds(), options[o.Name]...)
	})
}

// OnDecision returns a function for [middleware.RateLimit].OnDecision and that of
// [middleware.ConcurrencyLimit]. It counts requests by policy and outcome, and notes policy, outcome
// and remaining on the current span; of several limits on a request, those of the last. provider
// nil is the global one.
func OnDecision(provider metric.MeterProvider) (func(middleware.Decision), error) {
	requests, err := meterOf(provider).Int64Counter("gatehouse.http.ratelimit.requests",
		metric.WithUnit("{request}"), metric.WithDescription("Requests that came to a limit, by outcome."))
	if err != nil {
		return nil, fmt.Errorf("otelgatehouse: %w", err)
	}
	var options addOptions
	return func(d middleware.Decision) {
		ctx, of := d.Request.Context(), counted{d.Policy(), outcomeOf(d)}
		requests.Add(ctx, 1, options.of(of)...)
		if span := trace.SpanFromContext(ctx); span.IsRecording() {
			span.SetAttributes(attribute.String("gatehouse.ratelimit.policy", of.policy), attribute.String("gatehouse.ratelimit.outcome", of.outcome))
			if d.Result.Limit.Requests > 0 {
				span.SetAttributes(attribute.Int("gatehouse.ratelimit.remaining", d.Result.Remaining))
			}
		}
	}, nil
}

// counted is what a request is counted by.
type counted struct{ policy, outcome string }

// addOptions are made once for each counted, so that a denial makes none.
type addOptions struct {
	known atomic.Pointer[map[counted][]metric.AddOption]
	mu    sync.Mutex // of those who add
}

func (o *addOptions) of(c counted) []metric.AddOption {
	if known := o.known.Load(); known != nil && (*known)[c] != nil {
		return (*known)[c]
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	more := map[counted][]metric.AddOption{}
	if known := o.known.Load(); known != nil {
		maps.Copy(more, *known)
	}
	more[c] = []metric.AddOption{with(attribute.String("policy", c.policy), attribute.String("outcome", c.outcome))}
	o.known.Store(&more)
	return more[c]
}

func outcomeOf(d middleware.Decision) string {
	switch {
	case d.Status == http.StatusBadRequest:
		return "no-key"
	case d.Result == ratelimit.Result{}:
		return "error"
	case d.Result.Banned:
		return "banned"
	case d.Result.Allowed:
		return "allowed"
	}
	return "denied"
}

func meterOf(p metric.MeterProvider) metric.Meter {
	if p == nil {
		p = otel.GetMeterProvider()
	}
	return p.Meter(scope)
}

func with(attrs ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(attrs...))
}

// instruments makes the instruments of a meter.
type instruments struct {
	meter    metric.Meter
	observed []metric.Observable
	errs     []error
}

func (in *instruments) counter(name, unit, text string) metric.Int64ObservableCounter {
	c, err := in.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(text))
	in.observed, in.errs = append(in.observed, c), append(in.errs, err)
	return c
}

func (in *instruments) gauge(name, unit, text string) metric.Int64ObservableGauge {
	g, err := in.meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(text))
	in.observed, in.errs = append(in.observed, g), append(in.errs, err)
	return g
}

func (in *instruments) seconds(name, text string) metric.Float64ObservableGauge {
	g, err := in.meter.Float64ObservableGauge(name, metric.WithUnit("s"), metric.WithDescription(text))
	in.observed, in.errs = append(in.observed, g), append(in.errs, err)
	return g
}

// buckets are in seconds: Redis answers in a fraction of a millisecond, and late in hundreds.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}

func (in *instruments) histogram(name, text string) metric.Float64Histogram {
	h, err := in.meter.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(text), metric.WithExplicitBucketBoundaries(buckets...))
	in.errs = append(in.errs, err)
	return h
}
