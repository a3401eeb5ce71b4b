package session

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

type nonce struct{ State, Verifier string }

// Of 100 parallel requests on three servers, one of them with a client-side cache, one gets a
// value, whatever the others do meanwhile; what was put besides is kept.
func TestPopOnceGivesAValueOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		cfg := Config{Timeout: 10 * time.Second, Secrets: [][]byte{secret}, KeySecret: keySecret}
		servers := []*Manager{managerOver(t, rb.Client, cfg), managerOver(t, rb.Client, cfg), managerOver(t, rb.Client, cfg)}
		if rb.Mini == nil && rb.Name != "cluster" {
			cached := redis.NewClient(&redis.Options{
				Addr: rb.Client.(*redis.Client).Options().Addr, Protocol: 3,
				ClientSideCache: redis.NewLocalCache(redis.CacheConfig{MaxStaleness: time.Minute}),
			})
			defer cached.Close()
			servers[2] = managerOver(t, cached, cfg)
		}
		b := begin(t, servers[0], "ann")
		for round := range 5 {
			b.request(func(ctx context.Context) {
				Key[nonce]("oauth").Put(ctx, servers[0], nonce{"s", "v"})
				servers[0].Put(ctx, "stays", round)
			})
			var got atomic.Int64
			var all sync.WaitGroup
			for i := range 100 {
				all.Go(func() {
					m := servers[i%3]
					visitor := &browser{t, m, b.cookie}
					visitor.request(func(ctx context.Context) {
						if i%10 == 0 {
							m.Put(ctx, "other", i) // pending
						}
						n, ok, err := Key[nonce]("oauth").PopOnce(ctx, m)
						if err != nil {
							t.Error(err)
						}
						if ok {
							got.Add(1)
							if n != (nonce{"s", "v"}) {
								t.Errorf("%+v", n)
							}
						}
						if m.Exists(ctx, "oauth") {
							t.Error("it is still seen")
						}
					})
				})
			}
			all.Wait()
			b.request(func(ctx context.Context) {
				if n := servers[0].GetInt(ctx, "stays"); got.Load() != 1 || servers[0].Exists(ctx, "oauth") || n != round || !servers[0].Exists(ctx, "other") {
					t.Errorf("round %d: %d got it, keys %v", round, got.Load(), servers[0].Keys(ctx))
				}
			})
		}
	})
}

func TestPopOnceAndWhatIsPending(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m, other := managerOver(t, rb.Client, Config{Timeout: 10 * time.Second}), managerOver(t, rb.Client, Config{Timeout: 10 * time.Second})
		b := begin(t, m, "ann")
		stored := func(key string) (val any) {
			(&browser{t, other, b.cookie}).request(func(ctx context.Context) { val = other.Get(ctx, key) })
			return val
		}
		pop := func(ctx context.Context, want any) {
			t.Helper()
			if got, err := m.PopOnce(ctx, "once"); got != want || err != nil {
				t.Errorf("%v, %v, want %v", got, err, want)
			}
		}
		b.request(func(ctx context.Context) { pop(ctx, nil) }) // there is none
		b.request(func(ctx context.Context) {
			m.Put(ctx, "once", 1)
			pop(ctx, 1) // its own, which nobody else has seen
			pop(ctx, nil)
		})
		if v := stored("once"); v != nil {
			t.Errorf("stored: %v", v)
		}
		b.request(func(ctx context.Context) { m.Put(ctx, "once", 2) })
		b.request(func(ctx context.Context) {
			m.Put(ctx, "other", "x")
			m.Remember(ctx, true)
			pop(ctx, 2)
			if stored("once") != nil || stored("other") != nil {
				t.Errorf("before the response there stand %v and %v", stored("once"), stored("other"))
			}
			if !m.Pending(ctx) {
				t.Error("the put is not pending")
			}
		})
		if v := stored("other"); v != "x" {
			t.Errorf("after the response: %v", v)
		}
		b.request(func(ctx context.Context) {
			if !m.Info(ctx).Persistent {
				t.Error("Remember was lost")
			}
			m.Put(ctx, "once", 3)
		})
		b.request(func(ctx context.Context) {
			m.Put(ctx, "once", 4) // over what stands
			pop(ctx, 4)
		})
		if v := stored("once"); v != nil {
			t.Errorf("stored: %v", v)
		}
		b.request(func(ctx context.Context) { m.Put(ctx, "once", 5) })
		b.request(func(ctx context.Context) {
			m.Remove(ctx, "once")
			pop(ctx, nil)
		})
		if v := stored("once"); v != nil {
			t.Errorf("a removal was lost: %v", v)
		}
		// Put by another request after this one was loaded, then moved by a rotation.
		b.request(func(ctx context.Context) {
			(&browser{t, other, b.cookie}).request(func(ctx context.Context) { other.Put(ctx, "once", 6) })
			(&browser{t, other, b.cookie}).request(func(ctx context.Context) { _ = other.Rotate(ctx) })
			pop(ctx, 6)
		})
		// During a login the old ID leads to the value, too.
		b.request(func(ctx context.Context) { m.Put(ctx, "once", 7) })
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
			if got, err := m.PopOnce(ctx, "once"); got != nil || err == nil {
				t.Errorf("after a login: %v, %v", got, err)
			}
			(&browser{t, other, b.cookie}).request(func(ctx context.Context) {
				if got, err := other.PopOnce(ctx, "once"); got != 7 || err != nil {
					t.Errorf("by the old ID: %v, %v", got, err)
				}
			})
		})
		if v := stored("once"); v != nil {
			t.Errorf("after a login: %v", v)
		}
		b.request(func(ctx context.Context) { m.Put(ctx, "once", 8) })
		b.request(func(ctx context.Context) {
			if _, err := other.EndAll(t.Context(), "ann", Cause{}); err != nil {
				t.Fatal(err)
			}
			if got, err := m.PopOnce(ctx, "once"); got != nil || !errors.Is(err, ErrEnded) {
				t.Errorf("after the end: %v, %v", got, err)
			}
		})
		(&browser{t, m, ""}).request(func(ctx context.Context) { // a visitor without a session
			pop(ctx, nil)
			m.Put(ctx, "once", 9)
			pop(ctx, 9)
			if m.Pending(ctx) {
				t.Error("there is something to save")
			}
		})
		if _, err := m.PopOnce(t.Context(), "once"); !errors.Is(err, ErrNoSession) {
			t.Error(err)
		}
	})
}

