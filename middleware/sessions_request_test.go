package middleware_test

import (
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// Middleware further out sees the route, also when the handler panics.
func TestPatternIsSeenOutside(t *testing.T) {
	m, _ := newManager(t)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /users/{id}", func(w http.ResponseWriter, r *http.Request) {
		if r.PathValue("id") == "0" {
			panic("oops")
		}
	})
	h := middleware.Sessions{Manager: m}.Handler(mux)
	for _, path := range []string{"/users/1", "/users/0"} {
		var pattern string
		serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				_ = recover()
				pattern = r.Pattern
			}()
			h.ServeHTTP(w, r)
		})).get(path)
		if pattern != "GET /users/{id}" {
			t.Errorf("%s: the pattern is %q", path, pattern)
		}
	}
}

// The files of a multipart form are removed when the request is over.
func TestMultipartFilesAreRemoved(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		dir := t.TempDir()
		t.Setenv("TMPDIR", dir)
		m, _ := newManager(t)
		files := func() int {
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		}
		within := 0
		s := serve(middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := r.ParseMultipartForm(1); err != nil {
				t.Error(err)
			}
			within = files()
			m.Put(r.Context(), "k", 1)
		})))
		var form bytes.Buffer
		parts := multipart.NewWriter(&form)
		part, err := parts.CreateFormFile("file", "name")
		if err != nil {
			t.Fatal(err)
		}
		part.Write(bytes.Repeat([]byte("0123456789"), 1_000_000))
		parts.Close()
		res, err := s.client.Post(s.URL, parts.FormDataContentType(), &form)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
		s.Close() // waits for the handler
		if within != 1 || files() != 0 {
			t.Errorf("%d files within the request, %d after it", within, files())
		}
	})
}

// http.TimeoutHandler inside of Sessions: its 503 is the handler's response, with what the
// handler had done until then. What a handler does that goes on is too late.
func TestTimeoutHandlerInside(t *testing.T) {
	m, _ := newManager(t)
	late := make(chan error, 1)
	s := serve(t, shop(t, m, func(w http.ResponseWriter, r *http.Request) {
		http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/in-time" {
				if err := m.Login(r.Context(), "ann"); err != nil {
					t.Error(err)
				}
			}
			<-r.Context().Done()
			for !errors.Is(m.Rotate(r.Context()), session.ErrFinished) { // until the response has begun
				time.Sleep(time.Millisecond)
			}
			late <- m.Login(r.Context(), "bob")
		}), time.Second, "too slow").ServeHTTP(w, r)
	}))
	for path, want := range map[string]string{"/in-time": "ann cart=book k=", "/late": " cart=book k="} {
		s.forget()
		s.get("/cart")
		if res := s.get(path); res.StatusCode != 503 || res.body != "too slow" {
			t.Errorf("%s: %s %q", path, res.Status, res.body)
		}
		if err := <-late; !errors.Is(err, session.ErrFinished) {
			t.Errorf("%s: a late Login: %v", path, err)
		}
		if got := s.get("/see").body; got != want {
			t.Errorf("%s: then the browser sees %q, want %q", path, got, want)
		}
	}
}

// http.TimeoutHandler outside of Sessions: it answers for a handler that is not done, and the
// cookie of a login that came in time reaches nobody: the browser is not logged in, and what the
// visitor had has gone along. What the handler still changes is saved; it logs nobody in.
func TestTimeoutHandlerOutside(t *testing.T) {
	m, _ := newManager(t)
	done := make(chan bool, 1)
	slow := shop(t, m, func(w http.ResponseWriter, r *http.Request) {
		defer func() { done <- true }()
		if r.URL.Path == "/in-time" {
			if err := m.Login(r.Context(), "ann"); err != nil {
				t.Error(err)
			}
		}
		<-r.Context().Done()
		m.Put(r.Context(), "k", "late")
		if err := m.Login(r.Context(), "bob"); err == nil {
			t.Error("a login after the time")
		}
	})
	s := serve(t, http.TimeoutHandler(slow, time.Second, "too slow"))
	for path, want := range map[string]string{"/late": " cart=book k=late", "/in-time": " cart= k="} {
		s.forget()
		s.get("/cart")
		res := s.get(path)
		if res.StatusCode != 503 || res.body != "too slow" || len(res.Header["Set-Cookie"]) != 0 {
			t.Errorf("%s: %s %q %v", path, res.Status, res.body, res.Header)
		}
		<-done
		for started := time.Now(); s.get("/see").body != want; { // it is saved a moment later
			if time.Sleep(5 * time.Millisecond); time.Since(started) > 5*time.Second {
				t.Fatalf("%s: the browser sees %q, want %q", path, s.get("/see").body, want)
			}
		}
	}
}
