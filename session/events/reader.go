// Package events reads what happens to sessions, as [session.Events] has it written: each event
// at least once, and those of one user in their order. It is for what must not be lost when a
// process dies: an audit trail in a database, mails about new devices, last-seen times.
package events

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
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
	// seconds. What a reader that has died had taken is taken over five seconds after it, by
	// Redis's clock: if that is set forward, sooner.
	Timeout time.Duration
	// Parallel is how many calls of the handler there are at a time, but for those that did not
	// come back within Timeout; default 4, at most 256.
	Parallel int
	// Interval is how often to look for events when there are none; default a second.
	Interval time.Duration
	// Logger is told of what goes wrong; nil: slog.Default().
	Logger *slog.Logger

	handled, failed, dead, missed atomic.Uint64
	waiting                       [partitions]atomic.Int64
	oldest                        [partitions]atomic.Int64 // when the oldest that waits came, by this clock, µs; 0: none waits
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

// Stats counts what this Reader did. Waiting and Lag are of all readers of the group, as of this
// one's last look at each stream; 0 while it does not run.
type Stats struct {
	Handled uint64        // events for which the handler has returned nil
	Failed  uint64        // calls of the handler that failed, panicked or took too long
	Dead    uint64        // events that went to DeadLetter
	Missed  uint64        // events that were gone before they were read, at least: Events.MaxLen or Retention is too small
	Waiting int64         // events that are not handled yet
	Lag     time.Duration // age of the oldest of them
}

// Stats may be called at any time.
func (r *Reader) Stats() Stats {
	s := Stats{Handled: r.handled.Load(), Failed: r.failed.Load(), Dead: r.dead.Load(), Missed: r.missed.Load()}
	for i := range r.waiting {
		s.Waiting += r.waiting[i].Load()
		if came := r.oldest[i].Load(); came != 0 {
			s.Lag = max(s.Lag, time.Since(time.UnixMicro(came)))
		}
	}
	return s
}

// The lease outlasts the handler by leaseMargin: half of it is for the way to the handler, and half
// for the cursor to be moved.
const leaseMargin = 5 * time.Second

// firstPause is how long the second try waits. The others wait twice as long each, at most a minute.
var firstPause = time.Second

var groupName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// run is a Run.
type run struct {
	*Reader
	tries, batch, parallel int
	timeout, interval      time.Duration
	logger                 *slog.Logger

	log     session.EventLog
	redis   *roundtrip.Sender
	streams []string
	handle  func(context.Context, []session.Event) error
	as      string        // this Run, in leases
	keep    time.Duration // how long Redis remembers the group

	mu     sync.Mutex
	of     [partitions]partition
	silent int // partitions whose server does not answer
}

// partition is one stream. Whoever has set busy has all of it.
type partition struct {
	busy bool
	due  time.Time
	turn uint64 // how often it was asked for

	failures      int           // in a row, for the pause
	lastID        string        // of the event that failed last
	lastErr       error         // and why
	hangs         chan struct{} // a call that did not come back; closed when it does
	silent, wrong bool          // the log says so
}

// Run hands events to a handler until ctx ends; then it waits for the calls that are under way and
// returns nil. It goes on through everything else: an outage of Redis, an error or a panic of
// the handler. Its error names what is wrong with the Reader.
//
// When the handler has returned nil its events are done with. If it fails, or its process dies,
// they come again, one by one: of each user's the first comes first, and those behind it wait. A
// process that dies counts as a try, since an event may be what kills it. An event may come twice,
// with the same ID: let the handler be idempotent. It is called for up to Parallel batches at a
// time, which have no users in common.
func (r *Reader) Run(ctx context.Context, handle func(context.Context, []session.Event) error) error {
	s, err := r.settings(handle)
	if err != nil {
		return err
	}
	now := time.Now()
	for i := range s.of {
		s.of[i].due = now.Add(mathrand.N(s.interval)) // several readers meet seldom
	}
	var workers sync.WaitGroup
	for range s.parallel {
		workers.Go(func() {
			for {
				i, wait := s.next()
				if sleep(ctx, wait); ctx.Err() != nil {
					return
				}
				p := &s.of[i]
				after := s.read(ctx, i, p)
				s.mu.Lock()
				p.busy, p.due = false, time.Now().Add(after)
				s.mu.Unlock()
			}
		})
	}
	workers.Wait()
	for i := range r.waiting { // of a Reader that does not look it is not known
		r.waiting[i].Store(0)
		r.oldest[i].Store(0)
	}
	return nil
}

// next returns the partition that is due first, and when, for the caller alone.
func (s *run) next() (first int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = -1
	for i := range s.of {
		if p := &s.of[i]; !p.busy && (first < 0 || p.due.Before(s.of[first].due)) {
			first = i
		}
	}
	s.of[first].busy = true // there are as many as workers at least
	return first, time.Until(s.of[first].due)
}

// settings fills in defaults and says what is wrong.
func (r *Reader) settings(handle func(context.Context, []session.Event) error) (*run, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("events: "+format, args...)) }
	s := &run{
		Reader: r, tries: cmp.Or(r.Tries, 5), batch: cmp.Or(r.Batch, 100), parallel: cmp.Or(r.Parallel, 4),
		timeout: cmp.Or(r.Timeout, 30*time.Second), interval: cmp.Or(r.Interval, time.Second), logger: r.Logger, handle: handle, as: rand.Text(),
	}
	if s.logger == nil {
		s.logger = slog.Default()
	}
	if r.Manager == nil {
		bad("Reader.Manager is nil")
	} else if s.log = r.Manager.EventLog(); s.log.Retention() == 0 {
		bad("the Manager has no Events: there is nothing to read")
	} else {
		s.redis, s.streams, s.keep = s.log.Redis(), s.log.Streams(), s.log.Retention()+24*time.Hour
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
		value, most int
	}{{"Tries", s.tries, 1000}, {"Batch", s.batch, 1000}, {"Parallel", s.parallel, partitions}} {
		if n.value < 1 || n.value > n.most {
			bad("Reader.%s %d is not between 1 and %d", n.name, n.value, n.most)
		}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Timeout", s.timeout}, {"Interval", s.interval}} {
		if d.value < time.Millisecond || d.value > time.Hour {
			bad("Reader.%s %v is not between a millisecond and an hour", d.name, d.value)
		}
	}
	return s, errors.Join(errs...)
}

// sleep waits, until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
