package session

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/seal"
)

var newSecret = []byte("fedcba9876543210fedcba9876543210")

// onEachNode runs f on every server of a client.
func onEachNode(t testing.TB, client redis.UniversalClient, f func(ctx context.Context, node *redis.Client) error) {
	t.Helper()
	var err error
	if c, ok := client.(*redis.ClusterClient); ok {
		err = c.ForEachMaster(t.Context(), f)
	} else {
		err = f(t.Context(), client.(*redis.Client))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// dump is all that a server holds: keys, fields and what stands there.
func dump(t testing.TB, client redis.UniversalClient) string {
	t.Helper()
	var all strings.Builder
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
			fmt.Fprintf(&all, "%s\n", key)
			for f, v := range fields {
				fmt.Fprintf(&all, "%s\n%s\n", f, v)
			}
		}
		return nil
	})
	return all.String()
}

func allKeys(t testing.TB, client redis.UniversalClient) (all []string) {
	t.Helper()
	var mu sync.Mutex
	onEachNode(t, client, func(ctx context.Context, node *redis.Client) error {
		keys, err := node.Keys(ctx, "*").Result()
		mu.Lock()
		defer mu.Unlock()
		all = append(all, keys...)
		return err
	})
	return all
}

// at is what stands at an ID, "" for nothing.
func at(t testing.TB, client redis.UniversalClient, i id) string {
	t.Helper()
	v, err := client.HGet(t.Context(), i.key, i.field).Result()
	if err != nil && err != redis.Nil {
		t.Fatal(err)
	}
	return v
}

// setAt writes to the field of an ID, as somebody else would.
func setAt(t testing.TB, client redis.UniversalClient, i id, value string) {
	t.Helper()
	if err := client.HSet(t.Context(), i.key, i.field, value).Err(); err != nil {
		t.Fatal(err)
	}
	client.ExpireNX(t.Context(), i.key, time.Hour)
}

// cookieOf is the cookie that names an ID, signed as m does.
func cookieOf(t testing.TB, m *Manager, i id) string {
	t.Helper()
	c, err := m.signer.sign(i.cookie())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNothingReadableAtRest(t *testing.T) {
	const user, value, key = "ann.of.green.gables", "a very private value", "the name of a value"
	large := strings.Repeat("a long private value. ", 200)
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		for _, sealed := range []bool{true, false} {
			cfg := Config{Prefix: fmt.Sprintf("sealed %v:", sealed)}
			if sealed {
				cfg.Secrets = [][]byte{secret}
			}
			m := manager(t, rb, cfg)
			var cookies []string
			b := &browser{t, m, ""}
			step := func(f func(ctx context.Context)) {
				b.request(f)
				cookies = append(cookies, b.cookie)
			}
			step(func(ctx context.Context) { m.Put(ctx, key, value) })
			step(func(ctx context.Context) { _ = m.Login(ctx, user) })
			step(func(ctx context.Context) { _ = m.Rotate(ctx) })
			step(func(ctx context.Context) { m.Put(ctx, key, value+"!") })
			step(func(ctx context.Context) { m.Put(ctx, "large", large) })
			if got := look(t, m, b.cookie); got.user != user {
				t.Fatalf("%+v", got)
			}
			all := dump(t, rb.Client)
			private := []string{string(secret), string(secret[:16]), string(keySecret), string(keySecret[:16])}
			for _, c := range cookies {
				token := idOf(t, m, c).token
				private = append(private, c, string(token[:]), base64.RawURLEncoding.EncodeToString(token[:]), hex.EncodeToString(token[:]))
			}
			if sealed {
				private = append(private, user, value, key, large[:22])
			}
			for _, s := range private {
				if strings.Contains(all, s) {
					t.Errorf("sealed %v: Redis holds %q", sealed, s)
				}
			}
			if keys := strings.Join(allKeys(t, rb.Client), "\n"); strings.Contains(keys, user) {
				t.Errorf("a key shows the user: %q", keys)
			}
			// The test sees what is there to be seen.
			if !sealed && (!strings.Contains(all, user) || !strings.Contains(all, value) || !strings.Contains(all, large)) {
				t.Error("plain records do not show their values: this test is blind")
			}
		}
	})
}

