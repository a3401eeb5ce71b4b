package recipes

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// behindNginx counts by the client's address behind proxies of 10.0.0.0/8 that append to
// X-Forwarded-For, as nginx with $proxy_add_x_forwarded_for, HAProxy and AWS's ALB do.
var behindNginx = middleware.ByIP(middleware.ForwardedFor(netip.MustParsePrefix("10.0.0.0/8")))

// behindCloudflare trusts a field that Cloudflare's servers set. cloudflare are all of the prefixes
// at https://www.cloudflare.com/ips: clients behind one that is missing share a key.
func behindCloudflare(cloudflare []netip.Prefix) middleware.KeyFunc {
	return middleware.ByIP(middleware.SingleHeader("CF-Connecting-IP", cloudflare...))
}

// userElseAddress counts a user by name, and visitors by their address.
func userElseAddress(sessions *session.Manager) middleware.KeyFunc {
	return middleware.FirstOf(middleware.ByUser(sessions), behindNginx)
}

// byAPIKey counts by the key of a client, hashed: no API key stands in Redis.
var byAPIKey = middleware.ByHeader("X-API-Key")

// plans gives each API key the limit of its plan. planOf knows it, from a cache: it is asked for each
// request.
func plans(limiter *ratelimit.SlidingWindow, planOf func(apiKey string) string) (middleware.RateLimit, error) {
	gold, err := limiter.With(ratelimit.PerMinute(6000))
	if err != nil {
		return middleware.RateLimit{}, err
	}
	return middleware.RateLimit{
		Limiter: limiter, Key: byAPIKey,
		LimiterFor: func(r *http.Request) (ratelimit.Limiter, error) {
			switch planOf(r.Header.Get("X-API-Key")) {
			case "gold":
				return gold, nil
			case "internal":
				return ratelimit.Unlimited, nil
			}
			return nil, nil // the limiter's own
		},
	}, nil
}

// whenRedisIsDown chooses for each route.
func whenRedisIsDown(pages, payments, search ratelimit.Limiter, key middleware.KeyFunc) middleware.Routes {
	return middleware.Routes{
		"GET /search":   {Limiter: search, Key: key, OnError: middleware.FailOpen},     // rather too many than none
		"POST /pay":     {Limiter: payments, Key: key, OnError: middleware.FailClosed}, // rather none than too many
		"/":             {Limiter: pages, Key: key},                                    // FailLocal: the same limit, counted in each process
		"GET /healthz":  {},                                                            // no limit
		"GET /metrics/": {},
	}
}

// liveEvents is a stream that ends with its session, on whichever server that is ended, and at a
// shutdown, when stop is closed.
func liveEvents(sessions *session.Manager, stop <-chan struct{}, send func(http.ResponseWriter) error) http.Handler {
	stream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			if send(w) != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
			_ = sessions.Touch(r.Context()) // the stream keeps the session
			select {
			case <-r.Context().Done(): // context.Cause: session.ErrEnded, http.ErrServerClosed, or the client is gone
				return
			case <-time.After(time.Second):
			}
		}
	})
	return middleware.Live{Manager: sessions, Stop: stop}.Handler(stream)
}

// overTLS is a client of a managed Redis.
func overTLS() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "redis.example.com:6380", Username: "web", Password: os.Getenv("REDIS_PASSWORD"),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	})
}

// withSentinels follows a failover.
func withSentinels() *redis.Client {
	return redis.NewFailoverClient(&redis.FailoverOptions{MasterName: "main", SentinelAddrs: []string{"s1:26379", "s2:26379", "s3:26379"}})
}

// overCluster spreads users and keys over its masters.
func overCluster() *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"n1:6379", "n2:6379", "n3:6379"}})
}

// nearCache reads sessions that nobody changed without asking Redis.
func nearCache() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: "localhost:6379", Protocol: 3,
		ClientSideCache: redis.NewLocalCache(redis.CacheConfig{MaxStaleness: 2 * time.Second}),
	})
}

// startUp looks at Redis before the service serves: log what it says.
func startUp(ctx context.Context, sessions *session.Manager, rules *ratelimit.Rules, limiters ...ratelimit.Limiter) (warnings []string, err error) {
	for _, check := range []func(context.Context) ([]string, error){
		sessions.Check, rules.Check,
		func(ctx context.Context) ([]string, error) { return ratelimit.Check(ctx, limiters...) },
	} {
		more, failed := check(ctx)
		warnings = append(warnings, more...)
		if failed != nil {
			err = failed
		}
	}
	return warnings, err
}
