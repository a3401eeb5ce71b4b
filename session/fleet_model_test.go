package session_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatehouse-go/gatehouse/session"
)

// fleetModel judges what the requests of a fleet are answered. It knows nothing of records and
// scripts: it sees what was asked and what was answered, and when, on one clock. What overlaps
// in time may have happened in either order, so it claims only what holds in both.
//
// All times are those of the parent process, since the start of the fleet; Redis's own clock
// runs as fast, but shows another time.
type fleetModel struct {
	mu      sync.Mutex
	era     fleetEra
	start   time.Time
	jumped  time.Duration // by which the fleet's clock has been moved
	n       int
	cookies map[string]*fleetCookie
	puts    map[string]*fleetPut // by mark
	keys    map[string]*fleetPut // by key, without the shared one
	over    []*fleetSession      // that have ended, to be asked for again

	counts map[string]int
	faults []string
}

const never = time.Duration(math.MaxInt64)

// late is how long after an error or the death of its process something that a request has
// sent may still reach Redis.
const late = 1500 * time.Millisecond

// fleetSession is what a browser would call one session: from its first put, or a login, until
// a logout or the next login. A rotation does not end it.
type fleetSession struct {
	n      int
	user   string
	handle string
	auth   int64
	from   *fleetSession // whose values it has taken along; nil: none
	kin    *fleetKin
	by     *fleetRequest // that began it
	unsure bool          // by was answered with an error and the cookie

	began, stood time.Duration // between them it came into being; stood is never until an answer says so
	endBegan     time.Duration // the end that deadAt is about was not before
	deadAt       time.Duration // from then on it is surely over
	why          string        // it is over
	buried       bool          // it lived until it was ended, so that a tombstone stands

	open     int           // requests that may note a use
	lastUse  time.Duration // the last use may have been noted then
	sureUse  time.Duration // a use was noted no earlier
	idle     bool          // nobody has used it for too long
	turns    []*fleetAct   // that may have rotated its ID
	cookies  []*fleetCookie
	puts     []*fleetPut // acknowledged, of keys of their own
	shared   []*fleetPut // acknowledged, of the shared key
	clears   []*fleetAct
	next     []fleetNext
	survived string // what it is to have survived, until somebody has looked
	log      []*fleetRequest
}

// fleetKin are sessions of one user that took each other's place, where a logout or login of one
// may end another.
type fleetKin struct{ ends []*fleetAct }

// fleetAct is what a request may have done to a session.
type fleetAct struct {
	by    *fleetRequest
	began time.Duration
	off   bool // it has turned out that it was not done
}

// fleetNext says that a request has put another session in the place of one.
type fleetNext struct {
	by    *fleetRequest
	began time.Duration // of its commit
}

// fleetCookie is a cookie, as it was set.
type fleetCookie struct {
	n             int
	value         string
	of            *fleetSession
	began, issued time.Duration
	goneFrom      time.Duration // its ID was rotated, and the Grace is over
	next          []fleetNext   // of requests that found nothing there
}

// fleetPut is a put of a value that is put but once.
type fleetPut struct {
	key, mark string
	by        *fleetRequest
	began     time.Duration
	in        []*fleetSession // where it may be
	acked     time.Duration   // never: not, or not yet
	maybeGone bool            // somebody has begun to remove it
	removed   time.Duration   // acknowledged
	remover   *fleetSession
	doubtful  bool // a commit of it failed
	undone    bool // its request came to nothing
}

