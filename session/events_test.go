package session

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2/memstore"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// told is what stands in all streams, of each in its order.
func toldOf(t testing.TB, client redis.UniversalClient, m *Manager) (list []Event) {
	t.Helper()
	for i, stream := range m.EventLog().Streams() {
		entries, err := client.XRange(context.Background(), stream, "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			raw, _ := entry.Values["e"].(string)
			e, err := m.EventLog().Open(i, raw)
			if err != nil {
				t.Fatalf("%q: %v", raw, err)
			}
			list = append(list, e)
		}
	}
	return list
}

func forgetEvents(rb redistest.Backend, m *Manager) {
	for _, stream := range m.EventLog().Streams() {
		rb.Client.Del(context.Background(), stream)
	}
}

func kindsOf(list []Event) string {
	var words []string
	for _, e := range list {
		word := e.UserID + " " + e.Kind.String()
		if e.Cause != (Cause{}) {
			word += fmt.Sprintf("(%s %s)", e.Cause.Reason, e.Cause.Actor)
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// Each act on a user's session has its event, and nothing else has one.
func TestEventsOfEachAct(t *testing.T) {
	store := memstore.NewWithCleanupInterval(0)
	cfg := Config{
		Events: Events{Retention: time.Hour, LastSeen: true}, Accounts: Accounts{Max: 2}, Lifetime: 10 * time.Hour, IdleTimeout: time.Hour,
		Legacy: Legacy{Store: store, User: userValue},
	}
	each(t, cfg, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := &browser{t, m, ""}
		do := func(f func(ctx context.Context) error) func() {
			return func() {
				t.Helper()
				b.request(func(ctx context.Context) {
					m.Describe(ctx, func() string { return "Firefox" })
					if err := f(ctx); err != nil {
						t.Error(err)
					}
				})
			}
		}
		login := func(user string, opts ...LoginOption) func(context.Context) error {
			return func(ctx context.Context) error { return m.Login(ctx, user, opts...) }
		}
		elsewhere := &browser{t, m, ""}
		var handle string
		for _, step := range []struct {
			name string
			do   func()
			want string
		}{
			{"a visitor's put", do(func(ctx context.Context) error { m.Put(ctx, "k", 1); return nil }), ""},
			{"a visitor's rotation", do(m.Rotate), ""},
			{"half a login", do(func(ctx context.Context) error { return m.BeginLogin(ctx, "ann", time.Minute) }), ""},
			{"a login", do(login("ann")), "ann logged-in"},
			{"a put", do(func(ctx context.Context) error { m.Put(ctx, "k", 2); return nil }), ""},
			{"a use", func() {
				advance(t, rb, 10*time.Minute, m)
				do(func(ctx context.Context) error { m.UserID(ctx); return nil })()
			}, "ann used"},
			{"a rotation", do(m.Rotate), "ann rotated"},
			{"a confirmation", do(m.Confirm), "ann confirmed"},
			{"a confirmation that fails", func() {
				ctx := load(t, m, b.cookie)
				if err := m.Confirm(ctx); err != nil {
					t.Error(err)
				}
				m.Abort(ctx)
			}, ""},
			{"a login that fails", func() {
				ctx := load(t, m, b.cookie)
				if err := m.Login(ctx, "ann"); err != nil {
					t.Error(err)
				}
				m.Abort(ctx)
			}, "ann logged-in, ann login-undone"},
			{"a login over it", do(login("ann")), "ann logged-in"},
			{"a login elsewhere", func() {
				advance(t, rb, 10*time.Minute, m)
				elsewhere.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			}, "ann logged-in"},
			{"one too many", func() {
				advance(t, rb, 20*time.Minute, m)
				begin(t, m, "ann")
			}, "ann ended(replaced ), ann logged-in"},
			{"as somebody else", func() { b.cookie = elsewhere.cookie; do(login("bob"))() }, "ann logged-out, bob logged-in"},
			{"an unknown one to be replaced", func() {
				ctx := load(t, m)
				if err := m.Login(ctx, "bob", Replacing(newHandle().String())); err != ErrUnknownHandle {
					t.Error(err)
				}
			}, "bob login-refused(unknown )"},
			{"end of others", func() {
				begin(t, m, "bob")
				advance(t, rb, time.Millisecond, m)
				do(func(ctx context.Context) error { _, err := m.EndOthers(ctx, Cause{Actor: "desk 4"}); return err })()
			}, "bob ended(revoked desk 4), bob logged-in, bob rotated"},
			{"a stale login", func() {
				ctx := load(t, m)
				advance(t, rb, 2*time.Millisecond)
				endAll(t, m, "cy")
				if err := m.Login(ctx, "cy"); err != ErrStaleLogin {
					t.Error(err)
				}
			}, "cy login-refused(stale )"},
			{"an end", func() {
				handle = m.Info(load(t, m, b.cookie)).Handle
				if err := m.End(t.Context(), "bob", handle, Cause{Reason: PasswordChanged}); err != nil {
					t.Error(err)
				}
			}, "bob ended(password-changed )"},
			{"a logout", func() {
				advance(t, rb, 10*time.Second, m)
				b.cookie = ""
				do(login("bob"))()
				do(m.Logout)()
			}, "bob logged-in, bob logged-out"},
			{"a copy", func() {
				ctx, err := m.LoadLegacy(t.Context(), legacySession(t, store, map[string]any{"user": "dee " + t.Name()}, time.Now().Add(time.Hour)))
				if err != nil {
					t.Fatal(err)
				}
				finish(t, m, ctx)
			}, "dee " + t.Name() + " imported"},
			{"the end of all", func() { endAll(t, m, "ann") }, "ann ended(revoked )"},
		} {
			before := toldOf(t, rb.Client, m)
			step.do()
			var news []Event
			seen := map[string]bool{}
			for _, e := range before {
				seen[e.ID] = true
			}
			for _, e := range toldOf(t, rb.Client, m) {
				if !seen[e.ID] {
					news = append(news, e)
				}
				seen[e.ID] = true
			}
			words := strings.Split(kindsOf(news), ", ")
			slices.Sort(words)
			if got := strings.Join(words, ", "); got != step.want {
				words = strings.Split(step.want, ", ")
				slices.Sort(words)
				if got != strings.Join(words, ", ") {
					t.Errorf("%s: %q is told, want %q", step.name, got, step.want)
				}
			}
			for _, e := range news {
				if (e.Handle == "") != (e.Kind == LoginRefused) || e.Time.Sub(rb.Now(t)).Abs() > 10*time.Second {
					t.Errorf("%s: %+v", step.name, e)
				}
				if step.name == "an end" && e.Handle != handle || step.name == "a rotation" && e.Client != "Firefox" {
					t.Errorf("%s: %+v", step.name, e)
				}
			}
		}
		if list := toldOf(t, rb.Client, m); len(list) == 0 {
			t.Fatal("nothing is told")
		}
		for _, stream := range m.EventLog().Streams() { // sealed, and bounded in time
			entries := rb.Client.XRange(t.Context(), stream, "-", "+").Val()
			for _, entry := range entries {
				if raw := fmt.Sprint(entry.Values); m.records.sealer.ring.Len() > 0 && (strings.Contains(raw, "ann") || strings.Contains(raw, "Firefox")) {
					t.Errorf("%q shows who it is", raw)
				}
			}
			if left := rb.Client.PTTL(t.Context(), stream).Val(); len(entries) > 0 && (left <= 0 || left > time.Hour) {
				t.Errorf("%s stays for %v", stream, left)
			}
			rb.Client.Del(t.Context(), stream)
		}
	})
}

// Without Events nothing is written, and no command has a second key.
func TestNoEvents(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		endAll(t, m, "ann")
		if list := toldOf(t, rb.Client, m); len(list) > 0 {
			t.Errorf("%v", list)
		}
	})
}

