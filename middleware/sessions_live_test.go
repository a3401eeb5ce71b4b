package middleware_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// liveServer is one server of two over the same Redis, with a stream that says why it ends.
func liveServer(t *testing.T, m *session.Manager, stop <-chan struct{}) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		if err := m.Login(r.Context(), r.FormValue("user")); err != nil {
			t.Error(err)
		}
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(100 * time.Millisecond)
		io.WriteString(w, "done")
	})
	live := middleware.Live{Manager: m, Stop: stop}
	mux.Handle("/stream", live.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		switch cause := context.Cause(r.Context()); {
		case errors.Is(cause, session.ErrEnded):
			io.WriteString(w, "ended: "+string(m.Ended(r.Context()))+"\n")
		case errors.Is(cause, http.ErrServerClosed):
			io.WriteString(w, "shutdown\n")
		}
	})))
	s := httptest.NewTLSServer(middleware.Sessions{Manager: m}.Handler(mux))
	t.Cleanup(s.Close)
	return s
}

func cookieOf(t *testing.T, s *httptest.Server, user string) *http.Cookie {
	t.Helper()
	res, err := s.Client().Get(s.URL + "/login?user=" + user)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.Cookies()[0]
}

// stream opens a stream and returns its last line, when it ends.
func stream(t *testing.T, s *httptest.Server, c *http.Cookie) <-chan string {
	t.Helper()
	r, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/stream", nil)
	if c != nil {
		r.AddCookie(c)
	}
	res, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(res.Body)
	if !lines.Scan() || lines.Text() != "begun" {
		t.Fatalf("%s: %q", res.Status, lines.Text())
	}
	last := make(chan string, 1)
	go func() {
		defer res.Body.Close()
		line := "cut"
		for lines.Scan() {
			line = lines.Text()
		}
		last <- line
	}()
	return last
}

func wait(t *testing.T, last <-chan string, want string) {
	t.Helper()
	select {
	case got := <-last:
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("the stream goes on, want %q", want)
	}
}

// A stream on another server ends with its session, and no other does.
func TestLiveEndsWithTheSession(t *testing.T) {
	server := redistest.Start(t)
	here, there := managerOn(t, server.Client()), managerOn(t, server.Client())
	a, b := liveServer(t, here, nil), liveServer(t, there, nil)
	bystander, visitor := stream(t, b, cookieOf(t, a, "bob")), stream(t, b, nil)
	var took []time.Duration
	for range 20 {
		last := stream(t, b, cookieOf(t, a, "ann"))
		list, err := here.List(t.Context(), "ann")
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		began := time.Now()
		if err := here.End(t.Context(), "ann", list[0].Handle, session.Cause{Reason: session.Disabled}); err != nil {
			t.Fatal(err)
		}
		wait(t, last, "ended: disabled")
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("from End to the end of the stream: median %v, longest %v", took[len(took)/2], took[len(took)-1])
	for name, last := range map[string]<-chan string{"another user's": bystander, "a visitor's": visitor} {
		select {
		case line := <-last:
			t.Errorf("%s stream has ended: %q", name, line)
		default:
		}
	}
}

// Stop ends streams, and leaves ordinary requests alone.
func TestLiveStops(t *testing.T) {
	server := redistest.Start(t)
	stop := make(chan struct{})
	s := liveServer(t, managerOn(t, server.Client()), stop)
	streams := []<-chan string{stream(t, s, cookieOf(t, s, "ann")), stream(t, s, nil)}
	var ordinary sync.WaitGroup
	ordinary.Go(func() {
		res, err := s.Client().Get(s.URL + "/slow")
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		if body, _ := io.ReadAll(res.Body); string(body) != "done" {
			t.Errorf("an ordinary request: %q", body)
		}
	})
	time.Sleep(20 * time.Millisecond)
	close(stop)
	for _, last := range streams {
		wait(t, last, "shutdown")
	}
	ordinary.Wait()
}

func TestLiveWithoutRedis(t *testing.T) {
	m, mini := newManager(t)
	var log journal
	s := middleware.Sessions{Manager: m}
	h := s.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mini.SetError("ERR down")
		middleware.Live{Manager: m, Logger: log.logger()}.Handler(http.NotFoundHandler()).ServeHTTP(w, r)
	}))
	r := httptest.NewRequest("GET", "/secret", nil)
	r.AddCookie(loggedIn(t, s, m))
	if res := answer(h, r); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("%s", res.Status)
	}
	if !strings.Contains(log.String(), "cannot be watched") || strings.Contains(log.String(), "secret") {
		t.Errorf("log: %s", log.String())
	}
	if err := (middleware.Live{}).Validate(); err == nil {
		t.Error("no Manager, no error")
	}
}

