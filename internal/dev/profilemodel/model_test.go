package profilemodel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session/profile"
)

func TestMain(m *testing.M) { redistest.MainStrict(m, "../../../scripts/README.md") }

const (
	servers = 4
	ids     = 30
	timeout = 40 * time.Millisecond // of Redis
	load    = 40 * time.Millisecond // of the loader and of writes
	lease   = load + 2*timeout
)

// value is what is cached. A version that is one higher says that a write came later.
type value struct{ N int64 }

// register is the database's row and who writes to it.
type register struct {
	mu sync.Mutex
	n  int64
}

func (r *register) read() value {
	r.mu.Lock()
	defer r.mu.Unlock()
	return value{r.n}
}

func (r *register) write() value {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n++
	return value{r.n}
}

// op is an operation on a register: a read of n, or the write of n. Where something died it is not
// known when the write is seen.
type op struct {
	write bool
	id    int
	n     int64
}

// One register per ID; the database orders the writes, so that n says which came last: a write of
// what is older than the state changes nothing.
var model = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		parts = make([][]porcupine.Operation, ids)
		for _, o := range history {
			id := o.Input.(op).id
			parts[id] = append(parts[id], o)
		}
		return parts
	},
	Init: func() any { return int64(0) },
	Step: func(state, input, _ any) (bool, any) {
		n, o := state.(int64), input.(op)
		if o.write {
			return true, max(n, o.n)
		}
		return o.n == n, n
	},
	DescribeOperation: func(input, _ any) string { return fmt.Sprintf("%+v", input) },
}

// world is a fleet and its database.
type world struct {
	busy  int // IDs that are worked on
	rows  [ids]register
	began time.Time

	mu      sync.Mutex
	history []porcupine.Operation
	failed  int
}

func (w *world) now() int64 { return int64(time.Since(w.began)) }

func (w *world) note(client int, o op, call int64, late time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.history = append(w.history, porcupine.Operation{ClientId: client, Input: o, Call: call, Return: w.now() + int64(late)})
}

// pause is a delay at a step: mostly none, at times longer than a lease.
func pause(r *rand.Rand) {
	switch n := r.IntN(100); {
	case n < 80:
	case n < 99:
		time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
	default:
		time.Sleep(time.Duration(r.IntN(int(load))))
	}
}

var errDied = errors.New("died")

// serve does random work until the time is up. Some Updates die after they have written: nothing
// that they send arrives.
func (w *world) serve(t *testing.T, client int, seed uint64, c *profile.Cache[value], stop time.Time) {
	r := rand.New(rand.NewPCG(seed, uint64(client)))
	for time.Now().Before(stop) {
		id := r.IntN(w.busy)
		key := fmt.Sprint(id)
		row := &w.rows[id]
		call := w.now()
		switch n := r.IntN(100); {
		case n < 85:
			v, err := c.Get(context.Background(), key)
			if err != nil {
				w.mu.Lock()
				w.failed++
				w.mu.Unlock()
				break
			}
			w.note(client, op{id: id, n: v.N}, call, 0)
		case n < 93:
			dies := r.IntN(4*ids/w.busy) == 0
			var dead atomic.Bool
			ctx := context.WithValue(context.Background(), deadKey{}, &dead)
			var wrote value
			_, err := c.Update(ctx, key, func(ctx context.Context) (value, error) {
				pause(r)
				if err := ctx.Err(); err != nil {
					return value{}, err
				}
				wrote = row.write()
				pause(r)
				dead.Store(dies)
				return wrote, nil
			})
			switch {
			case wrote == value{}:
			case err == nil:
				w.note(client, op{true, id, wrote.N}, call, 0)
			default: // it is seen when the lease ends
				w.note(client, op{true, id, wrote.N}, call, lease+timeout)
			}
		case n < 99:
			wrote := row.write()
			pause(r)
			var err error
			if r.IntN(30) == 0 {
				err = c.ForgetAll(context.Background())
			} else {
				err = c.Forget(context.Background(), key)
			}
			if err != nil { // nothing is promised but the TTL
				for err != nil && time.Now().Before(stop.Add(10*time.Second)) {
					err = c.Forget(context.Background(), key)
				}
			}
			w.note(client, op{true, id, wrote.N}, call, 0)
		default:
			pause(r)
		}
	}
}

