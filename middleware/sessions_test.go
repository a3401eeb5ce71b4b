package middleware_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2/memstore"
	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

const ours = "__Host-session"

// responses are the ways in which a handler can answer.
func responses(t *testing.T) []response {
	file := filepath.Join(t.TempDir(), "page.txt")
	if err := os.WriteFile(file, []byte(strings.Repeat("0123456789", 100_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "public, max-age=600")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "from the origin")
	}))
	t.Cleanup(origin.Close)
	originURL, err := url.Parse(origin.URL)
	if err != nil {
		t.Fatal(err)
	}
	return []response{
		{name: "nothing", status: 200, send: func(w http.ResponseWriter, r *http.Request) {}},
		{name: "Write", status: 200, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("hello"))
		}},
		{name: "empty Write", status: 200, send: func(w http.ResponseWriter, r *http.Request) {
			w.Write(nil)
		}},
		{name: "WriteString", status: 200, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "hello")
		}},
		{name: "WriteHeader", status: 201, send: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
		}},
		{name: "WriteHeader and Write", status: 404, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(404)
			w.Write([]byte("hello"))
		}},
		{name: "WriteHeader twice", status: 201, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			w.WriteHeader(500)
			w.Write([]byte("hello"))
		}},
		{name: "204", status: 204, send: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }},
		{name: "304", status: 304, send: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(304) }},
		{name: "HEAD", method: "HEAD", status: 200, send: func(w http.ResponseWriter, r *http.Request) {
			w.Write([]byte("hello"))
		}},
		{name: "Redirect", status: 303, body: "<a href=\"/there\">See Other</a>.\n\n", send: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/there", http.StatusSeeOther)
		}},
		{name: "Error", status: 418, body: "no\n", send: func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "no", http.StatusTeapot)
		}},
		{name: "Flusher", status: 200, body: "onetwo", send: func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, "one")
			w.(http.Flusher).Flush()
			io.WriteString(w, "two")
		}},
		{name: "ResponseController.Flush", status: 200, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			if err := http.NewResponseController(w).Flush(); err != nil {
				panic(err)
			}
			io.WriteString(w, "hello")
		}},
		{name: "deadlines", status: 200, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			later := time.Now().Add(time.Minute)
			if err := errors.Join(c.SetReadDeadline(later), c.SetWriteDeadline(later), c.EnableFullDuplex()); err != nil {
				panic(err)
			}
			io.WriteString(w, "hello")
		}},
		{name: "103 then 200", status: 200, body: "hello", early: 1, send: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "hello")
		}},
		{name: "103, 103 then 404", status: 404, body: "hello", early: 2, send: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(404)
			io.WriteString(w, "hello")
		}},
		{name: "103 alone", status: 200, early: 1, send: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
		}},
		{name: "ServeFile", status: 200, size: 1_000_000, send: func(w http.ResponseWriter, r *http.Request) {
			http.ServeFile(w, r, file)
		}},
		{name: "ServeFile, a range", header: http.Header{"Range": {"bytes=10-19"}}, status: 206, body: "0123456789", send: func(w http.ResponseWriter, r *http.Request) {
			http.ServeFile(w, r, file)
		}},
		{name: "Copy of a file", status: 200, size: 1_000_000, send: func(w http.ResponseWriter, r *http.Request) {
			f, err := os.Open(file)
			if err != nil {
				panic(err)
			}
			defer f.Close()
			if _, err := io.Copy(w, f); err != nil {
				panic(err)
			}
		}},
		{name: "Copy of a reader", status: 200, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, io.LimitReader(strings.NewReader("hello, world"), 5))
		}},
		{name: "ReverseProxy", status: 418, body: "from the origin", send: func(w http.ResponseWriter, r *http.Request) {
			proxy := httputil.NewSingleHostReverseProxy(originURL)
			proxy.FlushInterval = -1
			proxy.ServeHTTP(w, r)
		}},
		{name: "TimeoutHandler", status: 200, body: "hello", send: func(w http.ResponseWriter, r *http.Request) {
			http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "hello")
			}), time.Minute, "too slow").ServeHTTP(w, r)
		}},
	}
}

type response struct {
	name   string
	method string // default GET
	header http.Header
	send   http.HandlerFunc
	status int
	body   string
	size   int // of a body that is too long to write here
	early  int // informational responses
}

func TestSessionsSaveBeforeHeader(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
			for _, tc := range responses(t) {
				t.Run(tc.name, func(t *testing.T) {
					m := managerOn(t, b.Client)
					mux := http.NewServeMux()
					mux.HandleFunc("/put", func(w http.ResponseWriter, r *http.Request) {
						m.Put(r.Context(), "k", "kept")
						w.Header().Set("Cache-Control", "public, max-age=600")
						w.Header().Set("Vary", "Accept-Encoding")
						tc.send(w, r)
					})
					mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
						io.WriteString(w, m.GetString(r.Context(), "k"))
					})
					s := serve(middleware.Sessions{Manager: m}.Handler(mux))

					method := "GET"
					if tc.method != "" {
						method = tc.method
					}
					res := s.do(method, "/put", tc.header)
					if res.StatusCode != tc.status {
						t.Errorf("status %d, want %d", res.StatusCode, tc.status)
					}
					if tc.size > 0 && len(res.body) != tc.size {
						t.Errorf("%d bytes, want %d", len(res.body), tc.size)
					} else if tc.size == 0 && res.body != tc.body {
						t.Errorf("body %q, want %q", res.body, tc.body)
					}
					if n := len(cookies(res.Header, ours)); n != 1 || len(res.Header["Set-Cookie"]) != 1 {
						t.Fatalf("%d cookies of ours, want 1: %q", n, res.Header["Set-Cookie"])
					}
					if got := res.Header["Cache-Control"]; !slices.Equal(got, []string{"no-store"}) {
						t.Errorf("Cache-Control %q, want no-store", got)
					}
					if got := res.Header["Vary"]; !slices.Equal(got, []string{"Accept-Encoding", "Cookie"}) {
						t.Errorf("Vary %q", got)
					}
					if len(res.early) != tc.early {
						t.Errorf("%d informational responses, want %d", len(res.early), tc.early)
					}
					for _, h := range res.early {
						if h.Get("Set-Cookie") != "" {
							t.Errorf("an informational response sets a cookie: %v", h)
						}
					}

					res = s.get("/get")
					if res.body != "kept" {
						t.Errorf("the next request sees %q", res.body)
					}
					if got := res.Header["Set-Cookie"]; got != nil {
						t.Errorf("a read sets cookies: %q", got)
					}
					if res.Header.Get("Cache-Control") != "" || res.Header.Get("Vary") != "Cookie" {
						t.Errorf("a read sends %v", res.Header)
					}
				})
			}
		})
		redistest.AssertAllTTL(t, b.Client)
	})
}

// An upgrade goes through Hijack. What it answers is up to the handler; the
// cookie stands in its header.
func TestSessionsSaveBeforeHijack(t *testing.T) {
	for _, tc := range []struct {
		name   string
		hijack func(w http.ResponseWriter)
	}{
		{"101 before Hijack", func(w http.ResponseWriter) {
			w.Header().Set("Upgrade", "echo")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			echo(rw)
		}},
		{"own header after Hijack", func(w http.ResponseWriter) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			defer conn.Close()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n")
			w.Header().Write(rw)
			rw.WriteString("\r\n")
			rw.Flush()
			echo(rw)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, _ := newManager(t)
			mux := http.NewServeMux()
			mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
				m.Put(r.Context(), "k", "kept")
				tc.hijack(w)
			})
			mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, m.GetString(r.Context(), "k"))
			})
			s := serve(t, middleware.Sessions{Manager: m}.Handler(mux))
			req, _ := http.NewRequest("GET", s.URL+"/upgrade", nil)
			req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
			res, err := s.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if res.StatusCode != 101 || len(cookies(res.Header, ours)) != 1 {
				t.Fatalf("%s, %v", res.Status, res.Header)
			}
			rw := res.Body.(io.ReadWriter)
			fmt.Fprintln(rw, "hello")
			if line, err := bufio.NewReader(rw).ReadString('\n'); line != "hello\n" {
				t.Errorf("the echo is %q, %v", line, err)
			}
			if got := s.get("/get").body; got != "kept" {
				t.Errorf("the next request sees %q", got)
			}
		})
	}
}

func echo(rw *bufio.ReadWriter) {
	line, _ := rw.ReadString('\n')
	rw.WriteString(line)
	rw.Flush()
}

