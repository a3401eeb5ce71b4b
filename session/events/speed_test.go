package events_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

// BenchmarkReader measures how fast one reader gets through what has piled up.
func BenchmarkReader(b *testing.B) {
	client := redistest.Shared(b).Client()
	client.FlushAll(b.Context())
	m := manager(b, client, session.Events{Retention: time.Hour, MaxLen: 1_000_000})
	for i := range 256 {
		login(b, m, fmt.Sprint("user ", i), 0)
	}
	// What one event of each partition says is repeated: what it is does not matter to a reader.
	var copies sync.WaitGroup
	for _, stream := range m.EventLog().Streams() {
		entries := client.XRange(b.Context(), stream, "-", "+").Val()
		if len(entries) == 0 {
			continue
		}
		copies.Go(func() {
			pipe := client.Pipeline()
			for range b.N / 160 {
				pipe.XAdd(b.Context(), &redis.XAddArgs{Stream: stream, Values: []any{"e", entries[0].Values["e"]}})
			}
			_, _ = pipe.Exec(b.Context())
		})
	}
	copies.Wait()
	var n atomic.Int64
	ctx, stop := context.WithCancel(b.Context())
	r := &events.Reader{
		Manager: m, Group: "speed", Logger: slog.New(slog.DiscardHandler),
		DeadLetter: func(_ context.Context, d events.DeadLetter) error { b.Errorf("%+v", d); return nil },
	}
	b.ResetTimer()
	err := r.Run(ctx, func(_ context.Context, list []session.Event) error {
		if n.Add(int64(len(list))) >= int64(b.N) {
			stop()
		}
		return nil
	})
	stop()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "events/s")
}
