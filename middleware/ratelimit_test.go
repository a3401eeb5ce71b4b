package middleware_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// script is a limiter that says what it is told to, and counts.
type script struct {
	result ratelimit.Result
	err    error
	local  ratelimit.Result
	takes  []take
}

type take struct {
	key  string
	cost int
}

func (s *script) Take(ctx context.Context, key string, cost int) (ratelimit.Result, error) {
	s.takes = append(s.takes, take{key, cost})
	if err := ctx.Err(); err != nil {
		return ratelimit.Result{}, err
	}
	if cost < 0 {
		return ratelimit.Result{}, ratelimit.ErrCost
	}
	return s.result, s.err
}

// scriptWithFallback can decide in process, too.
type scriptWithFallback struct{ script }

func (s *scriptWithFallback) TakeLocally(string, int) (ratelimit.Result, error) {
	if s.local == (ratelimit.Result{}) {
		return s.local, errors.New("no local decision")
	}
	return s.local, nil
}

func everybody(*http.Request) (string, error) { return "everybody", nil }

func allowed(policy string, limit, remaining int, reset time.Duration) ratelimit.Result {
	return ratelimit.Result{
		Allowed: true, Policy: policy, Limit: ratelimit.PerMinute(limit), Remaining: remaining, ResetAfter: reset,
	}
}

func denied(policy string, retry time.Duration) ratelimit.Result {
	return ratelimit.Result{
		Policy: policy, Limit: ratelimit.PerMinute(5), RetryAfter: retry, ResetAfter: retry + 20*time.Second,
	}
}

// answer is what comes back for a request through h.
func answer(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func request(accept string) *http.Request {
	r := httptest.NewRequest("GET", "/users/1", nil)
	if accept != "" {
		r.Header.Set("Accept", accept)
	}
	return r
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })

func TestRateLimitPasses(t *testing.T) {
	l := &script{result: allowed("login", 5, 3, 30*time.Second+1)}
	h := middleware.RateLimit{Limiter: l, Key: everybody}.Handler(hello)
	before := time.Now().Add(30 * time.Second).Unix()
	res := answer(h, request(""))
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 200 || string(body) != "hello" {
		t.Errorf("%s %q", res.Status, body)
	}
	for name, want := range map[string]string{
		"X-RateLimit-Limit": "5", "X-RateLimit-Remaining": "3",
		"Retry-After": "", "RateLimit": "", "RateLimit-Policy": "", "Access-Control-Expose-Headers": "", "Cache-Control": "",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if reset, err := strconv.ParseInt(res.Header.Get("X-RateLimit-Reset"), 10, 64); err != nil || reset <= before || reset > before+3 {
		t.Errorf("X-RateLimit-Reset %d, %v; now+30s is %d", reset, err, before)
	}
	if len(l.takes) != 1 || l.takes[0] != (take{"everybody", 1}) {
		t.Errorf("takes %v", l.takes)
	}
}

func TestRateLimitRefuses(t *testing.T) {
	for _, tc := range []struct {
		retry time.Duration
		want  string
	}{
		{1, "1"},
		{time.Second, "1"},
		{time.Second + 1, "2"},
		{41*time.Second + 1, "42"},
		{ratelimit.Never, ""},
		{24 * time.Hour, "86400"},
	} {
		t.Run(tc.retry.String(), func(t *testing.T) {
			calls := 0
			h := middleware.RateLimit{
				Limiter: &script{result: denied("login", tc.retry)}, Key: everybody, Fields: middleware.Fields{IETF: true},
			}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
			res := answer(h, request(""))
			if res.StatusCode != 429 || calls != 0 {
				t.Errorf("%s, %d calls of the handler", res.Status, calls)
			}
			if got := res.Header.Get("Retry-After"); got != tc.want {
				t.Errorf("Retry-After %q, want %q", got, tc.want)
			}
			if got := res.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control %q", got)
			}
			if got := res.Header.Get("X-RateLimit-Remaining"); got != "0" {
				t.Errorf("X-RateLimit-Remaining %q", got)
			}
			if tc.want != "" {
				if within := param(t, res, "RateLimit", "login", "t"); strconv.FormatInt(within, 10) != tc.want {
					t.Errorf("t=%d, want Retry-After, %s", within, tc.want)
				}
			}
		})
	}
}

