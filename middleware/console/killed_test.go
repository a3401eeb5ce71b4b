package console

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
)

const childEnv = "GATEHOUSE_TEST_CONSOLE"

// TestConsoleChild is a server of TestKilledConsoleLeavesItsTrace.
func TestConsoleChild(t *testing.T) {
	addr := os.Getenv(childEnv)
	if addr == "" {
		t.Skip("is run by another test")
	}
	server := httptest.NewServer(newService(t, redis.NewClient(&redis.Options{Addr: addr})).console.Handler())
	fmt.Println(server.URL)
	select {}
}

// A server that is killed in the middle of changes has done none that left no trace, whether or not
// it has said so.
func TestKilledConsoleLeavesItsTrace(t *testing.T) {
	const changes, workers, enough = 300, 6, 40 // of each kind
	server := redistest.Start(t)
	s := newService(t, server.Client())
	for i := range changes {
		key := fmt.Sprint("k", i)
		must(s.api.Take(t.Context(), key, 1))
		s.logIn(t, key)
	}
	slow := redistest.NewProxy(t, server.Addr()) // so that it dies between two commands, and not beside them
	slow.Delay(5*time.Millisecond, "evalsha")
	child := exec.Command(os.Args[0], "-test.run=^TestConsoleChild$")
	child.Env = append(os.Environ(), childEnv+"="+slow.Addr())
	child.Stderr = os.Stderr
	out := must(child.StdoutPipe())
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var kill sync.Once
	end := func() { kill.Do(func() { _ = child.Process.Kill(); _ = child.Wait() }) }
	defer end()
	base := strings.TrimSpace(must(bufio.NewReader(out).ReadString('\n')))

	var next, done atomic.Int64
	var mu sync.Mutex
	said := map[string]bool{} // what the child has said that it has done
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for {
				i := next.Add(1) - 1
				key := fmt.Sprint("k", i/3)
				path := []string{"reset", "rule", "end"}[i%3]
				form := url.Values{"limiter": {"api"}, "key": {key}, "user": {key}, "all": {"1"}, "mode": {"enforce"}, "requests": {"9"}, "reason": {"OPS-1"}}
				r := must(http.NewRequest("POST", base+"/"+path, strings.NewReader(form.Encode())))
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				r.Header.Set("Accept", "application/json")
				r.SetBasicAuth("writer", "")
				res, err := http.DefaultClient.Do(r)
				if err != nil {
					return // it is dead
				}
				res.Body.Close()
				if res.StatusCode != 200 {
					t.Errorf("%s %s: %s", path, key, res.Status)
					return
				}
				mu.Lock()
				said[path+" "+key] = true
				mu.Unlock()
				if done.Add(1) == 3*enough {
					go end()
				}
				if i == 3*changes-1 {
					t.Error("it was not killed in the middle")
				}
			}
		})
	}
	all.Wait()

	// What was sent before the end may still arrive: first what is done, then what is traced.
	isDone, traced := map[string]bool{}, map[string]bool{}
	for _, r := range must(s.rules.List(t.Context())) {
		isDone["rule "+r.Key] = true
	}
	for i := range changes {
		key := fmt.Sprint("k", i)
		res := must(s.api.Take(t.Context(), key, 0))
		isDone["reset "+key] = res.Remaining == res.Limit.Requests
		isDone["end "+key] = len(must(s.sessions.List(t.Context(), key))) == 0
		for _, e := range must(s.sessions.Recent(t.Context(), key, 10)) {
			if e.Kind == session.Ended && e.Cause == (session.Cause{Reason: "OPS-1", Actor: "writer"}) {
				traced["end "+key] = true
			}
		}
	}
	for _, c := range must(s.rules.History(t.Context(), 10_000)) {
		if c.Rule.Actor != "writer" || c.Rule.Reason != "OPS-1" {
			t.Errorf("%+v", c)
		}
		traced[map[string]string{"set": "rule ", "reset": "reset "}[c.What]+c.Rule.Key] = true
	}
	for what, done := range isDone {
		if done && !traced[what] {
			t.Errorf("%s: done without a trace", what)
		}
	}
	for what := range said {
		if !isDone[what] || !traced[what] {
			t.Errorf("%s: said to be done: is done %v, traced %v", what, isDone[what], traced[what])
		}
	}
	if len(said) < 3*enough {
		t.Errorf("only %d changes", len(said))
	}
}
