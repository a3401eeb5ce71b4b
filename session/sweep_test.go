package session

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// fieldsOf are the fields of an owner's hash, but for that of the last sweep.
func fieldsOf(t testing.TB, c redis.UniversalClient, key string) map[string]string {
	t.Helper()
	all, err := c.HGetAll(t.Context(), key).Result()
	if err != nil {
		t.Fatal(err)
	}
	delete(all, "s")
	return all
}

func timeBytes(at time.Time) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(at.UnixMicro()))
	return string(b[1:])
}

// fakeRecord is as much of a record as a sweep looks at.
func fakeRecord(ends time.Time) string {
	return "\x01\x01" + strings.Repeat("h", headLen-2) + strings.Repeat(timeBytes(ends), 4) + "\x01\x00boxes"
}

// fakeTombstone is of a rotated or ended ID; lived: a session had been there.
func fakeTombstone(format byte, lived bool, grace, ends time.Time) string {
	b := []byte{format, 0}
	if lived {
		b[1] = 1
	}
	b = append(b, timeBytes(grace)+timeBytes(ends)...)
	return string(append(b, make([]byte, tombstoneLen-len(b))...)) + "more"
}

// named field number n of a kind.
func fakeField(kind byte, n int) string { return fmt.Sprintf("%c%015d", kind, n) }

// A sweep removes what is past and nothing else, and sets the expiry exactly.
func TestSweep(t *testing.T) {
	each(t, Config{Timeout: 10 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		at := m.records.keys.fresh(m.records.keys.user("ann"))
		rb.Advance(t, 0) // stops miniredis's clock
		now := rb.Now(t)
		last := now.Add(3*time.Hour + 1234567*time.Microsecond)
		v := strings.Repeat("x", 100)
		past := map[string]string{
			fakeField('r', 1):       fakeRecord(now.Add(-time.Microsecond)),
			fakeField('r', 2):       fakeRecord(now.Add(-time.Hour)),
			"v" + fakeField('r', 2): v,
			fakeField('r', 3):       fakeRecord(time.UnixMicro(0)),
			"v" + fakeField('n', 1): v, // of nothing
			"v" + fakeField('e', 2): v, // of a tombstone
			fakeField('e', 1):       fakeTombstone(formatEnded, true, now.Add(-time.Second), now.Add(-time.Microsecond)),
			fakeField('t', 1):       fakeTombstone(formatRotated, true, now.Add(-time.Second), now.Add(-time.Microsecond)),
		}
		stay := map[string]string{
			fakeField('r', 4):       fakeRecord(now.Add(time.Minute)),
			fakeField('r', 5):       fakeRecord(now.Add(2 * time.Hour)),
			"v" + fakeField('r', 5): v,
			fakeField('e', 2):       fakeTombstone(formatEnded, true, now.Add(-time.Second), now.Add(time.Hour)), // past its Grace
			fakeField('e', 3):       fakeTombstone(formatEnded, false, now.Add(time.Minute), now.Add(time.Minute)),
			fakeField('t', 2):       fakeTombstone(formatRotated, true, now.Add(time.Minute), last),
		}
		fill := func(sets ...map[string]string) {
			t.Helper()
			rb.Client.Del(t.Context(), at.key)
			for _, set := range sets {
				if err := rb.Client.HSet(t.Context(), at.key, set).Err(); err != nil {
					t.Fatal(err)
				}
			}
			rb.Client.Expire(t.Context(), at.key, 100*time.Hour)
		}
		same := func(what string, want map[string]string) {
			t.Helper()
			got := fieldsOf(t, rb.Client, at.key)
			for f, v := range want {
				if got[f] != v {
					t.Errorf("%s: %q is gone or changed", what, f)
				}
			}
			for f := range got {
				if _, ok := want[f]; !ok {
					t.Errorf("%s: %q is still there", what, f)
				}
			}
		}
		expires := func(what string, want time.Time) {
			t.Helper()
			got := rb.Client.PExpireTime(t.Context(), at.key).Val()
			if ms := got.Milliseconds(); ms != want.UnixMilli()+1 {
				t.Errorf("%s: expires %v, want %v", what, time.UnixMilli(ms), want)
			}
		}
		sweep := func() {
			t.Helper()
			if _, err := m.records.run(t.Context(), sweepScript, at, maxFresh, m.records.accounts.Max); err != nil {
				t.Fatal(err)
			}
		}

		fill(past, stay)
		sweep()
		same("a sweep", stay)
		expires("a sweep", last)
		if n, want := rb.Client.HGet(t.Context(), at.key, "s").Val(), fmt.Sprint(len(stay)); n != want {
			t.Errorf("it notes %q fields, want %s", n, want)
		}
		sweep()
		same("another", stay)
		expires("another", last)

		// What others have put there is no business of ours, and does not move the expiry. A
		// release to come may write records that this one cannot read: neither they nor their
		// values go, and they are not cut short.
		foreign := map[string]string{
			"": "empty", "x": "1", "seventeen bytes..": "2", "sixteen bytes...": "3", "sixteen bytes, 2": "", "a field that is longer than any of ours": "4",
			fakeField('u', 1): "\x09 of a newer release", "v" + fakeField('u', 1): v, fakeField('u', 2): "\x01 cut", fakeField('u', 3): "\x02", fakeField('u', 4): "\x03 cut",
			fakeField('u', 5): strings.Repeat("\x00", 10<<20),
		}
		together := make(map[string]string)
		for _, set := range []map[string]string{stay, foreign} {
			for f, v := range set {
				together[f] = v
			}
		}
		fill(past, together)
		before := rb.Client.PExpireTime(t.Context(), at.key).Val()
		sweep()
		same("beside others' fields", together)
		if after := rb.Client.PExpireTime(t.Context(), at.key).Val(); after != before {
			t.Errorf("what a newer release may have written is cut short from %v to %v", before, after)
		}
		rb.Client.PExpire(t.Context(), at.key, time.Second)
		sweep()
		expires("beside others' fields, of a short key", last)

		// Nothing is left of what was nothing but past.
		fill(past)
		rb.Client.HSet(t.Context(), at.key, "s", 100)
		sweep()
		if n := rb.Client.Exists(t.Context(), at.key).Val(); n != 0 {
			t.Errorf("left: %q", fieldsOf(t, rb.Client, at.key))
		}
		sweep() // of nothing
		if n := rb.Client.Exists(t.Context(), at.key).Val(); n != 0 {
			t.Error("a sweep of nothing makes a key")
		}
	})
}

