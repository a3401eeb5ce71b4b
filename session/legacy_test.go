package session

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/gob"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// goStore does what scs/goredisstore does.
type goStore struct {
	client redis.UniversalClient
	prefix string
}

func (s goStore) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	b, err := s.client.Get(ctx, s.prefix+token).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	return b, err == nil, err
}

func (s goStore) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return s.client.Set(ctx, s.prefix+token, b, time.Until(expiry)).Err()
}

func (s goStore) DeleteCtx(ctx context.Context, token string) error {
	return s.client.Del(ctx, s.prefix+token).Err()
}

func (s goStore) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}
func (s goStore) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}
func (s goStore) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

const legacyPrefix = "scs:session:"

// legacySession puts a session into a store as scs does, and returns its token.
func legacySession(t testing.TB, store scs.Store, values map[string]any, deadline time.Time) string {
	t.Helper()
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	token := base64.RawURLEncoding.EncodeToString(raw)
	b, err := scs.GobCodec{}.Encode(deadline, values)
	if err == nil {
		err = store.Commit(token, b, deadline)
	}
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// eachLegacy runs f with both kinds of legacy store, with and without secrets.
func eachLegacy(t *testing.T, f func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config)) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		for _, secrets := range [][][]byte{nil, {secret}} {
			stores := map[string]scs.Store{"goredisstore": goStore{rb.Client, legacyPrefix}}
			if rb.Name != "cluster" { // which redigo does not know
				pool := &redigo.Pool{Dial: func() (redigo.Conn, error) { return redigo.Dial("tcp", rb.Addrs[0]) }}
				defer pool.Close()
				stores["redisstore"] = redisstore.New(pool)
			}
			for name, store := range stores {
				t.Run(fmt.Sprintf("%s, secrets=%d", name, len(secrets)), func(t *testing.T) {
					f(t, rb, store, Config{Legacy: Legacy{Store: store}, Secrets: secrets, Timeout: 5 * time.Second})
					redistest.AssertAllTTL(t, rb.Client)
				})
			}
		}
	})
}

func userValue(values map[string]any) string {
	user, _ := values["user"].(string)
	return user
}

// mover is a browser that has moved, or is about to, from a legacy server: it sends the
// cookie of the legacy store, and ours as soon as it has one.
type mover struct {
	browser
	token string // the legacy cookie
}

func newMover(t testing.TB, m *Manager, token string) *mover { return &mover{browser{t, m, ""}, token} }

func (b *mover) load() context.Context {
	b.t.Helper()
	ctx, err := b.m.LoadLegacy(context.Background(), b.token, b.cookie)
	if err != nil {
		b.t.Fatal(err)
	}
	return ctx
}

func (b *mover) request(handler func(ctx context.Context)) Outcome {
	b.t.Helper()
	ctx := b.load()
	handler(ctx)
	o := finish(b.t, b.m, ctx)
	b.take(o)
	if o.Legacy {
		b.token = ""
	}
	return o
}

// shown is what a request sees of its session.
type shown struct{ user, handle, values string }

func shownTo(m *Manager, ctx context.Context) shown {
	return shown{m.UserID(ctx), m.Info(ctx).Handle, fmt.Sprint(valuesOf(m, ctx))}
}

var nothingShown = shown{values: "map[]"}

// byToken is what the legacy cookie alone shows.
func byToken(t testing.TB, m *Manager, token string) shown {
	t.Helper()
	return shownTo(m, newMover(t, m, token).load())
}

// byCookie is what a cookie of ours shows.
func byCookie(t testing.TB, m *Manager, cookie string) shown {
	t.Helper()
	return shownTo(m, load(t, m, cookie))
}

// liveIDs returns the live records in Redis, as key and field.
func liveIDs(t testing.TB, client redis.UniversalClient) (live []string) {
	t.Helper()
	var mu sync.Mutex
	scan := func(ctx context.Context, node *redis.Client) error {
		now, err := node.Time(ctx).Result()
		if err != nil {
			return err
		}
		it := node.Scan(ctx, 0, "gatehouse:*", 1000).Iterator()
		for it.Next(ctx) {
			fields, err := node.HGetAll(ctx, it.Val()).Result()
			if err != nil {
				return err
			}
			for f, v := range fields {
				if len(f) == fieldLen && v[0] == formatRecord && getTime([]byte(v[headLen+3*timeLen:])) > now.UnixMicro() {
					mu.Lock()
					live = append(live, it.Val()+" "+f)
					mu.Unlock()
				}
			}
		}
		return it.Err()
	}
	var err error
	if c, is := client.(*redis.ClusterClient); is {
		err = c.ForEachMaster(t.Context(), scan)
	} else {
		err = scan(t.Context(), client.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
	return live
}

func inStore(t testing.TB, store scs.Store, token string) bool {
	t.Helper()
	_, ok, err := store.Find(token)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestLegacySessionsAreCopied(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		m := manager(t, rb, cfg)
		end := time.Now().Add(2 * time.Hour)
		values := map[string]any{"user": "ann", "n": 7, "list": []string{"a"}, scsRememberMe: true}
		token := legacySession(t, store, values, end)
		before, _, _ := store.Find(token)
		records := len(liveIDs(t, rb.Client))
		b := newMover(t, m, token)
		// A mere read copies it.
		o := b.request(func(ctx context.Context) {
			if m.GetString(ctx, "user") != "ann" || m.GetInt(ctx, "n") != 7 || m.UserID(ctx) != "" || m.Exists(ctx, scsRememberMe) {
				t.Errorf("%v", valuesOf(m, ctx))
			}
			if got := m.Info(ctx); !near(got.Expires, end) || !got.Persistent || !got.AuthenticatedAt.IsZero() {
				t.Errorf("%+v, want the end %v", got, end)
			}
		})
		if o.Action != CookieSet || (o.MaxAge-2*time.Hour).Abs() > 10*time.Second || o.Legacy {
			t.Errorf("%+v", o)
		}
		if after, ok, err := store.Find(token); !ok || err != nil || !bytes.Equal(after, before) {
			t.Errorf("the legacy store was changed: found %v, %v", ok, err)
		}
		// Either cookie leads to the one copy.
		want := byCookie(t, m, b.cookie)
		if want.values != "map[list:[a] n:7 user:ann]" || want.handle == "" {
			t.Errorf("%+v", want)
		}
		if got := byToken(t, m, token); got != want {
			t.Errorf("by the legacy cookie %+v, want %+v", got, want)
		}
		if n := len(liveIDs(t, rb.Client)) - records; n != 1 {
			t.Errorf("%d copies", n)
		}
		// With our own cookie there is nothing to set, and the legacy cookie stays.
		if o := b.request(func(context.Context) {}); o != (Outcome{}) || b.token == "" {
			t.Errorf("second request: %+v", o)
		}
		// A login over the copy ends the legacy session.
		if o := b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
		}); !o.Legacy || o.Action != CookieSet {
			t.Errorf("login: %+v", o)
		}
		if inStore(t, store, token) {
			t.Error("a login left the legacy session in its store")
		}
		if got := byToken(t, m, token); got != nothingShown {
			t.Errorf("the legacy cookie after a login: %+v", got)
		}
		if got := byCookie(t, m, b.cookie); got.user != "ann" || got.values != want.values {
			t.Errorf("after the login: %+v", got)
		}
	})
}

