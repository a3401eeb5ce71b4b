package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

func TestMain(m *testing.M) {
	*events.FirstPause = 20 * time.Millisecond
	redistest.Main(m)
}

func manager(t testing.TB, client redis.UniversalClient, e session.Events) *session.Manager {
	t.Helper()
	m, err := session.New(client, session.Config{
		Prefix: strings.Map(func(r rune) rune {
			if r == '/' || r == '{' || r == '}' {
				return '-'
			}
			return r
		}, t.Name()) + ":",
		Events: e, Logger: slog.New(slog.DiscardHandler), Timeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// login logs a user in and rotates the session a number of times.
func login(t testing.TB, m *session.Manager, user string, rotations int) {
	t.Helper()
	cookie := ""
	for i := range 1 + rotations {
		ctx, err := m.Load(context.Background(), cookie)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			err = m.Login(ctx, user)
		} else {
			err = m.Rotate(ctx)
		}
		out, also := m.Finish(ctx)
		if err = errors.Join(err, also); err != nil {
			t.Fatal(err)
		}
		cookie = out.Value
	}
}

// recorder keeps what a reader was given.
type recorder struct {
	mu      sync.Mutex
	list    []session.Event
	letters []events.DeadLetter
}

func (r *recorder) handle(_ context.Context, list []session.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, list...)
	return nil
}

func (r *recorder) dead(_ context.Context, d events.DeadLetter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.letters = append(r.letters, d)
	return nil
}

func (r *recorder) len() (handled, dead int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list), len(r.letters)
}

// of is what was given of a user, in its order.
func (r *recorder) of(user string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var words []string
	for _, e := range r.list {
		if e.UserID == user {
			words = append(words, e.Kind.String())
		}
	}
	return strings.Join(words, " ")
}

func quick(m *session.Manager, rec *recorder) *events.Reader {
	return &events.Reader{
		Manager: m, Group: "test", DeadLetter: rec.dead, Interval: 10 * time.Millisecond, Timeout: 200 * time.Millisecond,
		Tries: 2, Logger: slog.New(slog.DiscardHandler),
	}
}

// start runs a reader until the returned function is called.
func start(t testing.TB, r *events.Reader, handle func(context.Context, []session.Event) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, handle) }()
	return func() {
		t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not return")
		}
	}
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s after 30 seconds", what)
		}
	}
}

// Every group gets all events of a user in their order, once, whoever of it reads; who reads
// later goes on where the others were.
func TestGroups(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		var rec, other recorder
		var stops []func()
		for range 3 {
			stops = append(stops, start(t, quick(m, &rec), rec.handle))
		}
		var logins sync.WaitGroup
		for i := range 20 {
			logins.Go(func() { login(t, m, fmt.Sprint("user ", i), 10) })
		}
		logins.Wait()
		await(t, "220 events", func() bool { n, _ := rec.len(); return n >= 220 })
		for _, stop := range stops {
			stop()
		}
		login(t, m, "late", 0)
		defer start(t, quick(m, &rec), rec.handle)()
		r := quick(m, &other)
		r.Group = "another"
		defer start(t, r, other.handle)()
		await(t, "221 events of both", func() bool {
			n, _ := rec.len()
			o, _ := other.len()
			return n >= 221 && o >= 221
		})
		want := "logged-in" + strings.Repeat(" rotated", 10)
		for i := range 20 {
			user := fmt.Sprint("user ", i)
			if rec.of(user) != want || other.of(user) != want {
				t.Errorf("%s: %q, %q", user, rec.of(user), other.of(user))
			}
		}
		if n, dead := rec.len(); n != 221 || dead != 0 {
			t.Errorf("%d events, %d dead", n, dead)
		}
		await(t, "count", func() bool { return r.Stats().Handled == 221 && r.Stats().Waiting == 0 && r.Stats().Lag == 0 })
		redistest.AssertAllTTL(t, rb.Client)
	})
}

