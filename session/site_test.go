package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// site is a web site with sessions. The races run against several, to show that they
// catch a store that is wrong.
type site interface {
	load(cookie string) (context.Context, error)
	finish(ctx context.Context) (cookie string, err error) // "": it stays as it was
	put(ctx context.Context, key string, value any)
	remove(ctx context.Context, key string)
	values(ctx context.Context) map[string]any
	login(ctx context.Context, user string) error
	rotate(ctx context.Context) error
	logout(ctx context.Context) error
	user(ctx context.Context) string
	clockMoved()
}

// Sites, by the name that a child process is told.
const (
	siteKit           = "gatehouse"
	siteSealed        = "gatehouse, sealed"
	siteUnconditional = "gatehouse with unconditional saves"
	siteStock         = "scs with redisstore"
)

func newSite(name, addr string) (site, error) {
	client := redis.NewClient(&redis.Options{Addr: addr})
	// Patient, since the load is meant to be more than the machine can take.
	cfg := Config{Timeout: time.Minute, Rotation: Rotation{Grace: 10 * time.Minute}, Logger: slog.New(slog.DiscardHandler)}
	switch name {
	case siteSealed:
		cfg.Secrets, cfg.KeySecret = [][]byte{secret}, keySecret
	case siteUnconditional:
		client.AddHook(unconditional)
	case siteStock:
		return newStockSite(redisstore.New(&redigo.Pool{MaxIdle: 64, Dial: func() (redigo.Conn, error) {
			return redigo.Dial("tcp", addr)
		}})), nil
	case siteKit:
	default:
		return nil, fmt.Errorf("no site %q", name)
	}
	m, err := New(client, cfg)
	return kitSite{m}, err
}

type kitSite struct{ m *Manager }

func (s kitSite) load(cookie string) (context.Context, error) {
	return s.m.Load(context.Background(), cookie)
}
func (s kitSite) finish(ctx context.Context) (string, error) {
	o, err := s.m.Finish(ctx)
	return o.Value, err
}
func (s kitSite) put(ctx context.Context, key string, value any) { s.m.Put(ctx, key, value) }
func (s kitSite) remove(ctx context.Context, key string)         { s.m.Remove(ctx, key) }
func (s kitSite) login(ctx context.Context, user string) error   { return s.m.Login(ctx, user) }
func (s kitSite) rotate(ctx context.Context) error               { return s.m.Rotate(ctx) }
func (s kitSite) logout(ctx context.Context) error               { return s.m.Logout(ctx) }
func (s kitSite) user(ctx context.Context) string                { return s.m.UserID(ctx) }
func (s kitSite) values(ctx context.Context) map[string]any      { return valuesOf(s.m, ctx) }
func (s kitSite) clockMoved()                                    { s.m.records.clocks.forget() }

func valuesOf(v Values, ctx context.Context) map[string]any {
	all := make(map[string]any)
	for _, k := range v.Keys(ctx) {
		all[k] = v.Get(ctx, k)
	}
	return all
}

// stockSite does what scs's own middleware does.
type stockSite struct{ m *scs.SessionManager }

func newStockSite(store scs.Store) site {
	m := scs.New()
	m.Store, m.IdleTimeout = store, time.Hour
	return stockSite{m}
}

const stockUser = "user"

func (s stockSite) load(cookie string) (context.Context, error) {
	return s.m.Load(context.Background(), cookie)
}
func (s stockSite) finish(ctx context.Context) (string, error) {
	if s.m.Status(ctx) != scs.Modified {
		return "", nil
	}
	token, _, err := s.m.Commit(ctx)
	return token, err
}
func (s stockSite) put(ctx context.Context, key string, value any) { s.m.Put(ctx, key, value) }
func (s stockSite) remove(ctx context.Context, key string)         { s.m.Remove(ctx, key) }
func (s stockSite) login(ctx context.Context, user string) error {
	s.m.Put(ctx, stockUser, user)
	return s.m.RenewToken(ctx)
}
func (s stockSite) rotate(ctx context.Context) error { return s.m.RenewToken(ctx) }
func (s stockSite) logout(ctx context.Context) error { return s.m.Destroy(ctx) }
func (s stockSite) user(ctx context.Context) string  { return s.m.GetString(ctx, stockUser) }
func (s stockSite) values(ctx context.Context) map[string]any {
	all := valuesOf(s.m, ctx)
	delete(all, stockUser)
	return all
}
func (s stockSite) clockMoved() {}

