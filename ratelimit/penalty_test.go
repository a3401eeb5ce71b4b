package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// later is after a denial when nothing that comes was under way already.
const later = inFlight + 200*time.Millisecond

// guards are limiters with a Penalty, of one name on several servers, by one clock.
type guards struct {
	t       testing.TB
	servers []Limiter
	us      atomic.Int64
}

// guard returns guards. Of a quota, the limit's requests hold per day. Its clock begins at
// noon.
func guard(t testing.TB, a algorithm, servers int, client redis.UniversalClient, limit Limit, p Penalty) *guards {
	g := &guards{t: t}
	g.us.Store(time.Now().UTC().Truncate(24 * time.Hour).Add(36 * time.Hour).UnixMicro())
	name, cfg := fmt.Sprintf("penalty-%x", rand.Uint64()), Config{Timeout: 10 * time.Second, Penalty: p}
	for range servers {
		var l Limiter
		switch a {
		case sliding:
			l = must(NewSlidingWindow(client, name, limit, cfg))
		case fixed:
			l = must(NewFixedWindow(client, name, limit, cfg))
		case bucket:
			l = must(NewTokenBucket(client, name, limit, cfg))
		case quota:
			l = must(NewQuota(client, name, limit.Requests, Day, time.UTC, cfg))
		}
		SetClock(l, g.us.Load)
		g.servers = append(g.servers, l)
	}
	return g
}

func (g *guards) advance(d time.Duration) { g.us.Add(d.Microseconds()) }

// take takes from a server, by Redis or from memory.
func (g *guards) take(server int) Result {
	g.t.Helper()
	res, err := g.servers[server].Take(ctx, "k", 1)
	if err != nil {
		g.t.Fatal(err)
	}
	return res
}

// ask is take by Redis.
func (g *guards) ask(server int) Result {
	g.t.Helper()
	engineOf(g.servers[server]).denials.forget("k")
	return g.take(server)
}

// provoke uses up the limit and makes n strikes, each of another server in turn. It returns
// the last answer.
func (g *guards) provoke(n int) (res Result) {
	g.t.Helper()
	for res = g.ask(0); res.Allowed; res = g.ask(0) {
	}
	for i := range n {
		g.advance(later)
		if res = g.ask(i % len(g.servers)); res.Allowed {
			g.t.Fatalf("strike %d: %v", i+1, res)
		}
	}
	return res
}

// A ban holds on all servers for as long as it says, then another one is twice as long. It is
// of one key, and ends with Reset.
func TestBansDouble(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		freezeMini(b)
		for _, a := range algorithms {
			t.Run(a.String(), func(t *testing.T) {
				unit := time.Minute
				if a == quota {
					unit = 24 * time.Hour // longer than the rest of a day
				}
				g := guard(t, a, 2, b.Client, Limit{2, 20 * time.Second}, Penalty{Strikes: 3, First: unit, Longest: 3 * unit})
				for _, ban := range []time.Duration{unit, 2 * unit, 3 * unit, 3 * unit} {
					if res := g.provoke(2); res.RetryAfter >= unit {
						t.Fatalf("banned after two strikes: %v", res)
					}
					g.advance(later)
					if res := g.ask(0); res.Allowed || res.RetryAfter != ban {
						t.Fatalf("the third strike: %v, want a ban of %v", res, ban)
					}
					for range 5 { // trying does not prolong it
						g.advance(ban / 10)
						if res := g.ask(1); res.Allowed {
							t.Fatalf("another server, within the ban: %v", res)
						}
					}
					g.advance(ban/2 - time.Microsecond)
					if res := g.ask(1); res.Allowed || res.RetryAfter != time.Microsecond {
						t.Fatalf("another server, at the end of the ban: %v", res)
					}
					if res := must(g.servers[1].Take(ctx, "another", 1)); !res.Allowed && a != quota {
						t.Fatalf("another key is banned: %v", res)
					}
					g.advance(time.Microsecond)
					if res := g.ask(1); !res.Allowed {
						t.Fatalf("after the ban: %v", res)
					}
				}
				if res := g.provoke(3); res.RetryAfter != 3*unit {
					t.Fatalf("no ban to lift: %v", res)
				}
				if err := g.servers[0].(Resetter).Reset(ctx, "k"); err != nil {
					t.Fatal(err)
				}
				if res := g.ask(1); !res.Allowed || res.Remaining != 1 {
					t.Fatalf("after Reset: %v", res)
				}
				if res := g.provoke(3); res.RetryAfter != unit {
					t.Fatalf("the ban after Reset: %v, want %v", res, unit)
				}
			})
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// By Redis's own clock strikes and bans are forgotten a Memory after the last one, and their
// record expires.
func TestBansAreForgotten(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		const ban, memory = time.Minute, time.Hour
		l := must(NewFixedWindow(b.Client, "forgotten", PerMinute(2), Config{
			Timeout: 10 * time.Second, Penalty: Penalty{Strikes: 2, First: ban, Memory: memory},
		}))
		b.Advance(t, 0)
		record := l.recordKey("k")
		strikes := func(n int) (res Result) {
			t.Helper()
			ask := func() Result {
				l.denials.forget("k")
				return must(l.Take(ctx, "k", 1))
			}
			for res = ask(); res.Allowed; res = ask() {
			}
			for range n {
				b.Advance(t, later)
				res = ask()
			}
			return res
		}
		near := func(what string, got, want time.Duration) {
			t.Helper()
			if (got - want).Abs() > 5*time.Second {
				t.Errorf("%s: %v, want about %v", what, got, want)
			}
		}
		near("first ban", strikes(2).RetryAfter, ban)
		near("record of a ban", b.Client.PTTL(ctx, record).Val(), ban+memory)
		b.Advance(t, ban+memory/2)
		near("another ban within the memory", strikes(2).RetryAfter, 2*ban)
		b.Advance(t, 2*ban+memory+time.Second)
		if n := b.Client.Exists(ctx, record).Val(); n != 0 {
			t.Error("the record outlives the memory")
		}
		near("one strike after the memory", strikes(1).RetryAfter, time.Minute-later)
		near("record of a strike", b.Client.PTTL(ctx, record).Val(), time.Minute+memory)
		b.Advance(t, time.Minute+memory+time.Second)
		near("one strike, and another after the memory", strikes(1).RetryAfter, time.Minute-later)
		b.Advance(t, later)
		near("the strike after it", strikes(1).RetryAfter, ban)
		redistest.AssertAllTTL(t, b.Client)
	})
}

