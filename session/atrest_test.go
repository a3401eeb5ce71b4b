package session

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

var newSecret = []byte("fedcba9876543210fedcba9876543210")

// dump is all that a server holds: keys, values and what DUMP makes of them.
func dump(t testing.TB, client redis.UniversalClient) string {
	t.Helper()
	var all strings.Builder
	var mu sync.Mutex
	read := func(ctx context.Context, node *redis.Client) error {
		keys, err := node.Keys(ctx, "*").Result()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, key := range keys {
			d, err := node.Dump(ctx, key).Result()
			if err != nil {
				return err
			}
			v, err := node.Get(ctx, key).Result()
			if err != nil {
				return err
			}
			fmt.Fprintf(&all, "%s\n%s\n%s\n", key, v, d)
		}
		return nil
	}
	var err error
	if c, ok := client.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(t.Context(), read)
	} else {
		err = read(t.Context(), client.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func allKeys(t testing.TB, client redis.UniversalClient) (all []string) {
	t.Helper()
	var mu sync.Mutex
	read := func(ctx context.Context, node *redis.Client) error {
		keys, err := node.Keys(ctx, "*").Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, keys...)
		return err
	}
	var err error
	if c, ok := client.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(t.Context(), read)
	} else {
		err = read(t.Context(), client.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// tokenOf is the secret part of a cookie of m.
func tokenOf(t testing.TB, m *Manager, cookie string) string {
	t.Helper()
	value, _, ok := m.verify(cookie)
	token, _, ok2 := splitCookie(value)
	if !ok || !ok2 {
		t.Fatalf("not a cookie: %q", cookie)
	}
	return token
}

func keyOf(t testing.TB, m *Manager, cookie string) string {
	t.Helper()
	value, _, _ := m.verify(cookie)
	token, tag, ok := splitCookie(value)
	if !ok {
		t.Fatalf("not a cookie: %q", cookie)
	}
	return newID(m.store.prefix, token, tag).key
}

func TestNothingReadableAtRest(t *testing.T) {
	const user, value, key = "ann.of.green.gables", "a very private value", "the name of a value"
	for _, sealer := range []Sealer{nil, SecureCookieSealer{}} {
		t.Run(fmt.Sprintf("%T", sealer), func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
				for _, sealed := range []bool{true, false} {
					cfg := Config{}
					if sealed {
						cfg.Secrets, cfg.Sealer = [][]byte{secret}, sealer
					} else if sealer != nil {
						continue
					}
					m := manager(t, rb, cfg)
					var cookies []string
					b := &browser{t, m, ""}
					step := func(f func(ctx context.Context)) {
						b.request(f)
						cookies = append(cookies, b.cookie)
					}
					step(func(ctx context.Context) { m.Put(ctx, key, value) })
					step(func(ctx context.Context) { _ = m.Login(ctx, user) })
					step(func(ctx context.Context) { _ = m.Rotate(ctx) })
					step(func(ctx context.Context) { m.Put(ctx, key, value+"!") })
					if got := look(t, m, b.cookie); got.user != user {
						t.Fatalf("%+v", got)
					}
					all := dump(t, rb.Client)
					if rb.Mini == nil && !strings.Contains(all, "gatehouse:") {
						t.Fatal("the dump is empty")
					}
					secrets := []string{string(secret), string(secret[:16])}
					for _, c := range cookies {
						secrets = append(secrets, tokenOf(t, m, c))
						raw, _ := base64.RawURLEncoding.DecodeString(tokenOf(t, m, c))
						secrets = append(secrets, string(raw))
					}
					if sealed {
						secrets = append(secrets, user, value, key)
					}
					for _, s := range secrets {
						if strings.Contains(all, s) {
							t.Errorf("sealed %v: Redis holds %q", sealed, s)
						}
					}
					keys := strings.Join(allKeys(t, rb.Client), "\n")
					if strings.Contains(keys, user) {
						t.Errorf("a key shows the user: %q", keys)
					}
					// The test sees what is there to be seen.
					if !sealed && (!strings.Contains(all, user) || !strings.Contains(all, value)) {
						t.Error("plain records do not show their values: this test is blind")
					}
				}
			})
		})
	}
}