func TestRateLimitBody(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limit  middleware.RateLimit
		accept string
		typ    string
		want   map[string]any // nil: text
	}{
		{"program", middleware.RateLimit{}, "*/*", "application/problem+json", map[string]any{
			"type": "about:blank", "title": "Too Many Requests", "status": 429.0,
		}},
		{"IETF", middleware.RateLimit{Fields: middleware.Fields{IETF: true}}, "application/json", "application/problem+json", map[string]any{
			"type": "https://iana.org/assignments/http-problem-types#quota-exceeded", "status": 429.0,
			"violated-policies": []any{"login"},
		}},
		{"browser", middleware.RateLimit{}, "text/html,*/*;q=0.8", "text/plain; charset=utf-8", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.limit.Limiter, tc.limit.Key = &script{result: denied("login", time.Second)}, everybody
			res := answer(tc.limit.Handler(hello), request(tc.accept))
			if got := res.Header.Get("Content-Type"); got != tc.typ {
				t.Errorf("Content-Type %q, want %q", got, tc.typ)
			}
			body, _ := io.ReadAll(res.Body)
			if tc.want == nil {
				if !strings.HasPrefix(string(body), "Too Many Requests\n") {
					t.Errorf("body %q", body)
				}
				return
			}
			var got map[string]any
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%v: %s", err, body)
			}
			for name, want := range tc.want {
				if g, _ := json.Marshal(got[name]); string(g) != string(must(json.Marshal(want))) {
					t.Errorf("%s: %s, want %v", name, g, want)
				}
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// param parses a List of RFC 9651 and returns an integer parameter of its only
// member, which must be the String name.
func param(t *testing.T, res *http.Response, field, name, key string) int64 {
	t.Helper()
	list, err := httpsfv.UnmarshalList(res.Header.Values(field))
	if err != nil || len(list) != 1 {
		t.Fatalf("%s: %q: %v", field, res.Header.Values(field), err)
	}
	item, ok := list[0].(httpsfv.Item)
	if !ok || item.Value != name {
		t.Fatalf("%s: %q: names %v, want %q", field, res.Header.Values(field), item.Value, name)
	}
	v, _ := item.Params.Get(key)
	n, ok := v.(int64)
	if !ok {
		t.Fatalf("%s: %s is %v", field, key, v)
	}
	return n
}

func TestRateLimitIETFFields(t *testing.T) {
	for _, tc := range []struct {
		name       string
		result     ratelimit.Result
		q, w, r, t int64
	}{
		{"login", allowed("login", 5, 3, 29*time.Second+1), 5, 60, 3, 30},
		{`a "quoted" name`, allowed(`a "quoted" name`, 5, 0, 30*time.Second), 5, 60, 0, 30},
		{`back\slash`, allowed(`back\slash`, 5, 0, 0), 5, 60, 0, 0},
		{"short", ratelimit.Result{Allowed: true, Policy: "short", Limit: ratelimit.Limit{Requests: 7, Window: 1500 * time.Millisecond}, ResetAfter: time.Millisecond}, 7, 2, 0, 1},
		{"tiny", ratelimit.Result{Allowed: true, Policy: "tiny", Limit: ratelimit.Limit{Requests: 7, Window: time.Millisecond}}, 7, 1, 0, 0},
		{"huge", ratelimit.Result{Allowed: true, Policy: "huge", Limit: ratelimit.PerDay(1 << 62), Remaining: 1 << 62}, 999_999_999_999_999, 86400, 999_999_999_999_999, 0},
		{"never", denied("never", ratelimit.Never), 5, 60, 0, 9223372036}, // no Retry-After to agree with
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "never" {
				tc.result.ResetAfter = 7 * time.Second
				tc.t = 7
			}
			h := middleware.RateLimit{Limiter: &script{result: tc.result}, Key: everybody, Fields: middleware.Fields{IETF: true}}.Handler(hello)
			res := answer(h, request(""))
			for _, p := range []struct {
				field, key string
				want       int64
			}{{"RateLimit-Policy", "q", tc.q}, {"RateLimit-Policy", "w", tc.w}, {"RateLimit", "r", tc.r}, {"RateLimit", "t", tc.t}} {
				if got := param(t, res, p.field, tc.name, p.key); got != p.want {
					t.Errorf("%s: %s=%d, want %d", p.field, p.key, got, p.want)
				}
			}
		})
	}
	t.Run("form", func(t *testing.T) {
		h := middleware.RateLimit{Limiter: &script{result: allowed("login", 5, 0, 42*time.Second)}, Key: everybody, Fields: middleware.Fields{IETF: true}}.Handler(hello)
		res := answer(h, request(""))
		if got := res.Header.Get("RateLimit-Policy"); got != `"login";q=5;w=60` {
			t.Error(got)
		}
		if got := res.Header.Get("RateLimit"); got != `"login";r=0;t=42` {
			t.Error(got)
		}
	})
	t.Run("a name that is not ASCII", func(t *testing.T) {
		h := middleware.RateLimit{Limiter: &script{result: allowed("прачечная", 5, 0, 0)}, Key: everybody, Fields: middleware.Fields{IETF: true}}.Handler(hello)
		res := answer(h, request(""))
		if res.Header["Ratelimit"] != nil || res.Header["Ratelimit-Policy"] != nil || res.Header.Get("X-RateLimit-Limit") != "5" {
			t.Errorf("%v", res.Header)
		}
	})
}

