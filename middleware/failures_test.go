package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// logins is a login page on several servers: any password but "right" is wrong.
type logins struct {
	servers []http.Handler
	checked atomic.Int64
}

// newLogins mounts limit, whose Limiter is another one over the same keys on each server. A check
// takes as long as it says.
func newLogins(servers int, check time.Duration, limit func(server int) middleware.RateLimit) *logins {
	l := new(logins)
	for i := range servers {
		l.servers = append(l.servers, limit(i).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			l.checked.Add(1)
			time.Sleep(check)
			if r.FormValue("password") == "right" {
				middleware.Succeeded(r)
			}
			io.WriteString(w, "a page") // 200 in any case
		})))
	}
	return l
}

func (l *logins) try(server int, password string) *http.Response {
	return answer(l.servers[server%len(l.servers)], httptest.NewRequest("POST", "/login?password="+password, nil))
}

// failuresOver returns a limit of 5 a minute for each server.
func failuresOver(t *testing.T, name string) func(int) middleware.RateLimit {
	server := redistest.Start(t)
	return func(int) middleware.RateLimit {
		limiter := must(ratelimit.NewSlidingWindow(server.Client(), name, ratelimit.PerMinute(5), patient))
		return middleware.RateLimit{Limiter: limiter, Key: everybody, FailuresOnly: true}
	}
}

// Of 1,000 wrong guesses at once, on two servers, exactly as many are checked as the limit says.
func TestNoMoreGuessesAreCheckedThanTheLimit(t *testing.T) {
	t.Parallel() // with others that wait
	l := newLogins(2, 20*time.Millisecond, failuresOver(t, "guesses"))
	var wg sync.WaitGroup
	var refused atomic.Int64
	for i := range 1000 {
		wg.Go(func() {
			if l.try(i, "wrong").StatusCode == http.StatusTooManyRequests {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	if l.checked.Load() != 5 || refused.Load() != 995 {
		t.Errorf("%d checked, %d refused", l.checked.Load(), refused.Load())
	}
	// What is spent are failures: that is said at once, and until when.
	began := time.Now()
	res := l.try(0, "right")
	if after := time.Since(began); res.StatusCode != 429 || after > time.Second {
		t.Errorf("%s after %v", res.Status, after)
	}
	if s, _ := strconv.Atoi(res.Header.Get("Retry-After")); s < 40 {
		t.Errorf("Retry-After %d", s)
	}
}

// Of 20 right ones at once all get in, though five of them hold all permits meanwhile.
func TestRightGuessesWaitForEachOther(t *testing.T) {
	t.Parallel() // with others that wait
	for servers := 1; servers <= 2; servers++ {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			l := newLogins(servers, 50*time.Millisecond, failuresOver(t, "right"))
			began := time.Now()
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					if res := l.try(i, "right"); res.StatusCode != http.StatusOK {
						t.Errorf("%s, Retry-After %s", res.Status, res.Header.Get("Retry-After"))
					}
				})
			}
			wg.Wait()
			t.Logf("all in after %v", time.Since(began))
			if res := l.try(0, "wrong"); res.Header.Get("X-RateLimit-Remaining") != "4" {
				t.Errorf("the first failure leaves %s", res.Header.Get("X-RateLimit-Remaining"))
			}
		})
	}
}

// Nobody is told to wait for a minute because of requests that are still in flight.
func TestRequestsInFlightAreNoFailures(t *testing.T) {
	t.Parallel() // with others that wait
	checking, checked := make(chan bool), make(chan bool)
	h := failuresOver(t, "slow")(0).Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		checking <- true
		<-checked
		middleware.Succeeded(r)
	}))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() { answer(h, request("")) })
		<-checking
	}
	res := answer(h, request(""))
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); res.StatusCode != 429 || err != nil || s > 2 {
		t.Errorf("%s, Retry-After %d, %v", res.Status, s, err)
	}
	close(checked)
	wg.Wait()
	go func() { <-checking }()
	if res := answer(h, request("")); res.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", res.Status)
	}
}