// logged is a logger and what it wrote.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestUnreadableRecordsAreAbsent(t *testing.T) {
	type thing struct {
		name string
		// do damages the record at key; other is that of another session of the
		// same user.
		do func(t *testing.T, c redis.UniversalClient, key, other string)
		// plain: it is noticed without secrets, too
		plain bool
	}
	set := func(t *testing.T, c redis.UniversalClient, key, value string) {
		if err := c.Set(t.Context(), key, value, redis.KeepTTL).Err(); err != nil {
			t.Fatal(err)
		}
	}
	things := []thing{
		{"of another session", func(t *testing.T, c redis.UniversalClient, key, other string) {
			set(t, c, key, c.Get(t.Context(), other).Val())
		}, false},
		{"unknown format", func(t *testing.T, c redis.UniversalClient, key, _ string) {
			set(t, c, key, "\x09"+c.Get(t.Context(), key).Val()[1:])
		}, true},
		{"unknown secret", func(t *testing.T, c redis.UniversalClient, key, _ string) {
			v := c.Get(t.Context(), key).Val()
			set(t, c, key, v[:headLen+8]+"abcd"+v[liveHeader:])
		}, false},
		{"one byte", func(t *testing.T, c redis.UniversalClient, key, _ string) { set(t, c, key, "\x01") }, true},
		{"text", func(t *testing.T, c redis.UniversalClient, key, _ string) { set(t, c, key, `{"user":"root"}`) }, true},
		{"a list", func(t *testing.T, c redis.UniversalClient, key, _ string) {
			c.Del(t.Context(), key)
			c.RPush(t.Context(), key, "x")
			c.Expire(t.Context(), key, 1<<40)
		}, true},
		{"rotated to garbage", func(t *testing.T, c redis.UniversalClient, key, _ string) {
			set(t, c, key, "\x02garbage, long enough to be sealed")
		}, true},
		{"rotated to nothing", func(t *testing.T, c redis.UniversalClient, key, _ string) { set(t, c, key, "\x02") }, true},
	}
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, _ *Manager) {
		sealed := strings.HasSuffix(t.Name(), "secrets=1")
		log := &logged{}
		cfg := Config{Logger: log.logger()}
		if sealed {
			cfg.Secrets = [][]byte{secret}
		}
		m := manager(t, rb, cfg)
		for _, thing := range things {
			if !sealed && !thing.plain {
				continue
			}
			b, other := &browser{t, m, ""}, &browser{t, m, ""}
			for _, b := range []*browser{b, other} {
				b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann@example.com"); m.Put(ctx, "private", "value") })
			}
			key, old := keyOf(t, m, b.cookie), b.cookie
			thing.do(t, rb.Client, key, keyOf(t, m, other.cookie))
			damaged, before := rb.Client.Dump(t.Context(), key).Val(), m.Stats().Unreadable
			if got := look(t, m, b.cookie); got != (seen{values: "map[]"}) {
				t.Errorf("%s: %+v", thing.name, got)
			}
			if n := m.Stats().Unreadable - before; n != 1 {
				t.Errorf("%s: counted %d times", thing.name, n)
			}
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann@example.com"); err != nil {
					t.Errorf("%s: %v", thing.name, err)
				}
			})
			if got := look(t, m, b.cookie); got.user == "" || b.cookie == old {
				t.Errorf("%s: cannot log in: %+v", thing.name, got)
			}
			if rb.Client.Dump(t.Context(), key).Val() != damaged {
				t.Errorf("%s: the record was not left alone", thing.name)
			}
			for _, s := range []string{"ann@example.com", "private", "value", tokenOf(t, m, old), b.cookie, string(secret)} {
				if strings.Contains(log.String(), s) {
					t.Errorf("%s: the log shows %q:\n%s", thing.name, s, log)
				}
			}
			if !strings.Contains(log.String(), "cannot be read") {
				t.Errorf("%s: not logged", thing.name)
			}
		}
	})
}