// Of tombstones that are in their Grace at most 1,000 stay, and of the others 100. Those
// where nothing had lived go first, then those that end first.
func TestSweepBoundsTombstones(t *testing.T) {
	each(t, Config{Timeout: 10 * time.Second}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		at := m.records.keys.fresh(m.records.keys.user("ann"))
		rb.Advance(t, 0)
		now := rb.Now(t)
		for _, tc := range []struct {
			lived, nothing, past    int // how many there are
			wantLived, wantNothing  int
			wantPast, records, live int
		}{
			{lived: 10, nothing: 10, past: 10, wantLived: 10, wantNothing: 10, wantPast: 10},
			{lived: 300, nothing: 700, past: 100, wantLived: 300, wantNothing: 700, wantPast: 100},
			{lived: 300, nothing: 5000, past: 101, wantLived: 300, wantNothing: 700, wantPast: 100},
			{lived: 999, nothing: 2, past: 250, wantLived: 999, wantNothing: 1, wantPast: 100},
			{lived: 1500, nothing: 1500, wantLived: 1000},
			{lived: 0, nothing: 1001, wantNothing: 1000},
			{lived: 1500, nothing: 1500, past: 1000, wantLived: 1000, wantPast: 100, records: 1500},
		} {
			rb.Client.Del(t.Context(), at.key)
			all := make(map[string]string)
			var order = rand.Perm(10_000)
			next := func() (n int) { n, order = order[0], order[1:]; return n }
			add := func(kind byte, n int, make func(ends time.Time) string) {
				for range n {
					i := next()
					all[fakeField(kind, i)] = make(now.Add(time.Hour + time.Duration(i)*time.Second))
				}
			}
			add('l', tc.lived, func(ends time.Time) string {
				return fakeTombstone([]byte{formatRotated, formatEnded}[len(all)%2], true, now.Add(time.Minute), ends)
			})
			add('n', tc.nothing, func(ends time.Time) string { return fakeTombstone(formatEnded, false, now.Add(time.Minute), ends) })
			add('p', tc.past, func(ends time.Time) string { return fakeTombstone(formatEnded, true, now.Add(-time.Minute), ends) })
			add('r', tc.records, fakeRecord)
			if err := rb.Client.HSet(t.Context(), at.key, all).Err(); err != nil {
				t.Fatal(err)
			}
			rb.Client.Expire(t.Context(), at.key, 100*time.Hour)
			if _, err := m.records.run(t.Context(), sweepScript, at, maxFresh, m.records.accounts.Max); err != nil {
				t.Fatal(err)
			}
			left := fieldsOf(t, rb.Client, at.key)
			for _, kind := range []struct {
				letter byte
				want   int
			}{{'l', tc.wantLived}, {'n', tc.wantNothing}, {'p', tc.wantPast}, {'r', tc.records}} {
				var had, stayed []string
				for f := range all {
					if f[0] == kind.letter {
						had = append(had, f)
					}
				}
				for f := range left {
					if f[0] == kind.letter {
						stayed = append(stayed, f)
					}
				}
				// A field's number is the order of its end.
				sort.Strings(had)
				sort.Strings(stayed)
				if len(stayed) != kind.want {
					t.Errorf("%+v: %d of %q stay, want %d", tc, len(stayed), kind.letter, kind.want)
				} else if want := had[len(had)-kind.want:]; strings.Join(stayed, " ") != strings.Join(want, " ") {
					t.Errorf("%+v: of %q not those stay that end last", tc, kind.letter)
				}
			}
		}
		rb.Client.Del(t.Context(), at.key)
	})
}