// What nobody has called a success is a failure, however it is answered.
func TestFailuresOnlyFailsClosed(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"nothing written": func(http.ResponseWriter, *http.Request) {},
		"panic":           func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"status":          func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"redirect":        func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusSeeOther) },
		"flushed":         func(w http.ResponseWriter, r *http.Request) { http.NewResponseController(w).Flush() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checked := 0
			limit := failuresOver(t, "closed")(0)
			site := limit.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { checked++; h(w, r) }))
			for range 20 {
				func() {
					defer func() { _ = recover() }()
					answer(site, request(""))
				}()
			}
			if checked != 5 {
				t.Errorf("%d of 20 were checked", checked)
			}
		})
	}
}

// A client that hangs up while it waits is let go, and takes no permit.
func TestWaitingEndsWithItsClient(t *testing.T) {
	limit := failuresOver(t, "gone")(0)
	l := newLogins(1, 0, func(int) middleware.RateLimit { return limit })
	for range 5 {
		l.try(0, "wrong")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	answer(l.servers[0], request("").WithContext(ctx))
	if after := time.Since(began); after > time.Second || l.checked.Load() != 5 {
		t.Errorf("after %v, %d checked", after, l.checked.Load())
	}
}

// Succeeded is for limits of failures alone, reaches all of them, and does so once.
func TestSucceeded(t *testing.T) {
	server := redistest.Start(t)
	limiter := func(name string) *ratelimit.SlidingWindow {
		return must(ratelimit.NewSlidingWindow(server.Client(), name, ratelimit.PerMinute(5), patient))
	}
	left := func(l ratelimit.Limiter) int { return must(l.Take(t.Context(), "everybody", 0)).Remaining }
	account, address, all := limiter("account"), limiter("address"), limiter("all")
	h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		middleware.Succeeded(r)
		middleware.Succeeded(r.WithContext(context.WithoutCancel(r.Context())))
		if n := len(middleware.DecisionsOf(r)); n != 3 {
			t.Errorf("%d decisions", n)
		}
	}))
	h = middleware.RateLimit{Limiter: account, Key: everybody, FailuresOnly: true}.Handler(h)
	h = middleware.RateLimit{Limiter: address, Key: everybody, FailuresOnly: true}.Handler(h)
	h = middleware.RateLimit{Limiter: all, Key: everybody}.Handler(h)
	answer(h, request(""))
	if a, b, c := left(account), left(address), left(all); a != 5 || b != 5 || c != 4 {
		t.Errorf("%d, %d, %d left", a, b, c)
	}
	middleware.Succeeded(request("")) // of no limit: nothing happens
}

// Permits that cannot be given back are told of.
func TestSuccessThatCannotBeSaved(t *testing.T) {
	var log redistest.Journal
	l := &unsettled{script{result: allowed("l", 5, 4, 0)}}
	h := middleware.RateLimit{Limiter: l, Key: everybody, FailuresOnly: true, Logger: slog.New(slog.NewTextHandler(&log, nil))}.
		Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { middleware.Succeeded(r) }))
	answer(h, request(""))
	if !strings.Contains(log.String(), "not given back") {
		t.Errorf("logged %q", log.String())
	}
}

// unsettled takes, and settles nothing.
type unsettled struct{ script }

func (*unsettled) Settle(context.Context, string, ratelimit.Result, int) error {
	return errors.New("broken")
}
func (*unsettled) Refund(context.Context, string, ratelimit.Result) error {
	return errors.New("broken")
}

// Where Redis fails while a request waits, OnError says what becomes of it.
func TestRedisFailsWhileARequestWaits(t *testing.T) {
	for mode, want := range map[middleware.FailureMode]int{middleware.FailOpen: 200, middleware.FailClosed: 503, middleware.FailLocal: 200} {
		l := &failing{scriptWithFallback: scriptWithFallback{script{result: denied("l", time.Minute), local: allowed("l", 5, 4, 0)}}}
		h := middleware.RateLimit{Limiter: l, Key: everybody, FailuresOnly: true, OnError: mode, Logger: slog.New(slog.DiscardHandler)}.Handler(hello)
		if res := answer(h, request("")); res.StatusCode != want {
			t.Errorf("%v: %s", mode, res.Status)
		}
	}
}

