package session

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2/memstore"

	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// FuzzRecord puts bytes where a record and its large values should be. Whatever they are,
// a request is served, nobody is in who was not, and the visitor can log in.
func FuzzRecord(f *testing.F) {
	rb := mini(f)
	cfg := Config{Timeout: 5 * time.Second, Rotation: Rotation{Every: time.Hour}}
	sealed := cfg
	sealed.Secrets = [][]byte{secret}
	managers := []*Manager{manager(f, rb, cfg), manager(f, rb, sealed)}
	var victims []id
	seed := func(i id) {
		f.Add([]byte(rb.Mini.HGet(i.key, i.field)), []byte(rb.Mini.HGet(i.key, "v"+i.field)))
	}
	for _, m := range managers {
		b := begin(f, m, "ann")
		i := idOf(f, m, b.cookie)
		victims = append(victims, i)
		seed(i)
		b.request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", 2*apartAbove)) })
		seed(i)
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		seed(i)
		seed(idOf(f, m, b.cookie))
		guest := begin(f, m, "")
		seed(idOf(f, m, guest.cookie))
		guest.request(func(ctx context.Context) { _ = m.Logout(ctx) })
		seed(i)
	}
	live := rb.Mini.HGet(victims[0].key, victims[0].field)
	f.Add([]byte(live[:headLen+timesLen]), []byte(nil))
	f.Add(append([]byte(live[:headLen]), bytes.Repeat([]byte{0xff}, timesLen+200)...), []byte(nil))
	f.Add([]byte{formatRecord, 2}, []byte{formatRecord})
	f.Add(bytes.Repeat([]byte{formatRecord}, 300), []byte(nil))
	f.Add([]byte(tombstone(time.Now(), "")), []byte(nil))
	f.Add([]byte(tombstone(time.Now(), strings.Repeat("\x00", 64))), []byte(nil))
	f.Add([]byte{formatRotated, 0, 0, 0, 0}, []byte(nil))
	f.Add([]byte{formatEnded}, []byte(nil))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, raw, values []byte) {
		for n, m := range managers {
			i := victims[n]
			cookie := cookieOf(t, m, i)
			damage := func() {
				rb.Mini.Del(i.key)
				rb.Mini.HSet(i.key, i.field, string(raw))
				if len(values) > 0 {
					rb.Mini.HSet(i.key, "v"+i.field, string(values))
				}
				rb.Mini.SetTTL(i.key, time.Hour)
			}
			for name, do := range map[string]func(ctx context.Context) error{
				"read":   func(ctx context.Context) error { return nil },
				"put":    func(ctx context.Context) error { m.Put(ctx, "k", 1); return nil },
				"rotate": m.Rotate,
				"login":  func(ctx context.Context) error { return m.Login(ctx, "bob") },
				"same":   func(ctx context.Context) error { return m.Login(ctx, "ann") },
				"logout": m.Logout,
			} {
				damage()
				b := &browser{t, m, cookie}
				b.request(func(ctx context.Context) {
					if user := m.UserID(ctx); user != "" && user != "ann" {
						t.Errorf("%s: user %q", name, user)
					}
					if err := do(ctx); err != nil {
						t.Errorf("%s: %v", name, err)
					}
					m.Info(ctx)
				})
				if name == "logout" && look(t, m, cookie).user != "" {
					t.Error("still in after logout")
				}
				b.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
				if look(t, m, b.cookie).user != "bob" {
					t.Errorf("cannot log in after %s", name)
				}
			}
			damage()
			if _, err := m.SecretUse(t.Context()); err != nil {
				t.Error(err)
			}
			m.records.sweep(t.Context(), i)
			load(t, m, cookie)
		}
		rb.Mini.FlushAll()
	})
}

