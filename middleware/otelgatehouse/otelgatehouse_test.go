package otelgatehouse

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/extra/redisotel/v9"
	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
	"github.com/gatehouse-go/gatehouse/session/profile"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// metrics is a provider, and what it has collected.
type metrics struct {
	*sdkmetric.MeterProvider
	reader *sdkmetric.ManualReader
}

func newMetrics() metrics {
	reader := sdkmetric.NewManualReader()
	return metrics{sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)), reader}
}

// values returns each series, as "name{attribute=value,...}", and its value; of a histogram the count.
func (m metrics) values(t testing.TB) map[string]float64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := m.reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, s := range all.ScopeMetrics {
		for _, metric := range s.Metrics {
			add := func(attrs attribute.Set, v float64) {
				values[metric.Name+"{"+attrs.Encoded(attribute.DefaultEncoder())+"}"] = v
			}
			switch data := metric.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					add(p.Attributes, float64(p.Count))
				}
			default:
				t.Fatalf("%s is a %T", metric.Name, data)
			}
		}
	}
	return values
}

// sum adds up the series that have each of parts in their names.
func sum(values map[string]float64, parts ...string) (n float64) {
	for name, v := range values {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(name, part)
		}
		if all {
			n += v
		}
	}
	return n
}

// What is collected is what was counted elsewhere: by the callers, and by a proxy before Redis. Several
// servers of a fleet add up.
func TestSumsAreWhatHappened(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	var takes, results, loads, saves, logins, decisions float64
	var fleet []metrics
	for range 3 {
		client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
		defer client.Close()
		m := newMetrics()
		fleet = append(fleet, m)
		limit := must(ratelimit.NewFixedWindow(client, "api", ratelimit.PerHour(20), ratelimit.Config{Timeout: 10 * time.Second}))
		sessions := must(session.New(client, session.Config{Timeout: 10 * time.Second}))
		unregister := must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{limit}, Managers: []*session.Manager{sessions}}))
		defer func() {
			if err := unregister(); err != nil {
				t.Error(err)
			}
			if left := m.values(t); sum(left, "decisions") != 0 {
				t.Errorf("after unregister: %v", left)
			}
		}()
		if err := client.Ping(t.Context()).Err(); err != nil { // loads no script
			t.Fatal(err)
		}
		must(limit.Take(t.Context(), "first", 1)) // does
		takes, results = takes+1, results+1
		before := proxy.Forwarded("evalsha")
		asked := 0
		for n := range 30 {
			res := must(limit.Take(t.Context(), fmt.Sprint("k", n%4), 1))
			takes++
			if res.Allowed {
				results++
			}
			if res.Source == ratelimit.FromRedis {
				asked++
			}
		}
		if n := proxy.Forwarded("evalsha") - before; n != asked {
			t.Errorf("%d decisions by Redis, of which the proxy saw %d", asked, n)
		}
		decisions += float64(asked) + 1
		cookie := ""
		for n := range 10 {
			ctx := must(sessions.Load(t.Context(), cookie))
			loads++
			switch {
			case n == 2:
				if err := sessions.Login(ctx, "ann"); err != nil {
					t.Fatal(err)
				}
				logins++
			case n%2 == 0:
				sessions.Put(ctx, "n", n)
				saves++
			}
			if out := must(sessions.Finish(ctx)); out.Value != "" {
				cookie = out.Value
			}
		}
	}
	got := map[string]float64{}
	for _, m := range fleet {
		for name, v := range m.values(t) {
			got[name] += v
		}
	}
	for _, c := range []struct {
		want  float64
		parts []string
	}{
		{takes, []string{"ratelimit.decisions"}},
		{results, []string{"ratelimit.decisions", "outcome=allowed"}},
		{takes - results, []string{"ratelimit.decisions", "outcome=denied"}},
		{decisions, []string{"ratelimit.decisions", "source=redis"}},
		{decisions, []string{"decision.duration"}},
		{loads, []string{"session.loads"}},
		{loads - 3, []string{"session.loads", "result=found"}},
		{saves, []string{"session.commits", "result=saved"}},
		{logins, []string{"session.changes", "kind=login,", "result=done"}},
		{loads, []string{"operation.duration", "operation=Finish"}},
		{60, []string{"ratelimit.limit", "policy=api"}},
	} {
		if n := sum(got, c.parts...); n != c.want {
			t.Errorf("%v: %v, want %v", c.parts, n, c.want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// No key, path or host gets into a metric, a span or a log, however many there are, and there are no
// more series for them.
func TestSeriesDependOnTheCodeAlone(t *testing.T) {
	const canary = "canary"
	server := redistest.Start(t)
	m := newMetrics()
	spans := tracetest.NewInMemoryExporter()
	tracing := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	client := server.Client()
	if err := redisotel.InstrumentTracing(client, redisotel.WithTracerProvider(tracing), redisotel.WithDBStatement(false)); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	limit := must(ratelimit.NewTokenBucket(client, "api", ratelimit.PerHour(1), ratelimit.Config{Logger: logger, Timeout: 10 * time.Second}))
	sessions := must(session.New(client, session.Config{Logger: logger}))
	defer must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{limit}, Managers: []*session.Manager{sessions}}))()
	h := middleware.RateLimit{
		Limiter: limit, Key: middleware.By("key", func(r *http.Request) string { return r.Header.Get("X-Key") }), OnDecision: must(OnDecision(m)), Logger: logger,
	}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	h = middleware.Sessions{Manager: sessions, Logger: logger}.Handler(h)
	send := func(i int) {
		r := httptest.NewRequest("GET", fmt.Sprintf("https://%s%d.example.com/%s%d", canary, i, canary, i), nil)
		r.Header.Set("X-Key", fmt.Sprint(canary, i))
		r.Header.Set("User-Agent", canary)
		if i%100 == 0 {
			ctx, span := tracing.Tracer("test").Start(r.Context(), "request")
			defer span.End()
			r = r.WithContext(ctx)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	for i := range 10 {
		send(i)
		send(i)
	}
	before := m.values(t)
	var all sync.WaitGroup
	for w := range 8 {
		all.Go(func() {
			for i := range keys / 8 {
				send(w*keys + i)
			}
		})
	}
	all.Wait()
	after := m.values(t)
	if len(after) != len(before) {
		t.Errorf("%d series, %d before", len(after), len(before))
	}
	if n := sum(after, "gatehouse.http.ratelimit.requests", "policy=api"); n != keys+20 {
		t.Errorf("%v requests", n)
	}
	for name := range after {
		if strings.Contains(name, canary) {
			t.Error(name)
		}
	}
	seen := map[string]bool{}
	for _, s := range spans.GetSpans() {
		b := string(must(json.Marshal(s.Attributes)))
		if strings.Contains(s.Name+b, canary) {
			t.Fatal(s.Name, b)
		}
		seen[s.Name] = seen[s.Name] || s.Name != "request" || strings.Contains(b, "gatehouse.ratelimit.policy") && strings.Contains(b, "gatehouse.ratelimit.remaining")
	}
	if !seen["request"] || !seen["redis.pipeline evalsha"] && !seen["evalsha"] {
		t.Errorf("spans %v", seen)
	}
	if strings.Contains(log.String(), canary) {
		t.Error(log.String())
	}
}

// keys is how many clients TestSeriesDependOnTheCodeAlone has.
const keys = 100_000

// least returns how many allocations f makes at least. The race detector takes things from pools at
// random, which are allocated anew then.
func least(f func()) float64 {
	n := testing.AllocsPerRun(1, f)
	for range 300 {
		n = min(n, testing.AllocsPerRun(1, f))
	}
	return n
}

// A decision allocates what it did without metrics, remembered or asked for.
func TestADecisionAllocatesNoMore(t *testing.T) {
	server := redistest.Start(t)
	cfg := ratelimit.Config{Timeout: 10 * time.Second}
	for _, l := range []*ratelimit.SlidingWindow{
		must(ratelimit.NewSlidingWindow(server.Client(), "remembered", ratelimit.PerHour(1), cfg)),
		must(ratelimit.NewSlidingWindow(server.Client(), "asked", ratelimit.PerHour(1_000_000), cfg)),
	} {
		take := func() { must(l.Take(t.Context(), "k", 1)) }
		take()
		take()
		without := least(take)
		m := newMetrics()
		unregister := must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{l}}))
		take()
		m.values(t)
		if with := least(take); with > without {
			t.Errorf("%s: %v allocations, %v without", l.Name(), with, without)
		}
		if err := unregister(); err != nil {
			t.Error(err)
		}
	}
}

