// Package startup is what the larger examples begin with.
package startup

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Connect returns a client of the Redis at url, or, if url is "", of one inside the process.
func Connect(url string) (*redis.Client, error) {
	if url == "" {
		mini, err := miniredis.Run()
		if err != nil {
			return nil, err
		}
		mini.ClockTTL(true) // nothing would expire otherwise
		return redis.NewClient(&redis.Options{Addr: mini.Addr()}), nil
	}
	options, err := redis.ParseURL(url)
	if err != nil {
		// The error may quote the URL, and with it a password.
		return nil, errors.New("REDIS_URL is not a Redis URL such as redis://localhost:6379/0")
	}
	return redis.NewClient(options), nil
}

// A Checker says what does not work with its Redis, and what is likely to surprise.
type Checker func(context.Context) (warnings []string, err error)

// Limits is the Checker of limiters.
func Limits(limiters ...ratelimit.Limiter) Checker {
	return func(ctx context.Context) ([]string, error) { return ratelimit.Check(ctx, limiters...) }
}

// Check logs what each of them says. It waits for none: a service starts without Redis, too.
func Check(checks ...Checker) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, check := range checks {
			warnings, err := check(ctx)
			for _, w := range warnings {
				log.Print("warning: ", w)
			}
			if err != nil {
				log.Print("error: ", err)
			}
		}
	}()
}

// Serve serves until ctx ends, and then for as long as grace what is under way.
func Serve(ctx context.Context, addr string, handler http.Handler, grace time.Duration) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return ServeOn(ctx, listener, handler, grace)
}

// ServeOn is Serve on a listener.
func ServeOn(ctx context.Context, listener net.Listener, handler http.Handler, grace time.Duration) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	quiet := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(quiet)
		ctx, cancel := context.WithTimeout(context.Background(), grace)
		defer cancel()
		_ = server.Shutdown(ctx)
	})
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	<-quiet
	return nil
}
