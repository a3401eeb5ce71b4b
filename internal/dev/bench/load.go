package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// caller sends requests, one at a time. Each goroutine of a load has its own.
type caller interface {
	// call sends the request of subject i and returns the status of its response.
	call(i int) (status int, err error)
}

// order is how the callers of a load go through the subjects.
type order int

const (
	atRandom order = iota
	// inTurn gives every subject the same rate, to the request.
	inTurn
)

// crew is a load's callers and what each of them has seen. It is made once per contender, so that
// it adds next to nothing to the allocations that are counted while it works.
type crew struct {
	callers  []caller
	subjects int
	how      order
	tallies  []tally
}

type tally struct {
	random    *rand.Rand
	next      int // subject
	latencies histogram
	statuses  map[int]uint64
	err       error
}

func newCrew(callers []caller, subjects int, how order) *crew {
	c := &crew{callers: callers, subjects: subjects, how: how, tallies: make([]tally, len(callers))}
	for n := range c.tallies {
		c.tallies[n] = tally{
			random:   rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
			next:     n * subjects / len(callers),
			statuses: make(map[int]uint64),
		}
	}
	return c
}

// run lets all callers send requests for a time and returns how long they took until the last
// response. An error of any ends it.
func (c *crew) run(d time.Duration) (time.Duration, error) {
	var (
		stop    atomic.Bool
		wg      sync.WaitGroup
		started = time.Now()
	)
	timer := time.AfterFunc(d, func() { stop.Store(true) })
	defer timer.Stop()
	for n := range c.callers {
		wg.Go(func() {
			c.work(n, started, &stop)
			if c.tallies[n].err != nil {
				stop.Store(true)
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(started)
	for n := range c.tallies {
		if err := c.tallies[n].err; err != nil {
			return 0, err
		}
	}
	return elapsed, nil
}

func (c *crew) work(n int, started time.Time, stop *atomic.Bool) {
	t := &c.tallies[n]
	t.latencies = histogram{}
	clear(t.statuses)
	// Counted apart, because most requests have the status of the one before.
	var status int
	var same uint64
	last := time.Since(started)
	for !stop.Load() {
		if c.how == atRandom {
			t.next = t.random.IntN(c.subjects)
		} else if t.next++; t.next >= c.subjects {
			t.next = 0
		}
		got, err := c.callers[n].call(t.next)
		if err != nil {
			t.err = err
			return
		}
		if got != status {
			t.statuses[status] += same
			status, same = got, 0
		}
		same++
		// One reading of the clock ends a request and begins the next.
		now := time.Since(started)
		t.latencies.add(now - last)
		last = now
	}
	t.statuses[status] += same
}

// seen returns what the callers saw together in the last run.
func (c *crew) seen() (latencies histogram, statuses map[int]uint64) {
	statuses = make(map[int]uint64)
	for n := range c.tallies {
		latencies.merge(&c.tallies[n].latencies)
		for status, count := range c.tallies[n].statuses {
			if count > 0 {
				statuses[status] += count
			}
		}
	}
	return latencies, statuses
}

// inProcess calls a handler without a network between.
type inProcess struct {
	handler  http.Handler
	headers  []http.Header
	template *http.Request
	request  http.Request
	response response
	own      []http.Header // of a caller that sends the cookies it was given last, else nil
	turn     int           // of own
	end      context.CancelFunc
}

// newInProcess returns a caller whose requests have the headers of their subject.
func newInProcess(handler http.Handler, headers []http.Header) *inProcess {
	// Like that of a server's request the context can be cancelled: code that waits for it has
	// to pay for that.
	ctx, cancel := context.WithCancel(context.Background())
	c := &inProcess{
		handler: handler, headers: headers,
		template: httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil),
		response: response{header: make(http.Header)},
		end:      cancel,
	}
	return c
}

// follow has a caller visit subjects of its own in turn, and keep their cookies up to date as a
// browser does: the n-th of so many callers.
func (c *inProcess) follow(n, callers int) {
	for i := n; i < len(c.headers); i += callers {
		c.own = append(c.own, c.headers[i].Clone())
	}
}

func (c *inProcess) call(i int) (int, error) {
	// Middleware may write to its request, as gorilla/sessions does: each gets a fresh one.
	c.request = *c.template
	c.request.Header = c.headers[i]
	if c.own != nil {
		c.request.Header = c.own[c.turn]
		c.turn = (c.turn + 1) % len(c.own)
	}
	c.response.reset()
	c.handler.ServeHTTP(&c.response, &c.request)
	if c.own != nil {
		if cookie := cookieOf(c.response.header); cookie != "" {
			c.request.Header["Cookie"] = []string{cookie}
		}
	}
	return c.response.status, nil
}

// cookieOf returns the cookie that a response sets, as a request sends it.
func cookieOf(h http.Header) string {
	set := h["Set-Cookie"]
	if len(set) == 0 {
		return ""
	}
	cookie, _, _ := strings.Cut(set[len(set)-1], ";")
	return cookie
}

// response takes a handler's answer and keeps its header and status. httptest.ResponseRecorder
// would copy headers and buffer bodies, at more cost than some of what is measured. It offers
// what the writers of net/http offer, because middleware wraps them accordingly.
type response struct {
	header http.Header
	status int
}

func (w *response) reset() {
	clear(w.header)
	w.status = 0
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
}

func (w *response) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return len(b), nil
}

func (w *response) WriteString(s string) (int, error) {
	w.WriteHeader(http.StatusOK)
	return len(s), nil
}

func (w *response) Flush() { w.WriteHeader(http.StatusOK) }

func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, http.ErrNotSupported
}

// overHTTP calls a server over one connection that it keeps. net/http's client would use more CPU
// than the server does; this one writes requests made beforehand and reads just enough of the
// answers.
type overHTTP struct {
	conn     net.Conn
	in       *bufio.Reader
	requests [][]byte
}

func dialHTTP(addr string, requests [][]byte) (*overHTTP, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &overHTTP{conn: conn, in: bufio.NewReader(conn), requests: requests}, nil
}

// wire renders requests of the headers as they go over the wire, to a host that is not localhost,
// whose cookies have other names.
func wire(headers []http.Header) [][]byte {
	requests := make([][]byte, len(headers))
	for i, h := range headers {
		var b strings.Builder
		b.WriteString("GET / HTTP/1.1\r\nHost: service.example\r\n")
		_ = h.Write(&b) // a Builder takes it all
		b.WriteString("\r\n")
		requests[i] = []byte(b.String())
	}
	return requests
}

func (c *overHTTP) call(i int) (int, error) {
	if _, err := c.conn.Write(c.requests[i]); err != nil {
		return 0, err
	}
	return readResponse(c.in)
}

// readResponse reads a response with a Content-Length, as servers give to short bodies, and
// returns its status.
func readResponse(in *bufio.Reader) (status int, err error) {
	const length = "Content-Length: "
	rest := -1
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		switch {
		case status == 0:
			// HTTP/1.1 200 OK
			if len(line) < 12 {
				return 0, fmt.Errorf("not a status line: %q", line)
			}
			status = decimal(line[9:12])
		case len(line) > len(length) && string(line[:len(length)]) == length:
			rest = decimal(line[len(length) : len(line)-2])
		case len(line) == 2: // the empty line
			if rest < 0 {
				return 0, fmt.Errorf("response %d has no Content-Length", status)
			}
			_, err := in.Discard(rest)
			return status, err
		}
	}
}

func decimal(digits []byte) (n int) {
	for _, c := range digits {
		n = 10*n + int(c-'0')
	}
	return n
}
