package browsertest

import (
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// shop is a service with a login, a private page, and an order that is placed once.
type shop struct {
	http.Handler
	sessions *session.Manager
	orders   atomic.Int64
	log      logs
}

// newShop returns a shop. site is how its sessions are mounted, but for what each has.
func newShop(t *testing.T, client redis.UniversalClient, site middleware.Sessions) *shop {
	t.Helper()
	s := &shop{sessions: must(session.New(client, session.Config{}))}
	site.Manager, site.Logger = s.sessions, s.log.logger()
	page := func(w http.ResponseWriter, format string, args ...any) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		fmt.Fprintf(w, "<!doctype html><title>Shop</title>"+format, args...)
	}
	private := func(w http.ResponseWriter, r *http.Request) {
		page(w, `<p>private page of %s</p><form method=post action=/logout><button id=logout>Log out</button></form>`, html.EscapeString(s.sessions.UserID(r.Context())))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		page(w, `<p>user: %q</p><form method=post action=/login><button id=login>Log in</button></form>`, s.sessions.UserID(r.Context()))
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := s.sessions.Login(r.Context(), "ann"); err != nil {
			t.Error(err)
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := s.sessions.Logout(r.Context()); err != nil {
			t.Error(err)
		}
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	user := middleware.RequireUser{Manager: s.sessions}
	mux.Handle("GET /private", user.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		private(w, r)
	})))
	mux.Handle("GET /careless", user.Handler(http.HandlerFunc(private)))
	mux.HandleFunc("GET /order", func(w http.ResponseWriter, r *http.Request) {
		s.sessions.Put(r.Context(), "order", "for 3 apples")
		page(w, `<form method=post action=/order><button id=order>Order</button></form>`)
	})
	mux.HandleFunc("POST /order", func(w http.ResponseWriter, r *http.Request) {
		order, err := s.sessions.PopOnce(r.Context(), "order")
		switch {
		case err != nil:
			t.Error(err)
		case order == nil:
			page(w, "<p>this was ordered already</p>")
		default:
			s.orders.Add(1)
			time.Sleep(50 * time.Millisecond) // while the other one comes
			page(w, "<p>ordered %s</p>", order)
		}
	})
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) {
		page(w, "<p>%s by %q</p>", r.Method, s.sessions.UserID(r.Context()))
	})
	s.Handler = site.Handler(mux)
	return s
}

// A browser keeps the cookie as it is meant to be kept, gets another ID by the login, and none is left
// by the logout.
func TestLoginAndLogout(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, serve func(string, http.Handler) site) {
		s := newShop(t, client, middleware.Sessions{})
		app := serve("app", s)
		b := start(t)
		b.open(app.url + "/order") // a visitor's session
		name := "session"
		if app.tls {
			name = "__Host-session"
		}
		visitor := b.cookies()[name]
		if visitor == nil || !visitor.HTTPOnly || visitor.Secure != app.tls || visitor.SameSite != network.CookieSameSiteLax || visitor.Path != "/" || !visitor.Session {
			t.Fatalf("%+v", visitor)
		}
		b.open(app.url + "/")
		if text := b.click("#login"); !strings.Contains(text, `user: "ann"`) {
			t.Error(text)
		}
		login := b.cookies()[name]
		if login == nil || login.Value == visitor.Value {
			t.Errorf("%+v after %+v", login, visitor)
		}
		if script := run(b, chromedp.Evaluate[string]("document.cookie")); script != "" {
			t.Errorf("a script sees %q", script)
		}
		b.open(app.url + "/private")
		if text := b.click("#logout"); !strings.Contains(text, `user: ""`) {
			t.Error(text)
		}
		if left := b.cookies(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// What one tab does is seen in the other.
func TestTwoTabs(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, serve func(string, http.Handler) site) {
		app := serve("app", newShop(t, client, middleware.Sessions{}))
		one := start(t)
		two := one.tab()
		one.open(app.url + "/")
		two.open(app.url + "/")
		one.click("#login")
		if text := two.open(app.url + "/"); !strings.Contains(text, `user: "ann"`) {
			t.Error("after the login:", text)
		}
		two.open(app.url + "/private")
		one.open(app.url + "/private")
		two.click("#logout")
		if text := one.open(app.url + "/private"); !strings.Contains(text, "401") && !strings.Contains(text, "Nobody is logged in") {
			t.Error("after the logout:", text)
		}
	})
}

