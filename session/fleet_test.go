package session_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
)

var fleetFor = flag.Duration("session.fleet", 2*time.Second, "how long browsers ask a fleet of processes, for each kind of Redis")

const (
	fleetEnv    = "GATEHOUSE_TEST_SESSION_FLEET"
	fleetShared = "shared" // a key that all requests put

	fleetKeep   = session.CookieKeep
	fleetSet    = session.CookieSet
	fleetDelete = session.CookieDelete
)

// fleetConfig is what a process of the fleet is told at its start.
type fleetConfig struct {
	Addrs   []string
	Cluster bool
	Proxies map[string]string // what stands before each server

	Prefix                                            string
	Secrets                                           [][]byte
	Timeout, Lifetime, Remembered, Idle, Grace, Every time.Duration
}

// fleetDo is one act of a handler.
type fleetDo struct {
	Do        string
	Key, Mark string `json:",omitempty"`
	User      string `json:",omitempty"`
	Large, On bool   `json:",omitempty"`
}

func (d fleetDo) String() string {
	s := d.Do
	for _, more := range []string{d.Key, d.Mark, d.User} {
		if more != "" {
			s += " " + more
		}
	}
	return s
}

// fleetDeath says at which of its commands to Redis a process dies.
type fleetDeath struct {
	Finish bool // counted from Finish on, not from Load
	N      int  // from 1
	After  bool // the reply has come
}

func (d *fleetDeath) String() string { return fmt.Sprintf("%+v", *d) }

// before reports whether that was before the command that marks the old ID of a login was
// sent: the last one of Finish. There are two, or one if both are sessions of one user.
func (d *fleetDeath) before(r *fleetRequest) bool {
	done := d.N - 1
	if d.After {
		done = d.N
	}
	marks := 2
	for _, a := range r.acts {
		if a.Do == "login" && r.x != nil && r.x.user == a.User {
			marks = 1
		}
	}
	return !d.Finish || done < marks
}

// fleetOrder is what a process is told while it runs: to serve a request, or, with Go alone,
// to go on with one that is held.
type fleetOrder struct {
	ID, Go  int
	Cookies []string
	Acts    []fleetDo
	Die     *fleetDeath `json:",omitempty"`
}

// fleetAnswer is what came of a request, or of what of it is done when it is held.
type fleetAnswer struct {
	ID       int
	Held     bool   `json:",omitempty"`
	Dying    bool   `json:",omitempty"`
	Load     string `json:",omitempty"` // error
	Saw      *fleetView
	Acts     []fleetResult
	Panicked bool   `json:",omitempty"`
	Finish   string `json:",omitempty"` // error
	Action   session.CookieAction
	Value    string
	After    *fleetView
	Stats    session.Stats
}

// fine reports whether all of it was done.
func (a *fleetAnswer) fine() bool {
	return a.Load == "" && a.Finish == "" && len(a.errors()) == 0
}

func (a *fleetAnswer) errors() (errs []string) {
	for _, r := range a.Acts {
		if r.Err != "" {
			errs = append(errs, r.Err)
		}
	}
	return errs
}

type fleetResult struct {
	Err   string     `json:",omitempty"`
	Found bool       `json:",omitempty"` // of remove
	View  *fleetView `json:",omitempty"` // of login
}

// fleetView is what a handler sees of its session. A value is "user;mark", or what is left of
// it without the semicolon.
type fleetView struct {
	User, Handle string
	Auth         int64
	Values       map[string]string
}

// fleetServer is a process of the fleet: a server with its own Manager.
type fleetServer struct {
	m   *session.Manager
	mu  sync.Mutex // of the output
	out *bufio.Writer

	gates sync.Map // of held requests, by ID

	die      atomic.Pointer[fleetDeath]
	finish   atomic.Bool
	commands atomic.Int64
}

// TestFleetServer is the body of a process of TestFleet.
func TestFleetServer(t *testing.T) {
	told := os.Getenv(fleetEnv)
	if told == "" {
		t.Skip("not started by TestFleet")
	}
	var cfg fleetConfig
	err := json.Unmarshal([]byte(told), &cfg)
	if err == nil {
		err = serveFleet(cfg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

type fleetSilence struct{}

func (fleetSilence) Printf(context.Context, string, ...any) {}

func serveFleet(cfg fleetConfig) error {
	redis.SetLogger(fleetSilence{})
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if proxy := cfg.Proxies[addr]; proxy != "" {
			addr = proxy
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: cfg.Addrs, IsClusterMode: cfg.Cluster, Dialer: dial})
	s := &fleetServer{out: bufio.NewWriter(os.Stdout)}
	client.AddHook(s)
	conf := session.Config{
		Prefix: cfg.Prefix, Timeout: cfg.Timeout,
		Lifetime: cfg.Lifetime, IdleTimeout: cfg.Idle, Remembered: session.Life{Lifetime: cfg.Remembered},
		Rotation: session.Rotation{Every: cfg.Every, Grace: cfg.Grace},
		Accounts: session.Accounts{Max: 1000},
		Logger:   slog.New(slog.DiscardHandler),
	}
	if len(cfg.Secrets) > 0 {
		conf.Secrets, conf.KeySecret = cfg.Secrets, []byte(strings.Repeat("key", 11))
	}
	var err error
	if s.m, err = session.New(client, conf); err != nil {
		return err
	}
	s.say(fleetAnswer{})
	for in := bufio.NewReader(os.Stdin); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil // the parent is gone
		}
		var o fleetOrder
		if err := json.Unmarshal(line, &o); err != nil {
			return err
		}
		if o.Go != 0 {
			gate, _ := s.gates.LoadAndDelete(o.Go)
			close(gate.(chan struct{}))
			continue
		}
		s.gates.Store(o.ID, make(chan struct{}))
		go s.serve(o)
	}
}

func (s *fleetServer) say(a fleetAnswer) {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.WriteString("@")
	s.out.Write(append(b, '\n'))
	s.out.Flush()
}

