package session

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

var accountsFor = flag.Duration("session.accounts", 2*time.Second, "how long people log in and out of a few accounts, for each kind of Redis")

const (
	accountsEnv = "GATEHOUSE_TEST_SESSION_ACCOUNTS"
	accountsMax = 4 // sessions of a user
)

var accountsUsers = []string{"ann", "bob"}

// accountsConfig configures a process at its start.
type accountsConfig struct {
	Addrs   []string
	Cluster bool
	Broken  string // what is done wrongly; "": nothing
}

// accountsOrder is one request.
type accountsOrder struct {
	ID     int
	Do     string
	User   string
	Cookie string
	Handle string
	Hold   time.Duration // between Load and what is done
}

// accountsAnswer is what came of it. Times are of the machine that all processes share, in µs.
type accountsAnswer struct {
	ID                           int
	Began, Loaded, Called, Ended int64  // Called: after what it was held for
	User, Handle                 string // as loaded
	After                        string // handle, after what was done
	Cookie                       string // that was set; "-": deleted
	Err                          string
	Listed                       []string
}

// TestAccountsChild is the body of the further processes; it does nothing in an ordinary run.
func TestAccountsChild(t *testing.T) {
	text := os.Getenv(accountsEnv)
	if text == "" {
		t.Skip("this is for further processes of TestAccountsModel")
	}
	var cfg accountsConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: cfg.Addrs, IsClusterMode: cfg.Cluster, PoolSize: 50})
	if broken, ok := accountsBroken[cfg.Broken]; ok {
		client.AddHook(broken)
	}
	client.AddHook(arrivingLate{})
	m, err := New(client, Config{
		Accounts: Accounts{Max: accountsMax}, Timeout: 2 * time.Second, IdleTimeout: 12 * time.Hour,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	// A process that has never asked this Redis cannot know that its clock has been set.
	for _, user := range accountsUsers {
		if _, err := m.List(t.Context(), user); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	_ = out.Encode(accountsAnswer{}) // of no request: it is ready
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var o accountsOrder
		if err := json.Unmarshal(in.Bytes(), &o); err != nil {
			t.Fatal(err)
		}
		go func() {
			a := o.serve(m)
			mu.Lock()
			defer mu.Unlock()
			_ = out.Encode(a)
		}()
	}
}

// arrivingLate has some commands arrive late.
type arrivingLate struct{ onlyCommands }

func (arrivingLate) wait() {
	if rand.IntN(3) == 0 {
		time.Sleep(rand.N(8 * time.Millisecond))
	}
}

func (s arrivingLate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { s.wait(); return next(ctx, cmd) }
}

func (s arrivingLate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { s.wait(); return next(ctx, cmds) }
}

func (o accountsOrder) serve(m *Manager) (a accountsAnswer) {
	a.ID, a.Began = o.ID, time.Now().UnixMicro()
	defer func() { a.Ended = time.Now().UnixMicro() }()
	ctx, err := m.Load(context.Background(), o.Cookie)
	a.Loaded = time.Now().UnixMicro()
	if err != nil {
		a.Err = err.Error()
		return a
	}
	a.User, a.Handle = m.UserID(ctx), m.Info(ctx).Handle
	time.Sleep(o.Hold)
	a.Called = time.Now().UnixMicro()
	switch o.Do {
	case "login":
		err = m.Login(ctx, o.User)
	case "put":
		m.Put(ctx, "k", a.Loaded)
	case "rotate":
		err = m.Rotate(ctx)
	case "confirm":
		err = m.Confirm(ctx)
	case "logout":
		err = m.Logout(ctx)
	case "others":
		_, err = m.EndOthers(ctx, Cause{})
	case "all":
		_, err = m.EndAll(context.Background(), o.User, Cause{})
	case "one":
		err = m.End(context.Background(), o.User, o.Handle, Cause{})
	case "list":
		var list []Info
		list, err = m.List(ctx, o.User)
		for _, i := range list {
			a.Listed = append(a.Listed, i.Handle)
		}
	}
	out, also := m.Finish(ctx)
	if err = errors.Join(err, also); err != nil {
		a.Err = err.Error()
	}
	a.After = m.Info(ctx).Handle
	switch out.Action {
	case CookieSet:
		a.Cookie = out.Value
	case CookieDelete:
		a.Cookie = "-"
	}
	return a
}

// accountsBroken are the ways in which the processes may do it wrongly, for the model to find.
var accountsBroken = map[string]redis.Hook{
	"EndAll without the fence":       redistest.Broken(loginScript, "if stale then", "if false then", "note, margin}", "note, -1}"),
	"a fence compared by age alone":  redistest.Broken(loginScript, "loaded <= at or margin <= 0", "margin <= 0", "note, margin}", "note, -1}"),
	"a fence compared by time alone": redistest.Broken(loginScript, "loaded <= at or margin <= 0", "loaded <= at", "note, margin}", "note, -1}"),
	// What others have created since the last count of this process does not count.
	"a cap counted apart from the creation":                redistest.Broken(loginScript, "count - most + 1", "(count - most + 1) * (now % 2)"),
	"a commit that does not ask whether its record stands": unconditional,
}

// accountsSession is a session, as the model knows it.
type accountsSession struct {
	user    string
	cookies []string
	loaded  int64 // when the request of its login was loaded
	deadAt  int64 // from then on it answers nobody; 0: as far as is known it may
	why     string
	silent  bool // none of its cookies has answered lately: no audit looks at it
}

// accountsEnd is a call that has ended sessions of a user.
type accountsEnd struct {
	began, ended int64
	but          string // handle
	what         string
}

// accountsModel judges what the processes answer.
type accountsModel struct {
	mu       sync.Mutex
	sessions map[string]map[string]*accountsSession // of each user, by handle
	ends     map[string][]accountsEnd
	counts   map[string]int
	faults   []string
}

func (m *accountsModel) fault(format string, args ...any) {
	m.faults = append(m.faults, fmt.Sprintf(format, args...))
}

// learn takes in an answer of a request for a session of o.User.
func (m *accountsModel) learn(o accountsOrder, a accountsAnswer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts[o.Do]++
	if a.Err != "" {
		m.counts[o.Do+": "+a.Err]++
	}
	if a.User != "" { // it answered
		m.counts["answers"]++
		if s := m.sessions[a.User][a.Handle]; s != nil && s.deadAt != 0 && a.Began > s.deadAt {
			m.fault("%s of %s answers %d µs after %s had returned", a.Handle, a.User, a.Began-s.deadAt, s.why)
		}
	}
	if a.Err == "" {
		switch o.Do {
		case "all":
			m.end(o.User, accountsEnd{a.Called, a.Ended, "", "EndAll"})
		case "others":
			m.end(a.User, accountsEnd{a.Called, a.Ended, a.Handle, "EndOthers"})
		case "one":
			m.kill(m.sessions[o.User][o.Handle], a.Ended, "End")
		case "logout":
			m.kill(m.sessions[a.User][a.Handle], a.Ended, "Logout")
		case "list": // of one moment
			if len(a.Listed) > accountsMax {
				m.fault("%d sessions of %s are listed", len(a.Listed), o.User)
			}
			for _, h := range a.Listed {
				if s := m.sessions[o.User][h]; s != nil && s.deadAt != 0 && a.Began > s.deadAt {
					m.fault("%s of %s is listed %d µs after %s had returned", h, o.User, a.Began-s.deadAt, s.why)
				}
			}
		}
	}
	if a.Cookie == "" || a.Cookie == "-" {
		return
	}
	user := a.User
	if o.Do == "login" && a.Err == "" {
		user = o.User
	}
	if user == "" {
		return
	}
	s := m.sessions[user][a.After]
	if s == nil {
		s = &accountsSession{user: user, loaded: a.Loaded}
		m.sessions[user][a.After] = s
		for _, e := range m.ends[user] {
			if e.but != a.After && s.loaded < e.began {
				m.kill(s, e.ended, e.what)
			}
		}
	}
	s.cookies, s.silent = append(s.cookies, a.Cookie), false
}

// end notes that sessions whose logins were loaded before are over, also those that are heard of
// only later.
func (m *accountsModel) end(user string, e accountsEnd) {
	m.ends[user] = append(m.ends[user], e)
	for handle, s := range m.sessions[user] {
		if handle != e.but && s.loaded < e.began {
			m.kill(s, e.ended, e.what)
		}
	}
}

func (m *accountsModel) kill(s *accountsSession, at int64, why string) {
	if s != nil && (s.deadAt == 0 || at < s.deadAt) {
		s.deadAt, s.why = at, why
	}
}

// accountsProc is a process.
type accountsProc struct {
	cmd     *exec.Cmd
	mu      sync.Mutex
	in      *json.Encoder
	waiting map[int]chan accountsAnswer // nil: it is dead
	ready   chan accountsAnswer         // one, or closed if it has died before
}

func startAccounts(t *testing.T, cfg accountsConfig) *accountsProc {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &accountsProc{cmd: exec.Command(os.Args[0], "-test.run=^TestAccountsChild$"), ready: make(chan accountsAnswer, 1)}
	p.waiting = map[int]chan accountsAnswer{0: p.ready}
	p.cmd.Env = append(os.Environ(), accountsEnv+"="+string(text))
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = json.NewEncoder(in)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var a accountsAnswer
			if json.Unmarshal(lines.Bytes(), &a) != nil {
				continue // what the test binary says for itself
			}
			p.mu.Lock()
			if c := p.waiting[a.ID]; c != nil {
				c <- a
				delete(p.waiting, a.ID)
			}
			p.mu.Unlock()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.waiting {
			close(c)
		}
		p.waiting = nil
		_ = p.cmd.Wait()
	}()
	return p
}