// deadKey is of a context's *atomic.Bool that says whether the one whose it is has died.
type deadKey struct{}

// death is a way to Redis on which all is lost for a while, as if the process were dead.
type death struct {
	mu    sync.Mutex
	until time.Time
	r     *rand.Rand
}

func (d *death) now(how time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Now().Add(how)
}

func (d *death) dead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.until)
}

// hook delays commands before and after they run, loses some, and exchanges scripts.
type hook struct {
	redis.Hook
	death
}

func (h *hook) DialHook(next redis.DialHook) redis.DialHook { return next }
func (h *hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if !h.lose() {
			return next(ctx, cmds)
		}
		for _, cmd := range cmds {
			cmd.SetErr(errDied)
		}
		return errDied
	}
}

func (h *hook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if dead, _ := ctx.Value(deadKey{}).(*atomic.Bool); h.dead() || dead != nil && dead.Load() {
			cmd.SetErr(errDied)
			return errDied
		}
		if late, ok := h.late(); ok { // it runs when nobody waits for it any more
			go func() {
				time.Sleep(late)
				_ = next(context.Background(), redis.NewCmd(context.Background(), cmd.Args()...))
			}()
			cmd.SetErr(errDied)
			return errDied
		}
		h.step()
		err := next(ctx, cmd)
		h.step()
		if h.dead() { // the reply is lost
			cmd.SetErr(errDied)
			return errDied
		}
		return err
	}
}

func (h *hook) late() (time.Duration, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Duration(h.r.IntN(int(2 * lease))), h.r.IntN(1000) == 0
}

func (h *hook) lose() bool {
	h.step()
	return h.dead()
}

func (h *hook) step() {
	h.mu.Lock()
	n, long := h.r.IntN(1000), time.Duration(h.r.IntN(int(timeout/2)))
	h.mu.Unlock()
	switch {
	case n < 3:
		time.Sleep(long)
	case n < 100:
		time.Sleep(long / 20)
	}
}