// serve does what middleware does with a handler that does the acts.
func (s *fleetServer) serve(o fleetOrder) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer s.gates.Delete(o.ID)
	if o.Die != nil {
		s.commands.Store(0)
		s.finish.Store(false)
		s.die.Store(o.Die)
	}
	a := fleetAnswer{ID: o.ID}
	defer func() { a.Stats = s.m.Stats(); s.say(a) }()
	ctx, err := s.m.Load(ctx, o.Cookies...)
	if err != nil {
		a.Load = err.Error()
		return
	}
	a.Saw = s.view(ctx, true)
	for _, act := range o.Acts {
		var res fleetResult
		switch act.Do {
		case "put":
			value := s.m.UserID(ctx) + ";" + act.Mark + ";"
			if act.Large {
				value += strings.Repeat("x", 1500)
			}
			s.m.Put(ctx, act.Key, value+"end")
		case "remove":
			res.Found = s.m.Exists(ctx, act.Key)
			s.m.Remove(ctx, act.Key)
		case "clear":
			err = s.m.Clear(ctx)
		case "rotate":
			err = s.m.Rotate(ctx)
		case "remember":
			s.m.Remember(ctx, act.On)
		case "login":
			if err = s.m.Login(ctx, act.User); err == nil {
				res.View = s.view(ctx, false)
			}
		case "logout":
			err = s.m.Logout(ctx)
		case "commit":
			err = s.m.Commit(ctx)
		case "hang up":
			cancel()
		case "hang up soon":
			go func() { time.Sleep(rand.N(2 * time.Millisecond)); cancel() }()
		case "panic":
			a.Panicked = true
		case "hold":
			a.Acts = append(a.Acts, res)
			held := a
			held.Held = true
			gate, _ := s.gates.Load(o.ID)
			s.say(held)
			<-gate.(chan struct{})
			continue
		}
		if err != nil {
			res.Err, err = err.Error(), nil
		}
		a.Acts = append(a.Acts, res)
	}
	if o.Die != nil {
		s.commands.Store(0)
		s.finish.Store(true)
	}
	if a.Panicked {
		s.m.Abort(ctx)
	} else {
		out, err := s.m.Finish(ctx)
		if err != nil {
			a.Finish = err.Error()
		}
		a.Action, a.Value = out.Action, out.Value
	}
	s.die.Store(nil)
	a.After = s.view(ctx, false)
}

func (s *fleetServer) view(ctx context.Context, values bool) *fleetView {
	info := s.m.Info(ctx)
	v := &fleetView{User: info.UserID, Handle: info.Handle, Values: map[string]string{}}
	if !info.AuthenticatedAt.IsZero() {
		v.Auth = info.AuthenticatedAt.UnixMicro()
	}
	if values {
		for _, key := range s.m.Keys(ctx) {
			parts := strings.Split(s.m.GetString(ctx, key), ";")
			v.Values[key] = strings.Join(parts, "")
			if len(parts) == 3 && (parts[2] == "end" || parts[2] == strings.Repeat("x", 1500)+"end") {
				v.Values[key] = parts[0] + ";" + parts[1]
			}
		}
	}
	return v
}

// command has the process die at a command, if that was ordered.
func (s *fleetServer) command(run func() error, names ...string) error {
	d := s.die.Load()
	if d == nil || d.Finish != s.finish.Load() || !slices.ContainsFunc(names, func(n string) bool { return n == "hget" || n == "evalsha" || n == "eval" }) {
		return run()
	}
	n := int(s.commands.Add(1))
	die := func() {
		s.say(fleetAnswer{Dying: true})
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	if n == d.N && !d.After {
		die()
	}
	err := run()
	if n == d.N {
		die()
	}
	return err
}

func (s *fleetServer) DialHook(next redis.DialHook) redis.DialHook { return next }

func (s *fleetServer) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return s.command(func() error { return next(ctx, cmd) }, cmd.Name())
	}
}

func (s *fleetServer) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		var names []string
		for _, cmd := range cmds {
			names = append(names, cmd.Name())
		}
		return s.command(func() error { return next(ctx, cmds) }, names...)
	}
}

// fleetEra is a stretch of a run, with processes, sessions and a model of its own.
type fleetEra struct {
	name     string
	sealed   bool
	lifetime time.Duration
	// remembered is the lifetime after Remember; 0: the same.
	remembered time.Duration
	idle       time.Duration
	grace      time.Duration
	every      time.Duration
	faults     bool            // processes are killed, replies lost, Redis delayed; without, no request may fail
	moves      bool            // slots are moved
	clocks     []time.Duration // of the servers, against those of the processes
	slack      time.Duration   // what the times of the model and of Redis may differ by
}

// timeout is that of the Managers.
func (e fleetEra) timeout() time.Duration {
	if e.faults {
		return 300 * time.Millisecond
	}
	return 10 * time.Second
}

// longestIdle is when a session that nobody uses is surely over.
func (e fleetEra) longestIdle() time.Duration { return e.idle + e.idle/20 + e.slack }

// longestLife is when a session is surely over, remembered ones included.
func (e fleetEra) longestLife() time.Duration { return max(e.lifetime, e.remembered) + e.slack }

const (
	fleetServers  = 3
	fleetBrowsers = 16
)

// fleetUsers are so many that none comes to have as many sessions as possible.
var fleetUsers = func() (users []string) {
	for i := range 40 {
		users = append(users, fmt.Sprint("user", i))
	}
	return users
}()

// fleetSecrets returns the secrets of a process: while secrets are changed, some have the new
// one behind and some in front.
func fleetSecrets(i int) [][]byte {
	old, new := []byte(strings.Repeat("old", 11)), []byte(strings.Repeat("new", 11))
	if i%2 == 0 {
		return [][]byte{old, new}
	}
	return [][]byte{new, old}
}