// FuzzRead reads bytes in the place of a record, and of its large values, without a Redis.
// With secrets only what was sealed opens, but for the bytes that scripts write.
func FuzzRead(f *testing.F) {
	rb := mini(f)
	type victim struct {
		m     *Manager
		at    id
		whole string
	}
	var victims []victim
	for _, secrets := range [][][]byte{nil, {secret}} {
		m := manager(f, rb, Config{Secrets: secrets})
		b := begin(f, m, "ann")
		for range 2 {
			i := idOf(f, m, b.cookie)
			whole := rb.Mini.HGet(i.key, i.field)
			victims = append(victims, victim{m, i, whole})
			f.Add([]byte(whole), []byte(nil))
			b.request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", 2*apartAbove)) })
			f.Add([]byte(rb.Mini.HGet(i.key, i.field)), []byte(rb.Mini.HGet(i.key, "v"+i.field)))
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx); m.Remove(ctx, "large") })
			f.Add([]byte(rb.Mini.HGet(i.key, i.field)), []byte(nil))
		}
	}
	now := time.Now().UnixMicro()
	f.Fuzz(func(t *testing.T, raw, values []byte) {
		for _, v := range victims {
			r, whole := v.m.records, v.whole
			got, err := r.read(v.at, bytes.Clone(raw), now, func() ([]byte, error) { return values, nil })
			switch {
			case got.what == unreadable && err == nil || got.what != unreadable && err != nil:
				t.Fatalf("standing %d and %v", got.what, err)
			case got.what == rotated:
				if to, err := r.sealer.follow(r.keys, v.at, got.leads); err == nil && to.owner != v.at.owner {
					t.Fatal("a rotated ID leads to another owner")
				}
			case got.what != live:
			case got.record.who.user != "" && got.record.who.user != "ann":
				t.Fatalf("somebody else's record: %q", got.record.who.user)
			case r.sealer.ring.Len() > 0 && !got.record.head.apart &&
				(string(raw[:headLen]) != whole[:headLen] || string(raw[len(raw)-seal.Tag:]) != whole[len(whole)-seal.Tag:]):
				t.Fatalf("%q opens", raw)
			}
			if got.what == live {
				for range got.record.values.Decode() {
				}
			}
		}
	})
}

// FuzzCookie sends bytes as a cookie. Only a cookie that was given leads to a session, and
// no other is adopted.
func FuzzCookie(f *testing.F) {
	rb := mini(f)
	var managers []*Manager
	var cookies []string
	for _, cfg := range []Config{
		{Prefix: "plain:"}, {Prefix: "second:", Secrets: [][]byte{secret, newSecret}},
		{Prefix: "third:", Secrets: [][]byte{secret}, Legacy: Legacy{Store: memstore.NewWithCleanupInterval(0)}},
	} {
		cfg.Timeout = 5 * time.Second
		m := manager(f, rb, cfg)
		b := begin(f, m, "ann")
		managers, cookies = append(managers, m), append(cookies, b.cookie)
		i := idOf(f, m, b.cookie)
		f.Add(b.cookie)
		f.Add(strings.ToUpper(b.cookie))
		f.Add(string(i.token[:]))
		f.Add(i.key)
		f.Add(testPlain(i))
	}
	for _, seed := range []string{"", ".", strings.Repeat("a", 64), strings.Repeat("a", 43), "{}", "\x00", "MTIz|x|y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cookie string) {
		for n, m := range managers {
			ctx, err := m.LoadLegacy(t.Context(), cookie, cookie)
			if err != nil {
				t.Fatal(err)
			}
			// base64 has several spellings of its last character, and lets CR and LF pass.
			canonical := strings.NewReplacer("\r", "", "\n", "").Replace(cookie)
			given := strings.HasPrefix(canonical, cookies[n][:len(cookies[n])-2])
			if m.UserID(ctx) != "" && !given {
				t.Errorf("%q leads to a session", cookie)
			}
			// The same bytes again find the tombstone that those before have left.
			again := m.state(ctx).dead
			m.Put(ctx, "k", 1)
			if o := finish(t, m, ctx); !given && (again != (o == Outcome{}) || o.Value == cookie && cookie != "") {
				t.Errorf("%q: %+v", cookie, o)
			}
		}
		if len(rb.Mini.Keys()) > 1000 {
			keep := map[string]bool{}
			for n, m := range managers {
				keep[idOf(t, m, cookies[n]).key] = true
			}
			for _, key := range rb.Mini.Keys() {
				if !keep[key] {
					rb.Mini.Del(key)
				}
			}
		}
	})
}

// testPlain is the cookie of an ID without a signature.
func testPlain(i id) string {
	c, _ := signer{}.sign(i.cookie())
	return c
}