// guesses are the digests of a user ID that somebody could make who does not know the
// KeySecret, raw and as text, in full and cut to the length of an owner.
func guesses(userID string, known ...[]byte) (all []string) {
	add := func(sum []byte) {
		for _, b := range [][]byte{sum, sum[:min(len(sum), 16)]} {
			all = append(all, string(b), hex.EncodeToString(b),
				base64.RawURLEncoding.EncodeToString(b), base64.RawStdEncoding.EncodeToString(b))
		}
	}
	hashes := []func() hash.Hash{
		md5.New, sha1.New, sha256.New224, sha256.New, sha512.New384, sha512.New, sha512.New512_256,
		func() hash.Hash { return sha3.New256() }, func() hash.Hash { return sha3.New512() },
	}
	for _, newHash := range hashes {
		for _, said := range []string{userID, "gatehouse:" + userID, "user:" + userID, userID + "\n"} {
			h := newHash()
			h.Write([]byte(said))
			add(h.Sum(nil))
		}
		for _, key := range append([][]byte{nil, []byte("gatehouse:"), []byte("session user")}, known...) {
			mac := hmac.New(newHash, key)
			mac.Write([]byte(userID))
			add(mac.Sum(nil))
		}
	}
	// With our own code, which is public.
	for _, key := range append([][]byte{nil}, known...) {
		sum := seal.NewDigest(key, "session user").Sum(userID)
		add(sum[:])
	}
	return all
}

// A dump tells neither who has an account, nor whether a guess is right: user IDs are
// often small numbers or addresses that are known.
func TestUserIDsCannotBeGuessedFromADump(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		var users []string
		for i := range 20 {
			users = append(users, fmt.Sprint(1000+i))
		}
		users = append(users, "ann@example.com")
		for _, sealed := range []bool{true, false} {
			cfg := Config{Prefix: fmt.Sprintf("sealed %v:", sealed), IdleTimeout: time.Hour}
			if sealed {
				cfg.Secrets = [][]byte{secret, newSecret}
			}
			m := manager(t, rb, cfg)
			for _, user := range users { // of each kind of record and tombstone
				begin(t, m, user).request(func(ctx context.Context) { _ = m.Rotate(ctx) })
				begin(t, m, user).request(func(ctx context.Context) { _ = m.Login(ctx, user) })
				begin(t, m, user).request(func(ctx context.Context) { _ = m.Logout(ctx) })
				begin(t, m, user).request(func(ctx context.Context) { m.Remember(ctx, true); m.Put(ctx, "k", strings.Repeat("large", 1000)) })
			}
			var all strings.Builder
			for _, line := range strings.SplitAfter(dump(t, rb.Client), "\n") {
				all.WriteString(line)
			}
			held, found := all.String(), 0
			for _, user := range users {
				for _, guess := range guesses(user, secret, newSecret) {
					if sealed && strings.Contains(held, guess) {
						t.Fatalf("Redis confirms user %q by %q", user, guess)
					}
					if !sealed && strings.Contains(held, guess) {
						found++
						break
					}
				}
			}
			if !sealed && found != len(users) {
				t.Errorf("without secrets, %d of %d users are guessed: this test is blind", found, len(users))
			}
			rb.Client.Del(t.Context(), allKeys(t, rb.Client)...)
		}
	})
}

// logged is a logger and what it wrote.
type logged struct{ redistest.Journal }

func (l *logged) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// tombstone is one as rotate.lua writes it, an hour before the end of its Grace.
func tombstone(now time.Time, leads string) string {
	end := now.Add(time.Hour).UnixMicro()
	b := []byte{formatRotated, 1}
	for range 2 {
		for shift := 48; shift >= 0; shift -= 8 {
			b = append(b, byte(end>>shift))
		}
	}
	return string(append(b, make([]byte, tombstoneLen-len(b))...)) + leads
}

// damage is what becomes of a record that this server cannot read.
type damage struct {
	name string
	// do damages the record at an ID; other is another session of the same user, stranger
	// one of another user, guest one of a visitor.
	do func(t *testing.T, rb redistest.Backend, victim, other, stranger, guest id)
	// plain: it is noticed without secrets, too
	plain bool
	// key: not the record but its key is of another type
	key bool
	// uncounted: it is as if nothing were there
	uncounted bool
}

