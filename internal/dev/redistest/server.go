// Package redistest starts real redis-server processes for tests.
//
// Servers listen on free ports of 127.0.0.1, keep nothing on disk but a temporary directory,
// and are gone when the test binary is, however it ends. No function touches a server that it
// did not start.
//
// A test that cannot have a server fails. With GATEHOUSE_TEST_REDIS=off it is skipped instead,
// unless CI=true, where that is a failure too.
//
// The clocks of these servers can be moved, on Linux with a C compiler: see [Server.Advance].
package redistest

import (
	"context"
	"slices"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Server is a standalone redis-server, as seen by one test. Get one from [Start] or [Shared].
type Server struct {
	t      testing.TB
	p      *process
	shared bool
}

// Start starts a server of the test's own and stops it when the test ends. It persists nothing.
// args are added to the command line of redis-server: Start(t, "--maxmemory", "1mb"). With
// --requirepass the clients know the password.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	require(t)
	p, err := launchServer(args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	return &Server{t: t, p: p}
}

func launchServer(args ...string) (*process, error) {
	var password string
	if i := slices.Index(args, "--requirepass"); i >= 0 && i+1 < len(args) {
		password = args[i+1]
	}
	return launch(password, func(port int, dir string) ([]string, error) {
		return withClock(dir, append([]string{"redis-server",
			"--port", strconv.Itoa(port),
			"--bind", "127.0.0.1",
			"--dir", dir,
			"--save", "",
			"--appendonly", "no",
		}, args...))
	})
}

// Addr returns host:port.
func (s *Server) Addr() string { return s.p.addr() }

// Client returns a new client, closed when the test ends. set, if any, change its options.
func (s *Server) Client(set ...func(*redis.Options)) *redis.Client {
	opts := &redis.Options{Addr: s.p.addr(), Password: s.p.password}
	for _, f := range set {
		f(opts)
	}
	c := redis.NewClient(opts)
	s.t.Cleanup(func() { c.Close() })
	return c
}

// Flush deletes every key. Loaded scripts stay. On a shared server under [MainStrict], keys that
// are unlisted or have no TTL fail the test first.
func (s *Server) Flush() {
	s.t.Helper()
	if s.shared {
		checkLeft(s.t, s.Addr())
	}
	c := s.p.client()
	defer c.Close()
	if err := c.FlushAll(context.Background()).Err(); err != nil {
		s.t.Fatalf("redistest: flush %s: %v", s.Addr(), err)
	}
}

// Stop ends the server for good. Tests need it only to see what a vanished server does; the
// test's end stops it anyway.
func (s *Server) Stop() {
	s.t.Helper()
	s.own("Stop")
	s.p.stop()
}

// Kill ends the server with SIGKILL; [Server.Restart] brings it back.
func (s *Server) Kill() { s.t.Helper(); s.own("Kill"); s.order("kill") }

// Pause stops the server with SIGSTOP: connections are still accepted, by the kernel, and
// nothing is answered. What was sent meanwhile is executed after [Server.Resume].
func (s *Server) Pause() { s.t.Helper(); s.own("Pause"); s.order("STOP") }

// Resume undoes [Server.Pause].
func (s *Server) Resume() { s.t.Helper(); s.own("Resume"); s.order("CONT") }

// Restart kills the server if it runs and starts it anew on the same port: without its keys and
// scripts, except those that args of [Start] made it keep.
func (s *Server) Restart() {
	s.t.Helper()
	s.own("Restart")
	s.order("kill")
	if err := s.p.start(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) order(order string) {
	s.t.Helper()
	if _, err := s.p.order(order); err != nil {
		s.t.Fatal(err)
	}
}

// own refuses to break the server under the feet of other tests.
func (s *Server) own(method string) {
	s.t.Helper()
	if s.shared {
		s.t.Fatalf("redistest: %s of a shared server: use Start to have one of your own", method)
	}
}