// TestFleet has browsers ask several processes at once, for every change that a session knows,
// while processes are killed, replies are lost and slots are moved, and has a model judge the
// answers. It runs as long as -session.fleet says.
func TestFleet(t *testing.T) {
	const apart = 7 * time.Minute // Redis's clock is not the processes'
	day := 24 * time.Hour
	needed := []string{
		"check: over: it was logged out", "check: over: a login took its place", "check: over: nobody used it",
		"check: over: its ID was rotated, and the Grace is over",
		"check: an old cookie beside a login", "check: no late cookie", "check: an ended session sets no cookie",
		"check: stays logged in", "check: a rotated ID leads on", "check: the jar keeps its login",
		"check: the session of a commit gets its cookie", "check: an acknowledged put is there", "check: a put acknowledged during a login is in it",
		"check: a removed key is gone", "check: the last put of a key wins", "check: a user's own value",
		"check: survived: a process that died in a login", "check: survived: a handler that panicked after its login",
		"check: keys in Redis", "conflicts", "logins", "logouts", "rotations",
	}
	t.Run("standalone", func(t *testing.T) {
		server := redistest.Start(t)
		server.Advance(apart)
		f := newFleet(t, []*redistest.Server{server}, server.Client())
		f.run(*fleetFor, []fleetEra{
			{name: "short lives, sealed", sealed: true, lifetime: 1800 * time.Millisecond, idle: 1400 * time.Millisecond, grace: 700 * time.Millisecond, faults: true, slack: 200 * time.Millisecond},
			{name: "long lives, sealed", sealed: true, lifetime: day, idle: time.Hour, grace: time.Second, faults: true, slack: 200 * time.Millisecond},
			{name: "rotations, plain", lifetime: day, idle: time.Hour, grace: 1500 * time.Millisecond, every: 700 * time.Millisecond, faults: true, slack: 200 * time.Millisecond},
			{name: "short lives, plain, no faults", lifetime: 3 * time.Second, remembered: 5 * time.Second, idle: 1200 * time.Millisecond, grace: time.Second, slack: 200 * time.Millisecond},
		})
		f.expect(append(needed, "killed", "died at a command", "check: over: its lifetime is over")...)
	})
	t.Run("cluster", func(t *testing.T) {
		cluster := redistest.SharedCluster(t)
		cluster.Flush()
		t.Cleanup(cluster.Flush)
		cluster.Advance(apart)
		f := newFleet(t, cluster.Nodes(), cluster.Client())
		near := []time.Duration{0, 100 * time.Millisecond, -100 * time.Millisecond}
		far := []time.Duration{0, 2 * time.Minute, -11 * time.Minute}
		f.run(*fleetFor, []fleetEra{
			{name: "moving slots", sealed: true, lifetime: day, idle: time.Hour, grace: 1200 * time.Millisecond, faults: true, moves: true, clocks: near, slack: 400 * time.Millisecond},
			{name: "clocks far apart", sealed: true, lifetime: 2 * time.Second, idle: 1400 * time.Millisecond, grace: 700 * time.Millisecond, faults: true, clocks: far, slack: 200 * time.Millisecond},
			{name: "moving slots, no faults", lifetime: 3 * time.Second, idle: 1500 * time.Millisecond, grace: 1200 * time.Millisecond, moves: true, clocks: near, slack: 400 * time.Millisecond},
			{name: "moving slots and rotations", lifetime: day, idle: time.Hour, grace: 1500 * time.Millisecond, every: time.Second, faults: true, moves: true, clocks: near, slack: 400 * time.Millisecond},
		})
		f.expect(append(needed, "killed", "died at a command", "slots moved")...)
	})
}

// fleet is the processes over one kind of Redis, and what has come of all eras.
type fleet struct {
	t       *testing.T
	servers []*redistest.Server
	client  redis.UniversalClient
	proxies [][]*redistest.Proxy // by process and server
	counts  map[string]int
}

func newFleet(t *testing.T, servers []*redistest.Server, client redis.UniversalClient) *fleet {
	f := &fleet{t: t, servers: servers, client: client, counts: map[string]int{}}
	for range fleetServers + 1 {
		var proxies []*redistest.Proxy
		for _, s := range servers {
			proxies = append(proxies, redistest.NewProxy(t, s.Addr()))
		}
		f.proxies = append(f.proxies, proxies)
	}
	return f
}

