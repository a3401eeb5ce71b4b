package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// crash is one request that fails at one of its commands.
type crash struct {
	m, failing *Manager
	hook       *commands
	fail       func(n int) fate // what happens to command number n, at and after the failure
	heal       func()           // ends the failure; nil: nothing is to be done
	kind       string           // of the failure
	start      string           // who was logged in before
	meanwhile  bool             // another request changes the session, which makes for more commands
	forGood    bool             // Redis does not answer any more
	lost       bool             // the command at which it fails runs, and only its reply is lost
	k          int              // the command at which it fails
}

var crashActs = []act{
	actSave, actRotate, actCommit, actLoginAnn, actLoginBob, actLogout,
	actCommitLogin, actLoginCommit, actLoginTwice, actRelogin,
}

// TestCrashes stops a request at each of its Redis commands, before or after that one ran,
// for good or only for this one command.
func TestCrashes(t *testing.T) {
	each(t, Config{}, func(t *testing.T, b redistest.Backend, m *Manager) {
		client := b.NewClient(t)
		hook := countCommands(client)
		failing := sameSite(t, m, client, Config{})
		loadScripts(t, b)
		forCrashes(crashActs, func(x act, c crash) bool {
			c.m, c.failing, c.hook = m, failing, hook
			kind := fateRefused
			if c.kind = "refused"; c.lost {
				kind, c.kind = fateReplyLost, "reply lost"
			}
			c.fail = func(n int) fate {
				switch {
				case n == c.k:
					return kind
				case c.forGood:
					return fateRefused
				}
				return fateSent
			}
			return c.run(t, x)
		})
	})
}

// TestLostReplies is TestCrashes on a network: Redis runs a script, and the client waits
// for the reply in vain, or finds its connection closed.
func TestLostReplies(t *testing.T) {
	server := redistest.Shared(t)
	server.Flush()
	b := redistest.Backend{Client: server.Client(), Addrs: []string{server.Addr()}}
	loadScripts(t, b)
	for _, tc := range []struct {
		name  string
		fault func(p *redistest.Proxy, commands ...string)
		acts  []act
		all   bool // crashes; otherwise those of one command, which each wait for the timeout
	}{
		{"connection closed", (*redistest.Proxy).CutReply, crashActs, true},
		{"no answer", (*redistest.Proxy).LoseReply, []act{actSave, actRotate, actLogout, actLoginAnn, actLoginCommit}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, x := range tc.acts {
				t.Run(x.name, func(t *testing.T) {
					t.Parallel() // they do little but wait
					proxy := redistest.NewProxy(t, server.Addr())
					client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
					t.Cleanup(func() { client.Close() })
					hook := countCommands(client)
					m := manager(t, b, Config{})
					failing := sameSite(t, m, client, Config{Timeout: 500 * time.Millisecond}) // which some wait for
					forCrashes([]act{x}, func(x act, c crash) bool {
						if !c.lost || !tc.all && (c.meanwhile || c.forGood) {
							return false
						}
						c.m, c.failing, c.hook, c.kind = m, failing, hook, tc.name
						c.fail = func(n int) fate {
							if n == c.k {
								tc.fault(proxy)
							} else if !c.forGood {
								proxy.Heal()
							}
							return fateSent
						}
						c.heal = proxy.Heal
						return c.run(t, x)
					})
				})
			}
		})
	}
	redistest.AssertAllTTL(t, b.Client)
}

// forCrashes calls f for all crashes, until it reports that the request has no command
// number k.
func forCrashes(acts []act, f func(x act, c crash) bool) {
	for _, x := range acts {
		for _, start := range []string{"", "ann"} {
			for i := range 8 {
				if !redistest.Turn(2) {
					continue
				}
				c := crash{start: start, meanwhile: i&1 > 0, lost: i&2 > 0, forGood: i&4 > 0}
				for c.k = 1; f(x, c); c.k++ {
				}
			}
		}
	}
}

