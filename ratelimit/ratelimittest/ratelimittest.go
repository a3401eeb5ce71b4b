// Package ratelimittest is a conformance suite for limiters: what the comments of
// [ratelimit.Limiter] and [ratelimit.Result] promise, whatever the algorithm and
// wherever the state is kept.
package ratelimittest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Subject is what the suite tests.
type Subject struct {
	// New returns a limiter with nothing used. Limiters returned in one subtest may
	// share state with each other, if their limits are equal, but with no others.
	New func(t testing.TB, limit ratelimit.Limit) ratelimit.Limiter

	// Advance moves the clock by which the limiters decide. It must stand still
	// otherwise. nil: it cannot be moved, and what needs it is skipped.
	Advance func(d time.Duration)
}

// Run runs the suite as subtests of t. The subtests are not parallel.
func Run(t *testing.T, s Subject) {
	for _, test := range []struct {
		name  string
		clock bool // needs Advance
		run   func(*testing.T, Subject)
	}{
		{"allows up to the limit", false, testLimit},
		{"limit of one", false, testLimitOfOne},
		{"waiting RetryAfter gets through", true, testRetryAfter},
		{"waiting less does not", true, testNotEarlier},
		{"waiting ResetAfter restores all", true, testResetAfter},
		{"denials spend nothing", true, testDenialsSpendNothing},
		{"cost", false, testCost},
		{"cost above the limit", false, testCostAboveLimit},
		{"a look spends nothing", false, testLook},
		{"bad input", false, testBadInput},
		{"keys of any bytes", false, testKeys},
		{"parallel takes of one key", false, testParallel},
		{"parallel takes of several costs", false, testParallelCosts},
		{"ResetAt is stable", true, testResetAt},
		{"narrow and wide windows", true, testWindows},
		{"at most twice the limit in any window", true, testNeverTwice},
		{"reset frees", false, testReset},
		{"another limit", true, testWith},
		{"taking locally", false, testLocally},
		{"refund", true, testRefund},
		{"settle", false, testSettle},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.clock && s.Advance == nil {
				t.Skip("the clock cannot be moved")
			}
			test.run(t, s)
		})
	}
}

// key returns a key that no other test uses.
func key() string { return fmt.Sprintf("key-%x", rand.Uint64()) }

func take(t testing.TB, l ratelimit.Limiter, key string, cost int) ratelimit.Result {
	t.Helper()
	res, err := l.Take(context.Background(), key, cost)
	if err != nil {
		t.Fatalf("Take(%q, %d): %v", key, cost, err)
	}
	check(t, res)
	return res
}

// check checks what holds for every result.
func check(t testing.TB, r ratelimit.Result) {
	t.Helper()
	switch {
	case r.Policy == "":
		t.Errorf("no policy: %+v", r)
	case r.Remaining < 0 || r.Remaining > r.Limit.Requests:
		t.Errorf("Remaining out of range: %+v", r)
	case r.Allowed != (r.RetryAfter == 0):
		t.Errorf("RetryAfter must be 0 if and only if allowed: %+v", r)
	case r.RetryAfter < 0 || r.ResetAfter < 0:
		t.Errorf("negative time: %+v", r)
	case r.RetryAfter != ratelimit.Never && r.RetryAfter > r.ResetAfter:
		t.Errorf("RetryAfter beyond ResetAfter: %+v", r)
	case r.ResetAfter > r.Limit.Window+2*time.Millisecond:
		t.Errorf("ResetAfter beyond the window: %+v", r)
	}
}

func allowed(t testing.TB, l ratelimit.Limiter, key string, cost, remaining int) ratelimit.Result {
	t.Helper()
	res := take(t, l, key, cost)
	if !res.Allowed || res.Remaining != remaining {
		t.Fatalf("Take(%q, %d) = %+v, want it allowed and %d remaining", key, cost, res, remaining)
	}
	return res
}

func denied(t testing.TB, l ratelimit.Limiter, key string, cost, remaining int) ratelimit.Result {
	t.Helper()
	res := take(t, l, key, cost)
	if res.Allowed || res.Remaining != remaining {
		t.Fatalf("Take(%q, %d) = %+v, want it denied and %d remaining", key, cost, res, remaining)
	}
	return res
}

func testLimit(t *testing.T, s Subject) {
	limit := ratelimit.PerHour(5)
	l, k := s.New(t, limit), key()
	for left := 4; left >= 0; left-- {
		res := allowed(t, l, k, 1, left)
		if res.Limit != limit {
			t.Errorf("Limit = %v, want %v", res.Limit, limit)
		}
	}
	denied(t, l, k, 1, 0)
	denied(t, l, k, 1, 0)
	allowed(t, l, key(), 1, 4)
}

