package profile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// P7: a server whose T has one field more never reads an old value as that field's zero; old and
// new servers work side by side, each with its own form, and an Update by either reaches both.
func TestOldAndNewServersSideBySide(t *testing.T) {
	type newer struct {
		Name  string   `json:"name"`
		Roles []string `json:"roles"`
		Plan  string   `json:"plan"`
	}
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "ann")
		var loads atomic.Int64
		old := newCache(t, b.Client, db.load, Config{})
		fresh := newCache(t, b.NewClient(t), func(ctx context.Context, id string) (newer, error) {
			loads.Add(1)
			u, err := db.load(ctx, id)
			return newer{u.Name, u.Roles, "plan of " + u.Name}, err
		}, Config{})
		both := func(name string) {
			t.Helper()
			for range 3 {
				wants(t, old, "ann", name)
				if u, err := fresh.Get(t.Context(), "ann"); err != nil || u.Plan != "plan of "+name {
					t.Errorf("%+v, %v", u, err)
				}
			}
		}
		both("ann")
		if db.loads.Load() != 2 || loads.Load() != 1 {
			t.Errorf("%d loads, by new servers %d: they take turns in loading", db.loads.Load(), loads.Load())
		}
		if err := db.update(old, "ann", "by old"); err != nil {
			t.Error(err)
		}
		both("by old")
		if _, err := fresh.Update(t.Context(), "ann", func(context.Context) (newer, error) {
			db.set("ann", "by new")
			return newer{"by new", nil, "plan of by new"}, nil
		}); err != nil {
			t.Error(err)
		}
		both("by new")
		db.set("ann", "forgotten")
		if err := old.Forget(t.Context(), "ann"); err != nil {
			t.Error(err)
		}
		both("forgotten")
		// What old servers left goes when it is past.
		b.Advance(t, 6*time.Minute)
		_, _ = fresh.Get(t.Context(), "ann")
		if n := b.Client.HLen(t.Context(), fresh.core.place("ann").keys[0]).Val(); n != 1 {
			t.Errorf("%d fields", n)
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

type list struct {
	Next *list
	L    []list
}
type opaque struct{}

func (opaque) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

// A type's form is that of its JSON.
func TestFormsDifferAsTypesDo(t *testing.T) {
	type (
		base struct{ A int }
		same struct{ A int }
		more struct{ A, B int }
		kind struct{ A int8 }
		tag  struct {
			A int `json:"a"`
		}
		omit struct {
			A int `json:",omitempty"`
		}
		pointer struct{ A *int }
		slice   struct{ A []int }
		array   struct{ A [2]int }
		array3  struct{ A [3]int }
		mapped  struct{ A map[string]int }
		within  struct{ base }
		field   struct{ Base base }
		hidden  struct {
			A int
			b int //lint:ignore U1000 JSON does not see it
		}
		recursive []recursive
	)
	forms := map[string]string{}
	for name, form := range map[string]string{
		"base": formOf[base](), "more": formOf[more](), "kind": formOf[kind](), "tag": formOf[tag](), "omit": formOf[omit](),
		"pointer": formOf[pointer](), "slice": formOf[slice](), "array": formOf[array](), "array3": formOf[array3](),
		"mapped": formOf[mapped](), "within": formOf[within](), "field": formOf[field](), "time": formOf[time.Time](),
		"opaque": formOf[opaque](), "list": formOf[list](), "recursive": formOf[recursive](), "any": formOf[any](), "raw": formOf[json.RawMessage](),
		"*base": formOf[*base](), "string": formOf[string](),
	} {
		if other, ok := forms[form]; ok {
			t.Errorf("%s has the form of %s", name, other)
		}
		if len(form) != 8 {
			t.Errorf("form %q of %s", form, name)
		}
		forms[form] = name
	}
	if formOf[base]() != formOf[same]() || formOf[base]() != formOf[hidden]() {
		t.Error("forms differ where JSON does not")
	}
}

// P6: losing the version's key brings nothing back.
func TestALostVersionBringsNothingBack(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		var db database
		db.set("ann", "first")
		c := newCache(t, b.Client, db.load, Config{})
		at := c.core.place("ann")
		wants(t, c, "ann", "first")
		first := b.Client.Dump(t.Context(), at.keys[0]).Val()
		var versions []string
		for i := range 5 {
			versions = append(versions, b.Client.HGet(t.Context(), at.keys[1], "v").Val())
			name := fmt.Sprint("n", i)
			db.set("ann", name)
			if i%2 == 0 {
				b.Client.Del(t.Context(), at.keys[1])
			} else if err := c.ForgetAll(t.Context()); err != nil {
				t.Error(err)
			}
			wants(t, c, "ann", name)
			// The oldest value comes back by itself: its version does not.
			if b.Mini == nil {
				if err := b.Client.RestoreReplace(t.Context(), at.keys[0], time.Minute, first).Err(); err != nil {
					t.Fatal(err)
				}
				wants(t, c, "ann", name)
			}
		}
		slices.Sort(versions)
		if len(slices.Compact(versions)) != 5 {
			t.Errorf("a version was used twice: %q", versions)
		}
	})
}

