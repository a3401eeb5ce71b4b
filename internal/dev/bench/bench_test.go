package main

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRows lets every contender of every row work for a moment.
func TestRows(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel() // with others that wait
	s := startServer(t)
	for _, r := range rows(100) {
		if r.still {
			r.subjects = 10
		}
		t.Run(r.name, func(t *testing.T) {
			contenders, err := measure(t.Context(), s, r, pace{rounds: 1, warmUp: 5 * time.Millisecond, measure: 10 * time.Millisecond})
			if err == nil && slices.ContainsFunc(contenders, func(c *contender) bool { return !c.valid() }) { // the machine may have stood still
				contenders, err = measure(t.Context(), s, r, pace{rounds: 1, warmUp: 5 * time.Millisecond, measure: 200 * time.Millisecond})
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range contenders {
				// throttled fails on a hot key.
				if !c.valid() && (c.kind != peer || !strings.HasPrefix(r.name, "limit-hot")) {
					t.Errorf("%s answered %s", c.name, statusShares(c))
				}
			}
			var out bytes.Buffer
			writeResult(&out, result{r, contenders})
			writeTargets(&out, []result{{r, contenders}})
			for _, c := range contenders {
				if !strings.Contains(out.String(), c.name) {
					t.Errorf("%s is missing in the report:\n%s", c.name, &out)
				}
			}
		})
	}
}

// TestSessionMemory and TestHolds see that the measurements are of sessions.
func TestSessionMemory(t *testing.T) {
	t.Parallel() // with others that wait
	s := startServer(t)
	for _, perUser := range []int{0, 1, 5} {
		for _, sealed := range []bool{false, true} {
			bytes, err := s.memoryOf(t.Context(), 500, perUser, sealed)
			if err != nil {
				t.Fatal(err)
			}
			if bytes < memoryValues || bytes > 20*memoryValues {
				t.Errorf("%d per user, sealed %v: %v bytes", perUser, sealed, bytes)
			}
		}
	}
}

func TestHolds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel() // with others that wait
	s := startServer(t)
	for _, size := range []int{memoryValues, 4 << 10} {
		all, err := s.holdsOf(t.Context(), 3, size)
		if err != nil {
			t.Fatal(err)
		}
		for i, h := range all {
			if h.mean <= 0 || h.longest <= 0 || h.script == "" {
				t.Errorf("%s with %d bytes: %+v", operations[i].name, size, h)
			}
		}
	}
}

func TestTargetsNameContenders(t *testing.T) {
	all := rows(100)
	for _, target := range targets() {
		i := slices.IndexFunc(all, func(r row) bool { return r.name == target.row })
		if i < 0 {
			t.Errorf("target of %s: no such row", target.row)
			continue
		}
		if !slices.ContainsFunc(all[i].entrants, func(e entrant) bool { return e.name == target.contender }) {
			t.Errorf("target of %s: no %s there", target.row, target.contender)
		}
	}
}

func TestQuantile(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var h, half histogram
	var all []time.Duration
	for i := range 10_000 {
		d := time.Duration(math.Exp(rng.Float64() * 20)) // 1 ns to half a second
		all = append(all, d)
		if i%2 == 0 {
			h.add(d)
		} else {
			half.add(d)
		}
	}
	h.merge(&half)
	slices.Sort(all)
	for _, q := range []float64{0, 0.001, 0.25, 0.5, 0.99, 0.9999, 1} {
		want := all[max(0, int(math.Ceil(q*10_000))-1)]
		got := h.quantile(q)
		if diff := float64((got - want).Abs()); diff > max(1, float64(want)/64) {
			t.Errorf("quantile %v = %v, want %v", q, got, want)
		}
	}
	if got := (&histogram{}).quantile(0.5); got != 0 {
		t.Errorf("median of nothing = %v", got)
	}
}