// failing denies once, and fails from then on.
type failing struct {
	scriptWithFallback
	asked bool
}

func (f *failing) Take(ctx context.Context, key string, cost int) (ratelimit.Result, error) {
	if f.asked {
		return ratelimit.Result{}, ratelimit.ErrUnavailable
	}
	f.asked = true
	return f.script.Take(ctx, key, cost)
}

func (*failing) Settle(context.Context, string, ratelimit.Result, int) error { return nil }
func (*failing) Refund(context.Context, string, ratelimit.Result) error      { return nil }

// A login that is limited by account and by address in one decision: what one of them refuses
// costs the other nothing, and a success gives both back.
func TestALoginByAccountAndAddress(t *testing.T) {
	t.Parallel() // with others that wait
	client := redistest.Start(t).Client()
	account := must(ratelimit.NewSlidingWindow(client, "account", ratelimit.PerHour(5), patient))
	address := must(ratelimit.NewSlidingWindow(client, "address", ratelimit.PerHour(8), patient))
	part := func(i int) func(string) string { return func(key string) string { return ratelimit.SplitKey(key)[i] } }
	site := middleware.RateLimit{
		Limiter:      must(ratelimit.All(ratelimit.Keyed(account, part(0)), ratelimit.Keyed(address, part(1)))),
		Key:          middleware.Join(middleware.ByForm("email", strings.ToLower), middleware.ByIP(middleware.PeerIP)),
		FailuresOnly: true,
	}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("password") == "right" {
			middleware.Succeeded(r)
		}
	}))
	try := func(email, password string) int {
		return answer(site, httptest.NewRequest("POST", "/?email="+email+"&password="+password, nil)).StatusCode
	}
	left := func() (int, int) {
		ip := middleware.IPKey(must(middleware.PeerIP(request(""))))
		return must(account.Take(t.Context(), middleware.FormKey("email", "ann"), 0)).Remaining, must(address.Take(t.Context(), ip, 0)).Remaining
	}
	for range 3 {
		if got := try("ann", "right"); got != 200 {
			t.Fatalf("right: %d", got)
		}
	}
	for range 5 {
		try("Ann", "wrong")
	}
	for range 3 {
		if got := try("ann", "right"); got != 429 {
			t.Errorf("of a locked account: %d", got)
		}
	}
	if a, b := left(); a != 0 || b != 3 {
		t.Errorf("%d and %d left, want 0 and 3", a, b)
	}
}

// failuresOf limits everybody's failures by l.
func failuresOf(l ratelimit.Limiter) middleware.RateLimit {
	return middleware.RateLimit{Limiter: l, Key: everybody, FailuresOnly: true}
}

// guessed is a login page with a limit of five, all of which failures have used up.
func guessed(l ratelimit.Limiter) *logins {
	page := newLogins(1, 0, func(int) middleware.RateLimit { return failuresOf(l) })
	for range 5 {
		page.try(0, "wrong")
	}
	return page
}

// begins returns a handler behind limit that sends on began, and then receives from right whether it is
// a success.
func begins(limit middleware.RateLimit) (h http.Handler, began chan bool, right chan bool) {
	began, right = make(chan bool), make(chan bool)
	return limit.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began <- true
		if <-right {
			middleware.Succeeded(r)
		}
	})), began, right
}

// twoSucceed has a handler of begins succeed in a second, and the next one that begins at once.
func twoSucceed(began, right chan bool) {
	time.Sleep(time.Second)
	right <- true
	<-began
	right <- true
}

func retryAfter(res *http.Response) int {
	s, err := strconv.Atoi(res.Header.Get("Retry-After"))
	if err != nil {
		return -1
	}
	return s
}

