package console

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// service is a server of a fleet, with a console.
type service struct {
	client   redis.UniversalClient
	console  Console
	api      *ratelimit.FixedWindow
	login    *ratelimit.SlidingWindow
	rules    *ratelimit.Rules
	sessions *session.Manager
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newService(t *testing.T, client redis.UniversalClient) *service {
	t.Helper()
	s := &service{client: client, rules: must(ratelimit.NewRules(client, ratelimit.RulesConfig{}))}
	t.Cleanup(func() { _ = s.rules.Close() })
	denials := NewDenials(100)
	cfg := ratelimit.Config{Rules: s.rules, OnDecision: denials.Note, Timeout: 10 * time.Second}
	s.api = must(ratelimit.NewFixedWindow(client, "api", ratelimit.PerHour(3), cfg))
	cfg.Penalty = ratelimit.Penalty{Strikes: 1}
	s.login = must(ratelimit.NewSlidingWindow(client, "login", ratelimit.PerHour(1), cfg))
	s.sessions = must(session.New(client, session.Config{Events: session.Events{Retention: time.Hour}, Timeout: 10 * time.Second}))
	s.console = Console{
		// A browser would have a session: these tests say who they are.
		Authorize: func(r *http.Request) (string, Access) {
			switch name, _, _ := r.BasicAuth(); name {
			case "writer":
				return name, Write
			case "reader":
				return name, Read
			case "nameless":
				return "", Write
			}
			return "", None
		},
		Limiters: []ratelimit.Limiter{s.api, s.login}, Rules: s.rules, Denials: denials, Sessions: s.sessions, Redis: []redis.UniversalClient{client},
	}
	return s
}

func (s *service) logIn(t *testing.T, user string) {
	t.Helper()
	ctx := must(s.sessions.Load(t.Context()))
	s.sessions.Describe(ctx, func() string { return "Firefox of " + user })
	if err := s.sessions.Login(ctx, user); err != nil {
		t.Fatal(err)
	}
	must(s.sessions.Finish(ctx))
}

// ask sends a request as somebody and returns the status and the body.
func ask(t *testing.T, h http.Handler, as, method, target string, form url.Values, fields ...string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, "https://ops.example.com"+target, strings.NewReader(form.Encode()))
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if as != "" {
		r.SetBasicAuth(as, "")
	}
	for i := 0; i+1 < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	body, _ := io.ReadAll(w.Result().Body)
	return w.Result(), string(body)
}

// explained asks for the JSON of a key.
func explained(t *testing.T, h http.Handler, limiter, key string) (d explainData) {
	t.Helper()
	res, body := ask(t, h, "reader", "GET", "/explain?"+url.Values{"limiter": {limiter}, "key": {key}}.Encode(), nil, "Accept", "application/json")
	if err := json.Unmarshal([]byte(body), &d); err != nil || res.StatusCode != 200 {
		t.Fatalf("%d %s: %v", res.StatusCode, body, err)
	}
	return d
}