// play lets a fleet work for a while and returns what porcupine says of it.
func play(t *testing.T, server *redistest.Server, seed uint64, broken map[string]string, busy int, ttl, during time.Duration) (porcupine.CheckResult, *world) {
	t.Helper()
	w := &world{busy: busy, began: time.Now()}
	for i := range w.rows {
		w.rows[i].n = 1
		w.note(0, op{true, i, 1}, 0, 0)
	}
	stop := time.Now().Add(during)
	var wg sync.WaitGroup
	for i := range servers {
		h := &hook{death: death{r: rand.New(rand.NewPCG(seed, uint64(100+i)))}}
		client := server.Client(func(o *redis.Options) { o.MaxRetries = -1 })
		client.AddHook(h)
		client.AddHook(redistest.Instead(func(ctx context.Context, cmd redis.Cmder) *redis.Cmd {
			args := cmd.Args()
			name, _ := args[0].(string)
			if name != "evalsha" && name != "eval" {
				return nil
			}
			text, _ := args[1].(string)
			if name == "eval" {
				text = scripts.New(text).SHA1()
			}
			source, ok := broken[text]
			if !ok {
				return nil
			}
			return redis.NewCmd(ctx, append([]any{"eval", source}, args[2:]...)...)
		}))
		r := rand.New(rand.NewPCG(seed, uint64(200+i)))
		var mu sync.Mutex
		c, err := profile.New(client, "model", func(ctx context.Context, id string) (value, error) {
			mu.Lock()
			p := rand.New(rand.NewPCG(r.Uint64(), 0))
			mu.Unlock()
			pause(p)
			var i int
			_, _ = fmt.Sscan(id, &i)
			v := w.rows[i].read()
			pause(p)
			if p.IntN(200) == 0 {
				h.now(lease)
			}
			return v, nil
		}, profile.Config{
			TTL: ttl, Refresh: ttl / 2, NotFoundTTL: -1,
			Timeout: timeout, LoadTimeout: load, MaxLoads: -1, Logger: slog.New(slog.DiscardHandler), Prefix: fmt.Sprintf("m%d:", seed),
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 4 { // requests of one server
			wg.Go(func() { w.serve(t, i, rand.Uint64(), c, stop) })
		}
	}
	wg.Wait()
	result, _ := porcupine.CheckOperationsVerbose(model, w.history, 20*time.Second)
	return result, w
}

// Values that end often, so that there are many loads, and values that outlive the lease of who dies.
var ttls = []time.Duration{40 * time.Millisecond, 2 * time.Second}

func TestHistoriesAreThoseOfARegister(t *testing.T) {
	server := redistest.Start(t)
	for i := range 4 {
		seed := rand.Uint64()
		result, w := play(t, server, seed, nil, []int{ids, 3}[i/2], ttls[i%2], 1500*time.Millisecond)
		t.Logf("%d operations, %d Gets failed", len(w.history), w.failed)
		if result != porcupine.Ok {
			t.Errorf("%v, seed %d", result, seed)
		}
		if len(w.history) < 300 {
			t.Errorf("only %d operations", len(w.history))
		}
	}
}

// broken returns a script of this name with parts exchanged.
func broken(name string, oldnew ...string) (sha, source string) {
	s := scripts.Get("profile/" + name + ".lua")
	return s.SHA1(), redistest.Break(s, oldnew...).Source()
}

// The judge catches the usual ways to make a cache, and what this one's rules are there for.
func TestBrokenCachesAreCaught(t *testing.T) {
	server := redistest.Start(t)
	set := func(pairs ...string) map[string]string {
		m := make(map[string]string)
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	const refused = "if not lease or lease:sub(49) ~= ARGV[2] or lease:sub(1, 16) ~= version or lease:sub(33, 48) + 0 <= now then"
	keepAlways, keepAlwaysSource := broken("keep", refused, "if not version then")
	keepNever, keepNeverSource := broken("keep", "  return 0\n", "  return 1\n")
	noBegin, noBeginSource := broken("begin", "local call, key = redis.call, KEYS[1]", "if KEYS[1] then return 1 end local call, key = redis.call, KEYS[1]")
	askItself, askItselfSource := broken("get", "return {now, 'held', '', held}", "return {now, 'load', '', 0}")
	storeAlways, storeAlwaysSource := broken("end", "if #others > 0 then", "if false then", "mine and mine == version", "version")
	noVersion, noVersionSource := broken("get", "value:sub(1, 16) == version and", "")
	overlapBegin, overlapBeginSource := broken("begin", "  version = string.rep('-', 16)\n", "", "string.rep('-', 16) .. updates:sub(at + 16, at + 63)", "updates:sub(at, at + 63)")
	overlapEnd, overlapEndSource := broken("end", "string.rep('-', 16) .. updates:sub(at + 16, at + 63)", "updates:sub(at, at + 63)")
	for name, tc := range map[string]struct {
		scripts map[string]string
		busy    int
		ttl     time.Duration
	}{
		"set after load without a lease":         {set(keepAlways, keepAlwaysSource), 5, ttls[0]},
		"delete after write":                     {set(noBegin, noBeginSource, keepAlways, keepAlwaysSource), 5, ttls[0]},
		"updates that store in the other order":  {set(storeAlways, storeAlwaysSource), 3, ttls[1]},
		"death after the database's write":       {set(noBegin, noBeginSource), ids, ttls[1]},
		"a waiter that asks the database itself": {set(askItself, askItselfSource, keepNever, keepNeverSource), 3, ttls[0]},
		"ForgetAll that reaches nobody":          {set(noVersion, noVersionSource), ids, ttls[1]},
		"updates that overlap and store":         {set(overlapBegin, overlapBeginSource, overlapEnd, overlapEndSource), 2, ttls[1]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for n := 1; n <= 20; n++ {
				if result, _ := play(t, server, rand.Uint64(), tc.scripts, tc.busy, tc.ttl, 500*time.Millisecond*time.Duration(min(n, 3))); result == porcupine.Illegal {
					t.Logf("caught by history %d", n)
					return
				}
			}
			t.Error("not caught")
		})
	}
}
