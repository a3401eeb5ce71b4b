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

func TestUpdateForgetAndForgetAllAreSeenAtOnceEverywhere(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		one, two := newCache(t, b.Client, db.load, Config{}), newCache(t, b.NewClient(t), db.load, Config{})
		for i := range 30 {
			for _, id := range []string{"ann", "bob"} {
				name := fmt.Sprint(id, i)
				loads := db.loads.Load()
				switch i % 3 {
				case 0:
					if err := db.update(one, id, name); err != nil {
						t.Fatal(err)
					}
				case 1:
					db.set(id, name)
					if err := one.Forget(t.Context(), id); err != nil {
						t.Fatal(err)
					}
				case 2:
					db.set(id, name)
					if err := one.ForgetAll(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				wants(t, two, id, name)
				wants(t, one, id, name)
				if n := db.loads.Load() - loads; n != int64(min(1, i%3)) {
					t.Errorf("%d loads", n)
				}
			}
		}
		if n := one.Stats().Updates; n != 20 {
			t.Errorf("%d updates", n)
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// A load that began before a change is not stored after it, and its own Get returns what is new.
func TestALoadThatAChangeOvertakesIsNotStored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		for name, change := range map[string]func(c *Cache[user], id string) error{
			"Update":    func(c *Cache[user], id string) error { return db.update(c, id, "new") },
			"Forget":    func(c *Cache[user], id string) error { db.set(id, "new"); return c.Forget(t.Context(), id) },
			"ForgetAll": func(c *Cache[user], id string) error { db.set(id, "new"); return c.ForgetAll(t.Context()) },
		} {
			db.set(name, "old")
			read, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			slow := newCache(t, b.Client, func(ctx context.Context, id string) (user, error) {
				u, err := db.load(ctx, id)
				once.Do(func() { close(read); <-goOn })
				return u, err
			}, Config{})
			other := newCache(t, b.NewClient(t), db.load, Config{})
			done := make(chan struct{})
			go func() { defer close(done); wants(t, slow, name, "new") }()
			<-read
			if err := change(other, name); err != nil {
				t.Fatal(name, err)
			}
			wants(t, other, name, "new")
			close(goOn)
			<-done
			wants(t, other, name, "new")
			if n := slow.Stats().Late; n != 1 {
				t.Errorf("%s: %d loads came too late", name, n)
			}
		}
	})
}

// While an Update is under way the value of before is served; when it has died, no longer than its
// lease.
func TestAnUpdateThatDies(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "old")
		c := newCache(t, b.Client, db.load, Config{TTL: time.Hour})
		b.Advance(t, 0)
		wants(t, c, "ann", "old")
		begin(t, c, "ann")
		db.set("ann", "new")
		wants(t, c, "ann", "old")
		b.Advance(t, c.core.lease)
		wants(t, c, "ann", "new")

		// A second one that dies does not lengthen it: then nothing is served.
		begin(t, c, "ann")
		db.set("ann", "newer")
		b.Advance(t, c.core.lease/2)
		begin(t, c, "ann")
		if r, err := c.core.look(t.Context(), c.core.place("ann"), ""); err != nil || r.what != "held" {
			t.Error(r.what, err)
		}
		b.Advance(t, c.core.lease/2)
		if r, err := c.core.look(t.Context(), c.core.place("ann"), ""); err != nil || r.what != "held" {
			t.Errorf("after the first lease: %v, %v", r.what, err)
		}
		// A Forget in between frees nothing, as the update may be about to write.
		if err := c.Forget(t.Context(), "ann"); err != nil {
			t.Error(err)
		}
		if r, err := c.core.look(t.Context(), c.core.place("ann"), ""); err != nil || r.what != "held" {
			t.Errorf("after Forget: %v, %v", r.what, err)
		}
		b.Advance(t, c.core.lease/2)
		wants(t, c, "ann", "newer")
		redistest.AssertAllTTL(t, b.Client)
	})
}

// begin begins an update of which nobody hears again.
func begin[T any](t *testing.T, c *Cache[T], id string) (token string) {
	t.Helper()
	token, at := fresh(), c.core.place(id)
	if _, err := c.core.redis.Run(t.Context(), beginScript, at.keys, token, fresh(), c.core.lease.Microseconds(), c.core.versionTTL().Milliseconds()); err != nil {
		t.Fatal(err)
	}
	return token
}

