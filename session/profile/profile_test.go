package profile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.MainStrict(m, "../../scripts/README.md") }

type user struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles"`
}

// database is what caches stand before. Its zero value is empty.
type database struct {
	mu    sync.Mutex
	rows  map[string]user
	loads atomic.Int64
	under atomic.Int64
	most  atomic.Int64 // loads at the same time
	slow  time.Duration
	fail  atomic.Pointer[error]
}

func (d *database) set(id, name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.rows == nil {
		d.rows = make(map[string]user)
	}
	d.rows[id] = user{Name: name, Roles: []string{"r-" + name}}
}

func (d *database) load(ctx context.Context, id string) (user, error) {
	d.loads.Add(1)
	n := d.under.Add(1)
	defer d.under.Add(-1)
	for most := d.most.Load(); n > most && !d.most.CompareAndSwap(most, n); most = d.most.Load() {
	}
	if err := d.fail.Load(); err != nil {
		return user{}, *err
	}
	d.mu.Lock()
	u, ok := d.rows[id]
	d.mu.Unlock()
	select {
	case <-time.After(d.slow):
	case <-ctx.Done():
		return user{}, ctx.Err()
	}
	if !ok {
		return user{}, fmt.Errorf("no row: %w", ErrNotFound)
	}
	return u, nil
}

// update is an Update that gives a user a name.
func (d *database) update(c *Cache[user], id, name string) error {
	_, err := c.Update(context.Background(), id, func(context.Context) (user, error) {
		d.set(id, name)
		return user{Name: name, Roles: []string{"r-" + name}}, nil
	})
	return err
}

// advance moves Redis's time, and has caches learn of it.
func advance(t *testing.T, b redistest.Backend, d time.Duration, caches ...*Cache[user]) {
	t.Helper()
	b.Advance(t, d)
	for _, c := range caches {
		c.core.asked.Store(0)
	}
}

func newCache[T any](t testing.TB, client redis.UniversalClient, load func(context.Context, string) (T, error), cfg Config) *Cache[T] {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second // the machine may be busy
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c, err := New(client, "user", load, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wants checks what a Get returns.
func wants(t *testing.T, c *Cache[user], id, name string) {
	t.Helper()
	u, err := c.Get(context.Background(), id)
	if err != nil || u.Name != name || len(u.Roles) != 1 || u.Roles[0] != "r-"+name {
		t.Errorf("Get: %+v, %v, want %q", u, err, name)
	}
}

// eventually waits until what holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

func TestAValueIsLoadedOnceAndSeenByAllServers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		one, two := newCache(t, b.Client, db.load, Config{}), newCache(t, b.NewClient(t), db.load, Config{})
		for i := range 50 {
			id := fmt.Sprint("id", i)
			db.set(id, "ann"+id)
			for range 3 {
				wants(t, one, id, "ann"+id)
				wants(t, two, id, "ann"+id)
			}
		}
		if n := db.loads.Load(); n != 50 {
			t.Errorf("%d loads of 50 values", n)
		}
		if s := one.Stats(); s != (Stats{Hits: 100, Loaded: 50, Loads: 50}) {
			t.Errorf("%+v", s)
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// P1: of four servers with 1,000 Gets at once, one loads; and again when the value has ended.
func TestOneLoadPerFleetAndExpiry(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		db := database{slow: 50 * time.Millisecond}
		db.set("ann", "ann")
		var fleet []*Cache[user]
		for range 4 {
			fleet = append(fleet, newCache(t, b.NewClient(t), db.load, Config{TTL: time.Minute, LoadTimeout: 20 * time.Second}))
		}
		b.Advance(t, 0)
		for round := range 2 {
			var wg sync.WaitGroup
			for i := range 1000 {
				wg.Go(func() { wants(t, fleet[i%4], "ann", "ann") })
			}
			wg.Wait()
			if n := db.loads.Load(); n != int64(round+1) {
				t.Fatalf("%d loads in %d rounds", n, round+1)
			}
			b.Advance(t, time.Minute)
		}
	})
}

// A value that is read near its end is loaded in the background, once; one that is not read is not.
func TestRefreshAheadOfTheEnd(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		db := database{slow: 20 * time.Millisecond}
		db.set("ann", "old")
		var fleet []*Cache[user]
		for range 4 {
			fleet = append(fleet, newCache(t, b.NewClient(t), db.load, Config{TTL: 100 * time.Second, Refresh: 50 * time.Second}))
		}
		b.Advance(t, 0)
		wants(t, fleet[0], "ann", "old")
		db.set("ann", "new")
		advance(t, b, 35*time.Second, fleet...)
		wants(t, fleet[0], "ann", "old")
		if n := db.loads.Load(); n != 1 {
			t.Fatalf("%d loads before a refresh is due", n)
		}
		advance(t, b, 20*time.Second, fleet...) // 55 of 90 to 100
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if _, err := fleet[i%4].Get(t.Context(), "ann"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		eventually(t, "the refreshed value", func() bool { u, _ := fleet[3].Get(t.Context(), "ann"); return u.Name == "new" })
		if n := db.loads.Load(); n != 2 {
			t.Errorf("%d loads, the first and one refresh are right", n)
		}
		// A refresh that fails leaves the value, and is not repeated for the time of a lease.
		bad := errors.New("away")
		db.fail.Store(&bad)
		advance(t, b, 55*time.Second, fleet...)
		for range 50 {
			wants(t, fleet[1], "ann", "new")
		}
		eventually(t, "a refresh", func() bool { return db.loads.Load() == 3 && db.under.Load() == 0 })
		wants(t, fleet[2], "ann", "new")
		if n := db.loads.Load(); n != 3 {
			t.Errorf("%d loads: a refresh that fails is tried again at once", n)
		}
		b.Advance(t, 50*time.Second)
		if _, err := fleet[1].Get(t.Context(), "ann"); !errors.Is(err, bad) {
			t.Errorf("past its end: %v", err)
		}
	})
}

