package routertest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/coder/websocket"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// stack returns a TLS server with sessions and a limit of n requests in front of mux, and a
// client with a cookie jar.
func stack(t *testing.T, http2 bool, n int, routes func(*http.ServeMux, *session.Manager)) (string, *http.Client) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { client.Close() })
	m, err := session.New(client, session.Config{Timeout: time.Minute}) // patience for loaded machines
	if err != nil {
		t.Fatal(err)
	}
	limiter, err := ratelimit.NewSlidingWindow(client, "all", ratelimit.PerHour(n), ratelimit.Config{Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	routes(mux, m)
	mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, m.GetString(r.Context(), "k"))
	})
	limit := middleware.RateLimit{
		Limiter: limiter, Key: middleware.ByIP(middleware.PeerIP),
	}
	srv := httptest.NewUnstartedServer(middleware.Sessions{Manager: m}.Handler(limit.Handler(mux)))
	srv.EnableHTTP2 = http2
	srv.StartTLS()
	t.Cleanup(srv.Close)
	c := srv.Client()
	c.Jar, _ = cookiejar.New(nil)
	return srv.URL, c
}

func body(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// Cookie and figures go with the upgrade, messages are no requests, and a handshake too many is refused.
func TestWebSocket(t *testing.T) {
	url, client := stack(t, false, 5, func(mux *http.ServeMux, m *session.Manager) {
		mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "kept")
			conn, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.CloseNow()
			for {
				typ, message, err := conn.Read(r.Context())
				if err != nil {
					return
				}
				m.Put(r.Context(), "k", string(message))
				if err := m.Commit(r.Context()); err != nil {
					t.Error(err)
				}
				conn.Write(context.Background(), typ, message)
			}
		})
	})
	conn, res, err := websocket.Dial(t.Context(), url+"/socket", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if set := res.Header["Set-Cookie"]; len(set) != 1 || !strings.HasPrefix(set[0], "__Host-session=") {
		t.Errorf("the upgrade sets %q", set)
	}
	if left := res.Header.Get("X-RateLimit-Remaining"); left != "4" {
		t.Errorf("after the upgrade %q are left", left)
	}
	if got := body(t, client, url+"/get"); got != "kept" {
		t.Errorf("the next request sees %q", got)
	}
	for i := range 3 {
		want := fmt.Sprint("message ", i)
		conn.Write(t.Context(), websocket.MessageText, []byte(want))
		if _, message, err := conn.Read(t.Context()); string(message) != want {
			t.Errorf("%q, %v", message, err)
		}
		if got := body(t, client, url+"/get"); got != want {
			t.Errorf("another request sees %q", got)
		}
	}
	if _, res, err := websocket.Dial(t.Context(), url+"/socket", &websocket.DialOptions{HTTPClient: client}); err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a handshake too many: %v", err)
	}
}

// Server-sent events arrive one by one, and the cookie and the figures before all of them. A stream is one
// request, and one too many is refused.
func TestServerSentEvents(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("http2 ", http2), func(t *testing.T) {
			next := make(chan bool)
			url, client := stack(t, http2, 2, func(mux *http.ServeMux, m *session.Manager) {
				mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
					m.Put(r.Context(), "k", "kept")
					w.Header().Set("Content-Type", "text/event-stream")
					flusher := w.(http.Flusher)
					flusher.Flush()
					for n := 0; <-next; n++ {
						fmt.Fprintf(w, "data: %d\n\n", n)
						flusher.Flush()
					}
				})
			})
			res, err := client.Get(url + "/events")
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if len(res.Header["Set-Cookie"]) != 1 {
				t.Errorf("the stream sets %q", res.Header["Set-Cookie"])
			}
			if left := res.Header.Get("X-RateLimit-Remaining"); left != "1" {
				t.Errorf("after its beginning %q are left", left)
			}
			if got := body(t, client, url+"/get"); got != "kept" {
				t.Errorf("while it runs, the session has %q", got)
			}
			events := bufio.NewReader(res.Body)
			for n := range 3 {
				next <- true // the handler waits, so this event is flushed by itself
				line, err := events.ReadString('\n')
				if want := fmt.Sprintf("data: %d\n", n); line != want {
					t.Errorf("%q, %v; want %q", line, err, want)
				}
				events.ReadString('\n')
			}
			close(next) // also for a stream too many
			if res, err := client.Get(url + "/events"); err != nil || res.StatusCode != http.StatusTooManyRequests {
				t.Errorf("a stream too many: %v, %v", res, err)
			} else {
				res.Body.Close()
			}
		})
	}
}
