// Package events reads what happens to sessions, as [session.Events] has it written: each event
// at least once, and those of one user in their order. It is for what must not be lost when a
// process dies: an audit trail in a database, mails about new devices, last-seen times.
package events

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"regexp"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session"
)

// ErrLater is for a handler whose target is away, a database that restarts for example: the events
// come again, a second later and then less and less often, however long it takes. Any other error
// is the events' own.
var ErrLater = errors.New("events: to be tried later")

// Reader reads the events of a Manager. Its fields are not to be changed once Run was called. Any
// number of Readers, in any number of processes, may share the work of a Group.
type Reader struct {
	Manager *session.Manager // with Events; required
	// Group names what the events are read for, in at most 64 letters, digits, dots, dashes and
	// underscores; required. Each group gets all events. A new one begins with the oldest that
	// there is.
	Group string
	// DeadLetter is given what cannot be handled; required. After it has returned nil the
	// event is done with. After an error it is tried again, which holds up those behind it.
	DeadLetter func(context.Context, DeadLetter) error
	// Tries is how often an event is tried before it goes to DeadLetter; default 5.
	Tries int
	// Batch is how many events a call of the handler gets at most; default 100, at most 1,000.
	Batch int
	// Timeout bounds a call of the handler and of DeadLetter by its context; default 30
	// seconds. What a reader that has died had taken is taken over five seconds after it.
	Timeout time.Duration
	// Parallel is how many calls of the handler there are at a time; default 4, at most 256.
	Parallel int
	// Interval is how often it is looked for events when there are none; default a second.
	Interval time.Duration
	// Logger is told of what goes wrong; nil: slog.Default().
	Logger *slog.Logger

	handled, failed, dead, missed atomic.Uint64
	waiting                       [partitions]atomic.Int64
	oldest                        [partitions]atomic.Int64 // age of the oldest that waits, µs
}

const partitions = 256

// DeadLetter is what could not be handled.
type DeadLetter struct {
	Event   session.Event // zero if it could not be read
	Raw     string        // as it stood in Redis
	Stream  string        // its key
	EntryID string
	Tries   int
	Err     error // why: of the last try
}

// Stats counts what this Reader did. Waiting and Lag are of its last look at each stream.
type Stats struct {
	Handled uint64        // events for which the handler has returned nil
	Failed  uint64        // calls of the handler that failed, panicked or took too long
	Dead    uint64        // events that went to DeadLetter
	Missed  uint64        // events that were gone before they were read: Events.MaxLen or Retention is too small
	Waiting int64         // events that are not handled yet
	Lag     time.Duration // age of the oldest of them
}

// Stats may be called at any time.
func (r *Reader) Stats() Stats {
	s := Stats{Handled: r.handled.Load(), Failed: r.failed.Load(), Dead: r.dead.Load(), Missed: r.missed.Load()}
	for i := range r.waiting {
		s.Waiting += r.waiting[i].Load()
		s.Lag = max(s.Lag, time.Duration(r.oldest[i].Load())*time.Microsecond)
	}
	return s
}

// The lease outlasts the handler by leaseMargin, in which the cursor is moved.
const leaseMargin = 5 * time.Second

var groupName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// run is a Run.
type run struct {
	*Reader
	log     session.EventLog
	redis   *roundtrip.Sender
	streams []string
	handle  func(context.Context, []session.Event) error
	as      string        // this reader, in leases
	keep    time.Duration // how long Redis remembers the group
	away    atomic.Bool   // Redis does not answer, and the log says so
	later   [partitions]int
	refused [partitions]bool
}

// Run hands events to a handler until ctx ends; then it waits for the calls that are under way and
// returns nil. It goes on through everything else: an outage of Redis, an error or a panic of
// the handler. Its error names what is wrong with the Reader.
//
// When the handler has returned nil its events are done with. If it fails, or its process dies,
// they come again, one by one: of each user's the first comes first, and those behind it wait. An
// event may come twice, with the same ID: let the handler be idempotent. It is called for up to
// Parallel batches at a time, which have no users in common.
func (r *Reader) Run(ctx context.Context, handle func(context.Context, []session.Event) error) error {
	if err := r.check(handle); err != nil {
		return err
	}
	log := r.Manager.EventLog()
	s := &run{Reader: r, log: log, redis: log.Redis(), streams: log.Streams(), handle: handle, as: rand.Text(), keep: log.Retention() + 24*time.Hour}
	for ctx.Err() == nil {
		var found atomic.Bool
		var next atomic.Int64
		order := mathrand.Perm(partitions) // several readers meet seldom
		var workers sync.WaitGroup
		for range r.Parallel {
			workers.Go(func() {
				for ctx.Err() == nil {
					i := int(next.Add(1)) - 1
					if i >= partitions || s.away.Load() && i > 0 {
						return
					}
					if s.read(ctx, order[i]) {
						found.Store(true)
					}
				}
			})
		}
		workers.Wait()
		if !found.Load() {
			sleep(ctx, r.Interval)
		}
	}
	return nil
}

