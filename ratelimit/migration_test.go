package ratelimit_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// TestSlotMigration moves the slot of a key from node to node while the key is
// being asked for: callers are redirected, and the limit stays exact.
func TestSlotMigration(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t)
	// The limit is used up during the last move.
	const limit, moves, callers, each = 2000, 5, 8, 60
	l, err := ratelimit.NewSlidingWindow(cluster.Client(), "moving", ratelimit.PerHour(limit), ratelimit.Config{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	const key = "gatehouse:rl:sliding:moving:1h:{k}"
	ctx := t.Context()
	var allowed, failed atomic.Int64
	nodes := cluster.Nodes()
	from := owner(t, nodes, key)
	for range moves {
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				for range each {
					switch res, err := l.Take(ctx, "k", 1); {
					case err != nil:
						failed.Add(1)
						t.Logf("Take: %v", err)
					case res.Allowed:
						allowed.Add(1)
					}
				}
			})
		}
		to := (from + 1) % len(nodes)
		migrate(t, nodes, from, to, key)
		from = to
		wg.Wait()
	}
	if allowed.Load() != limit || failed.Load() != 0 {
		t.Errorf("%d of %d allowed, %d failed", allowed.Load(), limit, failed.Load())
	}
}

// owner is the index of the node that has the slot of key.
func owner(t *testing.T, nodes []*redistest.Server, key string) int {
	t.Helper()
	for i, n := range nodes {
		if err := n.Client().Exists(t.Context(), key).Err(); err == nil {
			return i
		}
	}
	t.Fatal("no node has the slot")
	return 0
}

// migrate moves the slot of key as redis-cli --cluster reshard does.
func migrate(t *testing.T, nodes []*redistest.Server, from, to int, key string) {
	t.Helper()
	ctx := t.Context()
	do := func(n *redistest.Server, args ...any) *redis.Cmd {
		t.Helper()
		cmd := n.Client().Do(ctx, args...)
		if cmd.Err() != nil {
			t.Fatalf("%v: %v", args, cmd.Err())
		}
		return cmd
	}
	slot := do(nodes[from], "cluster", "keyslot", key).Val()
	fromID, toID := do(nodes[from], "cluster", "myid").Val(), do(nodes[to], "cluster", "myid").Val()
	do(nodes[to], "cluster", "setslot", slot, "importing", fromID)
	do(nodes[from], "cluster", "setslot", slot, "migrating", toID)
	host, port, err := net.SplitHostPort(nodes[to].Addr())
	if err != nil {
		t.Fatal(err)
	}
	do(nodes[from], "migrate", host, port, "", 0, 5000, "keys", key)
	do(nodes[to], "cluster", "setslot", slot, "node", toID)
	do(nodes[from], "cluster", "setslot", slot, "node", toID)
	for i, n := range nodes {
		if i != from && i != to {
			do(n, "cluster", "setslot", slot, "node", toID)
		}
	}
	// The new owner has raised the epoch on its own. Until all know of it, the next one
	// might raise it to the same number, and both would own the slot.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		epochs := make(map[string]bool)
		for _, n := range nodes {
			for line := range strings.Lines(do(n, "cluster", "nodes").String()) {
				if fields := strings.Fields(line); slices.Contains(fields, toID.(string)) {
					epochs[fields[slices.Index(fields, toID.(string))+6]] = true
				}
			}
		}
		if len(epochs) == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("epochs of the new owner: %v", epochs)
		}
	}
}

// TestClusterDown loses the node of a key: that is a failure, never a denial.
func TestClusterDown(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t)
	client := cluster.Client()
	l, err := ratelimit.NewFixedWindow(client, "down", ratelimit.PerHour(5), ratelimit.Config{Timeout: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	patient, err := ratelimit.NewFixedWindow(client, "down", ratelimit.PerHour(5), ratelimit.Config{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := patient.Take(t.Context(), "k", 1); err != nil {
		t.Fatal(err)
	}
	nodes := cluster.Nodes()
	nodes[owner(t, nodes, "gatehouse:rl:fixed:down:1h:{k}")].Kill()
	for range 20 {
		start := time.Now()
		if res, err := l.Take(context.Background(), "k", 1); err == nil {
			t.Fatalf("a decision without the node: %+v", res)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Fatalf("the failure took %v", took)
		}
		if res, err := l.TakeLocally("k", 1); err != nil {
			t.Fatalf("in process: %+v, %v", res, err)
		}
	}
}

// One of three masters hangs: what concerns the others is decided by Redis, as if nothing were
// wrong, though many wait for the one that hangs.
func TestOneHungNodeDecidesForNoOther(t *testing.T) {
	t.Parallel() // with others that wait
	// The node that hangs is not taken for dead.
	cluster := redistest.StartCluster(t, "--cluster-node-timeout", "60000")
	client := cluster.Client()
	timeout := 400 * time.Millisecond
	if redistest.RaceDetector {
		timeout = time.Second
	}
	for _, n := range constructors {
		if n.name == "all of several subjects" { // each of which may be of another node
			continue
		}
		l := n.must(t, client, "hung", ratelimit.PerHour(1000), ratelimit.Config{Timeout: timeout})
		patient := n.must(t, client, "hung", ratelimit.PerHour(1000), ratelimit.Config{Timeout: 10 * time.Second})
		hung := cluster.Nodes()[1]
		var there, elsewhere []string
		for i := range 200 {
			key := "k" + strconv.Itoa(i)
			master, err := client.MasterForKey(t.Context(), "{"+key+"}")
			if err != nil {
				t.Fatal(err)
			}
			if master.Options().Addr == hung.Addr() {
				there = append(there, key)
			} else {
				elsewhere = append(elsewhere, key)
			}
			if _, err := patient.Take(t.Context(), key, 1); err != nil {
				t.Fatal(err)
			}
		}
		hung.Pause()
		stop := make(chan struct{})
		var waiting, others sync.WaitGroup
		var decided, refused atomic.Int64
		for i := range 32 {
			waiting.Go(func() {
				for n := i; ; n++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Millisecond):
					}
					if _, err := l.Take(context.Background(), there[n%len(there)], 1); !errors.Is(err, ratelimit.ErrUnavailable) {
						t.Errorf("a decision of the node that hangs: %v", err)
					}
					refused.Add(1)
				}
			})
		}
		time.Sleep(2 * timeout) // it is not asked any more
		for i := range 32 {
			others.Go(func() {
				for n := range 50 {
					start := time.Now()
					res, err := l.Take(context.Background(), elsewhere[(i+n)%len(elsewhere)], 1)
					if err != nil || !res.Allowed || res.Source != ratelimit.FromRedis || time.Since(start) > timeout {
						t.Errorf("beside it: %v, %v, after %v", res, err, time.Since(start))
					}
					decided.Add(1)
				}
			})
		}
		others.Wait()
		close(stop)
		waiting.Wait()
		hung.Resume()
		t.Logf("%s: %d decisions beside %d refusals", n.name, decided.Load(), refused.Load())
		for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if _, err := l.Take(t.Context(), there[0], 1); err == nil {
				break
			}
			if time.Since(start) > 20*time.Second {
				t.Fatal("the node is not asked again")
			}
		}
	}
}

