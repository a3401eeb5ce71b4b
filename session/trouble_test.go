package session

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

const troubleTimeout = 700 * time.Millisecond // a busy machine answers in less

// inTime runs f until it once took at most the timeout and half of it: a busy machine may
// delay one attempt, but not each of five.
func inTime(t *testing.T, what string, timeout time.Duration, f func()) {
	t.Helper()
	var took time.Duration
	for range 5 {
		start := time.Now()
		f()
		if took = time.Since(start); took <= timeout+timeout/2 {
			return
		}
	}
	t.Errorf("%s took %v, at most %v is allowed", what, took, timeout)
}

// trouble is a server behind a proxy, and a session in it.
type trouble struct {
	server *redistest.Server
	proxy  *redistest.Proxy
	m      *Manager
	direct *Manager // past the proxy
	b      *browser
	log    *logged
}

func newTrouble(t *testing.T, set ...func(*redis.Options)) *trouble {
	tr := &trouble{server: redistest.Start(t), log: &logged{}}
	tr.proxy = redistest.NewProxy(t, tr.server.Addr())
	opts := &redis.Options{Addr: tr.proxy.Addr()}
	for _, f := range set {
		f(opts)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	tr.m = managerOver(t, client, Config{Timeout: troubleTimeout, Secrets: [][]byte{secret}, Logger: tr.log.logger()})
	tr.direct = managerOver(t, tr.server.Client(), Config{Timeout: 5 * time.Second, Secrets: [][]byte{secret}})
	tr.b = begin(t, tr.direct, "ann")
	tr.b.m = tr.m
	return tr
}

// recovers tells whether the session is back soon, and for good.
func (tr *trouble) recovers(t *testing.T, user string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		ctx, err := tr.m.Load(t.Context(), tr.b.cookie)
		if err == nil {
			if got := tr.m.UserID(ctx); got != user {
				t.Errorf("after the trouble the user is %q, want %q", got, user)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still in trouble: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	for i := range 20 {
		tr.b.request(func(ctx context.Context) { tr.m.Put(ctx, "after", i) })
	}
}

func TestRedisInTrouble(t *testing.T) {
	t.Parallel() // with others that wait
	for _, tc := range []struct {
		name   string
		break_ func(tr *trouble)
		heal   func(tr *trouble)
		// executed: what was sent may be executed in spite of the error
		executed bool
	}{
		{"refused", func(tr *trouble) { tr.server.Kill() }, func(tr *trouble) { tr.server.Restart() }, false},
		{"cut", func(tr *trouble) { tr.proxy.Cut() }, func(tr *trouble) { tr.proxy.Heal() }, false},
		{"black-holed", func(tr *trouble) { tr.proxy.BlackHole() }, func(tr *trouble) { tr.proxy.Heal() }, false},
		{"slow", func(tr *trouble) { tr.proxy.Delay(10 * time.Second) }, func(tr *trouble) { tr.proxy.Heal(); tr.proxy.Disconnect() }, false},
		{"garbage", func(tr *trouble) { tr.proxy.Garbage() }, func(tr *trouble) { tr.proxy.Heal() }, false},
		{"replies lost", func(tr *trouble) { tr.proxy.LoseReply() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"replies cut", func(tr *trouble) { tr.proxy.CutReply() }, func(tr *trouble) { tr.proxy.Heal() }, true},
		{"paused", func(tr *trouble) { tr.server.Pause() }, func(tr *trouble) { tr.server.Resume() }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tr := newTrouble(t)
			m, user := tr.m, "ann"
			if tc.name == "refused" {
				user = "" // that server keeps nothing on disk
			}
			loaded := func() context.Context { return load(t, m, tr.b.cookie) }
			changed, committed, rotated, loggedIn, again, loggedOut := loaded(), loaded(), loaded(), loaded(), loaded(), loaded()
			if err := m.Login(again, "ann"); err != nil { // which Finish has to complete
				t.Fatal(err)
			}
			tc.break_(tr)
			defer tc.heal(tr)
			expect := func(what string, timeout time.Duration, f func() error) {
				t.Helper()
				inTime(t, what, timeout, func() {
					if err := f(); !errors.Is(err, ErrUnavailable) {
						t.Errorf("%s: %v", what, err)
					}
				})
			}
			end := func(ctx context.Context) func() error {
				return func() error {
					o, err := m.Finish(ctx)
					if o != (Outcome{}) {
						t.Errorf("%+v with %v", o, err)
					}
					return err
				}
			}
			expect("Load", troubleTimeout, func() error { _, err := m.Load(t.Context(), tr.b.cookie); return err })
			// Whose clock was last asked for a while ago waits no longer.
			expect("Load after a quiet time", troubleTimeout, func() error {
				m.records.clocks.age(2 * clockAge)
				_, err := m.Load(t.Context(), tr.b.cookie)
				return err
			})
			m.Put(changed, "k", "changed")
			expect("Finish", troubleTimeout, end(changed))
			m.Put(committed, "k", "changed")
			expect("Commit", troubleTimeout, func() error { return m.Commit(committed) })
			expect("Commit after a quiet time", 2*troubleTimeout, func() error {
				m.records.clocks.age(2 * clockAge)
				return m.Commit(committed)
			})
			_ = m.Rotate(rotated)
			expect("Rotate", troubleTimeout, end(rotated))
			expect("Login", 2*troubleTimeout, func() error { return m.Login(loggedIn, "ann") })
			if m.UserID(loggedIn) != "ann" || m.GetString(loggedIn, "k") != "v" {
				t.Error("a login that failed changed what was loaded")
			}
			if !tc.executed {
				start := time.Now()
				o, err := m.Finish(again)
				if took := time.Since(start); took > 3*troubleTimeout { // twice the timeout on an idle machine
					t.Errorf("the Finish of a login took %v", took)
				}
				if !errors.Is(err, ErrUnavailable) {
					t.Errorf("the Finish of a login: %+v, %v", o, err)
				}
				expect("Logout", troubleTimeout, func() error { return m.Logout(loggedOut) })
				if m.UserID(loggedOut) != "ann" {
					t.Error("a failed logout unloaded the session")
				}
			}
			if tc.executed {
				user = "*" // whatever of it was executed: the session is there, or nobody is
			}
			// Who has no cookie is served.
			inTime(t, "a visitor without a cookie", troubleTimeout, func() {
				ctx, err := m.Load(t.Context(), "")
				if err != nil || m.UserID(ctx) != "" {
					t.Error(err)
				}
				if o, err := m.Finish(ctx); err != nil || o != (Outcome{}) {
					t.Errorf("%+v, %v", o, err)
				}
			})
			// Who gave up gets his own error, not Redis's.
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := m.Load(gone, tr.b.cookie); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
				t.Errorf("cancelled: %v", err)
			}
			tc.heal(tr)
			if user == "*" {
				tr.b = &browser{t, m, ""}
				for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
					ctx := load(t, m, "")
					err := m.Login(ctx, "ann")
					if err == nil {
						tr.b.take(finish(t, m, ctx))
						break
					}
					if time.Since(start) > 10*time.Second {
						t.Fatal(err)
					}
				}
				user = "ann"
			}
			tr.recovers(t, user)
		})
	}
}

// age has the Managers' estimates of Redis's clock be older than they are.
func (c *clocks) age(by time.Duration) {
	for i := range c.of {
		if s := c.of[i].sample.Load(); s != nil {
			older := *s
			older.received = older.received.Add(-by)
			older.redis -= by.Microseconds()
			c.of[i].sample.Store(&older)
		}
	}
}

// Whatever a commit has to do: it is over within twice the timeout, and on a busy machine
// within three times, though no command alone takes longer than it may.
func TestACommitAsAWholeIsBounded(t *testing.T) {
	t.Parallel() // with others that wait
	const slow = troubleTimeout * 8 / 10
	for name, prepare := range map[string]func(t *testing.T, tr *trouble, ctx context.Context){
		"save":         func(t *testing.T, tr *trouble, ctx context.Context) { tr.m.Put(ctx, "k", 1) },
		"rotate":       func(t *testing.T, tr *trouble, ctx context.Context) { _ = tr.m.Rotate(ctx) },
		"login":        func(t *testing.T, tr *trouble, ctx context.Context) { _ = tr.m.Login(ctx, "ann") },
		"login as bob": func(t *testing.T, tr *trouble, ctx context.Context) { _ = tr.m.Login(ctx, "bob") },
		"two logins": func(t *testing.T, tr *trouble, ctx context.Context) {
			_ = tr.m.Login(ctx, "ann")
			_ = tr.m.Login(ctx, "ann")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTrouble(t)
			for _, user := range []string{"ann", ""} {
				b := begin(t, tr.direct, user)
				ctx := load(t, tr.m, b.cookie)
				prepare(t, tr, ctx)
				// Others change the session all the while.
				var over atomic.Bool
				var wg sync.WaitGroup
				wg.Go(func() {
					for i := 0; !over.Load(); i++ {
						other, err := tr.direct.Load(context.Background(), b.cookie)
						if err != nil {
							continue
						}
						tr.direct.Put(other, "other", i)
						_ = tr.direct.Commit(other)
					}
				})
				tr.proxy.Delay(slow)
				start := time.Now()
				_, err := tr.m.Finish(ctx)
				took := time.Since(start)
				tr.proxy.Heal()
				over.Store(true)
				wg.Wait()
				if took > 3*troubleTimeout {
					t.Errorf("user %q: took %v with a timeout of %v: %v", user, took, troubleTimeout, err)
				}
				if err != nil && !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrConflict) {
					t.Errorf("user %q: %v", user, err)
				}
				// The session from before, or its login, or nobody.
				if got := look(t, tr.direct, b.cookie); got.user != user && got.user != "" {
					t.Errorf("user %q: %+v", user, got)
				}
			}
		})
	}
}

