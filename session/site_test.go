package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	redigo "github.com/gomodule/redigo/redis"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// site is a web site with sessions. The races run against several, so that it
// shows whether they would catch a store that is wrong.
type site interface {
	load(cookie string) (context.Context, error)
	commit(ctx context.Context) (cookie string, err error) // "": it stays as it was
	put(ctx context.Context, key string, value any)
	remove(ctx context.Context, key string)
	values(ctx context.Context) map[string]any
	login(ctx context.Context, user string) error
	rotate(ctx context.Context) error
	logout(ctx context.Context) error
	user(ctx context.Context) string
}

// Sites, by the name that a child process is told.
const (
	siteKit           = "gatehouse"
	siteSealed        = "gatehouse, sealed"
	siteUnconditional = "gatehouse with unconditional commits"
	siteStock         = "scs with redisstore"
)

func newSite(name, addr string, later time.Duration) (site, error) {
	client := redis.NewClient(&redis.Options{Addr: addr})
	// Patient, since the load is meant to be more than the machine can take. Later
	// than the other processes, so that a mere read is a touch.
	cfg := Config{Timeout: time.Minute, Grace: time.Minute, now: func() time.Time { return time.Now().Add(later) }}
	switch name {
	case siteSealed:
		cfg.Secrets = [][]byte{secret}
	case siteUnconditional:
		client.AddHook(unconditional{})
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
func (s kitSite) commit(ctx context.Context) (string, error) {
	o, err := s.m.Commit(ctx)
	return o.Value, err
}
func (s kitSite) put(ctx context.Context, key string, value any) { s.m.Put(ctx, key, value) }
func (s kitSite) remove(ctx context.Context, key string)         { s.m.Remove(ctx, key) }
func (s kitSite) login(ctx context.Context, user string) error   { return s.m.Login(ctx, user) }
func (s kitSite) rotate(ctx context.Context) error               { return s.m.Rotate(ctx) }
func (s kitSite) logout(ctx context.Context) error               { return s.m.Logout(ctx) }
func (s kitSite) user(ctx context.Context) string                { return s.m.UserID(ctx) }
func (s kitSite) values(ctx context.Context) map[string]any      { return valuesOf(s.m, ctx) }

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
func (s stockSite) commit(ctx context.Context) (string, error) {
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

// unconditional breaks a store: a commit and a touch are plain SETs, whatever
// stands in Redis.
type unconditional struct{}

func (unconditional) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (unconditional) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		set := asSet(ctx, cmd)
		if set == nil {
			return next(ctx, cmd)
		}
		return written(cmd, next(ctx, set))
	}
}

func (unconditional) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		sent := make([]redis.Cmder, len(cmds))
		for i, cmd := range cmds {
			if sent[i] = cmd; asSet(ctx, cmd) != nil {
				sent[i] = asSet(ctx, cmd)
			}
		}
		err := next(ctx, sent)
		for i, cmd := range cmds {
			if sent[i] != cmd {
				_ = written(cmd, sent[i].Err())
			}
		}
		return err
	}
}

func asSet(ctx context.Context, cmd redis.Cmder) redis.Cmder {
	args := cmd.Args()
	if len(args) != 7 || args[1] != scripts.SessionCommit.SHA1 {
		return nil
	}
	return redis.NewStatusCmd(ctx, "set", args[3], args[5], "px", args[6])
}

func written(cmd redis.Cmder, err error) error {
	if err != nil {
		cmd.SetErr(err)
		return err
	}
	cmd.(interface{ SetVal(any) }).SetVal(int64(1))
	return nil
}

// commands counts what a client sends, and fails what it is told to.
type commands struct {
	mu   chan struct{}
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

func countCommands(client redis.UniversalClient) *commands {
	c := &commands{mu: make(chan struct{}, 1)}
	client.AddHook(c)
	return c
}

// reset forgets what was seen, and sets what fails from now on.
func (c *commands) reset(fail func(n int, command string) fate) {
	c.mu <- struct{}{}
	defer func() { <-c.mu }()
	c.seen, c.fail = nil, fail
}

func (c *commands) all() []string {
	c.mu <- struct{}{}
	defer func() { <-c.mu }()
	return append([]string(nil), c.seen...)
}

func (c *commands) note(cmd redis.Cmder) fate {
	c.mu <- struct{}{}
	defer func() { <-c.mu }()
	name := nameOf(cmd)
	switch name {
	case "hello", "client", "cluster", "command", "ping":
		return fateSent // what go-redis sends for itself
	}
	c.seen = append(c.seen, name)
	if c.fail == nil {
		return fateSent
	}
	return c.fail(len(c.seen), name)
}

// nameOf is a command's, or that of the script it runs.
func nameOf(cmd redis.Cmder) string {
	args := cmd.Args()
	if len(args) > 1 {
		switch args[1] {
		case scripts.SessionCommit.SHA1, scripts.SessionCommit.Source:
			return "commit"
		case scripts.SessionTouch.SHA1, scripts.SessionTouch.Source:
			return "touch"
		case scripts.SessionEnd.SHA1, scripts.SessionEnd.Source:
			return "end"
		}
	}
	return strings.ToLower(cmd.Name())
}

func (c *commands) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
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
