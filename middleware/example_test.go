package middleware_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// connect returns a client of a Redis in process. A service uses its own.
func connect() (client redis.UniversalClient, stop func()) {
	mini, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	client = redis.NewClient(&redis.Options{Addr: mini.Addr()})
	return client, func() { client.Close(); mini.Close() }
}

// visitor is a browser of sorts: it keeps its cookies and shows what comes back.
type visitor struct {
	site    http.Handler
	cookies []*http.Cookie
}

func (v *visitor) send(method, target string) {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = "192.0.2.7:4000"
	r.Header.Set("Accept", "text/plain")
	for _, c := range v.cookies {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	v.site.ServeHTTP(w, r)
	v.cookies = append(w.Result().Cookies(), v.cookies...)
	first, _, _ := strings.Cut(w.Body.String(), "\n")
	fmt.Println(strings.TrimSpace(fmt.Sprint(method, " ", target, " ", w.Code, " ", first)))
}

func ExampleSessions() {
	client, stop := connect()
	defer stop()
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		panic(err)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		// Here the password has been checked.
		if err := sessions.Login(r.Context(), "ann"); err != nil {
			http.Error(w, "login failed", http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /me", func(w http.ResponseWriter, r *http.Request) {
		visits := sessions.GetInt(r.Context(), "visits") + 1
		sessions.Put(r.Context(), "visits", visits)
		fmt.Fprintf(w, "user %q, visit %d", sessions.UserID(r.Context()), visits)
	})
	site := middleware.Sessions{Manager: sessions}.Handler(mux)

	browser := &visitor{site: site}
	browser.send("GET", "/me")
	browser.send("POST", "/login")
	browser.send("GET", "/me")
	// Output:
	// GET /me 200 user "", visit 1
	// POST /login 204
	// GET /me 200 user "ann", visit 2
}

func ExampleRequireFresh() {
	client, stop := connect()
	defer stop()
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		panic(err)
	}

	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		sessions.Login(r.Context(), "ann")
	})
	account := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "the account of ", sessions.UserID(r.Context()))
	})
	password := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "changed") })
	mux.Handle("GET /account", middleware.RequireUser{Manager: sessions}.Handler(account))
	mux.Handle("POST /password", middleware.RequireFresh{Manager: sessions, MaxAge: time.Nanosecond}.Handler(password))

	browser := &visitor{site: middleware.Sessions{Manager: sessions}.Handler(mux)}
	browser.send("GET", "/account")
	browser.send("POST", "/login")
	browser.send("GET", "/account")
	time.Sleep(2 * time.Millisecond) // sessions know the time to the millisecond
	browser.send("POST", "/password")
	// Output:
	// GET /account 401 Unauthorized
	// POST /login 200
	// GET /account 200 the account of ann
	// POST /password 403 Fresh login required
}

func ExampleRateLimit() {
	client, stop := connect()
	defer stop()
	limiter, err := ratelimit.NewSlidingWindow(client, "search", ratelimit.PerMinute(2), ratelimit.Config{})
	if err != nil {
		panic(err)
	}

	search := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "left: ", w.Header().Get("X-RateLimit-Remaining"))
	})
	mux := http.NewServeMux()
	mux.Handle("GET /search", middleware.RateLimit{
		Limiter: limiter,
		Key:     middleware.ByIP(middleware.PeerIP),
	}.Handler(search))

	browser := &visitor{site: mux}
	browser.send("GET", "/search?q=a")
	browser.send("GET", "/search?q=b")
	browser.send("GET", "/search?q=c")
	// Output:
	// GET /search?q=a 200 left: 1
	// GET /search?q=b 200 left: 0
	// GET /search?q=c 429 Too Many Requests
}

// A login form counts the attempts that fail, whoever makes them for whatever
// name.
func ExampleRateLimit_failuresOnly() {
	client, stop := connect()
	defer stop()
	limiter, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerHour(2), ratelimit.Config{})
	if err != nil {
		panic(err)
	}

	login := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("password") != "secret" {
			http.Error(w, "wrong password", http.StatusUnauthorized)
			return
		}
		middleware.Succeeded(r)
	})
	browser := &visitor{site: middleware.RateLimit{
		Limiter:      limiter,
		Key:          middleware.ByIP(middleware.PeerIP),
		FailuresOnly: true,
	}.Handler(login)}
	for _, password := range []string{"secret", "guess", "secret", "guess", "secret"} {
		browser.send("POST", "/?password="+password)
	}
	// Output:
	// POST /?password=secret 200
	// POST /?password=guess 401 wrong password
	// POST /?password=secret 200
	// POST /?password=guess 401 wrong password
	// POST /?password=secret 429 Too Many Requests
}

