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
		}), 50*time.Millisecond, "too slow").ServeHTTP(w, r)
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