func TestRateLimitStacked(t *testing.T) {
	type limit = ratelimit.Result
	for _, tc := range []struct {
		name         string
		outer, inner limit
		want         string // X-RateLimit-Limit and -Remaining
		status       int
	}{
		{"inner tighter", allowed("a", 100, 50, time.Second), allowed("b", 10, 5, time.Minute), "10 5", 200},
		{"outer tighter", allowed("a", 10, 5, time.Minute), allowed("b", 100, 50, time.Second), "10 5", 200},
		{"a tie: longer wait inside", allowed("a", 10, 5, time.Minute), allowed("b", 20, 5, time.Hour), "20 5", 200},
		{"a tie: longer wait outside", allowed("a", 10, 5, time.Hour), allowed("b", 20, 5, time.Minute), "10 5", 200},
		{"inner denies, with permits left", allowed("a", 10, 0, time.Hour), limit{Policy: "b", Limit: ratelimit.PerMinute(20), Remaining: 3, RetryAfter: time.Second, ResetAfter: time.Minute}, "20 3", 429},
		{"outer denies", denied("a", time.Second), allowed("b", 20, 0, time.Hour), "5 0", 429},
	} {
		t.Run(tc.name, func(t *testing.T) {
			outer, inner := &script{result: tc.outer}, &script{result: tc.inner}
			h := middleware.RateLimit{Limiter: inner, Key: everybody, Fields: middleware.Fields{IETF: true, Expose: true}}.Handler(hello)
			h = middleware.RateLimit{Limiter: outer, Key: everybody, Fields: middleware.Fields{IETF: true, Expose: true}}.Handler(h)
			res := answer(h, request(""))
			if res.StatusCode != tc.status {
				t.Errorf("%s, want %d", res.Status, tc.status)
			}
			for name, values := range res.Header {
				if len(values) != 1 {
					t.Errorf("%s: %q", name, values)
				}
			}
			got := res.Header.Get("X-RateLimit-Limit") + " " + res.Header.Get("X-RateLimit-Remaining")
			if got != tc.want {
				t.Errorf("figures %s, want %s", got, tc.want)
			}
			wantPolicy := tc.outer.Policy
			if strings.HasPrefix(tc.want, strconv.Itoa(tc.inner.Limit.Requests)+" ") {
				wantPolicy = tc.inner.Policy
			}
			param(t, res, "RateLimit", wantPolicy, "r")
			param(t, res, "RateLimit-Policy", wantPolicy, "q")
			innerTakes := 1
			if !tc.outer.Allowed {
				innerTakes = 0
			}
			if len(outer.takes) != 1 || len(inner.takes) != innerTakes {
				t.Errorf("%d and %d takes", len(outer.takes), len(inner.takes))
			}
		})
	}
	t.Run("only the looser one has IETF fields", func(t *testing.T) {
		h := middleware.RateLimit{Limiter: &script{result: allowed("b", 10, 1, 0)}, Key: everybody}.Handler(hello)
		h = middleware.RateLimit{Limiter: &script{result: allowed("a", 10, 9, 0)}, Key: everybody, Fields: middleware.Fields{IETF: true}}.Handler(h)
		if res := answer(h, request("")); res.Header["Ratelimit"] != nil || res.Header.Get("X-RateLimit-Remaining") != "1" {
			t.Errorf("%v", res.Header)
		}
	})
}

func TestRateLimitUndecided(t *testing.T) {
	broken := errors.New("dial tcp: connection refused by 10.1.2.3")
	badKey := func(*http.Request) (string, error) { return "", broken }
	for _, tc := range []struct {
		name    string
		limit   middleware.RateLimit
		status  int
		figures string
		logged  string
	}{
		{"local", middleware.RateLimit{Limiter: &scriptWithFallback{script{err: broken, local: allowed("l", 5, 4, 0)}}}, 200, "4", "decided in process"},
		{"local denies", middleware.RateLimit{Limiter: &scriptWithFallback{script{err: broken, local: denied("l", time.Second)}}}, 429, "0", "decided in process"},
		{"local fails", middleware.RateLimit{Limiter: &scriptWithFallback{script{err: broken}}}, 503, "", "refused"},
		{"no local", middleware.RateLimit{Limiter: &script{err: broken}}, 503, "", "refused"},
		{"let through", middleware.RateLimit{Limiter: &scriptWithFallback{script{err: broken}}, OnError: middleware.FailOpen}, 200, "", "let through"},
		{"refuse", middleware.RateLimit{Limiter: &scriptWithFallback{script{err: broken, local: allowed("l", 5, 4, 0)}}, OnError: middleware.FailClosed}, 503, "", "refused"},
		{"negative cost", middleware.RateLimit{Limiter: &scriptWithFallback{script{local: allowed("l", 5, 4, 0)}}, OnError: middleware.FailOpen, Cost: func(*http.Request) int { return -1 }}, 503, "", "refused"},
		{"no key", middleware.RateLimit{Limiter: &script{result: allowed("l", 5, 4, 0)}, OnError: middleware.FailOpen, Key: middleware.ByHeader("X-API-Key")}, 400, "", "refused"},
		{"empty key", middleware.RateLimit{Limiter: &script{result: allowed("l", 5, 4, 0)}, Key: func(*http.Request) (string, error) { return "", nil }}, 400, "", "refused"},
		{"key fails", middleware.RateLimit{Limiter: &script{result: allowed("l", 5, 4, 0)}, OnError: middleware.FailOpen, Key: badKey}, 503, "", "refused"},
		{"shadow lets through", middleware.RateLimit{Limiter: &script{err: broken}, OnError: middleware.FailClosed, Shadow: true}, 200, "", "let through"},
		{"shadow without a key", middleware.RateLimit{Limiter: &script{}, Shadow: true, Key: badKey}, 200, "", "let through"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log journal
			if tc.limit.Key == nil {
				tc.limit.Key = everybody
			}
			tc.limit.Logger = log.logger()
			h := tc.limit.Handler(hello)
			for range 3 {
				res := answer(h, request(""))
				if res.StatusCode != tc.status || res.Header.Get("X-RateLimit-Remaining") != tc.figures {
					t.Errorf("%s, remaining %q; want %d, %q", res.Status, res.Header.Get("X-RateLimit-Remaining"), tc.status, tc.figures)
				}
				body, _ := io.ReadAll(res.Body)
				if strings.Contains(string(body), "10.1.2.3") {
					t.Errorf("the error's text is sent to the client: %s", body)
				}
				if (tc.status == 503) != (res.Header.Get("Retry-After") == "5") {
					t.Errorf("Retry-After %q", res.Header.Get("Retry-After"))
				}
				if tc.status >= 400 && res.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("Cache-Control %q", res.Header.Get("Cache-Control"))
				}
			}
			what := "not decided by its limiter: "
			if tc.status == 400 {
				what = "no key (400): "
			}
			if got := log.String(); strings.Count(got, "\n") > 2 || !strings.Contains(got, what+tc.logged) {
				t.Errorf("log: %s", got)
			}
		})
	}
}

