package profile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// Get returns the value of an ID: what is cached, or else what the loader returns. Whoever comes
// first loads, the others wait for that, on all servers. A Get returns within LoadTimeout and four
// times Timeout, also where a loader hangs; an error of the loader is returned as it is, to those of this
// process who wait for that load, too, and is not remembered.
//
// The loader must not Get or Update the same ID: it would wait for itself.
//
// While Redis is away the loader is asked, at most MaxLoads at a time; Gets of one ID at the same
// time share a load.
//
// The error is [ErrNotFound], that of the loader, [ErrUnavailable], [ErrNoID], or ctx's own.
func (c *Cache[T]) Get(ctx context.Context, id string) (v T, err error) {
	how, err := c.core.get(ctx, id, func(text []byte) (err error) {
		v, err = decode[T](text)
		return err
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		c.core.count.failed.Add(1)
		return v, err
	}
	c.core.counter(how).Add(1)
	if err != nil {
		return v, ErrNotFound // how the loader says so is not kept
	}
	return v, nil
}

// way is how a Get came to its value.
type way uint8

const (
	hit way = iota
	waited
	loaded
	direct
)

func (c *core) counter(how way) interface{ Add(uint64) uint64 } {
	switch how {
	case waited:
		return &c.count.waited
	case loaded:
		return &c.count.loaded
	case direct:
		return &c.count.direct
	}
	return &c.count.hits
}

// turn is a load, or a wait for that of another server, of which this process has one for each key.
// Who waits for it looks again when it is over: what it brought may be older than the one who waits.
type turn struct {
	done chan struct{}

	// When it is done:
	text   []byte
	err    error
	stored bool  // its lease was its own until its end: nothing was changed meanwhile
	away   error // of Redis, which may have stored it or not
}

// join returns the turn of a key, and whether it is a new one, which must be ended.
func (c *core) join(key string) (t *turn, begun bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t = c.turns[key]; t != nil {
		return t, false
	}
	t = &turn{done: make(chan struct{})}
	c.turns[key] = t
	return t, true
}

// end ends a turn and wakes who waits for it.
func (c *core) end(key string, t *turn) {
	c.mu.Lock()
	if c.turns[key] == t {
		delete(c.turns, key)
	}
	c.mu.Unlock()
	close(t.done)
}

// get has accept take in the JSON of a value, which fails if it is none.
func (c *core) get(ctx context.Context, id string, accept func([]byte) error) (how way, err error) {
	if id == "" {
		return hit, ErrNoID
	}
	at, began := c.place(id), c.redis.Now()
	text, err := c.read(ctx, at, began)
	switch {
	case err == nil && accept(text) == nil:
		return hit, nil
	case err == ErrNotFound:
		return hit, err
	}
	patience := time.NewTimer(c.lease - c.redis.Since(began))
	defer patience.Stop()
	if ctx.Err() != nil {
		return hit, ctx.Err()
	}
	if err != nil && err != errUnreadable && !answered(err) {
		return c.without(ctx, id, at, accept, patience.C, err)
	}
	var mine *turn // this Get waits for all of this process
	defer func() {
		if mine != nil {
			c.end(at.keys[0], mine)
		}
	}()
	var unreadable string
	for pause := minPause; ; {
		r, err := c.look(ctx, at, unreadable)
		if err != nil {
			if ctx.Err() != nil {
				return hit, ctx.Err()
			}
			return c.without(ctx, id, at, accept, patience.C, err)
		}
		switch r.what {
		case "refresh":
			go c.loadFor(context.WithoutCancel(ctx), id, at, r.token, nil)
			fallthrough
		case "hit":
			text, err := c.unpack(at, r.value)
			if err == nil {
				err = accept(text)
			}
			if err == nil || err == ErrNotFound {
				return how, err
			}
			c.count.unreadable.Add(1)
			c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "profile: a value cannot be read, it is loaded anew")
			unreadable = string(r.value[:min(headLen, len(r.value))])
			continue
		case "load":
			t := mine
			if t == nil {
				var begun bool
				if t, begun = c.join(at.keys[0]); !begun {
					t = &turn{done: make(chan struct{})} // its own; the other one sees the value soon
				}
			}
			mine = nil
			go c.loadFor(context.WithoutCancel(ctx), id, at, r.token, t)
			if err := wait(ctx, t.done, patience.C); err != nil {
				return hit, err
			}
			switch {
			case t.err != nil:
				return loaded, t.err
			case t.stored:
				return loaded, accept(t.text)
			case t.away != nil && cap(c.slots) == 0:
				return direct, unavailable("not stored", t.away)
			case t.away != nil:
				return direct, accept(t.text)
			}
			c.count.late.Add(1)
		case "held":
			if mine == nil {
				t, begun := c.join(at.keys[0])
				if !begun {
					if err := wait(ctx, t.done, patience.C); err != nil {
						return hit, err
					}
					if t.err != nil && (t.stored || !errors.Is(t.err, ErrNotFound)) {
						return hit, t.err
					}
					break
				}
				mine = t
			}
			next := time.NewTimer(min(rand.N(pause)+pause/2, r.left+time.Millisecond))
			err := wait(ctx, next.C, patience.C)
			next.Stop()
			if err != nil {
				return hit, err
			}
			pause = min(2*pause, maxPause)
		default:
			return hit, unavailable("get", fmt.Errorf("an unexpected reply %q", r.what))
		}
		how = waited
	}
}

