package session

import (
	"context"
	"strings"
	"testing"
	"time"
)

// FuzzRecord puts bytes where a record should be. Whatever they are, a request
// is served and can log in.
func FuzzRecord(f *testing.F) {
	rb := mini(f)
	plain, sealed := manager(f, rb, Config{}), manager(f, rb, Config{Secrets: [][]byte{secret}})
	managers := []*Manager{plain, sealed}
	var victims []id
	for _, m := range managers {
		b := begin(f, m, "ann")
		at := m.store.state(load(f, m, b.cookie)).base.id
		victims = append(victims, at)
		f.Add([]byte(rb.Client.Get(f.Context(), at.key).Val()))
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		f.Add([]byte(rb.Client.Get(f.Context(), at.key).Val()))
	}
	live := appendLive(nil, 1, time.Now().UnixMilli(), plainKey)
	f.Add(live)
	f.Add(appendMeta(live, meta{user: "ann", deadline: 1 << 60}))
	f.Add(append(appendMeta(live, meta{user: "ann", deadline: time.Now().Add(time.Hour).UnixMilli()}), 1, 2, 3))
	f.Add(append(live, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1))
	f.Add([]byte{formatMoved, 0, 0, 0, 0})
	f.Add([]byte{formatEnded})
	f.Add([]byte{formatLoggedOut})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		for i, m := range managers {
			cookie, err := m.signer.sign(victims[i].cookie())
			if err != nil {
				t.Fatal(err)
			}
			rb.Mini.Set(victims[i].key, string(raw))
			for _, do := range []func(ctx context.Context) error{
				func(ctx context.Context) error { return nil },
				func(ctx context.Context) error { m.Put(ctx, "k", 1); return nil },
				func(ctx context.Context) error { return m.Rotate(ctx) },
				func(ctx context.Context) error { return m.Login(ctx, "bob") },
				func(ctx context.Context) error { return m.Logout(ctx) },
			} {
				b := &browser{t, m, cookie}
				b.request(func(ctx context.Context) {
					if err := do(ctx); err != nil {
						t.Error(err)
					}
					m.Info(ctx)
				})
			}
			b := &browser{t, m, cookie}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
			if look(t, m, b.cookie).user != "bob" {
				t.Error("cannot log in")
			}
			if _, err := m.SecretUse(t.Context()); err != nil {
				t.Error(err)
			}
		}
		rb.Mini.FlushAll()
	})
}

// FuzzCookie sends bytes as a cookie. Only a cookie that was given leads to a
// session, and no other is adopted.
func FuzzCookie(f *testing.F) {
	rb := mini(f)
	var managers []*Manager
	var cookies []string
	for _, cfg := range []Config{
		{}, {Prefix: "second:", Secrets: [][]byte{secret, newSecret}},
		{Prefix: "third:", Secrets: [][]byte{secret}, Legacy: goStore{rb.Client, "scs:session:"}},
	} {
		m := manager(f, rb, cfg)
		b := begin(f, m, "ann")
		managers, cookies = append(managers, m), append(cookies, b.cookie)
		f.Add(b.cookie)
		f.Add(strings.ToUpper(b.cookie))
		f.Add(tokenOf(f, m, b.cookie))
	}
	for _, seed := range []string{"", ".", strings.Repeat("a", tokenLen), strings.Repeat("a", tagLen) + "." + strings.Repeat("a", tokenLen), "{}", "\x00", "MTIz|x|y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, cookie string) {
		for i, m := range managers {
			ctx := load(t, m, cookie)
			// base64 has several spellings of its last character, and lets CR and LF pass.
			canonical := strings.NewReplacer("\r", "", "\n", "").Replace(cookie)
			given := strings.HasPrefix(canonical, cookies[i][:len(cookies[i])-2])
			if m.UserID(ctx) != "" && !given {
				t.Errorf("%q leads to a session", cookie)
			}
			m.Put(ctx, "k", 1)
			if o := commit(t, m, ctx); !given && (o.Action != CookieSet || o.Value == cookie) {
				t.Errorf("%q: %+v", cookie, o)
			}
		}
		if len(rb.Mini.Keys()) > 1000 {
			keep := map[string]bool{}
			for i, m := range managers {
				keep[keyOf(t, m, cookies[i])] = true
			}
			for _, key := range rb.Mini.Keys() {
				if !keep[key] {
					rb.Mini.Del(key)
				}
			}
		}
	})
}
