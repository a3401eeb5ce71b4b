package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// outage is what became of requests before, during and after the last one.
type outage struct {
	busy                 bool
	Before, During, Back []string // of each of probed
	Says                 string
}

var probed = []string{"FailLocal (default)", "FailOpen", "FailClosed", "Page, no session", "Page, your session"}

func (s *Server) fallback(client redis.UniversalClient, cfg ratelimit.Config) (err error) {
	// snippet share: a share for each server
	cfg.Servers = 2 // while Redis is away, each server allows its half
	s.share, err = ratelimit.NewSlidingWindow(client, "share", ten, cfg)
	// end
	return err
}

// cut takes Redis away from all servers, or gives it back.
func (s *Server) cut(w http.ResponseWriter, r *http.Request) {
	f := s.fleet
	away := r.PostFormValue("redis") == "away"
	if f.cable == nil || !away && r.PostFormValue("redis") != "back" {
		http.Error(w, "The form field \"redis\" must be \"away\" or \"back\".", http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	free := !f.outage.busy && away != f.cable.Cut()
	f.outage.busy = f.outage.busy || free
	f.mu.Unlock()
	if free {
		now := f.outage // nobody else writes it meanwhile
		if away {
			now = outage{Before: f.probe(r)}
			f.cable.Set(true)
			now.During = f.probe(r)
			now.Says = "Redis is away. Both servers go on."
		} else {
			f.cable.Set(false)
			now.Says = fmt.Sprintf("Redis is back. %d ms later both servers asked it again.", f.healed().Milliseconds())
			now.Back = f.probe(r)
		}
		now.busy = false
		f.mu.Lock()
		f.outage = now
		f.mu.Unlock()
	}
	http.Redirect(w, r, "/#redis", http.StatusSeeOther)
}

// healed waits until each server asks Redis again, and returns how long that took.
func (f *Fleet) healed() time.Duration {
	start := time.Now()
	for _, s := range f.servers {
		for time.Since(start) < 10*time.Second {
			ctx, cancel := timeout()
			_, err := s.share.Take(ctx, "heal", 0)
			cancel()
			if err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return time.Since(start)
}

// probe sends a dozen requests of a new client to each kind of limit, half of them to each server,
// and asks for the page without a session and with that of r.
func (f *Fleet) probe(r *http.Request) (rows []string) {
	for _, path := range []string{"/api/local", "/api/open", "/api/closed"} {
		client, by, refused := f.client("192.0.2"), map[string]int{}, map[int]int{}
		for i := range 12 {
			s := f.server(i)
			if status := s.ask(path, client, nil); status == http.StatusOK {
				by[s.Name]++
			} else {
				refused[status]++
			}
		}
		var row []string
		passed := 0
		for _, s := range f.servers {
			row = append(row, fmt.Sprintf("%s %d", s.Name, by[s.Name]))
			passed += by[s.Name]
		}
		rows = append(rows, fmt.Sprintf("%d pass (%s)%s", passed, strings.Join(row, ", "), counted(refused)))
	}
	for _, cookies := range [][]string{nil, r.Header["Cookie"]} {
		if cookies == nil && len(rows) == 4 {
			rows = append(rows, "log in to see")
			continue
		}
		var row []string
		for _, s := range f.servers {
			row = append(row, fmt.Sprintf("%s %d", s.Name, s.ask("/", "127.0.0.1", cookies)))
		}
		rows = append(rows, strings.Join(row, ", "))
	}
	return rows
}

func counted(refused map[int]int) (s string) {
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		if n := refused[status]; n > 0 {
			s += fmt.Sprintf(", %d × %d", n, status)
		}
	}
	return s
}

// ask returns the status that a client of the server gets.
func (s *Server) ask(path, addr string, cookies []string) int {
	ctx, cancel := timeout()
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", path, nil)
	if err != nil { // the paths are ours
		panic(err)
	}
	r.Host, r.RemoteAddr = "localhost", net.JoinHostPort(addr, "1")
	if cookies != nil {
		r.Header["Cookie"] = cookies
	}
	w := new(response)
	s.ServeHTTP(w, r)
	return w.status
}

func timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}
