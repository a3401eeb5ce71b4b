package main

import (
	"context"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// fresh is for how long a password counts that was asked for.
const fresh = 5 * time.Minute

// service is one server.
type service struct {
	sessions *session.Manager
	users    *Users
}

// New returns the handler of one server. Its WebSockets end when stop is closed.
func New(client redis.UniversalClient, users *Users, stop <-chan struct{}) (http.Handler, error) {
	sessions, err := session.New(client, session.Config{Accounts: session.Accounts{Max: 10}})
	if err != nil {
		return nil, err
	}
	guesses, err := ratelimit.NewSlidingWindow(client, "password", ratelimit.Limit{Requests: 5, Window: 15 * time.Minute}, ratelimit.Config{})
	if err != nil {
		return nil, err
	}
	startup.Check(sessions.Check, startup.Limits(guesses))

	s := &service{sessions, users}
	byName := middleware.RateLimit{Limiter: guesses, Key: middleware.ByForm("user", canonical), FailuresOnly: true}
	byUser := middleware.RateLimit{Limiter: guesses, Key: middleware.ByUser(sessions), FailuresOnly: true}
	loggedIn := middleware.RequireUser{Manager: sessions}
	justNow := middleware.RequireFresh{Manager: sessions, MaxAge: fresh, Refused: s.askPassword}
	live := middleware.Live{Manager: sessions, Stop: stop}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.Handle("GET /api/devices", loggedIn.Handler(http.HandlerFunc(s.list)))
	mux.Handle("GET /ws", loggedIn.Handler(live.Handler(http.HandlerFunc(s.socket))))
	mux.Handle("POST /login", byName.Handler(http.HandlerFunc(s.login)))
	mux.HandleFunc("POST /logout", s.logout)
	mux.Handle("POST /confirm", loggedIn.Handler(byUser.Handler(http.HandlerFunc(s.confirm))))
	mux.Handle("POST /end", justNow.Handler(http.HandlerFunc(s.end)))
	mux.Handle("POST /end-others", justNow.Handler(http.HandlerFunc(s.endOthers)))
	mux.Handle("POST /password", justNow.Handler(http.HandlerFunc(s.change)))
	site := middleware.Sessions{Manager: sessions, Client: device}
	return http.NewCrossOriginProtection().Handler(site.Handler(mux)), nil
}

func (s *service) login(w http.ResponseWriter, r *http.Request) {
	user := canonical(r.FormValue("user"))
	if !s.users.Check(user, r.FormValue("password")) {
		http.Error(w, "wrong name or password", http.StatusForbidden)
		return
	}
	switch err := s.sessions.Login(r.Context(), user); {
	case errors.Is(err, session.ErrStaleLogin):
		http.Error(w, "the password was changed a moment ago: log in again", http.StatusConflict)
	case err != nil:
		unavailable(w)
	default:
		middleware.Succeeded(r)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	}
}

func (s *service) logout(w http.ResponseWriter, r *http.Request) {
	if err := s.sessions.Logout(r.Context()); err != nil {
		unavailable(w)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// confirm asks for the password again, before what must not be done from a browser left open.
func (s *service) confirm(w http.ResponseWriter, r *http.Request) {
	if !s.users.Check(s.sessions.UserID(r.Context()), r.FormValue("password")) {
		http.Error(w, "wrong password", http.StatusForbidden)
		return
	}
	if err := s.sessions.Confirm(r.Context()); err != nil {
		failed(w, r, err)
		return
	}
	middleware.Succeeded(r)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *service) askPassword(w http.ResponseWriter, r *http.Request) {
	if s.sessions.UserID(r.Context()) == "" {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	w.WriteHeader(http.StatusForbidden)
	render(w, "confirm", nil)
}

func (s *service) end(w http.ResponseWriter, r *http.Request) {
	err := s.sessions.End(r.Context(), s.sessions.UserID(r.Context()), r.FormValue("handle"), session.Cause{})
	if err != nil && !errors.Is(err, session.ErrUnknownHandle) { // which is over already
		unavailable(w)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *service) endOthers(w http.ResponseWriter, r *http.Request) {
	if _, err := s.sessions.EndOthers(r.Context(), session.Cause{}); err != nil {
		failed(w, r, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// change changes the password, and has it end every other session.
func (s *service) change(w http.ResponseWriter, r *http.Request) {
	if len(r.FormValue("new")) < 8 {
		http.Error(w, "a password has at least 8 characters", http.StatusBadRequest)
		return
	}
	s.users.Set(s.sessions.UserID(r.Context()), r.FormValue("new"))
	switch _, err := s.sessions.EndOthers(r.Context(), session.Cause{Reason: session.PasswordChanged}); {
	case err == nil:
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case errors.Is(err, session.ErrEnded):
		failed(w, r, err)
	default:
		http.Error(w, "the password is changed, but other devices may still be logged in", http.StatusServiceUnavailable)
	}
}

func (s *service) page(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	user := s.sessions.UserID(ctx)
	if user == "" {
		render(w, "login", why[s.sessions.Ended(ctx)])
		return
	}
	devices, err := s.sessions.List(ctx, user)
	if err != nil {
		unavailable(w)
		return
	}
	render(w, "devices", map[string]any{"User": user, "Devices": devices})
}

// why explains to people why they are logged out.
var why = map[session.Reason]string{
	session.Revoked:         "You were logged out from another device.",
	session.PasswordChanged: "Your password was changed on another device.",
	session.Replaced:        "You have logged in on many other devices since.",
}

// list is the page for scripts.
func (s *service) list(w http.ResponseWriter, r *http.Request) {
	devices, err := s.sessions.List(r.Context(), s.sessions.UserID(r.Context()))
	if err != nil {
		unavailable(w)
		return
	}
	type entry struct {
		Handle            string
		Current           bool
		Client            string
		Created, LastSeen time.Time
	}
	entries := make([]entry, len(devices))
	for i, d := range devices {
		entries[i] = entry{d.Handle, d.Current, d.Client, d.Created, d.LastSeen}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(entries)
}

// socket is open for as long as its session lives.
func (s *service) socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	// Before a Read of the same context closes it without a word.
	end := context.AfterFunc(r.Context(), func() {
		if errors.Is(context.Cause(r.Context()), session.ErrEnded) {
			_ = c.Close(4401, string(s.sessions.Ended(r.Context())))
		} else {
			_ = c.Close(websocket.StatusGoingAway, "shutdown")
		}
	})
	defer end()
	for {
		if _, _, err := c.Read(context.WithoutCancel(r.Context())); err != nil {
			return
		}
		_ = s.sessions.Touch(r.Context()) // a message is use of the session
	}
}

// failed answers where another device was faster and has ended this session: the page says so.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, session.ErrEnded) || errors.Is(err, session.ErrNoUser) {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	unavailable(w)
}

func unavailable(w http.ResponseWriter) {
	http.Error(w, "please try again", http.StatusServiceUnavailable)
}

// device says what people know their devices by.
func device(r *http.Request) string {
	agent := r.UserAgent()
	first := func(names ...string) string {
		for _, name := range names {
			if strings.Contains(agent, name) {
				return name
			}
		}
		return "unknown"
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	return first("Firefox", "Edg", "Chrome", "Safari", "curl") + " on " + first("Android", "iPhone", "Windows", "Macintosh", "Linux") + ", " + host
}

func canonical(name string) string { return strings.ToLower(strings.TrimSpace(name)) }

//go:embed pages.html
var files embed.FS

var pages = template.Must(template.ParseFS(files, "pages.html"))

func render(w http.ResponseWriter, page string, data any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = pages.ExecuteTemplate(w, page, data)
}

// Users stands for the database of an application, which keeps no password as it is.
type Users struct {
	mu        sync.Mutex
	passwords map[string]string
}

// NewUsers returns users whose password is their name.
func NewUsers(names ...string) *Users {
	u := &Users{passwords: make(map[string]string)}
	for _, name := range names {
		u.passwords[name] = name
	}
	return u
}

// Check reports whether a user has a password.
func (u *Users) Check(name, password string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	known, ok := u.passwords[name]
	return ok && subtle.ConstantTimeCompare([]byte(known), []byte(password)) == 1
}

// Set changes a password.
func (u *Users) Set(name, password string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.passwords[name] = password
}
