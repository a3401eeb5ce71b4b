package movingtest

import (
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/boj/redistore"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func shared(t *testing.T) (*redistest.Server, *redis.Client) {
	server := redistest.Shared(t)
	server.Flush()
	t.Cleanup(server.Flush)
	return server, server.Client()
}

// browser keeps the cookies of one host, whichever server answers.
type browser struct {
	t   *testing.T
	jar *cookiejar.Jar
}

func newBrowser(t *testing.T) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{t, jar}
}

func (b *browser) get(h http.Handler, path string) string {
	b.t.Helper()
	u := &url.URL{Scheme: "https", Host: "example.com", Path: path}
	r := httptest.NewRequest("GET", u.String(), nil)
	for _, c := range b.jar.Cookies(u) {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	b.jar.SetCookies(u, w.Result().Cookies())
	if w.Code != http.StatusOK {
		b.t.Errorf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

func (b *browser) shows(h http.Handler, path, want string) {
	b.t.Helper()
	if got := b.get(h, path); got != want {
		b.t.Errorf("%s shows %q, want %q", path, got, want)
	}
}

// oldSCS is a server with scs.
func oldSCS(t *testing.T, manager *scs.SessionManager) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := manager.RenewToken(r.Context()); err != nil {
			t.Error(err)
		}
		manager.Put(r.Context(), "userID", "ann")
		manager.Put(r.Context(), "theme", "dark")
	})
	mux.HandleFunc("/light", func(w http.ResponseWriter, r *http.Request) { manager.Put(r.Context(), "theme", "light") })
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := manager.Destroy(r.Context()); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, manager.GetString(r.Context(), "userID"), " ", manager.GetString(r.Context(), "theme"))
	})
	return manager.LoadAndSave(mux)
}

// newMux is what a new server serves.
func newMux(t *testing.T, manager func() *session.Manager) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := manager().Login(r.Context(), "bob"); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/light", func(w http.ResponseWriter, r *http.Request) { manager().Put(r.Context(), "theme", "light") })
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		if err := manager().Logout(r.Context()); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/fresh", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, !manager().Info(r.Context()).AuthenticatedAt.IsZero())
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, manager().UserID(r.Context()), " ", manager().GetString(r.Context(), "theme"))
	})
	return mux
}

func TestSCSSideBySide(t *testing.T) {
	_, client := shared(t)
	manager := scs.New()
	manager.Store = goredisstore.New(client)
	old := oldSCS(t, manager)
	var sessions *session.Manager
	sessions, server, err := fromSCS(client, newMux(t, func() *session.Manager { return sessions }))
	if err != nil {
		t.Fatal(err)
	}

	b := newBrowser(t)
	b.get(old, "/login")
	b.shows(server, "/", "ann dark") // nobody is logged out
	b.shows(server, "/fresh", "false")
	b.shows(old, "/", "ann dark") // nor by going back

	// What a new server changes is not seen by old ones, nor the other way round after the copy.
	b.get(server, "/light")
	b.shows(server, "/", "ann light")
	b.shows(old, "/", "ann dark")

	// A logout on a new server ends both.
	b.get(server, "/logout")
	b.shows(server, "/", " ")
	b.shows(old, "/", " ")

	// A logout on an old server does not reach the copy.
	b.get(old, "/login")
	b.shows(server, "/", "ann dark")
	b.get(old, "/logout")
	b.shows(old, "/", " ")
	b.shows(server, "/", "ann dark")

	// A login on a new server is unknown to old ones, and ends what they know.
	b.get(old, "/login")
	b.get(server, "/login")
	b.shows(server, "/", "bob ")
	b.shows(old, "/", " ")

	// What was not copied yet, no new server copies after an EndAll; old servers go on with it.
	late := newBrowser(t)
	late.get(old, "/login")
	if _, err := sessions.EndAll(t.Context(), "ann", session.Cause{}); err != nil {
		t.Fatal(err)
	}
	late.shows(server, "/", " ")
	late.shows(old, "/", "ann dark")
}

func TestSCSWithHashedTokens(t *testing.T) {
	_, client := shared(t)
	manager := scs.New()
	manager.Store = goredisstore.New(client)
	manager.HashTokenInStore = true
	sessions, err := session.New(client, session.Config{Legacy: session.Legacy{
		Store: hashed{goredisstore.New(client)},
		User:  func(values map[string]any) string { id, _ := values["userID"].(string); return id },
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := middleware.Sessions{Manager: sessions, LegacyCookie: "session"}.Handler(newMux(t, func() *session.Manager { return sessions }))
	old, b := oldSCS(t, manager), newBrowser(t)
	b.get(old, "/login")
	b.shows(server, "/", "ann dark")
	b.get(server, "/logout")
	b.shows(old, "/", " ")
}

func TestGorillaSessionsMove(t *testing.T) {
	redis, client := shared(t)
	store, err := redistore.NewRediStore(2, "tcp", redis.Addr(), "", "", []byte("an authentication key, 32 bytes.."))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	old := http.NewServeMux()
	old.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "site")
		s.Values["userID"], s.Values["theme"] = "ann", "dark"
		if err := s.Save(r, w); err != nil {
			t.Error(err)
		}
	})
	old.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s, _ := store.Get(r, "site")
		id, _ := s.Values["userID"].(string)
		fmt.Fprint(w, id)
	})

	sessions, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	allow := true
	mux := newMux(t, func() *session.Manager { return sessions })
	server := middleware.Sessions{Manager: sessions}.Handler(
		fromGorilla(store, "site", sessions, func(string) bool { return allow }, mux))

	b := newBrowser(t)
	b.shows(server, "/", " ") // a visitor
	b.get(old, "/login")
	b.shows(server, "/", "ann dark")
	b.shows(server, "/fresh", "true")
	b.shows(old, "/", "") // old servers know it no more
	if _, err := sessions.EndAll(t.Context(), "ann", session.Cause{}); err != nil {
		t.Fatal(err)
	}
	b.shows(server, "/", " ") // and the old cookie does not bring it back

	b.get(old, "/login")
	allow = false
	b.shows(server, "/", " ")
	b.shows(old, "/", "ann")
}
