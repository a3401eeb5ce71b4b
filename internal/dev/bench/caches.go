package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-redis/cache/v9"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/session/profile"
)

// cached is what the caches hold, of some 100 bytes.
type cached struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles"`
	Plan  string   `json:"plan"`
}

// cacheKit is a cache over a database that takes a while.
type cacheKit struct {
	name   string
	get    func(ctx context.Context, id string) (cached, error)
	forget func(ctx context.Context, id string) error
}

// slowDatabase counts how often it is asked.
type slowDatabase struct{ loads atomic.Int64 }

func (d *slowDatabase) load(ctx context.Context, id string) (cached, error) {
	d.loads.Add(1)
	time.Sleep(20 * time.Millisecond)
	return cached{"name of " + id, []string{"editor", "reader"}, "a plan that has a long name"}, nil
}

// cacheKits returns one cache of each kind, as one server of a fleet has it.
func cacheKits(h *host, s *server, db *slowDatabase) ([]cacheKit, error) {
	client := s.client(0, 64)
	h.Cleanup(func() { client.Close() })
	users, err := profile.New(client, "bench", db.load, profile.Config{Timeout: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	caching := redis.NewClient(&redis.Options{
		Addr: s.addr, PoolSize: 64, Protocol: 3, ClientSideCache: redis.NewLocalCache(redis.CacheConfig{MaxEntries: 4 * cacheIDs}),
	})
	h.Cleanup(func() { caching.Close() })
	near, err := profile.New(caching, "near", db.load, profile.Config{Timeout: 5 * time.Second})
	if err != nil {
		return nil, err
	}
	aside, err := newAside(s.addr, db.load)
	if err != nil {
		return nil, err
	}
	h.Cleanup(aside.client.Close)
	peer := cache.New(&cache.Options{Redis: client})
	return []cacheKit{
		{"Gatehouse profile", users.Get, users.Forget},
		{"Gatehouse profile, near cache", near.Get, near.Forget},
		{"go-redis/cache (Once)", func(ctx context.Context, id string) (v cached, err error) {
			err = peer.Once(&cache.Item{Ctx: ctx, Key: "peer:" + id, Value: &v, TTL: 5 * time.Minute, Do: func(*cache.Item) (any, error) {
				return db.load(ctx, id)
			}})
			return v, err
		}, func(ctx context.Context, id string) error { return peer.Delete(ctx, "peer:"+id) }},
		{"rueidisaside, a stand-in", aside.get, aside.forget},
	}, nil
}

const (
	cacheServers = 4
	cacheCallers = 1000
	cacheIDs     = 1000
)

// caches measures caches of what a database knows, beside each other.
func caches(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench caches", flag.ExitOnError)
	quick := flags.Bool("quick", false, "a tenth of the work")
	if err := flags.Parse(args); err != nil {
		return err
	}
	calls, rounds := 200_000, 5
	if *quick {
		calls, rounds = calls/10, 1
	}
	var h host
	defer h.close()
	s := startServer(&h)
	if err := writeEnvironment(ctx, s); err != nil {
		return err
	}
	var db slowDatabase
	var fleet [cacheServers][]cacheKit
	for i := range fleet {
		var err error
		if fleet[i], err = cacheKits(&h, s, &db); err != nil {
			return err
		}
	}
	fmt.Printf("Hits of %d values with 64 in flight; misses of one value by %d callers of %d servers, over a database that takes 20 ms; changes: forget and get, one after the other. Medians of %d rounds.\n\n",
		cacheIDs, cacheCallers, cacheServers, rounds)
	t := table{w: os.Stdout}
	t.head("cache", "hits per second", "loads of a miss", "all have it after, ms", "changes per second")
	for kit := range fleet[0] {
		var hits, loads, took, changes []float64
		for round := range rounds {
			hit, err := inParallel(64, calls, func(i int) error {
				_, err := fleet[0][kit].get(ctx, strconv.Itoa(i%cacheIDs))
				return err
			})
			if err != nil {
				return err
			}
			if round == 0 { // the first calls were misses
				if hit, err = inParallel(64, calls, func(i int) error {
					_, err := fleet[0][kit].get(ctx, strconv.Itoa(i%cacheIDs))
					return err
				}); err != nil {
					return err
				}
			}
			hits = append(hits, float64(calls)/hit.Seconds())

			if err := fleet[0][kit].forget(ctx, "hot"); err != nil {
				return err
			}
			before := db.loads.Load()
			miss, err := inParallel(cacheCallers, cacheCallers, func(i int) error {
				_, err := fleet[i%cacheServers][kit].get(ctx, "hot")
				return err
			})
			if err != nil {
				return err
			}
			loads, took = append(loads, float64(db.loads.Load()-before)), append(took, miss.Seconds()*1000)

			const n = 20
			change, err := inParallel(1, n, func(i int) error {
				if err := fleet[0][kit].forget(ctx, "hot"); err != nil {
					return err
				}
				_, err := fleet[0][kit].get(ctx, "hot")
				return err
			})
			if err != nil {
				return err
			}
			changes = append(changes, n/change.Seconds())
		}
		t.line(fleet[0][kit].name, short(middle(hits)), short(middle(loads)), short(middle(took)), short(middle(changes)))
	}
	return nil
}

func middle(figures []float64) float64 {
	slices.Sort(figures)
	return figures[len(figures)/2]
}

// inParallel does so many calls by so many callers, and returns how long that takes.
func inParallel(callers, calls int, do func(i int) error) (time.Duration, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, callers)
	began := time.Now()
	for c := range callers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(calls) && errs[c] == nil; i = next.Add(1) - 1 {
				errs[c] = do(int(i))
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}