// The first guess that finds no permit waits for two seconds, the next ones do not wait.
func TestAWaitTakesTwoSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := guessed(local("l", 5))
		for _, want := range []time.Duration{2 * time.Second, 0} {
			began := time.Now()
			res := l.try(0, "wrong")
			if after := time.Since(began); after != want || res.StatusCode != 429 || retryAfter(res) < 50 {
				t.Errorf("%s after %v, Retry-After %d", res.Status, after, retryAfter(res))
			}
		}
	})
}

// Once somebody gets in again, denials are not final any more.
func TestAResetLetsOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := local("l", 1)
		h, began, right := begins(failuresOf(limiter))
		go answer(h, request(""))
		<-began
		right <- false
		if res := answer(h, request("")); res.StatusCode != 429 || retryAfter(res) < 50 {
			t.Fatalf("%s, Retry-After %d", res.Status, retryAfter(res))
		}
		if err := limiter.Reset(t.Context(), "everybody"); err != nil {
			t.Fatal(err)
		}
		go answer(h, request(""))
		<-began
		go twoSucceed(began, right)
		if res := answer(h, request("")); res.StatusCode != 200 {
			t.Errorf("%s, Retry-After %d", res.Status, retryAfter(res))
		}
	})
}

// hidden is a limit of one, of which asking never shows that it has come back, as others are
// faster.
type hidden struct {
	taken atomic.Int64
	keeps bool // what is given back is gone at once
}

func (h *hidden) Take(_ context.Context, _ string, cost int) (ratelimit.Result, error) {
	if cost == 0 || !h.taken.CompareAndSwap(0, 1) {
		res := denied("l", time.Minute)
		res.Limit = ratelimit.PerMinute(1)
		return res, nil
	}
	return allowed("l", 1, 0, time.Minute), nil
}

func (h *hidden) Settle(context.Context, string, ratelimit.Result, int) error {
	if !h.keeps {
		h.taken.Store(0)
	}
	return nil
}

func (h *hidden) Refund(ctx context.Context, key string, res ratelimit.Result) error {
	return h.Settle(ctx, key, res, 0)
}

// A success wakes who waits: it does not have to ask.
func TestASuccessWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, began, right := begins(failuresOf(new(hidden)))
		go answer(h, request(""))
		<-began
		go twoSucceed(began, right)
		start := time.Now()
		res := answer(h, request(""))
		if after := time.Since(start); res.StatusCode != 200 || after != time.Second {
			t.Errorf("%s after %v", res.Status, after)
		}
	})
}

// A request that waits while a permit comes back, but does not get it, has a short Retry-After: other
// permits may follow.
func TestWhatComesBackIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, began, right := begins(failuresOf(&hidden{keeps: true}))
		go answer(h, request(""))
		<-began
		go func() {
			time.Sleep(time.Second)
			right <- true
		}()
		if res := answer(h, request("")); res.StatusCode != 429 || retryAfter(res) != 2 {
			t.Errorf("%s, Retry-After %d", res.Status, retryAfter(res))
		}
	})
}

// A request that hangs up while it waits is no sign that permits come back.
func TestWhoHangsUpIsNoSuccess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := guessed(local("l", 5))
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			answer(l.servers[0], request("").WithContext(ctx))
		}()
		if res := l.try(0, "wrong"); retryAfter(res) < 50 {
			t.Errorf("%s, Retry-After %d", res.Status, retryAfter(res))
		}
		synctest.Wait()
	})
}

// Two routes of a table with one limit wait for each other's successes.
func TestRoutesOfOneLimitWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := middleware.RateLimit{Limiter: local("l", 5), Key: everybody, FailuresOnly: true}
		h := middleware.Routes{"POST /login": limit, "POST /confirm": limit}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(4 * time.Second)
			middleware.Succeeded(r)
		}))
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() { answer(h, httptest.NewRequest("POST", "/login", nil)) })
		}
		synctest.Wait()
		if res := answer(h, httptest.NewRequest("POST", "/confirm", nil)); res.StatusCode != 429 || retryAfter(res) > 2 {
			t.Errorf("%s, Retry-After %d", res.Status, retryAfter(res))
		}
		all.Wait()
	})
}