// The back button shows no private page after a logout, if that was not to be stored; one that says
// nothing of it is shown again.
func TestBackAfterLogout(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, serve func(string, http.Handler) site) {
		app := serve("app", newShop(t, client, middleware.Sessions{}))
		for path, shown := range map[string]bool{"/private": false, "/careless": true} {
			b := start(t)
			b.open(app.url + "/")
			b.click("#login")
			b.open(app.url + path)
			b.click("#logout")
			if text := b.back(); strings.Contains(text, "private page of ann") != shown {
				t.Errorf("%s: shown %v, want %v: %s", path, !shown, shown, text)
			}
		}
	})
}

// A form that is sent twice, by a second click or by reloading its answer, is one order.
func TestAFormPostedTwice(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, serve func(string, http.Handler) site) {
		s := newShop(t, client, middleware.Sessions{})
		app := serve("app", s)
		b := start(t)
		b.open(app.url + "/order")
		run(b, chromedp.Evaluate[[]string](`Promise.all([1, 2, 3].map(() => fetch("/order", {method: "POST"}).then(r => r.text())))`, chromedp.EvalAwaitPromise))
		if n := s.orders.Load(); n != 1 {
			t.Errorf("three at once: %d orders", n)
		}
		b.open(app.url + "/order")
		if text := b.click("#order"); text != "ordered for 3 apples" {
			t.Error(text)
		}
		run(b, chromedp.Reload())
		if text := b.text(); text != "this was ordered already" {
			t.Error("reloaded:", text)
		}
		b.back()
		// Whether it kept the page or asked for it again, a form is one order.
		want := map[string]int64{"this was ordered already": 2, "ordered for 3 apples": 3}
		if text := b.click("#order"); s.orders.Load() != want[text] {
			t.Errorf("back, and once more: %s: %d orders", text, s.orders.Load())
		}
	})
}

// Who comes from another site is known by a link if the cookie is Lax, by a form only if it is None,
// and by neither if it is Strict, until they go on from there.
func TestFromAnotherSite(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, serve func(string, http.Handler) site) {
		byForm := `POST by "ann"`
		if app := serve("app", http.NotFoundHandler()); !app.tls {
			byForm = `POST by ""` // None is Lax there: browsers take it with Secure alone
		}
		for _, tc := range []struct {
			mode           http.SameSite
			byLink, byForm string
		}{
			{http.SameSiteLaxMode, `GET by "ann"`, `POST by ""`},
			{http.SameSiteStrictMode, `GET by ""`, `POST by ""`},
			{http.SameSiteNoneMode, `GET by "ann"`, byForm},
		} {
			app := serve("app", newShop(t, client, middleware.Sessions{Cookie: http.Cookie{SameSite: tc.mode}}))
			other := serve("other", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				fmt.Fprintf(w, `<a id=link href="%[1]s/who">link</a><form method=post action="%[1]s/who"><button id=form>form</button></form>`, app.url)
			}))
			b := start(t)
			b.open(app.url + "/")
			text := b.click("#login")
			if !strings.Contains(text, `user: "ann"`) {
				t.Errorf("%v: not logged in: %s", tc.mode, text)
			}
			b.open(other.url)
			if text := b.click("#link"); text != tc.byLink {
				t.Errorf("%v, by a link: %s, want %s", tc.mode, text, tc.byLink)
			}
			b.open(other.url)
			if text := b.click("#form"); text != tc.byForm {
				t.Errorf("%v, by a form: %s, want %s", tc.mode, text, tc.byForm)
			}
			if text := b.open(app.url + "/who"); text != `GET by "ann"` {
				t.Errorf("%v, from there on: %s", tc.mode, text)
			}
		}
	})
}

