package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session"
)

// hold is how long Redis works on single calls of scripts, by its own account, while nobody else
// is served.
type hold struct {
	mean    float64 // µs of all calls of one operation together
	longest float64 // µs of the longest call
	script  string  // which that was
}

// heldBench is the sessions of one owner, on which the operations are tried.
type heldBench struct {
	s       *server
	client  *redis.Client
	m       *session.Manager
	key     string // the owner's hash
	bytes   int
	cookies []string // of the owner's sessions, as they are now
	next    int
}

const (
	holdUser   = "ann"
	holdCalls  = 50 // of each operation, in a round
	holdRounds = 3
)

var scriptNames = map[string]string{
	scripts.Get("session/create.lua").SHA1():  "create",
	scripts.Get("session/login.lua").SHA1():   "login",
	scripts.Get("session/end_all.lua").SHA1(): "end_all",
	scripts.Get("session/save.lua").SHA1():    "save",
	scripts.Get("session/rotate.lua").SHA1():  "rotate",
	scripts.Get("session/retire.lua").SHA1():  "retire",
	scripts.Get("session/end.lua").SHA1():     "end",
	scripts.Get("session/sweep.lua").SHA1():   "sweep",
	scripts.Get("session/time.lua").SHA1():    "time",
}

// operation is something that is done with one session of the owner, and the scripts that it
// runs on the owner's hash, sweeps apart. What else it sends is preparation.
type operation struct {
	name    string
	scripts []*scripts.Script
	do      func(ctx context.Context, b *heldBench) error
}

// The order matters: what leaves tombstones comes late.
var operations = []operation{
	{"commit", []*scripts.Script{scripts.Get("session/save.lua")}, func(ctx context.Context, b *heldBench) error {
		return b.request(ctx, func(ctx context.Context) error { b.m.Put(ctx, "k", b.next); return nil })
	}},
	{"touch", []*scripts.Script{scripts.Get("session/save.lua")}, func(ctx context.Context, b *heldBench) error {
		fields, err := b.client.HKeys(ctx, b.key).Result()
		if err != nil {
			return err
		}
		for _, f := range fields {
			if len(f) == 16 { // a record
				return b.call(ctx, scripts.Get("session/save.lua"), f, "\x01", "", "", micros7(idle)+ordinaryLife, "")
			}
		}
		return fmt.Errorf("bench: no record among %d fields", len(fields))
	}},
	{"sweep", []*scripts.Script{scripts.Get("session/sweep.lua")}, func(ctx context.Context, b *heldBench) error {
		return b.call(ctx, scripts.Get("session/sweep.lua"), 1000, 100)
	}},
	{"rotate", []*scripts.Script{scripts.Get("session/rotate.lua")}, func(ctx context.Context, b *heldBench) error { return b.request(ctx, b.m.Rotate) }},
	{"login over a login", []*scripts.Script{scripts.Get("session/login.lua"), scripts.Get("session/retire.lua")}, func(ctx context.Context, b *heldBench) error {
		return b.request(ctx, func(ctx context.Context) error { return b.m.Login(ctx, holdUser) })
	}},
	{"login over a visitor", []*scripts.Script{scripts.Get("session/login.lua"), scripts.Get("session/save.lua")}, func(ctx context.Context, b *heldBench) error {
		cookie, err := newSession(ctx, b.m, "", b.bytes)
		if err != nil {
			return err
		}
		b.cookies = append(b.cookies, cookie)
		b.next = len(b.cookies) - 1
		return b.request(ctx, func(ctx context.Context) error { return b.m.Login(ctx, holdUser) })
	}},
	{"logout by a rotated ID", []*scripts.Script{scripts.Get("session/end.lua")}, func(ctx context.Context, b *heldBench) error {
		cookie, err := b.replaced(ctx)
		if err != nil {
			return err
		}
		rotated, err := b.m.Load(ctx, cookie)
		if err != nil {
			return err
		}
		if err := b.m.Rotate(rotated); err != nil {
			return err
		}
		if _, err := b.m.Finish(rotated); err != nil {
			return err
		}
		fields, err := b.client.HKeys(ctx, b.key).Result()
		if err != nil {
			return err
		}
		for _, f := range fields { // a tombstone that leads on
			if len(f) != 16 { // values in a field of their own
				continue
			}
			format, err := b.client.Eval(ctx, "return redis.call('HGET', KEYS[1], ARGV[1]):byte(1)", []string{b.key}, f).Int()
			if err == nil && format == 2 {
				return b.call(ctx, scripts.Get("session/end.lua"), f, "logout", 30_000_000, "", make([]byte, 9), 0)
			}
		}
		return fmt.Errorf("bench: nothing rotated among %d fields", len(fields))
	}},
	{"logout", []*scripts.Script{scripts.Get("session/end.lua")}, func(ctx context.Context, b *heldBench) error {
		cookie, err := b.replaced(ctx)
		if err != nil {
			return err
		}
		ctx, err = b.m.Load(ctx, cookie)
		if err != nil {
			return err
		}
		return b.m.Logout(ctx)
	}},
}

// request has a request with the cookie of one of the sessions, each in turn.
func (b *heldBench) request(ctx context.Context, do func(context.Context) error) error {
	i := b.next % len(b.cookies)
	b.next++
	ctx, err := b.m.Load(ctx, b.cookies[i])
	if err != nil {
		return err
	}
	if b.m.Info(ctx).Handle == "" {
		return errSession
	}
	if err := do(ctx); err != nil {
		return err
	}
	out, err := b.m.Finish(ctx)
	if out.Action == session.CookieSet {
		b.cookies[i] = out.Value
	}
	return err
}

