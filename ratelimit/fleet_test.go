package ratelimit

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

var fleetFor = flag.Duration("ratelimit.fleet", 1500*time.Millisecond, "length of TestFleet")

const fleetEnv = "GATEHOUSE_TEST_FLEET"

// fleetOrder is what a process of the fleet is told to do.
type fleetOrder struct {
	Addr, Name string
	Limit      Limit
	Keys       int
	For        time.Duration
}

// fleetServer takes as fast as it can and prints the times, on Redis's clock, at
// which each key was admitted.
func fleetServer(order fleetOrder) error {
	client := redis.NewClient(&redis.Options{Addr: order.Addr})
	defer client.Close()
	l, err := NewSlidingWindow(client, order.Name, order.Limit, Config{Timeout: 30 * time.Second})
	if err != nil {
		return err
	}
	var (
		wg       sync.WaitGroup
		mu       sync.Mutex
		admitted = map[string][]int64{}
		failed   error
	)
	for range 8 {
		wg.Go(func() {
			for start := time.Now(); time.Since(start) < order.For; {
				key, cost := fmt.Sprint("k", rand.IntN(order.Keys)), 1+rand.IntN(3)
				res, err := l.Take(ctx, key, cost)
				mu.Lock()
				if err != nil {
					failed = err
				}
				for range cost {
					if res.Allowed {
						admitted[key] = append(admitted[key], res.at)
					}
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return failed
	}
	return json.NewEncoder(os.Stdout).Encode(admitted)
}

// TestFleetServer is a process of TestFleet.
func TestFleetServer(t *testing.T) {
	var order fleetOrder
	if err := json.Unmarshal([]byte(os.Getenv(fleetEnv)), &order); err != nil {
		t.Skip("not started by TestFleet")
	}
	if err := fleetServer(order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Several processes at full speed, by Redis's own clock: in no trailing window of
// any key are more admitted than the limit, joined and remembered as Takes are.
func TestFleet(t *testing.T) {
	server := redistest.Shared(t)
	order := fleetOrder{
		Addr: server.Addr(), Name: fmt.Sprintf("fleet-%x", rand.Uint64()),
		Limit: Limit{20, 37 * time.Millisecond}, Keys: 5, For: *fleetFor,
	}
	if testing.Short() {
		order.For /= 10
	}
	told, _ := json.Marshal(order)
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex
		all = map[string][]int64{}
	)
	for range 3 {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestFleetServer$")
			cmd.Env = append(os.Environ(), fleetEnv+"="+string(told))
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			var admitted map[string][]int64
			if err == nil {
				err = json.Unmarshal(out, &admitted)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("%v: %s", err, out)
			}
			for k, times := range admitted {
				all[k] = append(all[k], times...)
			}
		})
	}
	wg.Wait()
	total := 0
	for k, times := range all {
		slices.Sort(times)
		total += len(times)
		for i := order.Limit.Requests; i < len(times); i++ {
			if d := times[i] - times[i-order.Limit.Requests]; d < order.Limit.Window.Microseconds() {
				t.Fatalf("%s: %d admitted within %dµs", k, order.Limit.Requests+1, d)
			}
		}
	}
	t.Logf("%d permits admitted", total)
	if total < order.Limit.Requests*order.Keys {
		t.Errorf("%d permits admitted", total)
	}
}