// Strangers who name made-up IDs in the hash of a user, which they can compute where there
// are no secrets, neither fill it nor push out what the user's own sessions have left.
func TestStrangersCannotFillAUsersHash(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		n := 5000
		if rb.Mini != nil {
			n = 2500 // its scripts are slow
		}
		m := manager(t, rb, Config{Timeout: 10 * time.Second, Rotation: Rotation{Grace: 10 * time.Minute}})
		owner := newKeys("gatehouse:", nil).user("ann") // as anybody can
		user := begin(t, m, "ann")
		if got := idOf(t, m, user.cookie).owner; got != owner {
			t.Fatal("the owner cannot be computed: this test is blind")
		}
		key := idOf(t, m, user.cookie).key
		// What she leaves: an ID that was rotated, one that was replaced by a login, one that
		// was logged out, each in its Grace.
		rotated := user.cookie
		user.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		other := begin(t, m, "ann")
		replaced := other.cookie
		other.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		left := begin(t, m, "ann")
		out := left.cookie
		left.request(func(ctx context.Context) { _ = m.Logout(ctx) })

		var marks atomic.Int64 // the most that anybody has seen
		inParallel(n, func(i int) {
			stranger := &browser{t, m, cookieOf(t, m, m.records.keys.fresh(owner))}
			stranger.request(func(ctx context.Context) {
				if i%10 == 9 { // also by a login, which leaves one where it comes from
					_ = m.Login(ctx, fmt.Sprint("stranger ", i%50))
				} else {
					m.Put(ctx, "k", i)
				}
			})
			if i%100 == 99 {
				n := rb.Client.HLen(t.Context(), key).Val()
				for most := marks.Load(); n > most && !marks.CompareAndSwap(most, n); most = marks.Load() {
				}
			}
		})
		most := max(marks.Load(), rb.Client.HLen(t.Context(), key).Val())
		t.Logf("at most %d fields of %d marks", most, n)
		if most > 2*maxFresh+100 {
			t.Errorf("the user's hash had %d fields", most)
		}
		if most < maxFresh {
			t.Errorf("the user's hash had only %d fields: this test is blind", most)
		}
		for what, got := range map[string]seen{"the session": look(t, m, user.cookie), "the rotated ID": look(t, m, rotated), "the other session": look(t, m, other.cookie)} {
			if got.user != "ann" || got.values != "map[k:v]" {
				t.Errorf("%s: %v", what, got)
			}
		}
		for what, cookie := range map[string]string{"the ID before a login": replaced, "the ID that was logged out": out} {
			if got := look(t, m, cookie); !got.dead || got.user != "" {
				t.Errorf("%s: its tombstone was pushed out: %v", what, got)
			}
		}
		b := begin(t, m, "ann")
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		if look(t, m, b.cookie).user != "ann" {
			t.Error("the user cannot log in")
		}
		// With the Grace over they are gone with the next sweep.
		advance(t, rb, 11*time.Minute, m)
		m.records.sweep(t.Context(), idOf(t, m, b.cookie))
		if n := rb.Client.HLen(t.Context(), key).Val(); n > 10 {
			t.Errorf("%d fields after their Grace", n)
		}
	})
}