// fleetRequest is one request.
type fleetRequest struct {
	n                       int
	b                       *fleetBrowser // to which the answer goes; nil: to nobody
	who                     string
	p                       *fleetProc
	cookie                  string
	acts                    []fleetDo
	hold                    int // index in acts, -1: none
	die                     *fleetDeath
	sent, held, gone, ended time.Duration
	killed                  bool
	died                    bool      // at the point that die names
	clean                   bool      // nothing was wrong with the network
	told                    time.Time // when its process was last told of it
	waits                   bool      // it is held
	seq                     uint64

	c       *fleetCookie
	x       *fleetSession // of the cookie
	using   bool
	saw     bool
	alive   bool
	cur     *fleetSession
	fresh   []*fleetSession // of visitors, one more after each logout
	at      int             // acts whose results are known
	pending bool            // a login waits for the response
	changed bool            // logged in or out
	begun   bool            // a commit in the handler has begun its session
	puts    map[int]*fleetPut
	mine    []*fleetPut // not acknowledged yet
	gones   []*fleetPut // removed, not acknowledged yet
	effects []*fleetAct // ends and rotations
	answer  *fleetAnswer
	set     *fleetCookie

	heldCh, doneCh chan struct{}
}

func newFleetModel(era fleetEra) *fleetModel {
	return &fleetModel{
		era: era, start: time.Now(),
		cookies: map[string]*fleetCookie{}, puts: map[string]*fleetPut{}, keys: map[string]*fleetPut{},
		counts: map[string]int{},
	}
}

func (m *fleetModel) now() time.Duration { return time.Since(m.start) + m.jumped }

func (m *fleetModel) session(by *fleetRequest) *fleetSession {
	m.n++
	return &fleetSession{
		n: m.n, by: by, kin: &fleetKin{}, began: by.sent, stood: never, deadAt: never,
		lastUse: by.sent, sureUse: by.sent,
	}
}

// effective is when what a request has sent was surely done, or not done.
func (r *fleetRequest) effective() time.Duration {
	switch {
	case r.ended == never:
		return never
	case r.answer != nil && r.answer.fine():
		return r.ended
	}
	return r.ended + late
}

// phase is when the act at an index began, or the commit of the response for len(r.acts).
func (r *fleetRequest) phase(i int) time.Duration {
	if r.hold >= 0 && i > r.hold {
		return r.gone
	}
	return r.sent
}

func (r *fleetRequest) has(do string) bool {
	return tried(r.acts, do)
}

func tried(acts []fleetDo, do string) bool {
	return slices.ContainsFunc(acts, func(a fleetDo) bool { return a.Do == do })
}

// begin notes a request that is about to be sent.
func (m *fleetModel) begin(r *fleetRequest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n++
	r.n, r.sent, r.held, r.gone, r.ended = m.n, m.now(), never, never, never
	r.puts = map[int]*fleetPut{}
	r.heldCh, r.doneCh = make(chan struct{}), make(chan struct{})
	if r.hold < 0 {
		r.gone = r.sent
	}
	r.fresh = []*fleetSession{m.session(r)}
	if r.c = m.cookies[r.cookie]; r.c != nil {
		r.x = r.c.of
		r.x.log = append(r.x.log, r)
		m.use(r)
	}
	for i, a := range r.acts {
		m.counts["act: "+cmp.Or(a.Do, "read")]++
		if a.Do == "put" {
			p := &fleetPut{key: a.Key, mark: a.Mark, by: r, acked: never, removed: never, in: r.fresh[:1:1]}
			if r.x != nil {
				p.in = append(p.in, r.x)
			}
			r.puts[i] = p
			m.puts[p.mark] = p
			if p.key != fleetShared {
				m.keys[p.key] = p
			}
		}
	}
	if len(r.acts) == 0 {
		m.counts["act: read"]++
	}
	m.intend(r, false)
}

// intend notes what a request is about to do before or after its hold.
func (m *fleetModel) intend(r *fleetRequest, after bool) {
	now := m.now()
	finishing := r.hold < 0 || after
	panics := r.has("panic")
	for i, a := range r.acts {
		if (r.hold >= 0 && i > r.hold) != after {
			continue
		}
		switch a.Do {
		case "put":
			r.puts[i].began = now
		case "remove":
			if p := m.keys[a.Key]; p != nil {
				p.maybeGone = true
			}
		}
		if r.x == nil {
			continue
		}
		switch a.Do {
		case "logout":
			m.effect(r, &fleetAct{by: r, began: now}, &r.x.kin.ends)
		case "clear":
			m.effect(r, &fleetAct{by: r, began: now}, &r.x.clears)
		}
	}
	if r.x == nil || !finishing || panics {
		return
	}
	for _, a := range r.acts {
		if a.Do == "login" {
			m.effect(r, &fleetAct{by: r, began: now}, &r.x.kin.ends)
		}
	}
	if r.has("rotate") || m.era.every > 0 {
		m.effect(r, &fleetAct{by: r, began: now}, &r.x.turns)
	}
}

