package redistest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
)

// year, in milliseconds, is longer than any jump of a test's clock.
const year = "31536000000"

// shared holds the servers of this test binary. They end with it; see guard.
var shared struct {
	sync.Mutex
	server  *process
	cluster []*process
}

// Shared returns the server that all tests of this binary share, starting it at the first call.
// Its keys are those that earlier tests left: call Flush, or use keys of your own. It cannot be
// stopped or paused.
func Shared(t testing.TB) *Server {
	t.Helper()
	require(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		p, err := launchServer()
		if err != nil {
			t.Fatal(err)
		}
		shared.server = p
	}
	return &Server{t: t, p: shared.server, shared: true}
}

// SharedCluster is [Shared] for a cluster.
func SharedCluster(t testing.TB) *Cluster {
	t.Helper()
	require(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.cluster == nil {
		nodes, err := launchCluster()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range nodes {
			client := p.client()
			defer client.Close()
			// With 5 s, a jump of the clock made the cluster fail if a node had been busy for
			// seconds. Set from the start, a year makes joining a second slower.
			if err := client.ConfigSet(context.Background(), "cluster-node-timeout", year).Err(); err != nil {
				stopAll(nodes)
				t.Fatalf("redistest: cluster-node-timeout of %s: %v", p.addr(), err)
			}
		}
		shared.cluster = nodes
	}
	return newCluster(t, shared.cluster, true)
}

// Main runs the tests, stops the shared servers and exits: func TestMain(m *testing.M) {
// redistest.Main(m) }. Without it they end too, but a moment after the test binary.
func Main(m *testing.M) { stopShared(m.Run()) }

// MainStrict is [Main] for a package whose tests leave no keys on the shared servers and in
// [Each] but those that match a pattern of the file (see [ReadKeyPatterns]) and have a TTL. A
// test that writes others on purpose deletes them. Each, [Server.Flush] and [Cluster.Flush]
// report what was left until then, MainStrict what was left in the end.
func MainStrict(m *testing.M, file string) {
	patterns, err := ReadKeyPatterns(file)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	strict = patterns
	code := m.Run()
	shared.Lock()
	servers := slices.Clone(shared.cluster)
	if shared.server != nil {
		servers = append(servers, shared.server)
	}
	shared.Unlock()
	for _, p := range servers {
		said, err := leftovers(p.addr())
		if err != nil {
			said = append(said, err.Error())
		}
		for _, s := range said {
			fmt.Fprintln(os.Stderr, "redistest: left behind by the tests: "+s)
			code = 1
		}
	}
	stopShared(code)
}

func stopShared(code int) {
	shared.Lock()
	if shared.server != nil {
		shared.server.stop()
	}
	stopAll(shared.cluster)
	os.Exit(code)
}
