package session

import (
	"context"
	"encoding/base64"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/push"
)

// Watch returns a context that ends with the session, whichever server ends it: then its
// cause is [ErrEnded], and [Manager.Ended] says why. It is for what outlives a request, such
// as server-sent events and WebSockets. A rotation, a Confirm, a Login of the same user, and the
// session's own EndOthers do not end it; a Login over a visitor's session does. After a rotation ctx
// goes on under the new ID. Without a session there is nothing to watch, and the context is ctx.
//
// So a stream that somebody else has opened with a copy of the cookie outlives the new ID that
// Confirm, Login and EndOthers give: none of them can tell whose it is. An EndAll and a Login in one
// request end it, too.
//
// Ends are heard of at once by a channel of Redis, on which each process has one subscription,
// and for certain within ten seconds. The watch is over when ctx is done.
//
// The error is [ErrUnavailable], [ErrNoSession], or ctx's own.
func (m *Manager) Watch(ctx context.Context) (context.Context, error) {
	st := m.state(ctx)
	if st == nil {
		return nil, ErrNoSession
	}
	st.mu.Lock()
	r, dead := st.record, st.dead
	st.mu.Unlock()
	within, end := context.WithCancelCause(ctx)
	switch {
	case dead:
		end(ErrEnded)
		return within, nil
	case r == nil:
		end(nil)
		return ctx, nil
	}
	w := &watch{at: r.id, handle: r.head.handle}
	w.end = func(why Reason) {
		st.lostSession(m, w.handle, why)
		end(ErrEnded)
	}
	w.seen = func(ctx context.Context, field string) { m.followed(ctx, st, w.handle, field) }
	ready := m.watches.add(w)
	context.AfterFunc(within, func() { m.watches.remove(w) })
	select { // subscribe before looking, or an end in between is not heard of
	case <-ready:
	case <-time.After(m.records.timeout):
	case <-ctx.Done():
	}
	if err := m.watches.look(ctx, r.id.owner, w); err != nil {
		end(err)
		return nil, err
	}
	return within, nil
}

// lostSession is lost, if the request has that session still.
func (st *state) lostSession(m *Manager, h handle, why Reason) {
	st.mu.Lock()
	epoch, its := st.epoch, st.record != nil && st.record.head.handle == h
	st.mu.Unlock()
	if its {
		st.lost(m, epoch, why)
	}
}

// followed has a request go on under the ID that another has given its session, while the old one
// leads there: only that tells the ID.
func (m *Manager) followed(ctx context.Context, st *state, h handle, field string) {
	st.mu.Lock()
	r, strayed := st.record, st.strayed == field
	st.mu.Unlock()
	if r == nil || r.head.handle != h || r.id.field == field || strayed {
		return
	}
	f, err := m.records.find(ctx, r.id)
	if err != nil {
		return // the next look tries again
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.record != r:
	case f.what != live || f.record.head.handle != h:
		st.strayed = field // no ID of this request leads there
	default:
		next := *r
		next.id, next.who.issued = f.record.id, f.record.who.issued
		st.record, st.rotate = &next, false // that has been done
		st.passed(f.through)
	}
}

// watch is one watched session.
type watch struct {
	handle handle
	end    func(Reason)
	seen   func(ctx context.Context, field string) // it stands there

	// Under the lock of watches:
	at       id          // where it was last
	deadline time.Time   // it is over, however much it is used
	timer    *time.Timer // when it expires, unless it is used; nil: not looked at yet
}

// watches are the sessions that this process watches. The feed runs while there are any.
type watches struct {
	records *records
	every   time.Duration

	mu    sync.Mutex
	of    map[owner]map[*watch]bool
	ready chan struct{} // closed when the feed listens; nil: it does not run
	stop  context.CancelFunc
	dirty map[owner]bool // that somebody has published
	due   chan struct{}  // of the feed that runs
}

const watchEvery = 10 * time.Second