// ask returns false if the process has died.
func (p *accountsProc) ask(o accountsOrder) (accountsAnswer, bool) {
	c := make(chan accountsAnswer, 1)
	p.mu.Lock()
	if p.waiting == nil {
		p.mu.Unlock()
		return accountsAnswer{}, false
	}
	p.waiting[o.ID] = c
	err := p.in.Encode(o)
	p.mu.Unlock()
	if err != nil {
		return accountsAnswer{}, false
	}
	a, ok := <-c
	return a, ok
}

// accounts runs processes for a while and returns what the model found wrong.
func accounts(t *testing.T, rb redistest.Backend, during time.Duration, browsers int, broken string) (*accountsModel, bool) {
	t.Helper()
	m := &accountsModel{sessions: map[string]map[string]*accountsSession{}, ends: map[string][]accountsEnd{}, counts: map[string]int{}}
	users := accountsUsers
	for _, u := range users {
		m.sessions[u] = map[string]*accountsSession{}
	}
	cfg := accountsConfig{rb.Addrs, rb.Name == "cluster", broken}
	var mu sync.Mutex
	procs := make([]*accountsProc, 4)
	for i := range procs {
		procs[i] = startAccounts(t, cfg)
	}
	for _, p := range procs {
		<-p.ready
	}
	id := 0
	begun := new(sync.WaitGroup) // requests, since the last step of the clock
	ask := func(o accountsOrder) (accountsAnswer, bool) {
		mu.Lock()
		id++
		o.ID = id
		p := procs[rand.IntN(len(procs))]
		since := begun
		since.Add(1)
		mu.Unlock()
		defer since.Done()
		a, ok := p.ask(o)
		if ok {
			m.learn(o, a)
		}
		return a, ok
	}
	found := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.faults) > 0
	}
	until := time.Now().Add(during)
	over := func() bool { // on a busy machine later
		late := time.Since(until)
		return found() || late > 30*time.Second || late > 0 && m.enough()
	}
	var wg sync.WaitGroup
	for range browsers {
		wg.Go(func() {
			cookie := ""
			for !over() {
				o := accountsOrder{Do: "read", User: users[rand.IntN(2)], Cookie: cookie, Hold: rand.N(4 * time.Millisecond)}
				calm := time.Now().UnixMilli()/500%2 == 0 // sessions become many
				switch n := rand.IntN(40); {
				case n >= 19 && n < 26 && calm:
				case n < 10:
					o.Do = "login"
				case n < 14:
					o.Do = "put"
				case n < 17:
					o.Do = "rotate"
				case n < 19:
					o.Do = "confirm"
				case n < 20:
					o.Do = "logout"
				case n < 22:
					o.Do = "others"
				case n < 24:
					o.Do = "all"
				case n < 26:
					o.Do = "one"
					m.mu.Lock()
					for h, s := range m.sessions[o.User] {
						if o.Handle = h; s.deadAt == 0 {
							break
						}
					}
					m.mu.Unlock()
				case n < 28:
					cookie = "" // another browser
				case n < 31:
					o.Do = "list"
				}
				a, ok := ask(o)
				switch {
				case !ok:
				case a.Cookie == "-":
					cookie = ""
				case a.Cookie != "":
					cookie = a.Cookie
				}
			}
		})
	}
	wg.Go(func() { // kills
		for !over() {
			time.Sleep(300 * time.Millisecond)
			mu.Lock()
			i := rand.IntN(len(procs))
			_ = procs[i].cmd.Process.Kill()
			p := startAccounts(t, cfg)
			procs[i] = p
			mu.Unlock()
			<-p.ready
		}
	})
	wg.Go(func() { // the clock of Redis steps, and comes back
		before := new(sync.WaitGroup) // requests begun before the last step: none meets two
		for sign := time.Duration(1); !over(); sign = -sign {
			time.Sleep(150*time.Millisecond + rand.N(400*time.Millisecond))
			before.Wait()
			rb.Advance(t, sign*10*time.Minute)
			mu.Lock()
			before, begun = begun, new(sync.WaitGroup)
			mu.Unlock()
		}
	})
	wg.Go(func() { // audits
		for !over() {
			user := users[rand.IntN(2)]
			alive := m.audit(ask, user, 2)
			if len(alive) > accountsMax {
				m.mu.Lock()
				m.fault("%d sessions of %s answer", len(alive), user)
				m.mu.Unlock()
			}
		}
	})
	wg.Wait()
	quiet := !found()
	for _, user := range users { // what is listed is what answers
		if !quiet {
			break
		}
		time.Sleep(20 * time.Millisecond)
		alive := m.audit(ask, user, 1)
		var a accountsAnswer
		for ok := false; !ok; {
			a, ok = ask(accountsOrder{Do: "list", User: user})
		}
		slices.Sort(a.Listed)
		slices.Sort(alive)
		m.mu.Lock()
		for _, h := range alive {
			if !slices.Contains(a.Listed, h) {
				m.fault("%s of %s answers and is not listed", h, user)
			}
		}
		m.counts["alive in the end"] += len(alive)
		if len(alive) > accountsMax {
			m.fault("%d sessions of %s answer in the end", len(alive), user)
		}
		m.mu.Unlock()
	}
	for _, p := range procs {
		_ = p.cmd.Process.Kill()
	}
	return m, quiet
}

