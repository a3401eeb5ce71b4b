package session

import (
	"bytes"
	"context"
	"errors"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

const staleness = 500 * time.Millisecond

// caching is a Manager whose client caches reads in process.
func caching(t testing.TB, addr string) *Manager {
	t.Helper()
	return cachingIn(t, addr, func(o *redis.Options) {
		o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{MaxStaleness: staleness}
	})
}

func cachingIn(t testing.TB, addr string, set func(*redis.Options)) *Manager {
	t.Helper()
	opts := &redis.Options{Addr: addr, Protocol: 3}
	set(opts)
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	return managerOver(t, client, Config{Timeout: 2 * time.Second})
}

// hgets is how many HGETs the server has run, those of scripts included.
func hgets(t testing.TB, server *redistest.Server) int {
	t.Helper()
	info, err := server.Client().Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(info, "cmdstat_hget:calls=")
	if !ok {
		return 0
	}
	digits, _, _ := strings.Cut(after, ",")
	n, err := strconv.Atoi(digits)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// servedFor reads until the session is gone, or cannot be read, and returns how long
// that took.
func servedFor(t testing.TB, m *Manager, cookie string) time.Duration {
	t.Helper()
	for start := time.Now(); ; {
		ctx, err := m.Load(context.Background(), cookie)
		if err != nil || m.UserID(ctx) == "" {
			return time.Since(start)
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("a cached session is never revoked")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func TestCachedReadsCostNoCommand(t *testing.T) {
	server := redistest.Start(t)
	m := caching(t, server.Addr())
	b := &browser{t: t, m: m}
	b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "n", 1) })
	warm(t, m, b.cookie, 1)
	before := hgets(t, server)
	for range 1000 {
		if ctx := load(t, m, b.cookie); m.UserID(ctx) != "ann" || m.GetInt(ctx, "n") != 1 {
			t.Fatal("the cache does not give the session")
		}
	}
	// An entry is fetched anew when it is older than the staleness allowed.
	if n := hgets(t, server) - before; n > 10 {
		t.Errorf("1000 cached reads cost %d HGETs", n)
	}
}

// warm reads until the value n is what the cache gives.
func warm(t testing.TB, m *Manager, cookie string, n int) {
	t.Helper()
	for range 10_000 {
		if ctx := load(t, m, cookie); m.UserID(ctx) == "ann" && m.GetInt(ctx, "n") == n {
			load(t, m, cookie)
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
	t.Fatal("a change never reaches the cache")
}

func TestLogoutReachesTheOtherCache(t *testing.T) {
	server := redistest.Start(t)
	one, two := caching(t, server.Addr()), caching(t, server.Addr())
	var took []time.Duration
	for range 100 {
		b := &browser{t: t, m: one}
		b.request(func(ctx context.Context) { _ = one.Login(ctx, "ann"); one.Put(ctx, "n", 1) })
		warm(t, two, b.cookie, 1)
		old := b.cookie
		b.request(func(ctx context.Context) { _ = one.Logout(ctx) })
		took = append(took, servedFor(t, two, old))
		servedFor(t, one, old)
	}
	slices.Sort(took)
	t.Logf("a logout reached the other process's cache after %v (median), %v (worst of %d)", took[len(took)/2], took[len(took)-1], len(took))
	if worst := took[len(took)-1]; worst > staleness+3*time.Second {
		t.Errorf("a revoked session was served for %v", worst)
	}
}

func TestChangesMeetACacheThatIsBehind(t *testing.T) {
	server := redistest.Start(t)
	one, two := caching(t, server.Addr()), caching(t, server.Addr())
	b := &browser{t: t, m: one}
	b.request(func(ctx context.Context) { _ = one.Login(ctx, "ann"); one.Put(ctx, "n", 1) })
	for i := range 200 {
		// Both write at once, from whatever their caches hold.
		(&browser{t: t, m: one, cookie: b.cookie}).request(func(ctx context.Context) { one.Put(ctx, "one"+strconv.Itoa(i), i) })
		(&browser{t: t, m: two, cookie: b.cookie}).request(func(ctx context.Context) { two.Put(ctx, "two"+strconv.Itoa(i), i) })
	}
	plain := managerOver(t, server.Client(), Config{})
	if n := len(plain.Keys(load(t, plain, b.cookie))); n != 401 {
		t.Errorf("%d of 401 keys", n)
	}
}

func TestCacheWithoutInvalidations(t *testing.T) {
	t.Parallel() // with others that wait
	for name, fault := range map[string]func(*redistest.Proxy){
		"connections break": func(p *redistest.Proxy) { p.Disconnect() },
		"packets vanish":    func(p *redistest.Proxy) { p.BlackHole() },
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			proxy := redistest.NewProxy(t, server.Addr())
			one, two := caching(t, server.Addr()), caching(t, proxy.Addr())
			b := &browser{t: t, m: one}
			b.request(func(ctx context.Context) { _ = one.Login(ctx, "ann"); one.Put(ctx, "n", 1) })
			warm(t, two, b.cookie, 1)
			old := b.cookie
			fault(proxy)
			b.request(func(ctx context.Context) { _ = one.Logout(ctx) })
			took := servedFor(t, two, old)
			t.Logf("a logout was noticed after %v", took)
			if took > staleness+5*time.Second { // a read that waits for its timeout is in it
				t.Errorf("a revoked session was served for %v", took)
			}
		})
	}
}

// deafCache is a cache that no invalidation reaches while it is deaf, as if Redis had
// forgotten to send them, and whose entries never get old.
type deafCache struct {
	redis.Cache
	deaf atomic.Bool
}

func (c *deafCache) DeleteByRedisKey(key string) int {
	// What the process itself has changed it drops by the same method.
	if c.deaf.Load() && !bytes.Contains(debug.Stack(), []byte("roundtrip.(*shared).forget")) {
		return 0
	}
	return c.Cache.DeleteByRedisKey(key)
}

// TestATouchThatFindsNoRecordEndsTheCachedSession has a process that is never told of the
// end of a session, and would show it forever: the use that it notes finds out.
func TestATouchThatFindsNoRecordEndsTheCachedSession(t *testing.T) {
	server := redistest.Start(t)
	one := managerOver(t, server.Client(), Config{})
	deaf := &deafCache{Cache: redis.NewLocalCache(redis.CacheConfig{MaxEntries: 1000})}
	two := cachingIn(t, server.Addr(), func(o *redis.Options) { o.ClientSideCache = deaf })
	for name, end := range map[string]func(b *browser){
		"logout":      func(b *browser) { b.request(func(ctx context.Context) { _ = one.Logout(ctx) }) },
		"a new login": func(b *browser) { b.request(func(ctx context.Context) { _ = one.Login(ctx, "bob") }) },
		"a lost hash": func(b *browser) { server.Client().Del(context.Background(), idOf(t, one, b.cookie).key) },
	} {
		for _, put := range []bool{false, true} {
			b := &browser{t: t, m: one}
			b.request(func(ctx context.Context) { _ = one.Login(ctx, "ann"); one.Put(ctx, "n", 1) })
			deaf.deaf.Store(false)
			warm(t, two, b.cookie, 1)
			deaf.deaf.Store(true)
			cached := b.cookie
			end(b)
			if ctx := load(t, two, cached); two.UserID(ctx) != "ann" {
				t.Fatalf("%s: the cache is not deaf", name)
			}
			server.Advance(4 * time.Minute)
			one.records.clocks.forget()
			two.records.clocks.forget()
			// Asking for the time drops what is cached of the owner that it is asked for.
			if _, err := two.records.now(t.Context(), two.records.keys.fresh(two.records.keys.visitor())); err != nil {
				t.Fatal(err)
			}
			ctx := load(t, two, cached)
			if two.UserID(ctx) != "ann" {
				t.Fatalf("%s: the cache is not deaf", name)
			}
			if put {
				two.Put(ctx, "late", 1)
				if err := two.Commit(ctx); !errors.Is(err, ErrEnded) {
					t.Errorf("%s: Commit: %v", name, err)
				}
			}
			if o := finish(t, two, ctx); o != (Outcome{}) {
				t.Errorf("%s, put %v: %+v", name, put, o)
			}
			if two.UserID(ctx) != "" || two.Exists(ctx, "n") {
				t.Errorf("%s, put %v: the request still has the session", name, put)
			}
			if got := look(t, two, cached); !got.nothing() {
				t.Errorf("%s, put %v: then the cache still gives %v", name, put, got)
			}
			if n := len(recordsAt(t, one, idOf(t, one, cached).key)); n != 0 {
				t.Errorf("%s, put %v: the touch made a record", name, put)
			}
		}
	}
}