func (m *fleetModel) effect(r *fleetRequest, a *fleetAct, list *[]*fleetAct) {
	*list = append(*list, a)
	r.effects = append(r.effects, a)
}

// use notes that a request may note a use from now on, if its session is not over by now.
func (m *fleetModel) use(r *fleetRequest) {
	x, now := r.x, m.now()
	if x.open == 0 && !x.idle && now > x.lastUse+m.era.longestIdle() {
		x.idle = true
		m.end(x, now, now, "nobody used it")
	}
	if !x.idle {
		r.using = true
		x.open++
	}
}

func (m *fleetModel) unuse(r *fleetRequest, at time.Duration) {
	if r.using {
		r.using = false
		r.x.open--
		r.x.lastUse = max(r.x.lastUse, at)
	}
}

// end notes that a session is surely over.
func (m *fleetModel) end(x *fleetSession, began, at time.Duration, why string) {
	if at >= x.deadAt {
		return
	}
	if x.deadAt == never {
		m.over = append(m.over, x)
	}
	x.endBegan, x.deadAt, x.why = began, at, why
}

// onHeld takes what a request has done until its hold.
func (m *fleetModel) onHeld(r *fleetRequest, a *fleetAnswer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r.held = m.now()
	m.sees(r, a.Saw)
	m.settle(r, a)
	if r.x != nil {
		m.unuse(r, r.held)
	}
	close(r.heldCh)
}

// release notes that a held request is about to go on.
func (m *fleetModel) release(r *fleetRequest) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.ended != never { // its process has died
		return false
	}
	r.gone = m.now()
	if r.x != nil {
		m.use(r)
	}
	m.intend(r, true)
	return true
}

// mustLive reports whether a session surely is there for a request with a cookie of it, until
// a time. Ends that others have only begun forbid to say so.
func (m *fleetModel) mustLive(x *fleetSession, c *fleetCookie, r *fleetRequest, until time.Duration) bool {
	e := m.era
	switch {
	case x.stood == never || until >= x.deadAt:
		return false
	case m.expiring(x, until):
		return false
	case x.unsure && until >= x.began+e.grace-e.slack:
		return false
	case until >= m.leadsUntil(c, r):
		return false
	}
	return !m.contested(x, x.by, r, x.began, until)
}

// contested reports whether somebody may have ended a session between two times, other than
// two requests.
func (m *fleetModel) contested(x *fleetSession, but, r *fleetRequest, from, until time.Duration) bool {
	for _, e := range x.kin.ends {
		if !e.off && e.by != but && e.by != r && e.began <= until && e.by.effective() >= from {
			return true
		}
	}
	return false
}

// leadsUntil is until when the ID of a cookie surely leads to its session, if that lives.
func (m *fleetModel) leadsUntil(c *fleetCookie, r *fleetRequest) time.Duration {
	e, until := m.era, never
	for _, t := range c.of.turns {
		if !t.off && t.by != r && t.by.set != c && t.by.effective() >= c.began {
			until = min(until, t.began+e.grace-e.slack)
		}
	}
	return until
}

