package session

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// ordinary puts what an ordinary session holds.
func ordinary(m *Manager, ctx context.Context) {
	m.Put(ctx, "name", "Ann of Green Gables")
	m.Put(ctx, "roles", []string{"reader", "writer"})
	m.Put(ctx, "seen", time.Now())
	m.Put(ctx, "theme", "dark")
	m.Put(ctx, "count", 42)
	m.Put(ctx, "csrf", "0123456789abcdef0123456789abcdef")
}

func realSession(t testing.TB, cfg Config) (*Manager, string) {
	t.Helper()
	client := redistest.Shared(t).Client(func(o *redis.Options) { o.MaxRetries = -1 })
	cfg.Timeout = 5 * time.Second
	m := managerOver(t, client, cfg)
	b := &browser{t, m, ""}
	b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); ordinary(m, ctx) })
	return m, b.cookie
}

// TestAllocationsOfARead holds what a session that is found and not changed allocates,
// go-redis included.
func TestAllocationsOfARead(t *testing.T) {
	if redistest.RaceDetector {
		t.Skip("the race detector allocates")
	}
	for _, tc := range []struct {
		secrets [][]byte
		most    float64
	}{{nil, 32}, {[][]byte{secret}, 40}} {
		m, cookie := realSession(t, Config{Secrets: tc.secrets})
		got := testing.AllocsPerRun(500, func() {
			ctx, err := m.Load(context.Background(), cookie)
			if err == nil {
				_, err = m.Finish(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		t.Logf("secrets=%d: %v", len(tc.secrets), got)
		if got > tc.most {
			t.Errorf("secrets=%d: %v allocations, at most %v expected", len(tc.secrets), got, tc.most)
		}
	}
}

func benchmark(b *testing.B, do func(m *Manager, ctx context.Context)) {
	for _, tc := range []struct {
		name    string
		secrets [][]byte
	}{{"plain", nil}, {"sealed", [][]byte{secret}}} {
		b.Run(tc.name, func(b *testing.B) {
			m, _ := realSession(b, Config{Secrets: tc.secrets})
			cookies := make([]string, 1000)
			for i := range cookies {
				v := &browser{b, m, ""}
				v.request(func(ctx context.Context) { _ = m.Login(ctx, fmt.Sprint("user", i)); ordinary(m, ctx) })
				cookies[i] = v.cookie
			}
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i++ {
					ctx, err := m.Load(context.Background(), cookies[i%len(cookies)])
					if err != nil {
						b.Fatal(err)
					}
					do(m, ctx)
					if _, err := m.Finish(ctx); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

func BenchmarkRead(b *testing.B) {
	benchmark(b, func(m *Manager, ctx context.Context) { _ = m.GetString(ctx, "name") })
}

func BenchmarkWrite(b *testing.B) {
	benchmark(b, func(m *Manager, ctx context.Context) {
		m.Put(ctx, "count", strconv.FormatInt(time.Now().UnixNano(), 10))
	})
}

// redisCPU is what a Redis has computed so far.
func redisCPU(b *testing.B, m *Manager) (total float64) {
	b.Helper()
	info, err := m.records.redis.Client().(*redis.Client).InfoMap(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"used_cpu_user_main_thread", "used_cpu_sys_main_thread"} {
		s, err := strconv.ParseFloat(info["CPU"][name], 64)
		if err != nil {
			b.Fatal(err)
		}
		total += s
	}
	return total
}

// BenchmarkAccounts measures, of each act on the sessions of a user, how long it takes one caller
// and what it costs Redis.
func BenchmarkAccounts(b *testing.B) { benchmarkAccounts(b, Events{}) }

// BenchmarkAccountsWithEvents is the same with events.
func BenchmarkAccountsWithEvents(b *testing.B) { benchmarkAccounts(b, Events{Retention: time.Hour}) }

func benchmarkAccounts(b *testing.B, events Events) {
	for _, row := range []struct {
		name     string
		sessions int
		do       func(b *testing.B, m *Manager, i int, cookie string)
	}{
		{"login", 0, func(b *testing.B, m *Manager, i int, _ string) {
			ctx := load(b, m)
			if err := m.Login(ctx, fmt.Sprint("fresh", i)); err != nil {
				b.Fatal(err)
			}
			finish(b, m, ctx)
		}},
		{"login as the 100th", 100, func(b *testing.B, m *Manager, i int, _ string) {
			ctx := load(b, m)
			if err := m.Login(ctx, "ann"); err != nil {
				b.Fatal(err)
			}
			finish(b, m, ctx)
		}},
		{"confirm", 1, func(b *testing.B, m *Manager, i int, cookie string) {
			ctx := load(b, m, cookie)
			if err := m.Confirm(ctx); err != nil {
				b.Fatal(err)
			}
			m.Abort(ctx)
		}},
		{"touch", 1, func(b *testing.B, m *Manager, i int, cookie string) {
			r := *m.state(load(b, m, cookie)).record
			if _, err := m.records.touch(b.Context(), &r, told{}); err != nil {
				b.Fatal(err)
			}
		}},
		{"list of 100", 100, func(b *testing.B, m *Manager, i int, _ string) {
			if list := listed(b, m, b.Context(), "ann"); len(list) != 100 {
				b.Fatal(len(list))
			}
		}},
		{"list of 1000", 1000, func(b *testing.B, m *Manager, i int, _ string) {
			if list := listed(b, m, b.Context(), "ann"); len(list) != 1000 {
				b.Fatal(len(list))
			}
		}},
		{"EndAll of 1000", 1000, func(b *testing.B, m *Manager, i int, _ string) {
			if i > 0 {
				b.Fatal("run it with -benchtime 1x")
			}
			if ended := endAll(b, m, "ann"); len(ended) != 1000 {
				b.Fatal(len(ended))
			}
		}},
	} {
		b.Run(row.name, func(b *testing.B) {
			client := redistest.Shared(b).Client(func(o *redis.Options) { o.MaxRetries = -1 })
			client.FlushAll(b.Context())
			m := managerOver(b, client, Config{Secrets: [][]byte{secret}, Timeout: 30 * time.Second, Accounts: Accounts{Max: max(100, row.sessions)}, Events: events})
			var mu sync.Mutex
			cookie := ""
			atOnce(row.sessions, func(int) {
				v := begin(b, m, "ann")
				mu.Lock()
				defer mu.Unlock()
				cookie = v.cookie
			})
			before := redisCPU(b, m)
			b.ResetTimer()
			for i := range b.N {
				row.do(b, m, i, cookie)
			}
			b.StopTimer()
			b.ReportMetric((redisCPU(b, m)-before)*1e6/float64(b.N), "redis-µs/op")
		})
	}
}
