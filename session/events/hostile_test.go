package events_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

func streamOf(t *testing.T, c redis.UniversalClient, m *session.Manager) string {
	t.Helper()
	for _, s := range m.EventLog().Streams() {
		if c.XLen(t.Context(), s).Val() > 0 {
			return s
		}
	}
	t.Fatal("no stream")
	return ""
}

// fault is a hook that gets each command and what sends it.
type fault func(ctx context.Context, cmd redis.Cmder, next func() error) error

func (h fault) DialHook(n redis.DialHook) redis.DialHook { return n }
func (h fault) ProcessHook(n redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return h(ctx, cmd, func() error { return n(ctx, cmd) })
	}
}
func (h fault) ProcessPipelineHook(n redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, c := range cmds {
			if err := h(ctx, c, func() error { return n(ctx, []redis.Cmder{c}) }); err != nil {
				c.SetErr(err)
			}
		}
		return nil
	}
}

var (
	moveSHA = scripts.Get("session/events_move.lua").SHA1()
	takeSHA = scripts.Get("session/events_take.lua").SHA1()
)

func isScript(cmd redis.Cmder, sha string) bool {
	a := cmd.Args()
	return len(a) > 2 && a[0] == "evalsha" && a[1] == sha
}

// taken returns the entries that a reply of events_take.lua brings, and how many it tells to be
// missed.
func taken(cmd redis.Cmder) (entries []any, missed int64) {
	if !isScript(cmd, takeSHA) || cmd.Err() != nil {
		return nil, 0
	}
	reply, _ := cmd.(interface{ Val() any }).Val().([]any)
	entries, _ = reply[1].([]any)
	missed, _ = reply[4].(int64)
	return entries, missed
}

// A move that the network has kept, and that was repeated meanwhile, gives away no later lease.
func TestALateMoveGivesNoLeaseAway(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	plain := server.Client()
	hooked := server.Client()
	var once atomic.Bool
	late := make(chan []any, 1)
	hooked.AddHook(fault(func(ctx context.Context, cmd redis.Cmder, next func() error) error {
		if isScript(cmd, moveSHA) && cmd.Args()[5] != "" && once.CompareAndSwap(false, true) {
			late <- cmd.Args()
			cmd.SetErr(os.ErrDeadlineExceeded)
			return os.ErrDeadlineExceeded
		}
		return next()
	}))
	m := manager(t, hooked, session.Events{Retention: time.Hour})
	m2 := manager(t, plain, session.Events{Retention: time.Hour})
	login(t, m2, "ann", 5)
	for _, n := range []string{"session/events_move.lua", "session/events_take.lua"} {
		plain.ScriptLoad(t.Context(), scripts.Get(n).Source())
	}
	var mu sync.Mutex
	open := map[string]bool{} // by the event's ID
	count := map[string]int{}
	both := false
	taken := 0
	in := make(chan struct{}, 100)
	handler := func(name string, hold time.Duration) func(context.Context, []session.Event) error {
		return func(ctx context.Context, l []session.Event) error {
			mu.Lock()
			for _, e := range l {
				both = both || open[e.ID]
				open[e.ID] = true
				count[e.ID]++
				taken++
			}
			n := taken
			mu.Unlock()
			if name == "A" && n > 3 {
				select {
				case in <- struct{}{}:
				default:
				}
				time.Sleep(hold)
			}
			mu.Lock()
			for _, e := range l {
				delete(open, e.ID)
			}
			mu.Unlock()
			return nil
		}
	}
	var rec recorder
	ra, rb := quick(m, &rec), quick(m2, &rec)
	ra.Batch, rb.Batch = 3, 3
	ra.Timeout, rb.Timeout = 5*time.Second, 5*time.Second
	stopA := start(t, ra, handler("A", 2*time.Second))
	<-in // A handles its second batch
	args := <-late
	if err := plain.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
	stopB := start(t, rb, handler("B", 0))
	time.Sleep(4 * time.Second)
	stopA()
	stopB()
	mu.Lock()
	defer mu.Unlock()
	if both {
		t.Error("two readers have an event at a time")
	}
	for id, n := range count {
		if n > 1 {
			t.Errorf("%s comes %d times", id, n)
		}
	}
}

// A stream that has expired and has been filled again is another one: nothing comes twice.
func TestAnExpiredStreamIsNotGoneOnFrom(t *testing.T) {
	server := redistest.Start(t)
	c := server.Client()
	m := manager(t, c, session.Events{Retention: time.Minute})
	login(t, m, "ann", 4)
	var rec recorder
	r := quick(m, &rec)
	stop := start(t, r, rec.handle)
	await(t, "5", func() bool { h, _ := rec.len(); return h == 5 })
	stop()
	login(t, m, "ann", 2) // three more, unread
	server.Advance(2 * time.Minute)
	if n := c.XLen(t.Context(), m.EventLog().Streams()[0]).Val(); n != 0 {
		t.Fatal(n)
	}
	login(t, m, "ann", 11) // 12
	stop = start(t, r, rec.handle)
	await(t, "12 more", func() bool { h, _ := rec.len(); return h >= 17 })
	time.Sleep(500 * time.Millisecond)
	stop()
	seen := map[string]int{}
	doubles := 0
	for _, e := range rec.list {
		if seen[e.ID]++; seen[e.ID] == 2 {
			doubles++
		}
	}
	if doubles > 0 {
		t.Errorf("%d of 12 events came twice, no failure anywhere", doubles)
	}
}

// What is lost before anything was handled is counted.
func TestEventsLostBeforeTheFirstWasHandled(t *testing.T) {
	server := redistest.Start(t)
	c := server.Client()
	m := manager(t, c, session.Events{Retention: time.Minute})
	login(t, m, "ann", 4)
	var rec recorder
	r := quick(m, &rec)
	var away, called atomic.Bool
	away.Store(true)
	h := func(ctx context.Context, l []session.Event) error {
		called.Store(true)
		if away.Load() {
			return events.ErrLater
		}
		return rec.handle(ctx, l)
	}
	stop := start(t, r, h)
	await(t, "call", called.Load)
	server.Advance(2 * time.Minute) // the database is away for longer than Retention
	time.Sleep(200 * time.Millisecond)
	away.Store(false)
	login(t, m, "ann", 1)
	await(t, "2", func() bool { h, _ := rec.len(); return h >= 2 })
	stop()
	if s := r.Stats(); s.Missed == 0 {
		t.Errorf("5 events are gone unread: %+v", s)
	}
}

// The tries of an event that has expired are not those of the next one.
func TestTriesGoWithTheirEvent(t *testing.T) {
	server := redistest.Start(t)
	c := server.Client()
	m := manager(t, c, session.Events{Retention: time.Minute})
	login(t, m, "ann", 0)
	var rec recorder
	r := quick(m, &rec)
	var away, called atomic.Bool
	away.Store(true)
	r.DeadLetter = func(ctx context.Context, d events.DeadLetter) error {
		if away.Load() {
			return errors.New("away")
		}
		return rec.dead(ctx, d)
	}
	h := func(ctx context.Context, l []session.Event) error {
		if away.Load() {
			return errors.New("poison")
		}
		called.Store(true)
		return rec.handle(ctx, l)
	}
	stop := start(t, r, h)
	time.Sleep(500 * time.Millisecond)
	server.Advance(2 * time.Minute)
	time.Sleep(200 * time.Millisecond)
	away.Store(false)
	login(t, m, "ann", 0)
	await(t, "1", func() bool { h, d := rec.len(); return h+d >= 1 })
	stop()
	if !called.Load() {
		t.Errorf("an event that no handler has seen is a dead letter: %+v; %+v", rec.letters[0].Err, r.Stats())
	}
}

// A reply that tells of missed events, and is lost, is given again.
func TestMissedIsToldAgain(t *testing.T) {
	server := redistest.Start(t)
	hooked := server.Client()
	var once, on atomic.Bool
	hooked.AddHook(fault(func(ctx context.Context, cmd redis.Cmder, next func() error) error {
		err := next()
		if _, missed := taken(cmd); !on.Load() || missed == 0 || !once.CompareAndSwap(false, true) {
			return err
		}
		cmd.SetErr(os.ErrDeadlineExceeded)
		return os.ErrDeadlineExceeded
	}))
	m := manager(t, hooked, session.Events{Retention: time.Hour})
	login(t, m, "ann", 0)
	var rec recorder
	r := quick(m, &rec)
	stop := start(t, r, rec.handle)
	await(t, "1", func() bool { h, _ := rec.len(); return h == 1 })
	stop()
	login(t, m, "ann", 9)
	hooked.XTrimMaxLen(t.Context(), streamOf(t, hooked, m), 1)
	on.Store(true)
	stop = start(t, r, rec.handle)
	await(t, "2", func() bool { h, _ := rec.len(); return h == 2 })
	stop()
	if s := r.Stats(); s.Missed != 9 {
		t.Errorf("9 are missed: %+v", s)
	}
}