func damages() []damage {
	replace := func(f func(v string) string) func(*testing.T, redistest.Backend, id, id, id, id) {
		return func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			setAt(t, rb.Client, victim, f(at(t, rb.Client, victim)))
		}
	}
	constant := func(s string) func(*testing.T, redistest.Backend, id, id, id, id) {
		return replace(func(string) string { return s })
	}
	instead := func(f func(c redis.UniversalClient, key string) error) func(*testing.T, redistest.Backend, id, id, id, id) {
		return func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			rb.Client.Del(t.Context(), victim.key)
			if err := f(rb.Client, victim.key); err != nil {
				t.Fatal(err)
			}
			rb.Client.Expire(t.Context(), victim.key, time.Hour)
		}
	}
	return []damage{
		{name: "of another session", do: func(t *testing.T, rb redistest.Backend, victim, other, _, _ id) {
			setAt(t, rb.Client, victim, at(t, rb.Client, other))
		}},
		{name: "of another user", plain: true, do: func(t *testing.T, rb redistest.Backend, victim, _, stranger, _ id) {
			setAt(t, rb.Client, victim, at(t, rb.Client, stranger))
		}},
		{name: "of a visitor", do: func(t *testing.T, rb redistest.Backend, victim, _, _, guest id) {
			setAt(t, rb.Client, victim, at(t, rb.Client, guest))
		}},
		{name: "unknown format", plain: true, do: replace(func(v string) string { return "\x09" + v[1:] })},
		{name: "unknown kind", plain: true, do: replace(func(v string) string { return v[:1] + string(v[1]|3) + v[2:] })},
		{name: "unknown secret", plain: true, do: replace(func(v string) string { return v[:2] + "abcd" + v[6:] })},
		{name: "half of it", plain: true, do: replace(func(v string) string { return v[:len(v)/2] })},
		{name: "without its user", do: replace(func(v string) string {
			const at = headLen + timesLen + 1
			size := int(v[at])<<8 | int(v[at+1])
			return v[:at] + "\x00\x00" + v[at+2+size:]
		})},
		{name: "nothing in it", plain: true, uncounted: true, do: constant("")},
		{name: "one byte", plain: true, do: constant("\x01")},
		{name: "one byte of a rotated ID", plain: true, do: constant("\x02")},
		{name: "text", plain: true, do: constant(`{"user":"root"}`)},
		{name: "much of nothing", plain: true, do: constant(strings.Repeat("\x00", 10<<20))},
		{name: "a record and 10 MB", do: replace(func(v string) string { return v + strings.Repeat("x", 10<<20) })},
		{name: "a record's first byte and 10 MB", plain: true, do: constant("\x01" + strings.Repeat("\x00\xff", 5<<20))},
		{name: "times that nothing reaches", plain: true, do: replace(func(v string) string {
			return v[:headLen] + strings.Repeat("\xff", timesLen) + v[headLen+timesLen:]
		})},
		{name: "rotated to garbage", plain: true, do: func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			setAt(t, rb.Client, victim, tombstone(rb.Now(t), "garbage, long enough to be sealed, and then some more"))
		}},
		{name: "rotated to nothing", plain: true, do: func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			setAt(t, rb.Client, victim, tombstone(rb.Now(t), ""))
		}},
		{name: "its large values gone", plain: true, do: func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			makeLarge(t, rb, victim)
			rb.Client.HDel(t.Context(), victim.key, "v"+victim.field)
		}},
		{name: "its large values of another write", plain: true, do: func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			makeLarge(t, rb, victim)
			v := rb.Client.HGet(t.Context(), victim.key, "v"+victim.field).Val()
			rb.Client.HSet(t.Context(), victim.key, "v"+victim.field, "revision"+v[8:])
		}},
		{name: "its large values cut", plain: true, do: func(t *testing.T, rb redistest.Backend, victim, _, _, _ id) {
			makeLarge(t, rb, victim)
			v := rb.Client.HGet(t.Context(), victim.key, "v"+victim.field).Val()
			rb.Client.HSet(t.Context(), victim.key, "v"+victim.field, v[:len(v)-1])
		}},
		{name: "a string at the key", plain: true, key: true, do: instead(func(c redis.UniversalClient, key string) error {
			return c.Set(context.Background(), key, "x", time.Hour).Err()
		})},
		{name: "a list at the key", plain: true, key: true, do: instead(func(c redis.UniversalClient, key string) error {
			return c.RPush(context.Background(), key, "x").Err()
		})},
	}
}

// makeLarge gives the session at an ID values that stand in a field of their own.
func makeLarge(t *testing.T, rb redistest.Backend, i id) {
	t.Helper()
	cfg := Config{}
	if at(t, rb.Client, i)[2:6] != "\x00\x00\x00\x00" {
		cfg.Secrets = [][]byte{secret}
	}
	m := manager(t, rb, cfg)
	(&browser{t, m, cookieOf(t, m, i)}).request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", 10_000)) })
	if !rb.Client.HExists(t.Context(), i.key, "v"+i.field).Val() {
		t.Fatal("large values stand in no field of their own")
	}
}