// A refresh that dies does not lengthen the life of what it should have refreshed.
func TestARefreshThatDiesLengthensNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "old")
		c := newCache(t, b.Client, db.load, Config{TTL: 10 * time.Second, Refresh: 8 * time.Second, LoadTimeout: time.Minute})
		b.Advance(t, 0)
		wants(t, c, "ann", "old")
		b.Advance(t, 2*time.Second)
		at := c.core.place("ann")
		for _, want := range []string{"refresh", "hit", "held"} {
			if r, err := c.core.look(t.Context(), at, ""); err != nil || r.what != want {
				t.Fatalf("%s, want %s: %v", r.what, want, err)
			}
			b.Advance(t, 5*time.Second)
		}
		db.set("ann", "new")
		b.Advance(t, c.core.lease)
		wants(t, c, "ann", "new")
	})
}

// What ends at the same time when loaded at the same time would be a stampede of its own.
func TestTTLsDiffer(t *testing.T) {
	server := redistest.Start(t)
	var db database
	c := newCache(t, server.Client(), db.load, Config{TTL: 100 * time.Second})
	lowest, highest := 200*time.Second, time.Duration(0)
	for i := range 100 {
		id := fmt.Sprint(i)
		db.set(id, "x")
		wants(t, c, id, "x")
		ttl := server.Client().PTTL(t.Context(), c.core.place(id).keys[0]).Val()
		lowest, highest = min(lowest, ttl), max(highest, ttl)
	}
	if lowest < 85*time.Second || highest > 100*time.Second || highest-lowest < 5*time.Second {
		t.Errorf("from %v to %v", lowest, highest)
	}
}

func TestNotFoundIsRememberedShortly(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		c := newCache(t, b.Client, db.load, Config{NotFoundTTL: 10 * time.Second})
		b.Advance(t, 0)
		for range 5 {
			if u, err := c.Get(t.Context(), "ann"); err != ErrNotFound || u.Name != "" {
				t.Errorf("%+v, %v", u, err)
			}
		}
		if n := db.loads.Load(); n != 1 {
			t.Errorf("%d loads", n)
		}
		db.set("ann", "ann")
		b.Advance(t, 10*time.Second)
		wants(t, c, "ann", "ann")

		never := newCache(t, b.Client, db.load, Config{NotFoundTTL: -1})
		db.loads.Store(0)
		for range 5 {
			if _, err := never.Get(t.Context(), "bob"); err != ErrNotFound {
				t.Error(err)
			}
		}
		if n := db.loads.Load(); n != 5 {
			t.Errorf("%d loads of 5, where nothing is remembered", n)
		}
		// An Update makes what was not found found.
		if _, err := c.Get(t.Context(), "carl"); err != ErrNotFound {
			t.Error(err)
		}
		if err := db.update(c, "carl", "carl"); err != nil {
			t.Error(err)
		}
		wants(t, c, "carl", "carl")
		redistest.AssertAllTTL(t, b.Client)
	})
}

