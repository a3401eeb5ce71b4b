package redistest

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Backend is one kind of Redis, empty and ready.
type Backend struct {
	Name   string // "miniredis", "standalone" or "cluster"
	Client redis.UniversalClient
	Addrs  []string

	// Mini is nil on a real server.
	Mini *miniredis.Miniredis

	nodes []*Server // nil on miniredis
}

// Each runs f as a subtest on miniredis, on the shared standalone server and on the shared
// cluster; under the race detector on miniredis in one run of three, as its scripts take longer than
// those of both others. Each flushes them before and after f, and undoes [Backend.Advance], so
// neither its callers nor its subtests may be parallel to others that use the shared servers. Under
// [MainStrict] a subtest fails that leaves keys which are unlisted or have no TTL.
func Each(t *testing.T, f func(t *testing.T, b Backend)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) {
		if os.Getenv("GATEHOUSE_TEST_REDIS") != "off" && !Turn(3) {
			t.Skip("another time")
		}
		m := miniredis.RunT(t)
		c := redis.NewClient(&redis.Options{Addr: m.Addr(), ReadTimeout: time.Minute}) // it is slow under the race detector
		t.Cleanup(func() { c.Close() })
		t.Cleanup(func() { checkLeft(t, m.Addr()) })
		f(t, Backend{Name: "miniredis", Client: c, Addrs: []string{m.Addr()}, Mini: m})
	})
	t.Run("standalone", func(t *testing.T) {
		s := Shared(t)
		t.Cleanup(s.Flush) // here too, so that f's own test answers for what it left
		s.Flush()
		f(t, Backend{Name: "standalone", Client: s.Client(), Addrs: []string{s.Addr()}, nodes: []*Server{s}})
	})
	t.Run("cluster", func(t *testing.T) {
		c := SharedCluster(t)
		t.Cleanup(c.Flush)
		c.Flush()
		f(t, Backend{Name: "cluster", Client: c.Client(), Addrs: c.Addrs(), nodes: c.nodes})
	})
}

// Turn reports whether one of many cases that a test goes through has its turn: under the race
// detector, which makes each of them several times slower, one of n by chance; without it, each.
func Turn(n int) bool { return !RaceDetector || noTurns || rand.IntN(n) == 0 }

var noTurns bool // in the tests of this package

// Rounds returns how many of n rounds to play: all of them, but on miniredis under the race
// detector, where a script takes ten times as long as on a server, a quarter. Without servers
// miniredis plays them all.
func (b Backend) Rounds(n int) int {
	if b.Mini != nil && RaceDetector && os.Getenv("GATEHOUSE_TEST_REDIS") != "off" {
		return max(1, n/4)
	}
	return n
}

// NewClient returns a further client of the same Redis, closed when t ends: another server of
// the fleet, or one with other options.
func (b Backend) NewClient(t testing.TB, set ...func(*redis.UniversalOptions)) redis.UniversalClient {
	opts := &redis.UniversalOptions{Addrs: b.Addrs, IsClusterMode: b.Name == "cluster"}
	for _, f := range set {
		f(opts)
	}
	c := redis.NewUniversalClient(opts)
	t.Cleanup(func() { c.Close() })
	return c
}