// Whatever stands in the place of a record: it is absent, counted and logged, nobody gets
// in by it, and who had it can go on, log in and log out.
func TestUnreadableRecordsAreAbsent(t *testing.T) {
	const user, private = "ann@example.com", "a private value"
	each(t, Config{Timeout: 20 * time.Second}, func(t *testing.T, rb redistest.Backend, plain *Manager) {
		sealed := strings.HasSuffix(t.Name(), "secrets=1")
		log := &logged{}
		cfg := Config{Logger: log.logger(), Timeout: 20 * time.Second}
		if sealed {
			cfg.Secrets = [][]byte{secret}
		}
		m := manager(t, rb, cfg)
		for _, d := range damages() {
			if !sealed && !d.plain {
				continue
			}
			victim := func() (b *browser, before id) {
				b = begin(t, m, user)
				b.request(func(ctx context.Context) { m.Put(ctx, "private", private) })
				before = idOf(t, m, b.cookie)
				d.do(t, rb, before, idOf(t, m, begin(t, m, user).cookie), idOf(t, m, begin(t, m, "bob").cookie), idOf(t, m, begin(t, m, "").cookie))
				return b, before
			}
			bad := func(format string, args ...any) {
				t.Helper()
				t.Errorf("%s: %s", d.name, fmt.Sprintf(format, args...))
			}
			untouched := func(before id, was string) bool {
				return d.key || at(t, rb.Client, before) == was
			}
			held := func(before id) string {
				if d.key {
					return ""
				}
				return at(t, rb.Client, before)
			}

			b, before := victim()
			old, was, unreadable := b.cookie, held(before), m.Stats().Unreadable
			if got := look(t, m, b.cookie); got != (seen{values: "map[]"}) {
				bad("%+v", got)
			}
			if n := m.Stats().Unreadable - unreadable; n != 1 && !d.uncounted {
				bad("counted %d times", n)
			}
			if o := b.request(func(ctx context.Context) { m.Get(ctx, "k") }); o != (Outcome{}) {
				bad("a request that only reads: %+v", o)
			}
			if !untouched(before, was) {
				bad("a request that only reads did not leave it alone")
			}
			b.request(func(ctx context.Context) { m.Put(ctx, "k", "new") })
			if got := look(t, m, b.cookie); b.cookie == old || got.user != "" || got.values != "map[k:new]" {
				bad("a visitor cannot go on: %+v", got)
			}
			if !d.uncounted && !untouched(before, was) {
				bad("a visitor's change did not leave it to who can read it")
			}
			rb.Client.Del(t.Context(), before.key)

			b, before = victim()
			old = b.cookie
			ctx := load(t, m, old)
			if err := m.Rotate(ctx); err != nil {
				bad("Rotate: %v", err)
			}
			if o, err := m.Finish(ctx); err != nil || o != (Outcome{}) {
				bad("Rotate: %+v, %v", o, err)
			}
			b.request(func(ctx context.Context) {
				err := m.Login(ctx, user)
				switch {
				case !d.key && err != nil:
					bad("Login: %v", err)
				case d.key && (err == nil || !strings.Contains(err.Error(), "WRONGTYPE")):
					bad("Login with this at the user's own key: %v, which does not say why", err)
				}
			})
			if got := look(t, m, b.cookie); !d.key && (got.user != user || got.values != "map[]" || b.cookie == old) {
				bad("cannot log in: %+v", got)
			}
			if got := look(t, m, old); got.user != "" {
				bad("the old ID is logged in: %+v", got)
			}
			b.cookie = old
			b.request(func(ctx context.Context) {
				if err := m.Login(ctx, "carol"); err != nil {
					bad("Login as another: %v", err)
				}
			})
			if got := look(t, m, b.cookie); got.user != "carol" || got.values != "map[]" {
				bad("cannot log in as another: %+v", got)
			}
			if d.key {
				rb.Client.Del(t.Context(), before.key)
			}

			b, before = victim()
			old = b.cookie
			if o := b.request(func(ctx context.Context) {
				if err := m.Logout(ctx); err != nil {
					bad("Logout: %v", err)
				}
			}); o.Action != CookieDelete {
				bad("Logout: %+v", o)
			}
			if now := held(before); !d.key && !d.uncounted && (now == "" || now[0] != formatEnded) {
				bad("Logout left %.60q to other servers", now)
			}
			if got := look(t, m, old); got.user != "" || got.values != "map[]" {
				bad("after Logout: %+v", got)
			}
			rb.Client.Del(t.Context(), before.key)

			text := log.String()
			for _, s := range []string{user, private, old, b.cookie, string(secret), string(keySecret), before.key} {
				if s != "" && strings.Contains(text, s) {
					bad("the log shows %q:\n%s", s, text)
				}
			}
			if !d.uncounted && !strings.Contains(text, "cannot be read") {
				bad("not logged")
			}
			if strings.Contains(text, ".lua") || strings.Contains(text, "user_script") {
				bad("a script failed:\n%s", text)
			}
			log.Reset()
		}
	})
}

