package recipes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// What the pages show stands in code that is compiled and tested.
func TestPagesShowThisCode(t *testing.T) {
	var code strings.Builder
	for _, pattern := range []string{"*.go", "../../internal/dev/stacktest/*.go", "../observability/*.go", "../gateway/*.go", "../readme/*.go", "../started/*.go", "../../internal/dev/movingtest/*.go", "../../middleware/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(b)
		}
	}
	blocks := 0
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../../README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
			if blocks++; !strings.Contains(code.String(), block[1]) {
				t.Errorf("%s: this is nowhere in the code:\n%s", page, block[1])
			}
		}
	}
	if blocks < 8 {
		t.Errorf("only %d blocks of code in %d pages", blocks, len(pages))
	}
}

func connect(t *testing.T) (redis.UniversalClient, *miniredis.Miniredis) {
	server := miniredis.RunT(t)
	server.SetTime(time.Now())
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	return client, server
}

func send(h http.Handler, r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// decided sends requests to a limit until Redis has decided on all of them: if it has not answered in
// time, all are sent again, with a Redis that has seen none. It returns the statuses.
func decided(t *testing.T, newLimit func(redis.UniversalClient) (middleware.RateLimit, error), next http.HandlerFunc, requests iter.Seq[*http.Request]) []int {
	t.Helper()
	for tries := 0; ; tries++ {
		client, _ := connect(t)
		limit, err := newLimit(client)
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		limit.OnDecision = func(d middleware.Decision) { failed = errors.Join(failed, d.Err) }
		h := limit.Handler(next)
		var got []int
		for r := range requests {
			got = append(got, send(h, r).StatusCode)
		}
		if failed == nil || tries == 5 {
			return got
		}
	}
}

func TestLoginLimit(t *testing.T) {
	var want []int
	got := decided(t, loginLimit, func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("password") == "right" {
			middleware.Succeeded(r)
		}
	}, func(yield func(*http.Request) bool) {
		want = nil
		login := func(status int, email, password, address string) {
			want = append(want, status)
			r := httptest.NewRequest("POST", "/", strings.NewReader(url.Values{"email": {email}, "password": {password}}.Encode()))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.RemoteAddr = address + ":1"
			yield(r)
		}
		for i := range 5 {
			login(200, "Ann@example.com", "wrong", fmt.Sprintf("192.0.2.%d", i))
		}
		for range 10 { // what the account's limit refuses costs the address nothing
			login(429, "\t ANN@example.com ", "wrong", "192.0.2.9")
		}
		for i := range 30 {
			login(200, fmt.Sprint("bob", i), "wrong", "192.0.2.9")
		}
		login(429, "carl", "right", "192.0.2.9") // the 31st of the address
		for range 40 {
			login(200, "dora", "right", "192.0.2.77")
		}
	})
	if !slices.Equal(got, want) {
		t.Errorf("answered with\n%v, want\n%v", got, want)
	}
}

func TestByEmail(t *testing.T) {
	var seen string
	h := middleware.RateLimit{Limiter: local(t, 1), Key: byEmail(strings.ToLower)}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen = string(b)
	}))
	long := `{"email":"eve","password":"` + strings.Repeat("x", 70_000) + `"}`
	for _, tc := range []struct {
		body   string
		status int
	}{
		{`{"email":"Ann","password":"x"}`, 200}, {`{"email":"ann"}`, 429}, {`{"email":"bob"}`, 200}, {`{"email":""}`, 400}, {`{}`, 400}, {``, 400},
		{`{"email":"eve"} {"email":"ann"}`, 400}, {`email=eve`, 400}, {long, 400},
	} {
		res := send(h, httptest.NewRequest("POST", "/login?email=decoy", strings.NewReader(tc.body)))
		if res.StatusCode != tc.status || tc.status == 200 && seen != tc.body {
			t.Errorf("%.40s: %s, %q", tc.body, res.Status, seen)
		}
	}
}