// What no success can change is answered at once: a plan of 0, a cost above the limit, a rule that
// denies.
func TestWhatNeverComesIsNotWaitedFor(t *testing.T) {
	server := redistest.Start(t)
	rules := must(ratelimit.NewRules(server.Client(), ratelimit.RulesConfig{}))
	t.Cleanup(func() { rules.Close() })
	cfg := patient
	cfg.Rules = rules
	l := must(ratelimit.NewSlidingWindow(server.Client(), "never", ratelimit.PerMinute(5), cfg))
	until := time.Now().Add(time.Hour)
	if err := rules.Set(t.Context(), ratelimit.Rule{Policy: "never", Key: "denied", Mode: ratelimit.Deny, Until: until, Actor: "x", Reason: "y"}); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		limit middleware.RateLimit
		told  bool
	}{
		"plan of 0":    {middleware.RateLimit{Limiter: must(l.With(ratelimit.PerMinute(0))), Key: everybody}, false},
		"cost > limit": {middleware.RateLimit{Limiter: l, Key: everybody, Cost: func(*http.Request) int { return 6 }}, false},
		"rule":         {middleware.RateLimit{Limiter: l, Key: func(*http.Request) (string, error) { return "denied", nil }}, true},
	} {
		tc.limit.FailuresOnly = true
		h := tc.limit.Handler(hello)
		var all sync.WaitGroup
		for range 100 { // more than may wait
			all.Go(func() {
				res := answer(h, request(""))
				if s := retryAfter(res); res.StatusCode != 429 || tc.told && s < 3000 || !tc.told && s != -1 {
					t.Errorf("%s: %s, Retry-After %d", name, res.Status, s)
				}
			})
		}
		all.Wait()
	}
}

// Strikes are counted neither for a client that comes back after its Retry-After nor for a request that
// waits for its answer.
func TestPatienceIsNoStrike(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	cfg := patient
	cfg.Penalty = ratelimit.Penalty{Strikes: 1, First: time.Hour}
	var handlers []http.Handler
	began, right := make(chan bool, 10), make(chan bool)
	for range 2 {
		limiter := must(ratelimit.NewSlidingWindow(server.Client(), "patience", ratelimit.PerMinute(5), cfg))
		handlers = append(handlers, failuresOf(limiter).Handler(
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { began <- true; <-right; middleware.Succeeded(r) })))
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { answer(handlers[0], request("")) })
		<-began
	}
	for range 2 { // a client that comes back when it was told to
		res := answer(handlers[0], request(""))
		if res.StatusCode != 429 || retryAfter(res) != 2 {
			t.Fatalf("%s, Retry-After %d", res.Status, retryAfter(res))
		}
		time.Sleep(2 * time.Second)
	}
	for i := range 2 { // two more requests wait, and have no answer yet
		all.Go(func() {
			if res := answer(handlers[1-i], request("")); res.StatusCode != 200 {
				t.Errorf("%s, Retry-After %d", res.Status, retryAfter(res))
			}
		})
		time.Sleep(700 * time.Millisecond)
	}
	close(right)
	all.Wait()
	if res := answer(handlers[0], request("")); res.StatusCode != 200 {
		t.Errorf("all were right: %s, Retry-After %d", res.Status, retryAfter(res))
	}
}

// Who guesses on after a final denial is banned, as under any other limit.
func TestImpatienceIsAStrike(t *testing.T) {
	t.Parallel() // with others that wait
	cfg := patient
	cfg.Penalty = ratelimit.Penalty{Strikes: 1, First: time.Hour}
	limiter := must(ratelimit.NewSlidingWindow(redistest.Start(t).Client(), "impatience", ratelimit.PerMinute(5), cfg))
	l := guessed(limiter)
	var res *http.Response
	for range 10 {
		if res = l.try(0, "wrong"); retryAfter(res) > 60 {
			return
		}
		time.Sleep(700 * time.Millisecond)
	}
	t.Errorf("%s, Retry-After %d", res.Status, retryAfter(res))
}
