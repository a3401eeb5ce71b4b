package roundtrip

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// ErrMasters is wrapped by the error of EachMaster for a client whose masters are not known.
var ErrMasters = errors.New("redis: the masters of the client are not known")

// EachMaster calls f for each server that client writes to, perhaps at the same time.
func EachMaster(ctx context.Context, client redis.UniversalClient, f func(context.Context, *redis.Client) error) error {
	switch c := client.(type) {
	case *redis.Client:
		return f(ctx, c)
	case *redis.ClusterClient:
		return c.ForEachMaster(ctx, f)
	case *redis.Ring:
		return c.ForEachShard(ctx, f)
	}
	return fmt.Errorf("%w: a %T", ErrMasters, client)
}
