// Package profile caches in Redis what a database knows of a user, or of anything else that has an
// ID: name, roles, plan, disabled or not. It is cache-aside made right: a value is loaded once for
// a whole fleet of servers, and what was changed by [Cache.Update], or forgotten, is never seen in
// its older form by who asks later, on any server.
//
// A [Cache] knows nothing of sessions or HTTP. What to read: get.go, the way of a Get; update.go,
// Update and Forget; away.go, loads while Redis is away; value.go, what stands in Redis; and
// scripts/profile for what Redis does.
package profile

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/seal"
	"github.com/gatehouse-go/gatehouse/internal/slots"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var (
	// ErrNotFound is for the loader to return, or an error that wraps it: there is nothing of this
	// ID. Get then returns ErrNotFound itself.
	ErrNotFound = errors.New("profile: not found")
	// ErrUnavailable is wrapped by errors where Redis did not answer, or who loads the value took
	// too long. Of Update it means that write was not called; of Forget and ForgetAll, that values
	// may or may not be forgotten.
	ErrUnavailable = errors.New("profile: unavailable")
	// ErrNotTold is wrapped by the error of an Update whose write has succeeded, but of which Redis
	// could not be told. What is in its text bounds how long the older value may be seen.
	ErrNotTold = errors.New("profile: written, but Redis was not told")
	// ErrNoID is returned for the ID "".
	ErrNoID = errors.New("profile: empty ID")
)

// Cache is a cache of values by their IDs, which may be any bytes. It is safe for concurrent use
// and has nothing to close. The zero value is not usable: see [New].
//
// Values are kept as JSON, by encoding/json: what T's JSON leaves out, such as unexported fields
// and those tagged "-", is not in what Get returns, not even in the call that loaded it. Each call
// returns a value of its own. The fields of T, their types and tags are part of where a value is
// kept: a server whose T has one field more never reads what one without has stored, and both may
// run side by side. What a type with a MarshalJSON of its own looks like cannot be known: when that
// changes, give the cache another name.
//
// The promises: a value that is missing is loaded by one server, the others wait for it. After
// Update or Forget has returned nil, no Get that begins later returns an older value, on any
// server. Three things weaken them. A client with go-redis's client-side cache shows what it holds
// until Redis has told it, usually some milliseconds, at most its MaxStaleness. A Redis that is
// failed over, or restored from a dump, may have lost the last that it was told: then an older
// value is seen for up to TTL. And while a server does not reach Redis it asks the database itself,
// so that it may be ahead of the others.
//
// In a Redis Cluster values are spread over 64 partitions, each in one slot together with its own
// version, since one script changes a value by its version. So ForgetAll sends 64 commands,
// however many values there are.
type Cache[T any] struct{ core *core }

// core is a Cache without its type.
type core struct {
	name    string
	cfg     Config
	redis   *roundtrip.Sender
	near    bool     // the client caches reads in process
	prefix  string   // of keys
	form    string   // the field of values, by the fingerprint of their type
	fields  []string // form, and the updates under way
	masters bool     // the client reads from masters only
	ids     *seal.Digest
	ring    *seal.Ring
	lease   time.Duration
	load    func(context.Context, string) ([]byte, error)
	ahead   atomic.Int64 // by how many µs Redis's clock is ahead of this process's, about
	asked   atomic.Int64 // when that was learned, µs

	// What this process has changed it reads from Redis for a while, not from its near cache. Places
	// share a slot of changed; in it is when that ends, in µs. allChanged is that of all places.
	changed    [1 << 12]atomic.Int64
	allChanged atomic.Int64

	mu    sync.Mutex
	turns map[string]*turn // of keys that are loaded or waited for
	away  map[string]*turn // of keys that are to be loaded without Redis
	slots chan struct{}    // one for each load without Redis

	count counters
}

// New returns the cache of a name in a Redis. load reads a value from the database; it may be called
// by several goroutines, for the same ID, too. It must return when its context ends; its context
// has the values of that of a Get, but does not end with it, as others wait for the value. The error
// names everything that is wrong.
func New[T any](client redis.UniversalClient, name string, load func(ctx context.Context, id string) (T, error), cfg Config) (*Cache[T], error) {
	c, err := cfg.check(client, name, load != nil)
	if err != nil {
		return nil, err
	}
	c.form = formOf[T]()
	c.fields = []string{c.form, "u"}
	c.load = func(ctx context.Context, id string) ([]byte, error) {
		v, err := load(ctx, id)
		if err != nil {
			return nil, err
		}
		return encode(v)
	}
	return &Cache[T]{c}, nil
}