// While Redis is dead the series of errors and of the breaker say so, and after it that it is back.
func TestARedisThatDiesIsSeen(t *testing.T) {
	server := redistest.Start(t)
	m := newMetrics()
	client := server.Client()
	limit := must(ratelimit.NewSlidingWindow(client, "api", ratelimit.PerHour(100), ratelimit.Config{Logger: slog.New(slog.DiscardHandler)}))
	sessions := must(session.New(client, session.Config{Logger: slog.New(slog.DiscardHandler)}))
	defer must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{limit}, Managers: []*session.Manager{sessions}}))()
	h := middleware.RateLimit{
		Limiter: limit, Key: func(*http.Request) (string, error) { return "k", nil }, OnDecision: must(OnDecision(m)), OnError: middleware.FailClosed,
		Logger: slog.New(slog.DiscardHandler),
	}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	send := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return w.Code
	}
	if code := send(); code != 200 {
		t.Fatal(code)
	}
	server.Kill()
	if code := send(); code != 503 {
		t.Fatal(code)
	}
	if _, err := sessions.List(t.Context(), "ann"); err == nil {
		t.Error("no error")
	}
	_, _ = sessions.EndAll(t.Context(), "ann", session.Cause{})
	dead := m.values(t)
	for _, parts := range [][]string{
		{"ratelimit.decisions", "outcome=error"}, {"breaker.open"}, {"http.ratelimit.requests", "outcome=error"},
		{"session.changes", "all-ended", "result=error"},
	} {
		if sum(dead, parts...) < 1 {
			t.Errorf("%v: %v", parts, dead)
		}
	}
	server.Restart()
	for deadline := time.Now().Add(10 * time.Second); send() != 200; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not come back")
		}
	}
	back := m.values(t)
	if sum(back, "breaker.open") != 0 || sum(back, "http.ratelimit.requests", "outcome=allowed") != 2 {
		t.Error(back)
	}
}

