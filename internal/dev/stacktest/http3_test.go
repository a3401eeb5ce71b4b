package stacktest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/webtransport-go"

	"github.com/gatehouse-go/gatehouse/session"
)

// serveHTTP3 serves h over HTTP/3, with WebTransport, and returns the server to upgrade with.
func serveHTTP3(t *testing.T, h func(*webtransport.Server) http.Handler) *site {
	t.Helper()
	tls := httptest.NewUnstartedServer(nil) // for its certificate
	tls.StartTLS()
	t.Cleanup(tls.Close)
	client := tls.Client()
	config := client.Transport.(*http.Transport).TLSClientConfig

	server := &webtransport.Server{}
	server.H3 = &http3.Server{TLSConfig: http3.ConfigureTLSConfig(tls.TLS), Handler: h(server), Logger: quiet}
	webtransport.ConfigureHTTP3Server(server.H3)
	conn := must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	served := make(chan error)
	go func() { served <- server.Serve(conn) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		conn.Close()
	})
	transport := &http3.Transport{TLSClientConfig: config}
	t.Cleanup(func() { transport.Close() })
	tls.URL = "https://" + conn.LocalAddr().String()
	return &site{tls, t, &http.Client{Transport: transport, Jar: must(cookiejar.New(nil)), Timeout: time.Minute}}
}

func TestHTTP3(t *testing.T) {
	k := newKit(t)
	a := newApp(k)
	s := serveHTTP3(t, func(*webtransport.Server) http.Handler { return k.all(a) })
	keeps(t, s, a)
	if proto := s.get("/text").Proto; proto != "HTTP/3.0" {
		t.Error(proto)
	}
}

// webTransport opens a WebTransport session with the cookies of s.
func (s *site) webTransport(path string) (*http.Response, *webtransport.Session, error) {
	s.t.Helper()
	dialer := &webtransport.Transport{
		TLSClientConfig: s.client.Transport.(*http3.Transport).TLSClientConfig,
		QUICConfig:      &quic.Config{EnableDatagrams: true, EnableStreamResetPartialDelivery: true},
	}
	req := must(http.NewRequest("CONNECT", s.URL+path, nil))
	for _, c := range s.client.Jar.Cookies(req.URL) {
		req.AddCookie(c)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	return dialer.Dial(ctx, s.URL+path, req.Header)
}

// transports is an application of WebTransport.
func transports(t *testing.T, k *kit, server *webtransport.Server) http.Handler {
	a := newApp(k)
	a.HandleFunc("CONNECT /echo", func(w http.ResponseWriter, r *http.Request) {
		conn, err := server.Upgrade(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseWithError(0, "")
		stream, err := conn.AcceptStream(conn.Context())
		if err != nil {
			t.Error(err)
			return
		}
		said, _ := io.ReadAll(stream)
		n := k.sessions.GetInt(r.Context(), "n") + len(said)
		k.sessions.Put(r.Context(), "n", n)
		err = k.sessions.Commit(r.Context())
		fmt.Fprintf(stream, "%d %s, %v", n, said, err)
		stream.Close()
		<-conn.Context().Done()
	})
	a.HandleFunc("CONNECT /closed", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "not today", http.StatusForbidden)
	})
	return a
}

// say sends a text on a stream, and returns what comes back.
func say(t *testing.T, conn *webtransport.Session, what string) string {
	t.Helper()
	stream := must(conn.OpenStream())
	_ = stream.SetDeadline(time.Now().Add(time.Minute))
	_, _ = io.WriteString(stream, what)
	stream.Close()
	heard, err := io.ReadAll(stream)
	if err != nil {
		t.Error(err)
	}
	return string(heard)
}

// WebTransport works behind sessions and limits: data go both ways, and what the handler has
// committed is in the next request.
func TestWebTransport(t *testing.T) {
	k := newKit(t)
	s := serveHTTP3(t, func(server *webtransport.Server) http.Handler {
		return k.withSessions(k.limit.Handler(k.routes.Handler(transports(t, k, server))))
	})
	s.get("/count").expect(t, 200, "1")
	res, conn, err := s.webTransport("/echo")
	if err != nil {
		t.Fatal(err)
	}
	figures(t, "the upgrade", res.Header, quota, quota-2)
	if got := say(t, conn, "hello"); got != "6 hello, <nil>" {
		t.Errorf("it answers %q", got)
	}
	conn.CloseWithError(0, "")
	s.get("/count").expect(t, 200, "7")

	// What refuses answers as ever.
	res, _, err = s.webTransport("/closed")
	if err == nil || res == nil || res.StatusCode != http.StatusForbidden {
		t.Fatalf("a handler that refuses: %v, %v", res, err)
	}
	figures(t, "a handler that refuses", res.Header, quota, quota-4)
	for left := quota - 5; left >= 0; left-- {
		s.get("/text").expect(t, 200, text)
	}
	res, _, err = s.webTransport("/echo")
	if err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Fatalf("the limit is used up: %v, %v", res, err)
	}
	figures(t, "the limit is used up", res.Header, quota, 0)
}

// The cookie of a new session cannot be set once WebTransport has begun: Commit says so.
func TestWebTransportOfAVisitorWithoutASession(t *testing.T) {
	k := newKit(t)
	s := serveHTTP3(t, func(server *webtransport.Server) http.Handler { return k.withSessions(transports(t, k, server)) })
	res, conn, err := s.webTransport("/echo")
	if err != nil {
		t.Fatal(res, err)
	}
	defer conn.CloseWithError(0, "")
	if got, want := say(t, conn, "hello"), fmt.Sprint("5 hello, ", session.ErrFinished); got != want {
		t.Errorf("it answers %q, want %q", got, want)
	}
}

// A WebTransport session holds its place until its handler returns.
func TestWebTransportHoldsItsPlace(t *testing.T) {
	for _, tc := range []struct {
		name  string
		mount func(k *kit, app http.Handler) http.Handler
	}{
		{"inside of Sessions", func(k *kit, app http.Handler) http.Handler { return k.withSessions(k.places.Handler(app)) }},
		{"outside of Sessions", func(k *kit, app http.Handler) http.Handler { return k.places.Handler(k.withSessions(app)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKit(t)
			s := serveHTTP3(t, func(server *webtransport.Server) http.Handler { return tc.mount(k, transports(t, k, server)) })
			s.get("/count").expect(t, 200, "1")
			res, conn, err := s.webTransport("/echo")
			if err != nil {
				t.Fatal(res, err)
			}
			refused(t, "beside it", s.get("/text"))
			if got := say(t, conn, "hello"); got != "6 hello, <nil>" {
				t.Errorf("it answers %q", got)
			}
			conn.CloseWithError(0, "")
			for deadline := time.Now().Add(time.Minute); s.get("/text").StatusCode != 200; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the place stays taken")
				}
			}
		})
	}
}
