package main

import (
	"fmt"
	"io"
)

// target is what a figure of ours has to reach, most of them in comparison with a peer of the
// same row.
type target struct {
	row, contender, text string
	judge                judge
}

// judge looks at what a contender did in a row. Without what to compare it with, it is undecided.
type judge func(r result, c *contender) (measured string, v verdict)

type verdict string

const (
	met       verdict = "met"
	missed    verdict = "**missed**"
	undecided verdict = "–"
)

func within(ok bool) verdict {
	if ok {
		return met
	}
	return missed
}

// targets are those that the project has set itself.
func targets() []target {
	var all []target
	add := func(contender, text string, j judge, rows ...string) {
		for _, row := range rows {
			all = append(all, target{row, contender, text, j})
		}
	}
	sliding, fixed, bucket := gatehouseSliding.name, gatehouseFixed.name, gatehouseBucket.name

	for _, t := range []struct {
		row                    string
		sliding, fixed, bucket float64
	}{
		{"limit-10k-16", 1.1, 1.25, 1.15},
		{"limit-10k-64", 1.3, 2.0, 1.7},
		{"limit-10k-256", 1.4, 2.0, 1.8},
		{"limit-hot-16", 1.2, 1.5, 1.5},
		{"limit-hot-64", 1.8, 3.3, 2.9},
		{"limit-denied", 27, 27, 27},
	} {
		fasterThanPeers := func(contender string, factor float64) {
			add(contender, fmt.Sprintf("≥ %v × the best peer", factor), faster(factor), t.row)
		}
		fasterThanPeers(sliding, t.sliding)
		fasterThanPeers(fixed, t.fixed)
		fasterThanPeers(bucket, t.bucket)
	}
	for _, name := range []string{sliding, fixed, bucket} {
		add(name, "p50 ≤ 1.3 × the floor", latency(1.3), "limit-10k-1")
		add(name, "no Redis command", commandless, "limit-denied")
		add(name, "≤ 1 allocation beyond setting the fields", allocations(1), "limit-denied")
	}
	add(sliding, "CPU of Redis ≤ 0.8 × redis_rate", redisCPU(0.8, redisRate.name), "limit-10k-64")
	add(fixed, "CPU of Redis ≤ 0.45 × redis_rate", redisCPU(0.45, redisRate.name), "limit-10k-64")
	add(bucket, "CPU of Redis ≤ 0.7 × redis_rate", redisCPU(0.7, redisRate.name), "limit-10k-64")

	for _, name := range []string{gatehousePlain.name, gatehouseSealed.name} {
		add(name, "≥ 3 × the best peer", faster(3), "session-read")
		add(name, "≥ 5 × the best peer", faster(5), "session-idle")
		add(name, "≥ 2.5 × the best peer", faster(2.5), "session-write")
	}
	add(gatehouseCached.name, "≥ 12 × the best peer", faster(12), "session-read")
	add(gatehouseCached.name, "≥ 2 × the best peer", faster(2), "session-write")
	add(gatehouseCached.name, "no Redis command", commandless, "session-read")
	add(gatehouseSealed.name, "record ≤ plain + 64 bytes", sealedSize, "session-read")

	add(sliding, "100 entries ≤ 2.1 KB (of 1,024 bytes)", smaller(2.1*1024), memoryRow)
	add(fixed, "≤ 80 bytes", smaller(80), memoryRow)
	add(bucket, "≤ 80 bytes", smaller(80), memoryRow)
	return all
}

func faster(factor float64) judge {
	return func(r result, c *contender) (string, verdict) {
		best := r.best()
		if best == nil {
			return "no peer did the work", undecided
		}
		mid, _, _ := ratio(c, best)
		return fmt.Sprintf("%s × %s", short(mid), best.name), within(mid >= factor)
	}
}

func latency(factor float64) judge {
	return func(r result, c *contender) (string, verdict) {
		base := r.find(noop.name)
		if base == nil {
			return "no floor", undecided
		}
		p50 := func(f figures) float64 { return f.p50 }
		share := c.median(p50) / base.median(p50)
		return short(share) + " × the floor", within(share <= factor)
	}
}

func redisCPU(factor float64, other string) judge {
	return func(r result, c *contender) (string, verdict) {
		base := r.find(other)
		if base == nil {
			return "no " + other, undecided
		}
		cpu := func(f figures) float64 { return f.redisCPU }
		share := c.median(cpu) / base.median(cpu)
		return short(share) + " × " + other, within(share <= factor)
	}
}

// commandless leaves room for what a row cannot keep away: a denial is asked for again once a
// second for each key, and a cache has to be filled.
func commandless(_ result, c *contender) (string, verdict) {
	commands := c.median(func(f figures) float64 { return f.commands })
	return fmt.Sprintf("%.5f per request", commands), within(commands < 0.005)
}

func allocations(most float64) judge {
	return func(r result, c *contender) (string, verdict) {
		base := r.find(bare(nil).name)
		if base == nil {
			return "no bare handler", undecided
		}
		allocs := func(f figures) float64 { return f.allocs }
		have, fields := c.median(allocs), base.median(allocs)
		return fmt.Sprintf("%s, Header.Set alone %s", short(have), short(fields)), within(have <= fields+most+0.05) // of what runs beside it
	}
}

func sealedSize(r result, c *contender) (string, verdict) {
	plain := r.find(gatehousePlain.name)
	if plain == nil {
		return "no plain one", undecided
	}
	size := func(f figures) float64 { return f.keySize }
	more := c.median(size) - plain.median(size)
	return "plain + " + thousands(more), within(more <= 64)
}

func smaller(bytes float64) judge {
	return func(_ result, c *contender) (string, verdict) {
		size := c.median(func(f figures) float64 { return f.keySize })
		return thousands(size) + " bytes", within(size > 0 && size <= bytes)
	}
}

// writeTargets prints which targets were met, of those that were measured.
func writeTargets(w io.Writer, results []result) {
	t := table{w: w}
	fmt.Fprint(w, "### Targets\n\n")
	t.head("row", "contender", "target", "measured", "")
	for _, target := range targets() {
		for _, r := range results {
			if r.name != target.row {
				continue
			}
			c := r.find(target.contender)
			if c == nil {
				continue
			}
			measured, v := target.judge(r, c)
			if !c.valid() {
				v = "**failed requests**"
			}
			t.line(r.name, c.name, target.text, measured, string(v))
		}
	}
	fmt.Fprintln(w)
}