// A stream is bounded in length, and what is older than Retention goes. One event in sixteen trims,
// and Redis removes whole nodes, of up to a hundred events: what is over a bound by more is gone
// sooner or later, which is within 400 more events but once in 10^11.
func TestEventsAreBounded(t *testing.T) {
	for _, test := range []struct {
		name   string
		events Events
		over   func(ctx context.Context, rb redistest.Backend, stream string) int64
		least  int64 // what stays: of time the events within it
	}{
		{"in length", Events{Retention: 24 * time.Hour, MaxLen: 100}, func(ctx context.Context, rb redistest.Backend, stream string) int64 {
			return rb.Client.XLen(ctx, stream).Val() - 100
		}, 100},
		{"in time", Events{Retention: time.Hour}, func(ctx context.Context, rb redistest.Backend, stream string) int64 {
			hourAgo := fmt.Sprint(rb.Now(t).Add(-time.Hour).UnixMilli())
			return int64(len(rb.Client.XRange(ctx, stream, "-", hourAgo).Val()))
		}, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			each(t, Config{Events: test.events}, func(t *testing.T, rb redistest.Backend, m *Manager) {
				if rb.Mini != nil {
					t.Skip("miniredis trims nothing by age")
				}
				stream := m.records.keys.events(m.records.keys.user("ann")[0])
				b := begin(t, m, "ann")
				rotate := func() { b.request(func(ctx context.Context) { _ = m.Rotate(ctx) }) }
				for range 300 {
					rotate()
				}
				for range 2 {
					advance(t, rb, 45*time.Minute, m)
					rotate()
				}
				for more := 0; test.over(t.Context(), rb, stream) >= 100; more++ {
					if more == 400 {
						t.Fatalf("%d events too many", test.over(t.Context(), rb, stream))
					}
					rotate()
				}
				if n := rb.Client.XLen(t.Context(), stream).Val(); n < test.least {
					t.Errorf("%d events are left", n)
				}
				rb.Client.Del(t.Context(), stream)
				endAll(t, m, "ann")
				rb.Client.Del(t.Context(), stream)
			})
		})
	}
}

