package session

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// TestAFullRedisLetsPeopleOut: whatever ends a session ends it when Redis has no memory left, also
// with events, which are told later or in a log, and one of the legacy store.
func TestAFullRedisLetsPeopleOut(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := server.Client()
	full := func(t *testing.T, limit string) {
		if err := client.ConfigSet(t.Context(), "maxmemory", limit).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for name, cfg := range map[string]Config{
		"plain": {}, "events": {Events: Events{Retention: time.Hour}}, "sealed": {Secrets: [][]byte{secret}, KeySecret: keySecret},
	} {
		t.Run(name, func(t *testing.T) {
			store := goStore{client, legacyPrefix}
			cfg.Timeout, cfg.Prefix = 5*time.Second, name+":"
			cfg.Legacy = Legacy{Store: store, Lifetime: time.Hour, User: func(v map[string]any) string { s, _ := v["user"].(string); return s }}
			m := managerOver(t, client, cfg)
			ann := []*browser{begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "ann")}
			bob, cas := begin(t, m, "bob"), begin(t, m, "cas")
			legacy := func() string {
				return legacySession(t, store, map[string]any{"user": "leo"}, time.Now().Add(time.Hour))
			}
			old, copied := legacy(), legacy()
			visit := func(token string, f func(ctx context.Context)) {
				ctx, err := m.LoadLegacy(t.Context(), token)
				if err != nil {
					t.Fatal(err)
				}
				f(ctx)
				if _, err := m.Finish(ctx); err != nil {
					t.Fatal(err)
				}
			}
			visit(copied, func(ctx context.Context) { m.Put(ctx, "x", 1) })
			list, err := m.List(t.Context(), "ann")
			if err != nil || len(list) != 5 {
				t.Fatal(list, err)
			}

			full(t, "1")
			defer full(t, "0")
			must := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			ann[0].request(func(ctx context.Context) { must("logout", m.Logout(ctx)) })
			ann[1].request(func(ctx context.Context) {
				must("end", m.End(t.Context(), "ann", m.Info(ctx).Handle, Cause{}))
			})
			ann[2].request(func(ctx context.Context) {
				// The others are over. Its own new ID has no room.
				list, err := m.EndOthers(ctx, Cause{})
				if len(list) != 2 || !errors.Is(err, ErrUnavailable) {
					t.Errorf("end others: %v, %v", list, err)
				}
			})
			_, err = m.EndAll(t.Context(), "bob", Cause{})
			must("end all", err)
			_, err = m.EndAll(t.Context(), "nobody", Cause{})
			must("end all of who has none", err)
			visit(old, func(ctx context.Context) {
				if got := m.UserID(ctx); got != "leo" {
					t.Errorf("a legacy session without a copy: %q", got)
				}
			})
			ctx, err := m.LoadLegacy(t.Context(), old)
			if err != nil {
				t.Fatal(err)
			}
			m.Put(ctx, "x", 1)
			if out, err := m.Finish(ctx); !errors.Is(err, ErrUnavailable) || out.Action != CookieKeep {
				t.Errorf("a change of one without a copy: %+v, %v", out, err)
			}
			for _, token := range []string{old, copied} {
				visit(token, func(ctx context.Context) { must("logout of a legacy session", m.Logout(ctx)) })
			}
			if got := look(t, m, cas.cookie).user; got != "cas" {
				t.Errorf("who stays is %q", got)
			}
			full(t, "0")
			for i, want := range []string{"", "", "ann", "", ""} {
				if got := look(t, m, ann[i].cookie).user; got != want {
					t.Errorf("%d: %q, want %q", i, got, want)
				}
			}
			if got := look(t, m, bob.cookie).user; got != "" {
				t.Errorf("bob: %q", got)
			}
			for _, token := range []string{old, copied} {
				visit(token, func(ctx context.Context) {
					if got := m.UserID(ctx); got != "" {
						t.Errorf("legacy: %q", got)
					}
				})
			}
		})
	}
}

// TestAFullRedisBringsNothingBack: a legacy session that was logged out, or copied and changed, is
// not shown from the legacy store while there is no room for a copy, with and without a user.
func TestAFullRedisBringsNothingBack(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := server.Client()
	for _, user := range []func(map[string]any) string{nil, userValue} {
		store := goStore{client, legacyPrefix}
		m := managerOver(t, client, Config{Timeout: 5 * time.Second, Legacy: Legacy{Store: store, Lifetime: time.Hour, User: user}})
		visit := func(token string, f func(ctx context.Context)) {
			t.Helper()
			ctx, err := m.LoadLegacy(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			f(ctx)
			if _, err := m.Finish(ctx); err != nil {
				t.Fatal(err)
			}
		}
		values := map[string]any{"user": "leo", "cart": "old"}
		until := time.Now().Add(time.Hour)
		out, changed := legacySession(t, store, values, until), legacySession(t, store, values, until)
		b, _, _ := store.Find(out)
		visit(out, func(ctx context.Context) { m.Put(ctx, "x", 1) })
		visit(out, func(ctx context.Context) { _ = m.Logout(ctx) })
		if err := store.Commit(out, b, until); err != nil { // an old server is late
			t.Fatal(err)
		}
		visit(changed, func(ctx context.Context) { m.Put(ctx, "cart", "new") })
		for _, limit := range []string{"1", "0"} {
			if err := client.ConfigSet(t.Context(), "maxmemory", limit).Err(); err != nil {
				t.Fatal(err)
			}
			visit(out, func(ctx context.Context) {
				if got := m.Get(ctx, "user"); got != nil {
					t.Errorf("with a user %v, maxmemory %s: who has logged out is %v", user != nil, limit, got)
				}
			})
			visit(changed, func(ctx context.Context) {
				if got := m.Get(ctx, "cart"); got != "new" {
					t.Errorf("with a user %v, maxmemory %s: the cart is %v", user != nil, limit, got)
				}
			})
		}
	}
}

// TestALoginThatMeetsAFullRedis: memory is used up between Login and Finish. Then the session from
// before stays whole, with its values in a field of their own.
func TestALoginThatMeetsAFullRedis(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := server.Client()
	full := func(limit string) {
		if err := client.ConfigSet(t.Context(), "maxmemory", limit).Err(); err != nil {
			t.Fatal(err)
		}
	}
	large := strings.Repeat("x", 2*apartAbove)
	for _, later := range []bool{false, true} {
		m := managerOver(t, client, Config{Timeout: 5 * time.Second})
		b := begin(t, m, "ann")
		b.request(func(ctx context.Context) { m.Put(ctx, "large", large) })
		ctx := load(t, m, b.cookie)
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
		if later {
			m.Put(ctx, "k", 1)
		}
		full("1")
		if out, err := m.Finish(ctx); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
			t.Errorf("%v: %v, %+v", later, err, out)
		}
		full("0")
		ctx = load(t, m, b.cookie)
		if m.UserID(ctx) != "ann" || m.GetString(ctx, "large") != large {
			t.Errorf("%v: the session from before is %q, with %d bytes", later, m.UserID(ctx), len(m.GetString(ctx, "large")))
		}
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Fatal(err)
			}
		})
		if got := m.GetString(load(t, m, b.cookie), "large"); got != large {
			t.Errorf("%v: the login has %d bytes", later, len(got))
		}
	}
}
