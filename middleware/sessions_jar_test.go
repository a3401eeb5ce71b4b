package middleware_test

import (
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

var secretsOf = map[string]session.Config{
	"plain": {},
	"sealed": {
		Secrets:   [][]byte{[]byte("0123456789abcdef0123456789abcdef")},
		KeySecret: []byte("a key secret of 32 bytes, always"),
	},
}

// send has a handler answer a request with some cookies, in that order.
func send(h http.Handler, path string, values ...string) *http.Response {
	r := httptest.NewRequest("GET", path, nil)
	for _, v := range values {
		r.Header.Add("Cookie", ours+"="+v)
	}
	return answer(h, r)
}

// Of several cookies of one name the live one counts, wherever it stands: browsers send
// one for each Path and Domain, and keep what other services and sibling hosts have set.
func TestSeveralCookiesOfOneName(t *testing.T) {
	for kind, cfg := range secretsOf {
		t.Run(kind, func(t *testing.T) {
			mini := miniredis.RunT(t)
			client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
			defer client.Close()
			cfg.Timeout, cfg.Logger = time.Minute, slog.New(slog.DiscardHandler)
			m := must(session.New(client, cfg))
			h := shop(t, m, nil)
			cookie := func(path string, sent ...string) string {
				t.Helper()
				set := cookies(send(h, path, sent...).Header, ours)
				if len(set) != 1 {
					t.Fatalf("%s sets %v", path, set)
				}
				return set[0].Value
			}
			// What else may have the name.
			loggedOut := cookie("/login?user=ann", cookie("/cart"))
			send(h, "/logout", loggedOut)
			expired := cookie("/cart")
			advance(t, over(mini), 25*time.Hour, m)
			visitor := cookie("/cart")
			beforeLogin := visitor
			bob := func() string { // of another service on the same Redis
				other := cfg
				other.Prefix = "other:"
				if cfg.Secrets != nil {
					other.Secrets = [][]byte{[]byte("another secret that has 32 bytes")}
				}
				o := shop(t, must(session.New(client, other)), nil)
				return cookies(send(o, "/login?user=bob").Header, ours)[0].Value
			}()
			live := cookie("/login?user=ann", visitor)
			forged := strings.Map(func(c rune) rune {
				switch c {
				case 'a':
					return 'b'
				case 'b':
					return 'a'
				}
				return c
			}, live[:len(live)-8]) + live[len(live)-8:]
			others := map[string]string{
				"a logged out one":          loggedOut,
				"an expired one":            expired,
				"one from before the login": beforeLogin,
				"another service's":         bob,
				"a forged one":              forged,
				"garbage":                   "garbage",
				"an empty one":              "",
				"a quoted one":              `"quoted"`,
				"with spaces":               "a b c",
				"a long one":                strings.Repeat("x", 100_000),
				"a legacy token":            strings.Repeat("x", 43),
			}
			const want = "ann cart=book k="
			check := func(name string, sent ...string) {
				t.Helper()
				res := send(h, "/see", sent...)
				body, _ := io.ReadAll(res.Body)
				if string(body) != want || res.Header["Set-Cookie"] != nil {
					t.Errorf("%s: %q, and sets %q", name, body, res.Header["Set-Cookie"])
				}
			}
			check("alone", live)
			for name, other := range others {
				check(name+" in front", other, live)
				check(name+" behind", live, other)
				check(name+" around", other, live, other)
				// In one field, as browsers send it.
				r := httptest.NewRequest("GET", "/see", nil)
				r.Header.Set("Cookie", fmt.Sprintf("a=1; %s=%s; %s=%s; b=2", ours, other, ours, live))
				if body, _ := io.ReadAll(answer(h, r).Body); string(body) != want {
					t.Errorf("%s in front, in one field: %q", name, body)
				}
			}
			check("three that lead nowhere", loggedOut, expired, beforeLogin, live)
			var ten []string
			for range 10 {
				ten = append(ten, "garbage")
			}
			check("behind ten", append(ten, live)...)
			if kind == "sealed" {
				var forgeries []string
				for i := range 10 {
					forgeries = append(forgeries, forged[:20]+fmt.Sprint(i)+forged[21:])
				}
				check("behind ten forged ones", append(forgeries, live)...)
			}
			// A change with several cookies is one of the session that counts.
			send(h, "/logout", loggedOut, live, bob)
			if body, _ := io.ReadAll(send(h, "/see", live).Body); string(body) != " cart= k=" {
				t.Errorf("after a logout: %q", body)
			}
		})
	}
}

// A megabyte of cookies of the name costs a bounded number of commands and allocations.
func TestAMegabyteOfCookies(t *testing.T) {
	for kind, cfg := range secretsOf {
		t.Run(kind, func(t *testing.T) {
			mini := miniredis.RunT(t)
			client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
			defer client.Close()
			cfg.Timeout, cfg.Logger = time.Minute, slog.New(slog.DiscardHandler)
			m := must(session.New(client, cfg))
			h := middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			valid := func() string { // leads nowhere, and is signed
				ctx := must(m.Load(t.Context()))
				m.Put(ctx, "k", 1)
				out := must(m.Finish(ctx))
				ctx = must(m.Load(t.Context(), out.Value))
				if err := m.Logout(ctx); err != nil {
					t.Fatal(err)
				}
				return out.Value
			}
			for name, value := range map[string]func(i int) string{
				"garbage":     func(i int) string { return "x" },
				"empty":       func(i int) string { return "" },
				"no values":   func(i int) string { return "a,b" },
				"forged":      func(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), 8) },
				"forged long": func(i int) string { return strings.Repeat(fmt.Sprintf("%08d", i), 18) },
				"one line":    nil,
				"signed":      func(i int) string { return valid() },
			} {
				line := func(bytes int) string {
					if value == nil {
						return ours + "=" + strings.Repeat("x", bytes)
					}
					var b strings.Builder
					if name == "signed" {
						for b.Len() < 40*200 && b.Len() < bytes { // as many as are worth making
							fmt.Fprintf(&b, "%s=%s; ", ours, valid())
						}
						v := valid()
						for b.Len() < bytes {
							fmt.Fprintf(&b, "%s=%s; ", ours, v)
						}
						return b.String()
					}
					for i := 0; b.Len() < bytes; i++ {
						fmt.Fprintf(&b, "%s=%s; ", ours, value(i))
					}
					return b.String()
				}
				cost := func(line string) (commands int, allocs float64) {
					r := request("")
					r.Header.Set("Cookie", line)
					answer(h, r) // what is learned once
					before := mini.CommandCount()
					answer(h, r)
					commands = mini.CommandCount() - before
					allocs = math.Inf(1)
					for range 5 { // the collector empties pools now and then
						allocs = min(allocs, testing.AllocsPerRun(5, func() { answer(h, r) }))
					}
					return commands, allocs
				}
				_, few := cost(line(10_000))
				commands, many := cost(line(1 << 20))
				if commands > 4 {
					t.Errorf("%s: %d commands", name, commands)
				}
				if many > 2*few+20 { // the race detector takes things from pools; each cookie would be thousands
					t.Errorf("%s: %v allocations, and %v for a hundredth of it", name, many, few)
				}
			}
		})
	}
}

