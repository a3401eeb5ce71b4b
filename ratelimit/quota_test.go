package ratelimit

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

var everyZone = flag.Bool("ratelimit.zones", false, "look at all time zones, not at a random eightieth of them")

// zones are time zones with odd changes of their clocks, and others of this machine.
func zones(t testing.TB) []string {
	names := []string{
		"UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/Asuncion", "America/Havana",
		"Africa/Cairo", "Asia/Beirut", "Asia/Tehran", "Asia/Amman", "Atlantic/Azores", "Australia/Lord_Howe",
		"Pacific/Apia", "Pacific/Kiritimati", "Asia/Kathmandu", "America/St_Johns", "America/Scoresbysund", "Asia/Gaza",
	}
	root := "/usr/share/zoneinfo"
	if testing.Short() || runtime.GOOS == "windows" {
		return names
	}
	_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		name := strings.TrimPrefix(path, root+"/")
		if !d.IsDir() && strings.Contains(name, "/") && !strings.HasPrefix(name, "posix") && !strings.HasPrefix(name, "right") {
			if *everyZone || rand.IntN(80) == 0 {
				if _, err := time.LoadLocation(name); err == nil {
					names = append(names, name)
				}
			}
		}
		return nil
	})
	return names
}

// skipped are zones that left out 30 December 2011, to change sides of the date line.
var skipped = map[string]bool{"Pacific/Apia": true, "Pacific/Fakaofo": true}

// Periods follow each other without a gap, each moment is in its own, and each begins on the
// right date, in every time zone, over changes of its clocks and of its side of the date line.
func TestPeriodsOfEveryZone(t *testing.T) {
	total := 0
	for _, name := range zones(t) {
		if !redistest.Turn(4) {
			continue
		}
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, period := range []Period{Day, Week, Month} {
			c := calendar{period, zone}
			begin := c.begin(time.Date(2005, 1, 3, 12, 0, 0, 0, zone), 0)
			for last := time.Date(2031, 1, 1, 0, 0, 0, 0, zone); begin.Before(last); {
				end := c.begin(begin, 1)
				length := end.Sub(begin)
				what := func() string { return fmt.Sprintf("%s, the %v from %v to %v", name, period, begin, end) }
				if length <= 0 || !c.begin(end, 0).Equal(end) || !c.begin(begin, 0).Equal(begin) ||
					!c.begin(end, -1).Equal(begin) && !skipped[name] {
					t.Fatalf("%s: does not join the next", what())
				}
				for _, in := range []time.Time{begin.Add(time.Microsecond), begin.Add(length / 2), end.Add(-time.Microsecond)} {
					if !c.begin(in, 0).Equal(begin) || c.end(in.UnixMicro()) != end.UnixMilli() {
						t.Fatalf("%s: %v is in another, from %v", what(), in, c.begin(in, 0))
					}
				}
				// Just before, it was another date.
				if begin.Add(-time.Microsecond).YearDay() == begin.YearDay() {
					t.Fatalf("%s: does not begin its date", what())
				}
				switch {
				case period == Week && begin.Weekday() != time.Monday, period == Month && begin.Day() != 1:
					t.Fatalf("%s: begins on %v", what(), begin)
				case period == Day && (length < 20*time.Hour || length > 28*time.Hour):
					t.Fatalf("%s: lasts %v", what(), length)
				}
				begin = end
				total++
			}
		}
	}
	t.Logf("%d periods", total)
}

