// Command plots draws what three limiters let through of the same traffic, for
// docs/choosing-a-limiter.md. It starts a Redis of its own, sends the traffic in real time, which
// takes some eight seconds, and writes docs/images/limiter-*.svg below the current directory.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// limit is that of all plots.
var limit = ratelimit.Limit{Requests: 10, Window: 2 * time.Second}

// traffic is when requests come, and what is to be seen of it.
type traffic struct {
	file, title string
	at          []time.Duration
}

// every returns n times, step apart.
func every(step, from time.Duration, n int) []time.Duration {
	at := make([]time.Duration, n)
	for i := range at {
		at[i] = from + time.Duration(i)*step
	}
	return at
}

// No two requests are a whole window apart, or it would be chance what becomes of the later one.
func traffics() []traffic {
	const ms = time.Millisecond
	edge := append([]time.Duration{0}, every(20*ms, 1_700*ms, 12)...)
	edge = append(edge, every(20*ms, 2_050*ms, 12)...)
	pause := append(every(410*ms, 0, 4), every(20*ms, 4_000*ms, 14)...)
	pause = append(pause, every(130*ms, 4_350*ms, 28)...)
	return []traffic{
		{"steady", "A steady stream of 7.7 requests a second", every(130*ms, 0, 62)},
		{"edge", "A first request, then 12 before and 12 after the edge of its fixed window", edge},
		{"pause", "Few requests, a pause, then a burst of 14 and a steady stream", pause},
	}
}

// answer is what became of a request.
type answer struct {
	at     time.Duration
	passed bool
}

// row is one limiter and what it answered.
type row struct {
	name    string
	answers []answer
}

// most returns the most requests that passed in any trailing window, and when that was.
func (r row) most() (n int, at time.Duration) {
	for _, s := range r.steps() {
		if s.n > n {
			n, at = s.n, s.at
		}
	}
	return n, at
}

func run(ctx context.Context, limiters map[string]ratelimit.Limiter, t traffic) ([]row, error) {
	rows := make([]row, len(order))
	errs := make([]error, len(order))
	start := time.Now().Add(50 * time.Millisecond)
	var wg sync.WaitGroup
	for i, name := range order {
		rows[i].name = name
		wg.Go(func() {
			for _, at := range t.at {
				time.Sleep(time.Until(start.Add(at)))
				sent := time.Since(start)
				res, err := limiters[name].Take(ctx, t.file, 1)
				if err != nil {
					errs[i] = err
					return
				}
				rows[i].answers = append(rows[i].answers, answer{sent, res.Allowed})
			}
		})
	}
	wg.Wait()
	return rows, errors.Join(errs...)
}

// order of the rows of a plot.
var order = []string{slidingWindow, fixedWindow, tokenBucket}

const slidingWindow, fixedWindow, tokenBucket = "sliding window", "fixed window", "token bucket"

func newLimiters(client redis.UniversalClient) (map[string]ratelimit.Limiter, error) {
	sliding, err1 := ratelimit.NewSlidingWindow(client, "plot", limit, ratelimit.Config{})
	fixed, err2 := ratelimit.NewFixedWindow(client, "plot", limit, ratelimit.Config{})
	bucket, err3 := ratelimit.NewTokenBucket(client, "plot", limit, ratelimit.Config{})
	return map[string]ratelimit.Limiter{slidingWindow: sliding, fixedWindow: fixed, tokenBucket: bucket}, errors.Join(err1, err2, err3)
}

// startRedis returns a client of a server that listens on a socket in dir.
func startRedis(ctx context.Context, dir string) (*redis.Client, func(), error) {
	socket := filepath.Join(dir, "redis.sock")
	server := exec.CommandContext(ctx, "redis-server", "--port", "0", "--unixsocket", socket, "--save", "", "--dir", dir)
	if err := server.Start(); err != nil {
		return nil, nil, err
	}
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket})
	stop := func() {
		client.Close()
		_ = server.Process.Kill()
		_ = server.Wait()
	}
	var err error
	for range 100 {
		if err = client.Ping(ctx).Err(); err == nil {
			return client, stop, nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	stop()
	return nil, nil, err
}

func plot() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "plots-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	client, stop, err := startRedis(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	limiters, err := newLimiters(client)
	if err != nil {
		return err
	}
	list := traffics()
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, t := range list {
		wg.Go(func() {
			rows, err := run(ctx, limiters, t)
			if err == nil {
				err = check(rows)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join("docs", "images", "limiter-"+t.file+".svg"), draw(t.title, rows), 0o644)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// check keeps a plot from being drawn that shows what is not promised, as on a machine that
// stood still meanwhile.
func check(rows []row) error {
	for _, r := range rows {
		most, _ := r.most()
		allowed := 2 * limit.Requests
		if r.name == slidingWindow {
			allowed = limit.Requests
		}
		if most > allowed {
			return fmt.Errorf("%s: %d passed within %v; run it again on a quieter machine", r.name, most, limit.Window)
		}
	}
	return nil
}

func main() {
	if err := plot(); err != nil {
		log.Fatal(err)
	}
}
