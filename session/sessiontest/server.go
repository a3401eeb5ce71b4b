package sessiontest

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/session"
)

// Server is a Redis in the process of a test, for the handlers of an application: sessions and
// limits over its Client work as they do over a real one. It is not what the kit itself is
// tested on. It is safe for concurrent use.
type Server struct {
	Client *redis.Client // of the server; closed when the test ends

	t    testing.TB
	mini *miniredis.Miniredis
	down atomic.Pointer[failure]
}

// NewServer starts a server, which stops when t ends.
func NewServer(t testing.TB) *Server {
	t.Helper()
	mini := miniredis.RunT(t)
	s := &Server{t: t, mini: mini}
	// The race detector makes it slow.
	s.Client = redis.NewClient(&redis.Options{Addr: mini.Addr(), ReadTimeout: time.Minute, MaxRetries: -1})
	t.Cleanup(func() { _ = s.Client.Close() })
	s.Client.AddHook(hook{s})
	return s
}

// Manager returns a manager of sessions on the server. Where cfg.Timeout is zero it is patient.
// It fails t if cfg is wrong.
func (s *Server) Manager(t testing.TB, cfg session.Config) *session.Manager {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Minute
	}
	m, err := session.New(s.Client, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Advance moves the time by d, for sessions and limits over Client: what would end until then
// has ended. Before the first call time passes as it does, then it stands still but for further
// calls, in Redis.
func (s *Server) Advance(d time.Duration) {
	s.t.Helper()
	if d < 0 {
		s.t.Fatalf("sessiontest: Advance(%v): time does not go back", d)
	}
	now, err := s.Client.Time(asTest(context.Background())).Result()
	if err != nil {
		s.t.Fatal(err)
	}
	s.mini.SetTime(now.Add(d))
	s.mini.FastForward(d)
	roundtrip.Advance(s.Client, d)
}

// Fail has each command fail with err, as if Redis had answered that; nil: no longer.
func (s *Server) Fail(err error) {
	if err == nil {
		s.down.Store(nil)
		return
	}
	s.down.Store(&failure{err})
}

// failure is an answer of Redis: the next command is tried, whatever became of this one.
type failure struct{ error }

func (f *failure) RedisError()   {}
func (f *failure) Unwrap() error { return f.error }

type testKey struct{}

// asTest returns a context whose commands Fail does not concern.
func asTest(ctx context.Context) context.Context { return context.WithValue(ctx, testKey{}, true) }

// hook has commands fail.
type hook struct{ *Server }

func (h hook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (h hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if f := h.down.Load(); f != nil && ctx.Value(testKey{}) == nil {
			cmd.SetErr(f)
			return f
		}
		return next(ctx, cmd)
	}
}

func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		f := h.down.Load()
		callers := roundtrip.Callers(ctx)
		if callers == nil {
			callers = []context.Context{ctx}
		}
		if f == nil || !slices.ContainsFunc(callers, func(ctx context.Context) bool { return ctx.Value(testKey{}) == nil }) {
			return next(ctx, cmds)
		}
		for _, cmd := range cmds {
			cmd.SetErr(f)
		}
		return f
	}
}

// LoggedIn returns r with the cookie of a new session in which userID has just logged in, in place
// of one that it had, as a
// Sessions with the default name has it; see [Cookie] for others. It works while a [Server] fails.
func LoggedIn(t testing.TB, m *session.Manager, r *http.Request, userID string) *http.Request {
	t.Helper()
	value := Cookie(t, m, userID)
	others := r.Cookies()
	r.Header.Del("Cookie")
	for _, c := range others {
		if c.Name != "__Host-session" && c.Name != "session" {
			r.AddCookie(c)
		}
	}
	r.AddCookie(&http.Cookie{Name: "__Host-session", Value: value})
	r.AddCookie(&http.Cookie{Name: "session", Value: value}) // of localhost
	return r
}

// Cookie returns the value of the cookie of a new session in which userID has just logged in.
func Cookie(t testing.TB, m *session.Manager, userID string) string {
	t.Helper()
	value, err := logIn(t, m, userID)
	for range 1000 { // in a pipeline with others it fails with them
		if _, failing := errors.AsType[*failure](err); !failing {
			break
		}
		value, err = logIn(t, m, userID)
	}
	if err != nil {
		t.Fatalf("sessiontest: %v", err)
	}
	return value
}

func logIn(t testing.TB, m *session.Manager, userID string) (string, error) {
	ctx, err := m.Load(asTest(context.WithoutCancel(t.Context())))
	if err == nil {
		err = m.Login(ctx, userID)
	}
	if err != nil {
		return "", err
	}
	out, err := m.Finish(ctx)
	return out.Value, err
}