// The writer promises what the server's does, and no more.
func TestWriterPromises(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		promises := func(w http.ResponseWriter) string {
			_, flusher := w.(http.Flusher)
			_, hijacker := w.(http.Hijacker)
			_, closes := w.(interface{ CloseNotify() <-chan bool })
			return fmt.Sprint("flusher ", flusher, ", hijacker ", hijacker, ", closes ", closes)
		}
		h := middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := w.(io.ReaderFrom); !ok {
				t.Error("no io.ReaderFrom")
			}
			w.Header().Set("Inside", promises(w))
		}))
		s := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Outside", promises(w))
			h.ServeHTTP(w, r)
		}))
		res := s.get("/")
		if in, out := res.Header.Get("Inside"), res.Header.Get("Outside"); in != out {
			t.Errorf("inside: %s; outside: %s", in, out)
		}
	})
	t.Run("plain", func(t *testing.T) {
		m, _ := newManager(t)
		h := middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, ok := w.(http.Flusher); ok {
				t.Error("claims http.Flusher")
			}
			if _, ok := w.(http.Hijacker); ok {
				t.Error("claims http.Hijacker")
			}
			if err := http.NewResponseController(w).Flush(); !errors.Is(err, http.ErrNotSupported) {
				t.Errorf("Flush: %v", err)
			}
		}))
		h.ServeHTTP(struct{ http.ResponseWriter }{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
	})
	// http.ResponseController must not pass by the commit on its way to a
	// writer that another middleware has wrapped.
	t.Run("behind Unwrap", func(t *testing.T) {
		m, _ := newManager(t)
		h := middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "kept")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
		}))
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(unwrapper{w}, r) }))
		if res := s.get("/"); len(cookies(res.Header, ours)) != 1 {
			t.Errorf("cookies %q", res.Header["Set-Cookie"])
		}
	})
}

// io.Copy of a file reaches the server's ReadFrom, and with it sendfile.
func TestCopyReachesReadFrom(t *testing.T) {
	file, err := os.Open("sessions_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	m, _ := newManager(t)
	h := middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.Put(r.Context(), "k", "kept")
		if _, err := io.Copy(w, file); err != nil {
			t.Error(err)
		}
	}))
	w := &readerFrom{ResponseRecorder: httptest.NewRecorder()}
	h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.calls != 1 || len(cookies(w.Header(), ours)) != 1 {
		t.Errorf("%d calls of ReadFrom, cookies %q", w.calls, w.Header()["Set-Cookie"])
	}
}

type readerFrom struct {
	*httptest.ResponseRecorder
	calls int
}

func (w *readerFrom) ReadFrom(src io.Reader) (int64, error) {
	w.calls++
	return io.Copy(w.ResponseRecorder, src)
}

// unwrapper hides everything but Unwrap.
type unwrapper struct{ http.ResponseWriter }

func (u unwrapper) Unwrap() http.ResponseWriter { return u.ResponseWriter }