func TestUnreadableLegacySessionsAreNone(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		m := manager(t, rb, cfg)
		good, err := scs.GobCodec{}.Encode(time.Now().Add(time.Hour), map[string]any{"k": "v"})
		if err != nil {
			t.Fatal(err)
		}
		over, err := scs.GobCodec{}.Encode(time.Now().Add(-time.Second), map[string]any{"k": "v"})
		if err != nil {
			t.Fatal(err)
		}
		none, err := scs.GobCodec{}.Encode(time.Time{}, map[string]any{"k": "v"})
		if err != nil {
			t.Fatal(err)
		}
		for name, raw := range map[string][]byte{"without a deadline": none, "no gob": []byte("no gob"), "empty": {}, "cut short": good[:len(good)-1], "past its deadline": over} {
			token := legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
			if err := store.Commit(token, raw, time.Now().Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if got := byToken(t, m, token); got != nothingShown {
				t.Errorf("%s: %+v", name, got)
			}
			b := newMover(t, m, token)
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann"); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
			if got := byCookie(t, m, b.cookie); got.user != "ann" {
				t.Errorf("%s: cannot log in over it: %+v", name, got)
			}
		}
		if m.Stats().Unreadable == 0 {
			t.Error("none was counted")
		}
	})
}

func TestLegacyUsersAreLoggedIn(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.Legacy.User = userValue
		m := manager(t, rb, cfg)
		token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(time.Hour))
		// A page with many parts asks with the old cookie, all at once.
		var mu sync.Mutex
		var cookies []string
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				b := newMover(t, m, token)
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" || !m.Info(ctx).AuthenticatedAt.IsZero() || m.AuthenticatedWithin(ctx, time.Hour) {
						t.Errorf("%+v", m.Info(ctx))
					}
					m.Put(ctx, fmt.Sprint("part", i), i)
				})
				mu.Lock()
				defer mu.Unlock()
				cookies = append(cookies, b.cookie)
			})
		}
		wg.Wait()
		first := byCookie(t, m, cookies[0])
		for _, c := range cookies {
			if got := byCookie(t, m, c); got != first || c == token {
				t.Errorf("%+v, want %+v", got, first)
			}
		}
		ctx := load(t, m, cookies[0])
		if n := len(m.Keys(ctx)); n != 2+16 || m.UserID(ctx) != "ann" {
			t.Errorf("%d keys, user %q", n, m.UserID(ctx))
		}
		// It stands where all sessions of ann do.
		at := idOf(t, m, cookies[0])
		if there, err := rb.Client.HExists(t.Context(), m.records.keys.key(m.records.keys.user("ann")), at.field).Result(); !there || err != nil {
			t.Errorf("not in the user's hash: %v", err)
		}
		b := newMover(t, m, token)
		if o := b.request(func(ctx context.Context) { _ = m.Logout(ctx) }); o.Action != CookieDelete || !o.Legacy {
			t.Errorf("logout: %+v", o)
		}
		for _, c := range cookies {
			if got := byCookie(t, m, c); got != nothingShown {
				t.Errorf("after logout: %+v", got)
			}
		}
		if got := byToken(t, m, token); got != nothingShown || inStore(t, store, token) {
			t.Errorf("after logout, by the legacy cookie: %+v", got)
		}
	})
}

// TestLegacyIsCopiedOnce has many first requests at once, on several servers.
func TestLegacyIsCopiedOnce(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		for _, user := range []string{"", "ann"} {
			if cfg.Legacy.User = nil; user != "" {
				cfg.Legacy.User = userValue
			}
			var fleet []*Manager
			for range 3 {
				fleet = append(fleet, managerOver(t, rb.NewClient(t), cfg))
			}
			for round := range 10 {
				token := legacySession(t, store, map[string]any{"k": "v", "user": user}, time.Now().Add(time.Hour))
				before := liveIDs(t, rb.Client)
				var wg sync.WaitGroup
				for i := range 9 {
					wg.Go(func() {
						m := fleet[i%len(fleet)]
						newMover(t, m, token).request(func(ctx context.Context) {
							if m.GetString(ctx, "k") != "v" || m.UserID(ctx) != user {
								t.Errorf("round %d: a first request found nothing", round)
							}
							m.Put(ctx, fmt.Sprint(i), i)
						})
					})
				}
				wg.Wait()
				if n := len(liveIDs(t, rb.Client)) - len(before); n != 1 {
					t.Errorf("round %d: %d copies", round, n)
				}
				for _, m := range fleet {
					if n := len(m.Keys(newMover(t, m, token).load())); n != 2+9 {
						t.Errorf("round %d: %d keys", round, n)
					}
				}
			}
		}
	})
}