func testLimitOfOne(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.PerHour(1)), key()
	allowed(t, l, k, 1, 0)
	denied(t, l, k, 1, 0)
	denied(t, l, k, 1, 0)
}

func testRetryAfter(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.Limit{Requests: 7, Window: time.Second}), key()
	for i := range 7 {
		allowed(t, l, k, 1, 6-i)
	}
	for range 20 {
		s.Advance(denied(t, l, k, 1, 0).RetryAfter)
		if res := take(t, l, k, 1); !res.Allowed {
			t.Fatalf("denied after waiting for RetryAfter: %+v", res)
		}
		for take(t, l, k, 1).Allowed { // a fixed window has a whole quota again
		}
	}
	for cost := 1; cost <= 7; cost++ {
		for take(t, l, k, 1).Allowed {
		}
		s.Advance(take(t, l, k, cost).RetryAfter)
		if res := take(t, l, k, cost); !res.Allowed {
			t.Fatalf("cost %d denied after waiting for RetryAfter: %+v", cost, res)
		}
	}
}

func testNotEarlier(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.Limit{Requests: 3, Window: time.Minute}), key()
	for range 10 {
		for take(t, l, k, 1).Allowed {
			s.Advance(1234 * time.Millisecond)
		}
		wait := take(t, l, k, 1).RetryAfter
		if wait > 10*time.Second {
			s.Advance(wait - 10*time.Second)
			if again := denied(t, l, k, 1, 0).RetryAfter; again != 10*time.Second {
				t.Fatalf("RetryAfter = %v ten seconds before it ends", again)
			}
			wait = 10 * time.Second
		}
		s.Advance(wait - time.Microsecond)
		denied(t, l, k, 1, 0)
		s.Advance(time.Microsecond)
		if !take(t, l, k, 1).Allowed {
			t.Fatal("denied at the end of RetryAfter")
		}
	}
}

func testResetAfter(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.Limit{Requests: 10, Window: 10 * time.Second}), key()
	for i := range 10 {
		s.Advance(time.Duration(i) * 100 * time.Millisecond)
		reset := take(t, l, k, 1+i%3).ResetAfter
		if reset <= 0 {
			t.Fatal("no ResetAfter with permits used")
		}
		if i%4 == 3 {
			s.Advance(reset)
			allowed(t, l, k, 0, 10)
			allowed(t, l, k, 10, 0)
			s.Advance(denied(t, l, k, 1, 0).ResetAfter)
			allowed(t, l, k, 0, 10)
		}
	}
}

func testDenialsSpendNothing(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.Limit{Requests: 2, Window: 10 * time.Second}), key()
	for range 5 {
		passed := 0
		// A client that hammers gets its limit in every window.
		for range 100 {
			if take(t, l, k, 1).Allowed {
				passed++
			}
			s.Advance(100 * time.Millisecond)
		}
		if passed < 2 {
			t.Fatalf("%d passed in a window of hammering, want at least 2", passed)
		}
	}
}

func testCost(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.PerHour(10)), key()
	allowed(t, l, k, 3, 7)
	allowed(t, l, k, 4, 3)
	denied(t, l, k, 4, 3)
	denied(t, l, k, 5, 3)
	allowed(t, l, k, 1, 2)
	allowed(t, l, k, 2, 0)
	denied(t, l, k, 1, 0)
	// More than fits into one call of a script.
	l, k = s.New(t, ratelimit.PerDay(20_000)), key()
	allowed(t, l, k, 9_999, 10_001)
	allowed(t, l, k, 10_000, 1)
	denied(t, l, k, 2, 1)
	allowed(t, l, k, 1, 0)
}

func testCostAboveLimit(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.PerHour(5)), key()
	for range 3 {
		if res := denied(t, l, k, 6, 5); res.RetryAfter != ratelimit.Never {
			t.Fatalf("RetryAfter = %v, want Never", res.RetryAfter)
		}
	}
	allowed(t, l, k, 5, 0)
	if res := take(t, l, k, 1<<40); res.Allowed || res.RetryAfter != ratelimit.Never {
		t.Fatalf("%+v, want it denied for ever", res)
	}
}

