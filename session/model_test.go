package session

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// TestModel runs random requests of one visitor, now and then with an older cookie, while
// time passes, and compares what each of them sees with a model: a user and a map.
func TestModel(t *testing.T) {
	const grace = time.Hour
	cfg := Config{Timeout: slowly.Timeout, Rotation: Rotation{Grace: grace}, Lifetime: 1000 * time.Hour, IdleTimeout: -1}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		rnd := newRand(t)
		b := &browser{t, m, ""}
		var user string
		values := map[string]any{}
		type rotated struct {
			cookie string
			at     time.Duration
		}
		var now time.Duration
		var same []rotated   // lead to the session until their Grace ends
		var retired []string // must not lead to it
		retire := func() {
			for _, r := range same {
				retired = append(retired, r.cookie)
			}
			retired = append(retired, b.cookie)
			same = nil
		}
		for step := range 600 {
			if rnd.IntN(4) == 0 {
				d := time.Duration(rnd.IntN(600)) * time.Second
				advance(t, rb, d, m)
				now += d
			}
			same = slices.DeleteFunc(same, func(r rotated) bool {
				if now > r.at+grace {
					retired = append(retired, r.cookie)
				}
				return now > r.at+grace-time.Minute // time passes during requests, too
			})
			use := &browser{t, m, b.cookie}
			if len(same) > 0 && rnd.IntN(4) == 0 {
				use.cookie = same[rnd.IntN(len(same))].cookie
			}
			before := b.cookie
			op := rnd.IntN(12)
			o := use.request(func(ctx context.Context) {
				if got := valuesOf(m, ctx); fmt.Sprint(got) != fmt.Sprint(values) || m.UserID(ctx) != user {
					t.Fatalf("step %d: %q sees %v, want %q and %v", step, m.UserID(ctx), got, user, values)
				}
				next := maps.Clone(values)
				key := string(rune('a' + rnd.IntN(6)))
				switch op {
				case 0, 1, 2, 3:
					m.Put(ctx, key, step)
					next[key] = step
				case 4:
					m.Remove(ctx, key)
					delete(next, key)
				case 5:
					m.Pop(ctx, key)
					delete(next, key)
				case 6:
					if rnd.IntN(4) == 0 {
						_ = m.Clear(ctx)
						clear(next)
					}
				case 7:
					_ = m.Rotate(ctx)
				case 8, 9:
					who := [...]string{"ann", "bob"}[op-8]
					if user != "" && user != who {
						clear(next)
					}
					user = who
					if err := m.Login(ctx, who); err != nil {
						t.Fatal(err)
					}
				case 10:
					if rnd.IntN(3) == 0 {
						op = -1
						user = ""
						clear(next)
						if err := m.Logout(ctx); err != nil {
							t.Fatal(err)
						}
					}
				}
				if rnd.IntN(4) == 0 { // a commit, and perhaps more after it
					if err := m.Commit(ctx); err != nil {
						t.Fatal(err)
					}
					if rnd.IntN(2) == 0 {
						m.Put(ctx, "after", step)
						next["after"] = step
					}
				}
				if got := valuesOf(m, ctx); fmt.Sprint(got) != fmt.Sprint(next) || m.UserID(ctx) != user {
					t.Fatalf("step %d: %q has %v, want %q and %v", step, m.UserID(ctx), got, user, next)
				}
				values = next
			})
			switch {
			case op == -1:
				retire()
				want := CookieDelete
				if len(values) > 0 { // a session was begun after the logout
					want = CookieSet
				}
				if o.Action != want {
					t.Fatalf("step %d: %+v after logout", step, o)
				}
				b.cookie = use.cookie
			case op == 8 || op == 9:
				retire()
				b.cookie = use.cookie
			case o.Action == CookieSet:
				if before != "" && before != use.cookie {
					same = append(same, rotated{before, now})
				}
				b.cookie = use.cookie
			}
			if len(retired) > 0 {
				old := retired[rnd.IntN(len(retired))]
				if old != "" && old != b.cookie {
					if got := look(t, m, old); got.user != "" || got.values != "map[]" {
						t.Fatalf("step %d: a retired cookie shows %+v", step, got)
					}
				}
			}
		}
	})
}