func TestBuckets(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 100*time.Second; d += d/1000 + 1 {
		b := bucketOf(d)
		if b < last || b >= len(histogram{}.counts) {
			t.Fatalf("bucket of %d ns is %d after %d", d, b, last)
		}
		last = b
		if d < 68*time.Second && bucketOf(middleOf(b)) != b {
			t.Fatalf("the middle of bucket %d, %v, is not in it", b, middleOf(b))
		}
	}
	if bucketOf(-1) != 0 || bucketOf(math.MaxInt64) != len(histogram{}.counts)-1 {
		t.Error("durations out of range are not in the outermost buckets")
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{3, 1}, 2},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestParseUsage(t *testing.T) {
	info := "# CPU\r\nused_cpu_sys:1.500000\r\nused_cpu_user:2.250000\r\nused_cpu_sys_children:9.0\r\n\r\n" +
		"# Memory\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\n\r\n" +
		"# Commandstats\r\ncmdstat_get:calls=40,usec=80,usec_per_call=2.00,rejected_calls=0,failed_calls=0\r\n" +
		"cmdstat_client|setinfo:calls=2,usec=2,usec_per_call=1.00\r\ncmdstat_info:calls=7,usec=700,usec_per_call=100.00\r\n"
	got, err := parseUsage(info)
	want := redisUsage{cpu: 3750 * time.Millisecond, commands: 42, memory: 1 << 20}
	if err != nil || got != want {
		t.Errorf("parseUsage = %+v, %v, want %+v", got, err, want)
	}
	if got := want.minus(redisUsage{cpu: time.Second, commands: 2, memory: 1 << 19}); got != (redisUsage{2750 * time.Millisecond, 40, 1 << 19}) {
		t.Errorf("minus = %+v", got)
	}
	for _, bad := range []string{
		"",
		strings.Replace(info, "used_memory:", "used_memories:", 1),
		strings.Replace(info, "calls=40", "calls=many", 1),
		strings.Replace(info, "2.250000", "2,25", 1),
	} {
		if _, err := parseUsage(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestReadResponse(t *testing.T) {
	wire := "HTTP/1.1 200 OK\r\nX-Long: " + strings.Repeat("x", 1000) + "\r\nContent-Length: 2\r\n\r\nok" +
		"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"
	in := bufio.NewReader(strings.NewReader(wire))
	for _, want := range []int{200, 429} {
		if got, err := readResponse(in); got != want || err != nil {
			t.Errorf("readResponse = %d, %v, want %d", got, err, want)
		}
	}
	for _, bad := range []string{"", "HTTP", "HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no"} {
		if status, err := readResponse(bufio.NewReader(strings.NewReader(bad))); err == nil {
			t.Errorf("readResponse(%q) = %d", bad, status)
		}
	}
}

func TestResponse(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write func(http.ResponseWriter)
		want  int
	}{
		{"nothing", func(http.ResponseWriter) {}, 0},
		{"body", func(w http.ResponseWriter) { fmt.Fprint(w, "ok") }, 200},
		{"status", func(w http.ResponseWriter) { w.WriteHeader(429); fmt.Fprint(w, "no") }, 429},
		{"two", func(w http.ResponseWriter) { w.WriteHeader(429); w.WriteHeader(200) }, 429},
		{"early hints", func(w http.ResponseWriter) { w.WriteHeader(103); w.WriteHeader(204) }, 204},
		{"flush", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, 200},
	} {
		w := &response{header: http.Header{"X-Earlier": {"1"}}, status: 500}
		w.reset()
		tt.write(w)
		if w.status != tt.want || len(w.header) != 0 {
			t.Errorf("%s: status %d, want %d, header %v", tt.name, w.status, tt.want, w.header)
		}
	}
}

func TestBestPeer(t *testing.T) {
	in := func(kind kind, name string, expected float64, rates ...float64) *contender {
		c := &contender{entrant: entrant{name: name, kind: kind}}
		for _, rate := range rates {
			c.rounds = append(c.rounds, figures{rate: rate, expected: expected, statuses: map[int]float64{200: expected, 500: 1 - expected}})
		}
		return c
	}
	r := result{row: row{want: 200}, contenders: []*contender{
		in(floor, "floor", 1, 900, 900, 900),
		in(peer, "steady", 1, 100, 50, 100),
		in(peer, "slow", 1, 20, 20, 20),
		in(peer, "failing", 0.98, 500, 500, 500),
		in(ours, "ours", 1, 200, 200, 400),
	}}
	if best := r.best(); best.name != "steady" {
		t.Errorf("best peer is %s", best.name)
	}
	mid, least, most := ratio(r.find("ours"), r.best())
	if mid != 4 || least != 2 || most != 4 {
		t.Errorf("ratio = %v (%v–%v), want 4 (2–4)", mid, least, most)
	}
	var out bytes.Buffer
	writeResult(&out, r)
	if !strings.Contains(out.String(), "failing answered 98 % 200 OK, 2 % 500 Internal Server Error") {
		t.Errorf("the failing peer is not marked:\n%s", &out)
	}
}

func TestNumbers(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{thousands(0), "0"},
		{thousands(999.4), "999"},
		{thousands(1234567.8), "1,234,568"},
		{thousands(-1000), "-1,000"},
		{short(1234.5), "1,235"},
		{short(12.345), "12.3"},
		{short(1.005), "1.00"},
		{short(0.004), "0"},
		{short(math.NaN()), "–"},
		{percent(1), "100 %"},
		{percent(0.99999), "99.9 %"},
		{percent(0.57), "57 %"},
		{gigabytes(1536), "1.50 KiB"},
		{gigabytes(24 << 30), "24.0 GiB"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestChoose(t *testing.T) {
	chosen := choose(rows(100), "limit-10k-64, stack", "sliding,ulule", true)
	var names []string
	for _, r := range chosen {
		names = append(names, r.name)
		for _, e := range r.entrants {
			if lower := strings.ToLower(e.name); e.kind != floor && !strings.Contains(lower, "sliding") && !strings.Contains(lower, "ulule") {
				t.Errorf("%s: chose %s", r.name, e.name)
			}
		}
	}
	if !slices.Equal(names, []string{"limit-10k-64", "stack"}) {
		t.Errorf("chose %v", names)
	}
	if n := len(choose(rows(100), "", "", true)); n != len(rows(100)) {
		t.Errorf("chose %d rows of %d", n, len(rows(100)))
	}
}

func TestCurve(t *testing.T) {
	c := curve{{10, 100}, {20, 200}, {40, 220}}
	for _, tt := range []struct{ x, want float64 }{
		{0, 0}, {5, 50}, {10, 100}, {15, 150}, {20, 200}, {30, 210}, {40, 220}, {60, 240},
	} {
		if got := c.at(tt.x); got != tt.want {
			t.Errorf("at(%v) = %v, want %v", tt.x, got, tt.want)
		}
	}
	if got := (curve{{10, 7}}).at(99); got != 7 {
		t.Errorf("one point: %v", got)
	}
	if got := (curve{{10, 5}, {20, 100}}).at(0); got != 0 {
		t.Errorf("below zero: %v", got)
	}
}

func TestSupply(t *testing.T) {
	limits := []limitCost{{requests: 10, redisCPU: 4, bytes: 100}, {requests: 1000, redisCPU: 4, bytes: 10_000}}
	sessions := []sessionCost{
		{values: 200, bytes: 500, read: requestCost{redisCPU: 2}, write: requestCost{redisCPU: 10}},
		{values: 2000, bytes: 2300, read: requestCost{redisCPU: 2}, write: requestCost{redisCPU: 10}},
	}
	d := demand{users: 1e6, rate: 10_000, recordBytes: 1100, writes: 0.25, limits: 2, requests: 10, active: 0.5}
	s := d.supply(limits, sessions)
	// A request costs 0.75×2 + 0.25×10 + 2×4 = 12 µs.
	want := supply{sessionMemory: 1.4e9, limitMemory: 1e8, cores: 0.12, masters: 1}
	if s != want {
		t.Errorf("supply = %+v, want %+v", s, want)
	}
	d.rate = 200_000 // 2.4 cores
	if s = d.supply(limits, sessions); s.masters != 4 {
		t.Errorf("%v masters for %v cores, want 4", s.masters, s.cores)
	}
	d.rate, d.users = 1, 50e6 // 105 GiB with headroom
	if s = d.supply(limits, sessions); s.masters != 5 {
		t.Errorf("%v masters for %v bytes, want 5", s.masters, s.memory())
	}
	if err := d.validate(); err != nil {
		t.Error(err)
	}
	d.writes, d.users = 1.5, math.NaN()
	if err := d.validate(); err == nil || !strings.Contains(err.Error(), "-writes") || !strings.Contains(err.Error(), "-users") {
		t.Errorf("validate = %v", err)
	}
}