func TestSessionsCommitFails(t *testing.T) {
	t.Parallel() // with others that wait
	secret := func(w http.ResponseWriter) {
		h := w.Header()
		h.Set("Content-Type", "text/html")
		h.Set("Content-Encoding", "br")
		h.Set("ETag", `"secret"`)
		h.Set("Content-Length", "11")
		h.Set("Trailer", "Secret")
		h.Add("Access-Control-Expose-Headers", "Secret")
		http.SetCookie(w, &http.Cookie{Name: "secret", Value: "1"})
	}
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		for _, way := range []struct {
			name string
			send func(w http.ResponseWriter, r *http.Request) error // what the handler is told
		}{
			{"Write", func(w http.ResponseWriter, r *http.Request) error {
				_, err := w.Write([]byte("SECRET PAGE"))
				return err
			}},
			{"WriteHeader and Write", func(w http.ResponseWriter, r *http.Request) error {
				w.WriteHeader(201)
				_, err := w.Write([]byte("SECRET PAGE"))
				return err
			}},
			{"103 after it", func(w http.ResponseWriter, r *http.Request) error {
				_, err := io.WriteString(w, "SECRET PAGE")
				w.WriteHeader(103)
				return err
			}},
			{"Flush", func(w http.ResponseWriter, r *http.Request) error {
				w.(http.Flusher).Flush()
				_, err := io.WriteString(w, "SECRET PAGE")
				return err
			}},
			{"FlushError", func(w http.ResponseWriter, r *http.Request) error {
				defer io.WriteString(w, "SECRET PAGE")
				return http.NewResponseController(w).Flush()
			}},
			{"ReadFrom", func(w http.ResponseWriter, r *http.Request) error {
				_, err := io.Copy(w, io.LimitReader(strings.NewReader("SECRET PAGE"), 11))
				return err
			}},
			{"Hijack", func(w http.ResponseWriter, r *http.Request) error {
				hijacker, ok := w.(http.Hijacker)
				if !ok {
					_, err := w.Write(nil)
					return err
				}
				_, _, err := hijacker.Hijack()
				http.Error(w, "SECRET PAGE", 500) // as upgraders do
				return err
			}},
			{"return", func(http.ResponseWriter, *http.Request) error { return errors.New("is told nothing") }},
		} {
			t.Run(way.name, func(t *testing.T) {
				m, mini := newManager(t)
				var log journal
				var told error
				h := middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					m.Put(r.Context(), "k", "lost")
					mini.SetError("LOADING Redis is loading the dataset in memory")
					secret(w)
					told = way.send(w, r)
				}))
				s := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
					h.ServeHTTP(w, r)
				}))
				res := s.get("/page")
				if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || res.Header.Get("Cache-Control") != "no-store" {
					t.Errorf("%s %v", res.Status, res.Header)
				}
				if strings.Contains(res.body, "SECRET") || !strings.Contains(res.body, `"status":503`) {
					t.Errorf("body %q", res.body)
				}
				if strings.Contains(res.body, "LOADING") {
					t.Error("the error's text is sent to the client")
				}
				for _, name := range []string{"Content-Encoding", "Etag", "Trailer", "Set-Cookie"} {
					if v := res.Header[name]; v != nil {
						t.Errorf("%s: %q leaks", name, v)
					}
				}
				if got := res.Header["Access-Control-Expose-Headers"]; !slices.Equal(got, []string{"Retry-After"}) {
					t.Errorf("the outer field is %q", got)
				}
				if told == nil {
					t.Error("the handler's write succeeds")
				}
				if !strings.Contains(log.String(), "LOADING") || strings.Contains(log.String(), "/page") {
					t.Errorf("log: %s", log.String())
				}
			})
		}
	})
	t.Run("a value that cannot be stored", func(t *testing.T) {
		m, _ := newManager(t)
		var log journal
		s := serve(t, middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "channel", make(chan int))
			io.WriteString(w, "SECRET PAGE")
		})))
		res := s.get("/")
		if res.StatusCode != 500 || strings.Contains(res.body, "SECRET") || res.Header.Get("Set-Cookie") != "" {
			t.Errorf("%s %v %q", res.Status, res.Header, res.body)
		}
		if !strings.Contains(log.String(), "key=channel") || strings.Contains(res.body, "channel") {
			t.Errorf("log: %s; body: %s", log.String(), res.body)
		}
	})
	t.Run("OnError", func(t *testing.T) {
		m, mini := newManager(t)
		s := serve(t, middleware.Sessions{
			Manager: m,
			OnError: func(w http.ResponseWriter, r *http.Request, err error) {
				if !errors.Is(err, session.ErrUnavailable) {
					t.Errorf("the error is %v", err)
				}
				http.Error(w, "come back", http.StatusBadGateway)
			},
		}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "lost")
			mini.SetError("ERR broken")
			io.WriteString(w, "SECRET PAGE")
		})))
		if res := s.get("/"); res.StatusCode != 502 || res.body != "come back\n" {
			t.Errorf("%s %q", res.Status, res.body)
		}
	})
}

// Redis down: who has a cookie gets 503 and keeps it, who has none is served.
func TestSessionsLoadFails(t *testing.T) {
	m, mini := newManager(t)
	calls := 0
	s := serve(t, middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls++
		if r.URL.Path == "/login" {
			m.Login(r.Context(), "ann")
		}
		fmt.Fprint(w, "user: ", m.UserID(r.Context()))
	})))
	s.get("/login")
	calls = 0
	mini.SetError("ERR broken")
	res := s.get("/")
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || res.Header["Set-Cookie"] != nil || calls != 0 {
		t.Errorf("%s %v, %d calls of the handler", res.Status, res.Header, calls)
	}
	anonymous := serve(t, s.Config.Handler)
	if res := anonymous.get("/"); res.StatusCode != 200 || res.body != "user: " {
		t.Errorf("without a cookie: %s %q", res.Status, res.body)
	}
	mini.SetError("")
	if res := s.get("/"); res.body != "user: ann" {
		t.Errorf("afterwards: %q", res.body)
	}
}