// sees judges what a request has found when it was loaded.
func (m *fleetModel) sees(r *fleetRequest, v *fleetView) {
	if r.saw || v == nil {
		return
	}
	r.saw = true
	x, e, now := r.x, m.era, m.now()
	r.alive = v.Handle != "" || v.User != "" || len(v.Values) > 0
	r.cur = r.fresh[0]
	if x == nil {
		if r.alive {
			m.fault(r, "a cookie that nobody was given leads to %+v", *v)
		}
		return
	}
	dead := ""
	switch {
	case r.sent >= r.c.goneFrom:
		dead = "its ID was rotated, and the Grace is over"
	case r.sent >= x.deadAt && !x.idle:
		dead = x.why
	case x.stood < never && r.sent >= x.stood+e.longestLife():
		dead = "its lifetime is over"
	case x.idle:
		dead = "nobody used it"
	}
	if dead != "" {
		m.counts["check: over: "+dead]++
		if r.alive {
			m.fault(r, "a session is back: %s", dead)
		}
		return
	}
	// A login of this browser is under way, or done: its old cookies do not see it.
	if len(x.next) > 0 || slices.ContainsFunc(x.kin.ends, func(e *fleetAct) bool { return !e.off && e.by != r && e.by.has("login") }) {
		m.counts["check: an old cookie beside a login"]++
	}
	must := m.mustLive(x, r.c, r, now)
	if !r.alive {
		if must {
			m.fault(r, "session s%d of %q is lost%s", x.n, x.user, prefixed(": it should have survived ", x.survived))
		}
		return
	}
	r.cur = x
	if must {
		if x.user != "" {
			m.counts["check: stays logged in"]++
		}
		if m.leadsUntil(r.c, r) != never {
			m.counts["check: a rotated ID leads on"]++
		}
		if x.unsure {
			m.counts["check: survived: a login that was answered with an error"]++
		}
		if x.survived != "" {
			m.counts["check: survived: "+x.survived]++
			x.survived = ""
		}
	}
	if v.Handle != x.handle || v.User != x.user || v.Auth != x.auth {
		m.fault(r, "a cookie of s%d (%q, authenticated %d, handle %s) shows %+v", x.n, x.user, x.auth, x.handle, *v)
	}
	m.values(r, x, v)
}

// values judges the values that a request has found.
func (m *fleetModel) values(r *fleetRequest, x *fleetSession, v *fleetView) {
	now := m.now()
	var line []*fleetSession
	for s := x; s != nil; s = s.from {
		line = append(line, s)
	}
	for key, value := range v.Values {
		user, mark, ok := strings.Cut(value, ";")
		p := m.puts[mark]
		switch {
		case !ok:
			m.fault(r, "value %q of %s is torn", value, key)
			continue
		case p == nil:
			m.fault(r, "value %q of %s is of a session long gone", value, key)
			continue
		case p.key != key:
			m.fault(r, "value %q of %s was put under %s", value, key, p.key)
		case user != "" && user != v.User:
			m.fault(r, "%q sees %q, of another user", v.User, value)
		case p.undone:
			m.fault(r, "value %q of %s is there, though its request #%d came to nothing", value, key, p.by.n)
		case !slices.ContainsFunc(p.in, func(s *fleetSession) bool { return slices.Contains(line, s) }):
			m.fault(r, "value %q of %s is of another session", value, key)
		}
		if user != "" {
			m.counts["check: a user's own value"]++
		}
		if key == fleetShared {
			continue
		}
		if p.removed <= r.sent && m.included(p.removed, p.remover, x) {
			m.fault(r, "%s is there, though its removal was acknowledged", key)
		}
	}
	for _, s := range line {
		kept := s.puts[:0]
		for _, p := range s.puts {
			if p.removed <= r.sent && p.remover == s && s == x {
				m.counts["check: a removed key is gone"]++
				continue // nothing is to be kept any more; that it is gone was looked at above
			}
			kept = append(kept, p)
			if p.maybeGone || p.acked > r.sent || m.cleared(line, p, now) || !m.included(p.acked, s, x) {
				continue
			}
			m.counts["check: an acknowledged put is there"]++
			for y := x; y != s; y = y.from {
				if p.acked > y.by.sent {
					m.counts["check: a put acknowledged during a login is in it"]++
				}
			}
			if _, ok := v.Values[p.key]; !ok {
				m.fault(r, "%s of #%d, acknowledged at %s in s%d, is lost", p.key, p.by.n, clock(p.acked), s.n)
			}
		}
		s.puts = kept
	}
	// Of the shared key: nothing that was over before an acknowledged put of it began.
	var newest *fleetPut
	for _, s := range line {
		for _, p := range s.shared {
			if p.acked <= r.sent && !m.cleared(line, p, now) && m.included(p.acked, s, x) && (newest == nil || p.began > newest.began) {
				newest = p
			}
		}
	}
	if newest == nil {
		return
	}
	m.counts["check: the last put of a key wins"]++
	value, ok := v.Values[fleetShared]
	if !ok {
		m.fault(r, "the shared key of #%d, acknowledged at %s, is lost", newest.by.n, clock(newest.acked))
		return
	}
	_, mark, _ := strings.Cut(value, ";")
	if p := m.puts[mark]; p != nil && p.acked < newest.began && p.by.effective() < newest.began {
		m.fault(r, "the shared key is that of #%d, over since %s, and not that of #%d, begun at %s", p.by.n, clock(p.acked), newest.by.n, clock(newest.began))
	}
}

