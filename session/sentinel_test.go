package session

import (
	"context"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// TestSentinelFailover loses the master: sessions cannot be loaded until the replica has
// taken over, and are there then.
func TestSentinelFailover(t *testing.T) {
	t.Parallel() // with others that wait
	sentinel := redistest.StartSentinel(t)
	client := sentinel.Client()
	m := managerOver(t, client, Config{Secrets: [][]byte{secret}})
	b := &browser{t: t, m: m}
	b.request(func(ctx context.Context) {
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
		m.Put(ctx, "cart", "book")
	})
	if n, err := client.Wait(t.Context(), 1, 5*time.Second).Result(); n != 1 || err != nil {
		t.Fatalf("replicated to %d: %v", n, err)
	}
	sentinel.Failover()
	for deadline := time.Now().Add(30 * time.Second); ; {
		ctx, err := m.Load(t.Context(), b.cookie)
		if err == nil {
			if m.UserID(ctx) != "ann" || m.GetString(ctx, "cart") != "book" {
				t.Errorf("after the failover: user %q, cart %q", m.UserID(ctx), m.GetString(ctx, "cart"))
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not loaded after the failover: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // until the sentinel's news arrive
	}
}
