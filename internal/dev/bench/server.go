package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// databases is how many contenders one row can have: each has a database of its own, which keeps
// their keys apart whatever they are called.
const databases = 64

// host is the test that redistest believes it runs in. Starting a server on a free port that is
// gone when this process is, however that ends, is written and tested there once. It calls
// only the methods below.
type host struct {
	testing.TB
	cleanups []func()
}

func (h *host) Helper()          {}
func (h *host) Cleanup(f func()) { h.cleanups = append(h.cleanups, f) }
func (h *host) Skip(args ...any) { h.Fatal(args...) }

func (h *host) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	h.close()
	os.Exit(1)
}

func (h *host) Fatalf(format string, args ...any) { h.Fatal(fmt.Sprintf(format, args...)) }

func (h *host) close() {
	for _, f := range slices.Backward(h.cleanups) {
		f()
	}
	h.cleanups = nil
}

// server is the Redis that everything is measured on, and a connection to look at it.
type server struct {
	addr  string
	admin *redis.Client
}

// startServer starts a Redis for t, which is a *host but in tests. It ends with t.
func startServer(t testing.TB) *server {
	s := &server{addr: redistest.Start(t, "--databases", fmt.Sprint(databases)).Addr()}
	s.admin = s.client(0, 1)
	t.Cleanup(func() { s.admin.Close() })
	return s
}

// client returns a go-redis client as its documentation has it, but with a connection for every
// request in flight: nobody is to be measured waiting for the pool.
func (s *server) client(db, inFlight int) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.addr, DB: db, PoolSize: inFlight})
}

func (s *server) usage(ctx context.Context) (redisUsage, error) {
	info, err := s.admin.Info(ctx, "cpu", "commandstats", "memory").Result()
	if err != nil {
		return redisUsage{}, err
	}
	return parseUsage(info)
}

func (s *server) flush(ctx context.Context) error { return s.admin.FlushAll(ctx).Err() }

// keySize returns the mean MEMORY USAGE of a sample of the keys in a database, 0 if it is empty.
func (s *server) keySize(ctx context.Context, db int) (float64, error) {
	const samples = 100
	// A connection of its own: SELECT would move the one that others use.
	client := s.client(db, 1)
	defer client.Close()
	pipe := client.Pipeline()
	for range samples {
		pipe.RandomKey(ctx)
	}
	keys, err := pipe.Exec(ctx)
	if err != nil && err != redis.Nil {
		return 0, err
	}
	for _, cmd := range keys {
		if key, err := cmd.(*redis.StringCmd).Result(); err == nil {
			pipe.MemoryUsage(ctx, key)
		}
	}
	if pipe.Len() == 0 {
		return 0, nil
	}
	sizes, err := pipe.Exec(ctx)
	if err != nil && err != redis.Nil {
		return 0, err
	}
	var sum, n float64
	for _, cmd := range sizes {
		// A key may have expired since it was picked.
		if size, err := cmd.(*redis.IntCmd).Result(); err == nil {
			sum += float64(size)
			n++
		}
	}
	return sum / max(n, 1), nil
}

func (s *server) version(ctx context.Context) (string, error) {
	info, err := s.admin.InfoMap(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	return info["Server"]["redis_version"], nil
}