func (m *fleetModel) cleared(line []*fleetSession, p *fleetPut, now time.Duration) bool {
	for _, s := range line {
		for _, c := range s.clears {
			if !c.off && c.began <= now && c.by.effective() >= p.began {
				return true
			}
		}
	}
	return false
}

// included reports whether what was acknowledged in one session at a time is surely in another
// that has, over logins, come of it.
func (m *fleetModel) included(at time.Duration, in, x *fleetSession) bool {
	for s := x; s != in; s = s.from {
		if s == nil || s.from == nil {
			return false
		}
		if at > s.by.sent && (s.unsure || m.expiring(s.from, s.by.ended) || m.contested(s.from, s.by, nil, s.by.sent, s.by.ended)) {
			return false
		}
	}
	return true
}

// expiring reports whether the time of a session may be over.
func (m *fleetModel) expiring(x *fleetSession, at time.Duration) bool {
	return at >= x.began+m.era.lifetime-m.era.slack || at >= x.sureUse+m.era.idle-m.era.slack
}

// settle takes the results of a request's acts, as far as they are known.
func (m *fleetModel) settle(r *fleetRequest, a *fleetAnswer) {
	now := m.now()
	for ; r.at < len(a.Acts); r.at++ {
		act, res := r.acts[r.at], a.Acts[r.at]
		failed := res.Err != ""
		if failed {
			m.counts["failed: "+act.Do]++
		}
		switch act.Do {
		case "put":
			p := r.puts[r.at]
			p.in = []*fleetSession{r.cur}
			r.mine = append(r.mine, p)
		case "remove":
			if p := m.keys[act.Key]; p != nil && res.Found {
				r.gones = append(r.gones, p)
			}
		case "commit":
			switch {
			case !failed && !r.pending:
				m.ack(r, r.cur, now)
				r.begun = r.begun || r.cur == r.fresh[len(r.fresh)-1] && len(r.cur.puts)+len(r.cur.shared) > 0
			case res.Err == session.ErrEnded.Error() || res.Err == session.ErrMoved.Error(): // what it held is not in what comes
				r.mine, r.gones, r.pending = nil, nil, false
				r.cur = m.session(r)
			case failed:
				for _, p := range r.mine {
					p.doubtful = true
				}
			}
		case "login":
			if failed {
				continue
			}
			l := m.session(r)
			l.began = r.phase(r.at)
			l.user, l.auth, l.handle = res.View.User, res.View.Auth, res.View.Handle
			if l.user != act.User || l.handle == "" || l.auth == 0 {
				m.fault(r, "login of %q: %+v", act.User, *res.View)
			}
			if r.cur.user == "" || r.cur.user == l.user {
				l.from = r.cur
				for _, p := range r.mine {
					p.in = append(p.in, l)
				}
			} else {
				r.mine, r.gones = nil, nil
			}
			if r.cur.user == l.user {
				l.kin = r.cur.kin
				switch {
				case l.handle == r.cur.handle, r.cur != r.x, tried(r.acts[:r.at], "logout"): // one that failed may have ended it
				case r.x.why == "" && r.x.deadAt == never && !m.expiring(r.x, now) && !m.contested(r.x, r, r, 0, now):
					m.fault(r, "a login of the same user has handle %s, not %s, which stands", l.handle, r.x.handle)
				}
			}
			r.cur, r.pending, r.changed = l, true, true
		case "logout":
			if failed {
				continue
			}
			m.counts["logouts"]++
			if r.alive {
				r.x.buried = r.x.buried || r.x.deadAt == never && now < r.x.sureUse+m.era.idle-m.era.slack && now < r.x.began+m.era.lifetime-m.era.slack
				m.end(r.x, r.phase(r.at), now, "it was logged out")
			}
			v := m.session(r)
			r.fresh = append(r.fresh, v)
			r.cur, r.pending, r.changed = v, false, true
			r.mine, r.gones = nil, nil
		}
	}
}