// TestTroubleInMidRotation has the network fail under a rotation, with a real connection
// rather than a hook.
func TestTroubleInMidRotation(t *testing.T) {
	t.Parallel() // with others that wait
	tr := newTrouble(t)
	for _, tc := range []struct {
		name string
		do   func(commands ...string)
	}{
		{"cut", tr.proxy.Cut},
		{"reply cut", tr.proxy.CutReply},
		{"reply lost", tr.proxy.LoseReply},
	} {
		for round := range 3 {
			ctx := load(t, tr.m, tr.b.cookie)
			_ = tr.m.Rotate(ctx)
			tr.m.Put(ctx, "rotated", fmt.Sprint(tc.name, round))
			tc.do("evalsha")
			if _, err := tr.m.Finish(ctx); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s: %v", tc.name, err)
			}
			tr.proxy.Heal()
			tr.recovers(t, "ann")
		}
	}
}

func TestTouchesThatFailFailNothing(t *testing.T) {
	b := mini(t)
	log := &logged{}
	hook := countCommands(b.Client) // hooks come before the Manager
	m := manager(t, b, Config{Logger: log.logger()})
	v := begin(t, m, "ann")
	for _, f := range []fate{fateRefused, fateReplyLost} {
		advance(t, b, 10*time.Minute, m)
		failed := false
		hook.reset(func(_ int, command string) fate {
			if command == "touch" {
				failed = true
				return f
			}
			return fateSent
		})
		v.request(func(ctx context.Context) {
			if m.UserID(ctx) != "ann" {
				t.Error("not read")
			}
		})
		if !failed {
			t.Error("no touch was due")
		}
	}
	if log.String() == "" {
		t.Error("not logged")
	}
}