// patient returns a penalized limit's answer that bans, if a number of clients who share a
// key, and whose requests are spread over the servers, get one within d although each waits
// for RetryAfter, and up to lag longer.
func patient(g *guards, clients int, d, window, lag time.Duration, r *rand.Rand) (ban Result, banned bool) {
	next := make([]int64, clients) // when each comes next
	for i := range next {
		next[i] = g.us.Load() + r.Int64N(lag.Microseconds()+1)
	}
	for end := g.us.Load() + d.Microseconds(); ; {
		first := 0
		for i, at := range next {
			if at < next[first] {
				first = i
			}
		}
		if next[first] > end {
			return Result{}, false
		}
		g.us.Store(next[first])
		res := g.take(r.IntN(len(g.servers)))
		if res.RetryAfter > window {
			return res, true
		}
		if !res.Allowed {
			next[first] += res.RetryAfter.Microseconds() + r.Int64N(lag.Microseconds()+1)
		}
	}
}

// Who waits for RetryAfter is never banned: neither alone nor among others behind one
// address, through one server or several.
func TestPatienceIsNotPunished(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range []algorithm{sliding, fixed, bucket} {
		for _, test := range []struct {
			clients, servers int
			d, lag           time.Duration
		}{
			{1, 1, time.Hour, 0},
			{1, 3, time.Hour, 20 * time.Millisecond},
			{60, 1, 4 * time.Minute, 0},
			{60, 1, 4 * time.Minute, 20 * time.Millisecond},
			{60, 3, 4 * time.Minute, 20 * time.Millisecond},
		} {
			t.Run(fmt.Sprintf("%v, %d clients, %d servers, up to %v late", a, test.clients, test.servers, test.lag), func(t *testing.T) {
				seed := rand.Uint64()
				if redistest.RaceDetector || testing.Short() {
					test.d /= 10
				}
				g := guard(t, a, test.servers, client, PerSecond(2), Penalty{Strikes: 3})
				start := g.us.Load()
				if res, banned := patient(g, test.clients, test.d, time.Second, test.lag, rand.New(rand.NewPCG(seed, 0))); banned {
					t.Errorf("seed %d: after %v: %v", seed, time.Duration(g.us.Load()-start)*time.Microsecond, res)
				}
			})
		}
	}
}

