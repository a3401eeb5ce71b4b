package session

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

const staleness = 500 * time.Millisecond

// caching is a Manager whose client caches reads in process.
func caching(t testing.TB, server *redistest.Server, addr string) *Manager {
	t.Helper()
	client := redis.NewClient(&redis.Options{
		Addr: addr, Protocol: 3,
		ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxStaleness: staleness},
	})
	t.Cleanup(func() { client.Close() })
	m, err := New(client, Config{Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// gets is how many GETs the server has answered.
func gets(t testing.TB, server *redistest.Server) int {
	t.Helper()
	info, err := server.Client().Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(info, "cmdstat_get:calls=")
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
	m := caching(t, server, server.Addr())
	b := &browser{t: t, m: m}
	b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "n", 1) })
	warm(t, m, b.cookie, 1)
	before := gets(t, server)
	for range 1000 {
		if ctx := load(t, m, b.cookie); m.UserID(ctx) != "ann" || m.GetInt(ctx, "n") != 1 {
			t.Fatal("the cache does not give the session")
		}
	}
	// An entry is fetched anew when it is older than the staleness allowed.
	if n := gets(t, server) - before; n > 10 {
		t.Errorf("1000 cached reads cost %d GETs", n)
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
	one, two := caching(t, server, server.Addr()), caching(t, server, server.Addr())
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
	if worst := took[len(took)-1]; worst > staleness+time.Second {
		t.Errorf("a revoked session was served for %v", worst)
	}
}

func TestChangesMeetACacheThatIsBehind(t *testing.T) {
	server := redistest.Start(t)
	one, two := caching(t, server, server.Addr()), caching(t, server, server.Addr())
	b := &browser{t: t, m: one}
	b.request(func(ctx context.Context) { _ = one.Login(ctx, "ann"); one.Put(ctx, "n", 1) })
	for i := range 200 {
		// Both write at once, from whatever their caches hold.
		(&browser{t: t, m: one, cookie: b.cookie}).request(func(ctx context.Context) { one.Put(ctx, "one"+strconv.Itoa(i), i) })
		(&browser{t: t, m: two, cookie: b.cookie}).request(func(ctx context.Context) { two.Put(ctx, "two"+strconv.Itoa(i), i) })
	}
	plain, err := New(server.Client(), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(plain.Keys(load(t, plain, b.cookie))); n != 401 {
		t.Errorf("%d of 401 keys", n)
	}
}

func TestCacheWithoutInvalidations(t *testing.T) {
	for name, fault := range map[string]func(*redistest.Proxy){
		"connections break": func(p *redistest.Proxy) { p.Disconnect() },
		"packets vanish":    func(p *redistest.Proxy) { p.BlackHole() },
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			proxy := redistest.NewProxy(t, server.Addr())
			one, two := caching(t, server, server.Addr()), caching(t, server, proxy.Addr())
			b := &browser{t: t, m: one}
			b.request(func(ctx context.Context) { _ = one.Login(ctx, "ann"); one.Put(ctx, "n", 1) })
			warm(t, two, b.cookie, 1)
			old := b.cookie
			fault(proxy)
			b.request(func(ctx context.Context) { _ = one.Logout(ctx) })
			took := servedFor(t, two, old)
			t.Logf("a logout was noticed after %v", took)
			if took > staleness+time.Second {
				t.Errorf("a revoked session was served for %v", took)
			}
		})
	}
}
