package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

//go:embed page.html style.css demo.js
var files embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{"code": snippet}).ParseFS(files, "page.html"))

func asset(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, files, name) }
}

// view is what the page is made of.
type view struct {
	Server *Server
	Host   string
	Others []link
	Away   bool // Redis, at the moment

	User, Handle, Ended string
	Age                 time.Duration
	Visits              int
	Devices             []session.Info

	Edge, Bans Chart
	Password   string
	Accounts   []account
	Guesses    []string
	Outage     outage
	Probed     []string
}

type link struct{ Name, Host, URL string }

// account is how many tries it has left, as each server says.
type account struct {
	Name string
	Left []string
}

// Chart is a Run as the page shows it.
type Chart struct {
	Says    string
	Running bool
	In      int    // seconds until the edge
	JSON    string // for the drawing
	Rows    []Row
}

// Row is a lane in figures.
type Row struct {
	Name                         string
	By, Left                     []string // of each server
	Passed, Denied, Banned, Most int
}

func (s *Server) page(w http.ResponseWriter, r *http.Request) {
	ctx, f := r.Context(), s.fleet
	info := s.sessions.Info(ctx)
	v := view{
		Server: s, Host: r.Host, Away: f.cable != nil && f.cable.Cut(), Password: password, Probed: probed,
		User: info.UserID, Handle: info.Handle, Age: time.Since(info.Created).Round(time.Second), Visits: visits.Get(ctx, s.sessions),
	}
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	for _, other := range f.servers {
		if other != s {
			there := net.JoinHostPort(strings.Trim(host, "[]"), fmt.Sprint(other.Port))
			v.Others = append(v.Others, link{other.Name, there, "http://" + there + "/"})
		}
	}
	if info.UserID != "" {
		if v.Devices, err = s.sessions.List(ctx, info.UserID); err != nil {
			s.away(w, r, err)
			return
		}
	} else if reason := s.sessions.Ended(ctx); reason != "" {
		v.Ended = why(reason)
	}
	f.mu.Lock()
	edge, bans := f.runs["edge"], f.runs["bans"]
	v.Guesses, v.Outage = slices.Clone(f.guesses), f.outage
	f.mu.Unlock()
	v.Edge, v.Bans = f.chart(edge), f.chart(bans)
	for _, name := range accounts {
		v.Accounts = append(v.Accounts, account{name, f.left(func(s *Server) ratelimit.Limiter { return s.passwords }, middleware.FormKey("account", name))})
	}
	render(w, http.StatusOK, "page", v)
}

// away answers for the page of somebody whose session cannot be loaded.
func (s *Server) away(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("Retry-After", "1")
	if !wantsPage(r) {
		http.Error(w, "Redis does not say who you are: please try again.", http.StatusServiceUnavailable)
		return
	}
	render(w, http.StatusServiceUnavailable, "away", view{Server: s, Away: s.fleet.cable != nil && s.fleet.cable.Cut()})
}

func (f *Fleet) chart(run *Run) (c Chart) {
	run.mu.Lock()
	defer run.mu.Unlock()
	c.Says, c.Running = run.says, !run.done
	type drawn struct {
		Name string `json:"name"`
		Dots []dot  `json:"dots"`
		Most int    `json:"most"`
		End  int64  `json:"end"`
	}
	drawing := struct {
		Length int64   `json:"length"` // times are milliseconds since the run began
		Now    int64   `json:"now"`
		Edge   int64   `json:"edge"`
		Window int64   `json:"window"`
		Limit  int     `json:"limit"`
		Lanes  []drawn `json:"lanes"`
	}{Length: run.length.Milliseconds(), Window: run.limit.Window.Milliseconds(), Limit: run.limit.Requests}
	drawing.Now = min(drawing.Length, time.Since(run.start).Milliseconds())
	drawing.Edge = run.edge.Milliseconds()
	c.In = max(0, int(time.Until(run.start.Add(run.edge)).Seconds()+.5))
	for _, l := range run.lanes {
		most, end := l.most()
		drawing.Lanes = append(drawing.Lanes, drawn{l.Name, l.dots, most, end})
		row := Row{Name: l.Name, Passed: l.count("passed", ""), Denied: l.count("denied", ""), Banned: l.count("banned", ""), Most: most}
		for _, s := range f.servers {
			row.By = append(row.By, fmt.Sprintf("%s %d", s.Name, l.count("passed", s.Name)))
		}
		if limiter := map[string]func(*Server) ratelimit.Limiter{
			"/api/sliding": func(s *Server) ratelimit.Limiter { return s.sliding },
			"/api/fixed":   func(s *Server) ratelimit.Limiter { return s.fixed },
			"/api/bucket":  func(s *Server) ratelimit.Limiter { return s.bucket },
		}[l.path]; limiter != nil && l.addr != "" {
			row.Left = f.left(limiter, middleware.IPKey(netip.MustParseAddr(l.addr)))
		}
		c.Rows = append(c.Rows, row)
	}
	b, err := json.Marshal(drawing)
	if err != nil { // strings and numbers always encode
		panic(err)
	}
	c.JSON = string(b)
	return c
}

func render(w http.ResponseWriter, status int, name string, v view) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, name, v); err != nil {
		http.Error(w, "The page could not be made.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// wantsPage reports whether a browser navigates: curl and scripts of the page do not ask for HTML.
func wantsPage(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }
