package main

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// stuck is a model that says so many words, and then nothing until its caller has gone.
type stuck struct {
	Parrot
	says int
}

func (m stuck) Complete(ctx context.Context, prompt string, most int, say func(string) error) error {
	if err := m.Parrot.Complete(ctx, prompt, min(most, m.says), say); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// start starts a gateway over a Redis.
func start(t *testing.T, s *redistest.Server, model Model) string {
	g, err := New(s.Client(), Config{
		Customers: Customers{"a": {"ann", 1000}, "b": {"bob", 100}, "c": {"cyd", 0}},
		PerDay:    1500, Model: model, Operators: map[string]string{"ops": "right"},
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(g)
	t.Cleanup(func() {
		server.Close()
		g.Close()
	})
	return server.URL
}

// complete asks for an answer and returns the status, and the header and body.
func complete(t *testing.T, gateway, key, body string) (int, http.Header, string) {
	t.Helper()
	r, err := http.NewRequest("POST", gateway+"/v1/complete", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+key)
	return do(t, r)
}

func do(t *testing.T, r *http.Request) (int, http.Header, string) {
	t.Helper()
	resp, err := servicetest.Patiently(http.DefaultClient, r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// ops asks the console, as a script does.
func ops(t *testing.T, gateway, password, path string, form url.Values) (status int, answer map[string]any) {
	t.Helper()
	method := "GET"
	if form != nil {
		method = "POST"
	}
	r, err := http.NewRequest(method, gateway+"/ops/"+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("ops", password)
	r.Header.Set("Accept", "application/json")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	status, _, body := do(t, r)
	_ = json.Unmarshal([]byte(body), &answer) // not of a 401
	return status, answer
}

// used is what a customer has used of a limit.
func used(t *testing.T, gateway, limiter, tenant string) float64 {
	t.Helper()
	status, answer := ops(t, gateway, "right", "explain?limiter="+limiter+"&key=tenant:"+tenant, nil)
	if status != 200 {
		t.Fatal(status, answer)
	}
	return answer["used"].(float64)
}

func TestAnswersCostWhatTheyTook(t *testing.T) {
	gateway := start(t, redistest.Start(t), Parrot{})
	status, _, body := complete(t, gateway, "a", `{"prompt": "one two three", "max_tokens": 7}`)
	if status != 200 || strings.Count(body, "event: token") != 7 || !strings.HasSuffix(body, "event: done\ndata: {\"tokens\":10}\n\n") {
		t.Error(status, body)
	}
	if n := used(t, gateway, "tokens-day", "ann"); n != 10 {
		t.Error("used", n)
	}
	for _, tc := range []struct {
		key, body string
		want      int
	}{
		{"a", `{"prompt": "x", "max_tokens": 4097}`, 400},
		{"a", `{"prompt": "x", "max_tokens": -1}`, 400},
		{"a", `{"prompt": " "}`, 400},
		{"a", `prompt`, 400},
		{"", `{"prompt": "x"}`, 401},
		{"d", `{"prompt": "x"}`, 401},
		{"b", `{"prompt": "x", "max_tokens": 100}`, 429}, // over the plan
		{"c", `{"prompt": "x", "max_tokens": 1}`, 429},   // a plan of nothing
	} {
		if status, _, body := complete(t, gateway, tc.key, tc.body); status != tc.want {
			t.Errorf("%s %s: %d, want %d: %s", tc.key, tc.body, status, tc.want, body)
		}
	}
	if n := used(t, gateway, "tokens-day", "ann"); n != 10 {
		t.Error("what was refused was charged:", n)
	}
}

// Who hangs up pays for what was said until then, and gets back the rest.
func TestHangingUpIsChargedForWhatWasSaid(t *testing.T) {
	gateway := start(t, redistest.Start(t), stuck{says: 5})
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	r, err := http.NewRequestWithContext(ctx, "POST", gateway+"/v1/complete", strings.NewReader(`{"prompt": "one two", "max_tokens": 500}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer a")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var heard strings.Builder
	for b := make([]byte, 1); strings.Count(heard.String(), "event: token") < 5; {
		if _, err := resp.Body.Read(b); err != nil {
			t.Fatal(err)
		}
		heard.Write(b)
	}
	if n := used(t, gateway, "tokens-day", "ann"); n != 502 {
		t.Error("while it speaks all of it is reserved:", n)
	}
	hangUp()
	wait(t, "it is charged for 7", func() bool { return used(t, gateway, "tokens-day", "ann") == 7 })
}

// The budget of one customer is raised by one server's console and holds on the other; what they
// have spent stays spent.
func TestAnOperatorRaisesABudgetWhileItRuns(t *testing.T) {
	redis := redistest.Start(t)
	one, two := start(t, redis, Parrot{}), start(t, redis, Parrot{})
	ask := func(want int) {
		t.Helper()
		if status, _, body := complete(t, two, "a", `{"prompt": "x", "max_tokens": 799}`); status != want {
			t.Errorf("%d, want %d: %s", status, want, body)
		}
	}
	ask(200)
	ask(429) // 800 more: over the minute's 1000, and the day's 1500
	raise := func(limiter, requests string) url.Values {
		return url.Values{"limiter": {limiter}, "key": {"tenant:ann"}, "mode": {"enforce"}, "requests": {requests}, "for": {"24h"}, "reason": {"OPS-1"}}
	}
	if status, _ := ops(t, one, "wrong", "rule", raise("tokens-day", "5000")); status != 401 {
		t.Error("a wrong password:", status)
	}
	for limiter, requests := range map[string]string{"tokens-day": "5000", "tokens-minute": "5000"} {
		if status, answer := ops(t, one, "right", "rule", raise(limiter, requests)); status != 200 {
			t.Fatal(status, answer)
		}
	}
	in := func(limiter string) float64 {
		_, answer := ops(t, two, "right", "explain?limiter="+limiter+"&key=tenant:ann", nil)
		return answer["requests"].(float64)
	}
	wait(t, "the other server has heard of it", func() bool { return in("tokens-day") == 5000 && in("tokens-minute") == 5000 })
	ask(200) // a bucket of which a fifth was left is one of which a fifth is left: 1000
	ask(429)
	if n := used(t, two, "tokens-day", "ann"); n != 1600 {
		t.Error("used", n)
	}
}

func TestCheckSaysWhatTheRedisLacks(t *testing.T) {
	redis := redistest.Start(t)
	g, err := New(redis.Client(), Config{Model: Parrot{}, PerDay: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if _, err := g.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if err := redis.Client().Do(t.Context(), "ACL", "SETUSER", "default", "-hset", "-evalsha").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "evalsha") {
		t.Error(err)
	}
}

func TestAGatewayIsNotHalfMade(t *testing.T) {
	if _, err := New(redistest.Start(t).Client(), Config{}); err == nil {
		t.Error("a gateway without a budget")
	}
}

func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}