// With Secrets all of a record counts but what the scripts write between head and boxes:
// its times, and the name of the field before it.
func TestEveryBitOfASealedRecordCounts(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb, Config{Secrets: [][]byte{secret}})
		b := begin(t, m, "ann")
		b.request(func(ctx context.Context) { m.Put(ctx, "k", "v") })
		fresh := begin(t, m, "ann")
		guest := begin(t, m, "")
		large := begin(t, m, "ann")
		large.request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", apartAbove)) })
		old := b.cookie
		b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		const scripts, before = headLen, headLen + timesLen // where what they write begins and ends
		for name, tc := range map[string]struct {
			cookie string
			values bool                // in a field of their own
			free   func(i int) bool    // bytes that nothing vouches for
			reads  func(got seen) bool // as it should be
		}{
			"a login":   {cookie: fresh.cookie, free: func(i int) bool { return scripts <= i && i < before }},
			"a visitor": {cookie: guest.cookie, free: func(i int) bool { return scripts <= i && i < before }},
			"rotated":   {cookie: b.cookie, free: func(i int) bool { return scripts <= i && i < before || before < i && i <= before+fieldLen }},
			"the tombstone": {cookie: old, free: func(i int) bool {
				return 0 < i && i < tombstoneLen // whether it lived, its times, the handle that names what Logout ends
			}},
			"large":        {cookie: large.cookie, free: func(i int) bool { return scripts <= i && i < before }},
			"large values": {cookie: large.cookie, values: true, free: func(int) bool { return false }},
		} {
			i := idOf(t, m, tc.cookie)
			if tc.values {
				i.field = "v" + i.field
			}
			whole := at(t, rb.Client, i)
			want := look(t, m, tc.cookie)
			if want.values == "map[]" || (want.user == "") != (name == "a visitor") {
				t.Fatalf("%s: %+v", name, want)
			}
			try := func(v string) bool {
				setAt(t, rb.Client, i, v)
				ctx, err := m.Load(t.Context(), tc.cookie)
				return err == nil && (m.UserID(ctx) != "" || len(m.Keys(ctx)) > 0)
			}
			// Each bit in process, one of each byte of what is long or slow to ask.
			for at := range len(whole) {
				if !redistest.Turn(3) {
					continue
				}
				for bit := range 8 {
					if tc.free(at) || (rb.Mini == nil || len(whole) > 1000) && bit != at%8 {
						continue
					}
					v := []byte(whole)
					v[at] ^= 1 << bit
					if try(string(v)) {
						t.Errorf("%s: a flipped bit %d of byte %d was not noticed", name, bit, at)
					}
				}
				if try(whole[:at]) {
					t.Errorf("%s: cut to %d bytes it was still read", name, at)
				}
			}
			if try(whole + "x") {
				t.Errorf("%s: a byte more was not noticed", name)
			}
			setAt(t, rb.Client, i, whole)
			if got := look(t, m, tc.cookie); got != want {
				t.Errorf("%s: the whole record is not read: %+v", name, got)
			}
		}
	})
}

// What is written under another field or another owner does not open, or is absent.
func TestMovedRecordsAreAbsent(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		sealed := m.records.sealer.ring.Len() > 0
		ann, annToo, bob, guest, guestToo := begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "bob"), begin(t, m, ""), begin(t, m, "")
		of := func(b *browser) id { return idOf(t, m, b.cookie) }
		// The token of one in the hash of another, as a forged cookie may name it, and one
		// that no session ever had.
		across := func(owner, token *browser) id { return m.records.keys.at(of(owner).owner, of(token).token) }
		for _, tc := range []struct {
			name     string
			from, to id
			opens    bool // without secrets
		}{
			{"to another field of the user", of(ann), of(annToo), true},
			{"to a new field of the user", of(ann), m.records.keys.fresh(of(ann).owner), true},
			{"to another user's field", of(ann), of(bob), false},
			{"to another user's hash, same field", of(ann), across(bob, ann), false},
			{"to a visitor's field", of(ann), of(guest), false},
			{"to a visitor's hash, same field", of(ann), across(guest, ann), false},
			{"to a new owner", of(ann), m.records.keys.fresh(m.records.keys.visitor()), false},
			{"a visitor's to a user's field", of(guest), of(bob), true},
			{"a visitor's to a user's hash, same field", of(guest), across(bob, guest), true},
			{"a visitor's to another visitor's", of(guest), of(guestToo), true},
		} {
			record, was := at(t, rb.Client, tc.from), at(t, rb.Client, tc.to)
			if record == "" {
				t.Fatalf("%s: nothing to move", tc.name)
			}
			setAt(t, rb.Client, tc.to, record)
			cookie, unreadable := cookieOf(t, m, tc.to), m.Stats().Unreadable
			got := look(t, m, cookie)
			if sealed || !tc.opens {
				if got != (seen{values: "map[]"}) {
					t.Errorf("%s: %+v", tc.name, got)
				}
				if n := m.Stats().Unreadable - unreadable; n != 1 {
					t.Errorf("%s: counted %d times", tc.name, n)
				}
			} else if got.values != "map[k:v]" { // the test sees what is there to be seen
				t.Errorf("%s: without secrets: %+v", tc.name, got)
			}
			if user := look(t, m, ann.cookie).user; user != "ann" {
				t.Errorf("%s: where it comes from: user %q", tc.name, user)
			}
			if was == "" {
				rb.Client.HDel(t.Context(), tc.to.key, tc.to.field)
			} else {
				setAt(t, rb.Client, tc.to, was)
			}
		}
		// Large values of one session beside the record of another.
		size := strings.Repeat("x", 2*apartAbove)
		for _, b := range []*browser{ann, annToo} {
			b.request(func(ctx context.Context) { m.Put(ctx, "whose", b.cookie+size) })
		}
		to := of(annToo)
		rb.Client.HSet(t.Context(), to.key, "v"+to.field, rb.Client.HGet(t.Context(), of(ann).key, "v"+of(ann).field).Val())
		if got := look(t, m, annToo.cookie); got.user != "" || got.values != "map[]" {
			t.Errorf("with the large values of another session: %.80v", got)
		}
	})
}