func newWatches(s *records) *watches {
	return &watches{
		records: s, every: watchEvery,
		of: make(map[owner]map[*watch]bool), dirty: make(map[owner]bool),
	}
}

// add begins to watch, and returns what is closed when ends are heard of.
func (ws *watches) add(w *watch) <-chan struct{} {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	o := w.at.owner
	if ws.of[o] == nil {
		ws.of[o] = make(map[*watch]bool)
	}
	ws.of[o][w] = true
	if ws.ready == nil {
		var ctx context.Context
		ctx, ws.stop = context.WithCancel(context.Background())
		ready := make(chan struct{})
		ws.ready, ws.due = ready, make(chan struct{}, 1)
		feed := push.Feed{
			Client: ws.records.redis.Client(), Channel: ws.records.keys.ended(), Every: ws.every,
			Heard: ws.heard, Look: ws.lookAtAll, Logger: ws.records.log,
		}
		go feed.Run(ctx, func() { close(ready) })
		go ws.lookAtDirty(ctx, ws.due)
	}
	return ws.ready
}

func (ws *watches) remove(w *watch) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	o := w.at.owner
	delete(ws.of[o], w)
	if len(ws.of[o]) == 0 {
		delete(ws.of, o)
	}
	if w.timer != nil {
		w.timer.Stop()
	}
}

// heard takes a message: of whom a session has ended, and its handle.
func (ws *watches) heard(message string) {
	var o owner
	size := base64.RawURLEncoding.EncodedLen(len(o))
	if len(message) < size {
		return
	}
	if n, err := base64.RawURLEncoding.Decode(o[:], []byte(message[:size])); err != nil || n != len(o) {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.of[o] == nil {
		return
	}
	ws.dirty[o] = true
	select {
	case ws.due <- struct{}{}:
	default:
	}
}

// lookAtDirty looks at those of whom something was heard: once, however much it was.
func (ws *watches) lookAtDirty(ctx context.Context, due <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-due:
		}
		ws.mu.Lock()
		dirty := slices.Collect(maps.Keys(ws.dirty))
		clear(ws.dirty)
		ws.mu.Unlock()
		ws.lookAt(ctx, dirty)
	}
}

// lookAtAll looks at all. When there are none, the feed ends.
func (ws *watches) lookAtAll(ctx context.Context) {
	ws.mu.Lock()
	all := slices.Collect(maps.Keys(ws.of))
	if len(all) == 0 {
		ws.stop()
		ws.ready = nil
	}
	ws.mu.Unlock()
	ws.lookAt(ctx, all)
}

// lookers bounds how many owners are looked at at once: their scripts go to Redis together.
const lookers = 64

func (ws *watches) lookAt(ctx context.Context, owners []owner) {
	var wg sync.WaitGroup
	next := make(chan owner)
	for range min(lookers, len(owners)) {
		wg.Go(func() {
			for o := range next {
				_ = ws.look(ctx, o) // what fails is looked at again
			}
		})
	}
	for _, o := range owners {
		next <- o
	}
	close(next)
	wg.Wait()
}

// look finds out which watched sessions of an owner have ended: of those given, or of all.
func (ws *watches) look(ctx context.Context, o owner, only ...*watch) error {
	ws.mu.Lock()
	list := only
	if list == nil {
		list = slices.Collect(maps.Keys(ws.of[o]))
	}
	args := make([]any, 0, 2*len(list))
	for _, w := range list {
		args = append(args, w.at.field, string(w.handle[:]))
	}
	ws.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	stand, err := ws.records.stand(ctx, ws.records.of(o), args...)
	if err != nil {
		return err
	}
	for i, w := range list {
		if s := stand[i]; s.left > 0 {
			ws.stands(w, s)
			w.seen(ctx, s.field)
		} else {
			w.end(s.why)
		}
	}
	return nil
}

