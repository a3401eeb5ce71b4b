package stacktest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/gatehouse-go/gatehouse/middleware"
)

// A WebSocket goes through a ReverseProxy behind the kit: both ways, with the cookie in the
// handshake's answer, without the session's cookie to the backend, and with its place until it is
// closed.
//
// The answer to the handshake has no figures of ours: a ReverseProxy adds the backend's fields after
// it has the connection, when Gateway can no longer choose.
func TestWebSocketThroughAGateway(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := r.Cookie("__Host-session"); err == nil {
			t.Error("the backend gets the session's cookie")
		}
		if r.URL.Path == "/closed" {
			w.Header().Set("X-RateLimit-Limit", "99")
			http.Error(w, "not today", http.StatusForbidden)
			return
		}
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
			_ = conn.Write(r.Context(), typ, message)
		}
	}))
	defer backend.Close()
	gateway := middleware.Gateway(httputil.NewSingleHostReverseProxy(must(url.Parse(backend.URL))))

	k := newKit(t)
	a := newApp(k)
	a.HandleFunc("GET /socket", func(w http.ResponseWriter, r *http.Request) {
		k.sessions.Put(r.Context(), "n", 10)
		gateway.ServeHTTP(w, r)
	})
	a.Handle("GET /closed", gateway)
	s := serve(t, false, middleware.Sessions{Manager: k.sessions, StripCookie: true, Logger: quiet}.Handler(k.limits(a)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	// The client has no Timeout, which would bound the connection.
	dial := func(path string) (*websocket.Conn, *http.Response, error) {
		return websocket.Dial(ctx, s.URL+path, &websocket.DialOptions{HTTPClient: &http.Client{Transport: s.client.Transport, Jar: s.client.Jar}})
	}

	conn, res, err := dial("/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if n := sets(res, "__Host-session"); n != 1 || res.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the handshake: %d cookies, %v", n, res.Header)
	}
	if got := res.Header.Values("X-RateLimit-Limit"); len(got) > 0 {
		t.Errorf("the handshake: figures %q", got)
	}
	for i := range 3 {
		want := fmt.Sprint("message ", i)
		if err := conn.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
	}
	beside := s.get("/count")
	refused(t, "beside it", beside)
	figures(t, "beside it", beside.Header, quota, quota-2)
	if _, res, err := dial("/socket"); err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("another beside it: %v, %v", res, err)
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	spent := 3
	for {
		r := s.get("/count")
		spent++
		figures(t, "afterwards", r.Header, quota, max(0, quota-spent))
		if r.StatusCode == 200 {
			r.expect(t, 200, "11")
			break
		}
		if spent == quota {
			t.Fatal("the place stays taken")
		}
		time.Sleep(50 * time.Millisecond)
	}

	_, res, err = dial("/closed")
	spent++
	if err == nil || res == nil || res.StatusCode != http.StatusForbidden {
		t.Fatalf("a backend that refuses: %v, %v", res, err)
	}
	if body, _ := io.ReadAll(res.Body); string(body) != "not today\n" {
		t.Errorf("a backend that refuses: %q", body)
	}
	figures(t, "a backend that refuses", res.Header, quota, quota-spent)
	for ; spent < quota; spent++ {
		s.get("/text").expect(t, 200, text)
	}
	if _, res, err := dial("/socket"); err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("the limit is used up: %v, %v", res, err)
	} else {
		figures(t, "the limit is used up", res.Header, quota, 0)
	}
}
