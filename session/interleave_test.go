package session

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// seen is what a cookie shows.
type seen struct {
	user   string
	values string // as fmt prints the map, which is sorted
	id     string // of the record
	dead   bool
}

func look(t testing.TB, m *Manager, cookie string) seen {
	t.Helper()
	ctx := load(t, m, cookie)
	st := m.state(ctx)
	s := seen{user: m.UserID(ctx), values: fmt.Sprint(valuesOf(m, ctx)), dead: st.dead}
	if st.record != nil {
		s.id = st.record.id.field
	}
	return s
}

func (s seen) nothing() bool { return s.user == "" && s.values == "map[]" && s.id == "" }

func (s seen) String() string {
	return fmt.Sprintf("{user %q, %s, id %x, dead %v}", s.user, s.values, s.id, s.dead)
}

// has reports whether a value is there. Values of these tests are all 1.
func (s seen) has(key string) bool {
	return slices.Contains(strings.Fields(strings.Trim(s.values, "map[]")), key+":1")
}

// has reports whether a cookie shows a value.
func has(t testing.TB, m *Manager, cookie, key string) bool {
	t.Helper()
	return m.Exists(load(t, m, cookie), key)
}

// sameSite returns a further Manager of m's site over another client.
func sameSite(t testing.TB, m *Manager, client redis.UniversalClient, cfg Config) *Manager {
	t.Helper()
	if m.records.sealer.ring.Len() > 0 {
		cfg.Secrets = [][]byte{secret}
	}
	return managerOver(t, client, cfg)
}

// act is what the handler of a request does.
type act struct {
	name    string
	do      func(r *request) error
	users   []string // who is logged in, one after the other
	leaves  bool     // the session from before is logged out first
	end     bool     // the session is logged out in the end
	commits bool     // the handler commits before anything else
}

var (
	actSave     = act{name: "save", do: func(r *request) error { return nil }}
	actRotate   = act{name: "rotate", do: func(r *request) error { return r.m.Rotate(r.ctx) }}
	actCommit   = act{name: "commit", commits: true, do: func(r *request) error { return r.commit() }}
	actTurn     = act{name: "commit, rotate", commits: true, do: func(r *request) error { return inOrder(r.commit, func() error { return r.m.Rotate(r.ctx) }) }}
	actLoginAnn = act{name: "login ann", users: []string{"ann"}, do: func(r *request) error { return r.login("ann") }}
	actLoginBob = act{name: "login bob", users: []string{"bob"}, do: func(r *request) error { return r.login("bob") }}
	actLogout   = act{name: "logout", end: true, do: func(r *request) error { return r.logout() }}

	// Commit in the handler of a login, before and after it.
	actCommitLogin = act{name: "commit, login ann", users: []string{"ann"}, commits: true, do: func(r *request) error {
		return inOrder(r.commit, r.loginAs("ann"))
	}}
	actLoginCommit = act{name: "login ann, commit", users: []string{"ann"}, do: func(r *request) error {
		return inOrder(r.loginAs("ann"), r.commit)
	}}
	// More than one change of ID in a request.
	actLoginTwice = act{name: "login ann, login ann", users: []string{"ann", "ann"}, do: func(r *request) error {
		return inOrder(r.loginAs("ann"), r.commit, r.loginAs("ann"))
	}}
	actLoginBoth = act{name: "login ann, login bob", users: []string{"ann", "bob"}, do: func(r *request) error {
		return inOrder(r.loginAs("ann"), r.loginAs("bob"))
	}}
	actLoginBack = act{name: "login bob, login ann", users: []string{"bob", "ann"}, do: func(r *request) error {
		return inOrder(r.loginAs("bob"), r.loginAs("ann"))
	}}
	actRelogin = act{name: "logout, login ann", leaves: true, users: []string{"ann"}, do: func(r *request) error {
		return inOrder(r.logout, r.loginAs("ann"))
	}}
	actLoginLogout = act{name: "login ann, logout", users: []string{"ann"}, end: true, do: func(r *request) error {
		return inOrder(r.loginAs("ann"), r.logout)
	}}
)