// TestWrongTypeAtTheKey has somebody else write to our keys while a request is under way.
func TestWrongTypeAtTheKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		log := &logged{}
		old := memstore.NewWithCleanupInterval(0)
		m := manager(t, rb, Config{Logger: log.logger(), Legacy: Legacy{Store: old}})
		spoil := func(key string) {
			rb.Client.Del(t.Context(), key)
			rb.Client.RPush(t.Context(), key, "b")
			rb.Client.Expire(t.Context(), key, time.Hour)
		}
		for name, do := range map[string]func(ctx context.Context) error{
			"save":   func(ctx context.Context) error { m.Put(ctx, "x", 1); return nil },
			"rotate": func(ctx context.Context) error { return m.Rotate(ctx) },
			"logout": func(ctx context.Context) error { return m.Logout(ctx) },
			"touch":  func(ctx context.Context) error { advance(t, rb, 10*time.Minute, m); return nil },
		} {
			for _, user := range []string{"", "ann"} {
				b := begin(t, m, user)
				key := idOf(t, m, b.cookie).key
				ctx := load(t, m, b.cookie)
				spoil(key)
				if err := do(ctx); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if o, err := m.Finish(ctx); err != nil || o.Action == CookieSet {
					t.Errorf("%s: %+v, %v", name, o, err)
				}
				if got := look(t, m, b.cookie); got.user != "" || got.values != "map[]" {
					t.Errorf("%s: %+v", name, got)
				}
				rb.Client.Del(t.Context(), key)
			}
		}
		b := begin(t, m, "")
		ctx := load(t, m, b.cookie)
		spoil(idOf(t, m, b.cookie).key)
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
		if o := finish(t, m, ctx); look(t, m, o.Value).user != "ann" {
			t.Error("cannot log in")
		}
		// Between Login and Finish, at the user's own key: nobody is in, and it is no loop.
		ctx = load(t, m, "")
		m.Put(ctx, "k", "v")
		if err := m.Login(ctx, "bob"); err != nil {
			t.Fatal(err)
		}
		m.Put(ctx, "k", "w")
		key := m.records.keys.key(m.records.keys.user("bob"))
		spoil(key)
		if o, err := m.Finish(ctx); err != nil && !errors.Is(err, ErrUnavailable) || o.Action == CookieSet && look(t, m, o.Value).user != "" {
			t.Errorf("%+v, %v", o, err)
		}
		rb.Client.Del(t.Context(), key)

		// The place of a legacy session's copy is taken, first by garbage.
		token := strings.Repeat("t", legacyTokenLen)
		data, err := scs.GobCodec{}.Encode(time.Now().Add(100*time.Hour), map[string]any{"k": "v"})
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Commit(token, data, time.Now().Add(100*time.Hour)); err != nil {
			t.Fatal(err)
		}
		place := m.records.keys.copied(token, "")
		key = place.key
		for _, v := range []string{"", "\x00", "\x01", "\x01\x08", "\x02", "\x03\x01", "\x09", "\x01" + strings.Repeat("\x08", 100), strings.Repeat("\x02", 40)} {
			setAt(t, rb.Client, place, v)
			for range 2 {
				ctx, err := m.LoadLegacy(t.Context(), token)
				if err != nil || m.UserID(ctx) != "" {
					t.Fatalf("%.10q in the place of a copy: %v", v, err)
				}
				m.Put(ctx, "k", "w")
				if o, err := m.Finish(ctx); err != nil || look(t, m, o.Value).values != "map[k:w]" {
					t.Errorf("%.10q in the place of a copy: cannot go on: %+v, %v", v, o, err)
				}
			}
			rb.Client.Del(t.Context(), key)
		}
		spoil(key)
		ctx, err = m.LoadLegacy(t.Context(), token)
		if err != nil || len(m.Keys(ctx)) != 0 {
			t.Fatalf("%v", err)
		}
		m.Put(ctx, "k", "new")
		if o := finish(t, m, ctx); look(t, m, o.Value).values != "map[k:new]" {
			t.Errorf("cannot go on: %+v", o)
		}
		rb.Client.Del(t.Context(), key)
		ctx, err = m.LoadLegacy(t.Context(), token)
		if err != nil || m.GetString(ctx, "k") != "v" {
			t.Errorf("when the place is free again: %v", err)
		}
		if !strings.Contains(log.String(), "no hash") {
			t.Error("not logged")
		}
	})
}