// P6: ForgetAll costs the same however many values there are, and old ones go by themselves.
func TestForgetAllDoesNotDependOnTheNumberOfValues(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	var db database
	c := newCache(t, client, db.load, Config{TTL: time.Minute, NotFoundTTL: time.Minute})
	if err := c.ForgetAll(t.Context()); err != nil { // Redis has the script then
		t.Fatal(err)
	}
	for _, n := range []int{1, 2000} {
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { _, _ = c.Get(t.Context(), fmt.Sprint(i)) })
		}
		wg.Wait()
		count := func() int { return proxy.Forwarded("evalsha") + proxy.Forwarded("eval") + proxy.Forwarded("scan") }
		before := count()
		if err := c.ForgetAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sent := count() - before; sent != partitions {
			t.Errorf("%d values: %d commands", n, sent)
		}
	}
	server.Advance(time.Minute)
	eventually(t, "an empty Redis", func() bool { return len(server.Client().Keys(t.Context(), "*:{*}:*").Val()) == 0 })
}

// The keys are spread over all slots, and those of a script share one.
func TestPartitionsLieFarApart(t *testing.T) {
	cluster := redistest.SharedCluster(t)
	client := cluster.Client()
	var db database
	c := newCache(t, client, db.load, Config{})
	var slots []int64
	for i := range partitions {
		slot, err := client.ClusterKeySlot(t.Context(), c.core.partition(byte(4*i))).Result()
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	for i := 1; i < len(slots); i++ {
		if slots[i]-slots[i-1] != 256 {
			t.Errorf("slots %d and %d", slots[i-1], slots[i])
		}
	}
	at := c.core.place("ann")
	if a, b := client.ClusterKeySlot(t.Context(), at.keys[0]).Val(), client.ClusterKeySlot(t.Context(), at.keys[1]).Val(); a != b {
		t.Errorf("slots %d and %d of one script", a, b)
	}
}

// While a slot moves, what Redis refuses is said, and never is anything older returned.
func TestWhileASlotMoves(t *testing.T) {
	cluster := redistest.StartCluster(t)
	var db database
	c := newCache(t, cluster.Client(), db.load, Config{Timeout: 5 * time.Second})
	var last atomic.Int64
	db.set("ann", "0")
	wants(t, c, "ann", "0")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			err := db.update(c, "ann", fmt.Sprint(i))
			switch {
			case err == nil:
				last.Store(int64(i))
			case !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrNotTold):
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			least := last.Load()
			u, err := c.Get(t.Context(), "ann")
			var n int64
			if _, also := fmt.Sscan(u.Name, &n); err != nil || also != nil || n < least {
				t.Errorf("%q after %d: %v", u.Name, least, err)
			}
		}
	})
	for n := 0; n < 3 || n < 100 && last.Load() < 10; n++ {
		cluster.MoveSlot(c.core.place("ann").keys[0], 20*time.Millisecond)
	}
	close(stop)
	wg.Wait()
	if last.Load() < 10 {
		t.Errorf("%d updates", last.Load())
	}
}

