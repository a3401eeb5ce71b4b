package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Run is traffic that the page has sent, and what became of it.
type Run struct {
	mu     sync.Mutex
	start  time.Time
	length time.Duration
	edge   time.Duration // of the fixed window, after the start; 0: there is none
	limit  ratelimit.Limit
	lanes  []*lane
	alone  int // decisions without Redis
	says   string
	done   bool
}

// lane is the requests of one client to one path.
type lane struct {
	Name, path, addr string
	run              *Run
	dots             []dot
	last             middleware.Decision
}

// dot is one decision.
type dot struct {
	At     int64  `json:"at"` // milliseconds since the run began
	Server string `json:"server"`
	What   string `json:"what"` // passed, denied or banned
}

// traffics are the runs that the page can start: what they look like before, and what they send.
var traffics = map[string]struct {
	prepare func() *Run
	send    func(*Server, *Run)
}{
	"edge": {edgeRun, (*Server).edge},
	"bans": {bansRun, (*Server).hammer},
}

// run starts the run of a name, unless it is under way.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	traffic, ok := traffics[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	s.fleet.mu.Lock()
	free := s.fleet.runs[name].over()
	run := traffic.prepare()
	if free {
		run.start = time.Now()
		s.fleet.runs[name] = run
	}
	s.fleet.mu.Unlock()
	if free {
		go func() { // ends with the traffic, or with the fleet
			traffic.send(s, run)
			run.finish()
		}()
	}
	http.Redirect(w, r, "/#"+name, http.StatusSeeOther)
}

func newRun(length time.Duration, limit ratelimit.Limit, lanes ...*lane) *Run {
	run := &Run{length: length, limit: limit, lanes: lanes, says: "Nothing has been sent yet."}
	for _, l := range lanes {
		l.run = run
	}
	return run
}

// caveat says that Redis was away, if it was: then limits are kept by each server alone.
func (run *Run) caveat() string {
	run.mu.Lock()
	defer run.mu.Unlock()
	if run.alone == 0 {
		return ""
	}
	return fmt.Sprintf(" Redis was away: %d were decided by a server alone.", run.alone)
}

// as says which client the requests of lanes are from.
func (run *Run) as(addr string, lanes ...*lane) {
	run.mu.Lock()
	defer run.mu.Unlock()
	for _, l := range lanes {
		l.addr = addr
	}
}

// forget drops what has been noted: it only opened the fixed window, which ends at edge.
func (run *Run) forget(edge time.Time) {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.edge = edge.Sub(run.start)
	for _, l := range run.lanes {
		l.dots = nil
	}
}

func (run *Run) say(what string) { run.mu.Lock(); defer run.mu.Unlock(); run.says = what }
func (run *Run) finish()         { run.mu.Lock(); defer run.mu.Unlock(); run.done = true }
func (run *Run) over() bool      { run.mu.Lock(); defer run.mu.Unlock(); return run.done }

type laneKey struct{}

// send sends a request of a lane's client through the server's own handler, and waits for it.
func (s *Server) send(l *lane) {
	r, err := http.NewRequestWithContext(context.WithValue(context.Background(), laneKey{}, l), "GET", l.path, nil)
	if err != nil { // the paths are ours
		panic(err)
	}
	r.RemoteAddr = net.JoinHostPort(l.addr, "1")
	s.ServeHTTP(&response{}, r)
}

// note is the OnDecision of all limits that runs are sent to.
func (s *Server) note(d middleware.Decision) {
	l, ok := d.Request.Context().Value(laneKey{}).(*lane)
	if !ok {
		return // of a client that is not ours
	}
	what := "passed"
	switch {
	case d.Result.Banned:
		what = "banned"
	case d.Status != 0:
		what = "denied"
	}
	l.run.mu.Lock()
	defer l.run.mu.Unlock()
	l.last = d
	if d.Err != nil {
		l.run.alone++
	}
	l.dots = append(l.dots, dot{time.Since(l.run.start).Milliseconds(), s.Name, what})
}

// response takes the place of a connection.
type response struct {
	header http.Header
	status int
}

func (w *response) Header() http.Header {
	if w.header == nil {
		w.header = http.Header{}
	}
	return w.header
}
func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}
func (w *response) Write(b []byte) (int, error) { w.WriteHeader(http.StatusOK); return len(b), nil }

// server returns the server of the i-th request: they take turns.
func (f *Fleet) server(i int) *Server { return f.servers[i%len(f.servers)] }

// client makes up a client of its own, in a network that RFC 5737 keeps for examples.
func (f *Fleet) client(network string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clients++
	return fmt.Sprintf("%s.%d", network, f.clients%254+1)
}

// sleep sleeps until then, and reports whether the fleet goes on.
func (f *Fleet) sleep(then time.Time) bool {
	select {
	case <-time.After(time.Until(then)):
		return true
	case <-f.stop:
		return false
	}
}

// count counts the dots that are what, by server if one is named.
func (l *lane) count(what, server string) (n int) {
	for _, d := range l.dots {
		if d.What == what && (server == "" || d.Server == server) {
			n++
		}
	}
	return n
}

func (run *Run) most(l *lane) int {
	run.mu.Lock()
	defer run.mu.Unlock()
	n, _ := l.most()
	return n
}

// most is how many passed in the window in which most did, and when that one ends.
func (l *lane) most() (n int, end int64) {
	var at []int64
	for _, d := range l.dots {
		if d.What == "passed" {
			at = append(at, d.At)
		}
	}
	return mostIn(at, l.run.limit.Window.Milliseconds())
}

// mostIn returns the most of at in any half-open window (end-window, end], and the end of the first such.
func mostIn(at []int64, window int64) (n int, end int64) {
	slices.Sort(at)
	first := 0
	for last, t := range at {
		for at[first] <= t-window {
			first++
		}
		if last-first+1 > n {
			n, end = last-first+1, t
		}
	}
	return n, end
}
