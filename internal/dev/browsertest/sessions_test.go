package browsertest

import (
	"cmp"
	"fmt"
	"html"
	"maps"
	"net/http"
	"slices"
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
	s := &shop{sessions: must(session.New(client, session.Config{Timeout: 10 * time.Second}))}
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
		page(w, `<p>user: %q note: %q</p><form method=post action=/login><button id=login>Log in</button></form>`, s.sessions.UserID(r.Context()), s.sessions.GetString(r.Context(), "note"))
	})
	mux.HandleFunc("GET /note", func(w http.ResponseWriter, r *http.Request) {
		s.sessions.Put(r.Context(), "note", r.FormValue("note"))
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
	mux.Handle("GET /renewed", user.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := s.sessions.Rotate(r.Context()); err != nil {
			t.Error(err)
		}
		w.Header().Set("Cache-Control", "max-age=600")
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
	each(t, func(t *testing.T, b *browser, serve func(string, http.Handler) site) {
		s := newShop(t, client, middleware.Sessions{})
		app := serve("app", s)
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
	each(t, func(t *testing.T, b *browser, serve func(string, http.Handler) site) {
		app := serve("app", newShop(t, client, middleware.Sessions{}))
		one, two := b, b.tab()
		one.open(app.url + "/")
		two.open(app.url + "/")
		one.click("#login")
		if text := two.open(app.url + "/"); !strings.Contains(text, `user: "ann"`) {
			t.Error("after the login:", text)
		}
		two.open(app.url + "/note?note=apples")
		if text := one.open(app.url + "/"); !strings.Contains(text, `note: "apples"`) {
			t.Error("after a change:", text)
		}
		two.open(app.url + "/private")
		one.open(app.url + "/private")
		two.click("#logout")
		if text := one.open(app.url + "/private"); !strings.Contains(text, "Nobody is logged in") {
			t.Error("after the logout:", text)
		}
	})
}

// The back button shows no private page after a logout, if the page was not to be stored or set the
// cookie. The browser shows a page that says nothing of it again, as it was.
func TestBackAfterLogout(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, b *browser, serve func(string, http.Handler) site) {
		app := serve("app", newShop(t, client, middleware.Sessions{}))
		for path, shown := range map[string]bool{"/private": false, "/renewed": false, "/careless": true} {
			b.open(app.url + "/")
			b.click("#login")
			b.open(app.url + path)
			b.click("#logout")
			text, kept := b.back()
			if strings.Contains(text, "private page of ann") != shown || kept != shown || !shown && !strings.Contains(text, "Nobody is logged in") {
				t.Errorf("%s: kept %v, want %v: %s", path, kept, shown, text)
			}
		}
	})
}

// A form that is sent twice, by a second click or by reloading its answer, is one order.
func TestAFormPostedTwice(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, b *browser, serve func(string, http.Handler) site) {
		s := newShop(t, client, middleware.Sessions{})
		app := serve("app", s)
		b.open(app.url + "/order")
		run(b, chromedp.Evaluate[[]string](`Promise.all([1, 2, 3].map(() => fetch("/order", {method: "POST"}).then(r => r.text())))`, chromedp.EvalAwaitPromise))
		if n := s.orders.Load(); n != 1 {
			t.Errorf("three at once: %d orders", n)
		}
		b.open(app.url + "/order")
		run(b, chromedp.DoubleClick("#order"))
		b.until("document.body?.innerText.includes('ordered')")
		if n := s.orders.Load(); n != 2 {
			t.Errorf("a double click: %d orders", n-1)
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
		want := map[string]int64{"this was ordered already": 3, "ordered for 3 apples": 4}
		if text := b.click("#order"); s.orders.Load() != want[text] {
			t.Errorf("back, and once more: %s: %d orders", text, s.orders.Load())
		}
	})
}

// A visitor from another site is known by a link or a redirect if the cookie is Lax, by a form only if it
// is None, and by nothing if it is Strict, until they go on from there.
func TestFromAnotherSite(t *testing.T) {
	client := redistest.Start(t).Client()
	each(t, func(t *testing.T, b *browser, serve func(string, http.Handler) site) {
		modes := map[string]http.SameSite{"lax": http.SameSiteLaxMode, "none": http.SameSiteNoneMode, "strict": http.SameSiteStrictMode}
		managers := map[string]*session.Manager{}
		var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			text := r.Method + " with"
			for _, name := range slices.Sorted(maps.Keys(managers)) {
				if r.URL.Path == "/login" {
					if err := managers[name].Login(r.Context(), "ann"); err != nil {
						t.Error(err)
					}
				}
				if managers[name].UserID(r.Context()) == "ann" {
					text += " " + name
				}
			}
			fmt.Fprint(w, text)
		})
		for name, mode := range modes {
			managers[name] = must(session.New(client, session.Config{Prefix: name + ":", Timeout: 10 * time.Second}))
			h = middleware.Sessions{Manager: managers[name], Cookie: http.Cookie{Name: name, SameSite: mode}, Logger: quiet}.Handler(h)
		}
		app := serve("app", h)
		other := serve("other", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/redirect" {
				http.Redirect(w, r, app.url+"/who", http.StatusSeeOther)
				return
			}
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<a id=link href="%[1]s/who">link</a> <a id=redirect href=/redirect>redirect</a>
				<form method=post action="%[1]s/who"><button id=form>form</button></form>`, app.url)
		}))
		kept := map[string]network.CookieSameSite{"lax": network.CookieSameSiteLax, "none": network.CookieSameSiteNone, "strict": network.CookieSameSiteStrict}
		byForm := "POST with none"
		if !app.tls { // None takes Secure
			kept["none"], byForm = network.CookieSameSiteLax, "POST with"
		}
		b.open(app.url + "/login")
		for name, c := range b.cookies() {
			if c.SameSite != kept[name] || c.Secure != app.tls {
				t.Errorf("%s is kept as %+v", name, c)
			}
		}
		for _, tc := range []struct{ way, want string }{
			{"#link", "GET with lax none"}, {"#redirect", "GET with lax none"}, {"#form", byForm},
		} {
			b.open(other.url)
			if text := b.click(tc.way); text != tc.want {
				t.Errorf("by %s: %s, want %s", tc.way, text, tc.want)
			}
		}
		if text := b.open(app.url + "/who"); text != "GET with lax none strict" {
			t.Errorf("from there on: %s", text)
		}
	})
}

// A browser that refuses the cookie is not logged in, and the log says why, once.
func TestARefusedCookie(t *testing.T) {
	client := redistest.Start(t).Client()
	b := start(t)
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
			b := b.stranger(t)
			s := newShop(t, client, middleware.Sessions{Cookie: tc.cookie})
			b.open(listen(t, tc.host, tc.tls, s).url)
			b.click("#login")
			text := b.click("#login")
			kept := len(b.cookies()) > 0
			if in := strings.Contains(text, `user: "ann"`); in != kept || kept != (tc.told == "") {
				t.Errorf("kept %v, logged in %v", kept, in)
			}
			if told := strings.Count(s.log.String(), "browsers drop"); told > 1 || (told == 1) != (tc.told != "") || !strings.Contains(s.log.String(), tc.told) {
				t.Errorf("told %d times:\n%s", told, s.log.String())
			}
		})
	}
}

// Validate refuses a cookie that the browser drops wherever it is sent, and no other.
func TestACookieThatNoHostCanSet(t *testing.T) {
	manager := must(session.New(redistest.Start(t).Client(), session.Config{Timeout: 10 * time.Second}))
	table := []struct {
		name   string
		cookie http.Cookie
		kept   bool
	}{
		{"__Host-", http.Cookie{Name: "__Host-a"}, true},
		{"__Host- with a Domain", http.Cookie{Name: "__Host-b", Domain: "app.test"}, false},
		{"__Host- with a Path", http.Cookie{Name: "__Host-c", Path: "/shop"}, false},
		{"__host- with a Path", http.Cookie{Name: "__host-d", Path: "/shop"}, false},
		{"__Host-Http- with a Domain", http.Cookie{Name: "__Host-Http-e", Domain: "app.test"}, false},
		{"__Secure- with a Domain and a Path", http.Cookie{Name: "__Secure-f", Domain: "app.test", Path: "/shop"}, true},
		{"Domain that is a public suffix", http.Cookie{Name: "g", Domain: "test"}, false},
		{"SameSite=None, made Secure", http.Cookie{Name: "h", SameSite: http.SameSiteNoneMode}, true},
	}
	b := start(t)
	b.open(listen(t, "app.test", true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, tc := range table {
			c := tc.cookie
			c.Value, c.Secure, c.HttpOnly, c.Path = "1", true, true, cmp.Or(c.Path, "/")
			http.SetCookie(w, &c)
		}
	})).url)
	cookies := b.cookies()
	for _, tc := range table {
		if kept := cookies[tc.cookie.Name] != nil; kept != tc.kept {
			t.Errorf("%s: the browser kept it: %v", tc.name, kept)
		}
		if err := (middleware.Sessions{Manager: manager, Cookie: tc.cookie}).Validate(); (err == nil) != tc.kept {
			t.Errorf("%s: Validate: %v", tc.name, err)
		}
	}
}

// A login with another site that answers with a form finds the state that it left, in a session of
// its own; that of the application stays Lax. Over plain HTTP to localhost the state's cookie is Lax, too,
// and the answer does not find it.
func TestOAuthByFormPost(t *testing.T) {
	client := redistest.Start(t).Client()
	states := must(session.New(client, session.Config{Prefix: "oauth:", Lifetime: 10 * time.Minute, Timeout: 10 * time.Second}))
	sessions := must(session.New(client, session.Config{Timeout: 10 * time.Second}))
	each(t, func(t *testing.T, b *browser, serve func(string, http.Handler) site) {
		mux := http.NewServeMux()
		app := serve("app", mux)
		provider := serve("provider", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprintf(w, `<body onload="document.forms[0].submit()"><form method=post action="%s/callback"><input name=state value="%s"></form>`,
				app.url, html.EscapeString(r.FormValue("state")))
		}))
		withState := middleware.Sessions{Manager: states, Cookie: http.Cookie{Name: "__Host-oauth", SameSite: http.SameSiteNoneMode}, Logger: quiet}
		mux.Handle("GET /start", withState.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			states.Put(r.Context(), "oauth xyz", "verifier")
			http.Redirect(w, r, provider.url+"/?state=xyz", http.StatusSeeOther)
		})))
		site := middleware.Sessions{Manager: sessions, Logger: quiet}
		mux.Handle("POST /callback", withState.Handler(site.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			verifier, err := states.PopOnce(r.Context(), "oauth "+r.FormValue("state"))
			if err != nil || verifier != "verifier" {
				http.Error(w, fmt.Sprintf("state: %v, %v", verifier, err), http.StatusForbidden)
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
		run(b, chromedp.Navigate(app.url+"/start"))
		b.until("/^(user|state): /.test(document.body?.innerText)")
		c := b.cookies()
		if !app.tls {
			if text := b.text(); text != "state: <nil>, <nil>" || c["oauth"] == nil || c["oauth"].SameSite != network.CookieSameSiteLax {
				t.Errorf("%s with %+v", text, c["oauth"])
			}
			return
		}
		if text := b.text(); text != `user: "ann"` {
			t.Error(text)
		}
		if c["__Host-session"] == nil || c["__Host-session"].SameSite != network.CookieSameSiteLax ||
			c["__Host-oauth"] == nil || c["__Host-oauth"].SameSite != network.CookieSameSiteNone {
			t.Errorf("%v", c)
		}
	})
}