// A download costs what is sent, which is known afterwards.
func ExampleDecision_Settle() {
	client, stop := connect()
	defer stop()
	limiter, err := ratelimit.NewTokenBucket(client, "bytes", ratelimit.PerHour(100), ratelimit.Config{})
	if err != nil {
		panic(err)
	}

	download := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent, _ := io.WriteString(w, strings.Repeat("x", 60))
		for _, d := range middleware.DecisionsOf(r) {
			if err := d.Settle(r.Context(), sent); err != nil {
				fmt.Println(err)
			}
		}
	})
	site := middleware.RateLimit{
		Limiter: limiter,
		Key:     middleware.ByIP(middleware.PeerIP),
	}.Handler(download)
	for range 3 {
		w := httptest.NewRecorder()
		site.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		fmt.Println(w.Code, "left before sending:", w.Header().Get("X-RateLimit-Remaining"))
	}
	// Output:
	// 200 left before sending: 99
	// 200 left before sending: 39
	// 429 left before sending: 0
}

// One table in front of any router.
func ExampleRoutes() {
	limit := func(name string, l ratelimit.Limit) middleware.RateLimit {
		limiter, err := ratelimit.NewLocal(name, l, ratelimit.Config{})
		if err != nil {
			panic(err)
		}
		return middleware.RateLimit{Limiter: limiter, Key: middleware.ByIP(middleware.PeerIP)}
	}
	anyRouter := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "limit: ", w.Header().Get("X-RateLimit-Limit"))
	})
	browser := &visitor{site: middleware.Routes{
		"POST /login":     limit("login", ratelimit.PerMinute(5)),
		"/api/":           limit("api", ratelimit.PerMinute(100)),
		"GET /api/export": limit("export", ratelimit.PerHour(1)),
	}.Handler(anyRouter)}
	browser.send("POST", "/login")
	browser.send("GET", "/api/users")
	browser.send("GET", "/api/export")
	browser.send("GET", "/api/export")
	browser.send("GET", "/about")
	// Output:
	// POST /login 200 limit: 5
	// GET /api/users 200 limit: 100
	// GET /api/export 200 limit: 1
	// GET /api/export 429 Too Many Requests
	// GET /about 200 limit:
}

// Users are counted by name, everybody else by address.
func ExampleFirstOf() {
	client, stop := connect()
	defer stop()
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		panic(err)
	}
	key := middleware.FirstOf(
		middleware.ByUser(sessions),
		middleware.ByIP(middleware.ForwardedFor(netip.MustParsePrefix("10.0.0.0/8"))),
	)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) { sessions.Login(r.Context(), "ann") })
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		k, err := key(r)
		fmt.Fprint(w, k, " ", err)
	})
	browser := &visitor{site: middleware.Sessions{Manager: sessions}.Handler(mux)}
	browser.send("GET", "/")
	browser.send("POST", "/login")
	browser.send("GET", "/")
	// Output:
	// GET / 200 ip:192.0.2.7 <nil>
	// POST /login 200
	// GET / 200 user:ann <nil>
}

// Each user has a limit of her own for each route.
func ExampleJoin() {
	byAddress := middleware.Join(middleware.ByRoute, middleware.ByIP(middleware.PeerIP))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		key, _ := byAddress(r)
		fmt.Fprintf(w, "%q", ratelimit.SplitKey(key))
	})
	browser := &visitor{site: mux}
	browser.send("GET", "/users/1")
	browser.send("GET", "/users/2")
	// Output:
	// GET /users/1 200 ["route:GET /users/{id}" "ip:192.0.2.7"]
	// GET /users/2 200 ["route:GET /users/{id}" "ip:192.0.2.7"]
}

// A handler of somebody else calls no Succeeded: here an answer does that only a success has, to the letter.
// A status alone is none, as who fails is redirected, too, or gets a page with 200. Look at what the handler
// does: one that sends who is logged in already to the same place, whatever the password, cannot be told
// apart so. Where it calls [session.Manager.Login], ask instead whether Info.AuthenticatedAt is later than before.
func ExampleSucceeded() {
	limiter, err := ratelimit.NewLocal("login", ratelimit.PerHour(2), ratelimit.Config{})
	if err != nil {
		panic(err)
	}
	theirs := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("password") != "secret" {
			http.Redirect(w, r, "/login?wrong", http.StatusSeeOther)
			return
		}
		http.Redirect(w, r, "/account", http.StatusSeeOther)
	})
	browser := &visitor{site: middleware.RateLimit{
		Limiter: limiter, Key: middleware.ByIP(middleware.PeerIP), FailuresOnly: true,
	}.Handler(succeedsBy(http.StatusSeeOther, "/account", theirs))}
	for _, password := range []string{"secret", "secret", "secret", "guess", "guess", "guess"} {
		browser.send("POST", "/?password="+password)
	}
	// Output:
	// POST /?password=secret 303
	// POST /?password=secret 303
	// POST /?password=secret 303
	// POST /?password=guess 303
	// POST /?password=guess 303
	// POST /?password=guess 429 Too Many Requests
}