// liar is a server that answers as it is told, in Redis's protocol.
type liar struct {
	addr string
	mu   sync.Mutex
	// answer is what a command gets; "": nothing, while the connection stays open
	answer func(args []string) string
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	l := &liar{addr: ln.Addr().String()}
	go func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			go l.serve(conn) // ends with the connection
		}
	}()
	return l
}

func (l *liar) say(answer func(args []string) string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answer = answer
}

func (l *liar) serve(conn net.Conn) {
	defer conn.Close()
	for r := bufio.NewReader(conn); ; {
		args, err := readArgs(r)
		if err != nil {
			return
		}
		reply := "+OK\r\n"
		switch strings.ToLower(args[0]) {
		case "hello":
			reply = "-ERR unknown command\r\n"
		case "client", "ping":
		default:
			l.mu.Lock()
			reply = l.answer(args)
			l.mu.Unlock()
		}
		if _, err := io.WriteString(conn, strings.TrimSuffix(reply, hangUp)); err != nil || strings.HasSuffix(reply, hangUp) {
			return
		}
	}
}

// hangUp ends the connection after an answer.
const hangUp = "(hang up)"

func readArgs(r *bufio.Reader) (args []string, err error) {
	number := func() (int, error) {
		line, err := r.ReadString('\n')
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(line[1:]))
	}
	n, err := number()
	for range n {
		size, err := number()
		if err != nil {
			return nil, err
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		args = append(args, string(bytes.TrimSuffix(b, []byte("\r\n"))))
	}
	return args, err
}