// An old server and a new one share a browser, and a store with the old server's sessions.
type move struct {
	t        *testing.T
	old, new *site
	store    scs.Store
	sessions *session.Manager
}

func newMove(t *testing.T, legacyName string, s middleware.Sessions, set func(*scs.SessionManager)) *move {
	store := memstore.NewWithCleanupInterval(0)
	before := scs.New()
	before.Store = store
	before.Cookie.Name = legacyName
	set(before)
	old := http.NewServeMux()
	old.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := before.RenewToken(r.Context()); err != nil {
			t.Error(err)
		}
		before.Put(r.Context(), "user", "ann")
		before.Put(r.Context(), "cart", "book")
	})
	old.HandleFunc("/see", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s cart=%s k=%s", before.GetString(r.Context(), "user"), before.GetString(r.Context(), "cart"), before.GetString(r.Context(), "k"))
	})
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { client.Close() })
	m := must(session.New(client, session.Config{
		Timeout: time.Minute, Persistent: before.Cookie.Persist, Logger: slog.New(slog.DiscardHandler),
		Legacy: session.Legacy{Store: store, User: func(values map[string]any) string { u, _ := values["user"].(string); return u }},
	}))
	s.Manager, s.LegacyCookie, s.Logger = m, legacyName, slog.New(slog.DiscardHandler)
	after := http.NewServeMux()
	after.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := m.Login(r.Context(), r.FormValue("user")); err != nil {
			t.Error(err)
		}
	})
	after.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := m.Logout(r.Context()); err != nil {
			t.Error(err)
		}
	})
	after.HandleFunc("/put", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "k", "new") })
	after.HandleFunc("/see", func(w http.ResponseWriter, r *http.Request) { see(w, r, m) })
	mv := &move{t, serve(t, before.LoadAndSave(old)), serve(t, s.Handler(after)), store, m}
	mv.new.client.Jar = mv.old.client.Jar // both are 127.0.0.1, and ports do not matter to cookies
	return mv
}