// Rules, caches and readers are seen, too.
func TestRulesCachesAndReadersAreSeen(t *testing.T) {
	server := redistest.Start(t)
	m := newMetrics()
	rules := must(ratelimit.NewRules(server.Client(), ratelimit.RulesConfig{}))
	defer rules.Close()
	must(ratelimit.NewFixedWindow(server.Client(), "api", ratelimit.PerHour(1), ratelimit.Config{Rules: rules}))
	sessions := must(session.New(server.Client(), session.Config{Events: session.Events{Retention: time.Hour}}))
	var handled atomic.Int64
	users := must(profile.New(server.Client(), "user", func(context.Context, string) (int, error) { return 1, nil }, profile.Config{}))
	for range 3 {
		must(users.Get(t.Context(), "ann"))
	}
	reader := &events.Reader{
		Manager: sessions, Group: "audit", DeadLetter: func(context.Context, events.DeadLetter) error { return nil },
	}
	defer must(Register(Config{MeterProvider: m, Rules: []*ratelimit.Rules{rules}, Caches: []Cache{users}, Readers: []*events.Reader{reader}}))()
	got := m.values(t)
	before := sum(got, "rules.version")
	if sum(got, "profile.gets", "cache=user", "result=hit") != 2 || sum(got, "profile.gets", "result=loaded") != 1 || sum(got, "profile.loads") != 1 {
		t.Error(got)
	}
	ctx, stop := context.WithCancel(t.Context())
	var read sync.WaitGroup
	read.Go(func() {
		err := reader.Run(ctx, func(_ context.Context, batch []session.Event) error {
			handled.Add(int64(len(batch)))
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	in := must(sessions.Load(t.Context()))
	if err := sessions.Login(in, "ann"); err != nil {
		t.Fatal(err)
	}
	must(sessions.Finish(in))
	if err := rules.Set(t.Context(), ratelimit.Rule{Policy: "api", Key: "k", Requests: 2, Actor: "ops", Reason: "OPS-1"}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		got = m.values(t)
		if sum(got, "events.entries", "group=audit", "result=handled") == 1 && sum(got, "rules.version") != before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(got)
		}
	}
	stop()
	read.Wait()
	if handled.Load() != 1 {
		t.Error(handled.Load())
	}
}

// What cannot be seen is named.
func TestConfigsThatCannotBe(t *testing.T) {
	local := must(ratelimit.NewLocal("l", ratelimit.PerHour(1), ratelimit.Config{}))
	namesake := must(ratelimit.NewLocal("l", ratelimit.PerHour(1), ratelimit.Config{}))
	if _, err := Register(Config{Limiters: []ratelimit.Limiter{local, namesake}}); err == nil || !strings.Contains(err.Error(), `two limiters are named "l"`) {
		t.Error(err)
	}
	if _, err := Register(Config{Limiters: []ratelimit.Limiter{local, (*ratelimit.SlidingWindow)(nil), local}}); err == nil ||
		!strings.Contains(err.Error(), "Limiters[1] is nil") || !strings.Contains(err.Error(), "Limiters[2] is there twice") {
		t.Error(err)
	}
	_, err := Register(Config{
		Limiters: []ratelimit.Limiter{local, ratelimit.Unlimited}, Concurrency: []*ratelimit.Concurrency{nil}, Managers: []*session.Manager{nil}, Rules: []*ratelimit.Rules{nil}, Caches: []Cache{nil, (*profile.Cache[int])(nil)}, Readers: []*events.Reader{nil},
	})
	for _, want := range []string{"Limiters[1]", "Concurrency[0]", "Managers[0]", "Rules[0]", "Caches[0]", "Caches[1]", "Readers[0]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %s", err, want)
		}
	}
}

// A counter that goes back by one is, to Prometheus, one that began anew: a rate of all that it has.
func TestNoCounterGoesBack(t *testing.T) {
	server := redistest.Start(t)
	m := newMetrics()
	cfg := ratelimit.Config{Timeout: 10 * time.Second}
	limit := must(ratelimit.NewFixedWindow(server.Client(), "api", ratelimit.PerHour(100), cfg))
	sessions := must(session.New(server.Client(), session.Config{Timeout: 10 * time.Second}))
	defer must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{limit}, Managers: []*session.Manager{sessions}}))()
	ctx := must(sessions.Load(t.Context()))
	sessions.Put(ctx, "a", 1)
	cookie := must(sessions.Finish(ctx)).Value
	busy, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for busy.Err() == nil {
				in := must(sessions.Load(context.Background(), cookie))
				if n == 0 {
					sessions.Put(in, "a", n)
				}
				must(sessions.Finish(in))
				must(limit.Take(context.Background(), fmt.Sprint(n), 1))
			}
		})
	}
	last := m.values(t)
	for busy.Err() == nil {
		now := m.values(t)
		for name, v := range now {
			if v < last[name] {
				t.Fatalf("%s: %v after %v", name, v, last[name])
			}
		}
		last = now
	}
	all.Wait()
}