// TestLegacyInterleavings runs a request, such as a logout, in each gap of a first request:
// the session neither comes back nor is lost.
func TestLegacyInterleavings(t *testing.T) {
	const save, turn, bob, out = "save", "rotate", "log in", "log out"
	do := map[string]func(m *Manager, ctx context.Context) error{
		save: func(m *Manager, ctx context.Context) error { m.Put(ctx, "y", 1); return nil },
		turn: func(m *Manager, ctx context.Context) error { return m.Rotate(ctx) },
		bob:  func(m *Manager, ctx context.Context) error { return m.Login(ctx, "bob") },
		out:  func(m *Manager, ctx context.Context) error { return m.Logout(ctx) },
	}
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.Legacy.User = userValue
		m := manager(t, rb, cfg)
		client := rb.NewClient(t)
		hook := countCommands(client)
		slow := managerOver(t, client, cfg)
		gaps := 0
		for name, act := range do {
			for gap := 1; ; gap++ {
				where := fmt.Sprintf("%s in gap %d", name, gap)
				token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(time.Hour))
				x, y := newMover(t, slow, token), newMover(t, m, token)
				ran := false
				hook.reset(func(n int, _ string) fate {
					if n == gap && !ran {
						ran = true
						y.request(func(ctx context.Context) {
							if m.UserID(ctx) != "ann" {
								t.Errorf("%s: not found", where)
							}
							if err := act(m, ctx); err != nil {
								t.Error(err)
							}
						})
					}
					return fateSent
				})
				x.request(func(ctx context.Context) { slow.Put(ctx, "x", 1) })
				hook.reset(nil)
				if !ran {
					break
				}
				gaps++
				after, first := nothingShown, byToken(t, m, token)
				if x.cookie != "" {
					after = byCookie(t, m, x.cookie)
				}
				switch name {
				case out:
					if after != nothingShown || first != nothingShown || inStore(t, store, token) {
						t.Errorf("%s: came back: %+v and %+v", where, after, first)
					}
				case bob:
					if after.user != "" || first != nothingShown || byCookie(t, m, y.cookie).user != "bob" {
						t.Errorf("%s: %+v and %+v", where, after, first)
					}
				default:
					if y := byCookie(t, m, y.cookie); after.user != "ann" || after != y || after != first || !strings.Contains(after.values, "x:1") {
						t.Errorf("%s: not one session: %+v, %+v and %+v", where, after, y, first)
					}
				}
			}
		}
		if gaps < 2*len(do) {
			t.Errorf("only %d gaps", gaps)
		}
	})
}

// TestCrashesOfALegacyCopy lets each command of a first request fail, in both stores: the
// session is there afterwards, and a logout ends it for good.
func TestCrashesOfALegacyCopy(t *testing.T) {
	rb := mini(t)
	legacyClient := rb.NewClient(t)
	cfg := Config{Legacy: Legacy{Store: goStore{legacyClient, legacyPrefix}, User: userValue}}
	m := manager(t, rb, cfg)
	client := rb.NewClient(t)
	hook, legacyHook := countCommands(client), countCommands(legacyClient)
	failing := managerOver(t, client, cfg)
	n := 0
	for _, f := range []fate{fateRefused, fateReplyLost} {
		for _, h := range []*commands{hook, legacyHook} {
			for k := 1; ; k++ {
				failing.records.clocks.forget() // so that it asks for the time, too
				token := legacySession(t, goStore{rb.Client, legacyPrefix}, map[string]any{"user": "ann"}, time.Now().Add(time.Hour))
				failed, before := false, len(liveIDs(t, rb.Client))
				h.reset(func(n int, _ string) fate {
					if n == k {
						failed = true
						return f
					}
					return fateSent
				})
				ctx, err := failing.LoadLegacy(t.Context(), token)
				if err == nil {
					failing.Put(ctx, "k", "v")
					_, err = failing.Finish(ctx)
				}
				h.reset(nil)
				if !failed {
					break
				}
				n++
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("command %d, fate %d: %v", k, f, err)
				}
				if made := len(liveIDs(t, rb.Client)) - before; made > 1 {
					t.Errorf("command %d, fate %d: %d copies", k, f, made)
				}
				b := newMover(t, m, token)
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" {
						t.Errorf("command %d, fate %d: the session is lost", k, f)
					}
				})
				b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
				if got := byToken(t, m, token); got != nothingShown {
					t.Errorf("command %d, fate %d: came back after logout: %+v", k, f, got)
				}
				advance(t, rb, time.Minute, m, failing) // past the Grace
				if got := byToken(t, m, token); got != nothingShown {
					t.Errorf("command %d, fate %d: came back after the Grace: %+v", k, f, got)
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d crashes", n)
	}
}

// heldStore keeps what it has found to itself until it is let go.
type heldStore struct {
	scs.Store
	found, release chan struct{}
}

func (s heldStore) Find(token string) ([]byte, bool, error) {
	b, ok, err := s.Store.Find(token)
	s.found <- struct{}{}
	<-s.release
	return b, ok, err
}