// unconditional breaks a store: a save writes the record whatever stands in Redis.
var unconditional = redistest.Instead(overwriting)

// overwriting is the command that a save becomes; nil for any other.
func overwriting(ctx context.Context, cmd redis.Cmder) *redis.Cmd {
	if nameOf(cmd) != "save" {
		return nil
	}
	// KEYS[1]; field, known revision, head, boxes, limit and life, values
	a := cmd.Args()[3:]
	return redis.NewCmd(ctx, "eval", createScript.Source(), 1, a[0],
		a[1], a[3], a[4], a[5].(string)[timeLen:], 0, a[6], "1")
}

// onlyCommands is the part of a hook that leaves connections alone.
type onlyCommands struct{}

func (onlyCommands) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// commands counts what a client sends, and fails what it is told to.
type commands struct {
	onlyCommands
	mu   sync.Mutex
	seen []string
	fail func(n int, command string) fate // n counts from 1; nil: nothing fails
}

type fate uint8

const (
	fateSent      fate = iota
	fateRefused        // fails and was not executed
	fateReplyLost      // fails and was executed
)

var errInjected = errors.New("injected failure")

// countCommands is to be called before New: it sees what Managers made later send.
func countCommands(client redis.UniversalClient) *commands {
	c := new(commands)
	client.AddHook(c)
	return c
}

// reset forgets what was seen, and sets what fails from now on.
func (c *commands) reset(fail func(n int, command string) fate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.fail = nil, fail
}

func (c *commands) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.seen...)
}

func (c *commands) note(cmd redis.Cmder) fate {
	name := nameOf(cmd)
	switch name {
	case "hello", "client", "cluster", "command", "ping":
		return fateSent // what go-redis sends for itself
	}
	c.mu.Lock()
	c.seen = append(c.seen, name)
	n, fail := len(c.seen), c.fail
	c.mu.Unlock()
	if fail == nil {
		return fateSent
	}
	return fail(n, name)
}

// sessionScripts are the scripts, by the names of what they do.
var sessionScripts = map[string]*scripts.Script{
	"create": createScript, "save": saveScript, "rotate": rotateScript,
	"retire": retireScript, "end": endScript, "sweep": sweepScript,
	"time": timeScript, "heads": headsScript,
	"login": loginScript, "beside": besideScript, "end_all": endAllScript, "list": listScript, "watch": watchScript,
}

// nameOf is a command's, or that of the script it runs: "save" and so on. A save of no
// more than a use is a "touch".
func nameOf(cmd redis.Cmder) string {
	args := cmd.Args()
	if len(args) > 1 {
		for name, s := range sessionScripts {
			if args[1] != s.SHA1() && args[1] != s.Source() {
				continue
			}
			if head, isString := args[min(6, len(args)-1)].(string); name == "save" && isString && head == "" {
				return "touch"
			}
			return name
		}
	}
	return strings.ToLower(cmd.Name())
}

// loadScripts has all nodes know the scripts: a command whose reply is lost has run then.
func loadScripts(t testing.TB, b redistest.Backend) {
	t.Helper()
	for _, addr := range b.Addrs {
		node := redis.NewClient(&redis.Options{Addr: addr})
		defer node.Close()
		for name, s := range sessionScripts {
			if err := node.ScriptLoad(t.Context(), s.Source()).Err(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func (c *commands) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		f := c.note(cmd)
		if f == fateRefused {
			cmd.SetErr(errInjected)
			return errInjected
		}
		err := next(ctx, cmd)
		if f == fateReplyLost {
			cmd.SetErr(errInjected)
			return errInjected
		}
		return err
	}
}

func (c *commands) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			if c.note(cmd) != fateSent {
				panic("a failure was injected into a pipeline: requests of this test must come one by one")
			}
		}
		return next(ctx, cmds)
	}
}