func TestSessionsLateChange(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		var log journal
		mux := http.NewServeMux()
		mux.HandleFunc("GET /late/{id}", func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "early")
			io.WriteString(w, "sent")
			m.Put(r.Context(), "k", "late")
		})
		mux.HandleFunc("GET /get", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, m.GetString(r.Context(), "k"))
		})
		s := serve(middleware.Sessions{
			Manager: m,
			Logger:  log.logger(),
		}.Handler(mux))
		s.get("/late/7")
		if got := s.get("/get").body; got != "early" {
			t.Errorf("the next request sees %q", got)
		}
		if got := log.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, `route="GET /late/{id}"`) {
			t.Errorf("log: %s", got)
		}
	})
}

func TestSessionsPanic(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		var caught any
		mux := http.NewServeMux()
		mux.HandleFunc("/put", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "k", "before") })
		mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "after")
			panic("oops")
		})
		mux.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "after")
			panic(http.ErrAbortHandler)
		})
		mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, m.GetString(r.Context(), "k"))
		})
		h := middleware.Sessions{Manager: m}.Handler(mux)
		s := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if caught = recover(); caught == http.ErrAbortHandler {
					panic(caught)
				} else if caught != nil {
					w.WriteHeader(500)
				}
			}()
			h.ServeHTTP(w, r)
		}))
		s.get("/put")
		if res := s.get("/panic"); res.StatusCode != 500 || res.Header["Set-Cookie"] != nil || caught != "oops" {
			t.Errorf("%s %v, panic %v", res.Status, res.Header, caught)
		}
		if res, err := s.client.Get(s.URL + "/abort"); err == nil {
			res.Body.Close()
			t.Errorf("the request is not aborted: %s", res.Status)
		}
		if got := s.get("/get").body; got != "before" {
			t.Errorf("the session has %q", got)
		}
	})
}

// A client that hangs up: what it did is saved, and nothing is logged as a
// failure.
func TestSessionsCancelled(t *testing.T) {
	protocols(t, func(t *testing.T, serve func(http.Handler) *site) {
		m, _ := newManager(t)
		var log journal
		entered, left := make(chan struct{}), make(chan struct{})
		mux := http.NewServeMux()
		mux.HandleFunc("/begin", func(w http.ResponseWriter, r *http.Request) { m.Put(r.Context(), "k", "before") })
		mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
			close(entered)
			<-r.Context().Done()
			m.Put(r.Context(), "k", "after")
		})
		mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, m.GetString(r.Context(), "k"))
		})
		h := middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(mux)
		s := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r)
			if r.URL.Path == "/slow" {
				close(left)
			}
		}))
		s.get("/begin")
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-entered; cancel() }()
		req, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/slow", nil)
		if res, err := s.client.Do(req); err == nil {
			res.Body.Close()
		}
		<-left
		if got := s.get("/get").body; got != "after" {
			t.Errorf("the session has %q", got)
		}
		if log.String() != "" {
			t.Errorf("log: %s", log.String())
		}

		// One that has hung up before its session is loaded.
		before := log.String()
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		r := httptest.NewRequest("GET", "/get", nil).WithContext(gone)
		u, _ := url.Parse(s.URL)
		for _, c := range s.client.Jar.Cookies(u) {
			r.AddCookie(c)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got := log.String(); got != before {
			t.Errorf("log: %s", got)
		}
	})
}