// What stands at the stream's key, or that nothing may be written there, fails no login: the loss
// is told.
func TestEventsThatCannotBeAppended(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, _ *Manager) {
		log := &logged{}
		m := manager(t, rb, Config{Events: Events{Retention: time.Hour}, Logger: log.logger(), Prefix: "strange:"})
		stream := m.records.keys.events(m.records.keys.user("ann")[0])
		if err := rb.Client.Set(t.Context(), stream, "somebody else's", time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		b := begin(t, m, "ann")
		if answering(t, m, b.cookie) != 1 {
			t.Error("no login")
		}
		if m.Stats().LostEvents != 1 || !strings.Contains(log.String(), "events are lost") {
			t.Errorf("%d lost: %s", m.Stats().LostEvents, log)
		}
		rb.Client.Del(t.Context(), stream)
	})
}

// While a slot is moved Redis refuses what has two keys in it: the act is done all the same, and its
// event follows.
func TestEventsWhileTheirSlotMoves(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t)
	client := cluster.Client()
	m := managerOver(t, client, Config{Timeout: 10 * time.Second, Events: Events{Retention: time.Hour}, Logger: slog.Default()})
	key := m.records.keys.key(m.records.keys.user("ann"))
	begin(t, m, "ann")
	over := make(chan struct{})
	var moves sync.WaitGroup
	moved := 0
	moves.Go(func() {
		for ; ; moved++ {
			select {
			case <-over:
				return
			default:
				cluster.MoveSlot(key, 50*time.Millisecond)
				time.Sleep(40 * time.Millisecond)
			}
		}
	})
	rotations := 0
	ctx := load(t, m)
	if err := m.Login(ctx, "ann"); err != nil {
		t.Fatal(err)
	}
	b := &browser{t, m, finish(t, m, ctx).Value}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); rotations++ {
		b.request(func(ctx context.Context) {
			if err := m.Rotate(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	close(over)
	moves.Wait()
	told := 0
	for _, e := range toldOf(t, client, m) {
		if e.Kind == Rotated {
			told++
		}
	}
	if told != rotations || rotations < 20 || moved < 5 || m.Stats().LostEvents != 0 {
		t.Errorf("%d rotations, %d told, %d lost, in %d moves", rotations, told, m.Stats().LostEvents, moved)
	}
	t.Logf("%d rotations in %d moves", rotations, moved)
}

// What a request has made by several changes of its ID is undone, all of it, and told as often as it
// was told before.
func TestUndoOfSeveralChangesOfID(t *testing.T) {
	each(t, Config{Events: Events{Retention: time.Hour}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		defer forgetEvents(rb, m)
		for name, second := range map[string]func(ctx context.Context, user string) error{
			"login":   func(ctx context.Context, user string) error { return m.Login(ctx, user) },
			"confirm": func(ctx context.Context, _ string) error { return m.Confirm(ctx) },
			"another": func(ctx context.Context, user string) error { return m.Login(ctx, "not "+user) },
			"others":  func(ctx context.Context, _ string) error { _, err := m.EndOthers(ctx, Cause{}); return err },
			"half":    func(ctx context.Context, user string) error { return m.BeginLogin(ctx, "not "+user, time.Minute) },
		} {
			user := name + " " + t.Name()
			ctx := load(t, m)
			if err := m.Login(ctx, user); err != nil {
				t.Fatal(err)
			}
			if err := second(ctx, user); err != nil {
				t.Fatal(err)
			}
			m.Abort(ctx) // a panic
			for _, user := range []string{user, "not " + user} {
				logins := 0
				for _, e := range toldOf(t, rb.Client, m) {
					switch {
					case e.UserID == user && e.Kind == LoggedIn:
						logins++
					case e.UserID == user && e.Kind == LoginUndone:
						logins--
					}
				}
				if list := listed(t, m, t.Context(), user); len(list) > 0 || logins != 0 {
					t.Errorf("%s: %q has %d sessions, and %d logins that were not undone: %s", name, user, len(list), logins, kindsOf(toldOf(t, rb.Client, m)))
				}
			}
		}
	})
}

// Several acts in one request have their events; so has a session that ends by somebody's login at
// its cookie, on a server that does not accept it.
func TestEventsOfOneRequest(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb, Config{Events: Events{Retention: time.Hour}})
		login := func(ctx context.Context) error { return m.Login(ctx, "ann "+t.Name()) }
		others := func(ctx context.Context) error { _, err := m.EndOthers(ctx, Cause{}); return err }
		for want, acts := range map[string][]func(context.Context) error{
			"logged-in confirmed": {login, m.Confirm}, "logged-in rotated": {login, others}, "logged-in confirmed ": {login, m.Confirm, others},
			"logged-in logged-in": {login, login}, "logged-in logged-out": {login, m.Logout},
		} {
			rb.Client.Del(t.Context(), m.records.keys.events(m.records.keys.user("ann " + t.Name())[0]))
			endAll(t, m, "ann "+t.Name())
			advance(t, rb, 10*time.Second, m)
			ctx := load(t, m)
			for _, act := range acts {
				if err := act(ctx); err != nil {
					t.Fatalf("%s: %v", want, err)
				}
			}
			finish(t, m, ctx)
			var got []string
			for _, e := range toldOf(t, rb.Client, m) {
				if e.UserID == "ann "+t.Name() && e.Kind != Ended {
					got = append(got, e.Kind.String())
				}
			}
			if strings.Join(got, " ") != strings.TrimSpace(want) {
				t.Errorf("%q is told, want %q", got, want)
			}
		}

		b := begin(t, m, "bob "+t.Name())
		strict := manager(t, rb, Config{Events: Events{Retention: time.Hour}, Accounts: Accounts{NotBefore: time.Now().Add(50 * time.Minute)}})
		advance(t, rb, 55*time.Minute, m, strict)
		b.m = strict
		b.request(func(ctx context.Context) {
			if err := strict.Login(ctx, "cy "+t.Name()); err != nil {
				t.Error(err)
			}
		})
		if got := kindsOf(toldOf(t, rb.Client, m)); !strings.Contains(got, "bob "+t.Name()+" logged-out") {
			t.Errorf("%s is told", got)
		}
	})
}