// Clients that hang up and calls that make no sense are not taken for a Redis that fails; a response
// that cannot be saved is an error.
func TestErrorsAreToldApart(t *testing.T) {
	server := redistest.Start(t)
	m := newMetrics()
	sessions := must(session.New(server.Client(), session.Config{Timeout: 10 * time.Second}))
	limit := must(ratelimit.NewSlidingWindow(server.Client(), "api", ratelimit.PerHour(100), ratelimit.Config{Timeout: 10 * time.Second}))
	defer must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{limit}, Managers: []*session.Manager{sessions}}))()
	ctx := must(sessions.Load(t.Context()))
	sessions.Put(ctx, "a", 1)
	cookie := must(sessions.Finish(ctx)).Value
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	_, _ = sessions.Load(gone, cookie)
	_, _ = limit.Take(gone, "k", 1)
	_, _ = limit.Take(t.Context(), "", 1)
	_, _ = limit.Take(t.Context(), "k", -1)
	ctx = must(sessions.Load(t.Context(), cookie))
	sessions.Put(ctx, "a", make(chan int))
	if _, err := sessions.Finish(ctx); err == nil {
		t.Error("no error")
	}
	got := m.values(t)
	for name, want := range map[string]float64{
		"session.loads{result=error}": 0, "session.loads{result=cancelled}": 1, "session.commits{result=error}": 1,
		"ratelimit.decisions{outcome=error,policy=api,source=redis}": 0, "ratelimit.decisions{outcome=error,policy=api,source=local}": 3,
	} {
		if v, ok := got["gatehouse."+name]; !ok || v != want {
			t.Errorf("%s: %v, want %v", name, v, want)
		}
	}
}

