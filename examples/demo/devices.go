package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// visits is a counter kept in the session.
const visits session.Key[int] = "visits"

// devices mounts what people do with their sessions.
func (s *Server) devices(mux *http.ServeMux) {
	limit := middleware.RateLimit{Limiter: s.logins, Key: middleware.ByIP(middleware.PeerIP), Logger: s.log}
	mux.Handle("POST /login", limit.Handler(http.HandlerFunc(s.login)))
	mux.HandleFunc("POST /logout", s.logout)
	mux.HandleFunc("GET /api/me", s.me)
	mux.HandleFunc("POST /api/visit", s.visit)
	// snippet mounted: routes that need a login
	user := middleware.RequireUser{Manager: s.sessions}
	fresh := middleware.RequireFresh{Manager: s.sessions, MaxAge: time.Hour}
	live := middleware.Live{Manager: s.sessions, Stop: s.fleet.stop}
	mux.Handle("GET /stream", user.Handler(live.Handler(http.HandlerFunc(s.stream))))
	mux.Handle("POST /end", fresh.Handler(http.HandlerFunc(s.end)))
	mux.Handle("POST /end-others", fresh.Handler(http.HandlerFunc(s.endOthers)))
	// end
	mux.Handle("POST /pretend", user.Handler(http.HandlerFunc(s.pretend)))
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	user := strings.TrimSpace(r.FormValue("user"))
	if user == "" || len(user) > 100 {
		http.Error(w, "The form field \"user\" must hold a name of 1 to 100 bytes.", http.StatusBadRequest)
		return
	}
	// A real service checks a password here, as that of /password does.
	if err := s.sessions.Login(r.Context(), user); err != nil {
		http.Error(w, "login failed", http.StatusInternalServerError)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	if err := s.sessions.Logout(r.Context()); err != nil {
		http.Error(w, "You are still logged in: please try again.", http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Server) me(w http.ResponseWriter, r *http.Request) {
	info := s.sessions.Info(r.Context())
	if info.UserID == "" {
		reply(w, http.StatusUnauthorized, map[string]any{"error": "nobody is logged in"})
		return
	}
	reply(w, http.StatusOK, map[string]any{
		"user":    info.UserID,
		"visits":  visits.Get(r.Context(), s.sessions),
		"created": info.Created,
		"expires": info.Expires,
	})
}

func (s *Server) visit(w http.ResponseWriter, r *http.Request) {
	n := visits.Get(r.Context(), s.sessions) + 1
	visits.Put(r.Context(), s.sessions, n)
	if wantsPage(r) {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	reply(w, http.StatusOK, map[string]any{"visits": n})
}

// snippet ending: ending devices
func (s *Server) end(w http.ResponseWriter, r *http.Request) {
	err := s.sessions.End(r.Context(), s.sessions.UserID(r.Context()), r.FormValue("handle"), session.Cause{})
	ended(w, r, err)
}

func (s *Server) endOthers(w http.ResponseWriter, r *http.Request) {
	_, err := s.sessions.EndOthers(r.Context(), session.Cause{})
	ended(w, r, err)
}

// end

func ended(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil && !errors.Is(err, session.ErrUnknownHandle) { // which is over already
		http.Error(w, "Please try again.", http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// pretend logs the user in on a device that is not there, to have one to end.
func (s *Server) pretend(w http.ResponseWriter, r *http.Request) {
	devices := []string{"Safari on iPhone", "Firefox on Windows", "Edge on Windows", "Chrome on Android"}
	user := s.sessions.UserID(r.Context())
	there, err := s.sessions.List(r.Context(), user)
	if err != nil {
		ended(w, r, err)
		return
	}
	ctx, err := s.sessions.Load(context.Background())
	if err == nil {
		s.sessions.Describe(ctx, func() string { return devices[len(there)%len(devices)] + " (pretended), at server " + s.Name })
		err = s.sessions.Login(ctx, user)
	}
	if err == nil {
		_, err = s.sessions.Finish(ctx)
	}
	ended(w, r, err)
}

// snippet stream: a stream that ends with its session
func (s *Server) stream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	event := func(name, data string) {
		fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data)
		_ = http.NewResponseController(w).Flush()
	}
	event("live", "Live: server "+s.Name+" holds a stream open for as long as this session lives.")
	<-r.Context().Done() // by Live: the session has ended, or the server stops
	if errors.Is(context.Cause(r.Context()), session.ErrEnded) {
		event("ended", "Closed at once: "+why(s.sessions.Ended(r.Context())))
	}
}

// end

// why explains to people why they are logged out.
func why(reason session.Reason) string {
	switch reason {
	case session.Revoked:
		return "this session was ended from another device."
	case session.Replaced:
		return "this session made room for another login."
	case "":
		return "this session was logged out."
	}
	return "this session was ended: " + string(reason) + "."
}

// device says what people know their devices by.
func (s *Server) device(r *http.Request) string {
	first := func(names ...string) string {
		for _, name := range names {
			if strings.Contains(r.UserAgent(), name) {
				return name
			}
		}
		return "unknown"
	}
	return first("Firefox", "Edg", "Chrome", "Safari", "curl") + " on " + first("Android", "iPhone", "Windows", "Macintosh", "Linux") + ", at server " + s.Name
}
