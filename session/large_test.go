package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// orphans are the fields with large values beside which no record stands that has some,
// and the other way round.
func orphans(t testing.TB, client redis.UniversalClient) (all []string) {
	t.Helper()
	var mu sync.Mutex
	onEachNode(t, client, func(ctx context.Context, node *redis.Client) error {
		keys, err := node.Keys(ctx, "*").Result()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		for _, key := range keys {
			fields, err := node.HGetAll(ctx, key).Result()
			if err != nil {
				return err
			}
			for f, v := range fields {
				switch {
				case len(f) == fieldLen+1:
					if r := fields[f[1:]]; len(r) < 2 || r[0] != formatRecord || r[1]&16 == 0 {
						all = append(all, fmt.Sprintf("values without a record: %q, there stands %.30q", f, r))
					}
				case len(f) == fieldLen && v[0] == formatRecord && v[1]&16 != 0:
					if _, ok := fields["v"+f]; !ok {
						all = append(all, fmt.Sprintf("record without its values: %q", f))
					}
				}
			}
		}
		return nil
	})
	return all
}

// filling returns text for the value "fill" with which the values of a session take n
// bytes in all.
func filling(t testing.TB, m *Manager, ctx context.Context, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.Read(b)
	text := base64.StdEncoding.EncodeToString(b)[:n]
	m.Put(ctx, "fill", text)
	d, err := m.draft(m.state(ctx))
	if err != nil {
		t.Fatal(err)
	}
	values := d.changes["fill"]
	stored := m.state(ctx).values.stored.Change(map[string][]byte{"fill": values})
	text = text[:n-(len(stored.Bytes())-n)]
	m.Put(ctx, "fill", text)
	d, _ = m.draft(m.state(ctx))
	if got := len(m.state(ctx).values.stored.Change(d.changes).Bytes()); got != n {
		t.Fatalf("values of %d bytes, want %d", got, n)
	}
	return text
}

// Large values stand in a field of their own, whatever becomes of the session, and go
// with it.
func TestLargeValues(t *testing.T) {
	each(t, Config{Timeout: 10 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		check := func(what string, b *browser, want string, apart bool) {
			t.Helper()
			i := idOf(t, m, b.cookie)
			if got := m.GetString(load(t, m, b.cookie), "fill"); got != want {
				t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
			}
			if got := rb.Client.HExists(t.Context(), i.key, "v"+i.field).Val(); got != apart {
				t.Errorf("%s: a field of their own: %v", what, got)
			}
			for _, o := range orphans(t, rb.Client) {
				t.Errorf("%s: %s", what, o)
			}
		}
		for _, n := range []int{apartAbove - 1, apartAbove, apartAbove + 1, 1<<16 - 1, 1 << 16, 1<<16 + 1, 1<<20 - 1, 1<<20 + 1} {
			apart := n > apartAbove
			var text string
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) { m.Put(ctx, "small", 1) })
			put := func() {
				b.request(func(ctx context.Context) { text = filling(t, m, ctx, n) })
			}
			what := func(s string) string { return fmt.Sprintf("%d bytes, %s", n, s) }
			put()
			check(what("a visitor's"), b, text, apart)
			b.request(func(ctx context.Context) { m.Put(ctx, "fill", "small") })
			check(what("small again"), b, "small", false)
			put()
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann"); err != nil {
					t.Fatal(err)
				}
			})
			check(what("logged in"), b, text, apart)
			old := b.cookie
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			check(what("rotated"), b, text, apart)
			if got := m.GetString(load(t, m, old), "fill"); got != text {
				t.Errorf("%d bytes: by the rotated ID %d bytes", n, len(got))
			}
			b.request(func(ctx context.Context) { m.Put(ctx, "small", 2) })
			check(what("another key put"), b, text, apart)
			advance(t, rb, 10*time.Minute, m)
			b.request(func(ctx context.Context) {})
			check(what("touched"), b, text, apart)
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "ann"); err != nil {
					t.Fatal(err)
				}
				m.Put(ctx, "small", 3)
			})
			check(what("logged in again"), b, text, apart)
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx); m.Remove(ctx, "fill") })
			check(what("rotated and taken out"), b, "", false)
			put()
			old = b.cookie
			ctx := load(t, m, b.cookie)
			if err := m.Login(ctx, "ann"); err != nil {
				t.Fatal(err)
			}
			m.Abort(ctx)
			check(what("a login that was undone"), b, text, apart)
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "bob"); err != nil {
					t.Fatal(err)
				}
			})
			check(what("logged in as another"), b, "", false)
			if got := look(t, m, old); got.user != "" {
				t.Errorf("%d bytes: the other's login still works", n)
			}
			put()
			first := b.cookie
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			(&browser{t, m, first}).request(func(ctx context.Context) { _ = m.Logout(ctx) })
			check(what("logged out by the ID before"), b, "", false)
			// What expires is swept with its values.
			b = &browser{t, m, ""}
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "carol") })
			put()
			gone := idOf(t, m, b.cookie)
			stays := begin(t, m, "carol")
			for range 3 {
				advance(t, rb, 30*time.Minute, m)
				stays.request(func(context.Context) {})
			}
			m.records.sweep(t.Context(), gone)
			if rb.Client.HExists(t.Context(), gone.key, gone.field).Val() || rb.Client.HExists(t.Context(), gone.key, "v"+gone.field).Val() {
				t.Errorf("%d bytes: a sweep leaves what is over", n)
			}
			check(what("swept"), stays, "", false)
		}
	})
}