// Days of 23 and 25 hours, and of clocks that are changed at midnight.
func TestLengthsOfDays(t *testing.T) {
	for _, test := range []struct {
		zone, at string
		hours    float64
	}{
		{"Europe/Berlin", "2026-03-29T12:00:00", 23},
		{"Europe/Berlin", "2026-10-25T12:00:00", 25},
		{"Europe/Berlin", "2026-10-26T00:30:00", 24},
		{"America/New_York", "2026-11-01T23:59:59", 25},
		{"America/Sao_Paulo", "2018-11-04T12:00:00", 23}, // there is no 0 o'clock
		{"America/Sao_Paulo", "2018-02-17T12:00:00", 25}, // 23 o'clock comes twice
		{"Australia/Lord_Howe", "2026-04-05T12:00:00", 24.5},
		{"UTC", "2024-02-29T12:00:00", 24},
	} {
		zone, err := time.LoadLocation(test.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.ParseInLocation("2006-01-02T15:04:05", test.at, zone)
		if err != nil {
			t.Fatal(err)
		}
		c := calendar{Day, zone}
		begin := c.begin(at, 0)
		if got := c.begin(begin, 1).Sub(begin).Hours(); got != test.hours {
			t.Errorf("%s in %s: a day of %v hours, want %v", test.at, test.zone, got, test.hours)
		}
	}
}

// A quota admits so many in each period, says when the next one begins, and that is true.
func TestQuotaOverAChangeOfClocks(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	year := time.Now().Year() + 1
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		freeze(b)
		for period, periods := range map[Period]int{Day: 370, Week: 60, Month: 14} {
			now := time.Date(year, 1, 5, 17, 0, 0, 0, berlin)
			l := must(NewQuota(b.Client, fmt.Sprintf("q-%x", rand.Uint64()), 3, period, berlin, Config{Timeout: 10 * time.Second}))
			SetClock(l, func() int64 { return now.UnixMicro() })
			lengths := map[time.Duration]int{}
			for range periods {
				resets := map[time.Time]bool{}
				for i := range 3 {
					res := must(l.Take(ctx, "k", 1))
					if !res.Allowed || res.Remaining != 2-i {
						t.Fatalf("%v, %v: %v", period, now, res)
					}
					resets[res.ResetAt()] = true
				}
				res := must(l.Take(ctx, "k", 1))
				next := now.Add(res.RetryAfter)
				if res.Allowed || res.RetryAfter != res.ResetAfter || next.Hour() != 0 || next.Minute() != 0 || next.Nanosecond() != 0 || len(resets) != 1 {
					t.Fatalf("%v, %v: %v, until %v; resets %v", period, now, res, next, resets)
				}
				if period == Month && next.Day() != 1 || period == Week && next.Weekday() != time.Monday {
					t.Fatalf("%v, %v: until %v", period, now, next)
				}
				lengths[next.Sub(now)]++
				now = next.Add(-time.Microsecond)
				l.denials.forget("k")
				if res := must(l.Take(ctx, "k", 1)); res.Allowed {
					t.Fatalf("%v: allowed at %v, a microsecond early", period, now)
				}
				now = next
				l.denials.forget("k")
			}
			if period == Day && (lengths[23*time.Hour] != 1 || lengths[25*time.Hour] != 1) {
				t.Errorf("days of %v", lengths)
			}
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

// freeze stops miniredis's clock, which would otherwise make every EXPIRETIME later than the
// one before.
func freeze(b redistest.Backend) {
	if b.Mini != nil {
		b.Mini.SetTime(time.Now())
	}
}

// On Redis's own clock the key ends with the period, and what is settled counts in it alone.
func TestQuotaEndsWithItsPeriod(t *testing.T) {
	server := redistest.Shared(t)
	client := server.Client()
	l := must(NewQuota(client, fmt.Sprintf("q-%x", rand.Uint64()), 1000, Month, time.UTC, Config{Timeout: 10 * time.Second}))
	res := must(l.Take(ctx, "k", 10))
	now := time.Now().UTC()
	end := time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC)
	key := RedisKey(l, "k")
	if got := client.PExpireTime(ctx, key).Val(); got != time.Duration(end.UnixNano())-time.Millisecond {
		t.Errorf("gone at %v, want %v", time.UnixMilli(got.Milliseconds()).UTC(), end)
	}
	if !res.ResetAt().Equal(end) {
		t.Errorf("back at %v", res.ResetAt())
	}
	for _, step := range []struct{ cost, left int }{{4, 996}, {4, 996}} {
		if err := l.Settle(ctx, "k", res, step.cost); err != nil {
			t.Fatal(err)
		}
		if got := must(l.Take(ctx, "k", 0)); got.Remaining != step.left {
			t.Errorf("settled for %d: %v", step.cost, got)
		}
	}
	other := must(l.Take(ctx, "k", 5))
	client.PExpireAt(ctx, key, time.Now().Add(-time.Second)) // the period is over
	if err := l.Refund(ctx, "k", other); err != nil {
		t.Fatal(err)
	}
	if got := must(l.Take(ctx, "k", 0)); got.Remaining != 1000 {
		t.Errorf("a fresh period has %v", got)
	}
	must(l.Take(ctx, "k", 1))
	client.Persist(ctx, key)
	must(l.Take(ctx, "k", 1))
	if ttl := client.PTTL(ctx, key).Val(); ttl <= 0 || ttl > 31*24*time.Hour {
		t.Errorf("TTL %v after a PERSIST and a Take", ttl)
	}
}

// Redis's clock decides; the server's may be almost a period off.
func TestQuotaOfAServerWhoseClockIsOff(t *testing.T) {
	client := redistest.Shared(t).Client()
	for _, test := range []struct {
		off time.Duration
		ok  bool
	}{{0, true}, {-23 * time.Hour, true}, {23 * time.Hour, true}, {5 * 24 * time.Hour, true}, {-3 * 24 * time.Hour, false}} {
		c := calendar{Day, time.UTC}
		ends := c.ends(time.Now().Add(test.off).UnixMicro())
		key := fmt.Sprintf("gatehouse:rl:quota:off:{%x}", rand.Uint64())
		reply, err := client.Eval(ctx, engineScript(quota).Source(), []string{key}, 5, ends).Result()
		if (err == nil) != test.ok {
			t.Errorf("off by %v: %v", test.off, err)
			continue
		}
		if err != nil {
			if !strings.Contains(err.Error(), "clocks") {
				t.Error(err)
			}
			continue
		}
		v := must(unpack(reply, nil))
		if want := c.end(v.now); test.off.Abs() < 24*time.Hour && v.mark != want {
			t.Errorf("off by %v: ends at %d, want %d", test.off, v.mark, want)
		}
	}
}

func TestNewQuotaNamesAllThatIsWrong(t *testing.T) {
	client := redis.NewClient(&redis.Options{})
	defer client.Close()
	for _, test := range []struct {
		requests int
		period   Period
		zone     *time.Location
		want     []string
	}{
		{0, Day, time.UTC, []string{"Limit.Requests 0"}},
		{-1, Day, nil, []string{"Limit.Requests -1", "nil location"}},
		{1<<63 - 1, Period(7), time.Local, []string{"Limit.Requests 9223372036854775807", "unknown Period 7", `location "Local"`}},
		{1, Day, time.FixedZone("a:b", 0), []string{`location "a:b"`}},
	} {
		_, err := NewQuota(client, "q", test.requests, test.period, test.zone, Config{})
		for _, want := range test.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
	l := must(NewQuota(client, "q", MaxRequests, Week, time.UTC, Config{}))
	if _, err := l.With(PerHour(1)); err == nil || !strings.Contains(err.Error(), "Limit.Window 1h") {
		t.Errorf("another window: %v", err)
	}
	if more, err := l.With(Limit{Requests: 5}); err != nil || more.Limit() != (Limit{5, 7 * 24 * time.Hour}) {
		t.Errorf("%v", err)
	}
}

// Garbage at the key is an error, and stays.
func TestQuotaOverGarbage(t *testing.T) {
	client := redistest.Shared(t).Client()
	l := must(NewQuota(client, fmt.Sprintf("q-%x", rand.Uint64()), 5, Day, time.UTC, Config{Timeout: 10 * time.Second}))
	for _, put := range []func(key string){
		func(key string) { client.Set(ctx, key, "a text", time.Hour) },
		func(key string) {
			client.Del(ctx, key)
			client.RPush(ctx, key, "a list")
			client.Expire(ctx, key, time.Hour)
		},
	} {
		key := RedisKey(l, "k")
		put(key)
		before := client.Dump(ctx, key).Val()
		for _, cost := range []int{1, 0} {
			if res, err := l.Take(ctx, "k", cost); !errors.Is(err, ErrUnavailable) {
				t.Errorf("cost %d: %v, %v", cost, res, err)
			}
		}
		if client.Dump(ctx, key).Val() != before {
			t.Error("it was changed")
		}
	}
}
