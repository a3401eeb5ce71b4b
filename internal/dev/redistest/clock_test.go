package redistest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// tolerance is for the time that passes between two looks at a clock.
const tolerance = 2 * time.Second

// wantTime checks TIME, asked as a command and in a script.
func wantTime(t *testing.T, b Backend, want time.Time) {
	t.Helper()
	if off := b.Now(t).Sub(want); off.Abs() > tolerance {
		t.Errorf("TIME is off by %v", off)
	}
	for i := range 10 { // on each node of a cluster
		key := fmt.Sprint("clock", i)
		s, err := b.Client.Eval(context.Background(), "local t = redis.call('TIME') return {tonumber(t[1]), tonumber(t[2]), KEYS[1]}", []string{key}).Slice()
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(s[0].(int64), s[1].(int64)*1000)
		if off := at.Sub(want); off.Abs() > tolerance {
			t.Errorf("TIME in a script with %s is off by %v", key, off)
		}
	}
}

func TestAdvanceMovesTimeAndExpiry(t *testing.T) {
	ctx := context.Background()
	Each(t, func(t *testing.T, b Backend) {
		wantTime(t, b, time.Now())
		b.Advance(t, 0)
		start, began := b.Now(t), time.Now()
		passed := func() time.Duration { // besides what the test moves the clock by
			if b.Mini != nil {
				return 0 // it stands
			}
			return time.Since(began)
		}
		due := make(map[string]time.Duration) // when what was set ends, if nobody moves the clock
		set := func(name string, ttl time.Duration) {
			t.Helper()
			due[name] = passed() + ttl
			for i := range 10 {
				if err := b.Client.Set(ctx, fmt.Sprint(name, i), 1, ttl).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		left := func(name string, moved time.Duration) {
			t.Helper()
			for i := range 10 {
				got, err := b.Client.PTTL(ctx, fmt.Sprint(name, i)).Result()
				want := due[name] - passed() - moved
				if err != nil || (got-want).Abs() > tolerance {
					t.Errorf("%s%d: TTL = %v, %v; want about %v", name, i, got, err, want)
				}
			}
		}
		gone := func(name string, want bool) {
			t.Helper()
			for i := range 10 {
				n, err := b.Client.Exists(ctx, fmt.Sprint(name, i)).Result()
				if err != nil || (n == 0) != want {
					t.Errorf("%s%d: EXISTS = %d, %v; want it gone: %v", name, i, n, err, want)
				}
			}
		}

		set("short", 100*time.Second)
		set("long", 10*time.Hour)
		b.Advance(t, 90*time.Second)
		left("short", 90*time.Second)
		b.Advance(t, 11*time.Second)
		gone("short", true)
		gone("long", false)
		wantTime(t, b, start.Add(101*time.Second+passed()))

		b.Advance(t, -5*time.Hour-1500*time.Millisecond)
		wantTime(t, b, start.Add(101*time.Second-5*time.Hour-1500*time.Millisecond+passed()))
		left("long", 101*time.Second-5*time.Hour-1500*time.Millisecond)
		set("back", 100*time.Second)
		left("back", 0)

		b.Advance(t, 24*time.Hour)
		gone("long", true)
		gone("back", true)
		wantTime(t, b, start.Add(101*time.Second+19*time.Hour-1500*time.Millisecond+passed()))
	})
	// Each has set the clocks back.
	Each(t, func(t *testing.T, b Backend) { wantTime(t, b, time.Now()) })
}

// An offset of -1.5 s is -2 s and +0.5 s, as the kernel counts.
func TestAdvanceByFractionsOfASecond(t *testing.T) {
	s := Start(t)
	for _, d := range []time.Duration{-1500 * time.Millisecond, 900 * time.Millisecond, 900 * time.Millisecond, -time.Microsecond, 250 * time.Millisecond} {
		before := s.Now()
		s.Advance(d)
		if moved := s.Now().Sub(before); moved < d || moved > d+tolerance {
			t.Errorf("Advance(%v) moved the clock by %v", d, moved)
		}
	}
}

func TestAdvanceOfASharedServerEndsWithTheTest(t *testing.T) {
	t.Run("moved", func(t *testing.T) {
		s, c := Shared(t), SharedCluster(t)
		s.Advance(time.Hour)
		c.Advance(-time.Hour)
		if d := s.Now().Sub(c.Now()); (d - 2*time.Hour).Abs() > tolerance {
			t.Errorf("the clocks are %v apart, want 2h", d)
		}
	})
	for _, at := range []time.Time{Shared(t).Now(), SharedCluster(t).Now()} {
		if d := time.Since(at); d.Abs() > tolerance {
			t.Errorf("after the test: a clock is off by %v", d)
		}
	}
}

func TestAdvanceSurvivesRestart(t *testing.T) {
	s := Start(t)
	s.Advance(time.Hour)
	s.Kill()
	s.Advance(time.Hour)
	s.Restart()
	if d := time.Until(s.Now()); (d - 2*time.Hour).Abs() > tolerance {
		t.Errorf("the clock is %v ahead, want 2h", d)
	}
}

func TestClusterStaysUpWhenItsClocksJump(t *testing.T) {
	ctx := context.Background()
	c := SharedCluster(t)
	client := c.Client(func(o *redis.ClusterOptions) { o.MaxRedirects = -1 })
	busy := c.nodes[2]
	for i, d := range []time.Duration{5 * time.Hour, -10 * time.Hour, 24 * time.Hour, -19 * time.Hour} {
		if i == 0 {
			// Long enough for both others to ping the node in vain before the jump, and to tell
			// each other after it.
			busy.order("STOP")
			time.Sleep(2500 * time.Millisecond)
		}
		c.Advance(d)
		if i == 0 {
			time.Sleep(time.Second)
			busy.order("CONT")
		}
		for i := range 50 {
			if err := client.Set(ctx, fmt.Sprint("jump", i), 1, time.Minute).Err(); err != nil {
				t.Fatalf("after a jump by %v: %v", d, err)
			}
		}
		for _, n := range c.nodes {
			got, err := client.ClusterInfo(ctx).Result()
			if err != nil || !strings.Contains(got, "cluster_state:ok") || !strings.Contains(got, "cluster_slots_ok:16384") {
				t.Errorf("after a jump by %v: %s says %v, %s", d, n.Addr(), err, got)
			}
		}
	}
	c.Flush()
}

func TestAdvanceOfABackendMadeByHand(t *testing.T) {
	requireClock(t)
	r := &recorder{TB: t}
	r.do(func() { Backend{Name: "standalone"}.Advance(r, time.Hour) })
	if len(r.said) != 1 || !strings.Contains(r.said[0], "not from Each") {
		t.Errorf("said %q", r.said)
	}
}

func TestClockPolicy(t *testing.T) {
	missing := errors.New("no cc (apt-get install gcc)")
	for _, tt := range []struct {
		name string
		ci   string
		err  error
		want verdict
	}{
		{"there", "", nil, run},
		{"there, CI", "true", nil, run},
		{"missing", "", missing, skip},
		{"missing, CI", "true", missing, fail},
		{"missing, not CI", "false", missing, skip},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, why := clockPolicy(tt.ci, tt.err)
			if got != tt.want || (tt.err != nil) != strings.Contains(why, "apt-get install gcc") {
				t.Errorf("clockPolicy = %v, %q; want %v", got, why, tt.want)
			}
		})
	}
}

// TestClockChild is the body of the processes that TestWithoutACompiler starts.
func TestClockChild(t *testing.T) {
	if os.Getenv("REDISTEST_CHILD_CLOCK") == "" {
		return
	}
	s := Start(t)
	t.Logf("the time is %v", s.Now())
	s.Advance(time.Hour)
	t.Log("moved")
}

func TestWithoutACompiler(t *testing.T) {
	require(t)
	requireClock(t)
	path := t.TempDir()
	for _, program := range []string{"redis-server", "rm"} {
		file, err := exec.LookPath(program)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(file, filepath.Join(path, program)); err != nil {
			t.Fatal(err)
		}
	}
	for ci, want := range map[string]string{"": "--- SKIP: TestClockChild", "true": "--- FAIL: TestClockChild"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestClockChild$", "-test.v")
		cmd.Env = append(os.Environ(), "REDISTEST_CHILD_CLOCK=1", "PATH="+path, "CI="+ci)
		out, err := cmd.CombinedOutput()
		for _, w := range []string{want, "the time is", "apt-get install gcc"} {
			if !strings.Contains(string(out), w) {
				t.Errorf("CI=%s: the child does not say %q (%v):\n%s", ci, w, err, out)
			}
		}
	}
}