// Of two Updates at the same time the database says which came last, in whatever order they end.
func TestUpdatesAtTheSameTimeStoreNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for order := range 4 {
			var db database
			id := fmt.Sprint("ann", order)
			db.set(id, "old")
			one, two := newCache(t, b.Client, db.load, Config{}), newCache(t, b.NewClient(t), db.load, Config{})
			wants(t, one, id, "old")
			// one writes first or second, and ends first or second.
			wrote := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
			ended := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
			var began, wg sync.WaitGroup
			began.Add(2)
			first, firstEnds := order&1, order>>1
			for i, c := range []*Cache[user]{one, two} {
				wg.Go(func() {
					defer close(ended[i])
					name := fmt.Sprint("by", i)
					_, err := c.Update(t.Context(), id, func(context.Context) (user, error) {
						began.Done()
						began.Wait()
						if i != first {
							<-wrote[first]
						}
						db.set(id, name)
						close(wrote[i])
						<-wrote[1-i]
						if i != firstEnds {
							<-ended[firstEnds]
						}
						return user{name, []string{"r-" + name}}, nil
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			wants(t, one, id, fmt.Sprint("by", 1-first))
			wants(t, two, id, fmt.Sprint("by", 1-first))
		}
	})
}

// So it is where one of the two dies, and its time is over before the other one ends.
func TestAnUpdateAtTheSameTimeAsOneThatDies(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		c := newCache(t, b.Client, db.load, Config{})
		b.Advance(t, 0)
		begin(t, c, "ann")
		b.Advance(t, c.core.lease*2/3)
		if _, err := c.Update(t.Context(), "ann", func(context.Context) (user, error) {
			db.set("ann", "by the one that lives")
			db.set("ann", "by the one that dies")
			b.Advance(t, c.core.lease*2/3)
			return user{"by the one that lives", []string{"r-by the one that lives"}}, nil
		}); err != nil {
			t.Error(err)
		}
		wants(t, c, "ann", "by the one that dies")
	})
}

// What was loaded is kept under its own lease alone, and under the version of that.
func TestALeaseThatWasTakenAwayKeepsNothing(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		c := newCache(t, b.Client, db.load, Config{})
		at := c.core.place("ann")
		keeps := func(token string) bool {
			t.Helper()
			value, err := c.core.pack(at, []byte("{}"))
			if err != nil {
				t.Fatal(err)
			}
			reply, err := c.core.redis.Run(t.Context(), keepScript, at.keys, append([]any{c.core.form, token, value}, c.core.life(time.Minute)...)...)
			if err != nil {
				t.Fatal(err)
			}
			return reply == int64(1)
		}
		lease := func(id string) string {
			t.Helper()
			r, err := c.core.look(t.Context(), c.core.place(id), "")
			if err != nil || r.what != "load" {
				t.Fatal(r.what, err)
			}
			return r.token
		}
		first := lease("ann")
		if err := c.Forget(t.Context(), "ann"); err != nil {
			t.Fatal(err)
		}
		second := lease("ann")
		if keeps(first) {
			t.Error("under another's lease")
		}
		if err := c.ForgetAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		for i := 0; ; i++ { // somebody makes a version anew
			if id := fmt.Sprint(i); c.core.place(id).keys[1] == at.keys[1] {
				lease(id)
				break
			}
		}
		if keeps(second) {
			t.Error("under another version")
		}
		if !keeps(lease("ann")) {
			t.Error("not under its own lease")
		}
	})
}

// A change past Update, and its Forget, in the middle of an Update: neither is lost.
func TestForgetDuringAnUpdate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		c := newCache(t, b.Client, db.load, Config{})
		for name, forget := range map[string]func(id string) error{
			"Forget":    func(id string) error { return c.Forget(t.Context(), id) },
			"ForgetAll": func(string) error { return c.ForgetAll(t.Context()) },
		} {
			db.set(name, "old")
			wants(t, c, name, "old")
			_, err := c.Update(t.Context(), name, func(context.Context) (user, error) {
				db.set(name, "by Update")
				db.set(name, "past it")
				return user{"by Update", []string{"r-by Update"}}, forget(name)
			})
			if err != nil {
				t.Error(err)
			}
			wants(t, c, name, "past it")
		}
	})
}