func (m *move) sees(by *site, want string) reply {
	m.t.Helper()
	res := by.get("/see")
	if res.body != want {
		m.t.Errorf("the browser sees %q, want %q", res.body, want)
	}
	return res
}

// legacy returns the browser's cookie of a name.
func (m *move) cookie(name string) string {
	r, err := http.NewRequest("GET", m.new.URL, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, c := range m.new.client.Jar.Cookies(r.URL) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

func (m *move) gone(res reply, name string) {
	m.t.Helper()
	if set := cookies(res.Header, name); len(set) != 1 || set[0].MaxAge >= 0 {
		m.t.Errorf("%s is not deleted: %v", name, set)
	}
}

func TestLegacyCookieBesideOurs(t *testing.T) {
	for name, s := range map[string]middleware.Sessions{
		"":                  {},
		"a name of its own": {Cookie: http.Cookie{Name: "session"}},
	} {
		t.Run(name, func(t *testing.T) {
			own := ours
			if s.Cookie.Name != "" {
				own = s.Cookie.Name
			}
			start := func() *move {
				m := newMove(t, "old", s, func(*scs.SessionManager) {})
				m.old.get("/login")
				if res := m.sees(m.new, "ann cart=book k="); len(cookies(res.Header, own)) != 1 || len(res.Header["Set-Cookie"]) != 1 {
					t.Errorf("the first request sets %q", res.Header["Set-Cookie"])
				}
				return m
			}
			m := start()
			// Side by side, and back again.
			for range 3 {
				m.sees(m.old, "ann cart=book k=")
				if res := m.sees(m.new, "ann cart=book k="); res.Header["Set-Cookie"] != nil {
					t.Errorf("another request sets %q", res.Header["Set-Cookie"])
				}
			}
			m.new.get("/put")
			m.sees(m.new, "ann cart=book k=new")
			m.sees(m.old, "ann cart=book k=")
			legacy := m.cookie("old")
			res := m.new.get("/logout")
			m.gone(res, own)
			m.gone(res, "old")
			if _, ok, _ := m.store.Find(legacy); ok {
				t.Error("old servers still know the session")
			}
			m.sees(m.new, " cart= k=")
			m.sees(m.old, " cart= k=")

			// Who logs in anew has left the old session, on old servers, too.
			m = start()
			legacy = m.cookie("old")
			res = m.new.get("/login?user=bob")
			m.gone(res, "old")
			if set := cookies(res.Header, own); len(set) != 1 || set[0].MaxAge < 0 {
				t.Errorf("the login sets %q", res.Header["Set-Cookie"])
			}
			if _, ok, _ := m.store.Find(legacy); ok {
				t.Error("old servers still know the session")
			}
			m.sees(m.new, "bob cart= k=")
			m.sees(m.old, " cart= k=")
		})
	}
}

// Our cookie may be called "session", as that of scs is: ours takes its place. New servers go on with the session, old ones do not know it any more.
func TestLegacyCookieOfOurName(t *testing.T) {
	m := newMove(t, "session", middleware.Sessions{Cookie: http.Cookie{Name: "session"}}, func(*scs.SessionManager) {})
	m.old.get("/login")
	legacy := m.cookie("session")
	res := m.sees(m.new, "ann cart=book k=")
	if set := cookies(res.Header, "session"); len(set) != 1 || set[0].MaxAge < 0 || len(res.Header["Set-Cookie"]) != 1 {
		t.Errorf("the first request sets %q", res.Header["Set-Cookie"])
	}
	if m.cookie("session") == legacy {
		t.Error("the cookie is the old one")
	}
	m.new.get("/put")
	m.sees(m.new, "ann cart=book k=new")
	if _, ok, _ := m.store.Find(legacy); !ok {
		t.Error("the legacy session is gone")
	}
	res = m.new.get("/login?user=ann")
	if set := cookies(res.Header, "session"); len(set) != 1 || set[0].MaxAge < 0 {
		t.Errorf("the login sets %q", res.Header["Set-Cookie"])
	}
	m.sees(m.new, "ann cart=book k=new")
	res = m.new.get("/logout")
	m.gone(res, "session")
	if len(res.Header["Set-Cookie"]) != 1 {
		t.Errorf("the logout sets %q", res.Header["Set-Cookie"])
	}
	m.sees(m.new, " cart= k=")
	// What was copied and logged out is not copied again.
	r := httptest.NewRequest("GET", "/see", nil)
	r.AddCookie(&http.Cookie{Name: "session", Value: legacy})
	if body, _ := io.ReadAll(answer(m.new.Config.Handler, r).Body); string(body) != " cart= k=" {
		t.Errorf("the old cookie brings back %q", body)
	}
	m.sees(m.old, " cart= k=")

	// The first request may be one that ends the legacy session: nothing deletes the cookie
	// that it sets.
	for path, want := range map[string]string{"/login?user=bob": "bob cart= k=", "/logout": " cart= k="} {
		m := newMove(t, "session", middleware.Sessions{Cookie: http.Cookie{Name: "session"}}, func(*scs.SessionManager) {})
		m.old.get("/login")
		legacy := m.cookie("session")
		if res := m.new.get(path); len(res.Header["Set-Cookie"]) != 1 {
			t.Errorf("%s sets %q", path, res.Header["Set-Cookie"])
		}
		m.sees(m.new, want)
		if _, ok, _ := m.store.Find(legacy); ok {
			t.Errorf("%s: old servers still know the session", path)
		}
	}
}

// A browser may hold several cookies of the legacy name, and of both names.
func TestLegacyCookies(t *testing.T) {
	for _, own := range []string{"old", ours} {
		t.Run(own, func(t *testing.T) {
			m := newMove(t, "old", middleware.Sessions{Cookie: http.Cookie{Name: own}}, func(*scs.SessionManager) {})
			m.old.get("/login")
			legacy := m.cookie("old")
			see := func(sent ...*http.Cookie) string {
				r := httptest.NewRequest("GET", "/see", nil)
				for _, c := range sent {
					r.AddCookie(c)
				}
				body, _ := io.ReadAll(answer(m.new.Config.Handler, r).Body)
				return string(body)
			}
			old := func(v string) *http.Cookie { return &http.Cookie{Name: "old", Value: v} }
			const ann, nobody = "ann cart=book k=", " cart= k="
			stale := strings.Repeat("s", 43)
			for _, tc := range []struct {
				name string
				sent []*http.Cookie
				want string
			}{
				{"alone", []*http.Cookie{old(legacy)}, ann},
				{"garbage in front", []*http.Cookie{old("garbage"), old(legacy)}, ann},
				{"a stale one behind", []*http.Cookie{old(legacy), old(stale)}, ann},
				{"one of ours in front that leads nowhere", []*http.Cookie{{Name: own, Value: strings.Repeat("o", 64)}, old(legacy)}, ann},
				{"cut short", []*http.Cookie{old(legacy[:42])}, nobody},
				{"stale", []*http.Cookie{old(stale)}, nobody},
			} {
				if got := see(tc.sent...); got != tc.want {
					t.Errorf("%s: the browser sees %q, want %q", tc.name, got, tc.want)
				}
			}
			// From the legacy cookie only a legacy token is taken: a sibling host that can set
			// it would otherwise log the browser in as somebody of its choice.
			if own == "old" {
				return
			}
			eve := m.new
			eve.forget()
			eve.get("/login?user=eve")
			if got := see(old(m.cookie(own))); got != nobody {
				t.Errorf("a session of ours under the legacy name: the browser sees %q", got)
			}
			if got := see(&http.Cookie{Name: own, Value: legacy}); got != nobody {
				t.Errorf("a legacy session under our name: the browser sees %q", got)
			}
		})
	}
}

// What was persistent stays it, and what was not does not become it.
func TestLegacyCookieKeepsItsLife(t *testing.T) {
	for _, persist := range []bool{true, false} {
		m := newMove(t, "old", middleware.Sessions{}, func(before *scs.SessionManager) { before.Cookie.Persist = persist })
		res := m.old.get("/login")
		theirs := cookies(res.Header, "old")[0]
		mine := cookies(m.new.get("/see").Header, ours)
		if len(mine) != 1 {
			t.Fatalf("persistent %v: cookies %v", persist, mine)
		}
		if got := mine[0].MaxAge > 0; got != persist || (theirs.MaxAge > 0) != persist {
			t.Errorf("persistent %v: ours has Max-Age %d, theirs %d", persist, mine[0].MaxAge, theirs.MaxAge)
		}
		if persist && mine[0].Expires.Sub(theirs.Expires).Abs() > 5*time.Second {
			t.Errorf("ours ends at %v, theirs at %v", mine[0].Expires, theirs.Expires)
		}
	}
}

// A response that sets or deletes our cookie is kept by no cache: what is said to some of
// them alone goes, too. Any other response keeps what its handler says.
func TestResponsesWithOurCookieAreNotCached(t *testing.T) {
	m, _ := newManager(t)
	said := http.Header{
		"Cache-Control":                {"public, max-age=600"},
		"Cdn-Cache-Control":            {"max-age=600"},
		"Cloudflare-Cdn-Cache-Control": {"max-age=600"},
		"Surrogate-Control":            {"max-age=600"},
		"X-Accel-Expires":              {"600"},
	}
	mux := http.NewServeMux()
	for path, act := range map[string]func(r *http.Request){
		"/login":  func(r *http.Request) { m.Login(r.Context(), "ann") },
		"/logout": func(r *http.Request) { m.Logout(r.Context()) },
		"/put":    func(r *http.Request) { m.Put(r.Context(), "k", 1) },
		"/see":    func(r *http.Request) {},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			for name, values := range said {
				w.Header()[name] = values
			}
			act(r)
		})
	}
	s := serve(t, middleware.Sessions{Manager: m}.Handler(mux))
	for _, step := range []struct {
		path string
		sets bool
	}{{"/see", false}, {"/put", true}, {"/put", false}, {"/see", false}, {"/login", true}, {"/see", false}, {"/logout", true}, {"/see", false}} {
		res := s.get(step.path)
		if sets := res.Header["Set-Cookie"] != nil; sets != step.sets {
			t.Errorf("%s: sets a cookie: %v", step.path, sets)
		}
		want := said
		if step.sets {
			want = http.Header{"Cache-Control": {"no-store"}}
		}
		for name := range said {
			if got := res.Header[name]; !slices.Equal(got, want[name]) {
				t.Errorf("%s: %s is %q, want %q", step.path, name, got, want[name])
			}
		}
	}
}

// With no Logger set, what an operator should know reaches slog's default.
func TestSessionsLogByDefault(t *testing.T) {
	var log journal
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(log.logger())
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	m := must(session.New(client, session.Config{}))
	s := serve(t, middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/channel":
			m.Put(r.Context(), "channel", make(chan int))
		case "/late":
			io.WriteString(w, "sent")
			m.Put(r.Context(), "k", 1)
		case "/down":
			m.Put(r.Context(), "k", 1)
			mini.SetError("LOADING")
		}
	})))
	for _, tc := range []struct{ path, want string }{
		{"/fine", ""},
		{"/channel", "key=channel"},
		{"/late", "changed after the header was sent"},
		{"/down", "LOADING"},
	} {
		logged := log.String()
		s.get(tc.path)
		line := strings.TrimPrefix(log.String(), logged)
		if tc.want == "" && line != "" || tc.want != "" && (strings.Count(line, "\n") != 1 || !strings.Contains(line, tc.want)) {
			t.Errorf("%s: logged %q", tc.path, line)
		}
	}
}
