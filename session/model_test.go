package session

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// TestModel runs random requests of one visitor, now and then with a cookie that
// he had before, and compares what he sees with a model: a user and a map.
func TestModel(t *testing.T) {
	clock := newClock()
	each(t, Config{now: clock.now, Grace: time.Hour, Lifetime: 1000 * time.Hour, IdleTimeout: -1}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		rnd := newRand(t)
		b := &browser{t, m, ""}
		var user string
		values := map[string]any{}
		var same, retired []string // cookies that lead to the session, and such that must not
		retire := func() {
			retired = append(append(retired, same...), b.cookie)
			same = nil
		}
		for step := range 600 {
			use := &browser{t, m, b.cookie}
			if len(same) > 0 && rnd.IntN(4) == 0 {
				use.cookie = same[rnd.IntN(len(same))]
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
				values = next
			})
			switch {
			case op == -1:
				retire()
				b.cookie = ""
				if o.Action != CookieDelete {
					t.Fatalf("step %d: %+v after logout", step, o)
				}
			case op == 8 || op == 9:
				retire()
				b.cookie = use.cookie
			case o.Action == CookieSet:
				if before != "" && before != use.cookie {
					same = append(same, before)
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
			if len(same) > 8 {
				same = same[len(same)-8:] // further back there are too many rotations between
			}
		}
	})
}