var (
	getScript   = scripts.Get("profile/get.lua")
	keepScript  = scripts.Get("profile/keep.lua")
	beginScript = scripts.Get("profile/begin.lua")
	endScript   = scripts.Get("profile/end.lua")
)

// place is where a value stands: its key, and that of its partition.
type place struct {
	keys []string
	slot *atomic.Int64 // of core.changed
}

// partitions is how many there are; see slots.Partition.
const partitions = 64

func (c *core) partition(i byte) string {
	return c.prefix + "{" + slots.Partition(i/(256/partitions)*(256/partitions)) + "}"
}

func (c *core) place(id string) place {
	sum := c.ids.Sum(id)
	partition := c.partition(sum[0])
	key := partition + ":" + base64.RawURLEncoding.EncodeToString(sum[:16])
	return place{[]string{key, partition}, &c.changed[binary.BigEndian.Uint16(sum[16:])%uint16(len(c.changed))]}
}

// apart is for how long what this process has changed is not read from its near cache: usually Redis
// has told that within milliseconds.
const apart = time.Second

// change notes that this process changes what stands at a slot.
func change(slot *atomic.Int64) { slot.Store(time.Now().Add(apart).UnixMicro()) }

// fresh returns 16 random bytes, for a version or a token.
func fresh() string { return rand.Text()[:16] }

// versionTTL is for how long a version is kept that is not renewed: longer than any value.
func (c *core) versionTTL() time.Duration { return 2*c.cfg.TTL + c.lease }

// unavailable is the error of a call of Redis.
func unavailable(what string, err error) error {
	return fmt.Errorf("%w: %s: %w", ErrUnavailable, what, err)
}

// Stats counts what happened since the Cache was made.
type Stats struct {
	// How Gets ended. Each counts once, those of [ErrNotFound] like the others.
	Hits   uint64 // the value was there
	Waited uint64 // it was, after a while in which others loaded or updated it
	Loaded uint64 // this process loaded it, and stored it
	Direct uint64 // it was loaded without Redis
	Failed uint64 // any error but ErrNotFound

	Loads     uint64 // calls of the loader
	Refreshes uint64 // of these, ahead of a value's end
	Late      uint64 // loads that could not be stored, since the value had changed meanwhile

	Updates uint64 // calls of Update that returned nil
	NotTold uint64 // those that returned ErrNotTold

	Unreadable uint64 // values that could not be read: sealed under another secret, or damaged
}

type counters struct {
	hits, waited, loaded, direct, failed, loads, refreshes, late, updates, notTold, unreadable atomic.Uint64
}

// Name returns the name that the Cache was made with.
func (c *Cache[T]) Name() string { return c.core.name }

// Stats may be called at any time.
func (c *Cache[T]) Stats() Stats {
	n := &c.core.count
	return Stats{
		Hits: n.hits.Load(), Waited: n.waited.Load(), Loaded: n.loaded.Load(), Direct: n.direct.Load(), Failed: n.failed.Load(),
		Loads: n.loads.Load(), Refreshes: n.refreshes.Load(), Late: n.late.Load(),
		Updates: n.updates.Load(), NotTold: n.notTold.Load(), Unreadable: n.unreadable.Load(),
	}
}

// Check looks at the Redis of the Cache, at start-up or by hand: whether its user may run each
// command that is needed, and whether it is old, a replica, has another time, or is read through a
// cache without a limit to its age. An error names what does not work, warnings what is likely to
// surprise. It writes nothing. Where there is no Redis it takes go-redis some seconds to say so:
// give ctx ten.
func (c *Cache[T]) Check(ctx context.Context) (warnings []string, err error) {
	redis := c.core.redis
	err = check.Permissions(ctx, redis, check.Needs{
		Key: c.core.place("check").keys[0], Scripts: []*scripts.Script{getScript, keepScript, beginScript, endScript},
	})
	if err != nil {
		err = fmt.Errorf("profile: %w", err)
	}
	warnings = check.NearCache(redis.Client(), "where the word of a change is lost, the older value is seen until it is thrown out")
	more, also := check.Servers(ctx, redis.Client(), check.Loss{})
	return append(warnings, more...), errors.Join(err, also)
}