// lateCopy starts a first request on a server that stops before the copy is made, either
// with what the legacy store has answered or with the script under way. copy lets it go on
// and returns what it then sees.
func lateCopy(t *testing.T, rb redistest.Backend, cfg Config, token string, script bool) (copy func() shown) {
	t.Helper()
	cfg.Timeout = time.Minute
	found, release := make(chan struct{}), make(chan struct{})
	client := rb.NewClient(t)
	if script {
		var once sync.Once
		countCommands(client).reset(func(_ int, command string) fate {
			if command == "create" || command == "login" {
				once.Do(func() {
					found <- struct{}{}
					<-release
				})
			}
			return fateSent
		})
	} else {
		cfg.Legacy.Store = heldStore{cfg.Legacy.Store, found, release}
	}
	late := managerOver(t, client, cfg)
	seen := make(chan shown, 1)
	go func() {
		ctx, err := late.LoadLegacy(context.Background(), token)
		if err != nil {
			t.Error(err)
			seen <- nothingShown
			return
		}
		s := shownTo(late, ctx)
		late.Put(ctx, "late", 1)
		if o, err := late.Finish(ctx); err != nil {
			t.Error(err)
		} else if o.Action == CookieSet {
			if got := byCookie(t, late, o.Value); got.values != "map[late:1]" || got.user != "" {
				s = got
			}
		}
		seen <- s
	}()
	<-found
	return func() shown { close(release); return <-seen }
}

// TestLateLegacyCopiesBringNothingBack has a first request that is held up until long after
// the session has ended on another server.
func TestLateLegacyCopiesBringNothingBack(t *testing.T) {
	past := func(t *testing.T, rb redistest.Backend, m *Manager) { t.Helper(); advance(t, rb, 2*time.Minute, m) }
	logout := func(m *Manager) func(ctx context.Context) {
		return func(ctx context.Context) {
			if err := m.Logout(ctx); err != nil {
				panic(err)
			}
		}
	}
	// Each ends the session of b, which was copied.
	ends := map[string]func(t *testing.T, rb redistest.Backend, m *Manager, b *mover){
		"logout": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) { b.request(logout(m)) },
		"logout without the legacy cookie": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			b.browser.request(logout(m))
		},
		"logout by the legacy cookie alone": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			b.cookie = ""
			b.request(logout(m))
		},
		"logout after rotations": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			for range 3 {
				b.browser.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
				past(t, rb, m)
			}
			b.browser.request(logout(m))
		},
		"logout by a rotated ID": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			first := b.cookie
			b.browser.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			(&browser{t, m, first}).request(logout(m))
		},
		"login": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		},
		"login as another": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			b.browser.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
		},
		"logout, and many sessions after it": func(t *testing.T, rb redistest.Backend, m *Manager, b *mover) {
			b.browser.request(logout(m))
			for range 40 { // of the same user: the hash is swept
				other := begin(t, m, "ann")
				other.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
				other.request(logout(m))
			}
			past(t, rb, m)
			for range 40 {
				begin(t, m, "ann").request(logout(m))
			}
		},
	}
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.IdleTimeout = 30 * time.Minute
		cfg.Lifetime = 100 * time.Hour
		for name, end := range ends {
			for _, variant := range mrand.Perm(4)[:rb.Rounds(4)] {
				cfg.Legacy.User = nil
				if variant&1 > 0 {
					cfg.Legacy.User = userValue
				}
				script := variant&2 > 0
				where := fmt.Sprintf("%s, user %v, script under way %v", name, cfg.Legacy.User != nil, script)
				m := manager(t, rb, cfg)
				token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(90*time.Hour))
				copy := lateCopy(t, rb, cfg, token, script)
				b := newMover(t, m, token)
				b.request(func(ctx context.Context) {
					if m.GetString(ctx, "k") != "v" {
						t.Errorf("%s: not copied", where)
					}
				})
				end(t, rb, m, b)
				past(t, rb, m)
				if got := byToken(t, m, token); got != nothingShown {
					t.Errorf("%s: the legacy cookie shows %+v", where, got)
				}
				if got := copy(); got != nothingShown {
					t.Errorf("%s: came back: %+v", where, got)
				}
				if got := byToken(t, m, token); got != nothingShown {
					t.Errorf("%s: the legacy cookie shows %+v after the late copy", where, got)
				}
			}
		}
	})
}

// A copy that is rotated more often than an owner keeps tombstones has, all the same, left
// one where it was made.
func TestALegacyCopyThatIsRotatedOftenIsNotCopiedAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		store := goStore{rb.Client, legacyPrefix}
		for _, user := range []func(map[string]any) string{nil, userValue} {
			cfg := Config{IdleTimeout: -1, Lifetime: 100 * time.Hour, Legacy: Legacy{Store: store, User: user}, Timeout: 5 * time.Second}
			m := manager(t, rb, cfg)
			token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(90*time.Hour))
			b := newMover(t, m, token)
			b.request(func(context.Context) {})
			for i := range 3 * defaultMax {
				b.browser.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
				advance(t, rb, time.Minute, m) // past the Grace
				b.browser.request(func(ctx context.Context) { m.Put(ctx, "n", i) })
			}
			if n, err := rb.Client.HLen(t.Context(), idOf(t, m, b.cookie).key).Result(); err != nil || n > defaultMax/2 {
				t.Errorf("%d fields, %v: every rotation leaves one until the legacy session ends", n, err)
			}
			before := liveIDs(t, rb.Client)
			if got := byToken(t, m, token); got != nothingShown || len(liveIDs(t, rb.Client)) != len(before) {
				t.Errorf("a second copy: %+v", got)
			}
			b.browser.request(func(ctx context.Context) { _ = m.Logout(ctx) })
			if got := byToken(t, m, token); got != nothingShown {
				t.Errorf("came back after logout: %+v", got)
			}
		}
		redistest.AssertAllTTL(t, rb.Client)
	})
}