// When it is not known whether the value is gone, nobody has it and the caller is told.
func TestPopOnceWhenTheReplyIsLost(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	m := managerOver(t, client, Config{Timeout: 2 * time.Second, Prefix: t.Name() + ":"})
	direct := managerOver(t, server.Client(), Config{Timeout: 10 * time.Second, Prefix: t.Name() + ":"})
	b := begin(t, direct, "ann")
	b.request(func(ctx context.Context) { direct.Put(ctx, "once", 1) })
	ctx := load(t, m, b.cookie)
	proxy.BlackHole()
	if got, err := m.PopOnce(ctx, "once"); got != nil || !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, %v", got, err)
	}
	proxy.Heal()
}

// A value of a type that only a newer server knows stays.
func TestPopOnceOfAnUnknownType(t *testing.T) {
	knowReleaseTwo()
	m := manager(t, mini(t), slowly)
	b := begin(t, m, "ann")
	ctx := load(t, m, b.cookie)
	m.state(ctx).record.values = m.state(ctx).record.values.Change(map[string][]byte{"new": {0xff}})
	m.state(ctx).values.stored = m.state(ctx).record.values
	if got, err := m.PopOnce(ctx, "new"); got != nil || err == nil {
		t.Errorf("%v, %v", got, err)
	}
	if _, ok := m.state(ctx).record.values.Get("new"); !ok {
		t.Error("it is gone")
	}
}

