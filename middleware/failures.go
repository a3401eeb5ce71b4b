package middleware

import (
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// waiting is the requests of one RateLimit with FailuresOnly that found no permit left. Some of
// those that hold them may be about to succeed, here or on another server. A success here wakes
// one; of those elsewhere they learn by asking again.
//
// Once a request has waited for maxWait, nothing has come back meanwhile, and no handler is under
// way here, what is spent are failures: until a permit is due, others of its key are refused at
// once. So a success that takes longer on another server may come too late for those who wait.
type waiting struct {
	mu   sync.Mutex
	keys map[string]*queue
	n    int // waiting, of all keys
}

type queue struct {
	n     int           // that wait
	under int           // handlers under way
	freed chan struct{} // a token for each permit that came back
	moved time.Time     // when one did, or somebody got in
	final time.Time     // until then denials are final
}

const (
	maxWait    = 2 * time.Second
	firstAsk   = 50 * time.Millisecond
	maxQueue   = 64   // that wait for one key
	maxQueued  = 1024 // that wait in all
	maxWaiting = 1024 // keys; then those that are final are forgotten, and somebody waits again
)

// wait has the denial d become what it is in the end.
func (w *waiting) wait(l *RateLimit, d *Decision) {
	if d.Result.RetryAfter < 0 { // no permit will do
		return
	}
	q, full := w.enter(d.Key)
	switch {
	case full:
		d.Result.RetryAfter = min(d.Result.RetryAfter, maxWait)
		return
	case q == nil:
		return
	}
	ctx := d.Request.Context()
	until := time.Now().Add(maxWait)
	pause := firstAsk
	ask := time.NewTimer(pause)
	defer ask.Stop()
	for d.Status == http.StatusTooManyRequests && time.Now().Before(until) {
		select {
		case <-ctx.Done():
			d.Err = ctx.Err()
			d.conclude(false)
			continue
		case <-q.freed:
		case <-ask.C:
			pause = min(2*pause, 8*firstAsk)
			ask.Reset(min(pause/2+rand.N(pause), time.Until(until)))
			// To ask costs nothing, and is not held against the client.
			if res, err := d.limiter.Take(ctx, d.Key, 0); err == nil && !res.Allowed {
				if d.Cost == 1 {
					d.Result = res // of now
				}
				continue
			}
		}
		l.take(d)
	}
	w.leave(q, d)
}

// of returns the queue of key. It is called with mu held.
func (w *waiting) of(key string) *queue {
	if q := w.keys[key]; q != nil {
		return q
	}
	if w.keys == nil {
		w.keys = make(map[string]*queue)
	}
	if len(w.keys) >= maxWaiting {
		for k, other := range w.keys {
			if other.idle() {
				delete(w.keys, k)
			}
		}
	}
	q := &queue{freed: make(chan struct{}, maxQueue)}
	w.keys[key] = q
	return q
}

// idle reports whether nobody waits for a permit, or holds one.
func (q *queue) idle() bool { return q.n == 0 && q.under == 0 }

// forget drops the queue of key, if there is no reason to keep it. It is called with mu held.
func (w *waiting) forget(key string, q *queue) {
	if q.idle() && !time.Now().Before(q.final) {
		delete(w.keys, key)
	}
}

// begin and end say that a handler is under way.
func (w *waiting) begin(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of(key).under++
}

func (w *waiting) end(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.keys[key]
	q.under--
	w.forget(key, q)
}

// enter has a request wait for a permit of key. It returns nil if denials are final, or where
// too many wait, which is full.
func (w *waiting) enter(key string) (q *queue, full bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q = w.of(key)
	switch {
	case time.Now().Before(q.final):
		return nil, false
	case w.n >= maxQueued || q.n >= maxQueue:
		w.forget(key, q)
		return nil, true
	}
	q.n++
	w.n++
	return q, false
}

// leave ends a wait, whose outcome is d. It is told when to come back: soon, if permits do.
func (w *waiting) leave(q *queue, d *Decision) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q.n--
	w.n--
	now := time.Now()
	switch {
	case d.Status != http.StatusTooManyRequests:
		q.moved = now
	case q.under > 0 || now.Sub(q.moved) < maxWait:
		d.Result.RetryAfter = min(d.Result.RetryAfter, maxWait)
	default:
		q.final = now.Add(d.Result.RetryAfter)
	}
	w.forget(d.Key, q)
}

// free says that permits of key came back.
func (w *waiting) free(key string, permits int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.keys[key]
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
