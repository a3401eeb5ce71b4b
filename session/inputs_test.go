package session

import (
	"context"
	"errors"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// userIDs that somebody may have, all different.
var userIDs = []string{
	"a", "A", "0", " ", "\x00", "\xff", "\xff\xfe", "\xc3\x28", "ü", "u\u0308", "\u202eabc", "\r\n", "a\nb", "a:b", "a", // twice the first
	"{}", "{a}", "}{", "{user}:1", "gatehouse:{000}:x", "*", "?", "[a-z]", `\`, "-1", "null", "anonymous",
	strings.Repeat("x", maxUserID-1), strings.Repeat("x", maxUserID), strings.Repeat("\xff", maxUserID), strings.Repeat("{", maxUserID),
}

func TestUserIDs(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		shape := regexp.MustCompile(`^gatehouse:\{[0-9A-Za-z]{3}\}:[0-9A-Za-z_-]{22}$`)
		keys := make(map[string]string)
		cookies := make(map[string]string)
		for _, user := range userIDs {
			b := begin(t, m, user)
			key := idOf(t, m, b.cookie).key
			if !shape.MatchString(key) {
				t.Errorf("%.20q: key %q", user, key)
			}
			if other, ok := keys[key]; ok && other != user {
				t.Errorf("%.20q and %.20q have one key", user, other)
			}
			keys[key], cookies[b.cookie] = user, user
			if other := idOf(t, m, begin(t, m, user).cookie).key; other != key {
				t.Errorf("%.20q: two sessions at %q and %q", user, key, other)
			}
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			if got := look(t, m, b.cookie); got.user != user || got.values != "map[k:v]" {
				t.Errorf("%.20q: rotated: %.20q %v", user, got.user, got.values)
			}
		}
		for cookie, user := range cookies {
			if got := look(t, m, cookie).user; got != user {
				t.Errorf("%.20q: %.20q", user, got)
			}
			(&browser{t, m, cookie}).request(func(ctx context.Context) { _ = m.Logout(ctx) })
			if got := look(t, m, cookie).user; got != "" {
				t.Errorf("%.20q: after logout %.20q", user, got)
			}
		}
	})
}

// A user ID that is too long is an error that says so before Redis is asked, and nothing
// is changed.
func TestLongUserIDs(t *testing.T) {
	rb := mini(t)
	hook := countCommands(rb.Client)
	old := memstore.NewWithCleanupInterval(0)
	m := manager(t, rb, Config{Legacy: Legacy{Store: old, User: func(values map[string]any) string { s, _ := values["user"].(string); return s }}})
	b := begin(t, m, "ann")
	for _, user := range []string{strings.Repeat("x", maxUserID+1), strings.Repeat("x", 1<<16), strings.Repeat("x", 1<<20)} {
		for _, cookie := range []string{"", b.cookie} {
			ctx := load(t, m, cookie)
			before := m.UserID(ctx)
			m.Put(ctx, "k", "w")
			hook.reset(nil)
			err := m.Login(ctx, user)
			if err == nil || !strings.Contains(err.Error(), "at most 1024") || len(err.Error()) > 200 || errors.Is(err, ErrUnavailable) {
				t.Errorf("%d bytes: %v", len(user), err)
			}
			if got := hook.all(); len(got) > 0 {
				t.Errorf("%d bytes: Redis was asked %q", len(user), got)
			}
			if m.UserID(ctx) != before || m.GetString(ctx, "k") != "w" {
				t.Errorf("%d bytes: ctx is changed", len(user))
			}
			m.Remove(ctx, "k")
		}
		// Of a legacy session it is no user ID either.
		token := strings.Repeat("t", legacyTokenLen)
		data, err := scs.GobCodec{}.Encode(time.Now().Add(time.Hour), map[string]any{"user": user, "k": "v"})
		if err == nil {
			err = old.Commit(token, data, time.Now().Add(time.Hour))
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			ctx, err := m.LoadLegacy(t.Context(), token)
			if err != nil || m.UserID(ctx) != "" || m.Exists(ctx, "k") {
				t.Errorf("%d bytes: of a legacy session: user of %d bytes, %v", len(user), len(m.UserID(ctx)), err)
			}
		}
		if n := m.Stats().Unreadable; n == 0 {
			t.Errorf("%d bytes: of a legacy session: not counted", len(user))
		}
		key := m.records.keys.key(m.records.keys.user(user))
		if rb.Mini.Exists(key) {
			t.Errorf("%d bytes: of a legacy session: a record was written", len(user))
		}
	}
}

// unregistered is a type that encoding/gob does not know.
type unregistered struct{ Name string }

// What cannot be encoded is named, before Redis is asked, and nothing is saved by halves.
func TestValuesThatCannotBeEncoded(t *testing.T) {
	var self []any
	self = append(self, nil)
	self[0] = self
	for name, value := range map[string]any{
		"a channel": make(chan int), "a function": func() {}, "unregistered": unregistered{"hunter2"},
		"deep inside": map[string]any{"a": []any{1, make(chan int)}}, "in itself": self,
	} {
		t.Run(name, func(t *testing.T) {
			rb := mini(t)
			hook := countCommands(rb.Client)
			log := &logged{}
			m := manager(t, rb, Config{Logger: log.logger()})
			b := begin(t, m, "ann")
			guest := begin(t, m, "")
			for _, tc := range []struct{ name, cookie string }{{"nobody", ""}, {"a visitor", guest.cookie}, {"a user", b.cookie}} {
				for what, do := range map[string]func(ctx context.Context) error{
					"Login":  func(ctx context.Context) error { return m.Login(ctx, "bob") },
					"same":   func(ctx context.Context) error { return m.Login(ctx, "ann") },
					"Commit": func(ctx context.Context) error { return m.Commit(ctx) },
					"Finish": func(ctx context.Context) error { _, err := m.Finish(ctx); return err },
					"Rotate": func(ctx context.Context) error { _ = m.Rotate(ctx); _, err := m.Finish(ctx); return err },
				} {
					ctx := load(t, m, tc.cookie)
					before := m.UserID(ctx)
					m.Put(ctx, "good", 1)
					m.Put(ctx, "the bad one", value)
					hook.reset(nil)
					err := do(ctx)
					var bad *EncodeError
					if !errors.As(err, &bad) || bad.Key != "the bad one" || !strings.Contains(err.Error(), "the bad one") || strings.Contains(err.Error(), "hunter2") {
						t.Errorf("%s, %s: %v", tc.name, what, err)
					}
					if got := hook.all(); len(got) > 0 {
						t.Errorf("%s, %s: Redis was asked %q", tc.name, what, got)
					}
					if m.UserID(ctx) != before || m.GetInt(ctx, "good") != 1 {
						t.Errorf("%s, %s: ctx is changed", tc.name, what)
					}
					if tc.cookie != "" && m.Exists(load(t, m, tc.cookie), "good") {
						t.Errorf("%s, %s: saved by halves", tc.name, what)
					}
					// Once it is gone, all is well, in the same context.
					m.Put(ctx, "the bad one", "better")
					if err := m.Commit(ctx); err != nil {
						t.Errorf("%s, %s: after it was replaced: %v", tc.name, what, err)
					}
					if tc.cookie != "" {
						again := load(t, m, tc.cookie)
						if m.GetString(again, "the bad one") != "better" {
							t.Errorf("%s, %s: the replacement is not saved", tc.name, what)
						}
						_ = m.Clear(again)
						m.Put(again, "k", "v")
						if err := m.Commit(again); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		})
	}
}