// replaced begins another session of the owner, and returns the cookie of the one that goes.
func (b *heldBench) replaced(ctx context.Context) (string, error) {
	fresh, err := newSession(ctx, b.m, holdUser, b.bytes)
	if err != nil {
		return "", err
	}
	i := b.next % len(b.cookies)
	b.next++
	old := b.cookies[i]
	b.cookies[i] = fresh
	return old, nil
}

func (b *heldBench) call(ctx context.Context, s *scripts.Script, args ...any) error {
	return b.client.EvalSha(ctx, s.SHA1(), []string{b.key}, args...).Err()
}

// holds measures how long one call of a session's script keeps Redis from all others.
func holds(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench holds", flag.ExitOnError)
	quick := flags.Bool("quick", false, "owners of up to 100 sessions")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("bench: holds takes no arguments but flags: %q", flags.Args())
	}
	owners := []int{1, 100, 1000}
	if *quick {
		owners = owners[:2]
	}
	var h host
	defer h.close()
	s := startServer(&h)
	if err := writeEnvironment(ctx, s); err != nil {
		return err
	}
	fmt.Printf("Sealed sessions of one user. µs that Redis works, by SLOWLOG: on the scripts of one operation, in the mean; and on the longest single call, "+
		"in the best of %d rounds of %d, since whatever else the machine does lengthens it.\n\n", holdRounds, holdCalls)
	t := table{w: os.Stdout}
	head := []string{"operation", "bytes of values"}
	for _, n := range owners {
		head = append(head, fmt.Sprintf("of %s: mean", thousands(float64(n))), "longest", "which is")
	}
	t.head(head...)
	for _, size := range []int{250, 4 << 10, 64 << 10} {
		measured := make([][]hold, len(owners))
		for i, n := range owners {
			started := time.Now()
			fmt.Fprintf(os.Stderr, "%d sessions of %d bytes … ", n, size)
			var err error
			if measured[i], err = s.holdsOf(ctx, n, size); err != nil {
				return err
			}
			fmt.Fprintln(os.Stderr, time.Since(started).Round(time.Second/10))
		}
		for j, op := range operations {
			line := []string{op.name, thousands(float64(size))}
			for i := range owners {
				o := measured[i][j]
				line = append(line, short(o.mean), short(o.longest), o.script)
			}
			t.line(line...)
		}
	}
	return nil
}

// holdsOf tries every operation on an owner of so many sessions.
func (s *server) holdsOf(ctx context.Context, sessions, bytes int) ([]hold, error) {
	if err := s.flush(ctx); err != nil {
		return nil, err
	}
	// SLOWLOG is to have every call.
	for name, value := range map[string]string{"slowlog-log-slower-than": "0", "slowlog-max-len": "100000"} {
		if err := s.admin.ConfigSet(ctx, name, value).Err(); err != nil {
			return nil, err
		}
	}
	client := s.client(0, sizingInFlight)
	defer client.Close()
	m, err := holdManager(client, true)
	if err != nil {
		return nil, err
	}
	b := &heldBench{s: s, client: client, m: m, bytes: bytes}
	if b.cookies, err = newSessions(ctx, m, sessions, bytes, func(int) string { return holdUser }); err != nil {
		return nil, err
	}
	keys, err := client.Keys(ctx, "*").Result()
	if err != nil {
		return nil, err
	}
	if len(keys) != 1 {
		return nil, fmt.Errorf("bench: %d keys, want the owner's", len(keys))
	}
	b.key = keys[0]
	for _, script := range []*scripts.Script{scripts.Get("session/save.lua"), scripts.Get("session/rotate.lua"), scripts.Get("session/retire.lua"), scripts.Get("session/end.lua"), scripts.Get("session/sweep.lua"), scripts.Get("session/login.lua"), scripts.Get("session/end_all.lua")} {
		if err := client.ScriptLoad(ctx, script.Source()).Err(); err != nil {
			return nil, err
		}
	}
	var all []hold
	for _, op := range operations {
		var best hold
		for round := range holdRounds {
			h, err := b.hold(ctx, op)
			if err != nil {
				return nil, fmt.Errorf("bench: %s, %d sessions of %d bytes: %w", op.name, sessions, bytes, err)
			}
			if round == 0 || h.longest < best.longest {
				best.longest, best.script = h.longest, h.script
			}
			if round == 0 || h.mean < best.mean {
				best.mean = h.mean
			}
		}
		all = append(all, best)
	}
	return all, nil
}

func (b *heldBench) hold(ctx context.Context, op operation) (hold, error) {
	if err := b.s.admin.Do(ctx, "SLOWLOG", "RESET").Err(); err != nil {
		return hold{}, err
	}
	for range holdCalls {
		if err := op.do(ctx, b); err != nil {
			return hold{}, err
		}
	}
	log, err := b.s.admin.SlowLogGet(ctx, -1).Result()
	if err != nil {
		return hold{}, err
	}
	var h hold
	for _, l := range log {
		if len(l.Args) < 4 || !strings.EqualFold(l.Args[0], "evalsha") || l.Args[3] != b.key {
			continue
		}
		ofIt := l.Args[1] == scripts.Get("session/sweep.lua").SHA1()
		for _, s := range op.scripts {
			ofIt = ofIt || l.Args[1] == s.SHA1()
		}
		if !ofIt {
			continue
		}
		us := micros(l.Duration)
		h.mean += us / holdCalls
		if us > h.longest {
			h.longest, h.script = us, scriptNames[l.Args[1]]
		}
	}
	if h.script == "" {
		return hold{}, fmt.Errorf("SLOWLOG has none of its scripts")
	}
	return h, nil
}