func TestEveryBitOfASealedRecordCounts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Name == "cluster" {
			t.Skip("no different")
		}
		m := manager(t, rb, Config{Secrets: [][]byte{secret}})
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "k", "v") })
		live, old := keyOf(t, m, b.cookie), b.cookie
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		for name, tc := range map[string]struct {
			key, cookie string
			free        func(i int) bool // bytes that scripts write
		}{
			"live":  {keyOf(t, m, b.cookie), b.cookie, func(i int) bool { return 1 <= i && i < headLen+8 }},
			"moved": {live, old, func(int) bool { return false }},
		} {
			whole := rb.Client.Get(t.Context(), tc.key).Val()
			try := func(v string) string {
				rb.Client.Set(t.Context(), tc.key, v, redis.KeepTTL)
				return look(t, m, tc.cookie).user
			}
			for i := range len(whole) {
				if tc.free(i) {
					continue
				}
				v := []byte(whole)
				v[i] ^= 1 << (i % 8)
				if try(string(v)) != "" {
					t.Errorf("%s: a flipped bit of byte %d was not noticed", name, i)
				}
				if try(whole[:i]) != "" {
					t.Errorf("%s: cut to %d bytes it was still read", name, i)
				}
			}
			if try(whole+"x") != "" {
				t.Errorf("%s: a byte more was not noticed", name)
			}
			if try(whole) != "ann" {
				t.Errorf("%s: the whole record is not read", name)
			}
		}
	})
}

func TestSecretsRotate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		site := func(secrets ...[]byte) *Manager { return manager(t, rb, Config{Secrets: secrets, IdleTimeout: -1}) }
		before, rolling, both, after := site(secret), site(secret, newSecret), site(newSecret, secret), site(newSecret)
		user := func(m *Manager, cookie string) string { return look(t, m, cookie).user }
		use := func(m *Manager, want SecretUse) {
			t.Helper()
			got, err := m.SecretUse(t.Context())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		}

		visitor := func(m *Manager) *browser {
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann"); m.Put(ctx, "k", "v") })
			return b
		}
		regular, gone := visitor(before), visitor(before)
		use(both, SecretUse{Secrets: []int{0, 2}})

		// Servers that know the new secret first only read with it, so that during a
		// rollout nobody meets a server that cannot read what another has written.
		newcomer := visitor(both)
		if user(rolling, newcomer.cookie) != "ann" || user(rolling, regular.cookie) != "ann" {
			t.Error("a server with the new secret in second place cannot read both")
		}

		// One request that only reads moves cookie and record to the new secret.
		regular.m = both
		o := regular.request(func(ctx context.Context) {
			if both.UserID(ctx) != "ann" {
				t.Error("logged out by a new secret")
			}
		})
		if o.Action != CookieSet {
			t.Errorf("the cookie was not signed anew: %+v", o)
		}
		use(both, SecretUse{Secrets: []int{2, 1}})
		if o := regular.request(func(context.Context) {}); o.Action != CookieKeep {
			t.Errorf("signed anew once more: %+v", o)
		}

		// Dropping the old one logs out only who never came back.
		use(after, SecretUse{Secrets: []int{2}, Unknown: 1})
		if got := look(t, after, regular.cookie); got.user != "ann" || got.values != "map[k:v]" {
			t.Errorf("a regular visitor: %+v", got)
		}
		gone.m = after
		gone.request(func(ctx context.Context) {
			if after.UserID(ctx) != "" {
				t.Error("a dropped secret still works")
			}
			if err := after.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
		})
		if user(after, gone.cookie) != "ann" {
			t.Error("who was logged out cannot log in")
		}
	})
}

func TestSecretUseCountsEveryKindOfRecord(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		const prefix = `we*ird[p]?re\fix:`
		plain, sealed := manager(t, rb, Config{Prefix: prefix}), manager(t, rb, Config{Prefix: prefix, Secrets: [][]byte{secret}})
		other := manager(t, rb, Config{Prefix: "weXird[p]?re", Secrets: [][]byte{secret}})
		for _, m := range []*Manager{plain, sealed, other} {
			for range scanPage {
				(&browser{t, m, ""}).request(func(ctx context.Context) { m.Put(ctx, "k", 1) })
			}
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { m.Put(ctx, "k", 1) })
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		}
		for _, foreign := range []string{"{x}:s:list", "{y}:s:junk"} {
			if foreign == "{x}:s:list" {
				rb.Client.RPush(t.Context(), prefix+foreign, 1)
			} else {
				rb.Client.Set(t.Context(), prefix+foreign, "junk", 0)
			}
			defer rb.Client.Del(t.Context(), prefix+foreign)
		}
		// Of the three IDs one was moved, one ended and one is live.
		want := SecretUse{Secrets: []int{scanPage + 2}, Unsealed: scanPage + 2, Unknown: 1}
		if got, err := sealed.SecretUse(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		want = SecretUse{Secrets: []int{}, Unsealed: scanPage + 2, Unknown: scanPage + 3}
		if got, err := plain.SecretUse(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	})
}