// minPause and maxPause are how long a process waits, in the mean, before it asks again for a value
// that another server loads.
const (
	minPause = 2 * time.Millisecond
	maxPause = 50 * time.Millisecond
)

var errWaited = fmt.Errorf("%w: waited too long for who loads or updates it", ErrUnavailable)

// wait waits for done.
func wait[E any](ctx context.Context, done <-chan E, patience <-chan time.Time) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-patience:
		return errWaited
	}
}

// seen is what get.lua replies.
type seen struct {
	what  string
	value []byte
	left  time.Duration // of what holds it
	token string        // of the lease that the caller has
}

func (c *core) look(ctx context.Context, at place, unreadable string) (seen, error) {
	token := fresh()
	here := c.redis.Now().UnixMicro()
	raw, err := c.redis.Run(ctx, getScript, at.keys, c.form, token, fresh(), c.lease.Microseconds(), unreadable, c.versionTTL().Milliseconds())
	if err != nil {
		c.afterLoss(err, func() {
			_, _ = c.redis.Persistent().Run(context.WithoutCancel(ctx), keepScript, at.keys, c.form, token, "", 1, 0)
		})
		return seen{}, err
	}
	list, _ := raw.([]any)
	if len(list) != 4 {
		return seen{}, fmt.Errorf("an unexpected reply of type %T", raw)
	}
	now, _ := list[0].(int64)
	what, _ := list[1].(string)
	value, _ := list[2].(string)
	left, _ := list[3].(int64)
	c.ahead.Store(now - here) // or less: what is due is rather found too early, by the script then
	c.asked.Store(here)
	return seen{what, []byte(value), time.Duration(left) * time.Microsecond, token}, nil
}

// afterLoss has undo take back what a script may have done of which nobody has heard: an outage of a
// moment, or a caller who hangs up, would hold up others for a lease.
func (c *core) afterLoss(err error, undo func()) {
	if !errors.Is(err, roundtrip.ErrNotAsked) {
		time.AfterFunc(c.cfg.Timeout, undo)
	}
}

// answered reports whether an error is Redis's own.
func answered(err error) bool {
	var answer redis.Error
	return errors.As(err, &answer)
}

// read returns what is cached without asking the script, whose work is most of what a hit costs. It
// fails with errUnreadable, or an error of Redis, for all that is not plainly good: that is left to the
// script, which knows the time and what is to be done.
//
// A version is never used twice, and a value of one is only written while that is the version. So
// there was a moment during the call in which both were there, whichever was read first.
func (c *core) read(ctx context.Context, at place, now time.Time) ([]byte, error) {
	here := now.UnixMicro()
	if age := here - c.asked.Load(); !c.masters || age < 0 || age > askAgain.Microseconds() {
		return nil, errUnreadable
	}
	read := c.fromRedis
	if c.near && at.slot.Load() < here && c.allChanged.Load() < here {
		read = c.nearby
	}
	version, value, err := read(ctx, at)
	if err != nil {
		return nil, err
	}
	if len(value) < headLen || string(value[:16]) != version {
		return nil, errUnreadable
	}
	clock := here + c.ahead.Load()
	end, err := strconv.ParseInt(string(value[16:32]), 10, 64)
	if err != nil || end-clock > c.versionTTL().Microseconds() { // from before the clock was set back
		return nil, errUnreadable
	}
	due, err := strconv.ParseInt(string(value[32:headLen]), 10, 64)
	if err != nil || min(due, end) <= clock {
		return nil, errUnreadable
	}
	return c.unpack(at, value)
}

