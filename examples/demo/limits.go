package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

const (
	burst = 16                     // requests, half of them by each server
	near  = 700 * time.Millisecond // how far from the edge of the fixed window they are sent
)

var ten = ratelimit.Limit{Requests: 10, Window: 10 * time.Second}

func (s *Server) limits(client redis.UniversalClient, cfg ratelimit.Config) (err error) {
	// snippet limits: three algorithms
	if s.sliding, err = ratelimit.NewSlidingWindow(client, "sliding", ten, cfg); err != nil {
		return err
	}
	if s.fixed, err = ratelimit.NewFixedWindow(client, "fixed", ten, cfg); err != nil {
		return err
	}
	s.bucket, err = ratelimit.NewTokenBucket(client, "bucket", ten, cfg)
	// end
	return err
}

// limited returns the limits of what needs no session, by path.
func (s *Server) limited() map[string]middleware.RateLimit {
	limits := map[string]middleware.RateLimit{}
	mount := func(path string, l ratelimit.Limiter, onError middleware.FailureMode) {
		// snippet mount: a limit on a route
		limits[path] = middleware.RateLimit{
			Limiter:    l,
			Key:        middleware.ByIP(middleware.PeerIP),
			OnError:    onError,
			OnDecision: s.note, // draws a dot
			Logger:     s.log,
		}
		// end
	}
	mount("/api/sliding", s.sliding, middleware.FailLocal)
	mount("/api/fixed", s.fixed, middleware.FailLocal)
	mount("/api/bucket", s.bucket, middleware.FailLocal)
	mount("/api/patience", s.patience, middleware.FailLocal)
	// snippet outage: what becomes of a request without Redis
	for path, mode := range map[string]middleware.FailureMode{
		"/api/local":  middleware.FailLocal,
		"/api/open":   middleware.FailOpen,
		"/api/closed": middleware.FailClosed,
	} {
		mount(path, s.share, mode)
	}
	// end
	return limits
}

func passed(w http.ResponseWriter, r *http.Request) {
	reply(w, http.StatusOK, map[string]any{"allowed": true})
}

func edgeRun() *Run {
	run := newRun(12*time.Second, ten,
		&lane{Name: "Sliding window", path: "/api/sliding"},
		&lane{Name: "Fixed window", path: "/api/fixed"},
		&lane{Name: "Token bucket", path: "/api/bucket"})
	run.edge = ten.Window
	return run
}

// edge sends the same traffic to the three limits: a burst just before the edge of the fixed
// window, and another just after it.
func (s *Server) edge(run *Run) {
	sliding, fixed, bucket := run.lanes[0], run.lanes[1], run.lanes[2]
	run.as(s.fleet.client("198.51.100"), run.lanes...)

	run.say("The fixed window has begun. The bursts follow just before and just after its edge.")
	// A fixed window begins with its first request. That one is given back, so that it does not count.
	for _, l := range run.lanes {
		s.send(l)
		_ = l.last.Settle(l.last.Request.Context(), 0)
	}
	edge := time.Now().Add(fixed.last.Result.ResetAfter)
	run.forget(edge)
	for i, at := range []time.Time{edge.Add(-near), edge.Add(near)} {
		if !s.fleet.sleep(at) {
			return
		}
		var all sync.WaitGroup
		for _, l := range run.lanes {
			for i := range burst {
				all.Go(func() { s.fleet.server(i).send(l) })
			}
		}
		all.Wait()
		if i == 0 {
			run.say("The first burst is sent. The next one follows after the edge.")
		}
	}
	run.say(fmt.Sprintf("Most in any 10 s, of a limit of 10: sliding window %d, fixed window %d, token bucket %d.%s",
		run.most(sliding), run.most(fixed), run.most(bucket), run.caveat()))
}

// left is what each server says that a client has left under a limiter, without spending any.
func (f *Fleet) left(limiter func(*Server) ratelimit.Limiter, key string) (left []string) {
	for _, s := range f.servers {
		ctx, cancel := timeout()
		res, err := limiter(s).Take(ctx, key, 0)
		cancel()
		switch {
		case err != nil:
			left = append(left, s.Name+" ?")
		default:
			left = append(left, fmt.Sprintf("%s %d", s.Name, res.Remaining))
		}
	}
	return left
}