func (c crash) run(t *testing.T, x act) bool {
	t.Helper()
	p := newPair(t, c.m, c.failing, c.m, c.start, x, actSave)
	where := fmt.Sprintf("start %q, %q, meanwhile %v, command %d, %s, for good %v", c.start, x.name, c.meanwhile, c.k, c.kind, c.forGood)
	r := p.x
	r.ctx = load(t, c.failing, p.first)
	if c.meanwhile {
		if p.y.run(); p.y.err != nil {
			t.Fatal(p.y.err)
		}
	}
	var command string
	c.hook.reset(func(n int, name string) fate {
		if n < c.k {
			return fateSent
		}
		if n == c.k {
			command = name
		}
		return c.fail(n)
	})
	err := r.handle()
	handled := len(c.hook.all())
	finishing := err == nil
	if finishing {
		err = r.finish()
	}
	sent := c.hook.all()
	c.hook.reset(nil)
	if c.heal != nil {
		c.heal()
	}
	if command == "" {
		return false
	}
	where += " (" + command + ")"
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s: %s\n  sent %v, in Finish %v, outcome %d\n  first cookie %v\n  its cookie   %v", where, fmt.Sprintf(format, args...), sent, finishing,
			r.out.Action, look(t, c.m, p.first), look(t, c.m, r.b.cookie))
	}
	if !errors.Is(err, ErrUnavailable) {
		bad("error %v", err)
		return true
	}
	old := look(t, c.m, p.first)
	works := func(s seen) bool {
		return s.user == p.start && s.has("first") && (!c.meanwhile || s.has("y"))
	}

	// Whatever the response says, the process may have died before it: the browser has
	// the first cookie. It works unless the script ran that ends its session.
	ran := sent[:c.k-1] // all that certainly ran, and the one that may have
	if c.lost {
		ran = sent[:c.k]
	}
	if !x.end && !x.leaves {
		ran = ran[min(handled, len(ran)):] // only Finish ends an ID
	}
	ends := func(ran []string) bool {
		return slices.Contains(ran, "end") || slices.Contains(ran, "end_all") || slices.Contains(ran, "retire")
	}
	mayBeEnded := ends(ran)
	switch {
	case old.user != "" && old.user != p.start || old.has("x2"):
		bad("the first cookie shows the login")
	case !works(old) && !(mayBeEnded && old.nothing()):
		bad("the session is lost, though its ID was not retired")
	}
	// The response is an error, and may carry the login's cookie.
	switch now := look(t, c.m, r.b.cookie); {
	case r.out == Outcome{}:
		if old.nothing() && len(x.users) > 0 && !x.leaves {
			bad("the first cookie does not work, and there is no other")
		}
	case r.out.Action != CookieSet || len(x.users) == 0 || !finishing:
		bad("the error comes with a cookie")
	case now.user != r.name(x.user()) || now.id == old.id:
		bad("the error's cookie is not the login's")
	case x.carries(c.start) && !(now.has("first") && now.has("x")):
		bad("the error's cookie has not what was there before")
	case x.carries(c.start) && c.meanwhile && !now.has("y") && (c.lost || command == "end") &&
		ends(sent[handled:c.k-1]):
		// The first script that would end the old ID finds out about the other's change, the
		// second one comes with it. Before that has run, the old ID is as it was.
		bad("the error's cookie has not what was saved meanwhile")
	}
	c.leftBehind(t, p, finishing, bad)
	c.secondAttempt(t, p, finishing, bad)
	return true
}

