package redistest

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
)

// AssertAllTTL reports every key of the client's database, on all masters, that never expires.
func AssertAllTTL(t testing.TB, client redis.UniversalClient) {
	t.Helper()
	entries, err := scan(context.Background(), client)
	if err != nil {
		t.Fatalf("redistest: reading the TTLs: %v", err)
	}
	for _, e := range entries {
		if e.ttl == -1 {
			t.Errorf("key without TTL: %q", e.key)
		}
	}
}