// With Secrets nothing readable is in Redis, with a KeySecret no ID either; what is moved or
// damaged there is loaded anew.
func TestAtRest(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		secret := func(s string) []byte { return []byte(strings.Repeat(s, 32)) }
		var db database
		db.set("ann", "ann-secret")
		db.set("bob", "bob-secret")
		ring := func(secrets ...[]byte) *Cache[user] {
			return newCache(t, b.Client, db.load, Config{Secrets: secrets, KeySecret: secret("k")})
		}
		c := ring(secret("a"))
		wants(t, c, "ann", "ann-secret")
		wants(t, c, "bob", "bob-secret")
		ann, bob := c.core.place("ann"), c.core.place("bob")
		raw := b.Client.HGet(t.Context(), ann.keys[0], c.core.form).Val()
		if len(raw) < headLen || strings.Contains(raw, "ann") || strings.Contains(raw, "name") {
			t.Errorf("%q", raw)
		}
		if plain := newCache(t, b.Client, db.load, Config{}); plain.core.place("ann").keys[0] == ann.keys[0] {
			t.Error("a KeySecret changes nothing")
		}
		for name, put := range map[string]string{
			"another's value": b.Client.HGet(t.Context(), bob.keys[0], c.core.form).Val(),
			"a flipped bit":   raw[:len(raw)-1] + string(raw[len(raw)-1]^1),
			"cut":             raw[:headLen],
			"unsealed":        raw[:headLen] + "\x00\x00\x00\x00" + `v{"name":"mallory","roles":["r-ann-secret"]}`,
		} {
			// In the version and time of now, which an attacker can read.
			b.Client.HSet(t.Context(), ann.keys[0], c.core.form, put)
			before := db.loads.Load()
			wants(t, c, "ann", "ann-secret")
			wants(t, c, "ann", "ann-secret")
			if n := db.loads.Load() - before; n != 1 {
				t.Errorf("%s: %d loads", name, n)
			}
		}
		// Secrets are changed without a load: add the new one, put it first, take the old one out.
		before := db.loads.Load()
		wants(t, ring(secret("a"), secret("b")), "ann", "ann-secret")
		both := ring(secret("b"), secret("a"))
		wants(t, both, "ann", "ann-secret")
		if err := db.update(both, "ann", "ann-secret"); err != nil {
			t.Error(err)
		}
		wants(t, ring(secret("b")), "ann", "ann-secret")
		if db.loads.Load() != before {
			t.Error("a change of secrets loads anew")
		}
		// Without the secret it is loaded, once.
		wants(t, ring(secret("c")), "ann", "ann-secret")
		wants(t, ring(secret("c")), "ann", "ann-secret")
		if n := db.loads.Load() - before; n != 1 {
			t.Errorf("%d loads", n)
		}
	})
}

// cached is a cache over a client that caches reads in process.
func cached(t *testing.T, addr string, db *database, cfg Config) *Cache[user] {
	client := redis.NewClient(&redis.Options{Addr: addr, Protocol: 3, MaxRetries: -1, ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxStaleness: staleness}})
	t.Cleanup(func() { client.Close() })
	return newCache(t, client, db.load, cfg)
}

const staleness = 500 * time.Millisecond