// A copy that has ended for want of use stays ended, though the old servers know no idle
// timeout and still have the session.
func TestAnIdleLegacyCopyIsNotCopiedAgain(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.IdleTimeout, cfg.Rotation.Grace = 20*time.Minute, 10*time.Second
		for _, user := range []func(map[string]any) string{nil, userValue} {
			for _, rotated := range []bool{false, true} {
				cfg.Legacy.User = user
				m := manager(t, rb, cfg)
				token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(20*time.Hour))
				b := newMover(t, m, token)
				b.request(func(context.Context) {})
				if rotated {
					b.browser.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
				}
				advance(t, rb, 22*time.Minute, m)
				for range 20 { // of the same user: the hash is swept
					begin(t, m, "ann").request(func(ctx context.Context) { _ = m.Logout(ctx) })
					advance(t, rb, 11*time.Second, m)
				}
				if got := shownTo(m, b.load()); got != nothingShown {
					t.Errorf("user %v, rotated %v: came back: %+v", user != nil, rotated, got)
				}
				b.request(func(ctx context.Context) {
					if err := m.Login(ctx, "ann"); err != nil {
						t.Error(err)
					}
				})
				if got := byCookie(t, m, b.cookie); got.user != "ann" {
					t.Errorf("cannot log in after it: %+v", got)
				}
			}
		}
	})
}

// A request may end a legacy session that it has not loaded: its own cookie came first.
func TestALegacySessionThatWasNeverCopiedEndsToo(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		for _, end := range []string{"logout", "login"} {
			for _, user := range []func(map[string]any) string{nil, userValue} {
				cfg.Legacy.User = user
				m := manager(t, rb, cfg)
				token := legacySession(t, store, map[string]any{"user": "ann", "k": "v"}, time.Now().Add(90*time.Hour))
				copy := lateCopy(t, rb, cfg, token, true)
				b := &mover{*begin(t, m, ""), token}
				b.request(func(ctx context.Context) {
					var err error
					if end == "login" {
						err = m.Login(ctx, "ann")
					} else {
						err = m.Logout(ctx)
					}
					if err != nil {
						t.Error(err)
					}
				})
				if inStore(t, store, token) {
					t.Errorf("%s: still in the legacy store", end)
				}
				advance(t, rb, 2*time.Minute, m)
				if got := copy(); got != nothingShown {
					t.Errorf("%s, user %v: a late copy brought back %+v", end, user != nil, got)
				}
			}
		}
	})
}

// stockManager is the manager of a server that has not moved yet.
func stockManager(store scs.Store) *scs.SessionManager {
	// scs.New would start a goroutine for a store of its own.
	return &scs.SessionManager{Store: store, Codec: scs.GobCodec{}, Lifetime: 90 * time.Minute}
}

// TestOldAndNewServersSideBySide has a load balancer send a browser now to an old server
// and now to a new one.
func TestOldAndNewServersSideBySide(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.Legacy.User = userValue
		m := manager(t, rb, cfg)
		old := stockManager(store)
		atOld := func(token string, handler func(ctx context.Context)) string {
			t.Helper()
			ctx, err := old.Load(context.Background(), token)
			if err != nil {
				t.Fatal(err)
			}
			handler(ctx)
			if old.Status(ctx) != scs.Modified {
				return token
			}
			token, _, err = old.Commit(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return token
		}
		token := atOld("", func(ctx context.Context) { old.Put(ctx, "user", "ann"); old.Put(ctx, "cart", "book") })
		want := func(where, values string, v Values, ctx context.Context) {
			t.Helper()
			if got := fmt.Sprint(valuesOf(v, ctx)); got != values {
				t.Errorf("%s: %s, want %s", where, got, values)
			}
		}
		b := newMover(t, m, token)
		b.request(func(ctx context.Context) {
			want("new", "map[cart:book user:ann]", m, ctx)
			m.Put(ctx, "new", 1)
		})
		deadline := m.Info(b.load()).Expires
		atOld(token, func(ctx context.Context) {
			want("old after the copy", "map[cart:book user:ann]", old, ctx)
			if end := old.Deadline(ctx); !near(end, deadline) {
				t.Errorf("ends at %v on the old server, at %v on the new one", end, deadline)
			}
			old.Put(ctx, "old", 1)
		})
		b.request(func(ctx context.Context) {
			want("new after a change on the old one", "map[cart:book new:1 user:ann]", m, ctx)
			_ = m.Rotate(ctx)
		})
		atOld(token, func(ctx context.Context) { want("old after a rotation", "map[cart:book old:1 user:ann]", old, ctx) })
		// Rolled back: the old servers have the session, and the legacy cookie is still there.
		if b.token != token {
			t.Error("the legacy cookie was deleted")
		}
		for range 3 {
			atOld(b.token, func(ctx context.Context) { want("after a rollback", "map[cart:book old:1 user:ann]", old, ctx) })
		}
		// And once more to the new ones, where the copy is.
		b.request(func(ctx context.Context) {
			want("new after the rollback", "map[cart:book new:1 user:ann]", m, ctx)
			if m.UserID(ctx) != "ann" {
				t.Errorf("user %q", m.UserID(ctx))
			}
			if err := m.Logout(ctx); err != nil {
				t.Error(err)
			}
		})
		atOld(token, func(ctx context.Context) { want("old after a logout on the new one", "map[]", old, ctx) })
		if b.token != "" || b.cookie != "" {
			t.Errorf("cookies %q and %q are left", b.token, b.cookie)
		}

		// After a logout on an old server nothingShown gets a copy any more.
		token = atOld("", func(ctx context.Context) { old.Put(ctx, "user", "ann") })
		atOld(token, func(ctx context.Context) {
			if err := old.Destroy(ctx); err != nil {
				t.Error(err)
			}
		})
		if got := byToken(t, m, token); got != nothingShown {
			t.Errorf("copied after a logout on the old server: %+v", got)
		}
	})
}