// Two Rules over one Redis have one version, and its number changes with it.
func TestTwoRulesHaveAVersion(t *testing.T) {
	server := redistest.Start(t)
	m := newMetrics()
	one, two := must(ratelimit.NewRules(server.Client(), ratelimit.RulesConfig{})), must(ratelimit.NewRules(server.Client(), ratelimit.RulesConfig{}))
	defer one.Close()
	defer two.Close()
	defer must(Register(Config{MeterProvider: m, Rules: []*ratelimit.Rules{one, two}}))()
	must(ratelimit.NewFixedWindow(server.Client(), "api", ratelimit.PerHour(1), ratelimit.Config{Rules: one}))
	before := sum(m.values(t), "rules.version")
	if err := one.Set(t.Context(), ratelimit.Rule{Policy: "api", Key: "k", Requests: 2, Actor: "ops", Reason: "OPS-1"}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); two.Stats().Version != one.Stats().Version; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("they do not agree")
		}
	}
	if sum(m.values(t), "rules.version") == before {
		t.Error("the number is the same")
	}
}

// To count a denial of RateLimit, and to have no span for it, allocates nothing.
func TestADenialIsCountedForNothing(t *testing.T) {
	limit := must(ratelimit.NewLocal("api", ratelimit.PerHour(1), ratelimit.Config{}))
	m := newMetrics()
	allocations := func(f func(middleware.Decision)) float64 {
		h := middleware.RateLimit{Limiter: limit, Key: func(*http.Request) (string, error) { return "k", nil }, OnDecision: f}.Handler(http.NotFoundHandler())
		r, w := httptest.NewRequest("GET", "/", nil), httptest.NewRecorder()
		serve := func() { w.Body.Reset(); h.ServeHTTP(w, r) }
		serve()
		serve()
		return least(serve)
	}
	without := allocations(func(middleware.Decision) {})
	if with := allocations(must(OnDecision(m))); with > without {
		t.Errorf("%v allocations, %v without", with, without)
	}
	if sum(m.values(t), "http.ratelimit.requests") < 600 {
		t.Error("not counted")
	}
}