func loggedIn(t *testing.T, s middleware.Sessions, m *session.Manager) *http.Cookie {
	t.Helper()
	res := answer(s.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := m.Login(r.Context(), "ann"); err != nil {
			t.Error(err)
		}
	})), httptest.NewRequest("GET", "/", nil))
	return res.Cookies()[0]
}

// The label of the client is asked for at a login alone, and shown in the list.
func TestClientLabels(t *testing.T) {
	m, _ := newManager(t)
	asked := 0
	s := middleware.Sessions{Manager: m, Client: func(r *http.Request) string { asked++; return r.UserAgent() }}
	for i, tc := range []struct{ agent, want string }{
		{"Firefox on Windows", "Firefox on Windows"},
		{"a\r\nb\x00c\u202ed", "a  b c d"},
		{"\xff\xfe", ""},
		{strings.Repeat("é", 1<<19), strings.Repeat("é", 64)},
	} {
		h := s.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/login" {
				if err := m.Login(r.Context(), fmt.Sprint("ann", i)); err != nil {
					t.Error(err)
				}
			}
			m.Put(r.Context(), "k", 1)
		}))
		for _, path := range []string{"/", "/login"} {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("User-Agent", tc.agent)
			answer(h, r)
		}
		list, err := m.List(t.Context(), fmt.Sprint("ann", i))
		if err != nil || len(list) != 1 || list[0].Client != tc.want {
			t.Errorf("%.40q: %+v, %v", tc.agent, list, err)
		}
	}
	if asked != 4 {
		t.Errorf("asked %d times", asked)
	}
}

// The response of a navigation that asks for the reason deletes the cookie; that of a script keeps it.
func TestEndedSessionsCookieGoesWithThePage(t *testing.T) {
	m, mini := newManager(t)
	s := middleware.Sessions{Manager: m}
	c := loggedIn(t, s, m)
	if _, err := m.EndAll(t.Context(), "ann", session.Cause{}); err != nil {
		t.Fatal(err)
	}
	advance(t, over(mini), time.Minute, m)
	h := s.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		why := m.Ended(r.Context())
		if r.URL.Path == "/elsewhere" {
			w.WriteHeader(http.StatusSeeOther)
		}
		io.WriteString(w, string(why))
	}))
	for _, tc := range []struct {
		mode, path, purpose string
		cookies             int
	}{{"cors", "/", "", 0}, {"", "/", "", 0}, {"navigate", "/", "prefetch", 0}, {"navigate", "/elsewhere", "", 0}, {"navigate", "/", "", 1}} {
		r := httptest.NewRequest("GET", tc.path, nil)
		r.AddCookie(c)
		if tc.purpose != "" {
			r.Header.Set("Sec-Purpose", tc.purpose)
		}
		if tc.mode != "" {
			r.Header.Set("Sec-Fetch-Mode", tc.mode)
		}
		res := answer(h, r)
		body, _ := io.ReadAll(res.Body)
		if string(body) != "revoked" || len(res.Cookies()) != tc.cookies || tc.cookies == 1 && res.Cookies()[0].MaxAge >= 0 {
			t.Errorf("%q: %q, %v", tc.mode, body, res.Cookies())
		}
	}
}