// A client that hangs up is not counted, so it does not get in either; and it
// is nobody's failure.
func TestRateLimitCancelled(t *testing.T) {
	for _, policy := range []middleware.FailureMode{middleware.FailLocal, middleware.FailOpen, middleware.FailClosed} {
		t.Run(policy.String(), func(t *testing.T) {
			var log journal
			calls := 0
			h := middleware.RateLimit{
				Limiter: &scriptWithFallback{script{local: allowed("l", 5, 4, 0)}},
				Key:     everybody, OnError: policy, Logger: log.logger(),
			}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			res := answer(h, request("").WithContext(ctx))
			if res.StatusCode != 503 || calls != 0 || log.String() != "" {
				t.Errorf("%s, %d calls of the handler, log: %s", res.Status, calls, log.String())
			}
		})
	}
}

func TestRateLimitShadow(t *testing.T) {
	for _, tc := range []struct {
		name   string
		result ratelimit.Result
		status int
	}{
		{"allowed", allowed("l", 5, 3, 0), 0},
		{"denied", denied("l", time.Second), 429},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var seen []middleware.Decision
			h := middleware.RateLimit{
				Limiter: &script{result: tc.result}, Key: everybody, Shadow: true, Fields: middleware.Fields{Expose: true},
				OnDecision: func(d middleware.Decision) { seen = append(seen, d) },
			}.Handler(hello)
			res := answer(h, request(""))
			if res.StatusCode != 200 {
				t.Errorf("got %s", res.Status)
			}
			for _, name := range []string{"X-RateLimit-Limit", "Retry-After", "Access-Control-Expose-Headers"} {
				if res.Header.Get(name) != "" {
					t.Errorf("%s is sent", name)
				}
			}
			if len(seen) != 1 || seen[0].Status != tc.status || !seen[0].Passed || seen[0].Result != tc.result || seen[0].Key != "everybody" {
				t.Errorf("decisions %+v", seen)
			}
		})
	}
}