// What fails holds up those behind it for its tries, and goes to DeadLetter: with an error, a panic,
// by not coming back, or for an error of DeadLetter, too.
func TestPoison(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 2)
		login(t, m, "ann", 1)
		for name, fail := range map[string]func(context.Context) error{
			"error":   func(context.Context) error { return errors.New("broken") },
			"panic":   func(context.Context) error { panic("broken") },
			"timeout": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		} {
			var rec recorder
			tries := 0
			r := quick(m, &rec)
			r.Group = name
			letters := 0
			r.DeadLetter = func(ctx context.Context, d events.DeadLetter) error {
				if letters++; letters == 1 {
					return errors.New("no paper")
				}
				return rec.dead(ctx, d)
			}
			stop := start(t, r, func(ctx context.Context, list []session.Event) error {
				for i, e := range list {
					if e.Kind == session.Rotated && strings.Contains(rec.of("ann"), "logged-in rotated") && !strings.Contains(rec.of("ann"), "logged-in rotated logged-in") || len(list) > 1 && i > 0 {
						tries++
						return fail(ctx)
					}
				}
				return rec.handle(ctx, list)
			})
			await(t, "dead letter", func() bool { n, dead := rec.len(); return n == 4 && dead == 1 })
			stop()
			d := rec.letters[0]
			if got := rec.of("ann"); got != "logged-in rotated logged-in rotated" || tries < 3 || d.Event.Kind != session.Rotated || d.Err == nil || d.Tries < 2 {
				t.Errorf("%s: %q, %d tries, dead %+v", name, got, tries, d)
			}
			if s := r.Stats(); s.Dead != 1 || s.Failed < 3 {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}

// A handler whose target is away for longer than its tries take loses nothing to DeadLetter.
func TestLater(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 2)
		var rec recorder
		calls := 0
		r := quick(m, &rec)
		r.Tries, r.Timeout = 1, 10*time.Second
		defer start(t, r, func(ctx context.Context, list []session.Event) error {
			if calls++; calls <= 3 {
				return fmt.Errorf("database: %w", events.ErrLater)
			}
			return rec.handle(ctx, list)
		})()
		await(t, "three events", func() bool { n, _ := rec.len(); return n == 3 })
		if _, dead := rec.len(); dead != 0 || calls != 4 {
			t.Errorf("%d dead, %d calls", dead, calls)
		}
	})
}

// What a reader that hangs, or is gone, had taken comes to another when its lease is over.
func TestTakeover(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("a lease is of Redis's clock")
		}
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 0)
		var rec recorder
		hanging := make(chan struct{})
		let := make(chan struct{})
		first := start(t, quick(m, &rec), func(context.Context, []session.Event) error {
			select {
			case <-let:
			default:
				close(hanging)
				<-let
			}
			return nil
		})
		<-hanging
		second := start(t, quick(m, &rec), rec.handle)
		time.Sleep(100 * time.Millisecond)
		if n, _ := rec.len(); n != 0 {
			t.Error("two readers have the events at once")
		}
		rb.Advance(t, 6*time.Second) // Timeout and five seconds
		await(t, "takeover", func() bool { n, _ := rec.len(); return n == 1 })
		close(let)
		first()
		second()
		// The first's answer came too late to move anything.
		login(t, m, "ann", 0)
		defer start(t, quick(m, &rec), rec.handle)()
		await(t, "next event", func() bool { n, _ := rec.len(); return n == 2 })
	})
}

// A handler that hangs holds up its users alone; its lease is nobody else's, however short theirs are.
func TestHanging(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 0)
		var rec recorder
		let, hanging := make(chan struct{}), make(chan struct{}, 10)
		r := quick(m, &rec)
		r.Timeout, r.Parallel = 20*time.Second, 2
		handle := func(ctx context.Context, list []session.Event) error {
			if list[0].UserID == "ann" {
				hanging <- struct{}{}
				<-let
			}
			return rec.handle(ctx, list)
		}
		stop := start(t, r, handle)
		<-hanging
		other := quick(m, &rec)
		other.Timeout = time.Millisecond
		stopOther := start(t, other, handle)
		login(t, m, "bob", 0)
		await(t, "event of bob", func() bool { n, _ := rec.len(); return n == 1 })
		time.Sleep(200 * time.Millisecond)
		if len(hanging) > 0 {
			t.Error("another reader has what is being handled")
		}
		await(t, "figures", func() bool { s := other.Stats(); return s.Waiting == 1 && s.Lag > 200*time.Millisecond })
		close(let)
		await(t, "event of ann", func() bool { n, _ := rec.len(); return n == 2 })
		stop()
		stopOther()
	})
}

