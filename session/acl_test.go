package session

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// aclRow returns the commands of the row of docs/acl.md that begins with feature.
func aclRow(t *testing.T, feature string) (commands []string) {
	t.Helper()
	text, err := os.ReadFile("../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, " | "); len(cells) == 3 && strings.HasPrefix(cells[0], "| "+feature) {
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
				commands = append(commands, strings.ReplaceAll(m[1], `\`, ""))
			}
			return commands
		}
	}
	t.Fatalf("docs/acl.md has no row of %s", feature)
	return nil
}

func asUser(t *testing.T, server *redistest.Server, keys string, commands []string, set ...func(*redis.Options)) *redis.Client {
	t.Helper()
	args := []any{"ACL", "SETUSER", "service", "reset", "on", ">pw", "~" + keys, "+eval", "+evalsha"}
	for _, c := range commands {
		args = append(args, "+"+c)
	}
	if err := server.Client().Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	return server.Client(append(set, func(o *redis.Options) { o.Username, o.Password = "service", "pw" })...)
}

// Sessions do all they can as a user who may run what docs/acl.md says and no more; without one of
// the commands Check names it.
func TestSessionsUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	commands := aclRow(t, "sessions")
	client := asUser(t, server, "gatehouse:{*", append(slices.Clone(commands), "scan"))
	m := managerOver(t, client, Config{Secrets: [][]byte{secret}, IdleTimeout: time.Hour, Timeout: 10 * time.Second})
	pass := func(d time.Duration) { server.Advance(d); m.records.clocks.forget() }
	b := &browser{t, m, ""}
	large := strings.Repeat("x", 2*apartAbove)
	for round := range 4 {
		b.request(func(ctx context.Context) { m.Put(ctx, "k", large[:1+round%2*len(large)/2]) })
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, "ann"); err != nil {
				t.Fatal(err)
			}
			m.Put(ctx, "k", large)
		})
		b.request(func(ctx context.Context) {
			if err := m.Rotate(ctx); err != nil {
				t.Fatal(err)
			}
		})
		for range 20 { // rotations that are swept
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
		}
		pass(4 * time.Minute) // a touch is due
		b.request(func(ctx context.Context) {
			if m.UserID(ctx) != "ann" {
				t.Fatal("logged out")
			}
		})
		actsOnAccounts(t, m, b, func() { pass(10 * time.Second) })
		b.request(func(ctx context.Context) {
			if err := m.Logout(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
	if _, err := m.SecretUse(t.Context()); err != nil {
		t.Errorf("SecretUse: %v", err)
	}
	for i, missing := range commands {
		m := managerOver(t, asUser(t, server, "gatehouse:{*", slices.Delete(slices.Clone(commands), i, i+1)), Config{})
		if _, err := m.Check(t.Context()); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
	if _, err := managerOver(t, asUser(t, server, "other:*", commands), Config{}).Check(t.Context()); err == nil {
		t.Error("other keys: no error")
	}
}

// actsOnAccounts does all that can be done with the sessions of ann, who is logged in in b and stays so. pause
// takes longer than a login after an end may be refused.
func actsOnAccounts(t *testing.T, m *Manager, b *browser, pause func()) {
	t.Helper()
	must := func(what string, err error) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	other := begin(t, m, "ann")
	must("End", m.End(t.Context(), "ann", handleOf(t, m, other), Cause{}))
	begin(t, m, "ann")
	b.request(func(ctx context.Context) {
		m.Put(ctx, "state", "s")
		must("Confirm", m.Confirm(ctx))
	})
	b.request(func(ctx context.Context) {
		value, err := m.PopOnce(ctx, "state")
		if must("PopOnce", err); value != "s" {
			t.Errorf("%v", value)
		}
		must("Reload", m.Reload(ctx))
	})
	b.request(func(ctx context.Context) {
		ended, err := m.EndOthers(ctx, Cause{})
		if must("EndOthers", err); len(ended) != 1 {
			t.Errorf("EndOthers: %v", ended)
		}
	})
	list, err := m.List(t.Context(), "ann")
	if must("List", err); len(list) != 1 {
		t.Errorf("List: %v", list)
	}
	pause()
	b.request(func(ctx context.Context) {
		_, err := m.EndAll(ctx, "ann", Cause{})
		must("EndAll", err)
		must("Login after it", m.Login(ctx, "ann"))
	})
	pause()
	b.request(func(ctx context.Context) {
		must("BeginLogin", m.BeginLogin(ctx, "ann", time.Minute))
	})
	b.request(func(ctx context.Context) { must("Login", m.Login(ctx, "ann")) })
}

// A watch hears of an end as a user who may do what the rows of sessions and of watches say.
func TestWatchUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	client := asUser(t, server, "gatehouse:{*", append(aclRow(t, "`Manager.Watch`"), aclRow(t, "sessions")...))
	if err := server.Client().Do(t.Context(), "ACL", "SETUSER", "service", "&gatehouse:ended").Err(); err != nil {
		t.Fatal(err)
	}
	m := managerOver(t, client, Config{Timeout: 10 * time.Second})
	m.watches.every = time.Hour
	ctx := watched(t, m, begin(t, m, "ann").cookie)
	endAll(t, m, "ann")
	ends(t, ctx, 10*time.Second, "EndAll")
}

// Check finds nothing to say about the user whom the line of docs/acl.md makes.
func TestTheLineOfTheACLPage(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	text, err := os.ReadFile("../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	var line []any
	for _, word := range strings.Fields(regexp.MustCompile(`(?m)^    (ACL SETUSER .*)$`).FindString(string(text))) {
		line = append(line, word)
	}
	if err := server.Client().Do(t.Context(), line...).Err(); err != nil {
		t.Fatal(err)
	}
	client := server.Client(func(o *redis.Options) { o.Username, o.Password = "service", "password" })
	if warnings, err := managerOver(t, client, Config{Timeout: 10 * time.Second}).Check(t.Context()); err != nil || len(warnings) > 0 {
		t.Errorf("%q, %v", warnings, err)
	}
}

// Check names what is missing for events, besides.
func TestCheckNamesWhatEventsLack(t *testing.T) {
	server := redistest.Start(t)
	row := aclRow(t, "`Config.Events`")
	check := func(commands []string) error {
		client := asUser(t, server, "gatehouse:{*", append(commands, aclRow(t, "sessions")...))
		_, err := managerOver(t, client, Config{Events: Events{Retention: time.Hour}}).Check(t.Context())
		return err
	}
	if err := check(slices.Clone(row)); err != nil {
		t.Errorf("with all: %v", err)
	}
	for i, missing := range row {
		if err := check(slices.Delete(slices.Clone(row), i, i+1)); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
}

// Reads through a client-side cache need what the table says besides.
func TestClientSideCacheUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	cached := func(o *redis.Options) {
		o.Protocol = 3
		o.ClientSideCache = redis.NewLocalCache(redis.CacheConfig{MaxStaleness: time.Minute})
	}
	client := asUser(t, server, "gatehouse:{*", append(aclRow(t, "client-side cache"), aclRow(t, "sessions")...), cached)
	m := managerOver(t, client, Config{Timeout: 10 * time.Second})
	b := &browser{t, m, ""}
	b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
	b.request(func(ctx context.Context) {})
	before := hgets(t, server)
	for range 20 {
		b.request(func(ctx context.Context) {
			if m.UserID(ctx) != "ann" {
				t.Error("logged out")
			}
		})
	}
	if n := hgets(t, server) - before; n > 5 {
		t.Errorf("%d reads of 20 asked Redis", n)
	}
	// A logout elsewhere is heard of.
	other := &browser{t, managerOver(t, server.Client(), Config{Timeout: 10 * time.Second}), b.cookie}
	other.request(func(ctx context.Context) { _ = other.m.Logout(ctx) })
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		gone := false
		b.request(func(ctx context.Context) { gone = m.UserID(ctx) == "" })
		if gone {
			break
		}
		if time.Since(began) > 5*time.Second {
			t.Fatal("the logout is not heard of")
		}
	}
}

// Over a cluster, a client needs what the page says besides.
func TestSessionsOverAClusterUnderTheLeastACL(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t)
	args := []any{"ACL", "SETUSER", "service", "reset", "on", ">pw", "~gatehouse:{*", "+eval", "+evalsha", "+cluster|slots", "+command", "+asking"}
	for _, c := range aclRow(t, "sessions") {
		args = append(args, "+"+c)
	}
	for _, node := range cluster.Nodes() {
		if err := node.Client().Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	m := managerOver(t, cluster.Client(func(o *redis.ClusterOptions) { o.Username, o.Password = "service", "pw" }), Config{Timeout: 10 * time.Second})
	for i := range 20 {
		b := &browser{t, m, ""}
		b.request(func(ctx context.Context) {
			if err := m.Login(ctx, strings.Repeat("u", 1+i)); err != nil {
				t.Fatal(err)
			}
		})
		b.request(func(ctx context.Context) {
			if m.UserID(ctx) == "" {
				t.Error("logged out")
			}
			_ = m.Logout(ctx)
		})
	}
	if warnings, err := m.Check(t.Context()); err != nil || len(warnings) != 3 { // of INFO, SCAN and the channel
		t.Errorf("Check: %v, %v", warnings, err)
	}
}

// Another service under the same Prefix is told of, if it has other secrets; and so is SCAN that
// is not permitted.
func TestCheckFindsAnotherService(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	other := []byte("the secret of another service, which is long")
	check := func(cfg Config) string {
		t.Helper()
		warnings, err := managerOver(t, server.Client(), cfg).Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(warnings, "\n")
	}
	login := func(cfg Config) {
		b := &browser{t, managerOver(t, server.Client(), cfg), ""}
		b.request(func(ctx context.Context) { _ = b.m.Login(ctx, "ann") })
	}
	ours := Config{Secrets: [][]byte{secret}}
	login(ours)
	if got := check(ours); got != "" {
		t.Errorf("alone: %s", got)
	}
	for name, cfg := range map[string]Config{"unsealed": {}, "of another secret": {Secrets: [][]byte{other}}} {
		login(cfg)
		if got := check(ours); !strings.Contains(got, "same Prefix") {
			t.Errorf("%s: %q", name, got)
		}
		server.Flush()
		login(ours)
	}
	if got := check(Config{Secrets: [][]byte{other, secret}}); got != "" {
		t.Errorf("with the old secret: %s", got)
	}
	m := managerOver(t, asUser(t, server, "gatehouse:{*", aclRow(t, "sessions")), Config{})
	if warnings, err := m.Check(t.Context()); err != nil || !strings.Contains(strings.Join(warnings, "\n"), "SCAN is not permitted") {
		t.Errorf("%v, %v", warnings, err)
	}
}

// What is likely to surprise is told: what evicts or forgets sessions, and a cache without a bound.
func TestCheckTellsWhatLogsPeopleOut(t *testing.T) {
	server := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru")
	check := func(set ...func(*redis.Options)) string {
		t.Helper()
		m := managerOver(t, server.Client(set...), Config{})
		warnings, err := m.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(warnings, "\n")
	}
	if got := check(); !strings.Contains(got, "volatile-lru") || !strings.Contains(got, "append-only") || strings.Contains(got, "MaxStaleness") {
		t.Errorf("warnings:\n%s", got)
	}
	server.Client().ConfigSet(t.Context(), "maxmemory-policy", "noeviction")
	server.Client().ConfigSet(t.Context(), "appendonly", "yes")
	if got := check(); got != "" {
		t.Errorf("warnings:\n%s", got)
	}
	for name, tc := range map[string]struct {
		set  func(*redis.Options)
		want bool
	}{
		"a cache by its config, without": {func(o *redis.Options) { o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{} }, true},
		"a cache by its config, with": {func(o *redis.Options) {
			o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{MaxStaleness: time.Second}
		}, false},
		"a cache given, without": {func(o *redis.Options) { o.ClientSideCache = redis.NewLocalCache(redis.CacheConfig{}) }, true},
		"a cache given, with": {func(o *redis.Options) {
			o.ClientSideCache = redis.NewLocalCache(redis.CacheConfig{MaxStaleness: time.Second})
		}, false},
	} {
		if got := check(func(o *redis.Options) { o.Protocol = 3; tc.set(o) }); strings.Contains(got, "MaxStaleness") != tc.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, set := range map[string]func(*redis.Options){
		"RESP2":  func(o *redis.Options) { o.Protocol = 2 },
		"SELECT": func(o *redis.Options) { o.Protocol, o.DB = 3, 1 },
	} {
		if got := check(func(o *redis.Options) { o.ClientSideCacheConfig = &redis.ClientSideCacheConfig{}; set(o) }); !strings.Contains(got, "cache is not used") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if keys := server.Client().DBSize(t.Context()).Val(); keys != 0 {
		t.Errorf("%d keys written", keys)
	}
}

// So is what reads from replicas; and a Redis that is too old is an error.
func TestCheckFindsReplicaReadsAndAnOldRedis(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t)
	for name, set := range map[string]func(*redis.ClusterOptions){
		"ReadOnly":      func(o *redis.ClusterOptions) { o.ReadOnly = true },
		"RouteRandomly": func(o *redis.ClusterOptions) { o.RouteRandomly = true },
		"masters":       func(*redis.ClusterOptions) {},
	} {
		m := managerOver(t, cluster.Client(set), Config{Timeout: 10 * time.Second})
		warnings, err := m.Check(t.Context())
		if got := strings.Contains(strings.Join(warnings, "\n"), "reads from replicas"); err != nil || got != (name != "masters") {
			t.Errorf("%s: %q, %v", name, warnings, err)
		}
	}
	old := redistest.Start(t).Client()
	old.AddHook(redistest.Instead(func(ctx context.Context, cmd redis.Cmder) *redis.Cmd {
		if cmd.Name() != "info" {
			return nil
		}
		return redis.NewCmd(ctx, "EVAL", "return 'redis_version:6.2.14\\r\\n'", 0)
	}))
	if _, err := managerOver(t, old, Config{}).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "6.2.14") {
		t.Errorf("of an old Redis: %v", err)
	}
}

// Legacy sessions are copied and logged out as a user who may run what docs/acl.md says and no more; without one
// of the commands, or on other keys, Check says so.
func TestLegacyUnderTheLeastACL(t *testing.T) {
	server := redistest.Start(t)
	manager := func(keys string, commands []string) *Manager {
		client := asUser(t, server, "gatehouse:{*", append(commands, aclRow(t, "sessions")...))
		if err := server.Client().Do(t.Context(), "ACL", "SETUSER", "service", "~"+keys).Err(); err != nil {
			t.Fatal(err)
		}
		return managerOver(t, client, Config{Legacy: Legacy{Store: goStore{client, legacyPrefix}}, Timeout: 10 * time.Second})
	}
	row := aclRow(t, "`Legacy`")
	m := manager(legacyPrefix+"*", slices.Clone(row))
	store := goStore{server.Client(), legacyPrefix}
	b := newMover(t, m, legacySession(t, store, map[string]any{"k": "v"}, time.Now().Add(time.Hour)))
	token := b.token
	b.request(func(ctx context.Context) {
		if got := m.GetString(ctx, "k"); got != "v" {
			t.Errorf("the copy has %q", got)
		}
	})
	b.token = token // as long as old servers are there
	b.request(func(ctx context.Context) {
		if err := m.Logout(ctx); err != nil || inStore(t, store, token) {
			t.Errorf("logged out: %v", err)
		}
	})
	kept := legacySession(t, store, nil, time.Now().Add(time.Hour))
	if _, err := m.Check(t.Context()); err != nil || !inStore(t, store, kept) {
		t.Errorf("Check: %v", err)
	}
	for i, missing := range row {
		m := manager(legacyPrefix+"*", slices.Delete(slices.Clone(row), i, i+1))
		if _, err := m.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "'"+missing+"'") {
			t.Errorf("without %s: %v", missing, err)
		}
	}
	if _, err := manager("other:*", slices.Clone(row)).Check(t.Context()); err == nil {
		t.Error("other keys: no error")
	}
}

// Commands that were renamed away are named, as those that are not permitted are.
func TestCheckFindsRenamedCommands(t *testing.T) {
	server := redistest.Start(t, "--rename-command", "HSET", "", "--rename-command", "PEXPIREAT", "other")
	m := managerOver(t, server.Client(), Config{})
	_, err := m.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), "hset (which it does not know)") || !strings.Contains(err.Error(), "pexpireat (which it does not know)") || strings.Contains(err.Error(), "hget (") {
		t.Error(err)
	}
}