// run runs one era after the other, until the time is over.
func (f *fleet) run(total time.Duration, eras []fleetEra) {
	length := max(total/time.Duration(max(1, total/(20*time.Second))), min(total, 2*time.Second))
	start := time.Now()
	for i := 0; (i == 0 || time.Since(start) < total-length/2) && !f.t.Failed(); i++ {
		e := eras[i%len(eras)]
		for j, d := range e.clocks {
			f.servers[j].Advance(d)
		}
		f.t.Logf("%s: %s", time.Since(start).Round(time.Second), e.name)
		f.era(e, i, length)
		for j, d := range e.clocks {
			f.servers[j].Advance(-d)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(f.counts)) {
		f.t.Logf("%8d %s", f.counts[what], what)
	}
}

// expect fails for what the run has not shown. A short one cannot show everything.
func (f *fleet) expect(what ...string) {
	if f.t.Failed() {
		return
	}
	if *fleetFor < 20*time.Second {
		what = []string{"answers", "logins", "check: an acknowledged put is there", "check: stays logged in"}
	}
	for _, w := range what {
		if f.counts[w] == 0 {
			f.t.Errorf("never: %s", w)
		}
	}
}

// fleetWorld is an era that runs.
type fleetWorld struct {
	*fleet
	e      fleetEra
	model  *fleetModel
	all    []*fleetProc
	procs  []*fleetProc // that serve
	victim *fleetProc   // serves one request at a time, and dies
	dying  sync.Mutex
	ctx    context.Context
	keys   atomic.Int64
	prefix string
}

func (f *fleet) era(e fleetEra, n int, length time.Duration) {
	start := time.Now()
	w := &fleetWorld{fleet: f, e: e, model: newFleetModel(e), prefix: fmt.Sprintf("fleet%d:", n)}
	var starting sync.WaitGroup
	for i := range fleetServers + 1 {
		p := &fleetProc{w: w, i: i, name: fmt.Sprintf("p%d", i), pending: map[int]*fleetRequest{}}
		w.all = append(w.all, p)
		starting.Go(p.start)
	}
	starting.Wait()
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithTimeout(f.t.Context(), length)
	defer cancel()
	w.victim, w.procs = w.all[fleetServers], w.all[:fleetServers]
	defer func() {
		for _, p := range w.all {
			p.stop()
		}
	}()
	done := make(chan struct{})
	go w.watch(done)
	defer close(done)
	var wg, trouble sync.WaitGroup
	seed := rand.Uint64()
	var browsers []*fleetBrowser
	for i := range fleetBrowsers {
		b := &fleetBrowser{w: w, name: fmt.Sprintf("b%d", i), ordered: i%2 == 0, rnd: rand.New(rand.NewPCG(seed, uint64(i)))}
		browsers = append(browsers, b)
		wg.Go(b.run)
	}
	if e.faults {
		for _, p := range w.all {
			trouble.Go(p.trouble)
		}
		trouble.Go(w.kill)
		if len(f.servers) == 1 {
			trouble.Go(w.pause)
		}
	}
	if e.moves {
		m := &fleetMover{w: w}
		m.find()
		trouble.Go(m.run)
		defer m.back()
	}
	wg.Wait()
	trouble.Wait()
	if !w.model.faulty() {
		w.audit(browsers)
	}
	for what, n := range w.model.counts {
		f.counts[what] += n
	}
	for _, p := range w.all {
		f.counts["conflicts"] += int(p.conflicts + p.last.Conflicts)
		f.counts["dropped"] += int(p.dropped + p.last.Dropped)
		f.counts["unreadable"] += int(p.unreadable + p.last.Unreadable)
	}
	if f.counts["unreadable"] > 0 {
		f.t.Errorf("%d records could not be read", f.counts["unreadable"])
	}
	for _, fault := range w.model.faults {
		f.t.Errorf("era %q, after %.1fs: %s", e.name, time.Since(start).Seconds(), fault)
	}
}

// over reports whether no new requests are to be made.
func (w *fleetWorld) over() bool { return w.ctx.Err() != nil || w.model.faulty() }

// audit looks at what is left when all requests are done.
func (w *fleetWorld) audit(browsers []*fleetBrowser) {
	rnd := browsers[0].rnd
	jars := func() {
		var all []string
		for _, b := range browsers {
			all = append(all, b.cookie())
		}
		w.looks(rnd, all)
	}
	// Of sessions that are over.
	old := func(n int) {
		var all []string
		for range n {
			if over := w.model.over; len(over) > 0 {
				if x := over[rnd.IntN(len(over))]; len(x.cookies) > 0 {
					all = append(all, x.cookies[rnd.IntN(len(x.cookies))].value)
				}
			}
		}
		w.looks(rnd, all)
	}
	if w.e.faults {
		time.Sleep(w.e.timeout()) // what was sent and given up has happened
	}
	jars()
	old(300)
	w.checkKeys(rnd)
	var rotated []string
	for _, b := range browsers[:4] {
		for _, do := range []fleetDo{{Do: "login", User: fleetUsers[0]}, {Do: "rotate"}} {
			r := w.launch(rnd, nil, b.name, b.cookie(), do)
			<-r.doneCh
			b.take(r)
			rotated = append(rotated, r.cookie)
		}
	}
	w.jump(w.e.grace + 2*w.e.slack)
	jars()
	w.looks(rnd, rotated)
	w.looks(rnd, w.model.sample(rnd, 300))
	if w.e.idle < time.Minute {
		w.jump(w.e.idle - w.e.slack)
		jars()
	}
	w.jump(w.e.longestIdle() + w.e.slack)
	w.looks(rnd, w.model.sample(rnd, 200))
}

// looks looks at many cookies.
func (w *fleetWorld) looks(rnd *rand.Rand, cookies []string) {
	var all []*fleetRequest
	for i, cookie := range cookies {
		all = append(all, w.launch(rnd, nil, "auditor", cookie))
		if i >= 8 {
			<-all[i-8].doneCh
		}
	}
	for _, r := range all {
		<-r.doneCh
	}
}

// sample returns cookies of any age.
func (m *fleetModel) sample(rnd *rand.Rand, n int) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Sorted(maps.Keys(m.cookies))
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:min(n, len(all))]
}

// jump moves Redis's clock. The processes start anew, since they know the time.
func (w *fleetWorld) jump(d time.Duration) {
	for _, p := range w.all {
		p.stop()
	}
	for _, s := range w.servers {
		s.Advance(d)
	}
	w.model.mu.Lock()
	w.model.jumped += d
	w.model.mu.Unlock()
	var wg sync.WaitGroup
	for _, p := range w.all {
		wg.Go(p.start)
	}
	wg.Wait()
}

// checkKeys looks at Redis itself: each key is listed, has a TTL, and no more fields than the
// sweeps allow.
func (w *fleetWorld) checkKeys(rnd *rand.Rand) {
	patterns, err := redistest.ReadKeyPatterns("../scripts/README.md")
	if err != nil {
		w.t.Fatal(err)
	}
	// Each user logs in once more, so that a sweep that is due is done.
	for _, user := range fleetUsers {
		r := w.launch(rnd, nil, "auditor", "", fleetDo{Do: "login", User: user})
		<-r.doneCh
	}
	ctx := w.t.Context()
	redistest.AssertAllTTL(w.t, w.client)
	unlisted, err := redistest.Unlisted(ctx, w.client, patterns)
	if err != nil || len(unlisted) > 0 {
		w.t.Errorf("keys that scripts/README.md does not list: %v, %v", unlisted, err)
	}
	for _, s := range w.servers {
		c := s.Client()
		for it := c.Scan(ctx, 0, w.prefix+"*", 1000).Iterator(); it.Next(ctx); {
			fields, err := c.HLen(ctx, it.Val()).Result()
			if err != nil {
				w.t.Fatal(err)
			}
			left, err := c.HGet(ctx, it.Val(), "s").Int64()
			if err != nil && !errors.Is(err, redis.Nil) {
				w.t.Fatal(err)
			}
			if most := max(16, 2*left) + 1; fields > most {
				w.t.Errorf("%s has %d fields, at most %d are expected", it.Val(), fields, most)
			}
			w.model.count("check: keys in Redis")
		}
	}
}

func (m *fleetModel) count(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[what]++
}

// look asks for a cookie and changes nothing.
func (w *fleetWorld) look(rnd *rand.Rand, cookie string) {
	r := w.launch(rnd, nil, "auditor", cookie)
	<-r.doneCh
}