// inOrder runs what a handler does, up to the first error.
func inOrder(steps ...func() error) error {
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

var allActs = []act{
	actSave, actRotate, actCommit, actTurn, actLoginAnn, actLoginBob, actLogout,
	actCommitLogin, actLoginCommit, actLoginTwice, actLoginBoth, actLoginBack, actRelogin, actLoginLogout,
}

var basicActs = []act{
	actSave, actRotate, actLoginAnn, actLoginBob, actLogout, actCommitLogin, actLoginCommit, actLoginTwice,
}

// keeps reports whether the session from before goes on under its ID, or one that its ID
// leads to.
func (a act) keeps() bool { return len(a.users) == 0 && !a.end }

// user is who is logged in by an act in the end, "" if nobody is.
func (a act) user() string {
	if a.end || len(a.users) == 0 {
		return ""
	}
	return a.users[len(a.users)-1]
}

// carries reports whether the values from before are still there after the logins of an
// act: neither another user nor a logout came between.
func (a act) carries(start string) bool {
	for _, u := range a.users {
		if start != "" && start != u {
			return false
		}
		start = u
	}
	return !a.leaves
}

// request does an act, and notes what came of it.
type request struct {
	act
	m    *Manager
	ctx  context.Context
	name func(user string) string // of this test's users
	b    *browser

	key    string // that it puts before the act; and key+"2" after a change of ID
	before seen   // what it was shown when it was loaded

	moved    bool // it has logged in or out: what it saves is not in the session from before
	logins   int
	put      []string // in the session from before, and not saved yet
	saved    []string // in the session from before, acknowledged
	refused  bool     // a Commit has returned ErrEnded
	err      error    // any other
	out      Outcome
	called   int64 // when Finish was called
	returned int64
	retired  int64 // when a script went out that ends all other IDs of the session; 0: was not seen
}

// ticks orders what happens, over all requests.
var ticks atomic.Int64

func (r *request) commit() error {
	switch err := r.m.Commit(r.ctx); {
	case errors.Is(err, ErrEnded):
		r.refused = true
		return nil
	case err != nil:
		return err
	}
	if !r.moved {
		r.saved = append(r.saved, r.put...)
		r.put = nil
	}
	return nil
}

func (r *request) login(user string) error {
	if err := r.m.Login(r.ctx, r.name(user)); err != nil {
		return err
	}
	r.moved = true
	r.logins++
	r.m.Put(r.ctx, r.key+"2", 1)
	return nil
}

func (r *request) loginAs(user string) func() error {
	return func() error { return r.login(user) }
}

func (r *request) logout() error {
	if err := r.m.Logout(r.ctx); err != nil {
		return err
	}
	r.moved = true
	return nil
}

// handle is the request's handler.
func (r *request) handle() error {
	st := r.m.state(r.ctx)
	r.before = seen{user: r.m.UserID(r.ctx), values: fmt.Sprint(valuesOf(r.m, r.ctx)), dead: st.dead}
	r.m.Put(r.ctx, r.key, 1)
	r.put = []string{r.key}
	return r.do(r)
}

// finish is the response. It notes what was acknowledged.
func (r *request) finish() (err error) {
	r.called = ticks.Add(1)
	r.out, err = r.m.Finish(r.ctx)
	r.returned = ticks.Add(1)
	if st := r.m.state(r.ctx); err == nil && !r.moved && !st.dead {
		r.saved = append(r.saved, r.put...)
		r.put = nil
	}
	r.b.take(r.out)
	return err
}

func (r *request) sends(command string) {
	if command == "retire" {
		r.retired = ticks.Add(1)
	}
}

// run is all of the request.
func (r *request) run() {
	if r.ctx == nil {
		if r.ctx, r.err = r.m.Load(context.Background(), r.b.cookie); r.err != nil {
			return
		}
	}
	if r.err = r.handle(); r.err == nil {
		r.err = r.finish()
	}
}

// pair is two requests with the same cookie.
type pair struct {
	t     *testing.T
	m     *Manager // looks at the result
	where string
	start string // who was logged in before
	first string // the cookie
	x, y  *request
	wrong []string
}

var pairs atomic.Int64

// newPair begins a session, as a user of its own.
func newPair(t *testing.T, m, mx, my *Manager, start string, x, y act) *pair {
	n := pairs.Add(1)
	name := func(user string) string { return fmt.Sprint(user, n) }
	p := &pair{t: t, m: m, start: start}
	if start != "" {
		p.start = name(start)
	}
	p.first = cartOf(t, m, p.start)
	p.x = &request{act: x, m: mx, name: name, key: "x", b: &browser{t, mx, p.first}}
	p.y = &request{act: y, m: my, name: name, key: "y", b: &browser{t, my, p.first}}
	return p
}

// cartOf begins a session with a value "first", and returns its cookie.
func cartOf(t testing.TB, m *Manager, user string) string {
	t.Helper()
	b := &browser{t, m, ""}
	b.request(func(ctx context.Context) {
		m.Put(ctx, "first", 1)
		if user != "" {
			if err := m.Login(ctx, user); err != nil {
				t.Fatal(err)
			}
		}
	})
	return b.cookie
}

// judge returns what is wrong after two requests.
func (p *pair) judge() []string {
	x, y := p.x, p.y
	old := look(p.t, p.m, p.first)
	now := map[*request]seen{x: look(p.t, p.m, x.b.cookie), y: look(p.t, p.m, y.b.cookie)}
	bad := func(format string, args ...any) {
		p.wrong = append(p.wrong, fmt.Sprintf("%s: %s\n  first cookie %v\n  x's cookie   %v (%+v)\n  y's cookie   %v (%+v)", p.where,
			fmt.Sprintf(format, args...), old, now[x], x.out.Action, now[y], y.out.Action))
	}
	for _, r := range []*request{x, y} {
		if r.err != nil {
			bad("%s: %v", r.key, r.err)
			return p.wrong
		}
	}

	kept := x.keeps() && y.keeps()
	if kept {
		if old.user != p.start || old.id == "" || old.id != now[x].id || old.id != now[y].id {
			bad("not one session")
		}
		for _, key := range []string{"first", "x", "y"} {
			if !old.has(key) {
				bad("%s is lost", key)
			}
		}
		if x.refused || y.refused || len(x.put)+len(y.put) > 0 {
			bad("a change was refused")
		}
	} else if !old.nothing() {
		bad("the first cookie still leads to a session")
	}
	for _, r := range []*request{x, y} {
		p.judgeOne(r, x, y, now, bad)
	}

	// Nothing is left in Redis that none of the cookies leads to.
	ids := map[string]bool{old.id: true, now[x].id: true, now[y].id: true}
	delete(ids, "")
	if n := p.records(); n != len(ids) {
		bad("%d records in Redis", n)
	}
	return p.wrong
}

// judgeOne looks at one of two requests.
func (p *pair) judgeOne(r, x, y *request, now map[*request]seen, bad func(format string, args ...any)) {
	o := x
	if r == x {
		o = y
	}
	if r.before.user != "" && r.before.user != p.start || r.before.has(o.key+"2") {
		bad("%s was shown %v by the first cookie", r.key, r.before)
	}
	switch s := now[r]; {
	case r.keeps():
		if o.keeps() {
			return
		}
		if !s.nothing() {
			bad("%s leads to a session that %s ended", r.key, o.key)
		}
		if r.called > o.returned && (r.out != Outcome{} || len(r.put) == 0 && !r.commits) {
			bad("%s was answered after the ID had ended, and saved or set a cookie", r.key)
		}
	case r.end:
		if r.out.Action != CookieDelete || !s.nothing() {
			bad("%s is not logged out", r.key)
		}
	default:
		p.judgeLogin(r, o, now, bad)
	}
}

// judgeLogin looks at a login beside anything else.
func (p *pair) judgeLogin(r, o *request, now map[*request]seen, bad func(format string, args ...any)) {
	s, other, user := now[r], now[o], r.name(r.user())
	stands := r.out.Action == CookieSet && s.user == user
	// Two logins over one of the same user are one session: that of the one
	// that retires the other's, which sets no cookie unless it was done before. All other
	// logins stand, two of a visitor as well.
	over := func(r *request) bool {
		return r.before.user == user && !r.refused && r.user() == p.startAs() && r.carries(p.startAs())
	}
	one := over(r) && over(o)
	switch {
	case one && !stands:
		if other.user != user || o.out.Action != CookieSet {
			bad("neither login stands")
		}
		if r.out != (Outcome{}) && r.retired > o.retired {
			bad("%s has got a cookie that leads nowhere", r.key)
		}
		return
	case one && other.user == user && other.id != s.id:
		bad("two sessions instead of one")
	case !stands && r.before.user == user && (o.end || o.leaves || slices.ContainsFunc(o.users, func(u string) bool { return u != p.startAs() })):
		// The other may have ended the session in each place that it had, between the login and
		// the end of its request, or after it.
		return
	case !stands:
		bad("%s's login does not stand", r.key)
		return
	case r.b.cookie == p.first || s.id == "" || o.out.Action == CookieSet && s.id == other.id:
		bad("%s's login has an ID of before", r.key)
	case r.refused && o.keeps():
		bad("%s's commit was refused", r.key)
	}
	if !s.has(r.key + "2") {
		bad("%s's login lost what it put itself after it", r.key)
	}
	if !r.carries(p.startAs()) && (s.has("first") || s.has(o.key) || s.has(o.key+"2")) {
		bad("%s sees what is not the user's", r.key)
	}
	shown := p.startAs()
	if r.before.user == "" { // it may have come after the session had ended
		shown = ""
	}
	if !r.carries(shown) {
		if s.has(r.key) {
			bad("%s took its put along to another user, or over a logout", r.key)
		}
		return
	}
	if !s.has(r.key) && !r.refused { // a refused Commit was told that it is lost
		bad("%s's login lost what it put itself before it", r.key)
	}
	if o.keeps() && r.carries(p.startAs()) {
		if !s.has("first") {
			bad("%s's login lost what was there before", r.key)
		}
		if saved := len(o.saved) > 0; s.has(o.key) != saved {
			bad("%s's put was acknowledged: %v, and is in the login: %v", o.key, saved, s.has(o.key))
		}
	}
	if o.user() != "" && !one {
		// What one saved before its login is in one of the two.
		for _, key := range o.saved {
			if !s.has(key) && !other.has(key) && o.carries(p.startAs()) {
				bad("%s's put was acknowledged, and is in neither login", o.key)
			}
		}
	}
}

// startAs is who was logged in before, as acts name users.
func (p *pair) startAs() string {
	if p.start == "" {
		return ""
	}
	return "ann"
}

// records counts the live records of the pair's visitor and users.
func (p *pair) records() (n int) {
	p.t.Helper()
	keys := map[string]bool{idOf(p.t, p.m, p.first).key: true}
	for _, u := range []string{"ann", "bob"} {
		keys[p.m.records.keys.key(p.m.records.keys.user(p.x.name(u)))] = true
	}
	for key := range keys {
		n += len(recordsAt(p.t, p.m, key))
	}
	return n
}

// recordsAt returns the live records of an owner, by their times.
func recordsAt(t testing.TB, m *Manager, key string) (all []times) {
	t.Helper()
	fields, err := m.records.redis.Client().HGetAll(t.Context(), key).Result()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range fields {
		if len(name) != fieldLen || raw[0] != formatRecord {
			continue
		}
		var r times
		for i, at := range []*int64{&r.born, &r.deadline, &r.touched, &r.until} {
			*at = getTime([]byte(raw)[headLen+i*timeLen:])
		}
		if now, err := m.records.now(t.Context(), id{key: key}); err != nil {
			t.Fatal(err)
		} else if r.until > now {
			all = append(all, r)
		}
	}
	return all
}

// slowly is for requests that wait in the middle for others.
var slowly = Config{Timeout: 20 * time.Second}

// TestInterleavings runs one request in each gap between the Redis commands of another
// one with the same cookie, for all pairs of what they may do.
func TestInterleavings(t *testing.T) {
	each(t, slowly, func(t *testing.T, b redistest.Backend, m *Manager) {
		acts := allActs
		if b.Name != "standalone" { // the others differ in nothing but their client, or speed
			acts = basicActs
		}
		wrong, n := interleavings(t, b, m, acts)
		reportWrong(t, wrong, n)
		if want := 2 * len(acts) * len(acts); n < want && !redistest.RaceDetector {
			t.Errorf("%d interleavings, expected at least %d", n, want)
		}
	})
}

// reportWrong reports what is wrong, of one kind for one pair of acts once.
func reportWrong(t *testing.T, wrong []string, n int) {
	t.Helper()
	t.Logf("%d interleavings", n)
	kinds := make(map[string]bool)
	for _, w := range wrong {
		line, _, _ := strings.Cut(w, "\n")
		kind := number.ReplaceAllString(line, "")
		if !kinds[kind] {
			kinds[kind] = true
			t.Error(w)
		}
	}
	if len(wrong) > 0 {
		t.Errorf("%d faults in all", len(wrong))
	}
}

var number = regexp.MustCompile(` command [0-9]+( \([a-z]+\))?`)

// TestTwoLoginsAtOnce logs in twice with one cookie: a visitor has two sessions then, and
// who was logged in before has one.
func TestTwoLoginsAtOnce(t *testing.T) {
	each(t, slowly, func(t *testing.T, b redistest.Backend, m *Manager) {
		for start, want := range map[string]int{"": 2, "ann": 1} {
			p := newPair(t, m, m, m, start, actLoginAnn, actLoginAnn)
			for _, r := range []*request{p.x, p.y} {
				r.ctx = load(t, m, p.first)
				if r.err = r.handle(); r.err != nil {
					t.Fatal(r.err)
				}
			}
			for _, r := range []*request{p.x, p.y} {
				r.err = r.finish()
			}
			p.where = fmt.Sprintf("start %q", start)
			for _, wrong := range p.judge() {
				t.Error(wrong)
			}
			if n := p.records(); n != want {
				t.Errorf("start %q: %d sessions, expected %d", start, n, want)
			}
			// One browser gets both answers, and keeps the last cookie.
			b := p.x.b
			b.take(p.y.out)
			if got := look(t, m, b.cookie); got.user != p.x.name("ann") || !got.has("first") {
				t.Errorf("start %q: the browser's cookie shows %v", start, got)
			}
		}
	})
}

func TestInterleavingsCatchAnUnconditionalSave(t *testing.T) {
	server := redistest.Shared(t)
	server.Flush()
	b := redistest.Backend{Client: server.Client(), Addrs: []string{server.Addr()}}
	acts := []act{actSave, actRotate, actLoginAnn, actLoginBob, actLogout}
	if wrong, n := interleavings(t, b, manager(t, b, slowly), acts, unconditional); len(wrong) < 10 {
		t.Errorf("of %d only %q", n, wrong)
	}
}

// interleavings returns what went wrong, and how many it ran.
func interleavings(t *testing.T, b redistest.Backend, m *Manager, acts []act, hooks ...redis.Hook) (wrong []string, n int) {
	client := b.NewClient(t)
	hook := countCommands(client)
	for _, h := range hooks {
		client.AddHook(h)
	}
	slow := sameSite(t, m, client, slowly)
	for _, start := range []string{"", "ann"} {
		for _, x := range acts {
			for _, y := range acts {
				if len(hooks) == 0 && !redistest.Turn(2) {
					continue
				}
				for gap, ran := 1, true; ran; gap++ {
					p := newPair(t, m, slow, m, start, x, y)
					p.where = fmt.Sprintf("start %q, x %q, y %q before command %d", start, x.name, y.name, gap)
					p.x.ctx = load(t, slow, p.first)
					ran = false
					hook.reset(func(n int, command string) fate {
						if n == gap && !ran {
							ran = true
							p.where += " (" + command + ")"
							p.y.run()
						}
						p.x.sends(command)
						return fateSent
					})
					p.x.run()
					hook.reset(nil)
					if ran {
						n++
						wrong = append(wrong, p.judge()...)
					}
				}
			}
		}
	}
	return wrong, n
}

// TestInterleavingsBothWays stops one request at each of its commands, runs another one up
// to each of its own, and lets the first go on to its end before the second does.
func TestInterleavingsBothWays(t *testing.T) {
	server := redistest.Shared(t)
	server.Flush()
	b := redistest.Backend{Client: server.Client(), Addrs: []string{server.Addr()}}
	m := manager(t, b, slowly)
	acts := basicActs
	cx, cy := b.NewClient(t), b.NewClient(t)
	hx, hy := countCommands(cx), countCommands(cy)
	mx, my := sameSite(t, m, cx, slowly), sameSite(t, m, cy, slowly)
	var wrong []string
	n := 0
	for _, start := range []string{"", "ann"} {
		for _, x := range acts {
			for _, y := range acts {
				if !redistest.Turn(2) {
					continue
				}
				for i, more := 1, true; more; i++ {
					more = false
					for j, stopped := 1, true; stopped; j++ {
						p := newPair(t, m, mx, my, start, x, y)
						p.where = fmt.Sprintf("start %q, x %q up to command %d, y %q up to command %d", start, x.name, i, y.name, j)
						var begun bool
						begun, stopped = p.bothWays(hx, hy, i, j)
						if !begun {
							break
						}
						more = true
						n++
						wrong = append(wrong, p.judge()...)
					}
				}
			}
		}
	}
	reportWrong(t, wrong, n)
	redistest.AssertAllTTL(t, b.Client)
}

// bothWays runs x up to its command i, y up to its j, the rest of x, and the rest of y. It
// reports whether x and y had so many.
func (p *pair) bothWays(hx, hy *commands, i, j int) (begun, stopped bool) {
	waits, goOn, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	hy.reset(func(n int, command string) fate {
		if n == j {
			close(waits)
			<-goOn
		}
		p.y.sends(command)
		return fateSent
	})
	hx.reset(func(n int, command string) fate {
		if n == i {
			begun = true
			go func() {
				defer close(done)
				p.y.run()
			}()
			select {
			case <-waits:
				stopped = true
			case <-done:
			}
		}
		p.x.sends(command)
		return fateSent
	})
	p.x.run()
	hx.reset(nil)
	close(goOn)
	if begun {
		<-done
	}
	hy.reset(nil)
	return begun, stopped
}
