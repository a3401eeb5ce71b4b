package session

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// The response that made a cookie outlive the browser may be lost: Remember sends it again.
func TestRememberSendsTheCookieAgain(t *testing.T) {
	each(t, Config{}, func(t *testing.T, rb redistest.Backend, m *Manager) {
		b := begin(t, m, "ann")
		for range 2 { // both are lost
			ctx := load(t, m, b.cookie)
			m.Remember(ctx, true)
			if o := finish(t, m, ctx); o.Action != CookieSet || o.MaxAge == 0 {
				t.Errorf("%+v", o)
			}
		}
	})
}

// talkative is a store whose errors name the session.
type talkative struct{ scs.Store }

func (talkative) Find(token string) ([]byte, bool, error) {
	return nil, false, errors.New("cannot find " + token)
}

func TestErrorsOfALegacyStoreShowNoToken(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := managerOver(t, rb.Client, Config{Legacy: Legacy{Store: talkative{}}})
		token := strings.Repeat("t", legacyTokenLen)
		if _, err := m.LoadLegacy(t.Context(), token); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("%v", err)
		}
	})
}

// Check asks for what is missing also where its own script is known already, and of a cluster's
// client for more.
func TestCheckNamesEval(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	if _, err := managerOver(t, server.Client(), Config{}).Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := asUser(t, server, "gatehouse:{*", aclRow(t, "sessions"))
	if err := server.Client().Do(t.Context(), "ACL", "SETUSER", "service", "-eval").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := managerOver(t, client, Config{}).Check(t.Context()); err == nil || !strings.Contains(err.Error(), "may not run eval ") {
		t.Errorf("without eval: %v", err)
	}
	cluster := redistest.StartCluster(t)
	for _, node := range cluster.Nodes() {
		if err := node.Client().Do(t.Context(), "ACL", "SETUSER", "service", "on", ">pw", "~*", "&*", "+@all", "-asking", "-command").Err(); err != nil {
			t.Fatal(err)
		}
	}
	m := managerOver(t, cluster.Client(func(o *redis.ClusterOptions) { o.Username, o.Password = "service", "pw" }), Config{Timeout: 10 * time.Second})
	if _, err := m.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "asking, command") {
		t.Errorf("a cluster's client: %v", err)
	}
}

// Another KeySecret is noticed: users would not be found.
func TestCheckNoticesAnotherKeySecret(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	cfg := Config{Secrets: [][]byte{secret}}
	begin(t, managerOver(t, server.Client(), cfg), "ann")
	for key, want := range map[string]bool{string(keySecret): false, strings.Repeat("other", 8): true} {
		cfg.KeySecret = []byte(key)
		warnings, err := managerOver(t, server.Client(), cfg).Check(t.Context())
		if got := strings.Contains(strings.Join(warnings, " "), "KeySecret is another"); err != nil || got != want {
			t.Errorf("%q: %q, %v", key, warnings, err)
		}
	}
}

// Under the least ACL a cluster's client asks for nothing besides.
func TestNoFurtherCommandsInACluster(t *testing.T) {
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
	b := begin(t, m, "ann")
	for range 20 {
		b.request(func(ctx context.Context) {})
	}
	for _, node := range cluster.Nodes() {
		stats, err := node.Client().InfoMap(t.Context(), "commandstats").Result()
		if err != nil {
			t.Fatal(err)
		}
		if s := stats["Commandstats"]["cmdstat_command"]; strings.Contains(s, "rejected_calls") && !strings.Contains(s, "rejected_calls=0") || len(s) > 0 && !strings.HasPrefix(s, "calls=1,") {
			t.Errorf("COMMAND: %s", s)
		}
	}
}