// Errors and panics of the loader reach those who ask, and nothing is remembered.
func TestWhatTheLoaderDoesWrong(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var loads atomic.Int64
		var do func() (user, error)
		c := newCache(t, b.Client, func(context.Context, string) (user, error) { loads.Add(1); return do() }, Config{LoadTimeout: 20 * time.Second})
		bad := errors.New("no connection")
		for name, tc := range map[string]struct {
			do   func() (user, error)
			want string
		}{
			"an error": {func() (user, error) { return user{}, bad }, "no connection"},
			"a panic":  {func() (user, error) { panic("nil map") }, "panicked: nil map"},
			"Goexit":   {func() (user, error) { (&testing.T{}).SkipNow(); return user{}, nil }, "ended its goroutine"},
		} {
			do = tc.do
			loads.Store(0)
			for range 3 {
				start := time.Now()
				_, err := c.Get(t.Context(), name)
				if err == nil || !strings.Contains(err.Error(), tc.want) || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotFound) {
					t.Errorf("%s: %v", name, err)
				}
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("%s: the next waited for %v: the lease was not given back", name, took)
				}
			}
			if n := loads.Load(); n != 3 {
				t.Errorf("%s: %d loads", name, n)
			}
			do = func() (user, error) { return user{"ann", []string{"r-ann"}}, nil }
			wants(t, c, name, "ann")
		}
		do = func() (user, error) { return user{}, bad }
		if _, err := c.Get(t.Context(), "ann"); err != bad {
			t.Errorf("the loader's error is %v", err)
		}
	})
}

// Many who wait for a load that fails do not ask one after the other.
func TestAnErrorIsSharedByThoseWhoWait(t *testing.T) {
	server := redistest.Start(t)
	bad := errors.New("bad")
	var loads atomic.Int64
	c := newCache(t, server.Client(), func(context.Context, string) (user, error) {
		loads.Add(1)
		time.Sleep(50 * time.Millisecond)
		return user{}, bad
	}, Config{})
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			if _, err := c.Get(t.Context(), "ann"); err != bad {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := loads.Load(); n > 100 {
		t.Errorf("%d loads", n)
	}
}

// A loader that hangs holds nobody beyond LoadTimeout and twice Timeout, here or elsewhere, and its
// lease is free again.
func TestALoaderThatHangsHoldsNobody(t *testing.T) {
	server := redistest.Start(t)
	cfg := Config{Timeout: 500 * time.Millisecond, LoadTimeout: 300 * time.Millisecond}
	hang := make(chan struct{})
	defer close(hang)
	bad := newCache(t, server.Client(), func(context.Context, string) (user, error) { <-hang; return user{}, nil }, cfg)
	var db database
	db.set("ann", "ann")
	good := newCache(t, server.Client(), db.load, cfg)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			start := time.Now()
			_, err := bad.Get(t.Context(), "ann")
			if took := time.Since(start); took > 3*time.Second { // one may be told what the other server loads
				t.Errorf("%v after %v", err, took)
			}
		})
	}
	eventually(t, "a load", func() bool { return bad.Stats().Loads > 0 })
	start := time.Now()
	u, err := good.Get(t.Context(), "ann")
	if took := time.Since(start); took > 3*time.Second || err == nil && u.Name != "ann" {
		t.Errorf("elsewhere: %+v, %v after %v", u, err, took)
	}
	wg.Wait()
	wants(t, good, "ann", "ann")
}

// The process of a loader dies: its lease ends by itself.
func TestALoaderThatDiesFreesItsLease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "ann")
		c := newCache(t, b.Client, db.load, Config{})
		b.Advance(t, 0)
		dead := c.core.place("ann")
		if r, err := c.core.look(t.Context(), dead, ""); err != nil || r.what != "load" {
			t.Fatal(r, err)
		}
		if r, err := c.core.look(t.Context(), dead, ""); err != nil || r.what != "held" || r.left <= 0 || r.left > c.core.lease {
			t.Fatal(r, err)
		}
		b.Advance(t, c.core.lease)
		wants(t, c, "ann", "ann")
		redistest.AssertAllTTL(t, b.Client)
	})
}

