package middleware_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// protocols runs f as a subtest on HTTP/1.1 and on HTTP/2.
func protocols(t *testing.T, f func(t *testing.T, serve func(http.Handler) *site)) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			f(t, func(h http.Handler) *site { return serveProto(t, proto, h) })
		})
	}
}

// site is a real server over TLS and a client of it with a cookie jar.
type site struct {
	*httptest.Server
	t      *testing.T
	proto  string
	client *http.Client
}

func serveProto(t *testing.T, proto string, h http.Handler) *site {
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = proto == "HTTP/2.0"
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s := &site{srv, t, proto, srv.Client()}
	s.forget()
	// What the jar is for is to be seen as it was sent.
	s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s
}

func serve(t *testing.T, h http.Handler) *site { return serveProto(t, "HTTP/1.1", h) }

// forget empties the cookie jar.
func (s *site) forget() {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.client.Jar = jar
}

// reply is a response that was read to its end.
type reply struct {
	*http.Response
	body  string
	early []http.Header // of informational responses
}

func (s *site) get(path string) reply { s.t.Helper(); return s.do("GET", path, nil) }

func (s *site) do(method, path string, header http.Header) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	var early []http.Header
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
			early = append(early, http.Header(h).Clone())
			return nil
		},
	}))
	if header != nil {
		req.Header = header
	}
	res, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Errorf("the body breaks off: %v", err)
	}
	if res.Proto != s.proto {
		s.t.Errorf("the protocol is %s, want %s", res.Proto, s.proto)
	}
	return reply{res, string(body), early}
}

// cookies returns those of a name that a header sets.
func cookies(h http.Header, name string) (named []*http.Cookie) {
	for _, c := range (&http.Response{Header: h}).Cookies() {
		if c.Name == name {
			named = append(named, c)
		}
	}
	return named
}

// newManager returns a session manager on a miniredis of its own.
func newManager(t *testing.T) (*session.Manager, *miniredis.Miniredis) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { client.Close() })
	return managerOn(t, client), mini
}

func managerOn(t *testing.T, client redis.UniversalClient) *session.Manager {
	m, err := session.New(client, session.Config{
		Prefix:  t.Name() + ":",
		Timeout: time.Minute, // patience for loaded machines
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// over is what tests of several kinds of Redis take, of a miniredis.
func over(mini *miniredis.Miniredis) redistest.Backend {
	return redistest.Backend{Name: "miniredis", Addrs: []string{mini.Addr()}, Mini: mini}
}

// advance moves the clock of one Redis server, and has the managers see it: they learn its
// time from what they write.
func advance(t testing.TB, b redistest.Backend, d time.Duration, managers ...*session.Manager) {
	t.Helper()
	b.Advance(t, d)
	for _, m := range managers {
		ctx, err := m.Load(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		m.Put(ctx, "scratch", true)
		if _, err := m.Finish(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

type journal struct{ redistest.Journal }

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }
