package main

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// enough is the share of its answers that must have the row's status. Who has less is marked and
// is nobody's best: failing is often fast.
const enough = 0.99

// valid reports whether the contender did the row's work.
func (c *contender) valid() bool {
	return c.median(func(f figures) float64 { return f.expected }) >= enough
}

func (c *contender) rate() float64 { return c.median(func(f figures) float64 { return f.rate }) }

// result is a row that has been measured.
type result struct {
	row
	contenders []*contender
}

// best returns the fastest of the peers that did the work, or nil.
func (r result) best() *contender {
	var best *contender
	for _, c := range r.contenders {
		if c.kind == peer && c.valid() && (best == nil || c.rate() > best.rate()) {
			best = c
		}
	}
	return best
}

func (r result) find(name string) *contender {
	i := slices.IndexFunc(r.contenders, func(c *contender) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return r.contenders[i]
}

// ratio is how many times faster c was than other: the median, the least and the most over the
// rounds. Both are compared within a round, whose conditions they shared.
func ratio(c, other *contender) (mid, least, most float64) {
	var ratios []float64
	for i := range min(len(c.rounds), len(other.rounds)) {
		ratios = append(ratios, c.rounds[i].rate/other.rounds[i].rate)
	}
	if len(ratios) == 0 {
		return math.NaN(), math.NaN(), math.NaN()
	}
	return median(ratios), slices.Min(ratios), slices.Max(ratios)
}

// writeResult prints a row as a markdown table.
func writeResult(w io.Writer, r result) {
	fmt.Fprintf(w, "### %s: %s\n\n", r.name, r.title)
	t := table{w: w}
	if r.still {
		t.head("contender", "bytes/key")
		for _, c := range r.contenders {
			t.line(c.name, thousands(c.median(func(f figures) float64 { return f.keySize })))
		}
		fmt.Fprintln(w)
		return
	}
	t.head("contender", "req/s", "× best peer (rounds)", "p50 µs", "p99 µs", "CPU µs", "Redis CPU µs",
		"Redis commands", "allocs", "bytes", "bytes/key", strconv.Itoa(r.want))
	best := r.best()
	var notes []string
	for _, c := range r.contenders {
		name := c.name
		if !c.valid() {
			name += " †"
			notes = append(notes, fmt.Sprintf("† %s answered %s: it did not do the work and cannot win.", c.name, statusShares(c)))
		}
		against := "–"
		switch {
		case c == best:
			against = "best peer"
		case best != nil:
			mid, least, most := ratio(c, best)
			against = fmt.Sprintf("%s (%s–%s)", short(mid), short(least), short(most))
		}
		t.line(name, thousands(c.rate()), against,
			short(c.median(func(f figures) float64 { return f.p50 })),
			short(c.median(func(f figures) float64 { return f.p99 })),
			short(c.median(func(f figures) float64 { return f.cpu })),
			short(c.median(func(f figures) float64 { return f.redisCPU })),
			short(c.median(func(f figures) float64 { return f.commands })),
			short(c.median(func(f figures) float64 { return f.allocs })),
			thousands(c.median(func(f figures) float64 { return f.bytes })),
			thousands(c.median(func(f figures) float64 { return f.keySize })),
			percent(c.median(func(f figures) float64 { return f.expected })))
	}
	for _, note := range notes {
		fmt.Fprintf(w, "\n%s\n", note)
	}
	fmt.Fprintln(w)
}

// statusShares lists what a contender answered in the middle round, the most frequent first.
func statusShares(c *contender) string {
	shares := c.rounds[len(c.rounds)/2].statuses
	statuses := make([]int, 0, len(shares))
	for status := range shares {
		statuses = append(statuses, status)
	}
	slices.SortFunc(statuses, func(a, b int) int {
		if shares[a] != shares[b] {
			return map[bool]int{true: -1, false: 1}[shares[a] > shares[b]]
		}
		return a - b
	})
	var parts []string
	for _, status := range statuses {
		parts = append(parts, fmt.Sprintf("%s %d %s", percent(shares[status]), status, http.StatusText(status)))
	}
	return strings.Join(parts, ", ")
}

// table writes a markdown table, the first column to the left, the others to the right.
type table struct{ w io.Writer }

func (t table) head(columns ...string) {
	t.line(columns...)
	fmt.Fprintf(t.w, "|---|%s\n", strings.Repeat("---:|", len(columns)-1))
}

func (t table) line(cells ...string) { fmt.Fprintf(t.w, "| %s |\n", strings.Join(cells, " | ")) }

// short renders a number with three significant digits, as far as it has them before the point.
func short(x float64) string {
	switch a := math.Abs(x); {
	case math.IsNaN(x):
		return "–"
	case a >= 100:
		return thousands(x)
	case a >= 10:
		return strconv.FormatFloat(x, 'f', 1, 64)
	case a < 0.005:
		return "0"
	default:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
}

// thousands renders a whole number in groups of three digits.
func thousands(x float64) string {
	digits := strconv.FormatInt(int64(math.Round(math.Abs(x))), 10)
	var b strings.Builder
	if math.Round(x) < 0 {
		b.WriteByte('-')
	}
	for i, d := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 {
			b.WriteByte(',')
		}
		b.WriteRune(d)
	}
	return b.String()
}

// percent never rounds up to 100 %.
func percent(share float64) string {
	return strconv.FormatFloat(math.Floor(share*1000+1e-6)/10, 'f', -1, 64) + " %"
}