func testLook(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.PerHour(3)), key()
	for range 5 {
		if res := allowed(t, l, k, 0, 3); res.ResetAfter != 0 {
			t.Fatalf("ResetAfter = %v with nothing used", res.ResetAfter)
		}
	}
	allowed(t, l, k, 1, 2)
	allowed(t, l, k, 0, 2)
	allowed(t, l, k, 2, 0)
	for range 3 {
		look, res := denied(t, l, k, 0, 0), denied(t, l, k, 1, 0)
		if d := look.RetryAfter - res.RetryAfter; d < -time.Minute || d > time.Minute {
			t.Fatalf("a look says %v, a take %v", look.RetryAfter, res.RetryAfter)
		}
	}
}

func testBadInput(t *testing.T, s Subject) {
	l := s.New(t, ratelimit.PerHour(3))
	done, cancel := context.WithCancel(context.Background())
	cancel()
	for _, test := range []struct {
		name string
		ctx  context.Context
		key  string
		cost int
		want error
	}{
		{"empty key", context.Background(), "", 1, ratelimit.ErrEmptyKey},
		{"negative cost", context.Background(), "k", -1, ratelimit.ErrCost},
		{"done context", done, "k", 1, context.Canceled},
	} {
		res, err := l.Take(test.ctx, test.key, test.cost)
		if !errors.Is(err, test.want) || res.Allowed {
			t.Errorf("%s: Take = %+v, %v, want %v", test.name, res, err, test.want)
		}
		if errors.Is(err, ratelimit.ErrUnavailable) {
			t.Errorf("%s: the caller's mistake is taken for an outage: %v", test.name, err)
		}
	}
	allowed(t, l, key(), 1, 2)
}