// Answers of the wrong type, of the wrong shape, or half of one are no session, no end of
// one, and no success.
func TestWrongAnswers(t *testing.T) {
	t.Parallel() // with others that wait
	real := mini(t)
	m := manager(t, real, Config{})
	b := begin(t, m, "ann")
	i := idOf(t, m, b.cookie)
	record := at(t, real.Client, i)
	bulk := func(s string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(s), s) }
	now := func() string { return fmt.Sprintf(":%d\r\n", time.Now().UnixMicro()) }

	l := newLiar(t)
	client := redis.NewClient(&redis.Options{Addr: l.addr, MaxRetries: -1})
	t.Cleanup(func() { client.Close() })
	lied := managerOver(t, client, Config{Timeout: troubleTimeout})
	is := func(args []string, s *scripts.Script) bool {
		return len(args) > 1 && (args[1] == s.SHA1() || args[1] == s.Source())
	}
	// truth is what all but the command in question get.
	truth := func(args []string) string {
		switch {
		case strings.EqualFold(args[0], "hget"):
			return bulk(record)
		case is(args, timeScript):
			return now()
		}
		return "-ERR not expected\r\n"
	}
	l.say(truth)
	if got := look(t, lied, b.cookie); got.user != "ann" {
		t.Fatalf("the truth: %+v", got)
	}

	for _, tc := range []struct {
		answer string
		absent bool // as a record: it can be read, and is none
	}{
		{":1\r\n", true}, {"+OK\r\n", true}, {"$0\r\n\r\n", true}, {"$-1\r\n", true}, {bulk("\x01"), true},
		{"*0\r\n", false}, {"*1\r\n$1\r\nx\r\n", false}, {"*-1\r\n", true}, {"-ERR no\r\n", false}, {"-LOADING\r\n", false},
		{"-WRONGTYPE of the key\r\n", true},
		{"?\r\n", false}, {"$x\r\n", false}, {"\r\n", false}, {"HTTP/1.1 200 OK\r\n\r\n", false},
		{"$500\r\n" + record, false}, {"$500\r\n" + record + hangUp, false}, {"", false}, {hangUp, false},
	} {
		l.say(func(args []string) string {
			if strings.EqualFold(args[0], "hget") {
				return tc.answer
			}
			return truth(args)
		})
		inTime(t, fmt.Sprintf("Load with %.40q", tc.answer), troubleTimeout, func() {
			ctx, err := lied.Load(t.Context(), b.cookie)
			if tc.absent && (err != nil || lied.UserID(ctx) != "") || !tc.absent && !errors.Is(err, ErrUnavailable) {
				t.Errorf("Load with %.40q: %v", tc.answer, err)
			}
		})
	}

	for _, answer := range []string{
		":0\r\n", "+OK\r\n", "$0\r\n\r\n", "$-1\r\n", "*-1\r\n", "*0\r\n", "*1\r\n:5\r\n", "*2\r\n:5\r\n:1\r\n",
		"*3\r\n:5\r\n:0\r\n:0\r\n", "*3\r\n:5\r\n:0\r\n$-1\r\n", "*3\r\n$1\r\n5\r\n:0\r\n$0\r\n\r\n", "*3\r\n:5\r\n$1\r\n0\r\n$0\r\n\r\n",
		"*3\r\n:5\r\n:9\r\n$0\r\n\r\n", "*3\r\n:-5\r\n:0\r\n$0\r\n\r\n", "*4\r\n:5\r\n:0\r\n$0\r\n\r\n:1\r\n",
		"*5\r\n:5\r\n:0\r\n$0\r\n\r\n:1\r\n:1\r\n", "*1\r\n*1\r\n:1\r\n",
		"-ERR no\r\n", "-OOM no\r\n", "-NOPERM no\r\n", "-READONLY no\r\n", "?\r\n", "HTTP/1.1 200 OK\r\n\r\n",
		"*3\r\n:5\r\n", "*3\r\n:5\r\n:0\r\n$100\r\nx", "*3\r\n:5\r\n" + hangUp, "", hangUp,
	} {
		l.say(truth)
		loaded := func() context.Context {
			lied.records.clocks.forget()
			return load(t, lied, b.cookie)
		}
		for name, do := range map[string]func(ctx context.Context) error{
			"Commit": func(ctx context.Context) error { lied.Put(ctx, "k", 1); return lied.Commit(ctx) },
			"Rotate": func(ctx context.Context) error { _ = lied.Rotate(ctx); _, err := lied.Finish(ctx); return err },
			"Login":  func(ctx context.Context) error { return lied.Login(ctx, "ann") },
			"Logout": func(ctx context.Context) error { return lied.Logout(ctx) },
			"Time": func(ctx context.Context) error {
				lied.records.clocks.forget()
				_, err := lied.Load(t.Context(), b.cookie)
				return err
			},
		} {
			l.say(truth)
			ctx := loaded()
			l.say(func(args []string) string {
				if strings.EqualFold(args[0], "hget") {
					return truth(args)
				}
				return answer
			})
			start := time.Now()
			if err := do(ctx); !errors.Is(err, ErrUnavailable) {
				t.Errorf("%s with %.60q: %v", name, answer, err)
			}
			if took := time.Since(start); took > 3*troubleTimeout { // twice the timeout on an idle machine
				t.Errorf("%s with %.60q took %v", name, answer, took)
			}
			if lied.UserID(ctx) != "ann" {
				t.Errorf("%s with %.60q: the session is unloaded", name, answer)
			}
		}
	}
}