// page asks n times at once, spread over the servers, and returns how many were allowed and
// the longest RetryAfter.
func (g *guards) page(n int) (allowed int, retry time.Duration) {
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	for i := range n {
		wg.Go(func() {
			res, err := g.servers[i%len(g.servers)].Take(ctx, "k", 1)
			if err != nil {
				g.t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if res.Allowed {
				allowed++
			}
			retry = max(retry, res.RetryAfter)
		})
	}
	wg.Wait()
	return allowed, retry
}

// A page of many parallel requests is no strike. If it is loaded again too early, that is
// one, however many servers its requests come to and whatever they remember.
func TestABurstIsOneStrike(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range []algorithm{sliding, fixed, bucket} {
		for _, servers := range []int{1, 3} {
			t.Run(fmt.Sprintf("%v, %d servers", a, servers), func(t *testing.T) {
				g := guard(t, a, servers, client, Limit{20, 5 * time.Minute}, Penalty{Strikes: 3, First: time.Hour})
				if allowed, retry := g.page(60); allowed != 20 || retry > 5*time.Minute {
					t.Fatalf("the first page: %d allowed, retry after %v", allowed, retry)
				}
				start := g.us.Load()
				for strikes := 1; ; strikes++ {
					for range 3 { // the servers remember, are asked early, forget
						g.advance(600 * time.Millisecond)
						g.page(60)
					}
					_, retry := g.page(60)
					if retry > 5*time.Minute {
						d := time.Duration(g.us.Load()-start) * time.Microsecond
						if d < 3*inFlight {
							t.Errorf("three strikes within %v", d)
						}
						t.Logf("banned after %v", d)
						return
					}
					if strikes > 20 {
						t.Fatal("never banned")
					}
				}
			})
		}
	}
}

// One early page, after the servers have remembered and forgotten the denials of the first,
// is one strike of two.
func TestServersDoNotCountOneStrikeEach(t *testing.T) {
	g := guard(t, fixed, 5, redistest.Shared(t).Client(), PerMinute(20), Penalty{Strikes: 2, First: time.Hour})
	g.page(60)
	g.advance(later) // remembered: each server sees that the key comes early
	g.page(60)
	g.advance(maxRemembered - later + time.Millisecond) // forgotten: each tells Redis
	if _, retry := g.page(60); retry > time.Minute {
		t.Fatalf("banned for %v after one early page", retry)
	}
	g.advance(maxRemembered + later)
	if _, retry := g.page(60); retry <= time.Minute {
		t.Errorf("two early pages: retry after %v, want a ban", retry)
	}
}

// A client that does not wait is banned in the end, although a server answers most of its
// requests from memory.
func TestHammeringIsBanned(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		for _, limit := range []Limit{PerMinute(3), {3, 4 * time.Second}, PerSecond(2)} {
			for _, servers := range []int{1, 3} {
				t.Run(fmt.Sprintf("%v, %v, %d servers", a, limit, servers), func(t *testing.T) {
					g := guard(t, a, servers, client, limit, Penalty{Strikes: 3, First: 100 * time.Hour})
					start, remembered := g.us.Load(), 0
					for i := 0; ; i++ {
						d := time.Duration(g.us.Load()-start) * time.Microsecond
						res := g.take(i % servers)
						if res.RetryAfter >= 99*time.Hour {
							t.Logf("banned after %v", d)
							if d < 3*inFlight/2 {
								t.Error("that is too early for three strikes")
							}
							break
						}
						if res.Source == FromCache {
							remembered++
						}
						if d > time.Minute {
							t.Fatal("never banned")
						}
						g.advance(20 * time.Millisecond)
					}
					if remembered == 0 {
						t.Error("nothing was answered from memory")
					}
				})
			}
		}
	}
}

// A ban is of the limit that it came from, not of the key.
func TestBansHoldUnderTheirLimit(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			g := guard(t, a, 2, client, Limit{2, 10 * time.Minute}, Penalty{Strikes: 3, First: 100 * time.Hour})
			raised := g.servers[1].(Named).Limit()
			raised.Requests = 5
			if res := g.provoke(3); res.RetryAfter != 100*time.Hour {
				t.Fatalf("no ban: %v", res)
			}
			g.servers = append(g.servers, with(t, g.servers[1], raised))
			if res := g.ask(1); res.RetryAfter != 100*time.Hour {
				t.Fatalf("no ban on another server: %v", res)
			}
			if res := g.ask(2); !res.Allowed && (a != bucket || res.RetryAfter > 10*time.Minute) { // its bucket is as empty
				t.Errorf("under a raised limit: %v", res)
			}
			for range 10 { // denials there are no strikes here, and take nothing away
				g.advance(later)
				if res := g.ask(2); res.RetryAfter == 100*time.Hour {
					t.Fatalf("banned under the raised limit: %v", res)
				}
			}
			if res := g.ask(1); res.RetryAfter < 99*time.Hour {
				t.Errorf("the ban under its own limit is gone: %v", res)
			}
		})
	}
}