// ack notes that what a request has changed so far was saved in a session.
func (m *fleetModel) ack(r *fleetRequest, x *fleetSession, now time.Duration) {
	for _, p := range r.mine {
		if p.acked != never {
			continue
		}
		s := p.in[len(p.in)-1]
		p.acked = now
		if p.key == fleetShared {
			s.shared = append(s.shared, p)
			if len(s.shared) > 16 {
				s.shared = slices.Delete(s.shared, 0, 1)
			}
		} else {
			s.puts = append(s.puts, p)
		}
	}
	for _, p := range r.gones {
		if p.removed == never {
			p.removed, p.remover = now, x
		}
	}
	r.mine, r.gones = nil, nil
}

// onEnd takes the answer of a request; nil: its process died first.
func (m *fleetModel) onEnd(r *fleetRequest, a *fleetAnswer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	r.ended, r.answer, r.killed = now, a, a == nil
	r.clean = r.clean && r.p.faults.Load() == r.seq
	defer close(r.doneCh)
	defer func() {
		if r.x != nil {
			m.unuse(r, r.effective())
		}
	}()
	if a == nil {
		m.counts["requests whose process died"]++
		if r.died && r.die.before(r) {
			m.call(r, "login")
			m.survives(r, "a process that died in a login")
		}
		return
	}
	m.counts["answers"]++
	if !m.era.faults {
		for _, err := range append([]string{a.Load, a.Finish}, a.errors()...) {
			if strings.Contains(err, session.ErrUnavailable.Error()) {
				m.fault(r, "it failed, though nothing was wrong")
			}
		}
	}
	if a.Load != "" {
		m.counts["failed: load"]++
		for _, e := range r.effects {
			e.off = true
		}
		for _, p := range r.puts {
			p.undone = true
		}
		return
	}
	m.sees(r, a.Saw)
	m.settle(r, a)
	x, last := r.x, r.cur
	switch {
	case a.Panicked:
		m.call(r, "login", "rotate")
		if r.pending {
			m.survives(r, "a handler that panicked after its login")
		}
		for _, p := range r.mine {
			p.undone = !p.doubtful
		}
	case a.Finish != "":
		m.counts["failed: finish"]++
		if r.pending && a.Action == fleetKeep {
			m.call(r, "login")
			m.survives(r, "a login that failed")
		}
		if r.pending {
			last.unsure = true
		}
	case a.After.Handle != "":
		m.ack(r, last, now)
		if r.pending {
			m.counts["logins"]++
			if a.Action != fleetSet {
				m.fault(r, "a login without a cookie")
			}
			if r.alive {
				x.buried = x.buried || x.deadAt == never
				m.end(x, r.phase(len(r.acts)), now, "a login took its place")
			}
		}
		// A use that could not be noted in time fails no request.
		if r.clean && a.fine() && last == x && now-r.gone < m.era.timeout() {
			x.sureUse = max(x.sureUse, r.sent)
		}
	default: // ended meanwhile, or nothing to save
		if r.pending || len(r.mine) > 0 {
			m.counts["requests whose session ended"]++
		}
	}
	if v := a.After; !r.changed && (v.User != "" && (!r.alive || v.User != x.user) || r.alive && v.Handle != "" && v.Handle != x.handle) {
		m.fault(r, "after the request: %+v", *v)
	}
	m.cookie(r, a)
	if r.b != nil {
		r.b.answered(r)
	}
}