// A pause is kept however short the Timeout is, and what waits meanwhile can be seen.
func TestPausesAreKept(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		defer func(d time.Duration) { *events.FirstPause = d }(*events.FirstPause)
		*events.FirstPause = 20 * time.Second
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 2)
		var rec recorder
		for _, err := range []error{errors.New("broken"), events.ErrLater} {
			r := quick(m, &rec)
			r.Group = strings.ReplaceAll(err.Error(), " ", "-")[:6]
			if r.Group == "events" {
				r.Group = "later"
			}
			var calls atomic.Int64
			handle := func(context.Context, []session.Event) error { calls.Add(1); return err }
			second := quick(m, &rec)
			second.Group = r.Group
			r.Tries, second.Tries = 100, 100
			stop, stopSecond := start(t, r, handle), start(t, second, handle)
			await(t, "call", func() bool { return calls.Load() > 0 })
			time.Sleep(500 * time.Millisecond)
			if n := calls.Load(); n < 1 || n > 2 { // once together, once alone
				t.Errorf("%v: %d calls", err, n)
			}
			for _, r := range []*events.Reader{r, second} {
				await(t, "sight of what waits", func() bool {
					s := r.Stats()
					return (s.Waiting == 3 || rb.Mini != nil && s.Waiting > 0) && s.Lag >= 400*time.Millisecond
				})
			}
			stop()
			stopSecond()
			if s := r.Stats(); s.Waiting != 0 || s.Lag != 0 {
				t.Errorf("%v: of a reader that does not run: %+v", err, s)
			}
		}
	})
}

// A handler that ends its goroutine has failed; the last error goes with the letter.
func TestGoexit(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 0)
		var rec recorder
		r := quick(m, &rec)
		letters := 0
		r.DeadLetter = func(ctx context.Context, d events.DeadLetter) error {
			if letters++; letters < 3 {
				return errors.New("no paper")
			}
			return rec.dead(ctx, d)
		}
		defer start(t, r, func(context.Context, []session.Event) error { runtime.Goexit(); return nil })()
		await(t, "dead letter", func() bool { _, dead := rec.len(); return dead == 1 })
		if err := rec.letters[0].Err; !strings.Contains(err.Error(), "goroutine has ended") {
			t.Errorf("%v", err)
		}
	})
}

// One server of a cluster that hangs keeps nobody from the events of the others, and is told once.
func TestHungMaster(t *testing.T) {
	t.Parallel() // with others that wait
	cluster := redistest.StartCluster(t, "--cluster-require-full-coverage", "no")
	m, err := session.New(cluster.Client(), session.Config{Prefix: "hung:", Events: session.Events{Retention: time.Hour}, Logger: slog.New(slog.DiscardHandler), Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var rec recorder
	log := &redistest.Journal{}
	r := quick(m, &rec)
	r.Logger = slog.New(slog.NewTextHandler(log, nil))
	try := func(user string) bool {
		ctx, err := m.Load(t.Context())
		if err == nil {
			if err = m.Login(ctx, user); err == nil {
				_, err = m.Finish(ctx)
			}
		}
		return err == nil
	}
	await(t, "login", func() bool { return try("warm") })
	defer start(t, r, rec.handle)()
	await(t, "event", func() bool { n, _ := rec.len(); return n >= 1 })
	cluster.Nodes()[0].Pause()
	defer cluster.Nodes()[0].Resume()
	var in []string
	for i := range 60 {
		if user := fmt.Sprint("user ", i); try(user) {
			in = append(in, user)
		}
	}
	if len(in) < 20 || len(in) > 58 {
		t.Fatalf("%d logins", len(in))
	}
	await(t, "events of the others", func() bool {
		return !slices.ContainsFunc(in, func(user string) bool { return !strings.Contains(rec.of(user), "logged-in") })
	})
	if got := strings.Count(log.String(), "Redis does not answer"); got != 1 {
		t.Errorf("told %d times: %s", got, log)
	}
}

// A new group has missed nothing; a stream that was emptied is told once; one whose IDs begin lower than
// the cursor, since the clock was set back, is read.
func TestOtherStreams(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("miniredis counts no entries")
		}
		m := manager(t, rb.Client, session.Events{Retention: time.Hour})
		login(t, m, "ann", 9)
		stream := ""
		for _, s := range m.EventLog().Streams() {
			if rb.Client.XLen(t.Context(), s).Val() > 0 {
				stream = s
			}
		}
		rb.Client.XTrimMaxLen(t.Context(), stream, 4)
		var rec recorder
		r := quick(m, &rec)
		stop := start(t, r, rec.handle)
		await(t, "four events", func() bool { n, _ := rec.len(); return n == 4 })
		stop()
		if s := r.Stats(); s.Missed != 0 {
			t.Errorf("a new group: %+v", s)
		}
		login(t, m, "ann", 4)
		rb.Client.XTrimMaxLen(t.Context(), stream, 0)
		stop = start(t, r, rec.handle)
		await(t, "word of what is missed", func() bool { return r.Stats().Missed >= 5 })
		stop()
		if s := r.Stats(); s.Missed != 5 {
			t.Errorf("an emptied stream: %+v", s)
		}
		rb.Client.Del(t.Context(), stream)
		rb.Advance(t, -time.Hour)
		login(t, m, "ann", 29) // more than were added before
		stop = start(t, r, rec.handle)
		await(t, "30 more events", func() bool { n, _ := rec.len(); return n == 34 })
		stop()
	})
}