func TestSessionsDoNotSeeEachOther(t *testing.T) {
	shop, mini := newManager(t)
	admin, _ := newManager(t)
	stack := func(h http.Handler) http.Handler {
		h = middleware.Sessions{Manager: admin, Cookie: http.Cookie{Name: "__Host-admin"}}.Handler(h)
		return middleware.Sessions{Manager: shop}.Handler(h)
	}
	s := serve(t, stack(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			shop.Login(r.Context(), "ann")
			admin.Put(r.Context(), "k", "admin")
		}
		fmt.Fprintf(w, "%s %s %s %s", shop.UserID(r.Context()), shop.GetString(r.Context(), "k"),
			admin.UserID(r.Context()), admin.GetString(r.Context(), "k"))
	})))
	res := s.get("/login")
	if len(res.Header["Set-Cookie"]) != 2 || len(cookies(res.Header, ours)) != 1 || len(cookies(res.Header, "__Host-admin")) != 1 {
		t.Errorf("cookies %q", res.Header["Set-Cookie"])
	}
	if got := res.Header["Vary"]; !slices.Equal(got, []string{"Cookie"}) {
		t.Errorf("Vary %q", got)
	}
	if got := s.get("/").body; got != "ann   admin" {
		t.Errorf("got %q", got)
	}
	// The outer one fails after the inner one has saved: nothing leaves.
	mini.SetError("ERR broken")
	if res := s.get("/"); res.StatusCode != 503 {
		t.Errorf("got %s", res.Status)
	}
}

func TestSessionsCookie(t *testing.T) {
	login := func(t *testing.T, s middleware.Sessions, remember bool) *http.Cookie {
		m, _ := newManager(t)
		s.Manager = m
		h := s.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			m.Login(r.Context(), "ann")
			m.Remember(r.Context(), remember)
		}))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		set := w.Result().Cookies()
		if len(set) != 1 {
			t.Fatalf("cookies %v", set)
		}
		return set[0]
	}
	t.Run("default", func(t *testing.T) {
		c := login(t, middleware.Sessions{}, false)
		if c.Name != ours || c.Path != "/" || c.Domain != "" || !c.Secure || !c.HttpOnly ||
			c.SameSite != http.SameSiteLaxMode || c.MaxAge != 0 || !c.Expires.IsZero() || c.Partitioned || c.Value == "" {
			t.Errorf("got %v", c)
		}
	})
	t.Run("remembered", func(t *testing.T) {
		c := login(t, middleware.Sessions{}, true)
		if left := time.Until(c.Expires); left < 23*time.Hour || left > 25*time.Hour || c.MaxAge < 23*3600 || c.MaxAge > 24*3600 {
			t.Errorf("got %v", c)
		}
	})
	t.Run("template", func(t *testing.T) {
		c := login(t, middleware.Sessions{Cookie: http.Cookie{
			Name: "__Secure-sid", Domain: "example.com", Path: "/app", SameSite: http.SameSiteNoneMode, Partitioned: true,
		}}, false)
		if c.Name != "__Secure-sid" || c.Path != "/app" || c.Domain != "example.com" || !c.Secure || !c.HttpOnly ||
			c.SameSite != http.SameSiteNoneMode || !c.Partitioned {
			t.Errorf("got %v", c)
		}
	})
	t.Run("logout", func(t *testing.T) {
		m, _ := newManager(t)
		s := serve(t, middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/login":
				m.Login(r.Context(), "ann")
			case "/logout":
				m.Logout(r.Context())
			}
		})))
		s.get("/login")
		res := s.get("/logout")
		set := cookies(res.Header, ours)
		if len(set) != 1 || set[0].MaxAge >= 0 || set[0].Value != "" || !set[0].Secure || set[0].Path != "/" {
			t.Errorf("got %v", set)
		}
		if res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("Cache-Control %q", res.Header.Get("Cache-Control"))
		}
	})
}

func TestSessionsLegacyCookie(t *testing.T) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	m := must(session.New(client, session.Config{Timeout: time.Minute, Legacy: session.Legacy{Store: memstore.NewWithCleanupInterval(0)}}))
	h := middleware.Sessions{Manager: m, LegacyCookie: "old"}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			m.Login(r.Context(), "ann")
		}
		io.WriteString(w, m.UserID(r.Context()))
	}))
	get := func(path string, sent ...*http.Cookie) *http.Response {
		r := httptest.NewRequest("GET", path, nil)
		for _, c := range sent {
			r.AddCookie(c)
		}
		return answer(h, r)
	}
	legacy := &http.Cookie{Name: "old", Value: strings.Repeat("x", 43)}
	res := get("/", legacy)
	if res.Header["Set-Cookie"] != nil {
		t.Errorf("an unknown legacy cookie sets %q", res.Header["Set-Cookie"])
	}
	res = get("/login", legacy)
	if old := cookies(res.Header, "old"); len(old) != 1 || old[0].MaxAge >= 0 || len(cookies(res.Header, ours)) != 1 {
		t.Fatalf("login sets %q", res.Header["Set-Cookie"])
	}
	mine := cookies(res.Header, ours)[0]
	for name, tc := range map[string]struct {
		sent []*http.Cookie
		user string
	}{
		"both": {[]*http.Cookie{legacy, mine}, "ann"},
		// Whoever can set a cookie of the legacy name must not log the browser in with it.
		"under the old name": {[]*http.Cookie{{Name: "old", Value: mine.Value}}, ""},
		"ours twice":         {[]*http.Cookie{mine, {Name: ours, Value: "another"}}, "ann"},
	} {
		body, _ := io.ReadAll(get("/", tc.sent...).Body)
		if string(body) != tc.user {
			t.Errorf("%s: the user is %q", name, body)
		}
	}
}

