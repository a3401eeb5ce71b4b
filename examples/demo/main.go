// Command demo is a web service with sessions and rate limits, to try them in
// a browser or with curl.
//
//	ADDR                where it listens; default :8080
//	REDIS_URL           such as redis://localhost:6379/0; default: a Redis inside
//	                    the process, which is gone when the demo is
//	SESSION_SECRET      signs cookies and seals records, at least 32 bytes;
//	                    default: neither is done
//	SESSION_KEY_SECRET  hides user IDs in Redis, at least 32 bytes; required with
//	                    SESSION_SECRET
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	client, where, err := connect(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	defer client.Close()
	handler, err := New(client, Config{
		Secret: os.Getenv("SESSION_SECRET"), KeySecret: os.Getenv("SESSION_KEY_SECRET"), Logger: log,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), ":8080"))
	if err != nil {
		return err
	}
	fmt.Printf("Sessions and limits are kept in %s.\n", where)
	fmt.Printf("Open http://localhost:%d/ (Ctrl-C ends it).\n", listener.Addr().(*net.TCPAddr).Port)

	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		<-ctx.Done()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// connect returns a client of the Redis at url, or of one inside the process.
func connect(url string) (client *redis.Client, where string, err error) {
	client, err = startup.Connect(url)
	if err != nil {
		return nil, "", err
	}
	if url == "" {
		return client, "a Redis inside this process (miniredis), and gone with it; set REDIS_URL to use a real one", nil
	}
	addr := client.Options().Addr
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		return nil, "", fmt.Errorf("no Redis at %s: %w", addr, err)
	}
	return client, "Redis at " + addr, nil
}
