package recipes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// jar is a browser that keeps cookies of any host.
type jar struct {
	h       http.Handler
	cookies map[string]string
	host    string
}

func newJar(h http.Handler) *jar { return &jar{h, map[string]string{}, "app.example.com"} }

func (j *jar) send(method, path string, form url.Values) *http.Response {
	r := httptest.NewRequest(method, "https://"+j.host+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, value := range j.cookies {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	res := send(j.h, r)
	for _, c := range res.Cookies() {
		if c.MaxAge < 0 {
			delete(j.cookies, c.Name)
		} else {
			j.cookies[c.Name] = c.Value
		}
	}
	return res
}

func text(res *http.Response) string {
	b, _ := io.ReadAll(res.Body)
	return string(b)
}

func newSessions(t *testing.T) *session.Manager {
	client, _ := connect(t)
	m, err := session.New(client, session.Config{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func loginAs(m *session.Manager) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := m.Login(r.Context(), r.FormValue("user")); err != nil {
			http.Error(w, err.Error(), 500)
		}
	}
}

func TestImpersonate(t *testing.T) {
	m := newSessions(t)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", loginAs(m))
	mux.Handle("POST /as", impersonate(m))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		user, by := whoActs(r.Context(), m)
		fmt.Fprint(w, user, " by ", by)
	})
	j := newJar(middleware.Sessions{Manager: m}.Handler(mux))
	j.send("POST", "/login", url.Values{"user": {"root"}})
	for _, tc := range [][2]string{{"ann", "ann by root"}, {"", "root by root"}} {
		j.send("POST", "/as", url.Values{"user": {tc[0]}})
		if got := text(j.send("GET", "/", nil)); got != tc[1] {
			t.Errorf("%q, want %q", got, tc[1])
		}
	}
}

func TestOAuth(t *testing.T) {
	client, _ := connect(t)
	states, oauthLayer, err := oauthSessions(client)
	if err != nil {
		t.Fatal(err)
	}
	m, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	exchanged := 0
	mux := http.NewServeMux()
	mux.Handle("GET /begin", begin(states, "https://provider.example/authorize"))
	mux.Handle("POST /callback", callback(states, m, func(code, verifier string) (string, error) {
		if exchanged++; len(verifier) < 43 {
			t.Error("verifier", verifier)
		}
		return "user of " + code, nil
	}))
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, m.UserID(r.Context())) })
	j := newJar(middleware.Sessions{Manager: m}.Handler(oauthLayer.Handler(mux)))
	away := j.send("GET", "/begin", nil)
	to, _ := url.Parse(away.Header.Get("Location"))
	for _, c := range away.Cookies() {
		if c.SameSite != http.SameSiteNoneMode || !c.Secure || c.Name != "__Host-oauth" {
			t.Errorf("%+v", c)
		}
	}
	back := url.Values{"state": {to.Query().Get("state")}, "code": {"c"}}
	if res := newJar(j.h).send("POST", "/callback", back); res.StatusCode != 400 { // somebody else's browser
		t.Error(res.Status)
	}
	if res := j.send("POST", "/callback", back); res.StatusCode != 303 || res.Header.Get("Location") != "/account" {
		t.Error(res.Status, res.Header)
	}
	if res := j.send("POST", "/callback", back); res.StatusCode != 400 || exchanged != 1 {
		t.Error("again:", res.Status, exchanged)
	}
	if got := text(j.send("GET", "/", nil)); got != "user of c" {
		t.Error(got)
	}
}

func TestAccessToken(t *testing.T) {
	m := newSessions(t)
	var renewed atomic.Int64
	var fail atomic.Bool
	renew := func(_ context.Context, old string) (tokens, string, error) {
		if fail.Load() {
			return tokens{}, "", errors.New("provider is down")
		}
		time.Sleep(30 * time.Millisecond)
		n := renewed.Add(1)
		if old != fmt.Sprint("r", n-1) {
			t.Errorf("renewal %d with %s", n, old)
		}
		return tokens{fmt.Sprint("a", n), time.Now().Add(time.Hour)}, fmt.Sprint("r", n), nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/begin", func(w http.ResponseWriter, r *http.Request) { refresh.Put(r.Context(), m, "r0") })
	mux.HandleFunc("/expire", func(w http.ResponseWriter, r *http.Request) { access.Remove(r.Context(), m) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		token, err := accessToken(r.Context(), m, renew)
		fmt.Fprint(w, token, err)
	})
	came, gate := make(chan bool), make(chan bool)
	mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) { // its session was loaded before
		close(came)
		<-gate
		token, err := accessToken(r.Context(), m, renew)
		fmt.Fprint(w, token, err)
	})
	j := newJar(middleware.Sessions{Manager: m}.Handler(mux))
	j.send("GET", "/begin", nil)
	for _, want := range []string{"a1<nil>", "a2<nil>"} {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if got := text((&jar{j.h, j.cookies, j.host}).send("GET", "/", nil)); got != want {
					t.Errorf("%q, want %q", got, want)
				}
			})
		}
		all.Wait()
		j.send("GET", "/expire", nil)
	}
	fail.Store(true)
	if got := text(j.send("GET", "/", nil)); got != "provider is down" {
		t.Errorf("%q", got)
	}
	fail.Store(false)
	if got := text(j.send("GET", "/", nil)); got != "a3<nil>" {
		t.Errorf("after an outage: %q", got)
	}

	j.send("GET", "/expire", nil)
	late := make(chan string)
	go func() { late <- text((&jar{j.h, j.cookies, j.host}).send("GET", "/late", nil)) }()
	<-came
	if got := text(j.send("GET", "/", nil)); got != "a4<nil>" {
		t.Errorf("%q", got)
	}
	close(gate)
	if got := <-late; got != "a4<nil>" {
		t.Errorf("who was loaded before the renewal: %q", got)
	}
}