// A browser that refuses the cookie is not logged in, and the log says why.
func TestARefusedCookie(t *testing.T) {
	client := redistest.Start(t).Client()
	for name, tc := range map[string]struct {
		cookie http.Cookie
		host   string
		tls    bool
		told   string
	}{
		"Secure over plain HTTP":   {http.Cookie{}, "app.test", false, "plain HTTP"},
		"Domain of another host":   {http.Cookie{Name: "s", Domain: "other.test"}, "app.test", true, "Domain"},
		"Domain of a host within":  {http.Cookie{Name: "s", Domain: "www.app.test"}, "app.test", true, "Domain"},
		"Domain of the site, kept": {http.Cookie{Name: "s", Domain: "site.test"}, "app.site.test", true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, client, middleware.Sessions{Cookie: tc.cookie})
			server := httptest.NewUnstartedServer(s)
			defer server.Close()
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
			if tc.tls {
				server.StartTLS()
			} else {
				server.Start()
			}
			b := start(t)
			b.open(strings.Replace(server.URL, "127.0.0.1", tc.host, 1))
			text := b.click("#login")
			kept := len(b.cookies()) > 0
			if in := strings.Contains(text, `user: "ann"`); in != kept || kept != (tc.told == "") {
				t.Errorf("kept %v, logged in %v", kept, in)
			}
			if told := strings.Contains(s.log.String(), "browsers drop"); told != (tc.told != "") || !strings.Contains(s.log.String(), tc.told) {
				t.Errorf("told %v:\n%s", told, s.log.String())
			}
		})
	}
}

// A login with another site that answers with a form finds the state that it left, in a session of
// its own; that of the application stays Lax.
func TestOAuthByFormPost(t *testing.T) {
	client := redistest.Start(t).Client()
	states := must(session.New(client, session.Config{Prefix: "oauth:", Lifetime: 10 * time.Minute}))
	sessions := must(session.New(client, session.Config{}))
	each(t, func(t *testing.T, serve func(string, http.Handler) site) {
		mux := http.NewServeMux()
		app := serve("app", mux)
		if !app.tls {
			return // a cookie for cross-site forms is Secure, and so needs TLS
		}
		provider := serve("provider", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<body onload="document.forms[0].submit()"><form method=post action="%s/callback"><input name=state value="%s"></form>`,
				app.url, html.EscapeString(r.FormValue("state")))
		}))
		withState := middleware.Sessions{Manager: states, Cookie: http.Cookie{Name: "__Host-oauth", SameSite: http.SameSiteNoneMode}}
		mux.Handle("GET /start", withState.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			states.Put(r.Context(), "state", "xyz")
			http.Redirect(w, r, provider.url+"/?state=xyz", http.StatusSeeOther)
		})))
		site := middleware.Sessions{Manager: sessions}
		mux.Handle("POST /callback", withState.Handler(site.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			state, err := states.PopOnce(r.Context(), "state")
			if err != nil || state != r.FormValue("state") {
				http.Error(w, fmt.Sprint("state ", state, err), http.StatusForbidden)
				return
			}
			if err := sessions.Login(r.Context(), "ann"); err != nil {
				t.Error(err)
			}
			http.Redirect(w, r, "/", http.StatusSeeOther)
		}))))
		mux.Handle("GET /{$}", site.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "user: %q", sessions.UserID(r.Context()))
		})))
		b := start(t)
		run(b, chromedp.Navigate(app.url+"/start"))
		for deadline := time.Now().Add(30 * time.Second); run(b, chromedp.Location()) != app.url+"/"; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(b.text())
			}
		}
		if text := b.text(); text != `user: "ann"` {
			t.Error(text)
		}
		if c := b.cookies(); c["__Host-session"] == nil || c["__Host-session"].SameSite != network.CookieSameSiteLax || c["__Host-oauth"] == nil {
			t.Errorf("%v", c)
		}
	})
}