// TestFullRedis has no memory left: nobody can be let in, but out.
func TestFullRedis(t *testing.T) {
	server := redistest.Start(t, "--maxmemory-policy", "noeviction")
	client := server.Client()
	m := managerOver(t, client, Config{Timeout: 5 * time.Second})
	b, rotated, heavy := begin(t, m, "ann"), begin(t, m, "ann"), begin(t, m, "ann")
	first := rotated.cookie
	rotated.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
	heavy.request(func(ctx context.Context) { m.Put(ctx, "large", strings.Repeat("x", 2*apartAbove)) })
	ctx := load(t, m, b.cookie)
	if err := client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	m.Put(ctx, "x", 1)
	if _, err := m.Finish(ctx); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("save: %v", err)
	}
	fresh := load(t, m, "")
	if err := m.Login(fresh, "bob"); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "OOM") {
		t.Errorf("login: %v", err)
	}
	cookies := []string{b.cookie, first, heavy.cookie, rotated.cookie}
	for n, cookie := range cookies[:3] {
		if o := (&browser{t, m, cookie}).request(func(ctx context.Context) {
			if m.UserID(ctx) != "ann" {
				t.Errorf("%d: not read", n)
			}
			if err := m.Logout(ctx); err != nil {
				t.Errorf("%d: logout: %v", n, err)
			}
		}); o.Action != CookieDelete {
			t.Errorf("%d: %+v", n, o)
		}
	}
	if err := client.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	for n, cookie := range cookies {
		if got := look(t, m, cookie); got.user != "" {
			t.Errorf("%d: %+v", n, got)
		}
	}
}