// succeedsBy calls Succeeded for next where it answers with a status and a Location.
func succeedsBy(status int, location string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := &answered{ResponseWriter: w}
		next.ServeHTTP(a, r)
		if a.status == status && a.location == location {
			middleware.Succeeded(r)
		}
	})
}

// answered remembers the answer that the client gets. It has no Unwrap, by which a handler could answer past it.
type answered struct {
	http.ResponseWriter
	status   int // 0: none
	location string
}

func (a *answered) WriteHeader(status int) {
	if a.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) { // others come before the answer
		a.status, a.location = status, a.Header().Get("Location")
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answered) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.ResponseWriter.Write(b)
}

// A service with sessions and limits. The outermost handler refuses cross-site posts.
func Example() {
	client, stop := connect() // in a service redis.NewClient(…)
	defer stop()
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		panic(err)
	}
	logins, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(2), ratelimit.Config{})
	if err != nil {
		panic(err)
	}
	limit := middleware.RateLimit{Limiter: logins, Key: middleware.ByIP(middleware.PeerIP)}

	mux := http.NewServeMux()
	mux.Handle("POST /login", limit.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := sessions.Login(r.Context(), "ann"); err != nil { // the password has been checked
			http.Error(w, "login failed", http.StatusServiceUnavailable)
		}
	})))
	mux.Handle("GET /account", middleware.RequireUser{Manager: sessions}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "account of", sessions.UserID(r.Context()))
	})))
	site := http.NewCrossOriginProtection().Handler(middleware.Sessions{Manager: sessions}.Handler(mux))

	browser := &visitor{site: site}
	browser.send("GET", "/account")
	browser.send("POST", "/login")
	browser.send("GET", "/account")
	browser.send("POST", "/login")
	browser.send("POST", "/login")
	// Output:
	// GET /account 401 Unauthorized
	// POST /login 200
	// GET /account 200 account of ann
	// POST /login 200
	// POST /login 429 Too Many Requests
}

// WRONG: behind a proxy PeerIP is the proxy, so that all clients share one limit. RIGHT:
// ForwardedFor, with the proxies named.
func ExamplePeerIP() {
	limited := func(key middleware.KeyFunc) http.Handler {
		limiter, err := ratelimit.NewLocal("pages", ratelimit.PerMinute(1), ratelimit.Config{})
		if err != nil {
			panic(err)
		}
		return middleware.RateLimit{Limiter: limiter, Key: key}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}
	for name, site := range map[string]http.Handler{
		"wrong": limited(middleware.ByIP(middleware.PeerIP)),
		"right": limited(middleware.ByIP(middleware.ForwardedFor(netip.MustParsePrefix("10.0.0.0/8")))),
	} {
		for _, client := range []string{"198.51.100.1", "198.51.100.2"} { // each sends one request
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = "10.0.0.1:4000" // the proxy
			r.Header.Set("X-Forwarded-For", client)
			w := httptest.NewRecorder()
			site.ServeHTTP(w, r)
			fmt.Println(name, client, w.Code)
		}
	}
	// Unordered output:
	// wrong 198.51.100.1 200
	// wrong 198.51.100.2 429
	// right 198.51.100.1 200
	// right 198.51.100.2 200
}

// WRONG: what recovers from panics stands inside of Sessions, which then takes the answer for an
// ordinary one and saves what the handler had done so far. RIGHT: it stands outside.
func ExampleSessions_recover() {
	client, stop := connect()
	defer stop()
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		panic(err)
	}
	recoverer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					http.Error(w, "sorry", http.StatusInternalServerError)
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /buy", func(w http.ResponseWriter, r *http.Request) {
		sessions.Put(r.Context(), "paid", true)
		panic("the shop has broken")
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "paid:", sessions.GetBool(r.Context(), "paid"))
	})
	around := middleware.Sessions{Manager: sessions}
	for _, site := range []http.Handler{around.Handler(recoverer(mux)), recoverer(around.Handler(mux))} {
		browser := &visitor{site: site}
		browser.send("POST", "/buy")
		browser.send("GET", "/")
	}
	// Output:
	// POST /buy 500 sorry
	// GET / 200 paid: true
	// POST /buy 500 sorry
	// GET / 200 paid: false
}