// launch sends a request to a process.
func (w *fleetWorld) launch(rnd *rand.Rand, b *fleetBrowser, who, cookie string, acts ...fleetDo) *fleetRequest {
	p := w.procs[rnd.IntN(len(w.procs))]
	return w.launchAt(p, b, who, cookie, nil, acts...)
}

func (w *fleetWorld) launchAt(p *fleetProc, b *fleetBrowser, who, cookie string, die *fleetDeath, acts ...fleetDo) *fleetRequest {
	r := &fleetRequest{
		b: b, who: who, p: p, cookie: cookie, acts: acts, die: die,
		hold: slices.IndexFunc(acts, func(a fleetDo) bool { return a.Do == "hold" }),
	}
	p.send(r)
	return r
}

// fleetProc is a process of the fleet, with the ones that come after it when it dies.
type fleetProc struct {
	w      *fleetWorld
	i      int
	name   string
	faults atomic.Uint64 // of the network, begun and ended: odd while there is one

	mu       sync.Mutex
	cmd      *exec.Cmd
	in       io.WriteCloser
	pending  map[int]*fleetRequest
	running  bool // one of them runs, or is about to
	stopping bool
	killed   bool
	exited   chan struct{}

	last                           session.Stats
	conflicts, dropped, unreadable uint64
}

func (p *fleetProc) start() {
	p.mu.Lock()
	p.running, p.stopping = true, false
	p.mu.Unlock()
	p.spawn()
}

func (p *fleetProc) spawn() {
	cfg := fleetConfig{
		Cluster: len(p.w.servers) > 1, Proxies: map[string]string{}, Prefix: p.w.prefix, Timeout: p.w.e.timeout(),
		Lifetime: p.w.e.lifetime, Remembered: p.w.e.remembered, Idle: p.w.e.idle, Grace: p.w.e.grace, Every: p.w.e.every,
	}
	if p.w.e.sealed {
		cfg.Secrets = fleetSecrets(p.i)
	}
	for i, s := range p.w.servers {
		cfg.Addrs = append(cfg.Addrs, s.Addr())
		cfg.Proxies[s.Addr()] = p.w.proxies[p.i][i].Addr()
	}
	told, err := json.Marshal(cfg)
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFleetServer$")
	cmd.Env = append(os.Environ(), fleetEnv+"="+string(told))
	cmd.Stderr = &fleetComplaints{p: p}
	in, err := cmd.StdinPipe()
	if err != nil {
		panic(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		panic(err)
	}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	r := bufio.NewReaderSize(out, 1<<20)
	exited := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.in, p.killed, p.exited = cmd, in, false, exited
	if p.stopping {
		_ = cmd.Process.Kill()
	}
	p.mu.Unlock()
	ready := make(chan struct{})
	go p.hear(r, cmd, ready, exited)
	select {
	case <-ready:
	case <-exited:
	case <-time.After(fleetPatience):
		p.w.t.Errorf("%s did not start", p.name)
		_ = cmd.Process.Signal(syscall.SIGQUIT)
	}
}

// fleetPatience is how long a process may take to answer. Then it has to tell what it waits for.
const fleetPatience = 20 * time.Second

// watch looks for requests that are not answered.
func (w *fleetWorld) watch(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(fleetPatience / 4):
		}
		for _, p := range w.all {
			p.mu.Lock()
			for _, r := range p.pending {
				if !r.waits && time.Since(r.told) > fleetPatience {
					w.t.Errorf("%s does not answer #%d", p.name, r.n)
					_ = p.cmd.Process.Signal(syscall.SIGQUIT)
					break
				}
			}
			p.mu.Unlock()
		}
	}
}

// fleetComplaints fails the test for what a process says on its way down.
type fleetComplaints struct {
	p *fleetProc
}

func (c *fleetComplaints) Write(b []byte) (int, error) {
	if s := string(b); strings.TrimSpace(s) != "" {
		c.p.w.t.Errorf("%s: %s", c.p.name, s)
	}
	return len(b), nil
}

// hear takes the answers of a process until it ends, and starts the next one if it died.
func (p *fleetProc) hear(out *bufio.Reader, cmd *exec.Cmd, ready, exited chan struct{}) {
	died := false
	for {
		line, err := out.ReadBytes('\n')
		if err != nil {
			break
		}
		b, ours := bytes.CutPrefix(line, []byte("@"))
		if !ours {
			continue
		}
		var a fleetAnswer
		if err := json.Unmarshal(b, &a); err != nil {
			p.w.t.Errorf("%s: %v: %q", p.name, err, b)
			continue
		}
		switch {
		case a.Dying:
			died = true
		case a.ID == 0:
			close(ready)
		default:
			p.mu.Lock()
			r := p.pending[a.ID]
			r.waits = a.Held
			if !a.Held {
				delete(p.pending, a.ID)
				p.last = a.Stats
			}
			p.mu.Unlock()
			if a.Held {
				p.w.model.onHeld(r, &a)
			} else {
				p.w.model.onEnd(r, &a)
			}
		}
	}
	err := cmd.Wait()
	p.mu.Lock()
	lost := p.pending
	p.pending, p.in = map[int]*fleetRequest{}, nil
	p.conflicts += p.last.Conflicts
	p.dropped += p.last.Dropped
	p.unreadable += p.last.Unreadable
	p.last = session.Stats{}
	again := !p.stopping
	if !died && !p.killed && !p.stopping {
		p.w.t.Errorf("%s ended by itself: %v", p.name, err)
		again = false
	}
	p.running = again
	p.mu.Unlock()
	if died {
		p.w.model.count("died at a command")
	}
	for _, r := range lost {
		r.died = died && r.die != nil
		p.w.model.onEnd(r, nil)
	}
	if again {
		p.spawn()
	}
	close(exited)
}

func (p *fleetProc) send(r *fleetRequest) {
	r.seq = p.faults.Load()
	r.clean = r.seq%2 == 0
	p.w.model.begin(r)
	p.tell(r, fleetOrder{ID: r.n, Cookies: []string{r.cookie}, Acts: r.acts, Die: r.die})
}