// A change by others between, for which Finish begins anew, tells of nothing twice.
func TestOneActIsToldOnce(t *testing.T) {
	rb := redistest.Shared(t)
	c := rb.Client()
	for _, what := range []string{"confirm", "others"} {
		m := managerOver(t, c, Config{Events: Events{Retention: time.Hour}})
		user := what + t.Name()
		b := begin(t, m, "") // a visitor
		ctx := load(t, m, b.cookie)
		if err := m.Login(ctx, user); err != nil {
			t.Fatal(err)
		}
		var err error
		if what == "confirm" {
			err = m.Confirm(ctx)
		} else {
			_, err = m.EndOthers(ctx, Cause{})
		}
		if err != nil {
			t.Fatal(err)
		}
		other := load(t, m, b.cookie)
		m.Put(other, "cart", 1)
		finish(t, m, other)
		finish(t, m, ctx)
		n := 0
		ids := map[string]bool{}
		var words []string
		for _, e := range toldOf(t, c, m) {
			if e.UserID == user {
				words = append(words, e.Kind.String())
				if e.Kind == Confirmed || e.Kind == Rotated {
					n++
					ids[e.ID] = true
				}
			}
		}
		if n != 1 {
			t.Errorf("%s: %v, %d IDs", what, words, len(ids))
		}
	}
}

// Two logins from one half login are one session, also while one of them changes its ID.
func TestWhatIsToldToHaveEndedIsOver(t *testing.T) {
	server := redistest.Start(t)
	c := server.Client()
	m := managerOver(t, c, Config{Events: Events{Retention: time.Hour}})
	b := &browser{t, m, ""}
	b.request(func(ctx context.Context) {
		if err := m.BeginLogin(ctx, "ann", time.Minute); err != nil {
			t.Fatal(err)
		}
	})
	second := load(t, m, b.cookie)
	b.request(func(ctx context.Context) {
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
	})
	if err := m.Login(second, "ann"); err != nil {
		t.Fatal(err)
	}
	confirming := load(t, m, b.cookie)
	if err := m.Confirm(confirming); err != nil {
		t.Fatal(err)
	}
	finish(t, m, second)
	o := finish(t, m, confirming)
	b.take(o)
	h := m.Info(load(t, m, b.cookie)).Handle
	ended := false
	for _, e := range toldOf(t, c, m) {
		if e.Kind == Ended && e.Handle == h && h != "" {
			ended = true
		}
	}
	if ended {
		t.Errorf("%s is told to have ended, and is logged in: user %q", h, m.UserID(load(t, m, b.cookie)))
	}
}