// stands notes where a watched session is, and looks again when it expires.
func (ws *watches) stands(w *watch, s stand) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.at.field, w.deadline = s.field, time.Now().Add(s.most)
	switch {
	case !ws.of[w.at.owner][w]: // removed
	case w.timer == nil:
		w.timer = time.AfterFunc(s.left, func() { ws.expire(w) })
	default:
		w.timer.Reset(s.left)
	}
}

// expire looks at a session whose time is over, unless it was used elsewhere. Where Redis cannot
// be asked it ends at its deadline in any case.
func (ws *watches) expire(w *watch) {
	if ws.look(context.Background(), w.at.owner, w) == nil {
		return
	}
	ws.mu.Lock()
	left := time.Until(w.deadline)
	if left > 0 && ws.of[w.at.owner][w] {
		w.timer.Reset(min(left, ws.every))
	}
	ws.mu.Unlock()
	if left <= 0 {
		w.end("")
	}
}

// stand is where a session stands that is known by its handle.
type stand struct {
	field string
	kind  kind
	times times
	left  time.Duration // until it expires if it is not used; 0: it is over
	most  time.Duration // however much it is used
	why   Reason        // it is over, if others ended it
}

// stand looks for sessions of the owner of an ID, each given by the field where it was and
// its handle. The error is that of the store.
func (s *records) stand(ctx context.Context, at id, sessions ...any) ([]stand, error) {
	a, err := s.run(ctx, watchScript, at, sessions...)
	if err != nil {
		return nil, err
	}
	list := make([]stand, len(sessions)/2)
	raw, _ := a.more.([]any)
	for i := range min(len(list), len(raw)/2) {
		field, _ := raw[2*i].(string)
		b, _ := raw[2*i+1].(string)
		var r record
		if field == "" || len(b) < headLen+timesLen {
			list[i].why = reasonOf([]byte(b), a.now)
			continue
		}
		if _, err := r.parseHead([]byte(b)); err != nil {
			s.reportUnreadable(ctx, err.Error())
			continue
		}
		l := s.lives[r.head.kind]
		if !l.over(&r, a.now) {
			most := l.deadline(&r)
			left := min(r.times.until, most) - a.now
			list[i] = stand{field: field, kind: r.head.kind, times: r.times, left: time.Duration(left) * time.Microsecond, most: time.Duration(most-a.now) * time.Microsecond}
		}
	}
	return list, nil
}

// Touch notes that the session is used, as a request does: a stream that lives on its own keeps
// its session alive by it. It asks Redis only when a note is due, some twenty times per
// IdleTimeout, so it may be called for each message.
//
// The error is [ErrEnded], [ErrNoSession], [ErrUnavailable], or ctx's own.
func (m *Manager) Touch(ctx context.Context) error {
	st := m.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	st.mu.Lock()
	r, used, dead, epoch, login := st.record, st.used, st.dead, st.epoch, st.login
	st.mu.Unlock()
	switch {
	case dead:
		return ErrEnded
	case r == nil || login != nil: // Finish notes it
		return nil
	case used == nil || used.head.handle != r.head.handle || used.times.touched < r.times.touched:
		used = r
	}
	now, err := m.records.loadedNow(ctx, r.id)
	if err != nil {
		return err
	}
	if !m.records.lives[used.head.kind].touchDue(used, now) {
		return nil
	}
	next := *used
	for range 3 { // a rotation may come in between
		a, err := m.records.touch(ctx, &next, m.records.used())
		if err != nil {
			return err
		}
		if a.outcome != refused {
			st.mu.Lock()
			st.used = &next
			st.mu.Unlock()
			return nil
		}
		// Its ID may have been rotated long ago.
		stand, err := m.records.stand(ctx, r.id, next.id.field, string(r.head.handle[:]))
		if err != nil {
			return err
		}
		if stand[0].left == 0 {
			st.lost(m, epoch, stand[0].why)
			return ErrEnded
		}
		next.id.field, next.head.kind, next.times = stand[0].field, stand[0].kind, stand[0].times
	}
	return ErrConflict
}