// What is gone, deleted or somebody else's is told and gone on from.
func TestStrangeStreams(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("miniredis counts no entries")
		}
		ctx := t.Context()
		log := &redistest.Journal{}
		m := manager(t, rb.Client, session.Events{Retention: time.Hour, MaxLen: 100})
		login(t, m, "ann", 0)
		stream := ""
		for _, s := range m.EventLog().Streams() {
			if rb.Client.XLen(ctx, s).Val() > 0 {
				stream = s
			}
		}
		var rec recorder
		r := quick(m, &rec)
		r.Logger = slog.New(slog.NewTextHandler(log, nil))
		n := 0
		more := func(want int) {
			t.Helper()
			n += want
			await(t, fmt.Sprint(n, " events"), func() bool { h, _ := rec.len(); return h >= n })
		}
		stop := start(t, r, rec.handle)
		more(1)
		stop()

		login(t, m, "ann", 499) // more than the stream keeps
		left := int(rb.Client.XLen(ctx, stream).Val())
		stop = start(t, r, rec.handle)
		more(left)
		if got := r.Stats().Missed; got != uint64(500-left) || !strings.Contains(log.String(), "gone before they were read") {
			t.Errorf("%d missed, of %d", got, 500-left)
		}

		rb.Client.Del(ctx, stream) // the stream is lost, its IDs begin anew
		login(t, m, "ann", 0)
		more(1)
		rb.Client.Del(ctx, stream+":test") // the cursor is lost: all come again
		more(1)
		if !strings.Contains(log.String(), "stream_is_new=true") {
			t.Errorf("nothing is told: %s", log)
		}

		for _, garbage := range []map[string]any{{"x": "y"}, {"e": ""}, {"e": "\x01garbage"}, {"e": strings.Repeat("\x01", 300)}} {
			if err := rb.Client.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: garbage}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		login(t, m, "ann", 0)
		more(1)
		if _, dead := rec.len(); dead != 4 || rec.letters[3].Raw != strings.Repeat("\x01", 300) || rec.letters[0].Err == nil {
			t.Errorf("%d dead letters: %+v", dead, rec.letters)
		}

		rb.Client.Del(ctx, stream)
		rb.Client.Set(ctx, stream, "a string", time.Minute)
		await(t, "word of it", func() bool { return strings.Contains(log.String(), "a stream cannot be read") })
		login(t, m, "bob", 0) // another's stream goes on
		more(1)
		rb.Client.Del(ctx, stream)
		login(t, m, "ann", 0)
		more(1)
		stop()
		if got := strings.Count(log.String(), "a stream cannot be read"); got != 1 {
			t.Errorf("told %d times: %s", got, log)
		}
		if handled, _ := rec.len(); handled != n {
			t.Errorf("%d events, want %d", handled, n)
		}
	})
}

