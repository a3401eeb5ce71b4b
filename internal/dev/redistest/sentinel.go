package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// MasterName is the name under which a [Sentinel] knows its master.
const MasterName = "gatehouse"

// Sentinel is a master, its replica, and one sentinel that replaces the master by the replica
// half a second after it went silent. Get one from [StartSentinel].
type Sentinel struct {
	t        testing.TB
	sentinel *Server
	nodes    []*Server
}

// StartSentinel starts the three processes and stops them when the test ends. It returns when
// a failover would succeed.
func StartSentinel(t testing.TB) *Sentinel {
	t.Helper()
	// Diskless replication waits five seconds for further replicas unless told not to.
	master := Start(t, "--repl-diskless-sync-delay", "0")
	host, port, err := net.SplitHostPort(master.Addr())
	if err != nil {
		t.Fatal(err)
	}
	replica := Start(t, "--repl-diskless-sync-delay", "0", "--replicaof", host, port)
	waitFor(t, replica, "master_link_status:up", "replication")

	p, err := launch("", func(own int, dir string) ([]string, error) {
		// A sentinel keeps its state in its configuration file, which must exist.
		conf := filepath.Join(dir, "sentinel.conf")
		text := strings.Join([]string{
			"port " + strconv.Itoa(own),
			"bind 127.0.0.1",
			`dir "` + dir + `"`,
			"sentinel monitor " + MasterName + " " + host + " " + port + " 1",
			"sentinel down-after-milliseconds " + MasterName + " 500",
			"sentinel failover-timeout " + MasterName + " 5000",
			"",
		}, "\n")
		return []string{"redis-server", conf, "--sentinel"}, os.WriteFile(conf, []byte(text), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.stop() })
	s := &Sentinel{t: t, sentinel: &Server{t: t, p: p}, nodes: []*Server{master, replica}}
	waitFor(t, s.sentinel, "status=ok,address="+master.Addr()+",slaves=1,sentinels=1", "sentinel")
	return s
}

// waitFor waits until a section of the server's INFO contains want.
func waitFor(t testing.TB, s *Server, want, section string) {
	t.Helper()
	client := s.p.client()
	defer client.Close()
	err := await(func() error {
		info, err := client.Info(context.Background(), section).Result()
		if err == nil && !strings.Contains(info, want) {
			err = fmt.Errorf("redistest: no %q in\n%s", want, info)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Addrs returns host:port of the sentinel.
func (s *Sentinel) Addrs() []string { return []string{s.sentinel.Addr()} }

// Client returns a new client of whichever server is the master, closed when the test ends.
// set, if any, change its options.
func (s *Sentinel) Client(set ...func(*redis.FailoverOptions)) *redis.Client {
	opts := &redis.FailoverOptions{MasterName: MasterName, SentinelAddrs: s.Addrs()}
	for _, f := range set {
		f(opts)
	}
	c := redis.NewFailoverClient(opts)
	s.t.Cleanup(func() { c.Close() })
	return c
}

// Nodes returns the two servers: first the one that began as the master.
func (s *Sentinel) Nodes() []*Server { return s.nodes }

// Master returns the server that the sentinel names as the master.
func (s *Sentinel) Master() *Server {
	s.t.Helper()
	c := redis.NewSentinelClient(&redis.Options{Addr: s.sentinel.Addr()})
	defer c.Close()
	addr, err := c.GetMasterAddrByName(context.Background(), MasterName).Result()
	if err != nil {
		s.t.Fatalf("redistest: asking the sentinel: %v", err)
	}
	for _, n := range s.nodes {
		if n.Addr() == net.JoinHostPort(addr[0], addr[1]) {
			return n
		}
	}
	s.t.Fatalf("redistest: the sentinel names a foreign master: %v", addr)
	return nil
}

// Failover kills the master and returns when the other server has taken over.
func (s *Sentinel) Failover() {
	s.t.Helper()
	old := s.Master()
	old.Kill()
	err := await(func() error {
		if s.Master() == old {
			return fmt.Errorf("redistest: no failover from %s:\n%s", old.Addr(), s.sentinel.p.log())
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	waitFor(s.t, s.Master(), "role:master", "replication")
}
