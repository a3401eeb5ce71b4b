package middleware_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// handling is what the handler of such a request can do.
type handling struct {
	t      *testing.T
	m      *session.Manager
	pass   func(time.Duration) // time
	hangUp func()
}

// A rotation that the browser does not hear of would log it out when the Grace is over. So
// there is none for clients that hang up, nor on connections that were taken over, and what
// such requests change is saved all the same.
func TestRotationThatNobodyHearsOf(t *testing.T) {
	const every, grace = time.Hour, time.Minute
	upgrade := func(w http.ResponseWriter) io.Closer {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n") // without ours
		rw.Flush()
		return conn
	}
	for _, tc := range []struct {
		name   string
		rotate bool // for comparison: it is due, and is heard of
		handle func(h handling, w http.ResponseWriter, r *http.Request)
	}{
		{name: "a response", rotate: true, handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			h.pass(every)
			h.m.Put(r.Context(), "k", "put")
		}},
		{name: "a 101 with our header", rotate: true, handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			h.pass(every)
			h.m.Put(r.Context(), "k", "put")
			w.Header().Set("Upgrade", "echo")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(err)
			}
			conn.Close()
		}},
		{name: "a client that hangs up", handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			h.pass(every)
			h.m.Put(r.Context(), "k", "put")
			h.hangUp()
			<-r.Context().Done()
		}},
		{name: "a client that hangs up after a Commit", handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			h.pass(every)
			h.m.Put(r.Context(), "k", "put")
			if err := h.m.Commit(r.Context()); err != nil {
				h.t.Error(err)
			}
			h.hangUp()
			<-r.Context().Done()
		}},
		{name: "an upgrade that was due", handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			h.pass(every)
			h.m.Put(r.Context(), "k", "put")
			upgrade(w).Close()
		}},
		{name: "Commit after an upgrade that was due", handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			h.pass(every)
			defer upgrade(w).Close()
			for _, v := range []string{"1", "2", "put"} {
				h.m.Put(r.Context(), "k", v)
				if err := h.m.Commit(r.Context()); err != nil {
					h.t.Error(err)
				}
			}
		}},
		{name: "Commit on a connection that outlasts the interval", handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			defer upgrade(w).Close()
			for range 3 {
				h.pass(every)
				h.m.Put(r.Context(), "k", "put")
				if err := h.m.Commit(r.Context()); err != nil {
					h.t.Error(err)
				}
			}
		}},
		{name: "Commit in a stream that outlasts the interval", handle: func(h handling, w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			for range 3 {
				h.pass(every)
				h.m.Put(r.Context(), "k", "put")
				if err := h.m.Commit(r.Context()); err != nil {
					h.t.Error(err)
				}
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, b redistest.Backend) {
				if b.Name == "cluster" {
					return // its servers' clocks are learned one by one
				}
				m := must(session.New(b.Client, session.Config{
					Prefix: t.Name() + ":", Timeout: time.Minute, IdleTimeout: -1, Lifetime: 100 * every,
					Rotation: session.Rotation{Every: every, Grace: grace}, Logger: new(journal).logger(),
				}))
				pass := func(d time.Duration) { advance(t, b, d, m) }
				left := make(chan bool, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				h := shop(t, m, func(w http.ResponseWriter, r *http.Request) {
					tc.handle(handling{t, m, pass, cancel}, w, r)
				})
				s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						defer func() { left <- true }()
					}
					h.ServeHTTP(w, r)
				}))
				s.get("/login?user=ann")
				req, _ := http.NewRequestWithContext(ctx, "GET", s.URL+"/slow", nil)
				if strings.Contains(tc.name, "upgrade") || strings.Contains(tc.name, "101") || strings.Contains(tc.name, "connection") {
					req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}
				}
				rotated := false
				if res, err := s.client.Do(req); err == nil {
					_, _ = bufio.NewReader(res.Body).ReadByte()
					res.Body.Close()
					rotated = len(cookies(res.Header, ours)) == 1
				}
				<-left
				if rotated != tc.rotate {
					t.Errorf("rotated: %v, want %v", rotated, tc.rotate)
				}
				pass(2 * grace)
				if got := s.get("/see").body; got != "ann cart= k=put" {
					t.Errorf("after the Grace the browser sees %q", got)
				}
				// What was due is done with the next answer.
				if rotated := len(cookies(s.get("/see").Header, ours)) == 1; rotated {
					t.Error("it rotates twice")
				}
			})
		})
	}
}

// A rotation that nobody asked for fails no request: a Redis that is full, or takes no writes, goes on to
// serve those who read.
func TestARotationThatIsDueFailsNoReader(t *testing.T) {
	for setting, value := range map[string]string{"maxmemory": "1", "min-replicas-to-write": "1"} {
		client := redistest.Start(t).Client()
		var log journal
		m := must(session.New(client, session.Config{Rotation: session.Rotation{Every: 100 * time.Millisecond, Grace: time.Second}, Logger: log.logger()}))
		h := middleware.Sessions{Manager: m, Logger: log.logger()}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/login":
				_ = m.Login(r.Context(), "ann")
			case "/put":
				m.Put(r.Context(), "a", r.URL.RawQuery)
			case "/rotate":
				_ = m.Rotate(r.Context())
			}
			fmt.Fprint(w, m.UserID(r.Context()))
		}))
		cookies := answer(h, httptest.NewRequest("GET", "https://x.example/login", nil)).Cookies()
		if len(cookies) != 1 {
			t.Fatal(cookies)
		}
		if err := client.ConfigSet(t.Context(), setting, value).Err(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		for path, want := range map[string]int{"/": 200, "/put?1": 503, "/rotate": 503} {
			r := httptest.NewRequest("GET", "https://x.example"+path, nil)
			r.AddCookie(cookies[0])
			if res := answer(h, r); res.StatusCode != want {
				t.Errorf("%s %s: %d, want %d: %s", setting, path, res.StatusCode, want, log.String())
			}
		}
		if !strings.Contains(log.String(), "no new ID") {
			t.Errorf("%s: nothing is logged: %s", setting, log.String())
		}
	}
}
