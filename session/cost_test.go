package session

import (
	"context"
	"fmt"
	"strconv"
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
	if raceEnabled {
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