// One of three masters hangs, and a slot moves to and fro between the other two, with 64 Takes in
// flight: those of the two are decided by Redis, and exactly.
func TestOneHungNodeWhileSlotsMove(t *testing.T) {
	t.Parallel() // with others that wait
	// The node that hangs is not taken for dead.
	cluster := redistest.StartCluster(t, "--cluster-node-timeout", "60000")
	client := cluster.Client()
	const timeout, limit, moves = 2 * time.Second, 3000, 6
	l, err := ratelimit.NewSlidingWindow(client, "hung", ratelimit.PerHour(limit), ratelimit.Config{Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	hung := cluster.Nodes()[1]
	var there []string
	moving := ""
	for i := range 200 {
		key := "k" + strconv.Itoa(i)
		master, err := client.MasterForKey(t.Context(), "{"+key+"}")
		if err != nil {
			t.Fatal(err)
		}
		if master.Options().Addr == hung.Addr() {
			there = append(there, key)
		} else if moving == "" {
			moving = key
		}
		if _, err := l.Take(t.Context(), key, 0); err != nil {
			t.Fatal(err)
		}
	}
	hung.Pause()
	var waiting, others sync.WaitGroup
	stop := make(chan struct{})
	for i := range 32 {
		waiting.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
				if _, err := l.Take(context.Background(), there[n%len(there)], 1); err == nil {
					t.Error("a decision of the node that hangs")
				}
			}
		})
	}
	var allowed, failed atomic.Int64
	for range 32 {
		others.Go(func() {
			for range 1 + limit/32 {
				switch res, err := l.Take(context.Background(), moving, 1); {
				case err != nil:
					failed.Add(1)
					t.Logf("Take: %v", err)
				case res.Allowed:
					allowed.Add(1)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	healthy := []*redistest.Server{cluster.Nodes()[0], cluster.Nodes()[2]}
	key := "gatehouse:rl:sliding:hung:1h:{" + moving + "}"
	from := owner(t, healthy, key)
	for range moves {
		migrate(t, healthy, from, 1-from, key)
		from = 1 - from
	}
	others.Wait()
	close(stop)
	waiting.Wait()
	hung.Resume()
	if allowed.Load() != limit || failed.Load() > 0 {
		t.Errorf("%d of %d allowed, %d failed", allowed.Load(), limit, failed.Load())
	}
}

// TestSentinelFailover loses the master: Takes fail until the replica has taken
// over, and then go on with what was replicated.
func TestSentinelFailover(t *testing.T) {
	t.Parallel() // with others that wait
	sentinel := redistest.StartSentinel(t)
	client := sentinel.Client()
	l, err := ratelimit.NewSlidingWindow(client, "failover", ratelimit.PerHour(5), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	patient, err := ratelimit.NewSlidingWindow(client, "failover", ratelimit.PerHour(5), ratelimit.Config{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if res, err := patient.Take(t.Context(), "k", 1); err != nil || !res.Allowed {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	if n, err := client.Wait(t.Context(), 1, 5*time.Second).Result(); n != 1 || err != nil {
		t.Fatalf("replicated to %d: %v", n, err)
	}
	sentinel.Failover()
	deadline := time.Now().Add(30 * time.Second)
	for {
		res, err := l.Take(t.Context(), "k", 0)
		if err == nil {
			if res.Remaining != 2 {
				t.Errorf("%d remain after the failover, want 2", res.Remaining)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no decision after the failover: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // until it is asked again, and the sentinel's news
	}
}
