package events

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/seal"
	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session"
)

// What a Run does with one stream: it takes what comes next, has it handled, and gives the lease back.

var (
	takeScript = scripts.Get("session/events_take.lua")
	moveScript = scripts.Get("session/events_move.lua")
)

// taken is what events_take.lua has given.
type taken struct {
	as       string // the lease
	ids, raw []string
	tries    int
}

// read handles what comes next of a stream, and returns how long it can wait until the next look.
func (s *run) read(ctx context.Context, i int, p *partition) time.Duration {
	if p.hangs != nil {
		select {
		case <-p.hangs:
			p.hangs = nil
		default:
			return s.interval
		}
	}
	t, ok := s.take(ctx, i, p)
	switch {
	case !ok:
		return max(s.interval, time.Second)
	case len(t.ids) == 0:
		return s.interval
	case ctx.Err() != nil:
		s.again(ctx, i, t.as, 0, notTheirs)
		return 0
	}
	return s.work(ctx, i, p, t)
}

// keys are the group's hash and the stream, of one slot.
func (s *run) keys(i int) []string {
	return []string{s.streams[i] + ":" + s.Group, s.streams[i]}
}

// take asks for the next events.
func (s *run) take(ctx context.Context, i int, p *partition) (t taken, ok bool) {
	// What the script has given must come back, or it would count as a try.
	p.turn++ // a lease has a name of its own: what comes late of one changes no other
	t.as = s.as + "." + strconv.FormatUint(p.turn, 10)
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseMargin/2)
	defer cancel()
	raw, err := s.redis.Run(short, takeScript, s.keys(i), t.as, (s.timeout + leaseMargin).Microseconds(), s.batch, s.keep.Milliseconds())
	list, _ := raw.([]any)
	if err == nil && len(list) != 7 {
		err = fmt.Errorf("unexpected reply of type %T", raw)
	}
	if s.trouble(ctx, i, p, err); err != nil {
		return t, false
	}
	now, _ := list[0].(int64)
	entries, _ := list[1].([]any)
	tries, _ := list[2].(int64)
	waiting, _ := list[3].(int64)
	missed, _ := list[4].(int64)
	another, _ := list[5].(int64)
	oldest, _ := list[6].(string)
	for i := 0; i+1 < len(entries); i += 2 {
		id, _ := entries[i].(string)
		event, _ := entries[i+1].(string)
		t.ids, t.raw = append(t.ids, id), append(t.raw, event)
	}
	t.tries = int(tries)
	var came int64
	if ms, err := strconv.ParseInt(strings.SplitN(oldest, "-", 2)[0], 10, 64); err == nil {
		came = time.Now().UnixMicro() - max(0, now-1000*ms)
	}
	s.waiting[i].Store(waiting)
	s.oldest[i].Store(came)
	s.missed.Add(uint64(missed))
	if missed > 0 || another != 0 {
		s.logger.LogAttrs(ctx, slog.LevelError, "events: gone before they were read", slog.Int64("missed_at_least", missed),
			slog.Bool("stream_is_new", another != 0), slog.String("group", s.Group), slog.String("stream", s.streams[i]))
	}
	return t, true
}

// trouble tells of an outage once, however many streams it concerns, and of a stream that its server
// refuses, while its slot is moved for example.
func (s *run) trouble(ctx context.Context, i int, p *partition, err error) {
	var refused redis.Error
	wrong := errors.As(err, &refused)
	if wrong && !p.wrong {
		s.logger.LogAttrs(ctx, slog.LevelWarn, "events: a stream cannot be read", slog.String("stream", s.streams[i]), slog.Any("error", err))
	}
	p.wrong = wrong
	silent := err != nil && !wrong
	if silent == p.silent {
		return
	}
	p.silent = silent
	s.mu.Lock()
	before := s.silent
	if silent {
		s.silent++
	} else {
		s.silent--
	}
	left := s.silent
	s.mu.Unlock()
	switch {
	case before == 0:
		s.logger.LogAttrs(ctx, slog.LevelWarn, "events: Redis does not answer", slog.String("stream", s.streams[i]), slog.Any("error", err))
	case left == 0:
		s.logger.LogAttrs(ctx, slog.LevelInfo, "events: Redis answers again")
	}
}

