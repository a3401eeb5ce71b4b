package redistest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed clock.c
var clockSource []byte

// clockShim returns clock.c as a shared library. A test binary compiles it once, in about 80 ms,
// and each server gets a copy in its own directory: a cache would have to know the machine and
// its libc, and the guard removes the copies. libfaketime does not work: it recurses with
// jemalloc, which asks for the time while libfaketime looks up the real clock.
var clockShim = sync.OnceValues(func() ([]byte, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.New("it takes Linux; run the tests in a container that has Go, gcc and redis-server")
	}
	if _, err := exec.LookPath("cc"); err != nil {
		return nil, errors.New("there is no C compiler, cc, in PATH (apt-get install gcc libc6-dev, apk add gcc musl-dev)")
	}
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	lib := filepath.Join(dir, "clock.so")
	cmd := exec.Command("cc", "-shared", "-fPIC", "-O2", "-o", lib, "-x", "c", "-", "-x", "none", "-ldl")
	cmd.Stdin = bytes.NewReader(clockSource)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("cc: %w (are libc's headers installed? apt-get install libc6-dev, apk add musl-dev)\n%s", err, out)
	}
	return os.ReadFile(lib)
})

// withClock makes command run with a clock that moveClock can move, if it can be had at all.
func withClock(dir string, command []string) ([]string, error) {
	lib, err := clockShim()
	if err != nil {
		return command, nil // requireClock reports err to the tests that need it.
	}
	preload := filepath.Join(dir, "clock.so")
	if err := os.WriteFile(preload, lib, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(clockFile(dir), make([]byte, 16), 0o600); err != nil {
		return nil, err
	}
	// env execs the server, so the guard still knows its process ID.
	return append([]string{"env", "LD_PRELOAD=" + preload, "REDISTEST_CLOCK=" + clockFile(dir)}, command...), nil
}

func clockFile(dir string) string { return filepath.Join(dir, "clock") }

// requireClock skips or fails t when the clocks of real servers cannot be moved.
func requireClock(t testing.TB) {
	t.Helper()
	_, err := clockShim()
	switch v, why := clockPolicy(os.Getenv("CI"), err); v {
	case skip:
		t.Skip("redistest: " + why)
	case fail:
		t.Fatal("redistest: " + why)
	}
}

// Advance moves the server's wall clock by d, which may be negative: TIME, and with it the
// expiry of every key. It takes effect before Advance returns and survives [Server.Restart].
// Fractions of a microsecond are dropped. Clients keep their own time.
//
// Advance skips the test if the clock cannot be moved, for want of Linux or a C compiler; with
// CI=true it fails the test. A shared server's clock goes back to the real time when the test
// ends that asked for the server.
func (s *Server) Advance(d time.Duration) { s.t.Helper(); advance(s.t, d, s) }

// Advance is [Server.Advance] for all nodes. A shared cluster stays up. In one from
// [StartCluster], a node that has not answered the others for a second or more counts as failed
// from then on.
func (c *Cluster) Advance(d time.Duration) { c.t.Helper(); advance(c.t, d, c.nodes...) }

// Advance moves the clock of b by d, which may be negative: TIME, and with it the expiry of
// every key. [Each] sets it back. On real servers see [Server.Advance].
//
// The clock of miniredis stands still from the first Advance on, so that what happens between
// two of them happens at one instant. Before, TIME runs and TTLs do not; Advance(t, 0) stops it.
func (b Backend) Advance(t testing.TB, d time.Duration) {
	t.Helper()
	if b.Mini == nil {
		advance(t, d, b.nodes...)
		return
	}
	d = d.Truncate(time.Microsecond)
	b.Mini.SetTime(b.Now(t).Add(d))
	b.Mini.FastForward(d) // Backwards, this lengthens the TTLs, as on a real server.
}

// Now returns what TIME returns.
func (s *Server) Now() time.Time { s.t.Helper(); return now(s.t, s.p.client()) }

// Now returns what TIME returns on the first node.
func (c *Cluster) Now() time.Time { c.t.Helper(); return c.nodes[0].Now() }

// Now returns what TIME returns.
func (b Backend) Now(t testing.TB) time.Time {
	t.Helper()
	return now(t, redis.NewClient(&redis.Options{Addr: b.Addrs[0]}))
}

func now(t testing.TB, c *redis.Client) time.Time {
	t.Helper()
	defer c.Close()
	at, err := c.Time(context.Background()).Result()
	if err != nil {
		t.Fatalf("redistest: TIME: %v", err)
	}
	return at
}

func advance(t testing.TB, d time.Duration, nodes ...*Server) {
	t.Helper()
	requireClock(t)
	if len(nodes) == 0 {
		t.Fatalf("redistest: Advance of a Backend that is not from Each")
	}
	for _, n := range nodes {
		if err := n.p.moveClock(func(offset *int64) { atomic.AddInt64(offset, d.Microseconds()) }); err != nil {
			t.Fatal(err)
		}
		if n.shared {
			n.t.Cleanup(func() {
				if err := n.p.moveClock(func(offset *int64) { atomic.StoreInt64(offset, 0) }); err != nil {
					n.t.Error(err)
				}
			})
		}
	}
}
