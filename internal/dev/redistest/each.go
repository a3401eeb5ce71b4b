package redistest

import (
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Backend is one kind of Redis, empty and ready.
type Backend struct {
	Name   string // "miniredis", "standalone" or "cluster"
	Client redis.UniversalClient
	Addrs  []string

	// Mini is nil on a real server. Its clock can be set; theirs cannot.
	Mini *miniredis.Miniredis
}

// Each runs f as a subtest on miniredis, on the shared standalone server and on the shared
// cluster. Each flushes them, so neither its callers nor its subtests may be parallel to others
// that use the shared servers.
func Each(t *testing.T, f func(t *testing.T, b Backend)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) {
		m := miniredis.RunT(t)
		c := redis.NewClient(&redis.Options{Addr: m.Addr()})
		t.Cleanup(func() { c.Close() })
		f(t, Backend{Name: "miniredis", Client: c, Addrs: []string{m.Addr()}, Mini: m})
	})
	t.Run("standalone", func(t *testing.T) {
		s := Shared(t)
		s.Flush()
		f(t, Backend{Name: "standalone", Client: s.Client(), Addrs: []string{s.Addr()}})
	})
	t.Run("cluster", func(t *testing.T) {
		c := SharedCluster(t)
		c.Flush()
		f(t, Backend{Name: "cluster", Client: c.Client(), Addrs: c.Addrs()})
	})
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