// TestLegacyLifetimes has sessions that keep what they were promised.
func TestLegacyLifetimes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		store := goStore{rb.Client, legacyPrefix}
		begin := func(m *Manager, values map[string]any, left time.Duration) *mover {
			t.Helper()
			values["user"] = "ann"
			return newMover(t, m, legacySession(t, store, values, time.Now().Add(left)))
		}
		expires := func(b *mover, want time.Duration, what string) Outcome {
			t.Helper()
			return b.request(func(ctx context.Context) {
				if got := b.m.Info(ctx).Expires; !near(got, rb.Now(t).Add(want)) {
					t.Errorf("%s: ends in %v, want %v", what, got.Sub(rb.Now(t)), want)
				}
			})
		}
		alive := func(b *mover) bool { t.Helper(); return b.m.Exists(b.load(), "user") }
		base := Config{Lifetime: 2 * time.Hour, Legacy: Legacy{Store: store, User: userValue}, Timeout: 5 * time.Second}

		t.Run("absolute", func(t *testing.T) {
			cfg := base
			cfg.IdleTimeout = -1
			m := manager(t, rb, cfg)
			expires(begin(m, map[string]any{}, 100*time.Hour), 2*time.Hour, "of 100 hours, under a lifetime of 2")
			b := begin(m, map[string]any{}, time.Hour)
			expires(b, time.Hour, "of an hour")
			advance(t, rb, 50*time.Minute, m)
			b.request(func(ctx context.Context) { m.Put(ctx, "k", 1) })
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			expires(b, 10*time.Minute, "used and rotated after 50 minutes")
			advance(t, rb, 9*time.Minute, m)
			if !alive(b) {
				t.Error("ended before its deadline")
			}
			advance(t, rb, 2*time.Minute, m)
			if alive(b) {
				t.Error("outlived its deadline")
			}
		})
		t.Run("longer than ours", func(t *testing.T) {
			cfg := base
			cfg.Legacy.Lifetime, cfg.IdleTimeout = 30*24*time.Hour, -1
			m := manager(t, rb, cfg)
			b := begin(m, map[string]any{}, 20*24*time.Hour)
			expires(b, 20*24*time.Hour, "of 20 days")
			advance(t, rb, 19*24*time.Hour, m)
			expires(b, 24*time.Hour, "19 days later")
			expires(begin(m, map[string]any{}, 40*24*time.Hour), 30*24*time.Hour, "of 40 days")
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann"); err != nil {
					t.Error(err)
				}
			})
			expires(b, 2*time.Hour, "after a login here")
		})
		t.Run("idle", func(t *testing.T) {
			cfg := base
			cfg.IdleTimeout = 20 * time.Minute
			m := manager(t, rb, cfg)
			used, unused := begin(m, map[string]any{}, 2*time.Hour), begin(m, map[string]any{}, 2*time.Hour)
			used.request(func(context.Context) {})
			unused.request(func(context.Context) {})
			for range 3 {
				advance(t, rb, 19*time.Minute, m)
				used.browser.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" {
						t.Error("a copy in use has ended")
					}
				})
			}
			if byCookie(t, m, unused.cookie) != nothingShown {
				t.Error("an idle copy lives on")
			}
		})
		t.Run("remembered", func(t *testing.T) {
			cfg := base
			cfg.Remembered = Life{Lifetime: 30 * 24 * time.Hour, IdleTimeout: -1}
			cfg.Legacy.Lifetime = 30 * 24 * time.Hour
			for name, user := range map[string]func(map[string]any) string{"user": userValue, "no user": nil} {
				cfg.Legacy.User = user
				m := manager(t, rb, cfg)
				b := begin(m, map[string]any{scsRememberMe: true}, 10*24*time.Hour)
				o := expires(b, 10*24*time.Hour, name)
				if (o.MaxAge - 10*24*time.Hour).Abs() > 2*time.Second {
					t.Errorf("%s: Max-Age %v", name, o.MaxAge)
				}
				advance(t, rb, 9*24*time.Hour, m)
				if byCookie(t, m, b.cookie) == nothingShown {
					t.Errorf("%s: a remembered session was not remembered", name)
				}
				brief := begin(m, map[string]any{scsRememberMe: false}, 10*24*time.Hour)
				if o := expires(brief, 10*24*time.Hour, name+", not remembered"); o.MaxAge != 0 {
					t.Errorf("%s: Max-Age %v", name, o.MaxAge)
				}
			}
		})
		t.Run("persistent", func(t *testing.T) {
			cfg := base
			cfg.Persistent = true // as scs's Cookie.Persist, which is on by default
			cfg.Remembered = Life{Lifetime: 10 * time.Hour, IdleTimeout: -1}
			m := manager(t, rb, cfg)
			b := begin(m, map[string]any{}, 90*time.Minute)
			if o := expires(b, 90*time.Minute, "persistent"); (o.MaxAge - 90*time.Minute).Abs() > 2*time.Second {
				t.Errorf("Max-Age %v", o.MaxAge)
			}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			if o := b.request(func(ctx context.Context) { _ = m.Rotate(ctx) }); o.MaxAge < 9*time.Hour {
				t.Errorf("after a login: Max-Age %v", o.MaxAge)
			}
		})
		redistest.AssertAllTTL(t, rb.Client)
	})
}

// countedStore counts what it is asked for.
type countedStore struct {
	scs.Store
	asked atomic.Int64
}

func (s *countedStore) Find(token string) ([]byte, bool, error) {
	s.asked.Add(1)
	return s.Store.Find(token)
}

