package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

func init() { noTurns = true }

func TestMain(m *testing.M) {
	if patterns := os.Getenv("REDISTEST_CHILD_STRICT"); patterns != "" {
		MainStrict(m, patterns)
	}
	Main(m)
}

func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		name      string
		ci, mode  string
		installed bool
		want      verdict
		why       string
	}{
		{"installed", "", "", true, run, ""},
		{"installed, CI", "true", "", true, run, ""},
		{"missing", "", "", false, fail, "make test"},
		{"missing, CI", "true", "", false, fail, "make test"},
		{"off", "", "off", true, skip, "GATEHOUSE_TEST_REDIS=off"},
		{"off and missing", "", "off", false, skip, "GATEHOUSE_TEST_REDIS=off"},
		{"off, CI", "true", "off", true, fail, "CI=true"},
		{"off, not CI", "false", "off", true, skip, "GATEHOUSE_TEST_REDIS=off"},
		{"typing error", "", "Off", true, fail, `"off"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, why := policy(tt.ci, tt.mode, tt.installed)
			if got != tt.want || !strings.Contains(why, tt.why) {
				t.Errorf("policy = %v, %q; want %v and a reason naming %q", got, why, tt.want, tt.why)
			}
		})
	}
}

func TestEach(t *testing.T) {
	ctx := context.Background()
	var names []string
	Each(t, func(t *testing.T, b Backend) {
		names = append(names, b.Name)
		again := b.NewClient(t)
		for i := range 50 {
			key := fmt.Sprint("key", i)
			if n, err := again.Exists(ctx, key).Result(); n != 0 || err != nil {
				t.Fatalf("EXISTS %s = %d, %v; want an empty server", key, n, err)
			}
			if err := b.Client.Set(ctx, key, i, time.Minute).Err(); err != nil {
				t.Fatal(err)
			}
			if got, err := again.Get(ctx, key).Int(); got != i || err != nil {
				t.Errorf("second client: GET %s = %d, %v", key, got, err)
			}
		}
	})
	if !slices.Contains(names, "miniredis") {
		t.Errorf("ran on %v", names)
	}
}

func TestAssertAllTTL(t *testing.T) {
	ctx := context.Background()
	Each(t, func(t *testing.T, b Backend) {
		for i := range 50 {
			b.Client.Set(ctx, fmt.Sprint("mortal", i), 1, time.Minute)
		}
		r := &recorder{TB: t}
		r.do(func() { AssertAllTTL(r, b.Client) })
		if len(r.said) != 0 {
			t.Errorf("with TTLs only: %q", r.said)
		}
		// Enough for each master to hold one.
		for i := range 50 {
			b.Client.Set(ctx, fmt.Sprint("immortal", i), 1, 0)
		}
		r.do(func() { AssertAllTTL(r, b.Client) })
		if len(r.said) != 50 || !slices.Contains(r.said, `key without TTL: "immortal7"`) {
			t.Errorf("50 keys without TTL: %d reports, %q", len(r.said), r.said)
		}
	})
}

func TestServer(t *testing.T) {
	t.Parallel() // with others that wait
	ctx := context.Background()
	s := Start(t, "--maxmemory", "3mb", "--requirepass", "open sesame")
	c := s.Client(func(o *redis.Options) { o.MaxRetries, o.ReadTimeout = -1, 500*time.Millisecond })

	want := map[string]string{"maxmemory": "3145728", "save": "", "appendonly": "no", "bind": "127.0.0.1"}
	for name, value := range want {
		if got, err := c.ConfigGet(ctx, name).Result(); got[name] != value || err != nil {
			t.Errorf("%s = %q, %v; want %q", name, got[name], err, value)
		}
	}
	c.Set(ctx, "k", "v", 0)
	s.Flush()
	if err := c.Get(ctx, "k").Err(); err != redis.Nil {
		t.Errorf("after Flush: %v", err)
	}

	s.Pause()
	var timeout net.Error
	if err := c.Set(ctx, "late", "v", 0).Err(); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("paused: %v, want a timeout", err)
	}
	s.Resume()
	if err := await(func() error { return c.Get(ctx, "late").Err() }); err != nil {
		t.Errorf("resumed: what was sent meanwhile has not run: %v", err)
	}

	addr := s.Addr()
	s.Kill()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Error("killed: it answers")
	}
	for range 2 { // from a dead server and from a live one
		s.Restart()
		if err := c.Get(ctx, "late").Err(); err != redis.Nil || s.Addr() != addr {
			t.Errorf("restarted at %s, was %s: GET = %v", s.Addr(), addr, err)
		}
	}
	s.Stop()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Error("stopped: it answers")
	}
	s.Stop()
}

func TestRestartKeepsWhatItIsAskedTo(t *testing.T) {
	ctx := context.Background()
	s := Start(t, "--appendonly", "yes")
	c := s.Client()
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	if got, err := c.Get(ctx, "k").Result(); got != "v" || err != nil {
		t.Errorf("GET = %q, %v", got, err)
	}
}

func TestStartReportsWhatRedisSaid(t *testing.T) {
	require(t)
	_, err := launchServer("--no-such-option", "1")
	if err == nil || !strings.Contains(err.Error(), "no-such-option") {
		t.Errorf("err = %v, want the server's own complaint", err)
	}
}

// A port may be taken between the moment it was found free and the server's bind, even by
// another server, which then answers in its place.
func TestForeignServerIsNotMistaken(t *testing.T) {
	s := Start(t)
	_, err := launchOn(s.p.port, "", func(int, string) ([]string, error) {
		return []string{"redis-server", "--port", fmt.Sprint(s.p.port), "--bind", "127.0.0.1"}, nil
	})
	if !errors.Is(err, errPort) {
		t.Errorf("err = %v, want %v", err, errPort)
	}
}

func TestSharedIsOneServerThatTestsCannotBreak(t *testing.T) {
	s := Shared(t)
	if again := Shared(t); again.Addr() != s.Addr() {
		t.Errorf("two servers: %s and %s", s.Addr(), again.Addr())
	}
	for name, breakIt := range map[string]func(*Server){
		"Stop": (*Server).Stop, "Kill": (*Server).Kill, "Pause": (*Server).Pause, "Restart": (*Server).Restart,
	} {
		r := &recorder{TB: t}
		mine := *s
		mine.t = r
		r.do(func() { breakIt(&mine) })
		if len(r.said) != 1 || !strings.Contains(r.said[0], name) {
			t.Errorf("%s: said %q", name, r.said)
		}
	}
	if err := s.Client().Ping(context.Background()).Err(); err != nil {
		t.Error(err)
	}
}

func TestClusterLosesANode(t *testing.T) {
	t.Parallel() // with others that wait
	ctx := context.Background()
	c := StartCluster(t, "--cluster-require-full-coverage", "no")
	client := c.Client(func(o *redis.ClusterOptions) { o.MaxRedirects, o.MaxRetries = 1, -1 })
	slot, err := client.ClusterKeySlot(ctx, "k").Result()
	if err != nil {
		t.Fatal(err)
	}
	c.Nodes()[int(slot)*masters/16384].Kill()
	if err := client.Set(ctx, "k", "v", 0).Err(); err == nil {
		t.Error("the node of a key is dead, and SET succeeds")
	}
}

func TestSentinelFailover(t *testing.T) {
	t.Parallel() // with others that wait
	ctx := context.Background()
	s := StartSentinel(t)
	first := s.Master()
	if first != s.Nodes()[0] {
		t.Errorf("the master is %s", first.Addr())
	}
	c := s.Client()
	if err := c.Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Wait(ctx, 1, 5*time.Second).Result(); n != 1 || err != nil {
		t.Fatalf("WAIT = %d, %v", n, err)
	}
	s.Failover()
	if s.Master() == first {
		t.Error("the master has not changed")
	}
	if err := await(func() error { return c.Set(ctx, "after", "v", 0).Err() }); err != nil {
		t.Errorf("writing after the failover: %v", err)
	}
	if got, err := c.Get(ctx, "k").Result(); got != "v" || err != nil {
		t.Errorf("GET = %q, %v", got, err)
	}
}

// recorder notes what a helper reports instead of failing the test.
type recorder struct {
	testing.TB
	said []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Errorf(f string, a ...any) { r.said = append(r.said, fmt.Sprintf(f, a...)) }
func (r *recorder) Fatalf(f string, a ...any) { r.Errorf(f, a...); runtime.Goexit() }
func (r *recorder) do(f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	<-done
}