// What write returns decides: its error comes back as it is, and the older value is forgotten, as
// nobody knows; so it is where write panics.
func TestAWriteThatFails(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "old")
		c := newCache(t, b.Client, db.load, Config{})
		wants(t, c, "ann", "old")
		bad := errors.New("constraint")
		if _, err := c.Update(t.Context(), "ann", func(context.Context) (user, error) { db.set("ann", "new"); return user{}, bad }); err != bad {
			t.Error(err)
		}
		wants(t, c, "ann", "new")
		func() {
			defer func() {
				if recover() != "oops" {
					t.Error("the panic was swallowed")
				}
			}()
			_, _ = c.Update(t.Context(), "ann", func(context.Context) (user, error) { db.set("ann", "newer"); panic("oops") })
		}()
		wants(t, c, "ann", "newer")
		// A row that is deleted.
		if _, err := c.Update(t.Context(), "ann", func(context.Context) (user, error) {
			db.mu.Lock()
			defer db.mu.Unlock()
			delete(db.rows, "ann")
			return user{}, ErrNotFound
		}); err != ErrNotFound {
			t.Error(err)
		}
		if _, err := c.Get(t.Context(), "ann"); err != ErrNotFound {
			t.Error(err)
		}
		// A caller that hangs up after the write.
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := c.Update(ctx, "ann", func(context.Context) (user, error) {
			db.set("ann", "last")
			cancel()
			return user{"last", []string{"r-last"}}, nil
		}); err != nil {
			t.Error(err)
		}
		wants(t, c, "ann", "last")
		if _, err := c.Update(ctx, "ann", func(context.Context) (user, error) { t.Error("called"); return user{}, nil }); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// proxied is a cache whose way to Redis can fail, and one whose way cannot.
func proxied(t *testing.T, db *database, cfg Config) (far, near *Cache[user], p *redistest.Proxy) {
	t.Helper()
	server := redistest.Start(t)
	p = redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1})
	t.Cleanup(func() { client.Close() })
	far = newCache(t, client, db.load, cfg)
	cfg.Timeout = 0 // as of newCache
	return far, newCache(t, server.Client(), db.load, cfg), p
}

// What an Update says of Redis that goes away in the middle of it is true.
func TestUpdateWhileRedisGoesAway(t *testing.T) {
	t.Parallel() // with others that wait
	for name, fault := range map[string]func(*redistest.Proxy){
		"cut":                         func(p *redistest.Proxy) { p.Cut() },
		"black hole":                  func(p *redistest.Proxy) { p.BlackHole() },
		"lost reply":                  func(p *redistest.Proxy) { p.LoseReply() },
		"connection closed for reply": func(p *redistest.Proxy) { p.CutReply() },
		"gone":                        func(p *redistest.Proxy) { p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var db database
			db.set("ann", "old")
			far, near, p := proxied(t, &db, Config{Timeout: time.Second, LoadTimeout: 400 * time.Millisecond})
			wants(t, near, "ann", "old")
			wants(t, far, "ann", "old")
			var u user
			var wrote time.Time
			u, err := far.Update(t.Context(), "ann", func(context.Context) (user, error) {
				db.set("ann", "new")
				wrote = time.Now()
				fault(p)
				return user{"new", []string{"r-new"}}, nil
			})
			if !errors.Is(err, ErrNotTold) || errors.Is(err, ErrUnavailable) || u.Name != "new" || far.Stats().NotTold != 1 {
				t.Fatalf("%+v, %v", u, err)
			}
			// Others see it when the lease ends.
			for {
				u, err := near.Get(t.Context(), "ann")
				if err == nil && u.Name == "new" {
					break
				}
				if err != nil || time.Since(wrote) > far.core.lease+time.Second {
					t.Fatalf("%v after the write: %+v, %v", time.Since(wrote), u, err)
				}
			}
			// The next one is not done at all.
			if name != "gone" {
				_, err = far.Update(t.Context(), "ann", func(context.Context) (user, error) { t.Error("written"); return user{}, nil })
				if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotTold) {
					t.Errorf("while Redis is away: %v", err)
				}
				if err := far.Forget(t.Context(), "ann"); !errors.Is(err, ErrUnavailable) {
					t.Errorf("Forget: %v", err)
				}
				if err := far.ForgetAll(t.Context()); !errors.Is(err, ErrUnavailable) {
					t.Errorf("ForgetAll: %v", err)
				}
				p.Heal()
				eventually(t, "an Update", func() bool { return db.update(far, "ann", "newest") == nil })
				wants(t, near, "ann", "newest")
			}
		})
	}
}

// A command or two that fail when an Update ends, as on a connection that a load balancer has
// forgotten, are no reason to serve what is old.
func TestAnUpdateThatEndsTellsRedisAgain(t *testing.T) {
	server := redistest.Start(t)
	var fail atomic.Int32
	client := server.Client()
	client.AddHook(redistest.Instead(func(ctx context.Context, cmd redis.Cmder) *redis.Cmd {
		if name := cmd.Name(); name != "evalsha" && name != "eval" || fail.Add(-1) < 0 {
			return nil
		}
		return redis.NewCmd(ctx, "nosuch")
	}))
	var db database
	c, other := newCache(t, client, db.load, Config{}), newCache(t, server.Client(), db.load, Config{})
	for n := range int32(4) {
		id := fmt.Sprint(n)
		db.set(id, "old")
		fail.Store(0)
		wants(t, other, id, "old")
		_, err := c.Update(t.Context(), id, func(context.Context) (user, error) {
			db.set(id, "new")
			fail.Store(n)
			return user{"new", []string{"r-new"}}, nil
		})
		if (n < 3) != (err == nil) || err != nil && !errors.Is(err, ErrNotTold) {
			t.Errorf("%d commands fail: %v", n, err)
		}
		if err == nil {
			wants(t, other, id, "new")
		}
	}
}