// call takes back what a request has not done after all.
func (m *fleetModel) call(r *fleetRequest, acts ...string) {
	if slices.Contains(acts, "rotate") && r.x != nil {
		for _, t := range r.x.turns {
			t.off = t.off || t.by == r
		}
	}
	if r.x == nil || r.has("logout") {
		return
	}
	for _, e := range r.x.kin.ends {
		e.off = e.off || e.by == r
	}
}

// survives says what the session of a request has to survive.
func (m *fleetModel) survives(r *fleetRequest, what string) {
	if r.x != nil && (r.alive || !r.saw) && !r.has("logout") {
		r.x.survived = what
	}
}

// cookie judges what a response does with the cookie.
func (m *fleetModel) cookie(r *fleetRequest, a *fleetAnswer) {
	e, now, x, last := m.era, m.now(), r.x, r.cur
	commit := r.phase(len(r.acts))
	if !r.changed && x != nil {
		lateOnes := []struct {
			next  []fleetNext
			until time.Duration
		}{{x.next, m.leadsUntil(r.c, r)}, {r.c.next, never}}
		for _, l := range lateOnes {
			for _, n := range l.next {
				if n.by != r && commit >= n.by.ended && now < min(l.until, n.began+e.grace-e.slack) {
					m.counts["check: no late cookie"]++
					if a.Action != fleetKeep {
						m.fault(r, "a late cookie: #%d had set another session's, answered at %s", n.by.n, clock(n.by.ended))
					}
				}
			}
		}
		if x.buried && r.sent >= x.deadAt && now < min(x.endBegan+e.grace-e.slack, m.leadsUntil(r.c, r)) {
			m.counts["check: an ended session sets no cookie"]++
			if a.Action != fleetKeep {
				m.fault(r, "a cookie, though the request's session had ended in its Grace: %s", x.why)
			}
		}
	}
	switch a.Action {
	case fleetDelete:
		if len(r.fresh) == 1 {
			m.fault(r, "the cookie is deleted without a logout")
		}
		return
	case fleetKeep:
		if r.begun && !r.changed && !a.Panicked && a.Finish == "" && now < r.sent+e.idle-e.slack && !m.accompanied(r) {
			m.fault(r, "a commit of it has begun a session, and it sets no cookie")
		}
		return
	}
	if r.begun {
		m.counts["check: the session of a commit gets its cookie"]++
	}
	if last == x && x != nil && commit >= x.deadAt {
		m.fault(r, "a cookie that leads to a session which is over: %s", x.why)
	}
	c := m.cookies[a.Value]
	if c == nil {
		m.n++
		c = &fleetCookie{n: m.n, value: a.Value, of: last, began: r.sent, issued: now, goneFrom: never}
		m.cookies[a.Value] = c
		last.cookies = append(last.cookies, c)
	} else if c.of != last {
		m.fault(r, "its cookie is that of another session, s%d", c.of.n)
	}
	r.set = c
	if last != x {
		if a.Finish == "" || r.pending {
			last.stood = now
		}
		if last.handle == "" {
			last.handle = a.After.Handle
		}
		last.lastUse = max(last.lastUse, r.effective())
		last.log = append(last.log, r)
		if x != nil && a.Finish == "" {
			next := fleetNext{r, commit}
			if !r.alive || r.has("logout") { // the tombstone is that of the login's call, or of the logout's
				next.began = r.sent
			}
			if !r.alive {
				r.c.next = append(r.c.next, next)
			} else if !m.expiring(x, now) {
				x.next = append(x.next, next)
			}
		}
	} else if r.has("rotate") && a.Finish == "" && !r.pending {
		m.counts["rotations"]++
		for _, old := range x.cookies {
			if old != c && old.issued <= r.sent {
				old.goneFrom = min(old.goneFrom, now+e.grace+e.slack)
			}
		}
	} else {
		m.counts["cookies of the same session"]++
	}
}