// A sibling host may set the legacy cookie, and ours, to what it likes.
func TestOnlyALegacyTokenIsTakenFromTheLegacyCookie(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		counted := &countedStore{Store: store}
		cfg.Legacy.Store = counted
		m := manager(t, rb, cfg)
		mine := begin(t, m, "eve")
		token := legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
		for name, value := range map[string]string{
			"none":                  "",
			"a cookie of ours":      mine.cookie,
			"the start of ours":     mine.cookie[:legacyTokenLen-1],
			"a byte short":          token[:legacyTokenLen-1],
			"a byte more":           token + "A",
			"another alphabet":      token[:legacyTokenLen-1] + "+",
			"a glob":                strings.Repeat("*", legacyTokenLen),
			"a line break":          token[:legacyTokenLen-2] + "\r\n",
			"another key":           "../" + token[3:],
			"braces":                "{" + token[2:] + "}",
			"of 43 runes":           strings.Repeat("ä", legacyTokenLen),
			"a token and a blank":   token + " ",
			"with a prefix, of 43 ": legacyPrefix + token[len(legacyPrefix):],
		} {
			if got := byToken(t, m, value); got != nothingShown {
				t.Errorf("%s: %+v", name, got)
			}
		}
		if n := counted.asked.Load(); n != 0 {
			t.Errorf("the legacy store was asked %d times", n)
		}
		// Nor does a legacy token in the place of ours lead anywhere.
		if got := byCookie(t, m, token); got != nothingShown || counted.asked.Load() != 0 {
			t.Errorf("%+v", got)
		}
		// Our own session counts before that of the legacy cookie, which is not looked up.
		both := &mover{*mine, token}
		if got := shownTo(m, both.load()); got.user != "eve" || counted.asked.Load() != 0 {
			t.Errorf("%+v", got)
		}
		if got := byToken(t, m, token); got.values != "map[k:v]" || counted.asked.Load() != 1 {
			t.Errorf("%+v, asked %d times", got, counted.asked.Load())
		}
	})
}

// deafStore hangs, whatever its context says, until it is let go.
type deafStore struct {
	scs.Store
	entered chan struct{} // nil: nothingShown counts
	until   chan struct{}
}

func (s deafStore) Find(token string) ([]byte, bool, error) {
	if s.entered != nil {
		s.entered <- struct{}{}
	}
	<-s.until
	return s.Store.Find(token)
}

// TestDeafLegacyStore has a store that hangs: requests are answered in time, and those
// calls that still wait hold a bounded number of goroutines.
func TestDeafLegacyStore(t *testing.T) {
	const timeout, requests = time.Second, 500
	store := memstore.NewWithCleanupInterval(0)
	deaf := deafStore{Store: store, until: make(chan struct{})}
	m := manager(t, mini(t), Config{Legacy: Legacy{Store: deaf}, Timeout: timeout})
	own := begin(t, m, "")
	token := legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for range requests {
		wg.Go(func() {
			start := time.Now()
			if _, err := m.LoadLegacy(context.Background(), token); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%v", err)
			}
			// The machine may be busy; what hangs would take until the end of the test.
			if took := time.Since(start); took > 10*timeout {
				t.Errorf("took %v", took)
			}
		})
	}
	wg.Wait()
	if n := runtime.NumGoroutine() - before; n < 1 || n > legacyCalls+10 {
		t.Errorf("%d goroutines are left of %d requests", n, requests)
	}
	// A session of ours does not ask it.
	if got := byCookie(t, m, own.cookie); got.values != "map[k:v]" {
		t.Errorf("%+v", got)
	}
	if got := shownTo(m, (&mover{*own, token}).load()); got.values != "map[k:v]" {
		t.Errorf("%+v", got)
	}
	// When it answers again, everything is as before.
	close(deaf.until)
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before+2; {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left", runtime.NumGoroutine()-before)
		}
		runtime.Gosched()
	}
	if got := byToken(t, m, token); got.values != "map[k:v]" {
		t.Errorf("%+v", got)
	}
}

