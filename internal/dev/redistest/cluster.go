package redistest

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

const masters = 3

// Cluster is a Redis Cluster of three masters without replicas, as seen by one test. Get one
// from [StartCluster] or [SharedCluster].
type Cluster struct {
	t     testing.TB
	nodes []*Server
}

// StartCluster starts a cluster of the test's own and stops it when the test ends. It takes two
// to three seconds, most of which Redis waits on purpose; [SharedCluster] pays them once.
// args are added to the command line of every node.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	require(t)
	nodes, err := launchCluster(args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopAll(nodes) })
	return newCluster(t, nodes, false)
}

func newCluster(t testing.TB, nodes []*process, shared bool) *Cluster {
	c := &Cluster{t: t}
	for _, p := range nodes {
		c.nodes = append(c.nodes, &Server{t: t, p: p, shared: shared})
	}
	return c
}

// Addrs returns host:port of every master.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.Addr())
	}
	return addrs
}

// Nodes returns the masters, to pause or kill one.
func (c *Cluster) Nodes() []*Server { return c.nodes }

// Client returns a new client, closed when the test ends. set, if any, change its options.
func (c *Cluster) Client(set ...func(*redis.ClusterOptions)) *redis.ClusterClient {
	opts := &redis.ClusterOptions{Addrs: c.Addrs(), Password: c.nodes[0].p.password}
	for _, f := range set {
		f(opts)
	}
	client := redis.NewClusterClient(opts)
	c.t.Cleanup(func() { client.Close() })
	return client
}

// MoveSlot moves the slot of a key to the next node, key by key, with a pause before each and after
// the last: while it lasts, some keys of the slot are here and some there. Nobody else may move slots,
// and the slot must have keys.
func (c *Cluster) MoveSlot(key string, pause time.Duration) {
	c.t.Helper()
	ctx := context.Background()
	nodes := make([]*redis.Client, len(c.nodes))
	ids := make([]string, len(c.nodes))
	from := 0
	do := func(node int, args ...any) any {
		c.t.Helper()
		v, err := nodes[node].Do(ctx, args...).Result()
		if err != nil {
			c.t.Errorf("%v: %v", args, err)
		}
		return v
	}
	for i, s := range c.nodes {
		nodes[i] = s.p.client()
		defer nodes[i].Close()
		ids[i], _ = do(i, "cluster", "myid").(string)
	}
	slot, _ := do(0, "cluster", "keyslot", key).(int64)
	for i := range nodes {
		if n, _ := do(i, "cluster", "countkeysinslot", slot).(int64); n > 0 {
			from = i
		}
	}
	to := (from + 1) % len(nodes)
	host, port, _ := net.SplitHostPort(c.nodes[to].Addr())
	do(to, "cluster", "setslot", slot, "importing", ids[from])
	do(from, "cluster", "setslot", slot, "migrating", ids[to])
	for {
		time.Sleep(pause)
		keys, _ := do(from, "cluster", "getkeysinslot", slot, 1).([]any)
		if len(keys) == 0 {
			break
		}
		do(from, "migrate", host, port, keys[0], 0, 5000)
	}
	do(to, "cluster", "setslot", slot, "node", ids[to])
	for node := range nodes {
		if node != to {
			do(node, "cluster", "setslot", slot, "node", ids[to])
		}
	}
}

// Flush is [Server.Flush] for every master.
func (c *Cluster) Flush() {
	c.t.Helper()
	for _, n := range c.nodes {
		n.Flush()
	}
}

func launchCluster(args ...string) (_ []*process, err error) {
	nodes := make([]*process, masters)
	errs := make([]error, masters)
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() {
			nodes[i], errs[i] = launchServer(append([]string{
				"--cluster-enabled", "yes",
				"--cluster-node-timeout", "5000",
				"--cluster-announce-ip", "127.0.0.1",
			}, args...)...)
		})
	}
	wg.Wait()
	defer func() {
		if err != nil {
			stopAll(nodes)
		}
	}()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return nodes, join(nodes)
}

// join makes a cluster of the nodes and waits until all of them agree that it is one.
func join(nodes []*process) error {
	const slots = 16384
	ctx := context.Background()
	for i, p := range nodes {
		client := p.client()
		defer client.Close()
		host, port, err := net.SplitHostPort(nodes[0].addr())
		if err != nil {
			return err
		}
		// Distinct epochs spare the nodes an election to tell them apart.
		if err := client.Do(ctx, "cluster", "set-config-epoch", i+1).Err(); err != nil {
			return err
		}
		if err := client.ClusterAddSlotsRange(ctx, i*slots/masters, (i+1)*slots/masters-1).Err(); err != nil {
			return err
		}
		if err := client.ClusterMeet(ctx, host, port).Err(); err != nil {
			return err
		}
	}
	for _, p := range nodes {
		client := p.client()
		defer client.Close()
		err := await(func() error {
			info, err := client.ClusterInfo(ctx).Result()
			if err != nil {
				return err
			}
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(masters)) {
				return fmt.Errorf("redistest: no cluster at %s:\n%s", p.addr(), info)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func stopAll(nodes []*process) {
	for _, p := range nodes {
		if p != nil {
			p.stop()
		}
	}
}
