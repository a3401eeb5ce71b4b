package main

import (
	"errors"
	"fmt"
	"io"
	"math"
)

// demand is what a service asks of Redis.
type demand struct {
	users       float64 // sessions kept at a time
	rate        float64 // requests per second
	recordBytes float64 // values of a session
	writes      float64 // share of the requests that change their session
	limits      float64 // limits that each request passes
	requests    float64 // of these limits, per window
	active      float64 // share of the users who have used a limit in the last window
}

func (d demand) validate() error {
	var errs []error
	for _, f := range []struct {
		name  string
		value float64
		most  float64
	}{
		{"users", d.users, math.Inf(1)}, {"rps", d.rate, math.Inf(1)}, {"record-bytes", d.recordBytes, math.Inf(1)},
		{"writes", d.writes, 1}, {"limits", d.limits, math.Inf(1)}, {"limit", d.requests, math.Inf(1)}, {"active", d.active, 1},
	} {
		if !(f.value >= 0 && f.value <= f.most) {
			errs = append(errs, fmt.Errorf("bench: -%s %v is not between 0 and %v", f.name, f.value, f.most))
		}
	}
	return errors.Join(errs...)
}

const (
	// Redis executes commands in one thread. Beyond this share of a core requests queue behind
	// each other, and there is nothing left for a failover, a snapshot or a bad day.
	busiest = 0.6
	// Fragmentation, buffers of clients and replicas, and the pages that a snapshot copies.
	headroom = 1.5
	// A node of more memory takes minutes to load, to copy to a replica and to snapshot.
	largest = 24 << 30
)

// supply is what it takes to meet a demand.
type supply struct {
	sessionMemory, limitMemory float64 // bytes of data
	cores                      float64 // of Redis's
	masters                    float64
}

func (d demand) supply(limits []limitCost, sessions []sessionCost) supply {
	limitCurve := func(pick func(limitCost) float64) float64 {
		var c curve
		for _, l := range limits {
			c = append(c, point{float64(l.requests), pick(l)})
		}
		return c.at(d.requests)
	}
	sessionCurve := func(pick func(sessionCost) float64) float64 {
		var c curve
		for _, s := range sessions {
			c = append(c, point{float64(s.values), pick(s)})
		}
		return c.at(d.recordBytes)
	}
	perRequest := (1-d.writes)*sessionCurve(func(s sessionCost) float64 { return s.read.redisCPU }) +
		d.writes*sessionCurve(func(s sessionCost) float64 { return s.write.redisCPU }) +
		d.limits*limitCurve(func(l limitCost) float64 { return l.redisCPU })
	s := supply{
		sessionMemory: d.users * sessionCurve(func(s sessionCost) float64 { return s.bytes }),
		limitMemory:   d.users * d.active * d.limits * limitCurve(func(l limitCost) float64 { return l.bytes }),
		cores:         d.rate * perRequest / 1e6,
	}
	s.masters = max(1, math.Ceil(s.cores/busiest), math.Ceil(s.memory()/largest))
	return s
}

// memory is what to plan for.
func (s supply) memory() float64 { return headroom * (s.sessionMemory + s.limitMemory) }

func (d demand) write(w io.Writer, limiter string, limits []limitCost, sessions string, costs []sessionCost) {
	s := d.supply(limits, costs)
	fmt.Fprintf(w, "\n### Needed for %s users and %s requests per second\n\n", thousands(d.users), thousands(d.rate))
	fmt.Fprintf(w, "%s: %s bytes of values, changed by %s of the requests. %s: %s per request, of %s per window; %s of the users active in a window, "+
		"as if each of them had used all of it.\n\n",
		sessions, thousands(d.recordBytes), percent(d.writes), limiter, short(d.limits), thousands(d.requests), percent(d.active))
	t := table{w: w}
	t.head("", "")
	t.line("sessions", gigabytes(s.sessionMemory))
	t.line("limits", gigabytes(s.limitMemory))
	t.line(fmt.Sprintf("memory to plan for (× %v)", headroom), gigabytes(s.memory()))
	t.line("cores of Redis, of this machine's", short(s.cores))
	if s.masters == 1 {
		fmt.Fprintf(w, "\nOne Redis and a replica carry it: it needs less than %v of one core and %s.\n", busiest, gigabytes(largest))
		return
	}
	fmt.Fprintf(w, "\nRedis Cluster, at least %s masters, each with a replica: one Redis executes in one thread, of which %v may be used, and should keep no more than %s.\n",
		thousands(s.masters), busiest, gigabytes(largest))
}

func gigabytes(bytes float64) string {
	switch {
	case bytes < 1<<20:
		return short(bytes/(1<<10)) + " KiB"
	case bytes < 1<<30:
		return short(bytes/(1<<20)) + " MiB"
	}
	return short(bytes/(1<<30)) + " GiB"
}

// curve is a function given by points in the order of x.
type curve []point

type point struct{ x, y float64 }

// at interpolates between the points on both sides of x. Below the first and above the last it
// goes on straight, but not below 0.
func (c curve) at(x float64) float64 {
	switch len(c) {
	case 0:
		return 0
	case 1:
		return c[0].y
	}
	i := 1
	for i < len(c)-1 && c[i].x < x {
		i++
	}
	a, b := c[i-1], c[i]
	return max(0, a.y+(x-a.x)*(b.y-a.y)/(b.x-a.x))
}