func TestSmallBurst(t *testing.T) {
	client, server := connect(t)
	limiter, err := smallBurst(client)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	passed := 0
	for ms := 0; ms < 2_000; ms += 10 { // two seconds, asked each hundredth
		server.SetTime(now.Add(time.Duration(ms) * time.Millisecond))
		res, err := limiter.Take(t.Context(), "k", 1)
		if err != nil {
			t.Fatal(err)
		}
		if res.Allowed {
			passed++
		}
		if ms == 0 {
			for range 5 {
				if res, _ := limiter.Take(t.Context(), "k", 1); res.Allowed {
					passed++
				}
			}
			if passed != 3 {
				t.Fatalf("a burst of %d", passed)
			}
		}
		if !res.Allowed { // a denial is remembered in this process, on its own clock
			limiter, _ = smallBurst(client)
		}
	}
	if passed < 20 || passed > 23 {
		t.Errorf("%d in two seconds", passed)
	}
}

func TestReserve(t *testing.T) {
	limit := func(client redis.UniversalClient) (middleware.RateLimit, error) {
		return reserve(client, func(r *http.Request) bool { return r.URL.Path == "/pay" })
	}
	statuses := decided(t, limit, func(http.ResponseWriter, *http.Request) {}, func(yield func(*http.Request) bool) {
		for _, path := range []string{"/", "/pay"} {
			for range 150 {
				yield(httptest.NewRequest("GET", path, nil))
			}
		}
	})
	passed := map[bool]int{}
	for i, status := range statuses {
		if status == 200 {
			passed[i >= 150]++
		}
	}
	if passed[false] != 80 || passed[true] != 20 {
		t.Errorf("passed: %d, and %d critical ones", passed[false], passed[true])
	}
}

func everybody(*http.Request) (string, error) { return "everybody", nil }

func local(t *testing.T, requests int) *ratelimit.Local {
	l, err := ratelimit.NewLocal("l", ratelimit.PerHour(requests), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestCostOfBody(t *testing.T) {
	var seen string
	h := costOfBody(local(t, 10), everybody, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen = string(b)
	}))
	for _, tc := range []struct {
		body      string
		status    int
		remaining string
	}{
		{`{"items":[1,2,3]}`, 200, "7"}, {`{}`, 200, "6"}, {`{"items":[1,2,3,4,5,6,7]}`, 429, "6"},
		{`{"items":[1,2,3,4,5,6]}`, 200, "0"}, {`{}`, 429, "0"}, {`[`, 400, ""}, {strings.Repeat(" ", 2<<20), 400, ""},
	} {
		res := send(h, httptest.NewRequest("POST", "/", strings.NewReader(tc.body)))
		if res.StatusCode != tc.status || res.Header.Get("X-RateLimit-Remaining") != tc.remaining || tc.status == 200 && seen != tc.body {
			t.Errorf("%.40s: %s, %q left, %q", tc.body, res.Status, res.Header.Get("X-RateLimit-Remaining"), seen)
		}
	}
}

func TestCacheable(t *testing.T) {
	h := cacheable(local(t, 1), everybody).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=60")
	}))
	first, second := send(h, httptest.NewRequest("GET", "/", nil)), send(h, httptest.NewRequest("GET", "/", nil))
	if len(first.Header) != 1 || second.StatusCode != 429 || second.Header.Get("Cache-Control") != "no-store" {
		t.Error(first.Header, second.Status, second.Header)
	}
}

func TestRefuseGRPC(t *testing.T) {
	limit := middleware.RateLimit{Limiter: local(t, 1), Key: everybody, Refused: refuseGRPC}
	nobody := limit
	nobody.Key = func(*http.Request) (string, error) { return "", middleware.ErrNoKey }
	unknown := limit
	unknown.Key = func(*http.Request) (string, error) { return "", errors.New("no answer") }
	h := limit.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	send(h, httptest.NewRequest("POST", "/", nil))
	for code, h := range map[string]http.Handler{"8": h, "3": nobody.Handler(h), "14": unknown.Handler(h)} {
		res := send(h, httptest.NewRequest("POST", "/", nil))
		pushback := res.Header.Get("Grpc-Retry-Pushback-Ms")
		if res.StatusCode != 200 || res.Header.Get("Grpc-Status") != code || (code == "3") != (pushback == "-1") || len(pushback) < 2 {
			t.Error(code, res.Status, res.Header)
		}
	}
}