// TestClientSideCache has the client keep records in process.
func TestClientSideCache(t *testing.T) {
	server := redistest.Start(t)
	proxy := redistest.NewProxy(t, server.Addr())
	cached := func(timeout time.Duration) *Manager {
		client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), Protocol: 3, ClientSideCache: redis.NewLocalCache(redis.CacheConfig{})})
		t.Cleanup(func() { client.Close() })
		return managerOver(t, client, Config{Timeout: timeout})
	}
	a, b := cached(5*time.Second), cached(5*time.Second)
	var stale, told atomic.Int64
	inParallel(200, func(i int) {
		v := begin(t, a, fmt.Sprint("ann ", i%20))
		if i%2 == 0 {
			v.request(func(ctx context.Context) { a.Put(ctx, "large", strings.Repeat("x", 2*apartAbove)) })
		}
		for _, m := range []*Manager{a, b} { // fill both caches
			for range 3 {
				if look(t, m, v.cookie).user == "" {
					t.Error("not read")
				}
			}
		}
		cookie := v.cookie
		v.request(func(ctx context.Context) { _ = a.Logout(ctx) })
		if look(t, a, cookie).user != "" {
			stale.Add(1)
		}
		start := time.Now()
		for look(t, b, cookie).user != "" && time.Since(start) < 5*time.Second {
			runtime.Gosched()
		}
		told.Store(max(told.Load(), int64(time.Since(start))))
		// What a cache still holds cannot be saved.
		ctx := load(t, b, cookie)
		b.Put(ctx, "x", 1)
		if o := finish(t, b, ctx); b.UserID(ctx) != "" || o.Action == CookieSet && look(t, b, o.Value).user != "" {
			t.Error("saved from a cache")
		}
	})
	if n := stale.Load(); n > 0 {
		t.Errorf("%d of 200 sessions were still read by the process that had logged them out", n)
	}
	if d := time.Duration(told.Load()); d > 4*time.Second {
		t.Errorf("another process saw a session for %v after its logout", d)
	}
	t.Logf("another process saw a session for up to %v after its logout", time.Duration(told.Load()))

	v, hasty := begin(t, a, "ann"), cached(troubleTimeout)
	look(t, hasty, begin(t, a, "bob").cookie)
	proxy.BlackHole()
	defer proxy.Heal()
	inTime(t, "Load", troubleTimeout, func() {
		if _, err := hasty.Load(t.Context(), v.cookie); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%v", err)
		}
	})
}

// One of three masters hangs: sessions of the others are loaded and saved as if nothing were
// wrong, though many requests wait for the one that hangs.
func TestOneHungNodeHoldsUpNoOtherSession(t *testing.T) {
	t.Parallel() // with others that wait
	const timeout = 3 * time.Second
	cluster := redistest.StartCluster(t)
	client := cluster.Client()
	m := managerOver(t, client, Config{Timeout: timeout})
	hung := cluster.Nodes()[1]
	var there, elsewhere []string
	for i := range 150 {
		cookie := begin(t, m, fmt.Sprint("user ", i)).cookie
		master, err := client.MasterForKey(t.Context(), idOf(t, m, cookie).key)
		if err != nil {
			t.Fatal(err)
		}
		if master.Options().Addr == hung.Addr() {
			there = append(there, cookie)
		} else {
			elsewhere = append(elsewhere, cookie)
		}
	}
	hung.Pause()
	stop := make(chan struct{})
	var waiting, others sync.WaitGroup
	for i := range 32 {
		waiting.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond): // who spins keeps others from being woken
				}
				start := time.Now()
				if _, err := m.Load(context.Background(), there[n%len(there)]); !errors.Is(err, ErrUnavailable) || time.Since(start) > 4*timeout {
					t.Errorf("a session of the node that hangs: %v after %v", err, time.Since(start))
				}
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // many wait, and none has given up yet
	for i := range 32 {
		others.Go(func() {
			for n := range 40 {
				start := time.Now()
				ctx, err := m.Load(context.Background(), elsewhere[(i+n)%len(elsewhere)])
				if err == nil && m.UserID(ctx) == "" {
					err = errors.New("anonymous")
				}
				if err == nil {
					m.Put(ctx, "n", n)
					_, err = m.Finish(ctx)
				}
				if err != nil || time.Since(start) > timeout*2/3 {
					t.Errorf("a session of another node: %v after %v", err, time.Since(start))
				}
			}
		})
	}
	others.Wait()
	close(stop)
	waiting.Wait()
	hung.Resume()
}