// release lets a held request go on.
func (w *fleetWorld) release(r *fleetRequest) {
	select {
	case <-r.doneCh:
		return
	case <-r.heldCh:
	}
	if w.model.release(r) {
		r.p.tell(r, fleetOrder{Go: r.n})
	}
}

func (p *fleetProc) tell(r *fleetRequest, o fleetOrder) {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	p.mu.Lock()
	dead := p.in == nil || o.Go != 0 && p.pending[r.n] != r
	if !dead {
		p.pending[r.n] = r
		r.told, r.waits = time.Now(), false
		_, _ = p.in.Write(append(b, '\n')) // if it dies meanwhile, hear notices
	}
	p.mu.Unlock()
	if dead && o.Go == 0 {
		p.w.model.onEnd(r, nil)
		time.Sleep(5 * time.Millisecond)
	}
}

// kill ends the process as it stands.
func (p *fleetProc) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.in != nil {
		p.killed = true
		_ = p.cmd.Process.Kill()
	}
}

// stop ends the process, and has no other take its place.
func (p *fleetProc) stop() {
	for {
		p.mu.Lock()
		p.stopping = true
		if p.in != nil {
			_ = p.cmd.Process.Kill()
		}
		running, exited := p.running, p.exited
		p.mu.Unlock()
		if !running {
			return
		}
		<-exited
	}
}

// kill kills a process now and then.
func (w *fleetWorld) kill() {
	for w.sleep(200*time.Millisecond + rand.N(600*time.Millisecond)) {
		w.procs[rand.IntN(len(w.procs))].kill()
		w.model.count("killed")
	}
}

// sleep waits, and reports whether the era goes on.
func (w *fleetWorld) sleep(d time.Duration) bool {
	select {
	case <-w.ctx.Done():
	case <-time.After(d):
	}
	return !w.over()
}

// trouble breaks the network between a process and Redis now and then.
func (p *fleetProc) trouble() {
	for p.w.sleep(30*time.Millisecond + rand.N(200*time.Millisecond)) {
		proxies := p.w.proxies[p.i]
		proxy := proxies[rand.IntN(len(proxies))]
		p.faults.Add(1)
		switch rand.IntN(7) {
		case 0:
			proxy.LoseReply("evalsha", "eval")
		case 1:
			proxy.CutReply("evalsha", "eval")
		case 2:
			proxy.CutReply()
		case 3:
			proxy.Cut()
		case 4:
			proxy.BlackHole("evalsha")
		default:
			proxy.Delay(rand.N(30 * time.Millisecond))
		}
		p.w.model.count("network faults")
		p.w.sleep(2*time.Millisecond + rand.N(15*time.Millisecond))
		proxy.Heal()
		p.faults.Add(1)
	}
}

// pause stops Redis for a moment now and then.
func (w *fleetWorld) pause() {
	for w.sleep(300*time.Millisecond + rand.N(700*time.Millisecond)) {
		for _, p := range w.all {
			p.faults.Add(2)
		}
		w.servers[0].Pause()
		time.Sleep(5*time.Millisecond + rand.N(40*time.Millisecond))
		w.servers[0].Resume()
		for _, p := range w.all {
			p.faults.Add(2)
		}
		w.model.count("pauses of Redis")
	}
}

// fleetBrowser is a browser with its jar.
type fleetBrowser struct {
	w       *fleetWorld
	name    string
	ordered bool // it gets every response, in their order
	rnd     *rand.Rand

	mu     sync.Mutex
	jar    string
	setBy  *fleetRequest // whose response set it
	user   string        // as far as it knows
	keys   []string      // of its session, as it saw them last
	old    []string      // cookies that it had
	slowTo time.Duration // the end of its last long request
}

func (b *fleetBrowser) cookie() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.jar
}

// answered takes a response on its way; the model is locked.
func (b *fleetBrowser) answered(r *fleetRequest) {
	a := r.answer
	b.mu.Lock()
	if a.Saw != nil && r.alive {
		b.user, b.keys = a.Saw.User, slices.Sorted(maps.Keys(a.Saw.Values))
	}
	if r.ended-r.sent > b.w.e.grace/2-b.w.e.slack/2 {
		b.slowTo = r.ended
	}
	b.mu.Unlock()
	switch {
	case slices.ContainsFunc(r.acts, func(a fleetDo) bool { return strings.HasPrefix(a.Do, "hang up") }):
		return
	case b.ordered:
		b.judge(r)
	default:
		switch rand.IntN(16) {
		case 0:
			b.w.model.counts["responses lost"]++
			return
		case 1, 2, 3:
			b.w.model.counts["responses delayed"]++
			time.AfterFunc(rand.N(60*time.Millisecond), func() { b.take(r) })
			return
		}
	}
	b.take(r)
}

// judge looks at a browser that gets all responses in order: one that is logged in stays so,
// whatever its other requests are answered.
func (b *fleetBrowser) judge(r *fleetRequest) {
	m := b.w.model
	b.mu.Lock()
	jar, set, slowTo := m.cookies[b.jar], b.setBy, b.slowTo
	b.mu.Unlock()
	if jar == nil || jar.of.user == "" || r.changed || r.c == nil || set == nil || set.answer.Finish != "" {
		return
	}
	// What was decided before the login and comes after it may set its cookie.
	if r.phase(len(r.acts)) < set.ended || r.sent < slowTo+b.w.e.grace {
		return
	}
	if r.sent >= set.ended && !m.mustLive(jar.of, jar, r, r.ended) {
		return // it may be over
	}
	m.counts["check: the jar keeps its login"]++
	if r.set != nil && r.set.of != jar.of || r.answer.Action == fleetDelete {
		m.fault(r, "the browser was logged in by s%d, and this cookie takes its place", jar.of.n)
	}
}

// take does with the cookie what a response says.
func (b *fleetBrowser) take(r *fleetRequest) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch r.answer.Action {
	case fleetKeep:
		return
	case fleetSet:
		b.jar = r.answer.Value
	case fleetDelete:
		b.jar = ""
	}
	b.setBy = r
	if r.cookie != "" {
		b.old = append(b.old, r.cookie)
		if len(b.old) > 40 {
			b.old = slices.Delete(b.old, 0, 20)
		}
	}
}