// What is explained is what another process would decide, whatever the key was through.
func TestExplainIsWhatAnotherProcessDecides(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		s, other := newService(t, b.Client), newService(t, b.NewClient(t))
		h := s.console.Handler()
		compare := func(when string, l ratelimit.Limiter, limiter, key string) {
			t.Helper()
			want := must(l.Take(t.Context(), key, 0))
			d := explained(t, h, limiter, key)
			if d.Allowed != want.Allowed || d.Remaining != want.Remaining || d.Limit != want.Limit.String() || d.Banned != want.Banned || (time.Duration(d.ResetAfter)-want.ResetAfter).Abs() > 5*time.Second {
				t.Errorf("%s: %+v, want %v", when, d, want)
			}
		}
		compare("fresh", other.api, "api", "user:1")
		must(other.api.Take(t.Context(), "user:1", 2))
		compare("two used", other.api, "api", "user:1")
		must(other.api.Take(t.Context(), "user:1", 1))
		compare("used up", other.api, "api", "user:1")
		must(other.login.Take(t.Context(), "user:1", 1))
		for end := time.Now().Add(20 * time.Second); !must(other.login.Take(t.Context(), "user:1", 1)).Banned; time.Sleep(20 * time.Millisecond) {
			if b.Advance(t, time.Second); time.Now().After(end) {
				t.Fatal("no ban")
			}
		}
		compare("banned", other.login, "login", "user:1")
		if d := explained(t, h, "login", "user:1"); !d.Banned || !strings.Contains(d.Verdict, "banned") {
			t.Errorf("banned: %+v", d)
		}
		res, _ := ask(t, h, "writer", "POST", "/rule", url.Values{"limiter": {"api"}, "key": {"user:1"}, "mode": {"enforce"}, "requests": {"50"}, "for": {"24h"}, "reason": {"T-1"}})
		if res.StatusCode != http.StatusSeeOther {
			t.Fatal(res.Status)
		}
		d := explained(t, h, "api", "user:1")
		if d.Rule == nil || d.Rule.Actor != "writer" || d.Rule.Reason != "T-1" || d.Rule.Until == nil || d.Requests != 50 || d.Used != 3 || len(d.History) != 1 || d.Own != "3 in 1h" {
			t.Errorf("%+v, rule %+v", d, d.Rule)
		}
		if want := "allowed by api: 47 of 50 in 1h left, limit of rule user:1, asked redis"; d.Verdict != want {
			t.Errorf("%q, want %q", d.Verdict, want)
		}
		for end := time.Now().Add(10 * time.Second); must(other.api.Take(t.Context(), "user:1", 0)).Limit.Requests != 50; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the other process has not heard of the rule")
			}
		}
		compare("raised", other.api, "api", "user:1")
		if res, _ := ask(t, h, "writer", "POST", "/reset", url.Values{"limiter": {"login"}, "key": {"user:1"}, "reason": {"T-2"}}); res.StatusCode != http.StatusSeeOther {
			t.Fatal(res.Status)
		}
		if d := explained(t, h, "login", "user:1"); !d.Allowed || d.Banned || len(d.History) != 1 || d.History[0].What != "reset" || d.History[0].Rule.Actor != "writer" {
			t.Errorf("reset: %+v", d)
		}
	})
}

// dump is all that is in Redis but for what looking may change: ends of keys.
func dump(t *testing.T, c redis.UniversalClient) string {
	t.Helper()
	var b strings.Builder
	for _, key := range must(c.Keys(t.Context(), "*").Result()) {
		fmt.Fprintf(&b, "%s %q\n", key, must(c.Dump(t.Context(), key).Result()))
	}
	return b.String()
}