func TestGateway(t *testing.T) {
	client, _ := connect(t)
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-RateLimit-Remaining", "99")
		fmt.Fprintf(w, "%q %q", r.Header["Cookie"], r.Header["X-User"])
	}))
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	h := gateway(target, sessions, middleware.RateLimit{Limiter: local(t, 5), Key: everybody})
	login := middleware.Sessions{Manager: sessions}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sessions.Login(r.Context(), "ann"); err != nil {
			t.Error(err)
		}
	}))
	r := httptest.NewRequest("GET", "http://localhost/", nil)
	for _, c := range send(login, httptest.NewRequest("GET", "http://localhost/", nil)).Cookies() {
		r.AddCookie(c)
	}
	r.AddCookie(&http.Cookie{Name: "other", Value: "1"})
	r.Header.Set("X-User", "admin")
	res := send(h, r)
	body, _ := io.ReadAll(res.Body)
	if string(body) != `["other=1"] ["ann"]` || len(res.Header["X-Ratelimit-Remaining"]) != 1 || res.Header.Get("X-RateLimit-Remaining") != "4" {
		t.Errorf("%s %v", body, res.Header)
	}
}

func TestMounted(t *testing.T) {
	client, _ := connect(t)
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	step := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				order = append(order, name)
				next.ServeHTTP(w, r)
			})
		}
	}
	limit := middleware.RateLimit{Limiter: local(t, 1), Key: middleware.FirstOf(middleware.ByUser(sessions), everybody)}
	h := mounted(sessions, limit, step("recoverer"), step("cors"), step("compress"), step("mux")(http.NotFoundHandler()))
	send(h, httptest.NewRequest("GET", "http://localhost/", nil))
	res := send(h, httptest.NewRequest("GET", "http://localhost/", nil))
	if got := strings.Join(order, " "); got != "recoverer cors compress mux recoverer cors compress" || res.StatusCode != 429 {
		t.Error(got, res.Status)
	}
}

func TestPerMessage(t *testing.T) {
	limit := middleware.RateLimit{Limiter: local(t, 4), Key: everybody}
	handled := 0
	h := limit.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := perMessage(limit, r, func() ([]byte, error) { return nil, context.Cause(r.Context()) }, func([]byte) { handled++ })
		if _, ok := errors.AsType[*tooFast](err); !ok || !strings.Contains(err.Error(), "denied by l") {
			t.Error(err)
		}
	}))
	if res := send(h, httptest.NewRequest("GET", "/", nil)); res.StatusCode != 200 || handled != 3 {
		t.Errorf("%s, %d messages", res.Status, handled)
	}
}

// The README is read in a few minutes.
func TestREADMEIsShort(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if n := strings.Count(string(b), "\n"); err != nil || n > 150 {
		t.Errorf("%d lines, %v", n, err)
	}
}

// Each link of a page leads to a file of the repository, and to a heading in it.
func TestLinksLeadSomewhere(t *testing.T) {
	pages := []string{"../../README.md", "../../CONTRIBUTING.md", "../../SECURITY.md", "../../CHANGELOG.md", "../../scripts/README.md", "../README.md"}
	more, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	links := 0
	for _, page := range append(pages, more...) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(string(b), -1) {
			to, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, "://") {
				continue
			}
			links++
			file := page
			if to != "" {
				file = filepath.Join(filepath.Dir(page), to)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
				continue
			}
			if heading != "" && !headings(t, file)[heading] {
				t.Errorf("%s: %s has no such heading", page, m[1])
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links", links)
	}
}

// headings returns those of a page, as GitHub names them in links.
func headings(t *testing.T, page string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(b), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all[strings.ReplaceAll(name, " ", "-")] = true
	}
	return all
}