// run has a browser make requests, until the era is over.
func (b *fleetBrowser) run() {
	w, rnd := b.w, b.rnd
	for !w.over() {
		var asked []*fleetRequest
		switch n := rnd.IntN(100); {
		case n < 40:
			asked = append(asked, b.request(false))
			<-asked[0].doneCh
		case n < 80:
			asked = b.together(w.short(rnd))
		case n < 86:
			b.crash()
		case n < 90 && !b.ordered: // somebody else has an old cookie of it
			asked = append(asked, w.launch(rnd, nil, "thief of "+b.name, b.oldCookie(), b.acts(false)...))
			<-asked[0].doneCh
		case n < 93: // a cookie of long ago comes back
			b.mu.Lock()
			if len(b.old) > 0 {
				b.jar, b.setBy = b.old[rnd.IntN(len(b.old))], nil
			}
			b.mu.Unlock()
			asked = b.together(w.short(rnd))
		case n < 94 && !b.ordered && w.e.idle < 10*time.Second:
			// One that only reads is under way until its session is over.
			asked = b.together(max(w.e.longestIdle(), w.e.grace)+w.e.slack+rand.N(300*time.Millisecond), fleetDo{Do: "hold"})
			w.look(rnd, asked[0].cookie)
		case n < 95:
			w.sleep(rand.N(w.e.grace))
		}
		for _, r := range asked {
			if rnd.IntN(3) == 0 {
				w.look(rnd, r.cookie)
			}
		}
		w.sleep(rand.N(8 * time.Millisecond))
	}
}

// short is how long requests are held.
func (w *fleetWorld) short(rnd *rand.Rand) time.Duration {
	if rnd.IntN(3) > 0 {
		return 0
	}
	return rand.N(w.e.grace / 4)
}

func (b *fleetBrowser) oldCookie() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.old) == 0 {
		return b.jar
	}
	return b.old[b.rnd.IntN(len(b.old))]
}

func (b *fleetBrowser) request(hold bool) *fleetRequest {
	return b.w.launch(b.rnd, b, b.name, b.cookie(), b.acts(hold)...)
}

// together makes some requests at once. The first are held, on the way through their handler,
// until the others are answered; one of these may be given.
func (b *fleetBrowser) together(wait time.Duration, given ...fleetDo) (all []*fleetRequest) {
	rnd := b.rnd
	var held []*fleetRequest
	if len(given) > 0 {
		held = append(held, b.w.launch(rnd, b, b.name, b.cookie(), given...))
	}
	for range 1 + rnd.IntN(2) {
		held = append(held, b.request(true))
	}
	for _, r := range held {
		select {
		case <-r.heldCh:
		case <-r.doneCh:
		}
	}
	for range 1 + rnd.IntN(2) {
		all = append(all, b.request(false))
	}
	for _, r := range all {
		<-r.doneCh
	}
	if wait > 0 {
		b.w.sleep(wait)
	}
	for _, r := range held {
		b.w.release(r)
		if rnd.IntN(2) == 0 {
			<-r.doneCh
		}
	}
	for _, r := range held {
		<-r.doneCh
	}
	return append(all, held...)
}

// crash logs in at a process that dies of it, and looks what is left.
func (b *fleetBrowser) crash() {
	w, rnd := b.w, b.rnd
	if !w.dying.TryLock() {
		return
	}
	defer w.dying.Unlock()
	d := &fleetDeath{Finish: rnd.IntN(3) > 0, N: 1 + rnd.IntN(2), After: rnd.IntN(2) == 0}
	if !d.Finish {
		d.N += rnd.IntN(2)
	}
	cookie := b.cookie()
	r := w.launchAt(w.victim, b, b.name, cookie, d, b.put(), fleetDo{Do: "login", User: b.anyUser()})
	<-r.doneCh
	b.look(cookie)
	b.look(b.cookie())
}

func (b *fleetBrowser) look(cookie string) { b.w.look(b.rnd, cookie) }

func (b *fleetBrowser) anyUser() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.user != "" && b.rnd.IntN(3) == 0 {
		return b.user
	}
	return fleetUsers[b.rnd.IntN(len(fleetUsers))]
}

func (b *fleetBrowser) put() fleetDo {
	n := b.w.keys.Add(1)
	d := fleetDo{Do: "put", Key: fmt.Sprint("k", n), Mark: fmt.Sprint(n), Large: b.rnd.IntN(20) == 0}
	if b.rnd.IntN(4) == 0 {
		d.Key = fleetShared
	}
	return d
}

// acts draws what a handler does.
func (b *fleetBrowser) acts(hold bool) (acts []fleetDo) {
	rnd := b.rnd
	do := func(names ...string) {
		for _, name := range names {
			d := fleetDo{Do: name}
			switch name {
			case "put":
				d = b.put()
			case "login":
				d.User = b.anyUser()
			case "remember":
				d.On = rnd.IntN(2) == 0
			}
			acts = append(acts, d)
		}
	}
	b.mu.Lock()
	keys := slices.DeleteFunc(slices.Clone(b.keys), func(k string) bool { return k == fleetShared })
	b.mu.Unlock()
	switch n := rnd.IntN(100); {
	case len(keys) > 25 && n < 50:
		do("logout")
	case n < 22: // read
	case n < 40:
		do("put")
	case n < 46:
		do("put", "commit")
	case n < 49:
		do("put", "commit", "put")
	case n < 50:
		do("put", "commit", "login", "put")
	case n < 58 && len(keys) > 0:
		acts = append(acts, fleetDo{Do: "remove", Key: keys[rnd.IntN(len(keys))]})
	case n < 59:
		do("clear")
	case n < 72:
		do("rotate")
		if rnd.IntN(3) == 0 {
			do("put")
		}
	case n < 75:
		do("remember")
	case n < 90:
		for range rnd.IntN(2) {
			do("put")
		}
		do("login")
		for range rnd.IntN(2) {
			do("put")
		}
		switch rnd.IntN(10) {
		case 0:
			do("commit")
		case 1:
			do("put", "commit")
		case 2:
			do("login", "put")
		case 3:
			do("panic")
		}
	default:
		do("logout")
		switch rnd.IntN(6) {
		case 0:
			do("put")
		case 1:
			do("login", "put")
		}
	}
	insert := func(name string) {
		acts = slices.Insert(acts, rnd.IntN(len(acts)+1), fleetDo{Do: name})
	}
	if hold {
		insert("hold")
	}
	switch rnd.IntN(30) {
	case 0:
		insert("hang up")
	case 1:
		insert("hang up soon")
	case 2:
		do("panic")
	}
	return acts
}