// P5: in a near cache reads cost no command, an Update elsewhere is seen in milliseconds, and within
// MaxStaleness where the word of it is lost.
func TestNearCaches(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	var db database
	db.set("ann", "0")
	here, there := cached(t, server.Addr(), &db, Config{}), cached(t, proxy.Addr(), &db, Config{Timeout: 100 * time.Millisecond})
	sees := func(name string) time.Duration {
		t.Helper()
		for start := time.Now(); ; time.Sleep(100 * time.Microsecond) {
			if u, _ := there.Get(t.Context(), "ann"); u.Name == name {
				return time.Since(start)
			} else if time.Since(start) > 10*time.Second {
				t.Fatalf("%q is never seen", name)
			}
		}
	}
	sees("0")
	for range 20 { // warm
		wants(t, there, "ann", "0")
	}
	count := func() int { return proxy.Forwarded("evalsha") + proxy.Forwarded("hget") + proxy.Forwarded("hmget") }
	before := count()
	for range 1000 {
		wants(t, there, "ann", "0")
	}
	if n := count() - before; n > 20 {
		t.Errorf("1,000 reads cost %d commands", n)
	}
	var took []time.Duration
	for i := 1; i < 100; i++ {
		name := fmt.Sprint(i)
		var err error
		switch i % 3 {
		case 0:
			err = db.update(here, "ann", name)
		case 1:
			db.set("ann", name)
			err = here.Forget(t.Context(), "ann")
		case 2:
			db.set("ann", name)
			err = here.ForgetAll(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		wants(t, here, "ann", name) // what this process changed it sees at once
		took = append(took, sees(name))
	}
	slices.Sort(took)
	t.Logf("seen after %v (median), %v (worst)", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > 50*time.Millisecond || took[len(took)-1] > staleness+time.Second {
		t.Error("too late")
	}
	// An Update that dies holds for the time of its lease, in near caches, too.
	begin(t, here, "ann")
	db.set("ann", "by the dead")
	server.Advance(here.core.lease)
	if took := sees("by the dead"); took > staleness+time.Second {
		t.Errorf("seen %v after the lease", took)
	}
	for name, fault := range map[string]func(){"connections break": proxy.Disconnect, "packets vanish": func() { proxy.BlackHole() }} {
		fault()
		if err := db.update(here, "ann", name); err != nil {
			t.Fatal(err)
		}
		if took := sees(name); took > staleness+time.Second {
			t.Errorf("%s: seen after %v", name, took)
		}
		proxy.Heal()
	}
}

// A near cache refreshes, too, and serves nothing past its end.
func TestNearCachesRefresh(t *testing.T) {
	server := redistest.Start(t)
	var db database
	db.set("ann", "old")
	c := cached(t, server.Addr(), &db, Config{TTL: 2 * time.Second, Refresh: 1500 * time.Millisecond})
	wants(t, c, "ann", "old")
	db.set("ann", "new")
	eventually(t, "a refresh", func() bool { u, _ := c.Get(t.Context(), "ann"); return u.Name == "new" })
	if s := c.Stats(); s.Loads != 2 || s.Refreshes != 1 {
		t.Errorf("%+v", s)
	}
}

// The commands of docs/acl.md suffice; without one of them Check names it.
func TestUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	text, err := os.ReadFile("../../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	row := func(feature string) (commands []string) {
		for line := range strings.Lines(string(text)) {
			if cells := strings.Split(line, " | "); len(cells) == 3 && strings.HasPrefix(cells[0], "| "+feature) {
				for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
					commands = append(commands, strings.ReplaceAll(m[1], `\`, ""))
				}
				return commands
			}
		}
		t.Fatalf("no row of %s", feature)
		return nil
	}
	user := func(commands ...string) *redis.Client {
		args := []any{"ACL", "SETUSER", "service", "reset", "on", ">pw", "~gatehouse:profile:*", "+eval", "+evalsha"}
		for _, c := range commands {
			args = append(args, "+"+c)
		}
		if err := server.Client().Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		return server.Client(func(o *redis.Options) { o.Username, o.Password = "service", "pw" })
	}
	commands := row("`profile`")
	var db database
	c := newCache(t, user(commands...), db.load, Config{MaxLoads: -1})
	for i := range 3 {
		db.set("ann", fmt.Sprint(i))
		if err := errors.Join(c.Forget(t.Context(), "ann"), c.ForgetAll(t.Context())); err != nil {
			t.Error(err)
		}
		wants(t, c, "ann", fmt.Sprint(i))
		begin(t, c, "ann")
		if err := db.update(c, "ann", "x"); err != nil {
			t.Error(err)
		}
		server.Advance(c.core.lease)
	}
	if _, err := c.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for i, missing := range commands {
		c := newCache(t, user(slices.Delete(slices.Clone(commands), i, i+1)...), db.load, Config{})
		if _, err := c.Check(t.Context()); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
	forever := newCache(t, server.Client(func(o *redis.Options) {
		o.Protocol, o.ClientSideCacheConfig = 3, &redis.ClientSideCacheConfig{}
	}), db.load, Config{})
	if warnings, err := forever.Check(t.Context()); err != nil || !strings.Contains(strings.Join(warnings, "\n"), "MaxStaleness") {
		t.Errorf("%q, %v", warnings, err)
	}
}