// Each change is refused without access, to readers, from other sites and by GET; Redis stays as
// it is.
func TestWhoMayNotChangeChangesNothing(t *testing.T) {
	server := redistest.Start(t)
	s := newService(t, server.Client())
	h := s.console.Handler()
	s.logIn(t, "42")
	must(s.api.Take(t.Context(), "k", 3))
	if err := s.rules.Set(t.Context(), ratelimit.Rule{Policy: "api", Key: "k", Requests: 9, Actor: "a", Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	handle := must(s.sessions.List(t.Context(), "42"))[0].Handle
	actions := map[string]url.Values{
		"/reset":  {"limiter": {"api"}, "key": {"k"}, "reason": {"r"}},
		"/rule":   {"limiter": {"api"}, "key": {"k"}, "mode": {"deny"}, "reason": {"r"}},
		"/unrule": {"limiter": {"api"}, "key": {"k"}, "reason": {"r"}},
		"/end":    {"user": {"42"}, "handle": {handle}, "reason": {"r"}},
		"/end?":   {"user": {"42"}, "all": {"1"}, "reason": {"r"}},
	}
	before := dump(t, s.client)
	for target, form := range actions {
		for name, of := range map[string]struct {
			as, method string
			fields     []string
			status     int
		}{
			"nobody":          {"", "POST", nil, 403},
			"a reader":        {"reader", "POST", nil, 403},
			"without a name":  {"nameless", "POST", nil, 403},
			"another site":    {"writer", "POST", []string{"Sec-Fetch-Site", "cross-site"}, 403},
			"a sister site":   {"writer", "POST", []string{"Sec-Fetch-Site", "same-site"}, 403},
			"an older origin": {"writer", "POST", []string{"Origin", "https://evil.example.com"}, 403},
			"GET":             {"writer", "GET", nil, 404},
			"PUT":             {"writer", "PUT", nil, 404},
		} {
			at := target
			if of.method == "GET" {
				at = strings.TrimSuffix(target, "?") + "?" + form.Encode()
			}
			res, _ := ask(t, h, of.as, of.method, at, form, of.fields...)
			if res.StatusCode != of.status && !(of.status == 404 && res.StatusCode == 405) {
				t.Errorf("%s, %s: %d, want %d", target, name, res.StatusCode, of.status)
			}
		}
	}
	for _, page := range []string{"/", "/state", "/style.css", "/explain?limiter=api&key=k", "/user?user=42"} {
		if res, body := ask(t, h, "", "GET", page, nil); res.StatusCode != 403 || strings.Contains(body, "42") {
			t.Errorf("%s, nobody: %d", page, res.StatusCode)
		}
	}
	if after := dump(t, s.client); after != before {
		t.Errorf("Redis has changed:\n%s\nfrom\n%s", after, before)
	}
	for target, form := range actions { // and the same, permitted
		if target == "/end?" {
			continue
		}
		if res, body := ask(t, h, "writer", "POST", target, form, "Sec-Fetch-Site", "same-origin", "Accept", "application/json"); res.StatusCode != 200 || !strings.Contains(body, "true") {
			t.Errorf("%s: %s %s", target, res.Status, body)
		}
	}
	if n := len(must(s.sessions.List(t.Context(), "42"))); n != 0 {
		t.Error("the session was not ended")
	}
}

var outside = regexp.MustCompile(`(?i)(src|href|action|url\()\s*=?\s*["']?(https?:|//|/)`)

// Pages show what users chose as text, and lead nowhere but to pages beside them.
func TestPagesEscapeAndStayAtHome(t *testing.T) {
	server := redistest.Start(t)
	s := newService(t, server.Client())
	evil := `<script>alert(1)</script>"'&{{.}}`
	must(s.api.Take(t.Context(), evil, 3))
	must(s.api.Take(t.Context(), evil, 1))
	s.logIn(t, evil)
	if err := s.rules.Set(t.Context(), ratelimit.Rule{Policy: "api", Key: evil, Mode: ratelimit.Deny, Actor: evil, Reason: evil}); err != nil {
		t.Fatal(err)
	}
	h := s.console.Handler()
	query := url.Values{"limiter": {"api"}, "key": {evil}, "user": {evil}}.Encode()
	for _, page := range []string{"/", "/state?secrets=1", "/explain?" + query, "/user?" + query, "/explain?limiter=" + url.QueryEscape(evil) + "&key=k", "/nowhere/" + url.PathEscape(evil)} {
		for _, as := range []string{"reader", "writer"} {
			res, body := ask(t, h, as, "GET", page, nil)
			if strings.Contains(body, "<script") || strings.Contains(body, `"'&{`) {
				t.Errorf("%s is not escaped: %s", page, body)
			}
			if m := outside.FindString(body); m != "" {
				t.Errorf("%s leads to %q", page, m)
			}
			if as == "reader" && strings.Contains(body, `method="post"`) {
				t.Errorf("%s offers a reader a change", page)
			}
			csp := res.Header.Get("Content-Security-Policy")
			if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || res.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %v", page, res.Header)
			}
			if strings.Contains(body, " style=") || strings.Contains(body, "<style") {
				t.Errorf("%s has a style that its policy forbids", page)
			}
		}
	}
	if _, body := ask(t, h, "reader", "GET", "/user?"+query, nil); !strings.Contains(body, "&lt;script&gt;") || !strings.Contains(body, "logged-in") {
		t.Errorf("no user: %s", body)
	}
	if _, body := ask(t, h, "reader", "GET", "/", nil); !strings.Contains(body, "1 times") || !strings.Contains(body, "denied") {
		t.Errorf("no denials: %s", body)
	}
}

// It works wherever it is mounted, and says what is wrong with a request.
func TestMountsAndBadRequests(t *testing.T) {
	server := redistest.Start(t)
	s := newService(t, server.Client())
	for _, prefix := range []string{"", "/ops", "/a/b"} {
		mux := http.NewServeMux()
		mux.Handle(prefix+"/", http.StripPrefix(prefix, s.console.Handler()))
		web := httptest.NewServer(mux)
		get := func(path string) string {
			t.Helper()
			r := must(http.NewRequest("GET", web.URL+prefix+path, nil))
			r.SetBasicAuth("writer", "")
			res := must(http.DefaultClient.Do(r))
			defer res.Body.Close()
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != 200 {
				t.Errorf("%s%s: %s", prefix, path, res.Status)
			}
			return string(body)
		}
		base := must(url.Parse(web.URL + prefix + "/explain?limiter=api&key=k"))
		page := get("/explain?limiter=api&key=k")
		for _, m := range regexp.MustCompile(`(?:href|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			to := must(base.Parse(strings.ReplaceAll(m[1], "&amp;", "&")))
			if !strings.HasPrefix(to.Path, prefix+"/") {
				t.Errorf("%s leads out of the console, from %s", m[1], prefix)
			}
		}
		if !strings.Contains(get("/style.css"), "prefers-color-scheme") {
			t.Error("no style")
		}
		form := strings.NewReader(url.Values{"limiter": {"api"}, "key": {"k"}, "reason": {"r"}}.Encode())
		r := must(http.NewRequest("POST", web.URL+prefix+"/reset", form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth("writer", "")
		res := must(http.DefaultTransport.RoundTrip(r))
		res.Body.Close()
		to, err := res.Location()
		if err != nil || to.Path != prefix+"/explain" || to.Query().Get("key") != "k" {
			t.Errorf("%s: after a change %v, %v", prefix, to, err)
		}
		web.Close()
	}
	h := s.console.Handler()
	for name, of := range map[string]struct {
		method, target string
		form           url.Values
		status         int
		says           string
	}{
		"no limiter":      {"GET", "/explain?limiter=x&key=k", nil, 404, "no limiter"},
		"no key":          {"GET", "/explain?limiter=api", nil, 400, "Which key"},
		"no user":         {"GET", "/user", nil, 400, "Which user"},
		"no reason":       {"POST", "/reset", url.Values{"limiter": {"api"}, "key": {"k"}}, 400, "Reason"},
		"no mode":         {"POST", "/rule", url.Values{"limiter": {"api"}, "key": {"k"}, "reason": {"r"}}, 400, "mode"},
		"no number":       {"POST", "/rule", url.Values{"limiter": {"api"}, "key": {"k"}, "reason": {"r"}, "mode": {"enforce"}, "requests": {"many"}}, 400, "whole number"},
		"too many":        {"POST", "/rule", url.Values{"limiter": {"login"}, "key": {"k"}, "reason": {"r"}, "mode": {"enforce"}, "requests": {"2000000"}}, 400, "1000000"},
		"no duration":     {"POST", "/rule", url.Values{"limiter": {"api"}, "key": {"k"}, "reason": {"r"}, "mode": {"deny"}, "for": {"tomorrow"}}, 400, "24h"},
		"no rule":         {"POST", "/unrule", url.Values{"limiter": {"api"}, "key": {"k"}, "reason": {"r"}}, 400, "has no rule"},
		"no session":      {"POST", "/end", url.Values{"user": {"1"}, "handle": {"x"}, "reason": {"r"}}, 404, "no such session"},
		"which session":   {"POST", "/end", url.Values{"user": {"1"}, "reason": {"r"}}, 400, "Which session"},
		"why":             {"POST", "/end", url.Values{"user": {"1"}, "all": {"1"}}, 400, "Why"},
		"a form of 1 MB":  {"POST", "/end", url.Values{"user": {strings.Repeat("x", 1<<20)}}, 400, "cannot be read"},
		"nowhere":         {"GET", "/nowhere", nil, 404, "no such page"},
		"a change by GET": {"GET", "/reset", nil, 404, "no such page"},
		"a key too long":  {"GET", "/explain?limiter=api&key=" + strings.Repeat("k", 1025), nil, 400, "1,024 bytes"},
		"unclean":         {"GET", "//user", nil, 404, "no such page"},
		"above it":        {"GET", "/x/../user", nil, 404, "no such page"},
	} {
		for _, accept := range []string{"text/html", "application/json"} {
			res, body := ask(t, h, "writer", of.method, of.target, of.form, "Accept", accept)
			if res.StatusCode != of.status && of.status != 404 || !strings.Contains(body, of.says) && res.StatusCode != 405 {
				t.Errorf("%s: %s %s", name, res.Status, body)
			}
		}
	}
	server.Stop()
	if res, body := ask(t, h, "writer", "GET", "/explain?limiter=api&key=k", nil); res.StatusCode != 503 || !strings.Contains(body, "Redis did not answer") {
		t.Errorf("without Redis: %s %s", res.Status, body)
	}
}

func TestConsolesThatCannotBe(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	l := must(ratelimit.NewFixedWindow(client, "a", ratelimit.PerHour(1), ratelimit.Config{}))
	all := must(ratelimit.All(l))
	err := Console{Limiters: []ratelimit.Limiter{l, l, all, nil}}.Validate()
	for _, want := range []string{"Authorize is nil", `two Limiters are named "a"`, "Limiters[2]", "Limiters[3]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := (Console{}).Validate(); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("%v", err)
	}
}

// Of many keys those stay that are denied most.
func TestDenialsKeepTheWorst(t *testing.T) {
	d := NewDenials(10)
	note := func(key string) {
		d.Note(ratelimit.Decision{Policy: "p", Key: key, Cost: 1, Result: ratelimit.Result{Policy: "p"}})
	}
	for i := range 10_000 {
		note(fmt.Sprint("once", i))
		if i%3 == 0 {
			note("often")
		}
	}
	d.Note(ratelimit.Decision{Policy: "p", Key: "allowed", Cost: 1, Result: ratelimit.Result{Allowed: true}})
	d.Note(ratelimit.Decision{Policy: "p", Key: "looked", Result: ratelimit.Result{Policy: "p"}})
	list := d.most("p", 3)
	if len(list) != 3 || list[0].Key != "often" || list[0].Times < 3334 || list[0].Why == "" || len(d.by["p"].by) != 10 || d.of("p", "allowed") != nil || d.of("p", "looked") != nil {
		t.Errorf("%+v", list)
	}
	if d.of("p", "often") == nil || (*Denials)(nil).most("p", 1) != nil || (*Denials)(nil).of("p", "k") != nil {
		t.Error("of")
	}
}

// Who was denied under a plan is explained under it; others by the limiter's own limit.
func TestExplainKnowsPlans(t *testing.T) {
	s := newService(t, redistest.Start(t).Client())
	h := s.console.Handler()
	none := must(s.api.With(ratelimit.PerHour(0)))
	small := must(s.api.With(ratelimit.PerHour(1)))
	for range 2 {
		must(none.Take(t.Context(), "unpaid", 1))
		must(small.Take(t.Context(), "small", 1))
	}
	for key, want := range map[string]string{"unpaid": "its limit is 0", "small": "1 in 1h used, limit of plan", "other": "3 of 3 in 1h left"} {
		if d := explained(t, h, "api", key); d.Allowed != (key == "other") || !strings.Contains(d.Verdict, want) || d.Own != "3 in 1h" {
			t.Errorf("%s: %+v", key, d)
		}
	}
}

// Many keys that are denied once each cost no more the more there are.
func BenchmarkDenialsOfManyKeys(b *testing.B) {
	d := NewDenials(10_000)
	for i := 0; b.Loop(); i++ {
		d.Note(ratelimit.Decision{Policy: "p", Key: fmt.Sprint(i), Cost: 1})
	}
}

// Who may nothing leaves nothing on the disk, however much is sent.
func TestNobodyFillsTheDisk(t *testing.T) {
	s := newService(t, redistest.Start(t).Client())
	folder := t.TempDir()
	t.Setenv("TMPDIR", folder)
	mux := http.NewServeMux()
	mux.Handle("/ops/", http.StripPrefix("/ops", s.console.Handler()))
	server := httptest.NewServer(mux)
	defer server.Close()
	form := strings.NewReader("--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\n" + strings.Repeat("x", 40<<20) + "\r\n--b--\r\n")
	r := must(http.NewRequest("POST", server.URL+"/ops/", form))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	if res, err := http.DefaultClient.Do(r); err == nil { // the connection may be cut in mid-body
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Error(res.Status)
		}
	}
	if left := must(os.ReadDir(folder)); len(left) > 0 {
		t.Error(left)
	}
}

// A rule ends by Redis's clock, and a change takes nothing from the URL.
func TestRulesOfTheConsole(t *testing.T) {
	server := redistest.Start(t)
	server.Advance(time.Hour)
	s := newService(t, server.Client())
	h := s.console.Handler()
	if _, err := s.rules.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	form := url.Values{"limiter": {"api"}, "key": {"k"}, "mode": {"deny"}, "for": {"30m"}, "reason": {"r"}}
	for range 200 { // until it has heard of Redis's clock
		if s.rules.Now().After(time.Now().Add(30 * time.Minute)) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if res, body := ask(t, h, "writer", "POST", "/rule?"+form.Encode(), url.Values{}); res.StatusCode == http.StatusSeeOther {
		t.Error("from the URL: ", body)
	}
	if res, body := ask(t, h, "writer", "POST", "/rule", form); res.StatusCode != http.StatusSeeOther {
		t.Fatal(res.Status, body)
	}
	if d := must(s.api.Take(t.Context(), "k", 1)); d.RetryAfter < 29*time.Minute || d.RetryAfter > 31*time.Minute { // the clock is known to within a round trip
		t.Error(d)
	}
}

// Whatever its bytes are, a key is shown so that a form, a link and JSON bring it back as it was.
func TestKeysOfAnyBytes(t *testing.T) {
	server := redistest.Start(t)
	s, other := newService(t, server.Client()), newService(t, server.Client())
	h := s.console.Handler()
	hidden := regexp.MustCompile(`<input type="hidden" name="key" value="([^"]*)">`)
	for _, key := range []string{"a\x00b", "a\r\nb", "\xff\xfe", "\u202eevil", `"quoted"`, `"`, " spaced ", `a\b`, "plain", "größe", "`x`", "'x'", strings.Repeat("k", 1024)} {
		must(other.api.Take(t.Context(), key, 3))
		must(s.api.Take(t.Context(), key, 1))
		_, page := ask(t, h, "writer", "GET", "/explain?"+url.Values{"limiter": {"api"}, "key": {shown(key)}}.Encode(), nil)
		form := hidden.FindStringSubmatch(page)
		if !strings.Contains(page, "<h1>Denied</h1>") || form == nil {
			t.Errorf("%q: %s", key, page)
			continue
		}
		text := html.UnescapeString(form[1])
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || !utf8.ValidString(text) {
			t.Errorf("%q is shown as %q", key, text)
		}
		act := func(path string, values ...string) {
			t.Helper()
			form := url.Values{"limiter": {"api"}, "key": {text}, "reason": {"r"}}
			for i := 0; i < len(values); i += 2 {
				form.Set(values[i], values[i+1])
			}
			res, body := ask(t, h, "writer", "POST", path, form)
			if to, err := res.Location(); err != nil || to.Query().Get("key") != text {
				t.Errorf("%q %s: %s %s, leads to %v", key, path, res.Status, body, to)
			}
		}
		act("/rule", "mode", "exempt")
		if rules := must(s.rules.List(t.Context())); len(rules) != 1 || rules[0].Key != key {
			t.Errorf("%q: %+v", key, rules)
		}
		if d := explained(t, h, "api", text); d.Rule == nil || d.Rule.Key != text || d.Key != text || len(d.History) == 0 || d.Denied == nil {
			t.Errorf("%q: %+v", key, d)
		}
		act("/unrule")
		act("/reset")
		for end := time.Now().Add(20 * time.Second); must(other.api.Take(t.Context(), key, 0)).Remaining != 3; time.Sleep(time.Millisecond) {
			if time.Now().After(end) { // another process hears of it a little later
				t.Fatalf("%q: %v", key, must(other.api.Take(t.Context(), key, 0)))
			}
		}
	}
	s.logIn(t, "a\x00b")
	if res, body := ask(t, h, "writer", "POST", "/end", url.Values{"user": {shown("a\x00b")}, "all": {"1"}, "reason": {"r"}}); res.StatusCode != http.StatusSeeOther {
		t.Errorf("%s %s", res.Status, body)
	}
	if list := must(s.sessions.List(t.Context(), "a\x00b")); len(list) != 0 {
		t.Errorf("%+v", list)
	}
}

func FuzzShown(f *testing.F) {
	f.Add("a")
	f.Add(`"\x00"`)
	f.Fuzz(func(t *testing.T, key string) {
		if typed(shown(key)) != key {
			t.Errorf("%q is shown as %q", key, shown(key))
		}
	})
}

// Of long keys the beginning is kept.
func TestDenialsOfLongKeys(t *testing.T) {
	d := NewDenials(2)
	long := strings.Repeat("k", 1<<20)
	for range 2 {
		d.Note(ratelimit.Decision{Policy: "api", Key: long, Cost: 1})
	}
	if got := d.most("api", 5); len(got) != 1 || len(got[0].Key) > 1100 || !got[0].Cut || got[0].Times != 2 || d.of("api", long) == nil {
		t.Errorf("%d keys of %d bytes, %d times", len(got), len(got[0].Key), got[0].Times)
	}
}

// What scans all of Redis is not for those who may only look.
func TestReadersCountNothing(t *testing.T) {
	h := newService(t, redistest.Start(t).Client()).console.Handler()
	for as, status := range map[string]int{"reader": 403, "writer": 200} {
		if res, body := ask(t, h, as, "GET", "/state?secrets=1", nil); res.StatusCode != status {
			t.Errorf("%s: %s %s", as, res.Status, body)
		}
	}
	if _, body := ask(t, h, "reader", "GET", "/state", nil); strings.Contains(body, "<button>") {
		t.Errorf("the page has a button: %s", body)
	}
}

func TestWhatAcceptWants(t *testing.T) {
	for accept, want := range map[string]bool{
		"": false, "*/*": false, "application/json": true, "text/html, application/json": false, "application/json; q=0": false,
		"application/json; q=0.000": false, "text/html; q=0.0, application/json": true, "application/json; q=0.1": true,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", accept)
		if got := wantsJSON(r); got != want {
			t.Errorf("%q: %v", accept, got)
		}
	}
}

// The console behind a check of one's own.
func Example() {
	server := miniredis.NewMiniRedis() // stands for your Redis
	if err := server.Start(); err != nil {
		panic(err)
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	rules := must(ratelimit.NewRules(client, ratelimit.RulesConfig{}))
	defer rules.Close()
	denials := NewDenials(1000)
	api := must(ratelimit.NewFixedWindow(client, "api", ratelimit.PerHour(100), ratelimit.Config{Rules: rules, OnDecision: denials.Note, Timeout: 10 * time.Second}))

	mux := http.NewServeMux()
	mux.Handle("/ops/", http.StripPrefix("/ops", Console{
		Authorize: func(r *http.Request) (actor string, access Access) {
			if user, _, _ := r.BasicAuth(); user == "ops" { // in a service: who is logged in, and may do what
				return user, Write
			}
			return "", None
		},
		Limiters: []ratelimit.Limiter{api}, Rules: rules, Denials: denials,
	}.Handler()))
	for _, user := range []string{"ops", "somebody"} {
		r := httptest.NewRequest("GET", "/ops/explain?limiter=api&key=user:42", nil)
		r.SetBasicAuth(user, "")
		r.Header.Set("Accept", "application/json")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		var page struct{ Verdict, Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			panic(err)
		}
		fmt.Println(w.Code, page.Verdict+page.Error)
	}
	// Output:
	// 200 allowed by api: 100 of 100 in 1h left, asked redis
	// 403 You may not see this.
}

// The state names each server of Redis, in a cluster each master.
func TestStateNamesTheServers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		h := newService(t, b.Client).console.Handler()
		_, body := ask(t, h, "reader", "GET", "/state", nil, "Accept", "application/json")
		var state stateData
		if err := json.Unmarshal([]byte(body), &state); err != nil || len(state.Servers) != len(b.Addrs) {
			t.Fatalf("%v: %s", err, body)
		}
		_, page := ask(t, h, "reader", "GET", "/state", nil)
		for _, s := range state.Servers {
			if b.Mini == nil && (s.Error != "" || s.Role != "master" || s.Memory == 0 || s.Up < 0) {
				t.Errorf("%+v", s)
			}
			if !strings.Contains(page, s.Addr) {
				t.Errorf("the page does not name %s", s.Addr)
			}
		}
	})
}
