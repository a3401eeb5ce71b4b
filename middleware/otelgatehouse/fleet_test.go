package otelgatehouse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

const childEnv = "GATEHOUSE_TEST_METRICS"

// told is what a process prints in the end: what its callers saw, and what was collected. Before, it
// prints true, once it works.
type told struct{ Saw, Collected map[string]float64 }

// TestFleetChild is a process of TestAFleetIsAddedUp. It works until its input ends.
func TestFleetChild(t *testing.T) {
	addr := os.Getenv(childEnv)
	if addr == "" {
		t.Skip("not started by TestAFleetIsAddedUp")
	}
	quiet := slog.New(slog.DiscardHandler)
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	m := newMetrics()
	limit := must(ratelimit.NewSlidingWindow(client, "api", ratelimit.PerHour(10), ratelimit.Config{Logger: quiet}))
	sessions := must(session.New(client, session.Config{Logger: quiet}))
	defer must(Register(Config{MeterProvider: m, Limiters: []ratelimit.Limiter{limit}, Managers: []*session.Manager{sessions}}))()
	ended, end := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		end()
	}()
	saw := map[string]float64{}
	cookie := ""
	out := json.NewEncoder(os.Stdout)
	for n, works := 0, false; ended.Err() == nil; n++ {
		// Every other time the key is one that is soon used up, else it is new, and Redis is asked.
		res, err := limit.Take(t.Context(), fmt.Sprint(os.Getpid(), " ", n%2*n), 1)
		switch {
		case err != nil:
			saw["error"]++
		case res.Allowed:
			saw["allowed"]++
		default:
			saw["denied"]++
		}
		if err == nil && res.Source == ratelimit.FromRedis {
			saw["redis"]++
		}
		ctx, err := sessions.Load(context.Background(), cookie)
		if err != nil {
			saw["load error"]++
			continue
		}
		saw["load"]++
		sessions.Put(ctx, "n", n)
		switch out, err := sessions.Finish(ctx); {
		case errors.Is(err, session.ErrUnavailable):
			saw["commit error"]++
		case err != nil:
			t.Error(err)
		case out.Value != "":
			cookie = out.Value
		}
		if !works && saw["allowed"] > 0 && saw["denied"] > 0 && cookie != "" {
			works = true
			if err := out.Encode(true); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Millisecond)
	}
	if err := out.Encode(told{saw, m.values(t)}); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		os.Exit(1)
	}
	os.Exit(0) // nothing more is printed
}

// The figures of several processes are what their callers saw, and what came to Redis, through its
// death and its return.
func TestAFleetIsAddedUp(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	proxy := redistest.NewProxy(t, server.Addr())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type process struct {
		*exec.Cmd
		in  io.Closer
		out *json.Decoder
	}
	var fleet [3]process
	for i := range fleet {
		child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestFleetChild$")
		child.Env = append(os.Environ(), childEnv+"="+proxy.Addr())
		child.Stderr = os.Stderr
		fleet[i] = process{child, must(child.StdinPipe()), json.NewDecoder(must(child.StdoutPipe()))}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for i, p := range fleet {
		var works bool
		if err := p.out.Decode(&works); err != nil || !works {
			t.Fatalf("process %d does not work: %v", i, err)
		}
	}
	server.Kill()
	time.Sleep(time.Second)
	server.Restart()
	time.Sleep(time.Second)
	var redis float64
	for i, p := range fleet {
		p.in.Close()
		var of told
		if err := errors.Join(p.out.Decode(&of), p.Wait()); err != nil {
			t.Fatalf("process %d: %v", i, err)
		}
		redis += of.Saw["redis"]
		if of.Saw["error"] == 0 || of.Saw["allowed"] == 0 || of.Saw["denied"] == 0 || of.Saw["load error"] == 0 {
			t.Errorf("process %d saw %v", i, of.Saw)
		}
		for what, parts := range map[string][]string{
			"allowed": {"ratelimit.decisions", "outcome=allowed"}, "denied": {"ratelimit.decisions", "outcome=denied"},
			"error": {"ratelimit.decisions", "outcome=error", "source=redis"}, "redis": {"ratelimit.decisions", "source=redis", "outcome=allowed"},
			"load error": {"session.loads", "result=error"}, "commit error": {"session.commits", "result=error"},
		} {
			got, want := sum(of.Collected, parts...), of.Saw[what]
			if what == "redis" {
				got += sum(of.Collected, "ratelimit.decisions", "source=redis", "outcome=denied")
			}
			if got != want {
				t.Errorf("process %d, %s: %v collected, its callers saw %v", i, what, got, want)
			}
		}
		if got := sum(of.Collected, "session.loads", "result=found") + sum(of.Collected, "session.loads", "result=none"); got != of.Saw["load"] {
			t.Errorf("process %d: %v loads, its callers saw %v", i, got, of.Saw["load"])
		}
	}
	if n := float64(proxy.Forwarded("evalsha")); n < redis {
		t.Errorf("%v decisions by Redis, which got %v scripts", redis, n)
	}
}