// A Get whose caller has gone ends, and its load goes on for the others.
func TestACallerThatGivesUpTakesNoLoadAlong(t *testing.T) {
	server := redistest.Start(t)
	db := database{slow: 300 * time.Millisecond}
	db.set("ann", "ann")
	c := newCache(t, server.Client(), db.load, Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, "ann"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	wants(t, c, "ann", "ann")
	if n := db.loads.Load(); n != 1 {
		t.Errorf("%d loads", n)
	}
	if _, err := c.Get(ctx, "ann"); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestValuesOfAnyKind(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		large := strings.Repeat("x", 1<<20)
		same(t, b, "large", large)
		same(t, b, "nil pointer", (*user)(nil))
		same(t, b, "nil map", map[string]int(nil))
		same(t, b, "nothing", struct{}{})
		same(t, b, "time", time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
		same(t, b, "zero", 0)
		same(t, b, "bytes", []byte{0, 255})
		same(t, b, "any", any(map[string]any{"a": "b"}))
		redistest.AssertAllTTL(t, b.Client)
	})
}

func same[T any](t *testing.T, b redistest.Backend, name string, v T) {
	t.Helper()
	for _, secrets := range [][][]byte{nil, {[]byte(strings.Repeat("s", 32))}} {
		loads := 0
		c, err := New(b.Client, "v", func(context.Context, string) (T, error) { loads++; return v, nil }, Config{Secrets: secrets, Timeout: 10 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if got, err := c.Get(t.Context(), name); err != nil || !reflect.DeepEqual(got, v) {
				t.Errorf("%s: %.100v, %v", name, got, err)
			}
		}
		if loads != 1 {
			t.Errorf("%s: %d loads", name, loads)
		}
		if got, err := c.Update(t.Context(), name, func(context.Context) (T, error) { return v, nil }); err != nil || !reflect.DeepEqual(got, v) {
			t.Errorf("%s: Update: %.100v, %v", name, got, err)
		}
		if got, err := c.Get(t.Context(), name); err != nil || !reflect.DeepEqual(got, v) || loads != 1 {
			t.Errorf("%s after Update: %.100v, %v, %d loads", name, got, err, loads)
		}
		if err := c.Forget(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func TestIDsOfAnyBytes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		c := newCache(t, b.Client, func(_ context.Context, id string) (string, error) { return fmt.Sprintf("of %q", id), nil }, Config{})
		for _, id := range []string{"a", "A", "a ", "{a}", "a:b", "a}b{", "\x00", "\xff\xfe", "*", "\r\n", strings.Repeat("x", 1<<16), "profile"} {
			for range 2 {
				if got, err := c.Get(t.Context(), id); err != nil || got != fmt.Sprintf("of %q", id) {
					t.Errorf("%.20q: %.20q, %v", id, got, err)
				}
			}
		}
		if s := c.Stats(); s.Loads != 12 || s.Hits != 12 {
			t.Errorf("%+v", s)
		}
		if _, err := c.Get(t.Context(), ""); err != ErrNoID {
			t.Error(err)
		}
		if _, err := c.Update(t.Context(), "", nil); err != ErrNoID {
			t.Error(err)
		}
		if err := c.Forget(t.Context(), ""); err != ErrNoID {
			t.Error(err)
		}
	})
}

// What has no JSON is an error each time, and holds nobody up.
func TestValuesWithoutJSON(t *testing.T) {
	server := redistest.Start(t)
	c := newCache(t, server.Client(), func(context.Context, string) (float64, error) { return math.NaN(), nil }, Config{})
	for range 2 {
		if _, err := c.Get(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "cannot be encoded") {
			t.Error(err)
		}
	}
	v, err := c.Update(t.Context(), "x", func(context.Context) (float64, error) { return math.Inf(1), nil })
	if err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotTold) || !math.IsInf(v, 1) {
		t.Errorf("%v, %v", v, err)
	}
}

// No caller can change what another one gets.
func TestEachCallerHasAValueOfItsOwn(t *testing.T) {
	server := redistest.Start(t)
	db := database{slow: 20 * time.Millisecond}
	db.set("ann", "ann")
	c := newCache(t, server.Client(), db.load, Config{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			u, err := c.Get(t.Context(), "ann")
			if err != nil || u.Roles[0] != "r-ann" {
				t.Error(u, err)
			}
			u.Roles[0] = "admin"
		})
	}
	wg.Wait()
	wants(t, c, "ann", "ann")
}

func TestConfigNamesAllThatIsWrong(t *testing.T) {
	_, err := New[user](nil, "a:b", nil, Config{
		TTL: -1, Refresh: time.Microsecond, NotFoundTTL: 500 * 24 * time.Hour, Timeout: -1, LoadTimeout: -1,
		Prefix: "{", Secrets: [][]byte{{1}}, KeySecret: []byte("short"),
	})
	for _, want := range []string{"client", "load is nil", "name", "TTL", "Refresh", "NotFoundTTL", "Timeout", "LoadTimeout", "Prefix", "Secrets", "KeySecret"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named: %v", want, err)
		}
	}
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	var db database
	if _, err := New(client, "user", db.load, Config{TTL: time.Second, Refresh: time.Minute, NotFoundTTL: time.Minute}); err == nil ||
		!strings.Contains(err.Error(), "Refresh 1m0s is above four fifths of TTL") || !strings.Contains(err.Error(), "NotFoundTTL 1m0s is above TTL") {
		t.Error(err)
	}
	if _, err := New(client, "user", db.load, Config{}); err != nil {
		t.Error(err)
	}
}