// A write that takes longer than its lease is not promised more than it can be.
func TestAWriteThatOutlivesItsLease(t *testing.T) {
	t.Parallel() // with others that wait
	var db database
	db.set("ann", "old")
	far, near, p := proxied(t, &db, Config{Timeout: 500 * time.Millisecond, LoadTimeout: 500 * time.Millisecond, TTL: time.Hour})
	wants(t, near, "ann", "old")
	write := func(end func()) error {
		_, err := far.Update(t.Context(), "ann", func(ctx context.Context) (user, error) {
			<-ctx.Done()
			time.Sleep(far.core.lease)
			wants(t, near, "ann", "old") // loaded again, for an hour
			db.set("ann", "new")
			end()
			return user{"new", []string{"r-new"}}, nil
		})
		return err
	}
	if err := write(func() { p.Close() }); !errors.Is(err, ErrNotTold) || !strings.Contains(err.Error(), "1h0m0s") {
		t.Error(err)
	}
}

// While Redis is away the database is asked, never by more than MaxLoads, and Gets of one ID share
// a load.
func TestLoadsWithoutRedisAreBounded(t *testing.T) {
	db := database{slow: 20 * time.Millisecond}
	for i := range 100 {
		db.set(fmt.Sprint(i), "x")
	}
	server := redistest.Start(t)
	client := server.Client()
	c := newCache(t, client, db.load, Config{MaxLoads: 7, Timeout: 5 * time.Second})
	none := newCache(t, client, db.load, Config{MaxLoads: -1, Timeout: 5 * time.Second})
	server.Stop()
	get := func(n, ids int) {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { wants(t, c, fmt.Sprint(i%ids), "x") })
		}
		wg.Wait()
	}
	get(300, 100)
	if most := db.most.Load(); most > 7 {
		t.Errorf("%d loads at once", most)
	}
	db.loads.Store(0)
	get(300, 1)
	if n := db.loads.Load(); n > 40 {
		t.Errorf("%d loads of one value", n)
	}
	if _, err := c.Get(t.Context(), "nobody"); err != ErrNotFound {
		t.Error(err)
	}
	before := db.loads.Load()
	if _, err := none.Get(t.Context(), "1"); !errors.Is(err, ErrUnavailable) || db.loads.Load() != before {
		t.Error(err)
	}
	if s := c.Stats(); s.Direct != 601 || s.Failed != 0 {
		t.Errorf("%+v", s)
	}
}

// Loaders that hang take their places for as long as they do.
func TestHungLoadsWithoutRedisAreBounded(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	hang := make(chan struct{})
	defer close(hang)
	var db database
	c := newCache(t, server.Client(), func(ctx context.Context, id string) (user, error) {
		_, _ = db.load(ctx, id)
		<-hang
		return user{}, nil
	}, Config{MaxLoads: 2, LoadTimeout: 50 * time.Millisecond, Timeout: time.Second})
	server.Stop()
	for i := range 4 {
		if _, err := c.Get(t.Context(), fmt.Sprint(i)); err == nil {
			t.Error("no error")
		} else if (i >= 2) != errors.Is(err, ErrUnavailable) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if n := db.loads.Load(); n != 2 {
		t.Errorf("%d loads", n)
	}
}

// A Redis that is full takes no values; what is updated is seen all the same.
func TestAFullRedis(t *testing.T) {
	server := redistest.Start(t)
	var db database
	db.set("ann", "old")
	db.set("bob", "bob")
	c := newCache(t, server.Client(), db.load, Config{})
	wants(t, c, "ann", "old")
	if err := server.Client().ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	wants(t, c, "bob", "bob")
	if s := c.Stats(); s.Direct != 1 {
		t.Errorf("%+v", s)
	}
	if err := db.update(c, "ann", "new"); err != nil {
		t.Error(err)
	}
	wants(t, c, "ann", "new")
	db.set("ann", "newer")
	if err := errors.Join(c.ForgetAll(t.Context()), c.Forget(t.Context(), "ann")); err != nil {
		t.Error(err)
	}
	wants(t, c, "ann", "newer")
}