// Who logs out at a server that cannot read the record is logged out at those that can.
func TestLogoutEndsWhatThisServerCannotRead(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		server := func(secrets ...[]byte) *Manager { return manager(t, rb, Config{Secrets: secrets}) }
		before, both, rolling, after := server(secret), server(newSecret, secret), server(secret, newSecret), server(newSecret)
		rotate := func(b *browser) { b.request(func(ctx context.Context) { _ = b.m.Rotate(ctx) }) }
		for _, tc := range []struct {
			name string
			// do makes of ann's session at a server with the old secret what after cannot
			// read, and returns the IDs that her cookies have named, the one to send first.
			do func(b *browser) []id
			// newer: what was written is of a release to come, none here can read it
			newer bool
		}{
			{name: "an unknown secret", do: func(b *browser) []id { return []id{idOf(t, b.m, b.cookie)} }},
			{name: "an unknown format", newer: true, do: func(b *browser) []id {
				i := idOf(t, b.m, b.cookie)
				setAt(t, rb.Client, i, "\x09"+at(t, rb.Client, i)[1:])
				return []id{i}
			}},
			{name: "a rotated ID of an unknown secret", do: func(b *browser) []id {
				first := idOf(t, b.m, b.cookie)
				rotate(b)
				return []id{first, idOf(t, b.m, b.cookie)}
			}},
			{name: "an ID rotated often", do: func(b *browser) []id {
				ids := []id{idOf(t, b.m, b.cookie)}
				for range 20 {
					rotate(b)
					ids = append(ids, idOf(t, b.m, b.cookie))
				}
				return ids
			}},
			{name: "a rotated ID that leads to an unknown secret", do: func(b *browser) []id {
				b.m = both
				first := idOf(t, b.m, b.cookie)
				rotate(b)
				b.m = rolling // seals with the old one
				b.request(func(ctx context.Context) { b.m.Put(ctx, "k", "again") })
				return []id{first, idOf(t, b.m, b.cookie)}
			}},
			{name: "a rotated ID that leads to an unknown format", newer: true, do: func(b *browser) []id {
				b.m = both
				first := idOf(t, b.m, b.cookie)
				rotate(b)
				i := idOf(t, b.m, b.cookie)
				setAt(t, rb.Client, i, "\x09"+at(t, rb.Client, i)[1:])
				return []id{first, i}
			}},
		} {
			b, other := begin(t, before, "ann"), begin(t, before, "ann")
			ids := tc.do(b)
			cookie := cookieOf(t, after, ids[0])
			if got := look(t, after, cookie); got.user != "" {
				t.Fatalf("%s: it can be read: %+v", tc.name, got)
			}
			if got := look(t, both, cookie); !tc.newer && got.user != "ann" {
				t.Fatalf("%s: it cannot be read where both secrets are: %+v", tc.name, got)
			}
			gone := &browser{t, after, cookie}
			if o := gone.request(func(ctx context.Context) {
				if err := after.Logout(ctx); err != nil {
					t.Errorf("%s: %v", tc.name, err)
				}
			}); o.Action != CookieDelete {
				t.Errorf("%s: %+v", tc.name, o)
			}
			for n, i := range ids {
				if got := look(t, both, cookieOf(t, both, i)); got.user != "" || got.values != "map[]" {
					t.Errorf("%s: ID %d of %d still answers another server: %+v", tc.name, n, len(ids), got)
				}
				if v := at(t, rb.Client, i); v == "" || v[0] != formatEnded {
					t.Errorf("%s: at ID %d of %d stands %.30q", tc.name, n, len(ids), v)
				}
			}
			if look(t, before, other.cookie).user != "ann" {
				t.Errorf("%s: another session of the user was ended", tc.name)
			}
		}
		// Of several cookies each is meant.
		first, second, readable := begin(t, before, "ann"), begin(t, before, "ann"), begin(t, after, "ann")
		cookies := []string{cookieOf(t, after, idOf(t, before, first.cookie)), cookieOf(t, after, idOf(t, before, second.cookie)), readable.cookie}
		ctx := load(t, after, cookies...)
		if after.UserID(ctx) != "ann" {
			t.Fatal("the one that can be read is not loaded")
		}
		if err := after.Logout(ctx); err != nil {
			t.Fatal(err)
		}
		for n, c := range cookies {
			if look(t, both, c).user != "" {
				t.Errorf("cookie %d still answers another server", n)
			}
		}
	})
}

