package recipes

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/sessiontest"
)

func TestAccountRecipes(t *testing.T) {
	server := sessiontest.NewServer(t)
	sessions := server.Manager(t, remembering)
	// in runs f in a request of a browser with a cookie, and returns the one that it has afterwards.
	in := func(cookie string, f func(ctx context.Context)) string {
		t.Helper()
		ctx, err := sessions.Load(t.Context(), cookie)
		if err != nil {
			t.Fatal(err)
		}
		f(ctx)
		out, err := sessions.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if out.Action == session.CookieSet {
			return out.Value
		}
		return cookie
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	user := func(cookie string) (id string) {
		in(cookie, func(ctx context.Context) { id = sessions.UserID(ctx) })
		return id
	}
	phone := in("", func(ctx context.Context) { must(loggedIn(ctx, sessions, "ann", true)) })
	laptop := in("", func(ctx context.Context) { must(loggedIn(ctx, sessions, "ann", false)) })
	server.Advance(2 * time.Hour)
	if user(phone) != "ann" || user(laptop) != "" {
		t.Errorf("after two hours: %q remembered, %q not", user(phone), user(laptop))
	}
	laptop = in("", func(ctx context.Context) { must(loggedIn(ctx, sessions, "ann", false)) })
	phone = in(phone, func(ctx context.Context) {
		if n, err := passwordChanged(ctx, sessions); n != 1 || err != nil {
			t.Errorf("%d ended, %v", n, err)
		}
	})
	if user(phone) != "ann" || user(laptop) != "" {
		t.Errorf("the password was changed: %q here, %q there", user(phone), user(laptop))
	}
	server.Advance(time.Minute)
	laptop = in("", func(ctx context.Context) { must(loggedIn(ctx, sessions, "ann", false)) })
	in(phone, func(ctx context.Context) {
		list, err := sessions.List(ctx, "ann")
		must(err)
		must(endDevice(ctx, sessions, list[1].Handle))
		must(endDevice(ctx, sessions, list[1].Handle)) // again
	})
	if user(laptop) != "" || user(phone) != "ann" {
		t.Error("the other device is not ended, or this one is")
	}
	in(phone, func(ctx context.Context) { must(everywhere(ctx, sessions)) })
	if user(phone) != "" {
		t.Error("logged in everywhere")
	}
	server.Advance(time.Minute)
	phone = in("", func(ctx context.Context) { must(loggedIn(ctx, sessions, "ann", true)) })
	must(disabled(t.Context(), sessions, "ann", "ops"))
	if user(phone) != "" {
		t.Error("a disabled account is logged in")
	}
	server.Advance(time.Minute)

	half := in("", func(ctx context.Context) { must(passwordRight(ctx, sessions, "bob")) })
	if user(half) != "" {
		t.Error("half a login is a login")
	}
	in("", func(ctx context.Context) {
		if err := codeSent(ctx, sessions, func(string) bool { return true }); err != errBegunNowhere {
			t.Error(err)
		}
	})
	half = in(half, func(ctx context.Context) {
		if err := codeSent(ctx, sessions, func(string) bool { return false }); err == nil {
			t.Error("a wrong code")
		}
		must(codeSent(ctx, sessions, func(id string) bool { return id == "bob" }))
	})
	if user(half) != "bob" {
		t.Error("not logged in with both factors")
	}
	refusing := server.Manager(t, session.Config{Accounts: session.Accounts{WhenFull: session.RefuseLogin}})
	for i := range 4 {
		ctx, err := refusing.Load(t.Context())
		must(err)
		if err := atMostThree(ctx, refusing, "carl"); (err == nil) != (i < 3) {
			t.Errorf("device %d: %v", i+1, err)
		}
		_, _ = refusing.Finish(ctx)
	}
}

func TestAccountRoutes(t *testing.T) {
	server := sessiontest.NewServer(t)
	sessions := server.Manager(t, session.Config{})
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	h := middleware.Sessions{Manager: sessions}.Handler(accountRoutes(sessions, ok, ok, ok, ok))
	ann := func(method, path string) *http.Request {
		return sessiontest.LoggedIn(t, sessions, httptest.NewRequest(method, path, nil), "ann")
	}
	for _, tc := range []struct {
		r    *http.Request
		want int
	}{
		{httptest.NewRequest("GET", "/account/devices", nil), 401}, {ann("GET", "/account/devices"), 200}, {ann("POST", "/account/password"), 200},
	} {
		if res := send(h, tc.r); res.StatusCode != tc.want {
			t.Errorf("%s %s: %s", tc.r.Method, tc.r.URL, res.Status)
		}
	}
	late := ann("POST", "/account/devices/end")
	foreign := ann("POST", "/account/confirm")
	foreign.Header.Set("Sec-Fetch-Site", "cross-site")
	if res := send(h, foreign); res.StatusCode != 403 {
		t.Error(res.Status)
	}
	server.Advance(20 * time.Minute)
	if res := send(h, late); res.StatusCode != 401 && res.StatusCode != 403 {
		t.Error(res.Status)
	}
}

func TestClientsAndPlans(t *testing.T) {
	server := sessiontest.NewServer(t)
	key := func(f middleware.KeyFunc, peer string, fields ...string) string {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = peer + ":1"
		for i := 0; i < len(fields); i += 2 {
			r.Header.Set(fields[i], fields[i+1])
		}
		k, _ := f(r)
		return k
	}
	if got := key(behindNginx, "10.1.2.3", "X-Forwarded-For", "203.0.113.9, 192.0.2.7"); got != "ip:192.0.2.7" {
		t.Error(got)
	}
	if got := key(behindCloudflare([]netip.Prefix{netip.MustParsePrefix("173.245.48.0/20")}), "173.245.48.1", "CF-Connecting-IP", "192.0.2.7"); got != "ip:192.0.2.7" {
		t.Error(got)
	}
	if got := key(behindNginx, "198.51.100.1", "X-Forwarded-For", "192.0.2.7"); got != "ip:198.51.100.1" {
		t.Error(got)
	}
	limiter, err := ratelimit.NewSlidingWindow(server.Client, "api", ratelimit.PerMinute(2), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	limit, err := plans(limiter, func(key string) string { return key })
	if err != nil {
		t.Fatal(err)
	}
	h := limit.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for plan, want := range map[string]int{"gold": 5, "internal": 5, "none": 2} {
		passed := 0
		for range 5 {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("X-API-Key", plan)
			if send(h, r).StatusCode == 200 {
				passed++
			}
		}
		if passed != want {
			t.Errorf("%s: %d of 5", plan, passed)
		}
	}
	server.Fail(errors.New("down"))
	site := whenRedisIsDown(limiter, limiter, limiter, behindNginx).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for path, want := range map[string]int{"GET /search": 200, "POST /pay": 503, "GET /": 200, "GET /healthz": 200} {
		method, at, _ := strings.Cut(path, " ")
		if res := send(site, httptest.NewRequest(method, at, nil)); res.StatusCode != want {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

// What the README shows is a service.
func TestREADME(t *testing.T) {
	server := sessiontest.NewServer(t)
	secret := []byte(strings.Repeat("s", 32))
	mux := http.NewServeMux()
	sessions, h, err := site(server.Client, secret, secret, mux)
	if err != nil {
		t.Fatal(err)
	}
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("password") != "right" {
			http.Error(w, "wrong", http.StatusForbidden)
			return
		}
		middleware.Succeeded(r)
		if err := login(sessions, r, "ann"); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("GET /api/me", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Me", sessions.UserID(r.Context())+" "+theme.Get(r.Context(), sessions))
	})
	limited, err := limits(server.Client, sessions, mux)
	if err != nil {
		t.Fatal(err)
	}
	h = middleware.Sessions{Manager: sessions}.Handler(limited)
	var cookie *http.Cookie
	post := func(password string) int {
		r := httptest.NewRequest("POST", "/login?password="+password, nil)
		res := send(h, r)
		for _, c := range res.Cookies() {
			cookie = c
		}
		return res.StatusCode
	}
	for range 8 {
		if got := post("right"); got != 200 {
			t.Fatal(got)
		}
	}
	r := httptest.NewRequest("GET", "/api/me", nil)
	r.AddCookie(cookie)
	if res := send(h, r); res.Header.Get("X-Me") != "ann dark" || res.Header.Get("X-RateLimit-Remaining") == "" {
		t.Errorf("%v", res.Header)
	}
	for i := range 7 {
		if got := post("wrong"); (got == 429) != (i >= 5) {
			t.Errorf("wrong guess %d: %d", i+1, got)
		}
	}
	ctx, err := sessions.Load(t.Context(), cookie.Value)
	if err != nil {
		t.Fatal(err)
	}
	ofUser(ctx, sessions, "ann", "handle")
	if ctx, err = sessions.Load(t.Context(), cookie.Value); err != nil || sessions.UserID(ctx) != "" {
		t.Errorf("%q after EndAll, %v", sessions.UserID(ctx), err)
	}
}

// A stream ends with its session, and a service knows its Redis before it serves.
func TestStreamsAndClients(t *testing.T) {
	server := sessiontest.NewServer(t)
	sessions := server.Manager(t, session.Config{})
	stop := make(chan struct{})
	sent := make(chan error, 1)
	h := middleware.Sessions{Manager: sessions}.Handler(liveEvents(sessions, stop, func(w http.ResponseWriter) error {
		_, err := w.Write([]byte("data: x\n\n"))
		select {
		case sent <- err:
		default:
		}
		return err
	}))
	done := make(chan *http.Response, 1)
	go func() {
		done <- send(h, sessiontest.LoggedIn(t, sessions, httptest.NewRequest("GET", "/", nil), "ann"))
	}()
	<-sent
	if _, err := sessions.EndAll(t.Context(), "ann", session.Cause{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the stream goes on")
	}
	rules, err := ratelimit.NewRules(server.Client, ratelimit.RulesConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer rules.Close()
	if _, err := startUp(t.Context(), sessions, rules); err != nil {
		t.Error(err)
	}
	server.Fail(errors.New("down"))
	if _, err := startUp(t.Context(), sessions, rules); err == nil {
		t.Error("no error without Redis")
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "192.0.2.7:1"
	key := ""
	middleware.Sessions{Manager: sessions}.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		key, _ = userElseAddress(sessions)(r)
	})).ServeHTTP(httptest.NewRecorder(), r)
	if key != "ip:192.0.2.7" {
		t.Error(key)
	}
	for _, c := range []interface{ Close() error }{overTLS(), withSentinels(), overCluster(), nearCache()} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