// Beside whatever somebody has put into the hash of a user, her sessions work, no script
// fails, and what is there stays.
func TestAHashFullOfGarbage(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, plain *Manager) {
		log := &logged{}
		cfg := Config{Timeout: 10 * time.Second, Logger: log.logger(), Rotation: Rotation{Grace: time.Minute}}
		if plain.records.sealer.ring.Len() > 0 {
			cfg.Secrets = [][]byte{secret}
		}
		m := manager(t, rb, cfg)
		first := begin(t, m, "ann")
		i := idOf(t, m, first.cookie)
		record := at(t, rb.Client, i)
		garbage := make(map[string]string)
		rnd := rand.New(rand.NewPCG(1, 2))
		random := func(n int) string {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			return string(b)
		}
		// Of each first byte and of lengths about those of ours; not those that look like
		// something past, or like a tombstone of which only so many stay.
		for first := range 256 {
			for _, n := range []int{0, 1, 2, 8, 16, 24, 25, 40, 41, 51, 52, 58, 59, 74, 75, 100} {
				v := (string([]byte{byte(first)}) + random(n))[:max(n, 1)]
				if first == formatRecord && n >= headLen+timesLen+1 || (first == formatRotated || first == formatEnded) && n >= tombstoneLen {
					continue
				}
				garbage[random(16)] = v
			}
		}
		for n := range 40 {
			garbage["g"+random(n)] = random(n)
		}
		garbage[random(16)] = ""
		garbage[random(16)] = record[:headLen] + strings.Repeat("\xff", timesLen) + record[headLen+timesLen:]
		garbage["v"+i.field[:15]] = "short"
		garbage["a large one....."] = strings.Repeat("\xfe", 10<<20)
		put := func() {
			if err := rb.Client.HSet(t.Context(), i.key, garbage).Err(); err != nil {
				t.Fatal(err)
			}
			rb.Client.HSet(t.Context(), i.key, "s", "not a number")
		}
		put()
		step := func(what string, b *browser, do func(ctx context.Context) error, want string) {
			t.Helper()
			b.request(func(ctx context.Context) {
				if err := do(ctx); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			})
			if got := look(t, m, b.cookie); got.user != want {
				t.Errorf("%s: user %q", what, got.user)
			}
		}
		for _, b := range []*browser{first, {t, m, ""}} {
			step("login", b, func(ctx context.Context) error { return m.Login(ctx, "ann") }, "ann")
			step("save", b, func(ctx context.Context) error { m.Put(ctx, "k", "w"); return nil }, "ann")
			step("save large", b, func(ctx context.Context) error { m.Put(ctx, "l", strings.Repeat("x", 5000)); return nil }, "ann")
			step("rotate", b, m.Rotate, "ann")
			step("touch", b, func(ctx context.Context) error { advance(t, rb, 5*time.Minute, m); return nil }, "ann")
			step("rotate again", b, m.Rotate, "ann")
			put()
			step("login again", b, func(ctx context.Context) error { return m.Login(ctx, "ann") }, "ann")
			old := b.cookie
			step("rotate once more", b, m.Rotate, "ann")
			step("logout by the ID before", &browser{t, m, old}, m.Logout, "")
			if got := look(t, m, b.cookie); got.user != "" {
				t.Errorf("after logout: %v", got)
			}
		}
		m.records.sweep(t.Context(), i)
		if _, err := m.SecretUse(t.Context()); err != nil {
			t.Error(err)
		}
		got := fieldsOf(t, rb.Client, i.key)
		for f, v := range garbage {
			if now, ok := got[f]; !ok || now != v {
				t.Errorf("%.20q with %.20q is gone or changed", f, v)
			}
		}
		if text := log.String(); strings.Contains(text, ".lua") || strings.Contains(text, "user_script") || strings.Contains(text, "compiling") {
			t.Errorf("a script failed:\n%s", text)
		}
		// Who names one of them is nobody.
		n := 0
		for f := range garbage {
			if len(f) != fieldLen {
				continue
			}
			if n++; n > 300 {
				break
			}
			made := m.records.keys.fresh(i.owner)
			made.field = f
			if found, err := m.records.get(t.Context(), made); err != nil || found.record != nil || found.what != unreadable && garbage[f] != "" {
				t.Errorf("%.30q: %v, %v", garbage[f], found.what, err)
			}
		}
		rb.Client.Del(t.Context(), i.key)
	})
}

// TestALogoutBesideARecordOfOneByte: it ends the session in its other places all the same.
func TestALogoutBesideARecordOfOneByte(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb, Config{})
		b := begin(t, m, "ann")
		i := idOf(t, m, b.cookie)
		other := i
		other.field = "sixteen letters."
		if err := rb.Client.HSet(t.Context(), i.key, other.field, "\x01").Err(); err != nil {
			t.Fatal(err)
		}
		h := m.state(load(t, m, b.cookie)).record.head.handle
		if err := m.records.endSession(t.Context(), other, h); err != nil {
			t.Error(err)
		}
		if got := look(t, m, b.cookie); got.user != "" {
			t.Errorf("still there: %+v", got)
		}
	})
}