func TestSecretsRotate(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		var managers []*Manager
		var hooks []*commands
		site := func(secrets ...[]byte) *Manager {
			client := rb.NewClient(t)
			hooks = append(hooks, countCommands(client))
			m := managerOver(t, client, Config{Secrets: secrets, IdleTimeout: time.Hour})
			managers = append(managers, m)
			return m
		}
		before, rolling, both, after := site(secret), site(secret, newSecret), site(newSecret, secret), site(newSecret)
		user := func(m *Manager, cookie string) string { return look(t, m, cookie).user }
		use := func(m *Manager, want SecretUse) {
			t.Helper()
			got, err := m.SecretUse(t.Context())
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		}

		visitor := func(m *Manager) *browser {
			b := &browser{t, m, ""}
			b.request(func(ctx context.Context) {
				m.Put(ctx, "k", "v")
				if err := m.Login(ctx, "ann"); err != nil {
					t.Fatal(err)
				}
			})
			return b
		}
		regular, gone, heavy := visitor(before), visitor(before), visitor(before)
		heavy.request(func(ctx context.Context) { before.Put(ctx, "large", strings.Repeat("x", 2*apartAbove)) })
		use(both, SecretUse{Secrets: []int{0, 3}})

		// Servers that have the new secret in second place only read with it, so that during
		// a rollout nobody meets a server that cannot read what another has written.
		newcomer := visitor(both)
		if user(rolling, newcomer.cookie) != "ann" || user(rolling, regular.cookie) != "ann" {
			t.Error("a server with the new secret in second place cannot read both")
		}
		use(both, SecretUse{Secrets: []int{1, 3}})

		// One request that only reads moves cookie and record to the new secret, in one write.
		regular.m = both
		read := func(ctx context.Context) {
			if both.UserID(ctx) != "ann" {
				t.Error("logged out by a new secret")
			}
		}
		hooks[2].reset(nil)
		if o := regular.request(read); o.Action != CookieSet {
			t.Errorf("the cookie was not signed anew: %+v", o)
		}
		if o := regular.request(read); o.Action != CookieKeep {
			t.Errorf("signed anew once more: %+v", o)
		}
		if got := strings.Join(hooks[2].all(), " "); got != "hget save hget" {
			t.Errorf("two requests that read: %q", got)
		}
		use(both, SecretUse{Secrets: []int{2, 2}})

		// Where the cookie is the new secret's already, the record follows when a use is to
		// be noted, and not with each request; with its large values.
		heavy.m, heavy.cookie = both, cookieOf(t, both, idOf(t, before, heavy.cookie))
		hooks[2].reset(nil)
		for range 5 {
			heavy.request(read)
		}
		if got := strings.Join(hooks[2].all(), " "); got != strings.TrimSpace(strings.Repeat("hget hget ", 5)) {
			t.Errorf("requests that read before a use is to be noted: %q", got)
		}
		use(both, SecretUse{Secrets: []int{2, 2}})
		advance(t, rb, 3*time.Minute+time.Second, managers...)
		both.records.now(t.Context(), idOf(t, both, heavy.cookie))
		hooks[2].reset(nil)
		for range 5 {
			heavy.request(func(ctx context.Context) {
				if read(ctx); len(both.GetString(ctx, "large")) != 2*apartAbove {
					t.Error("large values are lost")
				}
			})
		}
		if got := strings.Join(hooks[2].all(), " "); got != "hget hget save"+strings.Repeat(" hget hget", 4) {
			t.Errorf("requests that read when a use is to be noted: %q", got)
		}
		use(both, SecretUse{Secrets: []int{3, 1}})

		// A rollback is as smooth.
		regular.m = rolling
		if o := regular.request(func(ctx context.Context) {
			if rolling.UserID(ctx) != "ann" {
				t.Error("logged out by a rollback")
			}
		}); o.Action != CookieSet {
			t.Errorf("a rollback: %+v", o)
		}
		use(both, SecretUse{Secrets: []int{2, 2}})
		regular.m = both
		regular.request(read)

		// Dropping the old one logs out only who never came back.
		use(after, SecretUse{Secrets: []int{3}, Unknown: 1})
		if got := look(t, after, regular.cookie); got.user != "ann" || got.values != "map[k:v]" {
			t.Errorf("a regular visitor: %+v", got)
		}
		if ctx := load(t, after, heavy.cookie); after.UserID(ctx) != "ann" || len(after.GetString(ctx, "large")) != 2*apartAbove {
			t.Error("a visitor with large values")
		}
		gone.m = after
		gone.request(func(ctx context.Context) {
			if after.UserID(ctx) != "" {
				t.Error("a dropped secret still works")
			}
			if err := after.Login(ctx, "ann"); err != nil {
				t.Error(err)
			}
		})
		if user(after, gone.cookie) != "ann" {
			t.Error("who was logged out cannot log in")
		}
	})
}