// check fills in defaults and says what is wrong.
func (r *Reader) check(handle func(context.Context, []session.Event) error) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("events: "+format, args...)) }
	if r.Manager == nil {
		bad("Reader.Manager is nil")
	} else if r.Manager.EventLog().Retention() == 0 {
		bad("the Manager has no Events: there is nothing to read")
	}
	if !groupName.MatchString(r.Group) {
		bad("Reader.Group %q: 1 to 64 letters, digits, dots, dashes and underscores are possible", r.Group)
	}
	if r.DeadLetter == nil {
		bad("Reader.DeadLetter is nil: what cannot be handled would hold up the rest, or be lost")
	}
	if handle == nil {
		bad("the handler is nil")
	}
	for _, n := range []struct {
		name        string
		value       *int
		byDef, most int
	}{{"Tries", &r.Tries, 5, 1000}, {"Batch", &r.Batch, 100, 1000}, {"Parallel", &r.Parallel, 4, partitions}} {
		if *n.value == 0 {
			*n.value = n.byDef
		}
		if *n.value < 1 || *n.value > n.most {
			bad("Reader.%s %d is not between 1 and %d", n.name, *n.value, n.most)
		}
	}
	for _, d := range []struct {
		name        string
		value       *time.Duration
		byDef, most time.Duration
	}{{"Timeout", &r.Timeout, 30 * time.Second, time.Hour}, {"Interval", &r.Interval, time.Second, time.Hour}} {
		if *d.value == 0 {
			*d.value = d.byDef
		}
		if *d.value < time.Millisecond || *d.value > d.most {
			bad("Reader.%s %v is not between a millisecond and %v", d.name, *d.value, d.most)
		}
	}
	if r.Logger == nil {
		r.Logger = slog.Default()
	}
	return errors.Join(errs...)
}

// sleep waits, until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

var (
	takeScript = scripts.Get("session/events_take.lua")
	moveScript = scripts.Get("session/events_move.lua")
)

// taken is what events_take.lua has given.
type taken struct {
	ids, raw []string
	tries    int
}

// atATime bounds how many batches of a stream are read before it is the turn of others.
const atATime = 10

// read handles what there is in a stream, and reports whether there was anything.
func (s *run) read(ctx context.Context, partition int) (found bool) {
	for range atATime {
		t, ok := s.take(ctx, partition)
		if !ok || len(t.ids) == 0 {
			return found
		}
		found = true
		if !s.work(ctx, partition, t) || ctx.Err() != nil {
			return found
		}
	}
	return found
}

// keys are the group's hash and the stream, of one slot.
func (s *run) keys(partition int) []string {
	return []string{s.streams[partition] + ":" + s.Group, s.streams[partition]}
}

// take asks for the next events.
func (s *run) take(ctx context.Context, partition int) (t taken, ok bool) {
	raw, err := s.redis.Run(ctx, takeScript, s.keys(partition), s.as, (s.Timeout + leaseMargin).Microseconds(), s.Batch, s.keep.Milliseconds())
	list, _ := raw.([]any)
	var refused redis.Error
	if err == nil && len(list) != 6 {
		err = fmt.Errorf("unexpected reply of type %T", raw)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return t, false
	case errors.As(err, &refused): // of this stream, while its slot is moved for example
		if !s.refused[partition] {
			s.Logger.LogAttrs(ctx, slog.LevelWarn, "events: a stream cannot be read", slog.String("stream", s.streams[partition]), slog.Any("error", err))
		}
		s.refused[partition] = true
		return t, false
	case err != nil:
		if !s.away.Swap(true) {
			s.Logger.LogAttrs(ctx, slog.LevelWarn, "events: cannot be read, Redis does not answer", slog.Any("error", err))
		}
		return t, false
	case s.away.Swap(false):
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "events: are read again")
	}
	s.refused[partition] = false
	now, _ := list[0].(int64)
	entries, _ := list[1].([]any)
	tries, _ := list[2].(int64)
	waiting, _ := list[3].(int64)
	missed, _ := list[4].(int64)
	begins, _ := list[5].(int64)
	for i := 0; i+1 < len(entries); i += 2 {
		id, _ := entries[i].(string)
		event, _ := entries[i+1].(string)
		t.ids, t.raw = append(t.ids, id), append(t.raw, event)
	}
	t.tries = int(tries)
	s.look(partition, now, waiting, t)
	if missed > 0 {
		s.missed.Add(uint64(missed))
		s.Logger.LogAttrs(ctx, slog.LevelError, "events: gone before they were read", slog.Int64("missed", missed), slog.String("group", s.Group), slog.String("stream", s.streams[partition]))
	}
	if begins != 0 {
		s.Logger.LogAttrs(ctx, slog.LevelInfo, "events: read from the oldest", slog.String("group", s.Group), slog.String("stream", s.streams[partition]))
	}
	return t, true
}

// look notes what waits, for Stats.
func (s *run) look(partition int, now, waiting int64, t taken) {
	if waiting < 0 { // somebody else has it
		waiting = 0
	}
	var oldest int64
	if len(t.ids) > 0 {
		var ms int64
		if _, err := fmt.Sscanf(t.ids[0], "%d-", &ms); err == nil {
			oldest = max(0, now-1000*ms)
		}
	}
	s.waiting[partition].Store(waiting)
	s.oldest[partition].Store(oldest)
}