func TestPerDomain(t *testing.T) {
	m := newSessions(t)
	h := perDomain(m, []string{"example.com", "example.org"}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "a", 1) }))
	for host, want := range map[string]string{"example.com": "example.com", "app.example.com": "example.com", "EXAMPLE.org:443": "example.org", "example.net": ""} {
		j := newJar(h)
		j.host = host
		res := j.send("GET", "/", nil)
		if cookies := res.Cookies(); want == "" && res.StatusCode != 404 || want != "" && (len(cookies) != 1 || cookies[0].Domain != want) {
			t.Errorf("%s: %s %v", host, res.Status, cookies)
		}
	}
}

func TestWhilePossible(t *testing.T) {
	client, server := connect(t)
	m, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	public := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "public") })
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", loginAs(m))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "for ", m.UserID(r.Context())) })
	j := newJar(whilePossible(m, public, mux, func(r *http.Request) bool { return r.URL.Path == "/about" }))
	j.send("POST", "/login", url.Values{"user": {"ann"}})
	for _, down := range []string{"", "LOADING Redis is loading the dataset in memory", ""} {
		server.SetError(down)
		for path, want := range map[string]string{"/about": "public", "/account": "not available at the moment\n"} {
			if down == "" {
				want = "for ann"
			}
			res := j.send("GET", path, nil)
			if got := text(res); got != want || len(res.Cookies()) > 0 {
				t.Errorf("down %q, %s: %q %v, want %q", down, path, got, res.Cookies(), want)
			}
		}
	}
}

func TestKeepCart(t *testing.T) {
	m := newSessions(t)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := keepCart(r.Context(), m, "ann"); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("GET /visit", func(w http.ResponseWriter, r *http.Request) {
		m.Put(r.Context(), "cart", "apples")
		m.Put(r.Context(), "campaign", "x")
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, m.UserID(r.Context()), m.Keys(r.Context()))
	})
	j := newJar(middleware.Sessions{Manager: m}.Handler(mux))
	j.send("GET", "/visit", nil)
	j.send("POST", "/login", nil)
	if got := text(j.send("GET", "/", nil)); got != "ann[cart]" && got != "ann [cart]" {
		t.Errorf("%q", got)
	}
}

func TestShorter(t *testing.T) {
	m := newSessions(t)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", loginAs(m))
	mux.Handle("GET /", shorter(m, func(user string) bool { return user == "root" }, 20*time.Millisecond, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
	for user, want := range map[string]int{"root": 303, "ann": 200} {
		j := newJar(middleware.Sessions{Manager: m}.Handler(mux))
		j.send("POST", "/login", url.Values{"user": {user}})
		time.Sleep(30 * time.Millisecond)
		if res := j.send("GET", "/", nil); res.StatusCode != want || (want == 303) != (len(j.cookies) == 0) {
			t.Errorf("%s: %s, cookies %v", user, res.Status, j.cookies)
		}
	}
}

// Two logins with the provider at once, in two tabs, both succeed.
func TestOAuthInTwoTabs(t *testing.T) {
	client, _ := connect(t)
	states, site, err := oauthSessions(client)
	if err != nil {
		t.Fatal(err)
	}
	sessions := newSessions(t)
	mux := http.NewServeMux()
	mux.Handle("/begin", begin(states, "https://provider.example/authorize"))
	mux.Handle("/callback", middleware.Sessions{Manager: sessions}.Handler(callback(states, sessions, func(code, verifier string) (string, error) { return "ann", nil })))
	browser := newJar(site.Handler(mux))
	var tabs []string
	for range 2 {
		to, err := browser.send("GET", "/begin", nil).Location()
		if err != nil {
			t.Fatal(err)
		}
		tabs = append(tabs, to.Query().Get("state"))
	}
	for _, state := range append(tabs, tabs[0], "", "forged") {
		want := http.StatusSeeOther
		if len(tabs) == 0 {
			want = http.StatusBadRequest
		}
		if res := browser.send("GET", "/callback?code=c&state="+state, nil); res.StatusCode != want {
			t.Errorf("%q: %d, want %d", state, res.StatusCode, want)
		}
		tabs = tabs[min(1, len(tabs)):]
	}
}

// Who has no refresh token learns it, and who hangs up leaves none behind that was used.
func TestTokensThatAreGone(t *testing.T) {
	sessions := newSessions(t)
	ctx, err := sessions.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := sessions.Login(ctx, "ann"); err != nil {
		t.Fatal(err)
	}
	refresh.Put(ctx, sessions, "first")
	out, err := sessions.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	gone, hangUp := context.WithCancel(t.Context())
	if gone, err = sessions.Load(gone, out.Value); err != nil {
		t.Fatal(err)
	}
	if _, err := accessToken(gone, sessions, func(ctx context.Context, old string) (tokens, string, error) {
		hangUp() // while the provider answers
		if ctx.Err() != nil || old != "first" {
			t.Errorf("%v, %q", ctx.Err(), old)
		}
		return tokens{Access: "a"}, "second", nil
	}); err != nil {
		t.Fatal(err)
	}
	next, err := sessions.Load(t.Context(), out.Value)
	if err != nil {
		t.Fatal(err)
	}
	if old := refresh.Get(next, sessions); old != "second" {
		t.Errorf("left behind: %q", old)
	}
	refresh.Remove(next, sessions)
	defer func(was time.Duration) { patience = was }(patience)
	patience = 200 * time.Millisecond
	none := func(context.Context, string) (tokens, string, error) {
		return tokens{}, "", errors.New("is not called")
	}
	if _, err := accessToken(next, sessions, none); !errors.Is(err, errLoginAgain) {
		t.Error(err)
	}
}
