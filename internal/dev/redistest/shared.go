package redistest

import (
	"os"
	"sync"
	"testing"
)

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
		shared.cluster = nodes
	}
	return newCluster(t, shared.cluster, true)
}

// Main runs the tests, stops the shared servers and exits: func TestMain(m *testing.M) {
// redistest.Main(m) }. Without it they end too, but a moment after the test binary.
func Main(m *testing.M) {
	code := m.Run()
	shared.Lock()
	if shared.server != nil {
		shared.server.stop()
	}
	stopAll(shared.cluster)
	os.Exit(code)
}