// Over plain HTTP to localhost browsers get a cookie that they take, and it leads to the session;
// nothing else goes without Secure, whatever a proxy or a client says. That it did is told, once.
func TestCookiesOfLocalhost(t *testing.T) {
	m, _ := newManager(t)
	for _, tc := range []struct {
		host, header string
		tls          bool
		local        bool
	}{
		{"localhost", "", false, true},
		{"localhost:8080", "", false, true},
		{"app.localhost:8080", "", false, true},
		{"127.0.0.1:8080", "", false, true},
		{"[::1]:8080", "", false, true},
		{"[::1]", "", false, true},
		{"localhost:8443", "", true, false},
		{"localhost:8080", "X-Forwarded-For", false, false},
		{"localhost:8080", "Forwarded", false, false},
		{"example.com", "", false, false},
		{"localhost.example.com", "", false, false},
		{"127.0.0.1.example.com", "", false, false},
		{"notlocalhost", "", false, false},
		{"192.168.1.5:8080", "", false, false},
		{"", "", false, false},
	} {
		for name, want := range map[string]string{"": "session", "__Secure-sid": "sid", "__Host-": "__Host-", "sid": "sid"} {
			var log journal
			h := middleware.Sessions{Manager: m, Logger: log.logger(), Cookie: http.Cookie{Name: name, SameSite: http.SameSiteNoneMode, Partitioned: true}}.Handler(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if m.UserID(r.Context()) == "" {
						m.Login(r.Context(), "ann")
					}
				}))
			ask := func(cookies ...*http.Cookie) []*http.Cookie {
				r := httptest.NewRequest("GET", "/", nil)
				r.Host = tc.host
				if tc.tls {
					r.TLS = &tls.ConnectionState{}
				}
				if tc.header != "" {
					r.Header.Set(tc.header, "for=198.51.100.1")
				}
				for _, c := range cookies {
					r.AddCookie(c)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				return w.Result().Cookies()
			}
			set := ask()
			if len(set) != 1 {
				t.Fatalf("%q: cookies %v", tc.host, set)
			}
			c := set[0]
			if !tc.local {
				if want = name; name == "" {
					want = ours
				}
			}
			if c.Name != want || c.Secure == tc.local || !c.HttpOnly || (c.SameSite == http.SameSiteNoneMode) == tc.local || c.Partitioned == tc.local {
				t.Errorf("%q %s: got %v", tc.host, name, c)
			}
			if again := ask(c); len(again) != 0 {
				t.Errorf("%q %s: the cookie leads nowhere", tc.host, name)
			}
			ask()
			if got := strings.Count(log.String(), "not Secure"); (got == 1) != tc.local || got > 1 {
				t.Errorf("%q: %d lines", tc.host, got)
			}
		}
	}
}