// fleetMover moves the slots of sessions from node to node.
type fleetMover struct {
	w     *fleetWorld
	nodes []*redis.Client
	ids   []string
	at    map[int]int // the node of a slot
	home  map[int]int
	moved map[int]time.Time

	broken bool
}

// fleetRest is how long a slot stays where it is. A client that is redirected, and takes its
// time, would be served by a node that the slot has left and is coming back to: one without
// the keys, which cannot know that.
const fleetRest = 1200 * time.Millisecond

// find learns where the slots of sessions are. They lie 64 apart.
func (m *fleetMover) find() {
	t, ctx := m.w.t, m.w.t.Context()
	m.at, m.home = map[int]int{}, map[int]int{}
	for _, s := range m.w.servers {
		c := s.Client()
		m.nodes = append(m.nodes, c)
		m.ids = append(m.ids, c.Do(ctx, "cluster", "myid").Val().(string))
	}
	var first int64 = -1
	for r := m.w.launch(rand.New(rand.NewPCG(1, 1)), nil, "mover", "", fleetDo{Do: "login", User: fleetUsers[0]}); first < 0; {
		<-r.doneCh
		for _, c := range m.nodes {
			keys, _, err := c.Scan(ctx, 0, m.w.prefix+"*", 10000).Result()
			if err != nil {
				t.Fatal(err)
			}
			if len(keys) > 0 {
				first = c.ClusterKeySlot(ctx, keys[0]).Val() % 64
			}
		}
	}
	shards, err := m.nodes[0].ClusterShards(ctx).Result()
	if err != nil {
		t.Fatal(err)
	}
	for slot := first; slot < 16384; slot += 64 {
		for _, shard := range shards {
			for _, r := range shard.Slots {
				if r.Start <= slot && slot <= r.End {
					m.at[int(slot)] = slices.Index(m.ids, shard.Nodes[0].ID)
				}
			}
		}
	}
	m.home, m.moved = maps.Clone(m.at), map[int]time.Time{}
	if len(m.home) != 256 {
		t.Fatalf("%d slots of sessions", len(m.home))
	}
}

// run moves slots until the era is over.
func (m *fleetMover) run() {
	for m.w.sleep(rand.N(20 * time.Millisecond)) {
		from := rand.IntN(len(m.nodes))
		to := (from + 1 + rand.IntN(len(m.nodes)-1)) % len(m.nodes)
		var slots []int
		for slot, at := range m.at {
			if at == from && len(slots) < 24 && time.Since(m.moved[slot]) > fleetRest {
				slots = append(slots, slot)
			}
		}
		m.move(slots, from, to, rand.N(20*time.Millisecond))
		for range slots {
			m.w.model.count("slots moved")
		}
	}
}

// back brings the slots back to where they were.
func (m *fleetMover) back() {
	for from := range m.nodes {
		for to := range m.nodes {
			var slots []int
			for slot, at := range m.at {
				if at == from && m.home[slot] == to && from != to {
					slots = append(slots, slot)
				}
			}
			m.move(slots, from, to, 0)
		}
	}
}

// move moves slots as redis-cli --cluster reshard does.
func (m *fleetMover) move(slots []int, from, to int, pause time.Duration) {
	t, ctx := m.w.t, m.w.t.Context()
	if len(slots) == 0 || m.broken {
		return
	}
	m.broken = true // until it is done
	all := func(node int, f func(p redis.Pipeliner, slot int)) []redis.Cmder {
		cmds, err := m.nodes[node].Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, slot := range slots {
				f(p, slot)
			}
			return nil
		})
		if err != nil {
			t.Errorf("moving slots: %v", err)
		}
		return cmds
	}
	all(to, func(p redis.Pipeliner, slot int) { p.Do(ctx, "cluster", "setslot", slot, "importing", m.ids[from]) })
	all(from, func(p redis.Pipeliner, slot int) { p.Do(ctx, "cluster", "setslot", slot, "migrating", m.ids[to]) })
	time.Sleep(pause)
	host, port, err := net.SplitHostPort(m.w.servers[to].Addr())
	if err != nil {
		t.Error(err)
		return
	}
	for _, slot := range slots {
		for {
			keys, err := m.nodes[from].ClusterGetKeysInSlot(ctx, slot, 50).Result()
			if err != nil {
				t.Errorf("moving slots: %v", err)
				return
			}
			if len(keys) == 0 {
				break
			}
			args := []any{"migrate", host, port, "", 0, 5000, "keys"}
			for _, key := range keys {
				args = append(args, key)
			}
			if err := m.nodes[from].Do(ctx, args...).Err(); err != nil {
				t.Errorf("moving slots: %v", err)
				return
			}
			m.w.model.count("keys moved")
		}
	}
	for _, node := range []int{to, from, 3 - from - to} {
		all(node, func(p redis.Pipeliner, slot int) { p.Do(ctx, "cluster", "setslot", slot, "node", m.ids[to]) })
	}
	for _, slot := range slots {
		m.at[slot], m.moved[slot] = to, time.Now()
	}
	// The new owner has raised its epoch by itself. Until all know of it, the next one might
	// raise its own to the same number, and both would own the slots.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		epochs := make(map[string]bool)
		for _, c := range m.nodes {
			text, err := c.ClusterNodes(ctx).Result()
			if err != nil {
				t.Errorf("moving slots: %v", err)
				return
			}
			for line := range strings.Lines(text) {
				if fields := strings.Fields(line); len(fields) > 6 && fields[0] == m.ids[to] {
					epochs[fields[6]] = true
				}
			}
		}
		if len(epochs) == 1 {
			m.broken = false
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("epochs of the new owner: %v", epochs)
			return
		}
	}
}