// accompanied reports whether others had the same session's cookies at the same time.
func (m *fleetModel) accompanied(r *fleetRequest) bool {
	return r.x != nil && slices.ContainsFunc(r.x.log, func(q *fleetRequest) bool { return q != r && q.effective() >= r.sent })
}

func (m *fleetModel) faulty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.faults) > 0
}

// fault notes what must not be, with what led to it.
func (m *fleetModel) fault(r *fleetRequest, format string, args ...any) {
	if len(m.faults) >= 3 {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "at %s, #%d: %s\n", clock(m.now()), r.n, fmt.Sprintf(format, args...))
	shown := map[*fleetRequest]bool{r: true}
	all := []*fleetRequest{r}
	add := func(list []*fleetRequest) {
		for _, q := range list {
			if !shown[q] && q.sent > r.sent-20*time.Second {
				shown[q] = true
				all = append(all, q)
			}
		}
	}
	for x := r.x; x != nil; x = x.from {
		add(x.log)
	}
	if r.cur != nil {
		add(r.cur.log)
	}
	slices.SortFunc(all, func(a, b *fleetRequest) int { return cmp.Compare(a.sent, b.sent) })
	if len(all) > 40 {
		fmt.Fprintf(&b, "  (%d earlier requests)\n", len(all)-40)
		all = all[len(all)-40:]
	}
	for _, q := range all {
		fmt.Fprintf(&b, "  %s\n", q)
	}
	m.faults = append(m.faults, b.String())
}

func clock(d time.Duration) string {
	if d == never {
		return "-"
	}
	return fmt.Sprintf("%.4f", d.Seconds())
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

func (r *fleetRequest) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d %s at %s, %s", r.n, r.who, r.p.name, clock(r.sent))
	if r.hold >= 0 {
		fmt.Fprintf(&b, " held %s on %s", clock(r.held), clock(r.gone))
	}
	fmt.Fprintf(&b, " to %s: ", clock(r.ended))
	if r.c != nil {
		fmt.Fprintf(&b, "c%d of s%d", r.c.n, r.x.n)
	} else {
		b.WriteString("no cookie")
	}
	if r.saw {
		fmt.Fprintf(&b, ", sees %v", r.alive)
	}
	for i, a := range r.acts {
		fmt.Fprintf(&b, "; %s", a)
		if r.answer != nil && i < len(r.answer.Acts) && r.answer.Acts[i].Err != "" {
			fmt.Fprintf(&b, " (%s)", r.answer.Acts[i].Err)
		}
	}
	switch a := r.answer; {
	case r.killed:
		fmt.Fprintf(&b, " -> its process died")
		if r.died {
			fmt.Fprintf(&b, " %s", r.die)
		}
	case a == nil:
	case a.Load != "":
		fmt.Fprintf(&b, " -> load: %s", a.Load)
	default:
		fmt.Fprintf(&b, " -> ")
		if a.Panicked {
			b.WriteString("panicked ")
		} else {
			b.WriteString(cmp.Or(a.Finish, "saved") + " ")
			if a.After.Handle == "" {
				b.WriteString("nothing ")
			}
		}
		switch {
		case r.set != nil:
			fmt.Fprintf(&b, "sets c%d of s%d", r.set.n, r.set.of.n)
		case a.Action == fleetSet:
			b.WriteString("sets a cookie")
		case a.Action == fleetDelete:
			b.WriteString("deletes the cookie")
		}
	}
	return b.String()
}