func TestSessionsValidate(t *testing.T) {
	m, mini := newManager(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	withLegacy := must(session.New(client, session.Config{Legacy: session.Legacy{Store: memstore.NewWithCleanupInterval(0)}}))
	for _, tc := range []struct {
		name string
		s    middleware.Sessions
		want []string // one part of each line of the error
	}{
		{"default", middleware.Sessions{Manager: m}, nil},
		{"a domain", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Domain: "example.com", Path: "/app"}}, nil},
		{"__Host- with a domain", middleware.Sessions{Manager: m, Cookie: http.Cookie{Domain: "example.com"}}, []string{"no Domain"}},
		{"__Host- with a path", middleware.Sessions{Manager: m, Cookie: http.Cookie{Path: "/app"}}, []string{"no Domain and the Path /"}},
		{"__host- in lower case", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "__host-x", Path: "/app"}}, []string{"no Domain and the Path /"}},
		{"SameSite left to the browser", middleware.Sessions{Manager: m, Cookie: http.Cookie{SameSite: http.SameSiteDefaultMode}}, []string{"SameSite"}},
		{"no token", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "my session"}}, []string{"no token"}},
		{"a name that fills the cookie", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: strings.Repeat("n", 4096)}}, []string{"Cookie.Name of 4096 bytes"}},
		{"a path that browsers drop", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Path: "/" + strings.Repeat("p", 1024)}}, []string{"Cookie.Path of 1025 bytes"}},
		{"a domain with a dot behind", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Domain: "example.com."}}, []string{"ends with a dot"}},
		{"a Token that is the host", middleware.Sessions{Manager: m, Token: "host"}, []string{"Token"}},
		{"a Token that is the type", middleware.Sessions{Manager: m, Token: "Content-type"}, []string{"Token"}},
		{"a Token that nginx drops", middleware.Sessions{Manager: m, Token: "X_Session"}, []string{"letters, digits"}},
		{"a Token that scripts may not set", middleware.Sessions{Manager: m, Token: "Sec-Session"}, []string{"Token"}},
		{"a Token of 9 KB", middleware.Sessions{Manager: m, Token: strings.Repeat("x", 9000)}, []string{"Token"}},
		{"a path with a query", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Path: "/a?b"}}, []string{"no path"}},
		{"a path that nobody asks for", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Path: "/a/../b"}}, []string{"no path"}},
		{"a path with a slash at its end", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Path: "/app/"}}, nil},
		{"a domain like an address", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Domain: "foo.1"}}, []string{"number"}},
		{"a Token", middleware.Sessions{Manager: m, Token: "X-Session"}, nil},
		{"relative path", middleware.Sessions{Manager: m, Cookie: http.Cookie{Name: "s", Path: "app"}}, []string{"no path"}},
		{"a value", middleware.Sessions{Manager: m, Cookie: http.Cookie{Value: "x"}}, []string{"Value, Expires or MaxAge"}},
		{"a lifetime", middleware.Sessions{Manager: m, Cookie: http.Cookie{MaxAge: 60}}, []string{"Value, Expires or MaxAge"}},
		{"legacy is ours", middleware.Sessions{Manager: withLegacy, LegacyCookie: ours}, nil},
		{"legacy without a store", middleware.Sessions{Manager: m, LegacyCookie: "old"}, []string{"no Legacy.Store"}},
		{"everything", middleware.Sessions{
			LegacyCookie: "a b",
			Cookie: http.Cookie{
				Name: "__Host-x", Path: "app;", Domain: "-", MaxAge: -1, SameSite: http.SameSiteNoneMode, Partitioned: true,
			},
		}, []string{"Manager is nil", "no Domain", "no path", "no domain", "MaxAge", "LegacyCookie"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.s.Validate()
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tc.want) {
				t.Fatalf("got %d errors, want %d:\n%v", len(lines), len(tc.want), err)
			}
			for i, part := range tc.want {
				if !strings.HasPrefix(lines[i], "middleware: Sessions.") && !strings.HasPrefix(lines[i], "middleware: ") || !strings.Contains(lines[i], part) {
					t.Errorf("error %d is %q, want it to contain %q", i, lines[i], part)
				}
			}
			defer func() {
				if caught := recover(); fmt.Sprint(caught) != fmt.Sprint(any(err)) {
					t.Errorf("Handler panics with %v, want %v", caught, err)
				}
			}()
			tc.s.Handler(http.NotFoundHandler())
		})
	}
}

// A request without a cookie costs no Redis command.
func TestSessionsWithoutCookie(t *testing.T) {
	m, mini := newManager(t)
	s := serve(t, middleware.Sessions{Manager: m}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello"+m.GetString(r.Context(), "k"))
	})))
	before := mini.CommandCount()
	res := s.get("/")
	if res.Header["Set-Cookie"] != nil || res.Header.Get("Vary") != "Cookie" || res.Header.Get("Cache-Control") != "" {
		t.Errorf("%v", res.Header)
	}
	if n := mini.CommandCount() - before; n != 0 {
		t.Errorf("%d commands", n)
	}
	if len(mini.Keys()) != 0 {
		t.Errorf("keys %q", mini.Keys())
	}
}