// leftBehind looks for records of logins that failed.
func (c crash) leftBehind(t *testing.T, p *pair, finishing bool, bad func(format string, args ...any)) {
	t.Helper()
	users := make(map[string]bool)
	for _, u := range []string{"ann", "bob"} {
		users[c.m.records.keys.key(c.m.records.keys.user(p.x.name(u)))] = true
	}
	first, last := idOf(t, c.m, p.first), idOf(t, c.m, p.x.b.cookie)
	now, err := c.m.records.now(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	for key := range users {
		known := 0
		if look(t, c.m, p.first).id != "" && first.key == key {
			known++
		}
		if p.first != p.x.b.cookie && last.key == key {
			known++
		}
		all := recordsAt(t, c.m, key)
		short := (c.m.records.timeout + c.m.records.grace).Microseconds()
		long := 0
		for _, r := range all {
			if r.until-now > short+time.Second.Microseconds() { // now is an estimate
				long++
			}
		}
		// Of several logins of a request Finish undoes the last.
		underWay := p.x.logins
		if finishing && underWay > 0 {
			underWay--
		}
		switch {
		case len(all) > known+underWay && !c.forGood:
			bad("%d records of a login that failed, which could have been undone", len(all)-known)
		case long > known && !finishing && !p.x.leaves:
			bad("%d records of a login that failed live longer than a login that is under way", long-known)
		}
	}
}

// secondAttempt tries again when Redis answers again: in the same request, as far as it
// goes, and in a new one.
func (c crash) secondAttempt(t *testing.T, p *pair, finishing bool, bad func(format string, args ...any)) {
	t.Helper()
	r := p.x
	first := r.out
	switch {
	case first != Outcome{}: // the response was sent
		if out, err := r.m.Finish(r.ctx); err != nil || out.Action == CookieDelete {
			bad("a second Finish: %+v, %v", out, err)
		}
	case finishing && len(r.users) > 0: // the login is undone
		out, err := r.m.Finish(r.ctx)
		if err != nil || out != (Outcome{}) {
			bad("a second Finish: %+v, %v", out, err)
		}
	default:
		err := error(nil)
		if !finishing {
			err = r.handle()
		}
		if err == nil {
			err = r.finish()
		}
		if err != nil {
			bad("second attempt: %v", err)
			return
		}
	}
	again := look(t, c.m, r.b.cookie)
	switch {
	case len(r.users) == 0 && r.end:
		if again.user != "" || !look(t, c.m, p.first).nothing() {
			bad("second attempt: not logged out")
		}
	case len(r.users) == 0:
		if again.user != p.start || !again.has("first") || !again.has("x") || c.meanwhile && !again.has("y") {
			bad("second attempt: %v", again)
		}
		if slices.Contains([]string{actRotate.name, actTurn.name}, r.act.name) && r.b.cookie == p.first {
			bad("second attempt: not rotated")
		}
	case !finishing:
		if again.user != r.name(r.user()) || !again.has("x2") || r.b.cookie == p.first {
			bad("second attempt: %v", again)
		}
		if r.carries(c.start) && !(again.has("first") && again.has("x") && (!c.meanwhile || again.has("y"))) {
			bad("second attempt lost values: %v", again)
		}
	}
	r.b.request(func(ctx context.Context) {
		if err := r.m.Login(ctx, r.name("ann")); err != nil {
			bad("cannot log in afterwards: %v", err)
		}
	})
	if got := look(t, c.m, r.b.cookie); got.user != r.name("ann") {
		bad("cannot log in afterwards")
	}
}

// TestCrashesOfAFirstSession does the same with a browser that has no cookie: what fails
// can be tried again in the same request.
func TestCrashesOfAFirstSession(t *testing.T) {
	each(t, Config{}, func(t *testing.T, b redistest.Backend, m *Manager) {
		client := b.NewClient(t)
		hook := countCommands(client)
		failing := sameSite(t, m, client, Config{})
		loadScripts(t, b)
		for _, x := range []act{actSave, actCommit, actLoginAnn, actCommitLogin, actLoginCommit, actLoginTwice} {
			for _, f := range []fate{fateRefused, fateReplyLost} {
				for k, more := 1, true; more; k++ {
					user := fmt.Sprint("ann", pairs.Add(1))
					r := &request{act: x, m: failing, key: "x", name: func(string) string { return user }, b: &browser{t, failing, ""}}
					r.ctx = load(t, failing)
					command := ""
					hook.reset(func(n int, name string) fate {
						if n != k {
							return fateSent
						}
						command = name
						return f
					})
					err := r.handle()
					finishing := err == nil
					if finishing {
						err = r.finish()
					}
					hook.reset(nil)
					if more = command != ""; !more {
						break
					}
					where := fmt.Sprintf("%s, command %d (%s), fate %d", x.name, k, command, f)
					if command == "time" && err == nil { // an estimate is enough
						continue
					}
					if !errors.Is(err, ErrUnavailable) {
						t.Errorf("%s: %v", where, err)
						continue
					}
					first := r.out
					switch {
					case first.Action == CookieSet:
					case finishing && r.logins > 0: // the login is undone
						if now := finish(t, failing, r.ctx); now != (Outcome{}) {
							t.Errorf("%s: a second Finish of a login that failed: %+v", where, now)
						}
						continue
					default:
						if !finishing {
							err = r.handle()
						}
						if finishing || err == nil {
							err = r.finish()
						}
						if err != nil {
							t.Errorf("%s: second attempt: %v", where, err)
							continue
						}
					}
					got := look(t, m, r.b.cookie)
					want := ""
					if len(x.users) > 0 {
						want = user
					}
					if r.out.Action != CookieSet || got.user != want || !got.has("x") || len(x.users) > 0 && first == (Outcome{}) && !got.has("x2") {
						t.Errorf("%s: %+v, %v", where, r.out, got)
					}
				}
			}
		}
	})
}

// TestPanics has the handler of a login panic, with all commands of the clean-up running,
// or none: the session from before stands.
func TestPanics(t *testing.T) {
	each(t, Config{}, func(t *testing.T, b redistest.Backend, m *Manager) {
		client := b.NewClient(t)
		hook := countCommands(client)
		loadScripts(t, b)
		panicking := sameSite(t, m, client, Config{})
		for _, start := range []string{"", "ann"} {
			for _, x := range allActs {
				if len(x.users) == 0 || x.end || x.leaves {
					continue
				}
				for _, f := range []fate{fateSent, fateRefused, fateReplyLost} {
					p := newPair(t, m, panicking, m, start, x, actSave)
					where := fmt.Sprintf("start %q, %q, fate %d", start, x.name, f)
					p.x.ctx = load(t, panicking, p.first)
					if err := p.x.handle(); err != nil {
						t.Fatal(err)
					}
					p.y.run()
					hook.reset(func(int, string) fate { return f })
					panicking.Abort(p.x.ctx)
					hook.reset(nil)
					old := look(t, m, p.first)
					if old.user != p.start || !old.has("first") || !old.has("y") || old.has("x2") {
						t.Errorf("%s: the first cookie shows %v", where, old)
					}
					if out, err := panicking.Finish(p.x.ctx); err != nil || out != (Outcome{}) {
						t.Errorf("%s: Finish after Abort: %+v, %v", where, out, err)
					}
					if n := p.records(); n > p.x.logins && f != fateRefused {
						t.Errorf("%s: %d records", where, n)
					}
					advance(t, b, panicking.records.timeout+panicking.records.grace+time.Second, m, panicking)
					if n := p.records(); n != 1 {
						t.Errorf("%s: %d records after the time of a login that is under way", where, n)
					}
					if now := look(t, m, p.first); now != old {
						t.Errorf("%s: then the first cookie shows %v", where, now)
					}
				}
			}
		}
	})
}

// TestALoginUnderWayIsShort has the process die, or hang, after a Login and whatever the
// handler does then: no record stays that nobody knows of.
func TestALoginUnderWayIsShort(t *testing.T) {
	each(t, Config{}, func(t *testing.T, b redistest.Backend, m *Manager) {
		for _, start := range []string{"", "ann"} {
			for name, then := range map[string]func(ctx context.Context) error{
				"nothing": func(ctx context.Context) error { return nil },
				"commit":  m.Commit,
				"put and commit": func(ctx context.Context) error {
					m.Put(ctx, "x", 1)
					return m.Commit(ctx)
				},
				"twice": func(ctx context.Context) error { return errors.Join(m.Commit(ctx), m.Commit(ctx)) },
				"remember": func(ctx context.Context) error {
					m.Remember(ctx, true)
					return m.Commit(ctx)
				},
			} {
				p := newPair(t, m, m, m, start, actLoginAnn, actSave)
				ctx := load(t, m, p.first)
				if err := m.Login(ctx, p.x.name("ann")); err != nil {
					t.Fatal(err)
				}
				if err := then(ctx); err != nil {
					t.Fatal(err)
				}
				advance(t, b, m.records.timeout+m.records.grace+time.Second, m)
				if n := p.records(); n != 1 {
					t.Errorf("start %q, %s: %d records", start, name, n)
				}
				// The process lives after all, and answers: too late.
				if o := finish(t, m, ctx); o != (Outcome{}) {
					t.Errorf("start %q, %s: %+v for a login that has ended", start, name, o)
				}
				if old := look(t, m, p.first); old.user != p.start || !old.has("first") || p.records() != 1 {
					t.Errorf("start %q, %s: the session from before: %v", start, name, old)
				}
			}
		}
	})
}
