package main

import (
	"embed"
	"html/template"
	"log"
	"net/http"
	"strings"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// service is the site. It does not write to the database.
type service struct {
	sessions *session.Manager
	db       *DB
}

// New returns the handler of the site.
func New(sessions *session.Manager, db *DB) http.Handler {
	s := &service{sessions, db}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("POST /login", s.login)
	mux.HandleFunc("POST /logout", s.logout)
	loggedIn := middleware.RequireUser{Manager: sessions}
	mux.Handle("POST /end-others", loggedIn.Handler(http.HandlerFunc(s.endOthers)))
	mux.Handle("GET /activity", loggedIn.Handler(http.HandlerFunc(s.activity)))
	site := middleware.Sessions{Manager: sessions, Client: device}
	return http.NewCrossOriginProtection().Handler(site.Handler(mux))
}

func (s *service) home(w http.ResponseWriter, r *http.Request) {
	if s.sessions.UserID(r.Context()) != "" {
		http.Redirect(w, r, "/activity", http.StatusSeeOther)
		return
	}
	render(w, "login", nil)
}

// login stands for a real one, with a limit on guesses: see the example login.
func (s *service) login(w http.ResponseWriter, r *http.Request) {
	user := r.PostFormValue("user")
	if user != "ann" && user != "bob" || r.PostFormValue("password") != user {
		http.Error(w, "wrong name or password", http.StatusForbidden)
		return
	}
	s.then(w, r, s.sessions.Login(r.Context(), user))
}

func (s *service) logout(w http.ResponseWriter, r *http.Request) {
	s.then(w, r, s.sessions.Logout(r.Context()))
}

func (s *service) endOthers(w http.ResponseWriter, r *http.Request) {
	_, err := s.sessions.EndOthers(r.Context(), session.Cause{Actor: s.sessions.UserID(r.Context())})
	s.then(w, r, err)
}

// activity is as late as the reader: a second, or as long as the database is away.
func (s *service) activity(w http.ResponseWriter, r *http.Request) {
	user := s.sessions.UserID(r.Context())
	list, err := s.db.Activity(r.Context(), user)
	if err != nil {
		s.then(w, r, err)
		return
	}
	render(w, "activity", map[string]any{"User": user, "Entries": list})
}

func (s *service) then(w http.ResponseWriter, r *http.Request, err error) {
	if err != nil {
		log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
		http.Error(w, "please try again", http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// device says what people know their devices by. A new version of a browser is no new device, and
// what is no browser has its own word.
func device(r *http.Request) string {
	agent := r.UserAgent()
	for _, browser := range []string{"Firefox", "Edg", "Chrome", "Safari"} {
		if strings.Contains(agent, browser) {
			for _, system := range []string{"Android", "iPhone", "Windows", "Macintosh", "Linux"} {
				if strings.Contains(agent, system) {
					return browser + " on " + system
				}
			}
			return browser
		}
	}
	return agent
}

//go:embed pages.html
var files embed.FS

var pages = template.Must(template.ParseFS(files, "pages.html"))

func render(w http.ResponseWriter, page string, data any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := pages.ExecuteTemplate(w, page, data); err != nil {
		log.Printf("page %s: %v", page, err)
	}
}
