package session

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// The first request waits for a Redis that does not answer; those after it fail at once. Once
// Redis answers again, sessions are there as they were.
func TestAFrozenRedisIsWaitedForOnce(t *testing.T) {
	t.Parallel() // with others that wait
	const timeout = time.Second
	server := redistest.Start(t)
	client := server.Client()
	m, err := New(client, Config{Timeout: timeout})
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, managerOver(t, client, Config{}), "ann")
	ctx := load(t, m, b.cookie)
	server.Pause()
	m.Put(ctx, "k", 1)
	start := time.Now()
	if err := m.Commit(ctx); !errors.Is(err, ErrUnavailable) || time.Since(start) > 2*timeout {
		t.Errorf("the first: %v after %v", err, time.Since(start))
	}
	start = time.Now()
	for range 500 {
		if _, err := m.Load(context.Background(), b.cookie); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Load: %v", err)
		}
	}
	if d := time.Since(start); d > 5*timeout { // each that waits takes one
		t.Errorf("500 more took %v", d)
	}
	server.Resume()
	for start = time.Now(); ; time.Sleep(10 * time.Millisecond) {
		ctx, err := m.Load(context.Background(), b.cookie)
		if err == nil {
			if m.UserID(ctx) != "ann" {
				t.Error("the session is gone")
			}
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("it is not asked again")
		}
	}
}

// One cut connection is not an outage: the request after it is served.
func TestACutConnectionIsNoOutageForSessions(t *testing.T) {
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	m, err := New(client, Config{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	b := begin(t, managerOver(t, server.Client(), Config{}), "ann")
	for i := range 5 {
		ctx := load(t, m, b.cookie)
		m.Put(ctx, "k", i)
		proxy.CutReply("evalsha")
		_ = m.Commit(ctx) // which may find that it has written
		proxy.Heal()
		if ctx := load(t, m, b.cookie); m.UserID(ctx) != "ann" {
			t.Error("the session is gone")
		}
	}
}