// A handler that lasts sees what others save, under its own puts, and learns of the end.
func TestReload(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m, other := managerOver(t, rb.Client, Config{Timeout: 10 * time.Second}), managerOver(t, rb.Client, Config{Timeout: 10 * time.Second})
		b := begin(t, m, "ann")
		elsewhere := func(f func(ctx context.Context)) { (&browser{t, other, b.cookie}).request(f) }
		elsewhere(func(ctx context.Context) {
			other.Put(ctx, "a", 1)
			other.Put(ctx, "b", 1)
			other.Put(ctx, "c", 1)
		})
		ctx := load(t, m, b.cookie)
		if m.GetInt(ctx, "a") != 1 {
			t.Fatal("not loaded")
		}
		m.Put(ctx, "b", "mine")
		elsewhere(func(ctx context.Context) {
			other.Put(ctx, "a", 2)
			other.Put(ctx, "b", 2)
			other.Remove(ctx, "c")
			_ = other.Rotate(ctx)
		})
		for range 2 {
			if err := m.Reload(ctx); err != nil {
				t.Fatal(err)
			}
			if m.GetInt(ctx, "a") != 2 || m.Get(ctx, "b") != "mine" || m.Exists(ctx, "c") || !m.Pending(ctx) {
				t.Errorf("a %v, b %v, c %v, pending %v", m.Get(ctx, "a"), m.Get(ctx, "b"), m.Get(ctx, "c"), m.Pending(ctx))
			}
		}
		if _, err := m.Finish(ctx); err != nil {
			t.Fatal(err)
		}
		elsewhere(func(ctx context.Context) {
			if other.GetInt(ctx, "a") != 2 || other.Get(ctx, "b") != "mine" {
				t.Errorf("saved: a %v, b %v", other.Get(ctx, "a"), other.Get(ctx, "b"))
			}
		})
		ctx = load(t, m, b.cookie)
		elsewhere(func(ctx context.Context) { _ = other.Logout(ctx) })
		if err := m.Reload(ctx); !errors.Is(err, ErrEnded) || m.UserID(ctx) != "" {
			t.Errorf("after the end: %v, user %q", err, m.UserID(ctx))
		}
		if err := m.Reload(ctx); !errors.Is(err, ErrEnded) {
			t.Errorf("again: %v", err)
		}
		if err := m.Reload(load(t, m, "")); err != nil {
			t.Errorf("a visitor: %v", err)
		}
		if err := m.Reload(t.Context()); !errors.Is(err, ErrNoSession) {
			t.Error(err)
		}
	})
}

// A request that knows no ID of its session any more, since others have given it a new one, is not
// told that the session is over, and keeps what it has read. It learns of the end.
func TestTheSessionLivesUnderAnotherID(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := managerOver(t, rb.Client, Config{Timeout: 10 * time.Second, Rotation: Rotation{Grace: time.Minute}})
		for name, renew := range map[string]func(context.Context) error{"Rotate": m.Rotate, "Confirm": m.Confirm, "Login": func(ctx context.Context) error { return m.Login(ctx, "ann") }} {
			for _, grace := range []string{"within Grace", "after it", "after it, swept"} {
				b := begin(t, m, "ann")
				b.request(func(ctx context.Context) { m.Put(ctx, "a", "read"); m.Put(ctx, "once", "its") })
				stream := load(t, m, b.cookie)
				if _, err := m.Finish(stream); err != nil {
					t.Fatal(err)
				}
				b.request(func(ctx context.Context) {
					if err := renew(ctx); err != nil {
						t.Fatal(err)
					}
				})
				if grace != "within Grace" {
					rb.Advance(t, 2*time.Minute)
				}
				if grace == "after it, swept" {
					m.records.sweep(t.Context(), m.state(stream).record.id)
				}
				var want error
				if grace != "within Grace" || name != "Rotate" {
					want = ErrMoved
				}
				m.Put(stream, "b", 1)
				if err := m.Commit(stream); !errors.Is(err, want) {
					t.Errorf("%s %s: Commit: %v", name, grace, err)
				}
				if err := m.Reload(stream); !errors.Is(err, want) {
					t.Errorf("%s %s: Reload: %v", name, grace, err)
				}
				if got, err := m.PopOnce(stream, "once"); !errors.Is(err, want) || (got != nil) != (want == nil) {
					t.Errorf("%s %s: PopOnce: %v, %v", name, grace, got, err)
				}
				if err := m.Touch(stream); err != nil {
					t.Errorf("%s %s: Touch: %v", name, grace, err)
				}
				if m.Pending(stream) {
					t.Errorf("%s %s: what cannot be saved is pending", name, grace)
				}
				if m.UserID(stream) != "ann" || m.Get(stream, "a") != "read" || m.Ended(stream) != "" {
					t.Errorf("%s %s: user %q, a %v, ended %q", name, grace, m.UserID(stream), m.Get(stream, "a"), m.Ended(stream))
				}
				b.request(func(ctx context.Context) {
					if got := m.Get(ctx, "once"); (got != nil) != (want != nil) || m.Exists(ctx, "b") != (want == nil) {
						t.Errorf("%s %s: elsewhere once %v, b %v", name, grace, got, m.Get(ctx, "b"))
					}
				})
				endAll(t, m, "ann")
				if err := m.Commit(stream); want != nil && (!errors.Is(err, ErrEnded) || errors.Is(err, ErrMoved)) {
					t.Errorf("%s %s: Commit after the end: %v", name, grace, err)
				}
				if err := m.Reload(stream); !errors.Is(err, ErrEnded) || errors.Is(err, ErrMoved) || m.UserID(stream) != "" {
					t.Errorf("%s %s: Reload after the end: %v", name, grace, err)
				}
				rb.Advance(t, 10*time.Second) // a login is as young as the end
			}
		}
	})
}
