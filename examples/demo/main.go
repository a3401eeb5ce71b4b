// Command demo is two web servers with sessions and rate limits over one Redis, to try them in a
// browser or with curl.
//
//	ADDR                where the first one listens; default localhost:8080. The other takes a free port
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
	direct, where, err := connect(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	defer direct.Close()
	cfg := Config{
		Secret: os.Getenv("SESSION_SECRET"), KeySecret: os.Getenv("SESSION_KEY_SECRET"),
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}

	addr := cmp.Or(os.Getenv("ADDR"), "localhost:8080")
	first, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("%w (ADDR is another address)", err)
	}
	defer first.Close()
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	second, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return err
	}
	defer second.Close()

	// snippet fleet: two servers over one Redis
	cable := new(Cable) // which the page can cut
	fleet := NewFleet(cable, ctx.Done())
	listeners := []net.Listener{first, second}
	for _, listener := range listeners {
		cfg.Fleet = fleet
		client := cable.Client(direct.Options()) // a server has its own
		defer client.Close()
		server, err := New(client, cfg)
		if err != nil {
			return err
		}
		defer server.Close()
		server.Port = listener.Addr().(*net.TCPAddr).Port
	}
	// end
	of := fleet.servers[0] // the other one has the same Redis
	startup.Check(of.sessions.Check, of.rules.Check, startup.Limits(of.limiters()...))
	fmt.Printf("Sessions and limits are kept in %s.\n", where)
	ended := make(chan error, len(listeners))
	for i, listener := range listeners {
		go func() { ended <- startup.ServeOn(ctx, listener, fleet.servers[i], 5*time.Second) }()
		fmt.Printf("Server %s: http://localhost:%d/\n", fleet.servers[i].Name, fleet.servers[i].Port)
	}
	fmt.Println("Open one of them, or both (Ctrl-C ends it).")
	return errors.Join(<-ended, <-ended)
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