// work handles what was taken, and gives the lease back. It reports whether to go on.
func (s *run) work(ctx context.Context, partition int, t taken) bool {
	var list []session.Event
	var unreadable error
	for _, raw := range t.raw {
		e, err := s.log.Open(partition, raw)
		if err != nil {
			unreadable = err
			break
		}
		list = append(list, e)
	}
	letter := DeadLetter{Raw: t.raw[0], Stream: s.streams[partition], EntryID: t.ids[0], Tries: t.tries}
	if len(list) == 0 {
		letter.Err = fmt.Errorf("it cannot be read: %w", unreadable)
		return s.bury(ctx, partition, letter)
	}
	letter.Event = list[0]
	if t.tries > s.Tries && len(t.raw) == 1 {
		letter.Tries, letter.Err = t.tries-1, errors.New("no try came to an end: its reader died, or the handler took too long")
		return s.bury(ctx, partition, letter)
	}
	err, hangs := s.call(ctx, func(ctx context.Context) error { return s.handle(ctx, list) })
	switch {
	case err == nil:
		s.handled.Add(uint64(len(list)))
		s.later[partition] = 0
		return s.move(ctx, partition, t.ids[len(list)-1], len(list))
	case ctx.Err() != nil && !hangs: // it was called off
		s.again(ctx, partition, 0, true)
		return false
	}
	s.failed.Add(1)
	s.Logger.LogAttrs(ctx, slog.LevelWarn, "events: not handled", slog.Any("error", err), slog.String("group", s.Group), slog.Int("events", len(list)), slog.Int("try", t.tries))
	switch {
	case hangs: // it may yet go on: the lease runs out by itself
	case errors.Is(err, ErrLater):
		s.again(ctx, partition, s.backoff(partition), true)
	case t.tries >= s.Tries && len(t.raw) == 1:
		letter.Err = err
		return s.bury(ctx, partition, letter)
	case t.tries == 1 && len(t.raw) > 1: // one by one at once
		s.again(ctx, partition, 0, false)
		return true
	default:
		s.again(ctx, partition, s.backoff(partition), false)
	}
	return false
}

// firstPause is how long the second try waits. The others wait twice as long each, at most a minute.
var firstPause = time.Second

func (s *run) backoff(partition int) time.Duration {
	d := firstPause << min(s.later[partition], 10)
	s.later[partition]++
	return min(d, time.Minute)
}

// bury gives an event to DeadLetter.
func (s *run) bury(ctx context.Context, partition int, letter DeadLetter) bool {
	err, hangs := s.call(ctx, func(ctx context.Context) error { return s.DeadLetter(ctx, letter) })
	switch {
	case err == nil:
		s.dead.Add(1)
		s.later[partition] = 0
		return s.move(ctx, partition, letter.EntryID, 1)
	case hangs:
	default:
		s.Logger.LogAttrs(ctx, slog.LevelError, "events: not taken as a dead letter, those behind it wait", slog.Any("error", err), slog.String("group", s.Group), slog.String("entry", letter.EntryID))
		s.again(ctx, partition, s.backoff(partition), false)
	}
	return false
}

// call calls a function of the user, for at most Timeout. One that does not come back after its
// context has ended hangs.
func (s *run) call(ctx context.Context, f func(context.Context) error) (err error, hangs bool) {
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				s.Logger.LogAttrs(ctx, slog.LevelError, "events: panic", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				done <- fmt.Errorf("panic: %v", p)
			}
		}()
		done <- f(ctx)
	}()
	late := time.NewTimer(s.Timeout + leaseMargin/2)
	defer late.Stop()
	select {
	case err = <-done:
		return err, false
	case <-late.C:
		return fmt.Errorf("it did not return within %v", s.Timeout), true
	}
}

// move says that events were handled. It is tried for as long as the lease holds: they would come
// again.
func (s *run) move(ctx context.Context, partition int, id string, n int) bool {
	return s.give(ctx, partition, id, n, 0, "")
}

// again leaves events for another try, after a while. uncounted says that it is not their fault.
func (s *run) again(ctx context.Context, partition int, after time.Duration, uncounted bool) {
	flag := ""
	if uncounted {
		flag = "1"
	}
	s.give(ctx, partition, "", 0, after, flag)
}

func (s *run) give(ctx context.Context, partition int, id string, n int, after time.Duration, flag string) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseMargin/2)
	defer cancel()
	for {
		raw, err := s.redis.Run(ctx, moveScript, s.keys(partition)[:1], s.as, id, n, after.Microseconds(), flag)
		moved, _ := raw.(int64)
		switch {
		case err == nil && moved == 1:
			return true
		case err == nil || ctx.Err() != nil: // they come again, to whoever has the lease then
			s.Logger.LogAttrs(ctx, slog.LevelWarn, "events: the lease was lost, they come again", slog.String("group", s.Group), slog.Any("error", err))
			return false
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
