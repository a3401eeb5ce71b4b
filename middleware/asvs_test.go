package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// TestASVS walks what OWASP ASVS 5.0.0 asks of cookies (3.3.1 to 3.3.5) and of
// re-authentication (7.5.1, 7.5.3), with the defaults. The rest of its chapter
// V7 is in package session.
func TestASVS(t *testing.T) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	// The longest cookie that there is: signed, and of a user.
	m, err := session.New(client, session.Config{
		Secrets:   [][]byte{[]byte("0123456789abcdef0123456789abcdef")},
		KeySecret: []byte("a key secret of 32 bytes, always"),
	})
	if err != nil {
		t.Fatal(err)
	}
	const fresh = 5 * time.Minute
	page := http.NewServeMux()
	page.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		m.Remember(r.Context(), true)
		if err := m.Login(r.Context(), strings.Repeat("a long name ", 85)); err != nil {
			t.Error(err)
		}
	})
	page.Handle("/email", middleware.RequireFresh{Manager: m, MaxAge: fresh}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})))
	page.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "k", 1) })
	h := middleware.Sessions{Manager: m}.Handler(page)
	get := func(path string, cookies ...*http.Cookie) *http.Response {
		r := httptest.NewRequest("GET", path, nil)
		for _, c := range cookies {
			r.AddCookie(c)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Result()
	}
	res := get("/login")
	if n := len(res.Cookies()); n != 1 {
		t.Fatalf("%d cookies", n)
	}
	c := res.Cookies()[0]

	t.Run("3.3.1 Secure, and a prefix in its name", func(t *testing.T) {
		if !c.Secure || !strings.HasPrefix(c.Name, "__Host-") && !strings.HasPrefix(c.Name, "__Secure-") {
			t.Errorf("%v", c)
		}
	})
	t.Run("3.3.2 SameSite", func(t *testing.T) {
		if c.SameSite != http.SameSiteLaxMode && c.SameSite != http.SameSiteStrictMode {
			t.Errorf("%v", c)
		}
	})
	t.Run("3.3.3 the prefix __Host-", func(t *testing.T) {
		if !strings.HasPrefix(c.Name, "__Host-") || c.Path != "/" || c.Domain != "" {
			t.Errorf("%v", c)
		}
	})
	t.Run("3.3.4 HttpOnly, and the token only in Set-Cookie", func(t *testing.T) {
		if !c.HttpOnly {
			t.Errorf("%v", c)
		}
		for name, values := range res.Header {
			if name != "Set-Cookie" && strings.Contains(strings.Join(values, " "), c.Value) {
				t.Errorf("%s: %q", name, values)
			}
		}
	})
	t.Run("3.3.5 at most 4096 bytes", func(t *testing.T) {
		if n := len(c.Name) + len(c.Value); n > 4096 || n < 64 {
			t.Errorf("%d bytes", n)
		}
	})
	t.Run("7.5.1 and 7.5.3 re-authentication before what is sensitive", func(t *testing.T) {
		if got := get("/email").StatusCode; got != http.StatusUnauthorized {
			t.Errorf("nobody: %d", got)
		}
		c := get("/login", c).Cookies()[0]
		if got := get("/email", c).StatusCode; got != http.StatusOK {
			t.Errorf("just logged in: %d", got)
		}
		for range 3 { // use does not keep it fresh
			advance(t, over(mini), fresh/2, m)
			get("/", c)
		}
		if got := get("/email", c).StatusCode; got != http.StatusForbidden {
			t.Errorf("logged in a while ago: %d", got)
		}
		again := get("/login", c).Cookies()[0]
		if got := get("/email", again).StatusCode; got != http.StatusOK {
			t.Errorf("logged in anew: %d", got)
		}
	})
}