// with is With of any kind.
func with(t testing.TB, l Limiter, limit Limit) Limiter {
	t.Helper()
	switch l := l.(type) {
	case *SlidingWindow:
		return must(l.With(limit))
	case *FixedWindow:
		return must(l.With(limit))
	case *TokenBucket:
		return must(l.With(limit))
	case *Quota:
		return must(l.With(limit))
	case *Local:
		return must(l.With(limit))
	}
	t.Fatalf("With of a %T", l)
	return nil
}

// A clock that steps back neither prolongs a ban nor makes one.
func TestBansWhenTheClockStepsBack(t *testing.T) {
	client := redistest.Shared(t).Client()
	p := Penalty{Strikes: 3, First: time.Minute, Longest: 24 * time.Hour}
	for _, a := range []algorithm{sliding, fixed, bucket} {
		t.Run(a.String(), func(t *testing.T) {
			g := guard(t, a, 2, client, Limit{2, 20 * time.Second}, p)
			g.provoke(2)
			g.advance(-time.Hour)
			if res := g.ask(1); res.RetryAfter > 20*time.Second {
				t.Errorf("two strikes, then an hour back: %v", res)
			}
			g = guard(t, a, 2, client, Limit{2, 20 * time.Second}, p)
			g.provoke(3)
			g.advance(-time.Hour)
			if res := g.ask(1); res.Allowed || res.RetryAfter > time.Minute {
				t.Errorf("a ban of a minute, then an hour back: %v", res)
			}
		})
	}
}

// A look is no strike, and nor is a cost that the limit never allows.
func TestWhatIsNoStrike(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		for _, cost := range []int{0, 3} {
			t.Run(fmt.Sprintf("%v, cost %d", a, cost), func(t *testing.T) {
				g := guard(t, a, 2, client, PerHour(2), Penalty{Strikes: 1, First: 100 * time.Hour})
				g.provoke(0)
				for i := range 20 {
					g.advance(later)
					if i%2 == 0 {
						engineOf(g.servers[0]).denials.forget("k")
					}
					res := must(g.servers[0].Take(ctx, "k", cost))
					if res.Allowed || res.RetryAfter > 24*time.Hour && res.RetryAfter != Never {
						t.Fatalf("%d: %v", i, res)
					}
				}
			})
		}
	}
}

// A limiter with a Penalty inside All bans there, too.
func TestPenaltyInsideAll(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, a := range algorithms {
		t.Run(a.String(), func(t *testing.T) {
			g := guard(t, a, 1, client, Limit{2, time.Minute}, Penalty{Strikes: 2, First: 100 * time.Hour})
			all := must(All(g.servers[0], newLimiter(t, fixed, client, fmt.Sprintf("beside-%x", rand.Uint64()), PerDay(5))))
			SetClock(all, g.us.Load)
			g.servers = []Limiter{all}
			if res := g.take(0); !res.Allowed || res.Remaining != 1 {
				t.Errorf("%v", res)
			}
			for i := range 10 {
				if res := g.take(0); res.RetryAfter == 100*time.Hour {
					if i < 3 {
						t.Errorf("banned by request %d", i)
					}
					return
				}
				g.advance(maxRemembered)
			}
			t.Error("never banned")
		})
	}
}

func TestPenaltyIsChecked(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for _, test := range []struct {
		name string
		p    Penalty
		want string // "": accepted
	}{
		{"none", Penalty{}, ""},
		{"defaults", Penalty{Strikes: 1}, ""},
		{"long", Penalty{Strikes: 3, First: 48 * time.Hour}, ""},
		{"no strikes", Penalty{First: time.Hour}, "Penalty.Strikes 0"},
		{"negative strikes", Penalty{Strikes: -1}, "Penalty.Strikes -1"},
		{"too short", Penalty{Strikes: 1, First: time.Microsecond}, "Penalty.First 1µs"},
		{"too long", Penalty{Strikes: 1, Memory: 100 * 365 * 24 * time.Hour}, "Penalty.Memory 876000h"},
		{"negative", Penalty{Strikes: 1, Longest: -time.Hour}, "Penalty.Longest -1h"},
		{"the longest is shorter than the first", Penalty{Strikes: 1, First: time.Hour, Longest: time.Minute}, "Penalty.Longest 1m0s is shorter"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewFixedWindow(client, "p", PerHour(1), Config{Penalty: test.p})
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// freezeMini stops miniredis's clock: while it runs, its TTLs do not.
func freezeMini(b redistest.Backend) {
	if b.Mini != nil {
		b.Mini.SetTime(time.Now())
	}
}