// enough reports whether the model has seen enough to judge by.
func (m *accountsModel) enough() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.counts["answers"] >= 50 && m.counts["login"] >= 50
}

// audit returns the handles of a user's sessions that answer, each after so many looks at all of
// them: what answers at the last has lived at one moment, when that began.
func (m *accountsModel) audit(ask func(accountsOrder) (accountsAnswer, bool), user string, looks int) (alive []string) {
	m.mu.Lock()
	var cookies []string
	for _, s := range m.sessions[user] {
		if s.deadAt == 0 && !s.silent {
			cookies = append(cookies, s.cookies...)
			s.silent = true
		}
	}
	m.mu.Unlock()
	for range looks {
		alive = alive[:0]
		var left []string
		for _, c := range cookies {
			if a, ok := ask(accountsOrder{Do: "read", User: user, Cookie: c}); ok && a.User == user {
				left = append(left, c)
				if !slices.Contains(alive, a.Handle) {
					alive = append(alive, a.Handle)
				}
				m.mu.Lock()
				if s := m.sessions[user][a.Handle]; s != nil {
					s.silent = false
				}
				m.mu.Unlock()
			}
		}
		cookies = left
	}
	return alive
}

// Several processes, killed now and then, over a Redis whose clock steps: nothing answers that
// was ended, by nobody's renewal, and no user has more sessions than allowed.
func TestAccountsModel(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Mini != nil {
			t.Skip("several processes need a real Redis")
		}
		m, _ := accounts(t, rb, *accountsFor, 16, "")
		for _, f := range m.faults[:min(len(m.faults), 10)] {
			t.Error(f)
		}
		t.Log(m.counts)
		if !m.enough() {
			t.Errorf("too little has happened: %v", m.counts)
		}
	})
}

// The model finds each of these.
func TestAccountsModelCatches(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		if rb.Name != "standalone" {
			t.Skip("one Redis is enough")
		}
		for broken := range accountsBroken { // in any order
			browsers := 16
			if strings.Contains(broken, "by time") {
				browsers = 6 // or a process learns of a step by its other requests
			}
			m, _ := accounts(t, rb, 90*time.Second, browsers, broken)
			if len(m.faults) == 0 {
				t.Errorf("%s is not found: %v", broken, m.counts)
			} else {
				t.Logf("%s: %s (%d logins)", broken, m.faults[0], m.counts["login"])
			}
			rb.Client.FlushAll(t.Context())
			if redistest.RaceDetector {
				break // it is slow: another one the next time
			}
		}
	})
}