// One answer of one's own for 429, 400 and 503, with its fields and its decision.
func TestRefusedAnswersEachRefusal(t *testing.T) {
	noKey := func(*http.Request) (string, error) { return "", middleware.ErrNoKey }
	for _, tc := range []struct {
		status int
		retry  string
		limit  middleware.RateLimit
	}{
		{429, "3", middleware.RateLimit{Limiter: &script{result: denied("login", 3*time.Second)}, Key: everybody}},
		{400, "", middleware.RateLimit{Limiter: &script{}, Key: noKey}},
		{503, "5", middleware.RateLimit{Limiter: &script{err: ratelimit.ErrUnavailable}, Key: everybody, OnError: middleware.FailClosed}},
	} {
		tc.limit.Cost = func(*http.Request) int { return 2 }
		tc.limit.Logger = slog.New(slog.DiscardHandler)
		tc.limit.Refused = func(w http.ResponseWriter, r *http.Request, d middleware.Decision) {
			if all := middleware.DecisionsOf(r); d.Status != tc.status || d.Cost != 2 || len(all) != 1 || all[0].Status != d.Status {
				t.Errorf("%d: decision %+v, of the request %+v", tc.status, d, all)
			}
			http.Error(w, "slow down", d.Status)
		}
		res := answer(tc.limit.Handler(hello), request(""))
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != tc.status || string(body) != "slow down\n" || res.Header.Get("Retry-After") != tc.retry || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %v %q", res.Status, res.Header, body)
		}
	}
	if all := middleware.DecisionsOf(request("")); all != nil {
		t.Errorf("a request that nobody decided on has %v", all)
	}
}

// What is skipped asks for no key and no permit, and says nothing of a limit.
func TestSkip(t *testing.T) {
	l := &script{result: denied("l", time.Second)}
	limit := middleware.RateLimit{
		Limiter: l, Key: func(*http.Request) (string, error) { return "", errors.New("nobody asks") },
		Skip:       func(r *http.Request) bool { return r.URL.Path == "/healthz" },
		OnDecision: func(d middleware.Decision) { t.Errorf("decided %+v", d) },
	}
	res := answer(limit.Handler(hello), httptest.NewRequest("GET", "/healthz", nil))
	if res.StatusCode != 200 || len(l.takes) != 0 || len(res.Header["X-Ratelimit-Limit"]) != 0 {
		t.Errorf("%s %v, takes %v", res.Status, res.Header, l.takes)
	}
	if d := limit.Check(httptest.NewRequest("GET", "/healthz", nil)); !d.Passed || len(l.takes) != 0 {
		t.Errorf("%+v, takes %v", d, l.takes)
	}
}

// Fields have the names one likes, or there are none; of several limits the tightest one's stand.
func TestFieldNames(t *testing.T) {
	of := func(policy string, remaining int, f middleware.Fields) middleware.RateLimit {
		return middleware.RateLimit{Limiter: &script{result: allowed(policy, 5, remaining, 0)}, Key: everybody, Fields: f}
	}
	named := middleware.Fields{Expose: true, Names: middleware.FieldNames{Limit: "RateLimit-Limit", Remaining: "RateLimit-Remaining", Reset: "RateLimit-Reset"}}
	h := of("loose", 4, named).Handler(of("tight", 1, named).Handler(of("silent", 0, middleware.Fields{None: true}).Handler(hello)))
	res := answer(h, request(""))
	if got := res.Header["Ratelimit-Remaining"]; len(got) != 1 || got[0] != "1" {
		t.Errorf("remaining %q", got)
	}
	if res.Header.Get("X-RateLimit-Limit") != "" || res.Header.Get("RateLimit-Limit") != "5" || res.Header.Get("RateLimit-Reset") == "" {
		t.Errorf("%v", res.Header)
	}
	if got := res.Header.Get("Access-Control-Expose-Headers"); got != "RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, Retry-After" {
		t.Errorf("exposes %s", got)
	}
	res = answer(middleware.RateLimit{Limiter: &script{result: denied("l", time.Second)}, Key: everybody, Fields: middleware.Fields{None: true}}.Handler(hello), request(""))
	if res.StatusCode != 429 || res.Header.Get("Retry-After") != "1" || res.Header.Get("X-RateLimit-Limit") != "" {
		t.Errorf("without fields: %s %v", res.Status, res.Header)
	}
}

