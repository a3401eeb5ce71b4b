package session

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// TestASVS walks chapter V7 of OWASP ASVS 5.0.0, "Session Management": the requirements
// that a library can meet. Those on cookies, and on re-authentication of a request, are
// met in package middleware. What the others ask for is the application's: its documents
// (7.1.1 to 7.1.3), a visible logout (7.4.4), and federation (7.6.1).
func TestASVS(t *testing.T) {
	cfg := Config{Timeout: slowly.Timeout, Lifetime: 12 * time.Hour, IdleTimeout: 30 * time.Minute}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		user := func(cookie string) string { return m.UserID(load(t, m, cookie)) }

		t.Run("7.1.2 a user has no more sessions than documented", func(t *testing.T) {
			var cookies []string
			for range defaultMax + 1 {
				cookies = append(cookies, begin(t, m, "many").cookie)
			}
			if n := answering(t, m, cookies...); n != defaultMax {
				t.Errorf("%d", n)
			}
		})
		t.Run("7.4.2 all sessions end when an account is disabled", func(t *testing.T) {
			a, b := begin(t, m, "disabled"), begin(t, m, "disabled")
			if _, err := m.EndAll(t.Context(), "disabled", Cause{Reason: Disabled}); err != nil || answering(t, m, a.cookie, b.cookie) != 0 {
				t.Error("one goes on", err)
			}
		})
		t.Run("7.4.3 all other sessions end after a change of credentials", func(t *testing.T) {
			a, b := begin(t, m, "changed"), begin(t, m, "changed")
			a.request(func(ctx context.Context) {
				if _, err := m.EndOthers(ctx, Cause{Reason: PasswordChanged}); err != nil {
					t.Error(err)
				}
			})
			if answering(t, m, a.cookie) != 1 || answering(t, m, b.cookie) != 0 {
				t.Error("not the others have ended")
			}
		})
		t.Run("7.4.5, 7.5.2 single sessions are seen and ended, by administrators too", func(t *testing.T) {
			a, b := begin(t, m, "seen"), begin(t, m, "seen")
			list, err := m.List(t.Context(), "seen")
			if err != nil || len(list) != 2 {
				t.Fatal(list, err)
			}
			if err := m.End(t.Context(), "seen", handleOf(t, m, b), Cause{}); err != nil || answering(t, m, a.cookie) != 1 || answering(t, m, b.cookie) != 0 {
				t.Error("not the one was ended", err)
			}
		})
		t.Run("7.2.1 tokens are verified by the backend", func(t *testing.T) {
			b := begin(t, m, "ann")
			// It is Redis that decides, not what the cookie says.
			if err := rb.Client.Del(t.Context(), idOf(t, m, b.cookie).key).Err(); err != nil {
				t.Fatal(err)
			}
			if user(b.cookie) != "" {
				t.Error("a cookie is believed without its record")
			}
		})
		t.Run("7.2.2 tokens are made for each session", func(t *testing.T) {
			if a, b := begin(t, m, "ann"), begin(t, m, "ann"); idOf(t, m, a.cookie).token == idOf(t, m, b.cookie).token {
				t.Error("two sessions have one token")
			}
		})
		t.Run("7.2.3 tokens are unique, random, of at least 128 bits", func(t *testing.T) {
			const n = 500
			seen := map[token]bool{}
			var ones [256]int
			for range n {
				token := idOf(t, m, begin(t, m, "").cookie).token
				seen[token] = true
				for i := range ones {
					ones[i] += int(token[i/8] >> (i % 8) & 1)
				}
			}
			if len(seen) != n {
				t.Errorf("%d of %d tokens are different", len(seen), n)
			}
			for i, k := range ones { // seven standard deviations
				if k < n/2-79 || k > n/2+79 {
					t.Errorf("bit %d is set in %d of %d tokens", i, k, n)
				}
			}
		})
		t.Run("7.2.4 a new token on authentication and re-authentication, the old one ended", func(t *testing.T) {
			b := begin(t, m, "")
			for _, who := range []string{"ann", "ann", "bob"} {
				old := b.cookie
				b.request(func(ctx context.Context) {
					if err := m.Login(ctx, who); err != nil {
						t.Fatal(err)
					}
				})
				if b.cookie == old || user(b.cookie) != who || user(old) != "" {
					t.Errorf("login of %s: new %v, old token shows %q", who, b.cookie != old, user(old))
				}
			}
		})
		t.Run("7.3.1 an inactivity timeout", func(t *testing.T) {
			b := begin(t, m, "ann")
			advance(t, rb, 30*time.Minute, m)
			if user(b.cookie) != "ann" {
				t.Error("too early")
			}
			advance(t, rb, 90*time.Second+time.Millisecond, m)
			if user(b.cookie) != "" {
				t.Error("not enforced")
			}
		})
		t.Run("7.3.2 an absolute maximum lifetime", func(t *testing.T) {
			b := begin(t, m, "ann")
			for range 12*6 - 1 {
				advance(t, rb, 10*time.Minute, m)
				b.request(func(ctx context.Context) {
					if m.UserID(ctx) != "ann" {
						t.Fatal("too early")
					}
				})
			}
			advance(t, rb, 10*time.Minute+moment, m)
			if user(b.cookie) != "" {
				t.Error("not enforced")
			}
		})
		t.Run("7.4.1 no use after termination", func(t *testing.T) {
			b := begin(t, m, "carol")
			b.request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", apartAbove)) })
			cookie, slow := b.cookie, load(t, m, b.cookie)
			b.request(func(ctx context.Context) {
				if err := m.Logout(ctx); err != nil {
					t.Fatal(err)
				}
			})
			m.Put(slow, "k", 1)
			if o := finish(t, m, slow); o != (Outcome{}) || user(cookie) != "" || len(m.Keys(load(t, m, cookie))) > 0 {
				t.Errorf("the session goes on after logout: %+v", o)
			}
			// A mark that there was a session, without anything of it, stands for a Grace.
			at := idOf(t, m, cookie)
			all := rb.Client.HGetAll(t.Context(), at.key).Val()
			if raw := all[at.field]; len(all) != 1 || len(raw) != tombstoneLen || raw[0] != formatEnded {
				t.Errorf("its data is still in the backend: %q", all)
			}
		})
		t.Run("7.5.1 and 7.5.3 when a user authenticated last is known", func(t *testing.T) {
			b := begin(t, m, "ann")
			at := m.Info(load(t, m, b.cookie)).AuthenticatedAt
			advance(t, rb, 10*time.Minute, m)
			b.request(func(ctx context.Context) { m.Put(ctx, "k", 1); _ = m.Rotate(ctx) })
			if got := m.Info(load(t, m, b.cookie)).AuthenticatedAt; !got.Equal(at) {
				t.Error("mere use counts as authentication")
			}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			if got := m.Info(load(t, m, b.cookie)).AuthenticatedAt; got.Sub(at.Add(10*time.Minute)).Abs() > moment {
				t.Error("re-authentication is not noted")
			}
		})
		t.Run("7.6.2 no session without an action", func(t *testing.T) {
			unknown, err := m.signer.sign(m.records.keys.fresh(m.records.keys.visitor()).cookie())
			if err != nil {
				t.Fatal(err)
			}
			before := len(allKeys(t, rb.Client))
			for _, cookie := range []string{"", unknown, "x"} {
				b := &browser{t, m, cookie}
				if o := b.request(func(ctx context.Context) { m.Get(ctx, "k") }); o != (Outcome{}) {
					t.Errorf("a visit begins a session: %+v", o)
				}
			}
			if len(allKeys(t, rb.Client)) != before {
				t.Error("a visit stores something")
			}
		})
	})
}
