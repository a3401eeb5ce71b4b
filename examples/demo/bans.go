package main

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

var three = ratelimit.Limit{Requests: 3, Window: 3 * time.Second}

func (s *Server) penalties(client redis.UniversalClient, cfg ratelimit.Config) (err error) {
	// snippet bans: bans
	cfg.Penalty = ratelimit.Penalty{
		Strikes: 3,               // denials of a client that did not wait
		First:   6 * time.Second, // the first ban; each is twice as long as the last
		Memory:  time.Minute,
	}
	s.patience, err = ratelimit.NewSlidingWindow(client, "patience", three, cfg)
	// end
	return err
}

func bansRun() *Run {
	return newRun(14*time.Second, three, &lane{Name: "Hammers", path: "/api/patience"}, &lane{Name: "Waits", path: "/api/patience"})
}

// hammer has two clients want more than they may. One tries again at once, the other waits for
// Retry-After.
func (s *Server) hammer(run *Run) {
	hammers, waits := run.lanes[0], run.lanes[1]
	run.as(s.fleet.client("203.0.113"), hammers)
	run.as(s.fleet.client("203.0.113"), waits)
	until := time.Now().Add(run.length - time.Second)
	run.say("Both clients want more than 3 requests in 3 s.")

	var both sync.WaitGroup
	both.Go(func() {
		for i := 0; time.Now().Before(until); i++ {
			s.fleet.server(i).send(hammers)
			if !s.fleet.sleep(time.Now().Add(300 * time.Millisecond)) {
				return
			}
		}
	})
	both.Go(func() {
		for i := 0; time.Now().Before(until); i++ {
			s.fleet.server(i).send(waits)
			seconds := waits.last.Result.RetryAfter.Seconds()
			if !s.fleet.sleep(time.Now().Add(time.Duration(math.Ceil(seconds)) * time.Second)) { // as in Retry-After
				return
			}
		}
	})
	both.Wait()
	run.mu.Lock()
	defer run.mu.Unlock()
	run.says = fmt.Sprintf("Who hammers got %d requests through and was banned; who waits got %d.", hammers.count("passed", ""), waits.count("passed", ""))
}