// With no Logger set, a limiter that fails leaves one line a second in slog's default logger.
func TestSilenceIsLogged(t *testing.T) {
	var log strings.Builder
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	l := &scriptWithFallback{script{err: ratelimit.ErrUnavailable, local: allowed("l", 5, 4, 0)}}
	h := middleware.RateLimit{Limiter: l, Key: everybody}.Handler(hello)
	for range 3 {
		answer(h, request(""))
	}
	if got := log.String(); strings.Count(got, "decided in process") < 1 || strings.Count(got, "\n") > 2 {
		t.Errorf("logged:\n%s", got)
	}
}

func TestRateLimitExposeHeaders(t *testing.T) {
	h := middleware.RateLimit{Limiter: &script{result: allowed("l", 5, 3, 0)}, Key: everybody, Fields: middleware.Fields{Expose: true}}.Handler(hello)
	w := httptest.NewRecorder()
	w.Header().Set("Access-Control-Expose-Headers", "ETag")
	h.ServeHTTP(w, request(""))
	got := strings.Join(w.Header().Values("Access-Control-Expose-Headers"), ", ")
	if got != "ETag, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After" {
		t.Errorf("exposes %s", got)
	}
}

func TestRateLimitValidate(t *testing.T) {
	for _, tc := range []struct {
		name  string
		limit middleware.RateLimit
		want  []string
	}{
		{"valid", middleware.RateLimit{Limiter: &script{}, Key: everybody}, nil},
		{"no Settler", middleware.RateLimit{Limiter: &script{}, Key: everybody, FailuresOnly: true}, []string{"FailuresOnly"}},
		{"everything", middleware.RateLimit{OnError: 9, Fields: middleware.Fields{Names: middleware.FieldNames{Limit: "no header"}}}, []string{"Limiter", "Key", "FailureMode(9)", `"no header"`}},
		{"none and more", middleware.RateLimit{Limiter: &script{}, Key: everybody, Fields: middleware.Fields{None: true, IETF: true}}, []string{"None"}},
		{"a Keyed of nothing", middleware.RateLimit{Limiter: ratelimit.Keyed(nil, strings.ToUpper), Key: everybody}, []string{"Limiter: ratelimit: Keyed: limiter is nil"}},
		{"Set-Cookie", fieldNames("set-cookie", "", ""), []string{"Set-Cookie"}},
		{"Retry-After, Content-Length", fieldNames("", "Retry-After", "Content-Length"), []string{"Retry-After", "Content-Length"}},
		{"those of the IETF", fieldNames("RateLimit-Policy", "RateLimit", "RateLimit-Reset"), []string{"Ratelimit-Policy", "Ratelimit"}},
		{"of older drafts", fieldNames("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"), nil},
		{"one name twice", middleware.RateLimit{Limiter: &script{}, Key: everybody, Fields: middleware.Fields{Names: middleware.FieldNames{Limit: "left", Remaining: "Left"}}}, []string{"two are Left"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expectErrors(t, tc.limit.Validate(), tc.want)
			defer expectPanic(t, tc.limit.Validate())
			tc.limit.Handler(hello)
		})
	}
}

// Keyed and All hide nothing: FailuresOnly is refused where what they are made of does not settle.
func TestFailuresOnlyNeedsWhatSettles(t *testing.T) {
	settles := local("l", 5)
	same := func(key string) string { return key }
	for _, tc := range []struct {
		name    string
		limiter ratelimit.Limiter
		ok      bool
	}{
		{"Keyed, not a Settler", ratelimit.Keyed(&script{}, same), false},
		{"All, not a Settler", must(ratelimit.All(settles, &script{})), false},
		{"Keyed of All", ratelimit.Keyed(must(ratelimit.All(settles, ratelimit.Keyed(&script{}, same))), same), false},
		{"Keyed, a Settler", ratelimit.Keyed(settles, same), true},
		{"All, Settlers", must(ratelimit.All(settles, ratelimit.Keyed(local("m", 5), same))), true},
	} {
		if err := (middleware.RateLimit{Limiter: tc.limiter, Key: everybody, FailuresOnly: true}).Validate(); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		chosen := middleware.RateLimit{Limiter: settles, Key: everybody, FailuresOnly: true, LimiterFor: func(*http.Request) (ratelimit.Limiter, error) { return tc.limiter, nil }}
		if d := chosen.Check(request("")); (d.Err == nil) != tc.ok || tc.ok == (d.Status == http.StatusServiceUnavailable) {
			t.Errorf("%s, chosen: %d, %v", tc.name, d.Status, d.Err)
		}
	}
}

