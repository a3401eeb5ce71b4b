package roundtrip

import (
	"runtime"
	"sync"
	"weak"

	"github.com/redis/go-redis/v9"
)

// registry has what the Senders over each client share, by a weak pointer to the client: it is
// kept by the client's own hook, and gone with it.
var registry = struct {
	sync.Mutex
	of map[any]weak.Pointer[shared]
}{of: make(map[any]weak.Pointer[shared])}

// sharedBy returns what the Senders over client share. A client of a type of its own may not be
// told from another: it gets a new one each time.
func sharedBy(client redis.UniversalClient) *shared {
	switch c := client.(type) {
	case *redis.Client:
		return registered(c, client)
	case *redis.ClusterClient:
		return registered(c, client)
	case *redis.Ring:
		return registered(c, client)
	}
	return newShared(client)
}

func registered[T any](c *T, client redis.UniversalClient) *shared {
	key := weak.Make(c)
	registry.Lock()
	defer registry.Unlock()
	if s := registry.of[key].Value(); s != nil {
		return s
	}
	s := newShared(client)
	client.AddHook(divert{s})
	registry.of[key] = weak.Make(s)
	runtime.AddCleanup(c, func(key weak.Pointer[T]) {
		registry.Lock()
		defer registry.Unlock()
		delete(registry.of, key)
	}, key)
	return s
}