// A store that is busy is no store that hangs.
func TestABusyLegacyStoreIsWaitedFor(t *testing.T) {
	store := memstore.NewWithCleanupInterval(0)
	deaf := deafStore{Store: store, entered: make(chan struct{}, 4*legacyCalls), until: make(chan struct{})}
	m := manager(t, mini(t), Config{Legacy: Legacy{Store: deaf}, Timeout: time.Minute})
	token := legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
	results := make(chan error, 4*legacyCalls)
	for range 4 * legacyCalls {
		go func() {
			ctx, err := m.LoadLegacy(context.Background(), token)
			if err == nil && m.GetString(ctx, "k") != "v" {
				err = errors.New("nothing found")
			}
			results <- err
		}()
	}
	for range legacyCalls {
		<-deaf.entered
	}
	close(deaf.until)
	for range 4 * legacyCalls {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
}

// A request whose client has gone does not wait for the legacy store.
func TestLegacyLoadIsCancelled(t *testing.T) {
	rb := mini(t)
	deaf := deafStore{Store: goStore{rb.Client, legacyPrefix}, entered: make(chan struct{}, 1), until: make(chan struct{})}
	defer close(deaf.until)
	m := manager(t, rb, Config{Legacy: Legacy{Store: deaf}, Timeout: time.Minute})
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-deaf.entered; cancel() }()
	if _, err := m.LoadLegacy(ctx, strings.Repeat("A", legacyTokenLen)); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// gobBomb is a session of a few bytes whose map of values claims 2²⁰-1 entries.
func gobBomb(t testing.TB) []byte {
	t.Helper()
	b, err := scs.GobCodec{}.Encode(time.Now().Add(time.Hour), map[string]any{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	const entry, bomb = "\x01\x01\x01a\x03int", "\x01\xfd\x0f\xff\xff\x01a\x03int"
	at := 0 // of the last message
	for next := 0; next < len(b); {
		at = next
		if b[at] > 0x7f {
			t.Fatal("a message of more than 127 bytes")
		}
		next += 1 + int(b[at])
	}
	last := strings.Replace(string(b[at+1:]), entry, bomb, 1)
	if len(last) != int(b[at])+len(bomb)-len(entry) || len(last) > 0x7f {
		t.Fatalf("no such entry in %q", b[at+1:])
	}
	return append(append(b[:at:at], byte(len(last))), last...)
}

func allocates(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestAGobBombInTheLegacyStoreIsNotDecoded(t *testing.T) {
	rb := mini(t)
	store := memstore.NewWithCleanupInterval(0)
	m := manager(t, rb, Config{Legacy: Legacy{Store: store}})
	bomb := gobBomb(t)
	if n := allocates(func() { _, _, _ = scs.GobCodec{}.Decode(bomb) }); n < 16<<20 {
		t.Errorf("scs allocates only %d bytes: this is no bomb", n)
	}
	token := legacySession(t, store, nil, time.Now().Add(time.Hour))
	if err := store.Commit(token, bomb, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	byToken(t, m, strings.Repeat("A", legacyTokenLen)) // connects, and asks for the time
	var got shown
	if n := allocates(func() { got = byToken(t, m, token) }); n > 1<<20 || got != nothingShown {
		t.Errorf("%d bytes allocated, %+v", n, got)
	}
	if m.Stats().Unreadable != 1 {
		t.Errorf("%+v", m.Stats())
	}
}

// What cannot be stored here is left out, and said.
func TestLegacyValuesThatCannotBeStored(t *testing.T) {
	rb := mini(t)
	store := memstore.NewWithCleanupInterval(0)
	var log bytes.Buffer
	m := manager(t, rb, Config{Legacy: Legacy{Store: store}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	var deep any = "too deep"
	for range 40 {
		deep = []any{deep}
	}
	gob.Register([]any{})
	token := legacySession(t, store, map[string]any{"deep": deep, "k": "v"}, time.Now().Add(time.Hour))
	if got := byToken(t, m, token); got.values != "map[k:v]" {
		t.Errorf("%+v", got)
	}
	if text := log.String(); !strings.Contains(text, "key=deep") || strings.Contains(text, "too deep") {
		t.Errorf("logged %q", text)
	}
}

// An operator learns of a Legacy.Lifetime that is shorter than what the old store gives.
func TestLegacySessionsThatLastLongerAreReported(t *testing.T) {
	rb := mini(t)
	store := memstore.NewWithCleanupInterval(0)
	var log bytes.Buffer
	m := manager(t, rb, Config{Legacy: Legacy{Store: store, Lifetime: time.Hour}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	copied := func(left time.Duration) {
		t.Helper()
		token := legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(left))
		if got := byToken(t, m, token); got.values != "map[k:v]" {
			t.Errorf("%+v", got)
		}
	}
	copied(time.Hour)
	copied(time.Hour + 10*time.Second) // by the clock of the old server
	if log.Len() > 0 {
		t.Errorf("logged %q", log.String())
	}
	copied(3 * time.Hour)
	copied(3 * time.Hour)
	if text := log.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, "left=3h0m0s lifetime=1h0m0s") {
		t.Errorf("logged %q", text)
	}
}

// A legacy session of a user is one of the user's: EndAll ends it, copied or not, and it counts.
func TestLegacySessionsOfAnAccount(t *testing.T) {
	eachLegacy(t, func(t *testing.T, rb redistest.Backend, store scs.Store, cfg Config) {
		cfg.Legacy.User = userValue
		ann, bob, cyd, dan := "ann "+t.Name(), "bob "+t.Name(), "cyd "+t.Name(), "dan "+t.Name() // one Redis is for all stores
		cfg.Accounts = Accounts{Max: 2}
		m := manager(t, rb, cfg)
		legacyOf := func(user string) string {
			return legacySession(t, store, map[string]any{"user": user}, time.Now().Add(20*time.Hour))
		}
		userOf := func(m *Manager, token string) string {
			ctx, err := m.LoadLegacy(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			return m.UserID(ctx)
		}
		copied, waiting, bobs := legacyOf(ann), legacyOf(ann), legacyOf(bob)
		if userOf(m, copied) != ann || len(listed(t, m, t.Context(), ann)) != 1 {
			t.Fatal("not copied")
		}
		// Half of a login plants a fence that nobody has raised.
		if err := m.BeginLogin(load(t, m), bob, time.Minute); err != nil {
			t.Fatal(err)
		}
		if userOf(m, bobs) != bob {
			t.Error("refused, though nothing was ended")
		}
		endAll(t, m, ann)
		advance(t, rb, time.Second, m)
		for name, token := range map[string]string{"copied": copied, "not copied yet": waiting} {
			if got := userOf(m, token); got != "" {
				t.Errorf("%s: %q is logged in after EndAll", name, got)
			}
		}
		// The cap holds for copies.
		for range 4 {
			if got := userOf(m, legacyOf(cyd)); got != cyd {
				t.Errorf("%q", got)
			}
			advance(t, rb, time.Second, m)
		}
		if list := listed(t, m, t.Context(), cyd); len(list) != 2 {
			t.Errorf("%d sessions under a cap of 2", len(list))
		}
		cfg.Accounts.WhenFull = RefuseLogin
		if got := userOf(manager(t, rb, cfg), legacyOf(cyd)); got != "" {
			t.Errorf("%q is logged in beyond the cap", got)
		}
		cfg.Accounts = Accounts{NotBefore: rb.Now(t)}
		if got := userOf(manager(t, rb, cfg), legacyOf(dan)); got != "" {
			t.Errorf("%q is logged in, by a session that may have begun before NotBefore", got)
		}
	})
}
