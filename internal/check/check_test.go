package check

import (
	"testing"

	"github.com/redis/go-redis/v9"
)

// What reads from replicas is known by the client's options. Nothing is dialled: go-redis measures
// the latency of a node while it still makes it, which the race detector reports.
func TestReadsMasters(t *testing.T) {
	cluster := func(set func(*redis.ClusterOptions)) redis.UniversalClient {
		o := &redis.ClusterOptions{Addrs: []string{"localhost:1"}}
		set(o)
		return redis.NewClusterClient(o)
	}
	for name, tc := range map[string]struct {
		client redis.UniversalClient
		want   bool
	}{
		"one server":     {redis.NewClient(&redis.Options{}), true},
		"Ring":           {redis.NewRing(&redis.RingOptions{}), true},
		"Cluster":        {cluster(func(*redis.ClusterOptions) {}), true},
		"ReadOnly":       {cluster(func(o *redis.ClusterOptions) { o.ReadOnly = true }), false},
		"RouteByLatency": {cluster(func(o *redis.ClusterOptions) { o.RouteByLatency = true }), false},
		"RouteRandomly":  {cluster(func(o *redis.ClusterOptions) { o.RouteRandomly = true }), false},
		"unknown":        {struct{ redis.UniversalClient }{redis.NewClient(&redis.Options{})}, false},
	} {
		if got := ReadsMasters(tc.client); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
		tc.client.Close()
	}
}