// HostileKeys are keys that must all be different to a limiter.
func HostileKeys() []string {
	long := strings.Repeat("x", 1<<20)
	return []string{
		"a", "A", "a ", " a", "a:b", "a::b", "a:b:", "{a}", "a}", "}a", "{a", "{}", "{", "}", "}}{{",
		"%", "%25", "%7B", "%7b", "a%", "%~a", "%~" + strings.Repeat("A", 43), "\x00", "\x00\x00", "a\x00",
		"a\n", "\r\n", "\xff", "\xff\xfe", "ÿ", "é", "e\u0301", "\u202e", "*", "?", "[a]", `\`, `\\`, "\"", "'",
		long, long + "x", long[1:] + "y", strings.Repeat("{", 1<<20), strings.Repeat("\xff", 200), strings.Repeat("é", 100),
		ratelimit.JoinKey("a:b", "c"), ratelimit.JoinKey("a", "b:c"), ratelimit.JoinKey("a", "b", "c"),
		ratelimit.JoinKey(`a\`, `b`), ratelimit.JoinKey(`a\:b`), ratelimit.JoinKey("", "a"), ratelimit.JoinKey("a", ""), ratelimit.JoinKey("", ""),
	}
}

func testKeys(t *testing.T, s Subject) {
	l := s.New(t, ratelimit.PerHour(1))
	for _, k := range HostileKeys() {
		if res := take(t, l, k, 1); !res.Allowed {
			t.Errorf("%.40q of %d bytes shares a bucket with another key", k, len(k))
		}
	}
	for _, k := range HostileKeys() {
		if res := take(t, l, k, 1); res.Allowed {
			t.Errorf("%.40q of %d bytes has two buckets", k, len(k))
		}
	}
}

func testParallel(t *testing.T, s Subject) {
	const limit, takes = 100, 1000
	l, k := s.New(t, ratelimit.PerHour(limit)), key()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		left = map[int]int{}
	)
	for range takes {
		wg.Go(func() {
			res, err := l.Take(context.Background(), k, 1)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("Take: %v", err)
			} else if check(t, res); res.Allowed {
				left[res.Remaining]++
			}
		})
	}
	wg.Wait()
	// Each of the hundred is told another number of permits left.
	for i := range limit {
		if left[i] != 1 {
			t.Errorf("%d takes were told that %d remain, want 1", left[i], i)
		}
	}
	if len(left) != limit {
		t.Errorf("takes were told %d different remainders, want %d", len(left), limit)
	}
	denied(t, l, k, 1, 0)
}

func testParallelCosts(t *testing.T, s Subject) {
	const limit = 1000
	l, k := s.New(t, ratelimit.PerHour(limit)), key()
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		spent int
	)
	for i := range 1000 {
		wg.Go(func() {
			cost := i%4 + 1
			res, err := l.Take(context.Background(), k, cost)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("Take: %v", err)
			} else if check(t, res); res.Allowed {
				spent += cost
			}
		})
	}
	wg.Wait()
	res := take(t, l, k, 0)
	if spent > limit || spent+res.Remaining != limit {
		t.Errorf("%d permits spent and %d remain, of %d", spent, res.Remaining, limit)
	}
}

func testResetAt(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.Limit{Requests: 3, Window: time.Minute}), key()
	at := allowed(t, l, k, 3, 0).ResetAt()
	for range 10 {
		s.Advance(1700 * time.Microsecond)
		if again := denied(t, l, k, 1, 0).ResetAt(); !again.Equal(at) {
			t.Fatalf("ResetAt moved from %v to %v", at, again)
		}
	}
}

func testWindows(t *testing.T, s Subject) {
	for _, window := range []time.Duration{
		time.Millisecond, 1500 * time.Microsecond, 33333 * time.Microsecond,
		25 * 24 * time.Hour, 366 * 24 * time.Hour, ratelimit.MaxWindow,
	} {
		l, k := s.New(t, ratelimit.Limit{Requests: 3, Window: window}), key()
		for i := range 3 {
			allowed(t, l, k, 1, 2-i)
		}
		res := denied(t, l, k, 1, 0)
		s.Advance(res.ResetAfter)
		allowed(t, l, k, 3, 0)
		denied(t, l, k, 1, 0)
	}
}

func testNeverTwice(t *testing.T, s Subject) {
	const n = 5
	const window = time.Second
	l, k := s.New(t, ratelimit.Limit{Requests: n, Window: window}), key()
	var (
		now      time.Duration
		admitted []time.Duration
	)
	for range 500 {
		cost := 1 + rand.IntN(3)
		if res := take(t, l, k, cost); res.Allowed {
			for range cost {
				admitted = append(admitted, now)
			}
		}
		step := time.Duration(rand.Int64N(int64(300 * time.Millisecond))).Truncate(time.Microsecond)
		now += step
		s.Advance(step)
	}
	if len(admitted) < n*50 {
		t.Errorf("%d permits in about 75 windows of %d", len(admitted), n)
	}
	for i, first := range admitted {
		if j := i + 2*n; j < len(admitted) && admitted[j]-first < window-time.Millisecond {
			t.Fatalf("%d permits within %v", 2*n+1, admitted[j]-first)
		}
	}
}

func testReset(t *testing.T, s Subject) {
	l, k := s.New(t, ratelimit.PerHour(2)), key()
	r, ok := l.(interface {
		Reset(ctx context.Context, key string) error
	})
	if !ok {
		t.Skip("no method Reset")
	}
	allowed(t, l, k, 2, 0)
	denied(t, l, k, 1, 0)
	if err := r.Reset(context.Background(), k); err != nil {
		t.Fatal(err)
	}
	allowed(t, l, k, 1, 1)
	if err := r.Reset(context.Background(), key()); err != nil {
		t.Errorf("a key that nobody used: %v", err)
	}
	if err := r.Reset(context.Background(), ""); !errors.Is(err, ratelimit.ErrEmptyKey) {
		t.Errorf("Reset of the empty key: %v", err)
	}
}

func testWith(t *testing.T, s Subject) {
	ten := s.New(t, ratelimit.PerMinute(10))
	w, ok := ten.(interface {
		With(ratelimit.Limit) (ratelimit.Limiter, error)
	})
	if !ok {
		t.Skip("no method With")
	}
	with := func(requests int, window time.Duration) ratelimit.Limiter {
		l, err := w.With(ratelimit.Limit{Requests: requests, Window: window})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if _, err := w.With(ratelimit.Limit{}); err == nil {
		t.Error("With accepts the zero Limit")
	}
	k := key()
	allowed(t, ten, k, 10, 0)
	denied(t, ten, k, 1, 0)
	// Lowered: nothing remains, and what remains is never negative.
	denied(t, with(5, time.Minute), k, 1, 0)
	// Raised: there is room at once, or as soon as at the new rate.
	if res := take(t, with(600, time.Minute), k, 1); res.RetryAfter > 100*time.Millisecond {
		t.Errorf("raised to 600: %+v", res)
	}
	// Another window: nobody is locked out for longer than it.
	for _, window := range []time.Duration{time.Second, time.Hour} {
		l, k := with(10, window), key()
		allowed(t, ten, k, 10, 0)
		res := take(t, l, k, 10)
		s.Advance(res.ResetAfter)
		allowed(t, l, k, 10, 0)
	}
}

func testLocally(t *testing.T, s Subject) {
	limit := ratelimit.PerHour(2)
	l, k := s.New(t, limit), key()
	local, ok := l.(ratelimit.LocalTaker)
	if !ok {
		t.Skip("no method TakeLocally")
	}
	for _, want := range []bool{true, true, false} {
		res, err := local.TakeLocally(k, 1)
		if err != nil {
			t.Fatal(err)
		}
		check(t, res)
		if res.Allowed != want || res.Source != ratelimit.FromLocal || res.Limit != limit {
			t.Fatalf("TakeLocally = %+v, want it allowed: %v", res, want)
		}
	}
	if _, err := local.TakeLocally("", 1); !errors.Is(err, ratelimit.ErrEmptyKey) {
		t.Errorf("empty key: %v", err)
	}
	if _, err := local.TakeLocally(k, -1); !errors.Is(err, ratelimit.ErrCost) {
		t.Errorf("negative cost: %v", err)
	}
}

func settler(t *testing.T, l ratelimit.Limiter) ratelimit.Settler {
	s, ok := l.(ratelimit.Settler)
	if !ok {
		t.Skip("no Settler")
	}
	return s
}

func testRefund(t *testing.T, s Subject) {
	ctx := context.Background()
	l, k := s.New(t, ratelimit.Limit{Requests: 5, Window: 10 * time.Second}), key()
	refund := func(k string, r ratelimit.Result) {
		t.Helper()
		if err := settler(t, l).Refund(ctx, k, r); err != nil {
			t.Fatal(err)
		}
	}
	first, second := allowed(t, l, k, 2, 3), allowed(t, l, k, 3, 0)
	refund(k, denied(t, l, k, 1, 0)) // nothing was spent
	refund(k, first)
	allowed(t, l, k, 0, 2)
	refund(k, first) // once
	allowed(t, l, k, 0, 2)
	refund(k, second)
	if res := allowed(t, l, k, 0, 5); res.ResetAfter > 10*time.Second {
		t.Errorf("%+v", res)
	}
	refund(k, second) // never below nothing used
	allowed(t, l, k, 0, 5)

	// Permits that came back by themselves are not given back again: not to
	// another window, nor to those who took them after.
	old := allowed(t, l, k, 5, 0)
	s.Advance(old.ResetAfter)
	allowed(t, l, k, 3, 2)
	refund(k, old)
	allowed(t, l, k, 0, 2)

	for _, bad := range []struct {
		name, key string
		cost      int
		want      error
	}{
		{"empty key", "", 0, ratelimit.ErrEmptyKey},
		{"negative cost", k, -1, ratelimit.ErrCost},
		{"another key", key(), 0, ratelimit.ErrResult},
	} {
		if err := settler(t, l).Settle(ctx, bad.key, allowed(t, l, k, 1, 1), bad.cost); !errors.Is(err, bad.want) {
			t.Errorf("%s: %v, want %v", bad.name, err, bad.want)
		}
		if r, ok := l.(interface {
			Reset(ctx context.Context, key string) error
		}); ok {
			_ = r.Reset(ctx, k)
			allowed(t, l, k, 3, 2)
		}
	}
}

func testSettle(t *testing.T, s Subject) {
	ctx := context.Background()
	l := s.New(t, ratelimit.PerDay(5000))
	settle := func(k string, r ratelimit.Result, cost int) {
		t.Helper()
		if err := settler(t, l).Settle(ctx, k, r, cost); err != nil {
			t.Fatal(err)
		}
	}
	k := key()
	settle(k, allowed(t, l, k, 10, 4990), 10)
	allowed(t, l, k, 0, 4990)
	settle(k, allowed(t, l, k, 10, 4980), 3)
	allowed(t, l, k, 0, 4987)
	settle(k, allowed(t, l, k, 10, 4977), 20)
	allowed(t, l, k, 0, 4967)
	settle(k, allowed(t, l, k, 0, 4967), 67) // looked first, costs known now
	allowed(t, l, k, 0, 4900)
	settle(k, allowed(t, l, k, 4000, 900), 1)
	allowed(t, l, k, 0, 4899)
	// Beyond the limit: what follows is denied, and figures stay sane.
	settle(k, allowed(t, l, k, 1, 4898), 1<<40)
	denied(t, l, k, 1, 0)
}

// Fill spends what is left of key, so that the next Take is denied. Reset of a
// [ratelimit.Resetter] empties it again. It fails t if the limiter cannot decide, or has no limit.
func Fill(t testing.TB, l ratelimit.Limiter, key string) {
	t.Helper()
	const most = 10_000 // that every limiter takes at once
	for range 10_000 {
		look, err := l.Take(t.Context(), key, 0)
		if err == nil && !look.Allowed {
			return
		}
		if err == nil {
			_, err = l.Take(t.Context(), key, max(1, min(look.Remaining, most)))
		}
		if err != nil {
			t.Fatalf("ratelimittest: %v", err)
		}
	}
	t.Fatalf("ratelimittest: Fill: after 100,000,000 permits %q is not denied", key)
}
