package redistest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// AssertAllTTL reports every key of the client's database, on all masters, that never expires.
func AssertAllTTL(t testing.TB, client redis.UniversalClient) {
	t.Helper()
	keys, err := immortal(context.Background(), client)
	if err != nil {
		t.Fatalf("redistest: reading the TTLs: %v", err)
	}
	for _, k := range keys {
		t.Errorf("key without TTL: %q", k)
	}
}

func immortal(ctx context.Context, client redis.UniversalClient) ([]string, error) {
	var (
		mu   sync.Mutex
		keys []string
	)
	scan := func(ctx context.Context, node *redis.Client) error {
		for it := node.Scan(ctx, 0, "", 1000).Iterator(); ; {
			if !it.Next(ctx) {
				return it.Err()
			}
			ttl, err := node.PTTL(ctx, it.Val()).Result()
			if err != nil {
				return err
			}
			if ttl == -1 {
				mu.Lock()
				keys = append(keys, it.Val())
				mu.Unlock()
			}
		}
	}
	var err error
	switch c := client.(type) {
	case *redis.Client:
		err = scan(ctx, c)
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, scan)
	case *redis.Ring:
		err = c.ForEachShard(ctx, scan)
	default:
		err = fmt.Errorf("%T is not a client whose servers can be listed", client)
	}
	slices.Sort(keys)
	// A key moved by the server's rehashing is scanned twice.
	return slices.Compact(keys), err
}