// The failure of a batch is no try of its first event.
func TestAFailedBatchIsNobodysTry(t *testing.T) {
	server := redistest.Start(t)
	m := manager(t, server.Client(), session.Events{Retention: time.Hour})
	login(t, m, "ann", 4)
	var rec recorder
	r := quick(m, &rec)
	r.Tries = 1
	n := 0
	stop := start(t, r, func(ctx context.Context, l []session.Event) error {
		n++
		if len(l) == 5 || n == 4 { // the batch, and the third of it
			return errors.New("bad event")
		}
		return rec.handle(ctx, l)
	})
	await(t, "all", func() bool { a, b := rec.len(); return a+b == 5 })
	stop()
	for _, l := range rec.letters {
		if l.Event.Kind == session.LoggedIn {
			t.Errorf("it has never failed by itself: %v", l.Err)
		}
	}
}

// A batch that takes longer than Timeout is not tried as a whole for ever, though its handler asks
// for another time.
func TestABatchThatIsTooLargeIsSplit(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 9)
		var rec recorder
		defer start(t, quick(m, &rec), func(ctx context.Context, list []session.Event) error {
			select {
			case <-time.After(time.Duration(len(list)-1) * 100 * time.Millisecond):
				return rec.handle(ctx, list)
			case <-ctx.Done():
				return errors.Join(events.ErrLater, ctx.Err())
			}
		})()
		await(t, "ten events", func() bool { n, _ := rec.len(); return n == 10 })
	})
}

// What its last try has taken nearly all of the lease for is under a new one while it is a dead letter.
func TestADeadLetterHasALeaseOfItsOwn(t *testing.T) {
	server := redistest.Start(t)
	m := manager(t, server.Client(), session.Events{Retention: time.Hour})
	login(t, m, "ann", 0)
	var rec recorder
	var letters atomic.Int32
	reader := func() *events.Reader {
		r := quick(m, &rec)
		r.Tries = 1
		r.DeadLetter = func(ctx context.Context, d events.DeadLetter) error {
			if letters.Add(1) == 1 {
				server.Advance(3 * time.Second)
				time.Sleep(150 * time.Millisecond)
			}
			return rec.dead(ctx, d)
		}
		return r
	}
	handle := func(context.Context, []session.Event) error {
		server.Advance(3 * time.Second) // of 5.2
		return errors.New("broken")
	}
	defer start(t, reader(), handle)()
	defer start(t, reader(), handle)()
	await(t, "dead letter", func() bool { _, dead := rec.len(); return dead > 0 })
	time.Sleep(100 * time.Millisecond)
	if n := letters.Load(); n != 1 {
		t.Errorf("it was given to DeadLetter %d times", n)
	}
}

// A Redis that takes no more data still gives what it holds.
func TestAFullRedisIsRead(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client()
	m := manager(t, client, session.Events{Retention: time.Hour})
	login(t, m, "ann", 4)
	client.ConfigSet(t.Context(), "maxmemory", "1")
	defer client.ConfigSet(context.Background(), "maxmemory", "0")
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err == nil {
		t.Fatal("Redis is not full")
	}
	var rec recorder
	r := quick(m, &rec)
	defer start(t, r, rec.handle)()
	await(t, "five events", func() bool { n, _ := rec.len(); return n == 5 })
	await(t, "an end", func() bool { return r.Stats().Waiting == 0 })
}

// What an answer brings that took so long that the lease may be over is not handled.
func TestALateTakeIsNotHandled(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	late := server.Client()
	var once atomic.Bool
	handed := make(chan struct{})
	late.AddHook(fault(func(ctx context.Context, cmd redis.Cmder, next func() error) error {
		err := next()
		if entries, _ := taken(cmd); len(entries) > 0 && once.CompareAndSwap(false, true) {
			server.Advance(6 * time.Second) // of 5.2
			time.Sleep(3 * time.Second)
			close(handed)
		}
		return err
	}))
	m := manager(t, late, session.Events{Retention: time.Hour})
	other := manager(t, server.Client(), session.Events{Retention: time.Hour})
	login(t, other, "ann", 0)
	var rec recorder
	defer start(t, quick(m, &rec), rec.handle)()
	await(t, "take", once.Load)
	defer start(t, quick(other, &rec), rec.handle)()
	<-handed
	await(t, "event", func() bool { n, _ := rec.len(); return n >= 1 })
	time.Sleep(100 * time.Millisecond)
	if n, _ := rec.len(); n != 1 {
		t.Errorf("an event was handled %d times", n)
	}
}