// nearby reads the version and the value of a place through the client's cache.
func (c *core) nearby(ctx context.Context, at place) (version string, value []byte, err error) {
	v, err := c.redis.HGet(ctx, at.keys[1], "v")
	if err != nil {
		return "", nil, err
	}
	value, err = c.redis.HGet(ctx, at.keys[0], c.form)
	return string(v), value, err
}

// fromRedis reads them from Redis itself, in one round trip.
func (c *core) fromRedis(ctx context.Context, at place) (version string, value []byte, err error) {
	ofPartition, ofID, err := c.redis.HMGetTwo(ctx, roundtrip.Fields{Key: at.keys[1], Names: theVersion}, roundtrip.Fields{Key: at.keys[0], Names: c.fields})
	switch {
	case err != nil:
		return "", nil, err
	case len(ofPartition) != 1 || len(ofID) != 2 || ofID[1] != nil: // an update is under way, or died
		return "", nil, errUnreadable
	}
	version, _ = ofPartition[0].(string)
	text, _ := ofID[0].(string)
	return version, []byte(text), nil
}

var theVersion = []string{"v"}

// askAgain is how old may be what is known of Redis's clock. For so long it may go unnoticed that a
// clock was set, and a value may be used past its end; most end all the same, as Redis removes them.
const askAgain = time.Minute

// loadFor loads a value and keeps it under a lease. t, if there is one, ends with that; without one
// it is a refresh.
func (c *core) loadFor(ctx context.Context, id string, at place, token string, t *turn) {
	refresh := t == nil
	if refresh {
		c.count.refreshes.Add(1)
		t = &turn{}
	} else {
		defer c.end(at.keys[0], t)
	}
	t.text, t.err = c.call(ctx, id, func() {})
	var value []byte
	ttl := c.cfg.TTL
	switch {
	case t.err == nil:
		value, t.err = c.pack(at, t.text)
	case errors.Is(t.err, ErrNotFound):
		if ttl = c.cfg.NotFoundTTL; ttl > 0 {
			value, _ = c.pack(at, nil)
		}
	case refresh:
		// The lease stays until its end: until then nobody tries again.
		c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "profile: not refreshed", slog.Any("error", t.err))
		return
	}
	var reply any
	reply, t.away = c.redis.Run(ctx, keepScript, at.keys, append([]any{c.form, token, value}, c.life(ttl)...)...)
	if t.stored = reply == int64(1); refresh && !t.stored && t.away == nil {
		c.count.late.Add(1)
	}
}

// life returns how long a value is kept and when it is due for a refresh, in µs.
func (c *core) life(ttl time.Duration) []any {
	kept := ttl - rand.N(ttl/10+1)
	due := kept
	if ttl == c.cfg.TTL { // what is not found is not refreshed
		due = max(0, kept-c.cfg.Refresh)
	}
	return []any{kept.Microseconds(), due.Microseconds()}
}

// call calls the loader, and then left, also if that is after it was given up.
func (c *core) call(ctx context.Context, id string, left func()) ([]byte, error) {
	c.count.loads.Add(1)
	ctx, cancel := context.WithTimeout(ctx, c.cfg.LoadTimeout)
	type outcome struct {
		text []byte
		err  error
	}
	done := make(chan outcome, 1)
	go func() {
		out := outcome{err: errors.New("profile: the loader has ended its goroutine")}
		defer cancel()
		defer func() {
			if p := recover(); p != nil {
				c.cfg.Logger.LogAttrs(ctx, slog.LevelError, "profile: the loader panicked", slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				out = outcome{err: fmt.Errorf("profile: the loader panicked: %v", p)}
			}
			left()
			done <- out
		}()
		out.text, out.err = c.load(ctx, id)
	}()
	select {
	case out := <-done:
		return out.text, out.err
	case <-ctx.Done():
	}
	select { // both at once
	case out := <-done:
		return out.text, out.err
	default:
		return nil, fmt.Errorf("profile: the loader has not returned within %v: %w", c.cfg.LoadTimeout, context.DeadlineExceeded)
	}
}
