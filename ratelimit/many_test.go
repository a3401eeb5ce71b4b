package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// A script over many keys decides about each as the algorithm does, on an explicit clock and on
// Redis's own; also where one of them is no such key.
func TestManyKeysAreDecidedAsOneIs(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, a := range algorithms {
			for _, explicit := range []bool{true, false} {
				if !explicit && b.Mini != nil {
					continue // its clock stands still
				}
				t.Run(fmt.Sprintf("%v, explicit %v", a, explicit), func(t *testing.T) {
					script := scripts.Get("limit/" + a.word() + "_many.lua")
					limit := Limit{Requests: 7, Window: 5 * time.Millisecond}.of(a)
					if !explicit { // as far as a busy machine is out
						limit.Window *= 10
					}
					now := time.Now().Add(time.Hour).UnixMicro()
					if b.Mini != nil {
						b.Mini.SetTime(time.UnixMicro(now))
					}
					const keys, wrong = 9, 4
					states := make([]state, keys)
					for i := range states {
						states[i] = a.newState()
					}
					key := func(i int) string { return fmt.Sprintf("{many %s %v}%d", a, explicit, i) }
					b.Client.Del(t.Context(), key(wrong))
					b.Client.SAdd(t.Context(), key(wrong), "no such key")
					granted := int64(0)
					for round := range b.Rounds(300) {
						args := a.args(limit.rule())
						ttl := args.ttl
						if args.ends != nil {
							ttl = args.ends(now)
						} else if args.atLeast {
							ttl = "3600000"
						}
						argv := []any{limit.Requests, ttl, args.window, 1, ""}
						if explicit {
							now += rand.Int64N(3000)
							argv[4] = now
						}
						var asked []int
						var names []string
						for i := range keys {
							if rand.IntN(3) > 0 {
								asked, names = append(asked, i), append(names, key(i))
								argv = append(argv, 1+rand.IntN(3))
							}
						}
						if len(asked) == 0 {
							continue
						}
						reply, err := b.Client.Eval(t.Context(), script.Source(), names, argv...).Result()
						if err != nil {
							t.Fatalf("round %d: %v", round, err)
						}
						for j, i := range asked {
							part := partOf(t, reply, j, len(asked))
							if text, failed := part.(string); i == wrong {
								if !failed || len(text) < 9 || text[:9] != "WRONGTYPE" {
									t.Fatalf("round %d: of the wrong key %v", round, part)
								}
								continue
							}
							n := int64(argv[5+j].(int))
							l := &remote{engine: &engine{algorithm: a}, limit: limit}
							got, err := l.verdict(roundtrip.Answer{Reply: part, N: n}, 1, nil)
							if err != nil {
								t.Fatalf("round %d, key %d: %v", round, i, err)
							}
							if a == fixed && !explicit {
								// Redis sets an expiry by the time at which the script began.
								s := states[i].(*fixedState)
								if got.mark-s.last > 10 { // another window; by less it is put right
									s.used = 0
								}
								s.last = got.mark
							}
							want := states[i].decide(limit.rule(), demand{1, n, got.now})
							if a == sliding {
								got.mark, want.mark = 0, 0
							}
							if explicit && got.now != now {
								t.Fatalf("round %d: now %d", round, got.now)
							}
							if got != want {
								t.Fatalf("round %d, key %d, %d requests:\n%+v, want\n%+v", round, i, n, got, want)
							}
							if got.granted > n || got.granted < 0 || got.granted < n && got.retry == 0 {
								t.Fatalf("round %d: %+v", round, got)
							}
							granted += got.granted
						}
					}
					if granted < 20 {
						t.Errorf("%d granted", granted)
					}
				})
			}
		}
	})
}

// partOf is the part about the i-th of n keys, as the sender splits a reply.
func partOf(t *testing.T, reply any, i, n int) any {
	t.Helper()
	switch reply := reply.(type) {
	case string:
		size := len(reply) / n
		return reply[i*size : (i+1)*size]
	case []any:
		if len(reply) == n {
			return reply[i]
		}
	}
	t.Fatalf("a reply of type %T", reply)
	return nil
}

// 64 sets of 10,000 entries that do not count any more are not trimmed by one script, which would
// keep Redis from everybody else.
func TestManyLargeSetsDoNotHoldUpRedis(t *testing.T) {
	const most = 6 // of 10,000 entries, which take 0.15 µs each
	server := redistest.Start(t)
	client := server.Client()
	l := must(NewSlidingWindow(client, "large", Limit{10_000, time.Second}, Config{Timeout: 20 * time.Second}))
	takeAll := func() {
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() { must(l.Take(ctx, fmt.Sprint("k", i), 1)) })
		}
		wg.Wait()
	}
	for range 20 {
		takeAll() // the sender has found out that it may ask together
	}
	old := time.Now().Add(-time.Minute).UnixMicro()
	for i := range 64 {
		members := make([]redis.Z, 10_000)
		for j := range members {
			members[j] = redis.Z{Score: float64(old + int64(j)), Member: old + int64(j)}
		}
		if err := client.ZAdd(ctx, RedisKey(l, fmt.Sprint("k", i)), members...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	client.ConfigSet(ctx, "slowlog-log-slower-than", "0")
	client.SlowLogReset(ctx)
	takeAll()
	logs, err := client.SlowLogGet(ctx, 100).Result()
	if err != nil {
		t.Fatal(err)
	}
	largest := 0
	for _, entry := range logs {
		if len(entry.Args) > 2 && (entry.Args[0] == "evalsha" || entry.Args[0] == "eval") {
			keys, _ := strconv.Atoi(entry.Args[2])
			largest = max(largest, keys)
			t.Logf("%d sets: %v", keys, entry.Duration)
		}
	}
	if largest > most || largest == 0 {
		t.Errorf("a script trims %d sets, want at most %d", largest, most)
	}
}

// What a fixed window grants among many keys is what Redis has counted, also where a window ends
// while the script runs: of one request a window, no two are granted within one.
func TestManyFixedWindowsGrantWhatIsCounted(t *testing.T) {
	const window = 5 * time.Millisecond
	l := must(NewFixedWindow(redistest.Start(t).Client(), "edges", Limit{1, window}, Config{Timeout: 10 * time.Second}))
	var mu sync.Mutex
	ends := map[string][]int64{}
	var wg sync.WaitGroup
	until := time.Now().Add(5 * time.Second)
	for g := range 60 {
		wg.Go(func() {
			for i := 0; time.Now().Before(until); i++ {
				key := fmt.Sprint("k", (7*g+i)%60)
				l.denials.forgetAll()
				if res := must(l.Take(ctx, key, 1)); res.Allowed {
					mu.Lock()
					ends[key] = append(ends[key], res.at+res.ResetAfter.Microseconds())
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	granted, tooSoon := 0, 0
	for _, e := range ends {
		slices.Sort(e)
		for i := 1; i < len(e); i++ {
			granted++
			if e[i]-e[i-1] < window.Microseconds() {
				tooSoon++
			}
		}
	}
	t.Logf("%d granted", granted)
	if tooSoon > 0 || granted < 1000 {
		t.Errorf("%d of %d are granted within a window of the one before", tooSoon, granted)
	}
}
