package redistest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy stands between clients and a server and does to requests what networks do. Each of its
// faults replaces the one before and applies, from the next request on, to the commands named
// ("evalsha", in any case), or to all if none is named. A connection that a fault has hit stays
// broken in that way; [Proxy.Heal] closes it.
type Proxy struct {
	t        testing.TB
	upstream string
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	fault  fault
	counts map[string]int
	links  map[*link]bool // true: hit by a fault
	closed bool
}

type fault struct {
	kind     faultKind
	delay    time.Duration
	commands []string
}

type faultKind int

const (
	none faultKind = iota
	delay
	cut
	blackHole
	garbage
	loseReply
	cutReply
)

// NewProxy starts a proxy in front of the server at upstream, and stops it when the test ends.
func NewProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{t: t, upstream: upstream, listener: l, counts: make(map[string]int), links: make(map[*link]bool)}
	p.wg.Go(p.accept)
	t.Cleanup(p.Close)
	return p
}

// Addr returns the host:port to connect to in the server's stead.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Delay holds every request back for d.
func (p *Proxy) Delay(d time.Duration, commands ...string) {
	p.inject(fault{kind: delay, delay: d, commands: commands})
}

// Cut closes the connection in place of forwarding the request.
func (p *Proxy) Cut(commands ...string) { p.inject(fault{kind: cut, commands: commands}) }

// BlackHole keeps the connection open and forwards nothing.
func (p *Proxy) BlackHole(commands ...string) { p.inject(fault{kind: blackHole, commands: commands}) }

// Garbage answers in place of the server, and not in its protocol.
func (p *Proxy) Garbage(commands ...string) { p.inject(fault{kind: garbage, commands: commands}) }

// LoseReply lets the server execute the request, and keeps its reply and the connection open:
// the client runs into its timeout.
func (p *Proxy) LoseReply(commands ...string) { p.inject(fault{kind: loseReply, commands: commands}) }

// CutReply lets the server execute the request, and closes the connection in place of
// forwarding its reply.
func (p *Proxy) CutReply(commands ...string) { p.inject(fault{kind: cutReply, commands: commands}) }

func (p *Proxy) inject(f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// Forget lets no request through of the connections that there are, as a load balancer that has
// forgotten them. New ones are not concerned.
func (p *Proxy) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		p.links[l] = true
		l.forgotten = true
	}
}

// Heal ends the fault, and closes the connections that it has hit.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = fault{}
	for l, hit := range p.links {
		if hit {
			l.close()
		}
	}
}

// Disconnect closes every connection, idle ones included. New ones are accepted.
func (p *Proxy) Disconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// Close ends the proxy: its address refuses connections.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.listener.Close()
	p.Disconnect()
	p.wg.Wait()
}

// Forwarded returns how many requests with this command reached the server.
func (p *Proxy) Forwarded(command string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[strings.ToLower(command)]
}

// decide returns what happens to a request, and marks the connection if that breaks it.
func (p *Proxy) decide(l *link, command string) fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.fault
	if l.forgotten {
		return fault{kind: blackHole}
	}
	if len(f.commands) > 0 && !slices.ContainsFunc(f.commands, func(c string) bool { return strings.EqualFold(c, command) }) {
		f = fault{}
	}
	if f.kind != none && f.kind != delay {
		p.links[l] = true
	}
	return f
}

func (p *Proxy) count(command string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[command]++
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.upstream)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{proxy: p, client: client, server: server, done: make(chan struct{})}
		p.mu.Lock()
		if p.closed {
			l.close()
		}
		p.links[l] = false
		p.mu.Unlock()
		p.wg.Go(func() { l.requests(); l.close() })
		p.wg.Go(func() {
			l.replies()
			l.close()
			p.mu.Lock()
			delete(p.links, l)
			p.mu.Unlock()
		})
	}
}

// link is one client's connection and its counterpart to the server.
type link struct {
	proxy          *Proxy
	client, server net.Conn
	fate           atomic.Int32 // faultKind of the replies
	forgotten      bool         // guarded by Proxy.mu
	once           sync.Once
	done           chan struct{}
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.done)
		l.client.Close()
		l.server.Close()
	})
}

// requests forwards commands until the connection ends or is cut.
func (l *link) requests() {
	for r := bufio.NewReader(l.client); ; {
		raw, command, err := readCommand(r)
		if err != nil {
			return
		}
		f := l.proxy.decide(l, command)
		switch f.kind {
		case delay:
			select {
			case <-time.After(f.delay):
			case <-l.done:
				return
			}
		case cut:
			return
		case blackHole:
			<-l.done
			return
		case garbage:
			// What a client sees that dialled a web server.
			io.WriteString(l.client, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
			continue
		case loseReply, cutReply:
			l.fate.Store(int32(f.kind))
		}
		// Counted before the server can answer, so that a client with its answer sees the count.
		l.proxy.count(command)
		if _, err := l.server.Write(raw); err != nil {
			return
		}
	}
}

func (l *link) replies() {
	buf := make([]byte, 32<<10)
	for {
		n, err := l.server.Read(buf)
		if err != nil {
			return
		}
		switch faultKind(l.fate.Load()) {
		case loseReply:
			continue
		case cutReply:
			return
		}
		if _, err := l.client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// readCommand reads one request, an array of bulk strings, and returns it as it stood together
// with its first word in lower case.
func readCommand(r *bufio.Reader) (raw []byte, command string, err error) {
	number := func(kind byte) (int, error) {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return 0, err
		}
		raw = append(raw, line...)
		line = bytes.TrimRight(line, "\r\n")
		if len(line) < 2 || line[0] != kind {
			return 0, fmt.Errorf("redistest: not a request: %q", line)
		}
		return strconv.Atoi(string(line[1:]))
	}
	words, err := number('*')
	if err != nil {
		return nil, "", err
	}
	for i := range words {
		size, err := number('$')
		if err != nil {
			return nil, "", err
		}
		word := make([]byte, size+len("\r\n"))
		if _, err := io.ReadFull(r, word); err != nil {
			return nil, "", err
		}
		if i == 0 {
			command = strings.ToLower(string(word[:size]))
		}
		raw = append(raw, word...)
	}
	return raw, command, nil
}
