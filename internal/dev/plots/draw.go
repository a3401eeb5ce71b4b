package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"slices"
	"time"
)

// The plots stand on pages that are white or nearly black: nothing is filled behind them, and each
// colour has a contrast of 3 or more to both.
const (
	width, left, right = 760, 30, 20
	top, rowHeight     = 44, 156
	curveHeight        = 66 // of the curve of twice the limit

	blue   = "#3b82f6"
	orange = "#e0700f"
	grey   = "#7d8590"
)

// step is a change of how many requests passed in the trailing window.
type step struct {
	at time.Duration
	n  int
}

// steps returns how many requests passed in the trailing window, at each time when that changes.
func (r row) steps() []step {
	var changes []step
	for _, a := range r.answers {
		if a.passed {
			changes = append(changes, step{a.at, 1}, step{a.at + limit.Window, -1})
		}
	}
	slices.SortFunc(changes, func(a, b step) int { return int(a.at - b.at) })
	n := 0
	for i := range changes {
		n += changes[i].n
		changes[i].n = n
	}
	return changes
}

// edges returns where fixed windows end: each begins with the first request after the one before.
func (r row) edges() []time.Duration {
	edges := []time.Duration{r.answers[0].at + limit.Window}
	for _, a := range r.answers {
		if a.at >= edges[len(edges)-1] {
			edges = append(edges, a.at+limit.Window)
		}
	}
	return edges
}

// draw returns one plot: of each limiter the requests, and below them how many of the last window
// have passed.
func draw(title string, rows []row) []byte {
	var end time.Duration
	for _, r := range rows {
		end = max(end, r.answers[len(r.answers)-1].at)
	}
	end = (end + 100*time.Millisecond).Round(500*time.Millisecond) + 250*time.Millisecond
	x := func(at time.Duration) float64 {
		return left + float64(at)/float64(end)*(width-left-right)
	}
	var b bytes.Buffer
	height := top + len(rows)*rowHeight + 18
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="system-ui, sans-serif" font-size="13" fill="%s">`+"\n", width, height, width, height, grey)
	fmt.Fprintf(&b, "<title>%s, limit %v</title>\n", escape(title), limit)
	fmt.Fprintf(&b, `<text x="%d" y="16" font-weight="600">%s; limit %v</text>`+"\n", left, escape(title), limit)

	// The legend.
	fmt.Fprintf(&b, `<circle cx="%d" cy="32" r="3.5" fill="%s"/><text x="%d" y="36">passed</text>`+"\n", left+4, blue, left+14)
	fmt.Fprintf(&b, `%s<text x="%d" y="36">denied</text>`+"\n", cross(left+78, 32), left+88)
	fmt.Fprintf(&b, `<rect x="%d" y="26" width="14" height="10" fill="%s" fill-opacity=".35"/><text x="%d" y="36">how many passed within the last %v</text>`+"\n", left+150, blue, left+170, limit.Window)
	fmt.Fprintf(&b, `<rect x="%d" y="26" width="14" height="10" fill="%s" fill-opacity=".6"/><text x="%d" y="36">above the limit</text>`+"\n", left+420, orange, left+440)

	for i, r := range rows {
		drawRow(&b, r, float64(top+i*rowHeight), end, x)
	}
	// The axis of time.
	y := top + len(rows)*rowHeight + 10
	for at := time.Duration(0); at <= end; at += time.Second {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d s</text>`+"\n", x(at), y, int(at.Seconds()))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func drawRow(b *bytes.Buffer, r row, y float64, end time.Duration, x func(time.Duration) float64) {
	passed := 0
	for _, a := range r.answers {
		if a.passed {
			passed++
		}
	}
	most, when := r.most()
	heading := fmt.Sprintf("%d of %d passed, at most %d within %v", passed, len(r.answers), most, limit.Window)
	if r.name == fixedWindow {
		heading += "; a window ends at each dotted line"
	}
	fmt.Fprintf(b, `<text x="%d" y="%.1f"><tspan font-weight="600">%s</tspan>: %s</text>`+"\n", left, y+22, r.name, heading)

	if r.name == fixedWindow {
		for _, edge := range r.edges() {
			if edge > end {
				break
			}
			fmt.Fprintf(b, `<path d="M%.1f %.1fv%.1f" stroke="%s" stroke-dasharray="1 3"/>`+"\n", x(edge), y+28, 38.0+curveHeight, grey)
		}
	}

	// Requests that passed stand above those that were denied.
	for _, a := range r.answers {
		if a.passed {
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(a.at), y+36, blue)
		} else {
			b.WriteString(cross(x(a.at), y+47) + "\n")
		}
	}

	// How many passed within the last window. What is above the limit is orange.
	base := y + 66 + curveHeight
	at := func(n int) float64 { return base - float64(n)/float64(2*limit.Requests)*curveHeight }
	area := func(from, to func(n int) int) string {
		path := fmt.Sprintf("M%.1f %.1f", x(0), at(from(0)))
		last := 0
		for _, s := range r.steps() {
			if s.at > end {
				break
			}
			path += fmt.Sprintf("L%.1f %.1fL%.1f %.1f", x(s.at), at(to(last)), x(s.at), at(to(s.n)))
			last = s.n
		}
		return path + fmt.Sprintf("L%.1f %.1fL%.1f %.1fZ", x(end), at(to(last)), x(end), at(from(0)))
	}
	fmt.Fprintf(b, `<path d="%s" fill="%s" fill-opacity=".35"/>`+"\n",
		area(func(int) int { return 0 }, func(n int) int { return min(n, limit.Requests) }), blue)
	if most > limit.Requests {
		fmt.Fprintf(b, `<path d="%s" fill="%s" fill-opacity=".6"/>`+"\n",
			area(func(int) int { return limit.Requests }, func(n int) int { return max(n, limit.Requests) }), orange)
		fmt.Fprintf(b, `<text x="%.1f" y="%.1f" fill="%s" font-weight="600">%d</text>`+"\n", x(when), at(most)-3, orange, most)
	}
	fmt.Fprintf(b, `<path d="M%d %.1fH%d" stroke="%s" stroke-dasharray="4 3"/><text x="%d" y="%.1f" text-anchor="end">%d</text>`+"\n",
		left, at(limit.Requests), width-right, grey, left-5, at(limit.Requests)+4, limit.Requests)
	fmt.Fprintf(b, `<path d="M%d %.1fH%d" stroke="%s"/><text x="%d" y="%.1f" text-anchor="end">0</text>`+"\n", left, base, width-right, grey, left-5, base+4)
	for s := time.Duration(0); s <= end; s += time.Second {
		fmt.Fprintf(b, `<path d="M%.1f %.1fv4" stroke="%s"/>`+"\n", x(s), base, grey)
	}
}

func cross(x, y float64) string {
	return fmt.Sprintf(`<path d="M%.1f %.1fl5 5m0 -5l-5 5" stroke="%s" stroke-width="1.6"/>`, x-2.5, y-2.5, orange)
}

func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a Buffer takes everything
	return b.String()
}