func fieldNames(limit, remaining, reset string) middleware.RateLimit {
	return middleware.RateLimit{Limiter: &script{}, Key: everybody, Fields: middleware.Fields{Names: middleware.FieldNames{Limit: limit, Remaining: remaining, Reset: reset}}}
}

// expectErrors checks that err joins as many errors as there are parts, each
// containing its part.
func expectErrors(t *testing.T, err error, parts []string) {
	t.Helper()
	var lines []string
	if err != nil {
		lines = strings.Split(err.Error(), "\n")
	}
	if len(lines) != len(parts) {
		t.Fatalf("%d errors, want %d:\n%v", len(lines), len(parts), err)
	}
	for i, part := range parts {
		if !strings.HasPrefix(lines[i], "middleware: ") || !strings.Contains(lines[i], part) {
			t.Errorf("error %d is %q, want it to contain %q", i, lines[i], part)
		}
	}
}

// expectPanic is deferred: it checks that what went before panicked with want,
// or did not if that is nil.
func expectPanic(t *testing.T, want error) {
	t.Helper()
	caught := recover()
	if err, _ := caught.(error); want == nil && caught != nil || want != nil && (err == nil || err.Error() != want.Error()) {
		t.Errorf("panics with %v, want %v", caught, want)
	}
}

// Header slices belong to one response each.
func TestFieldsAreNotShared(t *testing.T) {
	h := middleware.RateLimit{Limiter: &script{result: denied("l", time.Second)}, Key: everybody, Fields: middleware.Fields{IETF: true, Expose: true}}.Handler(hello)
	first := httptest.NewRecorder()
	h.ServeHTTP(first, request(""))
	for name, values := range first.Header() {
		values[0] = "changed"
		first.Header().Add(name, "more")
	}
	for name, values := range answer(h, request("")).Header {
		if len(values) != 1 || values[0] == "changed" {
			t.Errorf("%s: %q", name, values)
		}
	}
	for name, values := range first.Header() {
		if len(values) != 2 || values[0] != "changed" || values[1] != "more" {
			t.Errorf("%s: %q: adding to one field writes into another", name, values)
		}
	}
}

func TestRateLimitAllocations(t *testing.T) {
	w := &discard{h: http.Header{}}
	r := request("")
	for _, tc := range []struct {
		name   string
		result ratelimit.Result
		most   float64
	}{
		{"passed", allowed("l", 500, 300, time.Minute), 4}, // the fields' values, X-RateLimit-Reset; the request, and what DecisionsOf finds on it
		{"refused", denied("l", time.Minute), 2},           // all in one, X-RateLimit-Reset
	} {
		l := &steady{tc.result}
		h := middleware.RateLimit{Limiter: l, Key: everybody}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		if n := testing.AllocsPerRun(100, func() { clear(w.h); h.ServeHTTP(w, r) }); n > tc.most {
			t.Errorf("%s: %v allocations, want %v", tc.name, n, tc.most)
		}
	}
}

type steady struct{ result ratelimit.Result }

func (s *steady) Take(context.Context, string, int) (ratelimit.Result, error) { return s.result, nil }

// discard is a ResponseWriter that costs nothing.
type discard struct{ h http.Header }

func (d *discard) Header() http.Header               { return d.h }
func (d *discard) Write(b []byte) (int, error)       { return len(b), nil }
func (d *discard) WriteString(s string) (int, error) { return len(s), nil }
func (d *discard) WriteHeader(int)                   {}
