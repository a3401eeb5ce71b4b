package movingtest

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

var ok = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

// clients are those of one test.
type clients struct {
	n      int
	failed error // why a limiter did not decide, since the last client came
}

// watch has c see what a limit decides.
func (c *clients) watch(limit middleware.RateLimit) middleware.RateLimit {
	limit.OnDecision = func(d middleware.Decision) { c.failed = errors.Join(c.failed, d.Err) }
	return limit
}

// passed has a new client send n requests to each handler, and returns how many of all passed, and
// the header of the last response of each. If Redis has not answered in time for one of them,
// another client sends them all.
func (c *clients) passed(n int, handlers ...http.Handler) (int, []http.Header) {
	for tries := 0; ; tries++ {
		c.n++
		c.failed = nil
		total := 0
		var headers []http.Header
		for _, h := range handlers {
			count, header := passedFrom(fmt.Sprint("198.51.100.", c.n), h, n)
			total += count
			headers = append(headers, header)
		}
		if c.failed == nil || tries == 5 {
			return total, headers
		}
		time.Sleep(1100 * time.Millisecond) // after a second Redis is asked again
	}
}

// passedFrom sends n requests and returns how many passed, and the header of the last response.
func passedFrom(address string, h http.Handler, n int) (int, http.Header) {
	count := 0
	var header http.Header
	for range n {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = address + ":1"
		h.ServeHTTP(w, r)
		if header = w.Header(); w.Code == http.StatusOK {
			count++
		}
	}
	return count, header
}

// awayFromTheEdge waits until the minute of the wall clock, by which httprate goes, has some time left.
func awayFromTheEdge() {
	if s := time.Now().Second(); s > 50 {
		time.Sleep(time.Duration(61-s) * time.Second)
	}
}

func TestLimitsBeforeAndAfter(t *testing.T) {
	_, client := shared(t)
	awayFromTheEdge()
	ulule, err := ululeBefore(client)
	if err != nil {
		t.Fatal(err)
	}
	var c clients
	after := func(limit middleware.RateLimit, err error) http.Handler {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c.watch(limit).Handler(ok)
	}
	for _, tc := range []struct {
		name       string
		h          http.Handler
		retryAfter func(string) bool
	}{
		{"httprate, before", httprateBefore(client)(ok), func(s string) bool { return s == "60" }},
		{"httprate, after", after(httprateAfter(client)), func(s string) bool { return s != "" }},
		{"ulule, before", ulule(ok), func(s string) bool { return s == "" }},
		{"ulule, after", after(ululeAfter(client)), func(s string) bool { return s != "" }},
	} {
		n, headers := c.passed(110, tc.h)
		header := headers[0]
		if n != 100 || header.Get("X-RateLimit-Limit") != "100" || header.Get("X-RateLimit-Remaining") != "0" || header.Get("X-RateLimit-Reset") == "" {
			t.Errorf("%s: %d of 110 passed, %v", tc.name, n, header)
		}
		if !tc.retryAfter(header.Get("Retry-After")) {
			t.Errorf("%s: Retry-After %q", tc.name, header.Get("Retry-After"))
		}
	}
}

// A limit that was counted beside the old one takes over without a fresh start. Whichever servers
// run at the same time, no more pass than the limit.
func TestBeside(t *testing.T) {
	_, client := shared(t)
	awayFromTheEdge()
	ulule, err := ululeBefore(client)
	if err != nil {
		t.Fatal(err)
	}
	limit, err := httprateAfter(client)
	if err != nil {
		t.Fatal(err)
	}
	var c clients
	limit = c.watch(limit)
	shadowed := limit
	shadowed.Shadow = true
	for name, old := range map[string]func(http.Handler) http.Handler{"ulule": ulule, "httprate": httprateBefore(client)} {
		for _, steps := range [][]http.Handler{
			{old(ok), beside(old, shadowed, ok)},
			{beside(old, shadowed, ok), beside(old, limit, ok)},
			{beside(old, limit, ok), limit.Handler(ok)},
			{beside(old, shadowed, ok), beside(old, limit, ok), limit.Handler(ok)},
		} {
			total, headers := c.passed(60, steps...)
			for _, header := range headers {
				if len(header["X-Ratelimit-Limit"]) != 1 {
					t.Errorf("%s: %v", name, header)
				}
			}
			if total != 100 {
				t.Errorf("%s: %d of %d passed, want 100", name, total, 60*len(steps))
			}
		}
	}
}

// What the page says happens without Redis.
func TestWithoutRedis(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "localhost:1", MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	if _, err := ululeBefore(client); err == nil {
		t.Error("ulule: there is a store without Redis")
	}
	if n, _ := passedFrom("192.0.2.1", httprateBefore(client)(ok), 3); n != 3 {
		t.Errorf("httprate passed %d of 3", n)
	}
	limit, err := ululeAfter(client)
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := passedFrom("192.0.2.1", limit.Handler(ok), 110); n != 100 {
		t.Errorf("passed %d of 110", n)
	}
}

// A TokenBucket of bucket's limit decides as redis_rate.
func TestBucketIsWhatRedisRateDoes(t *testing.T) {
	for _, tc := range []struct {
		limit redis_rate.Limit
		want  ratelimit.Limit
	}{
		{redis_rate.PerMinute(10), ratelimit.PerMinute(10)},
		{redis_rate.Limit{Rate: 10, Burst: 3, Period: time.Second}, ratelimit.Limit{Requests: 3, Window: 300 * time.Millisecond}},
		{redis_rate.Limit{Rate: 3, Burst: 1, Period: time.Second}, ratelimit.Limit{Requests: 1, Window: 333_333 * time.Microsecond}},
	} {
		if got := bucket(tc.limit); got != tc.want {
			t.Errorf("%v: %v, want %v", tc.limit, got, tc.want)
		}
	}

	_, client := shared(t)
	limit := redis_rate.Limit{Rate: 10, Burst: 5, Period: time.Minute}
	old := redis_rate.NewLimiter(client)
	limiter, err := redisRateAfter(client, limit)
	if err != nil {
		t.Fatal(err)
	}
	for i, cost := range []int{1, 3, 2, 1, 1} { // 1 and 3 pass, 2 is too many, 1 passes, 1 does not
		was, err := old.AllowN(t.Context(), "k", limit, cost)
		if err != nil {
			t.Fatal(err)
		}
		is, err := limiter.Take(t.Context(), "k", cost)
		if err != nil {
			t.Fatal(err)
		}
		if is.Allowed != (was.Allowed == cost) || is.Allowed && is.Remaining != was.Remaining {
			t.Errorf("request %d: was %+v, is %v", i, was, is)
		}
		if d := is.RetryAfter - was.RetryAfter; !is.Allowed && (d < -time.Second || d > time.Second) {
			t.Errorf("request %d: retry after %v, was %v", i, is.RetryAfter, was.RetryAfter)
		}
	}
}
