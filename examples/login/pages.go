package main

import (
	"cmp"
	"embed"
	"errors"
	"html/template"
	"log"
	"net/http"
	"strings"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

//go:embed pages.html
var files embed.FS

var pages = template.Must(template.ParseFS(files, "pages.html"))

// view is what the pages show.
type view struct {
	Told    string
	User    User
	Devices []session.Info
	Token   string
}

func page(w http.ResponseWriter, status int, name string, v view) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	w.WriteHeader(status)
	if err := pages.ExecuteTemplate(w, name, v); err != nil {
		log.Printf("page %s: %v", name, err)
	}
}

func tell(w http.ResponseWriter, status int, text string) {
	page(w, status, "message", view{Told: text})
}

// show is a page that shows nothing but the user.
func show(name string) userHandler {
	return func(w http.ResponseWriter, _ *http.Request, u User) { page(w, http.StatusOK, name, view{User: u}) }
}

// why explains to people why others ended their session.
var why = map[session.Reason]string{
	session.Revoked:         "from another device",
	session.PasswordChanged: "your password was changed",
	session.Disabled:        "your account is disabled",
	session.Replaced:        "another device took the place of this one",
	session.Lost:            "your session has expired",
}

func (s *service) loginPage(w http.ResponseWriter, r *http.Request) {
	v := view{}
	if reason := s.sessions.Ended(r.Context()); reason != "" {
		v.Told = "You were logged out: " + cmp.Or(why[reason], string(reason)) + "."
	}
	page(w, http.StatusOK, "login", v)
}

// devices shows a page with the sessions of a user.
func (s *service) devices(name string) userHandler {
	return func(w http.ResponseWriter, r *http.Request, u User) {
		list, err := s.sessions.List(r.Context(), u.ID)
		if err != nil {
			failed(w, r, err)
			return
		}
		page(w, http.StatusOK, name, view{User: u, Devices: list})
	}
}

func resetPage(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Referrer-Policy", "no-referrer") // the address holds the token
	page(w, http.StatusOK, "reset", view{Token: r.URL.Query().Get("token")})
}

func toLogin(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

func toStepUp(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "/step-up", http.StatusSeeOther)
}

// refused answers what a limit does not let through.
func refused(w http.ResponseWriter, r *http.Request, d middleware.Decision) {
	switch d.Status {
	case http.StatusTooManyRequests:
		tell(w, d.Status, "Too many attempts. Try again in "+d.Result.RetryAfter.Round(time.Second).String()+".")
	case http.StatusBadRequest: // a form without an address, or a code that belongs to no login
		toLogin(w, r)
	default:
		tell(w, d.Status, "Please try again.")
	}
}

// failed answers an error of the sessions.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, session.ErrStaleLogin):
		page(w, http.StatusOK, "login", view{Told: "Your password was changed while you logged in. Please begin again."})
	case errors.Is(err, session.ErrEnded), errors.Is(err, session.ErrNoUser):
		toLogin(w, r)
	case errors.Is(err, session.ErrUnavailable), errors.Is(err, session.ErrConflict), r.Context().Err() != nil:
		log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
		tell(w, http.StatusServiceUnavailable, "Please try again.")
	default:
		log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
		tell(w, http.StatusInternalServerError, "Something went wrong.")
	}
}

func refusedPassword(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, errPassword) {
		tell(w, http.StatusOK, "A password has 8 characters or more. Go back and choose another.")
		return
	}
	failed(w, r, err)
}

// browser says what people know their devices by.
func browser(r *http.Request) string {
	first := func(names ...string) string {
		for _, name := range names {
			if strings.Contains(r.UserAgent(), name) {
				return name
			}
		}
		return "unknown"
	}
	return first("Firefox", "Edg", "Chrome", "Safari", "curl") + " on " + first("Android", "iPhone", "Windows", "Macintosh", "Linux")
}
