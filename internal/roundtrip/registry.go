package roundtrip

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/redis/go-redis/v9"
)

// shared is what all Senders over one client stand on.
type shared struct {
	client redis.UniversalClient

	// cached reports whether the client caches reads in process. cache is where, or nil if the
	// client does not say.
	cached bool
	cache  redis.Cache
	// cachePrefix is what go-redis puts before a key in its cache. It is not told
	// to anybody; a test notices when it changes.
	cachePrefix string
	written     *written // if it is cached

	// Each client has its own calls: a timer or channel that was made in a
	// bubble of testing/synctest must not get out of it.
	calls sync.Pool

	logger atomic.Pointer[slog.Logger] // the first one given
	joins  joining
	ahead  atomic.Int64 // how far Advance has moved the time

	mu      sync.RWMutex
	senders map[time.Duration]*Sender
	only    *node            // of a single server, and of one that is not known yet
	nodes   map[string]*node // the others, by address
	routed  atomic.Bool      // a cluster's client knows where its slots are
}

// New returns a Sender whose calls take at most timeout each. All Senders over one client
// share what they send by, and tell the first logger that is not nil, or slog.Default(), when a
// server stops answering and when it answers again.
func New(client redis.UniversalClient, timeout time.Duration, logger *slog.Logger) *Sender {
	s := sharedBy(client)
	if logger != nil {
		s.logger.CompareAndSwap(nil, logger)
	}
	return s.sender(timeout)
}

func newShared(client redis.UniversalClient) *shared {
	s := &shared{
		client:  client,
		senders: make(map[time.Duration]*Sender),
		nodes:   make(map[string]*node),
	}
	s.calls.New = func() any { return newCall(s) }
	c, _ := client.(*redis.Client)
	s.only = newNode(s, "", c)
	if c == nil {
		s.joins.state.Store(joinForbidden)
	} else {
		o := c.Options()
		s.cached, s.cache = o.ClientSideCacheConfig != nil || o.ClientSideCache != nil, o.ClientSideCache
		if s.cached {
			s.written = newWritten()
		}
		s.cachePrefix = fmt.Sprintf("%d\x00%d:%s\x00", o.DB, len(o.Username), o.Username)
	}
	return s
}

func (s *shared) sender(timeout time.Duration) *Sender {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sender := s.senders[timeout]; sender != nil {
		return sender
	}
	sender := &Sender{shared: s, timeout: timeout, wait: timeout}
	if read := readTimeout(s.client); read > 0 {
		sender.wait = min(timeout, read)
	}
	if c, ok := s.client.(*redis.Client); ok {
		sender.bounded = c.WithTimeout(sender.wait)
		// A new connection costs several round trips, each with its own timeout: only the
		// context's deadline bounds them all. The options are this clone's own.
		sender.bounded.Options().ContextTimeoutEnabled = true
	}
	s.senders[timeout] = sender
	return sender
}

// readTimeout returns for how long a client itself waits for a reply; 0 or less: for ever, or
// it does not say.
func readTimeout(client redis.UniversalClient) time.Duration {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ReadTimeout
	case *redis.ClusterClient:
		return c.Options().ReadTimeout
	case *redis.Ring:
		return c.Options().ReadTimeout
	}
	return 0
}

// Advance moves the time of those over client by d, for tests that move its server's: what was
// learned from a reply is older then.
func Advance(client redis.UniversalClient, d time.Duration) { sharedBy(client).ahead.Add(int64(d)) }

// Now is the time by which the age of a reply is reckoned.
func (s *shared) Now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

// Since is what Now is after a time: it costs half.
func (s *shared) Since(t time.Time) time.Duration {
	return time.Since(t) + time.Duration(s.ahead.Load())
}

// Client returns the client that the Sender was made with.
func (s *shared) Client() redis.UniversalClient { return s.client }

// Cached reports whether the client is set up to cache reads in process.
func (s *shared) Cached() bool { return s.cached }

// Silent returns how many servers are not asked, since they did not answer within the last minute.
func (s *shared) Silent() (n int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.only.circuit.silent() {
		n++
	}
	for _, node := range s.nodes {
		if node.circuit.silent() {
			n++
		}
	}
	return n
}

// node returns what sends to the server that has key: one that hangs must not hold up what goes
// to the others.
func (s *shared) node(ctx context.Context, key string) *node {
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		// A client that does not know its slots yet would ask for them here, for as long as
		// its own timeouts let it.
		if s.routed.Load() {
			if master, err := c.MasterForKey(ctx, key); err == nil {
				return s.nodeOf(master)
			}
		}
	case *redis.Ring:
		if shard, err := c.GetShardClientForKey(key); err == nil {
			return s.nodeOf(shard)
		}
	}
	return s.only
}

func (s *shared) nodeOf(server *redis.Client) *node {
	addr := server.Options().Addr
	s.mu.RLock()
	n := s.nodes[addr]
	s.mu.RUnlock()
	if n != nil {
		return n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes[addr] == nil {
		s.nodes[addr] = newNode(s, addr, server)
	}
	return s.nodes[addr]
}

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
