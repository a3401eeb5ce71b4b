package middleware

import (
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/untold"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// waiting is the requests of one RateLimit with FailuresOnly that found no permit left. Some of
// those that hold them may be about to succeed, here or on another server. A success here wakes
// one; of those elsewhere they learn by asking again.
//
// Once a request has waited for maxWait, nothing has come back meanwhile, and no handler is under
// way here, what is spent are failures: until a permit is due, others of its key are refused at
// once. So a success that takes longer on another server may come too late for those who wait.
//
// A Penalty of the limiter notes a denial only once the response says it. Takes of a request that
// still waits have a context of package untold.
type waiting struct {
	mu     sync.Mutex
	queues map[counted]*queue
	many   int // queues, at which those that nobody needs are forgotten
	n      int // waiting, in all
}

// counted is what permits are counted for.
type counted struct {
	policy string
	limit  ratelimit.Limit
	key    string
}

func (d *Decision) counted() counted { return counted{d.Result.Policy, d.Result.Limit, d.Key} }

type queue struct {
	n     int           // that wait
	under int           // handlers under way
	freed chan struct{} // a token for each permit that came back
	moved time.Time     // when one did, or somebody got in
	final time.Time     // until then denials are final
	cost  int           // of requests of at least this cost
}

const (
	maxWait    = 2 * time.Second
	firstAsk   = 50 * time.Millisecond
	maxQueue   = 64   // that wait for one key
	maxQueued  = 1024 // that wait in all
	maxWaiting = 1024 // queues; then those that are final are forgotten, and somebody waits again
)

// take is RateLimit.take of a request that may wait.
func (w *waiting) take(l *RateLimit, d *Decision) {
	ctx := d.Request.Context()
	l.take(untold.Context(ctx), d)
	if d.waits() && w.wait(l, d) {
		l.take(ctx, d)
	}
}

// waits reports whether d is a denial that ends when others succeed.
func (d *Decision) waits() bool {
	return d.Status == http.StatusTooManyRequests && d.Result.RetryAfter != ratelimit.Never &&
		d.Result.Source != ratelimit.FromRule && !d.Result.Banned
}

// wait has the denial d become what it is in the end. It reports whether that is final: what is
// spent are failures.
func (w *waiting) wait(l *RateLimit, d *Decision) (final bool) {
	of := d.counted()
	q, full := w.enter(of, d.Cost)
	switch {
	case full:
		d.Result.RetryAfter = min(d.Result.RetryAfter, maxWait)
		return false
	case q == nil:
		return true
	}
	defer func() { final = w.leave(q, of, d) }()
	ctx := untold.Context(d.Request.Context())
	until := time.Now().Add(maxWait)
	pause := firstAsk
	ask := time.NewTimer(pause)
	defer ask.Stop()
	for d.waits() && time.Now().Before(until) {
		select {
		case <-ctx.Done():
			d.Err = ctx.Err()
			d.conclude(false)
			continue
		case <-q.freed:
		case <-ask.C:
			pause = min(2*pause, 8*firstAsk)
			ask.Reset(min(pause/2+rand.N(pause), time.Until(until)))
			// To ask costs nothing.
			if res, err := d.limiter.Take(ctx, d.Key, 0); err == nil && !res.Allowed {
				if d.Cost == 1 {
					d.Result = res // of now
				}
				continue
			}
		}
		l.take(ctx, d)
	}
	return false
}

// of returns a queue. It is called with mu held.
func (w *waiting) of(of counted) *queue {
	if q := w.queues[of]; q != nil {
		return q
	}
	if w.queues == nil {
		w.queues, w.many = make(map[counted]*queue), maxWaiting
	}
	if len(w.queues) >= w.many {
		for k, other := range w.queues {
			if other.idle() {
				delete(w.queues, k)
			}
		}
		w.many = max(maxWaiting, 2*len(w.queues)) // or each would look through all that are in use
	}
	q := &queue{freed: make(chan struct{}, maxQueue)}
	w.queues[of] = q
	return q
}

// idle reports whether nobody waits for a permit, or holds one.
func (q *queue) idle() bool { return q.n == 0 && q.under == 0 }

// forget drops a queue, if there is no reason to keep it. It is called with mu held.
func (w *waiting) forget(of counted, q *queue) {
	if q.idle() && !time.Now().Before(q.final) {
		delete(w.queues, of)
	}
}

// begin and end say that a handler is under way. Somebody got in, so that denials are not
// final any more: the limit may have been reset.
func (w *waiting) begin(of counted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.of(of)
	q.under++
	q.final = time.Time{}
}

func (w *waiting) end(of counted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queues[of]
	q.under--
	w.forget(of, q)
}

// enter has a request wait for permits. It returns nil if denials are final, or where too many
// wait, which is full.
func (w *waiting) enter(of counted, cost int) (q *queue, full bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q = w.of(of)
	switch {
	case time.Now().Before(q.final) && cost >= q.cost:
		return nil, false
	case w.n >= maxQueued || q.n >= maxQueue:
		w.forget(of, q)
		return nil, true
	}
	q.n++
	w.n++
	return q, false
}

// leave ends a wait, whose outcome is d, and reports whether that is final. A denial that is not has a
// short RetryAfter, as permits may come back.
func (w *waiting) leave(q *queue, of counted, d *Decision) (final bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q.n--
	w.n--
	now := time.Now()
	switch {
	case d.Status == 0:
		q.moved = now
	case !d.waits(): // its client has hung up, or a rule denies
	case q.under > 0 || now.Sub(q.moved) < maxWait:
		d.Result.RetryAfter = min(d.Result.RetryAfter, maxWait)
	default:
		q.final, q.cost, final = now.Add(d.Result.RetryAfter), d.Cost, true
	}
	w.forget(of, q)
	return final
}

// free says that permits came back.
func (w *waiting) free(of counted, permits int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queues[of]
	if q == nil {
		return
	}
	q.moved, q.final = time.Now(), time.Time{}
	for range min(permits, q.n) {
		select {
		case q.freed <- struct{}{}:
		default:
		}
	}
}
