package profile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// Many Updates of one ID at once do not keep Redis from others: each costs it a little more than the
// one before, and 256 is the most.
func TestManyUpdatesOfOneID(t *testing.T) {
	server := redistest.Start(t)
	var db database
	c := newCache(t, server.Client(), db.load, Config{LoadTimeout: time.Minute})
	var all sync.WaitGroup
	var done, busy atomic.Int64
	let := make(chan struct{})
	for range 400 {
		all.Go(func() {
			_, err := c.Update(t.Context(), "ann", func(context.Context) (user, error) { <-let; return user{Name: "x"}, nil })
			switch {
			case err == nil:
				done.Add(1)
			case errors.Is(err, ErrUnavailable) && strings.Contains(err.Error(), "too many"):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	eventually(t, "the others are refused", func() bool { return busy.Load() == 144 })
	close(let)
	all.Wait()
	if done.Load() != 256 {
		t.Errorf("%d done, %d refused", done.Load(), busy.Load())
	}
	if n, took := scriptsRun(t, server); took > 2*time.Second { // 400 times 256 marks that were copied each time took 4 s
		t.Errorf("%d scripts took %v", n, took)
	}
	db.set("ann", "new")
	wants(t, c, "ann", "new")
}

// A script whose reply is lost is taken back: the ID is not held up for a lease.
func TestALostReplyHoldsUpNobody(t *testing.T) {
	for name, lose := range map[string]func(context.Context, *Cache[user]) error{
		"Update": func(ctx context.Context, c *Cache[user]) error {
			_, err := c.Update(ctx, "ann", func(context.Context) (user, error) { return user{}, nil })
			return err
		},
		"Get": func(ctx context.Context, c *Cache[user]) error { _, err := c.Get(ctx, "ann"); return err },
	} {
		t.Run(name, func(t *testing.T) {
			var db database
			db.set("ann", "ann")
			far, near, p := proxied(t, &db, Config{Timeout: 300 * time.Millisecond, LoadTimeout: time.Minute, MaxLoads: -1})
			_ = far.Forget(t.Context(), "warm") // connected, and its scripts are known
			_, _ = far.Get(t.Context(), "warm")
			_, _ = far.Update(t.Context(), "warm", func(context.Context) (user, error) { return user{}, nil })
			p.LoseReply("evalsha", "eval")
			if err := lose(t.Context(), far); !errors.Is(err, ErrUnavailable) {
				t.Fatal(err)
			}
			p.Heal()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if u, err := near.Get(ctx, "ann"); err != nil || u.Name != "ann" {
				t.Errorf("%v, %v", u, err)
			}
		})
	}
}

// A caller who hangs up while Redis is asked leaves no lease behind.
func TestCallersWhoHangUpLeaveNoLease(t *testing.T) {
	server := redistest.Start(t)
	p := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1})
	defer client.Close()
	var db database
	cfg := Config{Timeout: 500 * time.Millisecond, LoadTimeout: time.Minute}
	c, other := newCache(t, client, db.load, cfg), newCache(t, server.Client(), db.load, cfg)
	db.set("w", "w")
	wants(t, c, "w", "w")
	p.Delay(20*time.Millisecond, "evalsha")
	ctx, hangUp := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range 50 {
		db.set(fmt.Sprint(i), fmt.Sprint(i))
		all.Go(func() { _, _ = c.Get(ctx, fmt.Sprint(i)) })
	}
	time.Sleep(30 * time.Millisecond)
	hangUp()
	all.Wait()
	p.Heal()
	for i := range 50 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if _, err := other.Get(ctx, fmt.Sprint(i)); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// Where it is not remembered that there is nothing of an ID, those who wait for a load hear it with
// the one who loads, and a refresh that finds nothing removes the value.
func TestNothingIsSharedAndNotRemembered(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		db := database{slow: 50 * time.Millisecond}
		c := newCache(t, b.Client, db.load, Config{TTL: 100 * time.Second, Refresh: 50 * time.Second, NotFoundTTL: -1})
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				if _, err := c.Get(t.Context(), "nobody"); err != ErrNotFound {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if n := db.loads.Load(); n > 50 {
			t.Errorf("%d loads one after the other", n)
		}
		db.set("ann", "ann")
		b.Advance(t, 0)
		wants(t, c, "ann", "ann")
		db.mu.Lock()
		delete(db.rows, "ann")
		db.mu.Unlock()
		advance(t, b, 60*time.Second, c)
		_, _ = c.Get(t.Context(), "ann") // begins the refresh
		eventually(t, "it is gone", func() bool { _, err := c.Get(t.Context(), "ann"); return err == ErrNotFound })
	})
}

// picky is a value whose MarshalJSON panics.
type picky struct{ N int }

func (p picky) MarshalJSON() ([]byte, error) {
	if p.N == 2 {
		panic("no JSON of 2")
	}
	return fmt.Appendf(nil, "%d", p.N), nil
}
func (p *picky) UnmarshalJSON(b []byte) error { _, err := fmt.Sscan(string(b), &p.N); return err }

// A MarshalJSON that panics after write leaves nothing old behind.
func TestAMarshalJSONThatPanics(t *testing.T) {
	server := redistest.Start(t)
	var row atomic.Int64
	row.Store(1)
	c := newCache(t, server.Client(), func(context.Context, string) (picky, error) { return picky{int(row.Load())}, nil }, Config{LoadTimeout: time.Minute})
	if v, err := c.Get(t.Context(), "a"); err != nil || v.N != 1 {
		t.Fatal(v, err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		_, _ = c.Update(t.Context(), "a", func(context.Context) (picky, error) { row.Store(2); return picky{2}, nil })
	}()
	row.Store(3)
	if v, err := c.Get(t.Context(), "a"); err != nil || v.N != 3 {
		t.Errorf("%v, %v", v, err)
	}
}

// An error of write that comes from another cache does not say that write was not called.
func TestErrorsOfAnotherCache(t *testing.T) {
	server := redistest.Start(t)
	var db database
	c := newCache(t, server.Client(), db.load, Config{})
	for _, from := range []error{fmt.Errorf("other: %w", ErrUnavailable), fmt.Errorf("other: %w", ErrNotTold)} {
		_, err := c.Update(t.Context(), "a", func(context.Context) (user, error) { return user{}, from })
		if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotTold) || !strings.Contains(err.Error(), from.Error()) {
			t.Error(err)
		}
	}
}

// What is cached is served where Redis writes nothing more, also when a refresh is due.
func TestARefreshThatCannotBeLeased(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	var db database
	c := newCache(t, client, db.load, Config{TTL: 100 * time.Second, Refresh: 50 * time.Second})
	db.set("ann", "old")
	wants(t, c, "ann", "old")
	server.Advance(60 * time.Second)
	db.set("ann", "new")
	for set, back := range map[[2]string]string{{"maxmemory", "1"}: "0", {"min-replicas-to-write", "1"}: "0"} {
		if err := client.ConfigSet(t.Context(), set[0], set[1]).Err(); err != nil {
			t.Fatal(err)
		}
		before := c.Stats()
		c.core.asked.Store(0) // the script says that the refresh is due
		wants(t, c, "ann", "old")
		if s := c.Stats(); s.Hits != before.Hits+1 || s.Direct != before.Direct {
			t.Errorf("%v: %+v", set, s)
		}
		client.ConfigSet(t.Context(), set[0], back)
	}
}

// A failed write of which Redis was not told is counted.
func TestAFailedWriteThatIsNotTold(t *testing.T) {
	var db database
	db.set("ann", "old")
	far, _, p := proxied(t, &db, Config{Timeout: 2 * time.Second, LoadTimeout: time.Second})
	_, err := far.Update(t.Context(), "ann", func(context.Context) (user, error) {
		p.Cut()
		return user{}, ErrNotFound
	})
	if !errors.Is(err, ErrNotFound) || far.Stats().NotTold != 1 {
		t.Errorf("%v, %+v", err, far.Stats())
	}
}

// Nothing is kept under a lease that is over, and no value outlives a clock that is set back by much.
func TestTimesThatAreOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "old")
		c := newCache(t, b.Client, db.load, Config{TTL: time.Minute, LoadTimeout: time.Second})
		b.Advance(t, 0)
		at := c.core.place("ann")
		r, err := c.core.look(t.Context(), at, "")
		if err != nil || r.what != "load" {
			t.Fatal(r.what, err)
		}
		b.Client.HSet(t.Context(), at.keys[0], "other", "x")
		b.Client.Persist(t.Context(), at.keys[0]) // as if another release kept it
		b.Advance(t, c.core.lease+time.Second)
		value, _ := c.core.pack(at, []byte(`{"name":"late","roles":["r-late"]}`))
		kept, err := c.core.redis.Run(t.Context(), keepScript, at.keys, append([]any{c.core.form, r.token, value}, c.core.life(time.Minute)...)...)
		if err != nil || kept != int64(0) {
			t.Errorf("kept under a lease that was over: %v, %v", kept, err)
		}
		b.Client.Del(t.Context(), at.keys[0])
		wants(t, c, "ann", "old")
		db.set("ann", "new")
		advance(t, b, -time.Hour, c)
		wants(t, c, "ann", "new")
	})
}

// A key that is something else's stands in the way of no change.
func TestAKeyOfAnotherType(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "old")
		c := newCache(t, b.Client, db.load, Config{})
		for name, change := range map[string]func() error{
			"Forget": func() error { return c.Forget(t.Context(), "ann") },
			"Update": func() error { return db.update(c, "ann", "new") },
		} {
			b.Client.Set(t.Context(), c.core.place("ann").keys[0], "x", time.Minute)
			if err := change(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		wants(t, c, "ann", "new")
	})
}

// Values that JSON cannot bring back are an error that says so.
func TestValuesThatCannotBeReadBack(t *testing.T) {
	type shape struct{ S fmt.Stringer }
	server := redistest.Start(t)
	c := newCache(t, server.Client(), func(context.Context, string) (shape, error) { return shape{time.Second}, nil }, Config{})
	if _, err := c.Get(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "cannot be read again") {
		t.Error(err)
	}
	if _, err := c.Update(t.Context(), "a", func(context.Context) (shape, error) { return shape{time.Second}, nil }); err == nil || !strings.Contains(err.Error(), "written: profile: the value's JSON cannot be read again") {
		t.Error(err)
	}
}