// Requests that read while others write see the values of one write.
func TestLargeValuesAreReadWhole(t *testing.T) {
	each(t, Config{Timeout: 10 * time.Second, Rotation: Rotation{Grace: time.Minute}}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		b.request(func(ctx context.Context) { m.Put(ctx, "fill", strings.Repeat("a", 5000)) })
		var over atomic.Bool
		var reads, writes atomic.Int64
		var wg sync.WaitGroup
		for w := range 3 {
			wg.Go(func() {
				for i := 0; !over.Load(); i++ {
					ctx, err := m.Load(context.Background(), b.cookie)
					if err != nil {
						t.Error(err)
						return
					}
					size := 3000 + 1000*w
					if i%5 == 4 { // small now and then
						size = 10
					}
					m.Put(ctx, "fill", strings.Repeat(string(rune('a'+i%26)), size))
					if err := m.Commit(ctx); err != nil {
						t.Error(err)
						return
					}
					writes.Add(1)
				}
			})
		}
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for range 200 {
					ctx, err := m.Load(context.Background(), b.cookie)
					if err != nil {
						t.Error(err)
						return
					}
					text := m.GetString(ctx, "fill")
					if m.UserID(ctx) != "ann" || text == "" || strings.Trim(text, text[:1]) != "" {
						t.Errorf("torn: %q, %d bytes", m.UserID(ctx), len(text))
					}
					reads.Add(1)
				}
			})
		}
		readers.Wait()
		over.Store(true)
		wg.Wait()
		if n := m.Stats().Unreadable; n > 0 {
			t.Errorf("%d records counted as unreadable", n)
		}
		t.Logf("%d reads among %d writes", reads.Load(), writes.Load())
		for _, o := range orphans(t, rb.Client) {
			t.Error(o)
		}
	})
}

// What comes between the two commands of a read is seen whole or not at all.
func TestBetweenTheTwoReads(t *testing.T) {
	large := strings.Repeat("l", 3*apartAbove)
	each(t, Config{Timeout: 5 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		client := rb.NewClient(t)
		hook := countCommands(client)
		cfg := Config{Timeout: 5 * time.Second}
		if m.records.sealer.ring.Len() > 0 {
			cfg.Secrets = [][]byte{secret}
		}
		reader := managerOver(t, client, cfg)
		for name, tc := range map[string]struct {
			between func(ctx context.Context)
			user    string
			want    string
		}{
			"larger":       {func(ctx context.Context) { m.Put(ctx, "fill", large+"new") }, "ann", large + "new"},
			"small":        {func(ctx context.Context) { m.Put(ctx, "fill", "small") }, "ann", "small"},
			"rotated":      {func(ctx context.Context) { _ = m.Rotate(ctx) }, "ann", large},
			"logged out":   {func(ctx context.Context) { _ = m.Logout(ctx) }, "", ""},
			"logged in":    {func(ctx context.Context) { _ = m.Login(ctx, "ann") }, "", ""},
			"another user": {func(ctx context.Context) { _ = m.Login(ctx, "bob") }, "", ""},
			"touched":      {func(ctx context.Context) { advance(t, rb, 5*time.Minute, m) }, "ann", large},
		} {
			b := begin(t, m, "ann")
			b.request(func(ctx context.Context) { m.Put(ctx, "fill", large) })
			cookie := b.cookie
			load(t, reader, cookie) // it knows the time
			hgets, unreadable := 0, reader.Stats().Unreadable
			hook.reset(func(_ int, command string) fate {
				if command == "hget" {
					if hgets++; hgets == 2 {
						b.request(tc.between)
					}
				}
				return fateSent
			})
			ctx := load(t, reader, cookie)
			hook.reset(nil)
			if got := reader.GetString(ctx, "fill"); got != tc.want || reader.UserID(ctx) != tc.user {
				t.Errorf("%s: user %q, %d bytes", name, reader.UserID(ctx), len(got))
			}
			if n := reader.Stats().Unreadable - unreadable; n > 0 || hgets < 2 {
				t.Errorf("%s: counted as unreadable %d times, %d reads", name, n, hgets)
			}
		}
	})
}

// Parallel requests with large values of their own lose none, and leave no field behind.
func TestParallelLargeValues(t *testing.T) {
	each(t, Config{Timeout: 10 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		const n = 30
		inParallel(n, func(i int) {
			(&browser{t, m, b.cookie}).request(func(ctx context.Context) {
				m.Put(ctx, fmt.Sprint(i), strings.Repeat("x", 500*(i%5)))
			})
		})
		ctx := load(t, m, b.cookie)
		for i := range n {
			if !m.Exists(ctx, fmt.Sprint(i)) || len(m.GetString(ctx, fmt.Sprint(i))) != 500*(i%5) {
				t.Errorf("key %d is lost", i)
			}
		}
		cookies := make([]string, 2*n)
		inParallel(len(cookies), func(i int) { // rotations, logins and changes at once
			c := &browser{t, m, b.cookie}
			ctx, err := m.Load(context.Background(), c.cookie)
			if err != nil {
				t.Error(err)
				return
			}
			switch i % 4 {
			case 0:
				_ = m.Rotate(ctx)
			case 1:
				_ = m.Login(ctx, "ann")
			case 2:
				m.Put(ctx, "more", strings.Repeat("y", 5000*(i%3)))
			}
			o, err := m.Finish(ctx)
			if err != nil && !errors.Is(err, ErrConflict) {
				t.Error(err)
			}
			cookies[i] = o.Value
		})
		for _, o := range orphans(t, rb.Client) {
			t.Error(o)
		}
		for _, c := range append(cookies, b.cookie) {
			ctx := load(t, m, c)
			if err := m.Logout(ctx); err != nil {
				t.Error(err)
			}
		}
		for _, o := range orphans(t, rb.Client) {
			t.Error(o)
		}
	})
}