// work handles what was taken, gives the lease back, and returns how long the rest can wait.
func (s *run) work(ctx context.Context, i int, p *partition, t taken) time.Duration {
	var list []session.Event
	var unreadable error
	for _, raw := range t.raw {
		e, err := s.log.Open(i, raw)
		if err != nil {
			unreadable = err
			break
		}
		list = append(list, e)
	}
	letter := DeadLetter{Raw: t.raw[0], Stream: s.streams[i], EntryID: t.ids[0], Tries: t.tries}
	if len(list) == 0 {
		letter.Err = fmt.Errorf("it cannot be read: %w", unreadable)
		if errors.Is(unreadable, seal.ErrUnknownKey) && t.tries < s.tries { // this server may be told the secret
			return s.retry(ctx, i, p, t, letter, counts)
		}
		return s.bury(ctx, i, p, t, letter)
	}
	letter.Event = list[0]
	if t.tries > s.tries && len(t.raw) == 1 {
		if letter.Err = p.lastErr; p.lastID != t.ids[0] || letter.Err == nil {
			letter.Err = errors.New("its tries were those of other readers, or came to no end")
		}
		letter.Tries--
		return s.bury(ctx, i, p, t, letter)
	}
	called := time.Now()
	err := s.call(ctx, p, func(ctx context.Context) error { return s.handle(ctx, list) })
	switch {
	case err == nil:
		s.handled.Add(uint64(len(list)))
		return s.move(ctx, i, p, t.as, t.ids[len(list)-1], len(list))
	case ctx.Err() != nil && p.hangs == nil: // it was called off
		s.again(ctx, i, t.as, 0, notTheirs)
		return 0
	}
	letter.Err = err
	s.failed.Add(1)
	s.logger.LogAttrs(ctx, slog.LevelWarn, "events: not handled", slog.Any("error", err), slog.String("group", s.Group), slog.Int("events", len(list)), slog.Int("try", t.tries))
	switch {
	case p.hangs != nil: // it may yet go on: the lease runs out by itself
		return s.interval
	case errors.Is(err, ErrLater) && len(list) > 1 && time.Since(called) >= s.timeout: // they may be too many
		return s.retry(ctx, i, p, t, letter, oneByOne)
	case errors.Is(err, ErrLater):
		return s.retry(ctx, i, p, t, letter, notTheirs)
	case len(t.raw) > 1: // at once
		s.again(ctx, i, t.as, 0, oneByOne)
		return 0
	case t.tries >= s.tries: // to DeadLetter, under a lease of its own
		p.lastID, p.lastErr = letter.EntryID, err
		s.again(ctx, i, t.as, 0, counts)
		return 0
	}
	return s.retry(ctx, i, p, t, letter, counts)
}

// What a failure says of the events, as events_move.lua takes it.
const (
	counts    = ""  // it counts as a try
	notTheirs = "1" // it is not their fault
	oneByOne  = "2" // it may be that of one of them
)

// retry leaves events for another try, after a pause, and returns that.
func (s *run) retry(ctx context.Context, i int, p *partition, t taken, letter DeadLetter, how string) time.Duration {
	p.lastID, p.lastErr = letter.EntryID, letter.Err
	pause := min(firstPause<<min(p.failures, 10), time.Minute)
	p.failures++
	s.again(ctx, i, t.as, pause, how)
	return pause
}

// bury gives an event to DeadLetter.
func (s *run) bury(ctx context.Context, i int, p *partition, t taken, letter DeadLetter) time.Duration {
	err := s.call(ctx, p, func(ctx context.Context) error { return s.DeadLetter(ctx, letter) })
	switch {
	case err == nil:
		s.dead.Add(1)
		return s.move(ctx, i, p, t.as, letter.EntryID, 1)
	case p.hangs != nil:
		return s.interval
	case ctx.Err() != nil: // it was called off
		s.again(ctx, i, t.as, 0, notTheirs)
		return 0
	}
	s.logger.LogAttrs(ctx, slog.LevelError, "events: not taken as a dead letter, those behind it wait", slog.Any("error", err), slog.String("group", s.Group), slog.String("entry", letter.EntryID))
	return s.retry(ctx, i, p, t, letter, counts)
}

// call calls a function of the user, for at most Timeout. One that does not come back after its
// context has ended hangs.
func (s *run) call(ctx context.Context, p *partition, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	back := make(chan struct{})
	err := errors.New("its goroutine has ended") // by runtime.Goexit
	go func() {
		defer close(back)
		defer func() {
			if v := recover(); v != nil {
				s.logger.LogAttrs(ctx, slog.LevelError, "events: panic", slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
				err = fmt.Errorf("panic: %v", v)
			}
		}()
		err = f(ctx)
	}()
	late := time.NewTimer(s.timeout + leaseMargin/2)
	defer late.Stop()
	select {
	case <-back:
		return err
	case <-late.C:
		p.hangs = back
		return fmt.Errorf("it did not return within %v", s.timeout)
	}
}

// move says that events were handled.
func (s *run) move(ctx context.Context, i int, p *partition, as, id string, n int) time.Duration {
	p.failures = 0
	s.waiting[i].Add(int64(-n))
	s.oldest[i].Store(0) // until the next look, which is at once
	s.give(ctx, i, as, id, n, 0, counts)
	return 0
}

// again leaves events for another try, after a pause.
func (s *run) again(ctx context.Context, i int, as string, pause time.Duration, how string) {
	s.give(ctx, i, as, "", 0, pause, how)
}

// give gives the lease back. It is tried for as long as that holds: what was handled would come again.
func (s *run) give(ctx context.Context, i int, as, id string, n int, pause time.Duration, how string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseMargin/2)
	defer cancel()
	for {
		raw, err := s.redis.Run(ctx, moveScript, s.keys(i)[:1], as, id, n, pause.Microseconds(), how)
		moved, _ := raw.(int64)
		switch {
		case err == nil && moved == 1:
			return
		case err == nil || ctx.Err() != nil: // they come to whoever has the lease then
			s.logger.LogAttrs(ctx, slog.LevelWarn, "events: the lease was lost, they come again", slog.String("group", s.Group), slog.Any("error", err))
			return
		}
		sleep(ctx, 50*time.Millisecond)
	}
}