// Run says what is wrong with a Reader, and returns when its context ends.
func TestReaderErrors(t *testing.T) {
	rb := redistest.Shared(t)
	m := manager(t, rb.Client(), session.Events{Retention: time.Hour})
	quiet := manager(t, rb.Client(), session.Events{})
	var rec recorder
	for want, r := range map[string]*events.Reader{
		"Manager is nil":     {Group: "a", DeadLetter: rec.dead},
		"has no Events":      {Manager: quiet, Group: "a", DeadLetter: rec.dead},
		`Group ""`:           {Manager: m, DeadLetter: rec.dead},
		`Group "a b"`:        {Manager: m, Group: "a b", DeadLetter: rec.dead},
		"DeadLetter is nil":  {Manager: m, Group: "a"},
		"Tries -1":           {Manager: m, Group: "a", DeadLetter: rec.dead, Tries: -1},
		"Batch 2000":         {Manager: m, Group: "a", DeadLetter: rec.dead, Batch: 2000},
		"Parallel 300":       {Manager: m, Group: "a", DeadLetter: rec.dead, Parallel: 300},
		"Timeout 1ns":        {Manager: m, Group: "a", DeadLetter: rec.dead, Timeout: 1},
		"Interval 24h0m0s":   {Manager: m, Group: "a", DeadLetter: rec.dead, Interval: 24 * time.Hour},
		"the handler is nil": {Manager: m, Group: "a", DeadLetter: rec.dead},
	} {
		handle := rec.handle
		if want == "the handler is nil" {
			handle = nil
		}
		if err := r.Run(t.Context(), handle); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := quick(m, &rec).Run(ctx, rec.handle); err != nil {
		t.Error(err)
	}
}

// A reader, and what writes events, may do no more than docs/acl.md says.
func TestEventsUnderTheLeastACL(t *testing.T) {
	text, err := os.ReadFile("../../docs/acl.md")
	if err != nil {
		t.Fatal(err)
	}
	server := redistest.Start(t)
	user := []any{"ACL", "SETUSER", "service", "reset", "on", ">pw", "~least:{*", "+eval", "+evalsha"}
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, " | ")
		for _, feature := range []string{"| sessions", "| `Config.Events`", "| `session/events`"} {
			if len(cells) == 3 && strings.HasPrefix(cells[0], feature) {
				rows++
				for _, word := range strings.Fields(cells[1]) {
					user = append(user, "+"+strings.Trim(word, "`"))
				}
			}
		}
	}
	if rows != 3 {
		t.Fatalf("%d rows of docs/acl.md", rows)
	}
	if err := server.Client().Do(t.Context(), user...).Err(); err != nil {
		t.Fatal(err)
	}
	client := server.Client(func(o *redis.Options) { o.Username, o.Password = "service", "pw" })
	m, err := session.New(client, session.Config{Prefix: "least:", Events: session.Events{Retention: time.Hour}, Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Check(t.Context()); err != nil {
		t.Error(err)
	}
	var rec recorder
	log := &redistest.Journal{}
	r := quick(m, &rec)
	r.Logger = slog.New(slog.NewTextHandler(log, nil))
	defer start(t, r, rec.handle)()
	login(t, m, "ann", 1)
	await(t, "two events", func() bool { n, _ := rec.len(); return n == 2 || strings.Contains(log.String(), "NOPERM") })
	if n, _ := rec.len(); n != 2 || m.Stats().LostEvents != 0 {
		t.Errorf("%d events, %d lost: %s", n, m.Stats().LostEvents, log)
	}
}

// A reader goes on after an outage of Redis, and says so once.
func TestOutage(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	m := manager(t, server.Client(), session.Events{Retention: time.Hour})
	var rec recorder
	log := &redistest.Journal{}
	r := quick(m, &rec)
	r.Logger = slog.New(slog.NewTextHandler(log, nil))
	defer start(t, r, rec.handle)()
	login(t, m, "ann", 0)
	await(t, "event", func() bool { n, _ := rec.len(); return n == 1 })
	server.Kill()
	await(t, "word of it", func() bool { return strings.Contains(log.String(), "Redis does not answer") })
	server.Restart()
	await(t, "login", func() bool {
		ctx, err := m.Load(context.Background())
		if err == nil {
			if err = m.Login(ctx, "ann"); err == nil {
				_, err = m.Finish(ctx)
			}
		}
		return err == nil
	})
	await(t, "event", func() bool { n, _ := rec.len(); return n >= 2 })
	if got := strings.Count(log.String(), "Redis does not answer"); got != 1 {
		t.Errorf("told %d times: %s", got, log)
	}
	if !slices.ContainsFunc(rec.list, func(e session.Event) bool { return e.Kind == session.LoggedIn }) {
		t.Error("no login")
	}
}

// A reply that was lost is asked for again, and is no try: the lease is this reader's own.
func TestLostReplies(t *testing.T) {
	client := redistest.Start(t).Client()
	var lost atomic.Int64
	client.AddHook(fault(func(_ context.Context, cmd redis.Cmder, next func() error) error {
		err := next()
		if entries, _ := taken(cmd); len(entries) == 0 || lost.Load() == 3 {
			return err
		}
		lost.Add(1)
		cmd.SetErr(os.ErrDeadlineExceeded)
		return os.ErrDeadlineExceeded
	}))
	m := manager(t, client, session.Events{Retention: time.Hour})
	login(t, m, "ann", 5)
	var rec recorder
	r := quick(m, &rec)
	r.Timeout, r.Tries = time.Hour, 1 // without it, they would come again when the lease is over, as dead letters
	stop := start(t, r, rec.handle)
	await(t, "all events", func() bool { handled, dead := rec.len(); return handled >= 6 || dead > 0 })
	stop()
	if handled, dead := rec.len(); handled != 6 || dead != 0 || lost.Load() != 3 {
		t.Errorf("%d handled, %d dead, %d replies lost", handled, dead, lost.Load())
	}
}
