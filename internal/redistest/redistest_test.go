package redistest

import (
	"context"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func TestEach(t *testing.T) {
	Each(t, func(t *testing.T, b Backend) {
		if n, err := b.NewClient(t).DBSize(context.Background()).Result(); n != 0 || err != nil {
			t.Errorf("DBSIZE = %d, %v; want an empty server", n, err)
		}
		for _, k := range []string{"a", "b", "c", "d"} {
			b.Client.Set(context.Background(), k, 1, time.Minute)
		}
		AssertAllTTL(t, b.Client)
	})
}