// Servers in the middle of a change of secrets keep a user's sessions in one place, which
// KeySecret alone decides.
func TestSecretsDoNotMoveAUser(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		servers := [][][]byte{{secret}, {newSecret, secret}, {newSecret}, {secret, newSecret}}
		var ids []id
		for _, secrets := range servers {
			m := manager(t, rb, Config{Secrets: secrets})
			ids = append(ids, idOf(t, m, begin(t, m, "ann").cookie))
			if got := m.records.keys.key(m.records.keys.user("ann")); got != ids[0].key {
				t.Errorf("the user's sessions are at %q and at %q", got, ids[0].key)
			}
		}
		for n, i := range ids {
			if i.key != ids[0].key {
				t.Errorf("server %d keeps the user's sessions at %q, server 0 at %q", n, i.key, ids[0].key)
			}
			if !rb.Client.HExists(t.Context(), ids[0].key, i.field).Val() {
				t.Errorf("the session of server %d is not with the others", n)
			}
		}
		// A sweep by one of them takes nothing of the others.
		m := manager(t, rb, Config{Secrets: servers[2]})
		m.records.sweep(t.Context(), ids[0])
		if n := rb.Client.HLen(t.Context(), ids[0].key).Val(); n != int64(len(ids)+1) { // and "s"
			t.Errorf("%d fields after a sweep, want %d", n, len(ids)+1)
		}
		// Another KeySecret is another place: it logs out.
		other := manager(t, rb, Config{Secrets: servers[0], KeySecret: newSecret})
		if got := look(t, other, cookieOf(t, other, ids[0])); got.user != "" {
			t.Errorf("with another KeySecret: %+v", got)
		}
	})
}

func TestSecretUseCountsEveryKindOfRecord(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		const prefix = `we*ird[p]?re\fix:`
		plain, sealed := manager(t, rb, Config{Prefix: prefix}), manager(t, rb, Config{Prefix: prefix, Secrets: [][]byte{secret}})
		other := manager(t, rb, Config{Prefix: "weXird[p]?re", Secrets: [][]byte{secret}})
		for _, m := range []*Manager{plain, sealed, other} {
			for range scanPage {
				begin(t, m, "")
			}
			b := begin(t, m, "")
			b.request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", 2*apartAbove)) })
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
		}
		// Others' keys that look like ours. Of the hash one field does, too.
		rb.Client.RPush(t.Context(), prefix+"{abc}:list", 1)
		rb.Client.HSet(t.Context(), prefix+"{abc}:hash", "sixteen bytes...", "junk", "another", "junk", "sixteen bytes, 2", "")
		defer rb.Client.Del(t.Context(), prefix+"{abc}:list", prefix+"{abc}:hash")
		// Of the three IDs one was rotated, one ended and one is live.
		want := SecretUse{Secrets: []int{scanPage + 2}, Unsealed: scanPage + 2, Unknown: 1}
		if got, err := sealed.SecretUse(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
		want = SecretUse{Secrets: []int{}, Unsealed: scanPage + 2, Unknown: scanPage + 3}
		if got, err := plain.SecretUse(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	})
}

// What is over in the hash of a user who comes back needs no secret: else an old one could
// never go.
func TestSecretUseLeavesOutWhatIsOver(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		before := manager(t, rb, Config{Secrets: [][]byte{secret}})
		both := manager(t, rb, Config{Secrets: [][]byte{newSecret, secret}})
		begin(t, before, "ann").request(func(ctx context.Context) { _ = before.Rotate(ctx) })
		b := begin(t, both, "ann")
		for range 3 {
			advance(t, rb, 30*time.Minute, before, both)
			b.request(func(context.Context) {})
		}
		want := SecretUse{Secrets: []int{1, 0}}
		if got, err := both.SecretUse(t.Context()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	})
}
