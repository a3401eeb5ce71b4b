package main

import (
	"context"
	_ "embed"
	"errors"
	"html/template"
	"log"
	"net/http"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/profile"
)

// service is one server.
type service struct {
	sessions *session.Manager
	users    *profile.Cache[User]
	db       *DB
}

// New returns the handler of one server.
func New(client redis.UniversalClient, db *DB) (http.Handler, error) {
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		return nil, err
	}
	users, err := profile.New(client, "user", db.Load, profile.Config{})
	if err != nil {
		return nil, err
	}
	startup.Check(sessions.Check, users.Check)
	s := &service{sessions, users, db}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("POST /login", s.login)
	mux.Handle("POST /edit", s.as("editor", func(w http.ResponseWriter, r *http.Request) { s.show(w, r, "Edited.") }))
	mux.Handle("POST /role", s.as("admin", s.role))
	mux.Handle("POST /stampede", s.as("admin", s.stampede))
	return http.NewCrossOriginProtection().Handler(middleware.Sessions{Manager: sessions}.Handler(mux)), nil
}

// as lets those pass who have a role now; administrators have all.
func (s *service) as(role string, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := s.users.Get(r.Context(), s.sessions.UserID(r.Context()))
		switch {
		case errors.Is(err, profile.ErrNotFound), errors.Is(err, profile.ErrNoID): // nobody
			http.Error(w, "log in", http.StatusUnauthorized)
		case err != nil:
			unavailable(w, err)
		case u.Role != role && u.Role != "admin":
			http.Error(w, "only for "+role+"s", http.StatusForbidden)
		default:
			next(w, r)
		}
	})
}

// login asks for no password: examples/login does.
func (s *service) login(w http.ResponseWriter, r *http.Request) {
	switch _, err := s.users.Get(r.Context(), r.FormValue("user")); {
	case errors.Is(err, profile.ErrNotFound), errors.Is(err, profile.ErrNoID):
		http.Error(w, "there is nobody of this name", http.StatusForbidden)
		return
	case err != nil:
		unavailable(w, err)
		return
	}
	if err := s.sessions.Login(r.Context(), r.FormValue("user")); err != nil {
		unavailable(w, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// role changes a role, on all servers at once.
func (s *service) role(w http.ResponseWriter, r *http.Request) {
	name, role := r.FormValue("user"), r.FormValue("role")
	_, err := s.users.Update(r.Context(), name, func(ctx context.Context) (User, error) {
		return s.db.SetRole(ctx, name, role)
	})
	switch {
	case errors.Is(err, profile.ErrNotFound), errors.Is(err, profile.ErrNoID):
		http.Error(w, "there is nobody of this name", http.StatusNotFound)
	case errors.Is(err, profile.ErrNotTold): // it is done, and its text says when all see it
		log.Print(err)
		s.show(w, r, "Changed. It may take some seconds until all servers see it.")
	case err != nil: // of Redis: nothing was changed; of the database: as it says
		unavailable(w, err)
	default:
		s.show(w, r, "Changed, for all servers.")
	}
}

// parallel is how many requests a stampede is made of.
const parallel = 200

// stampede has many requests at once for what is not cached, and counts how often the database is
// asked.
func (s *service) stampede(w http.ResponseWriter, r *http.Request) {
	ctx, name := r.Context(), s.sessions.UserID(r.Context())
	count := func(get func(context.Context, string) (User, error)) (int64, error) {
		before := s.db.loads.Load()
		var all sync.WaitGroup
		errs := make([]error, parallel)
		for i := range errs {
			all.Go(func() { _, errs[i] = get(ctx, name) })
		}
		all.Wait()
		return s.db.loads.Load() - before, errors.Join(errs...)
	}
	if err := s.users.Forget(ctx, name); err != nil {
		unavailable(w, err)
		return
	}
	with, err := count(s.users.Get)
	if err != nil {
		unavailable(w, err)
		return
	}
	without, err := count(s.db.Load)
	if err != nil {
		unavailable(w, err)
		return
	}
	s.render(w, r, data{With: with, Without: without, Parallel: parallel})
}

func unavailable(w http.ResponseWriter, err error) {
	log.Print(err)
	http.Error(w, "try again in a moment", http.StatusServiceUnavailable)
}

//go:embed page.html
var text string

var page = template.Must(template.New("").Parse(text))

type data struct {
	User                    User
	Told                    string
	With, Without, Parallel int64
}

func (s *service) page(w http.ResponseWriter, r *http.Request) { s.show(w, r, "") }

func (s *service) show(w http.ResponseWriter, r *http.Request, told string) {
	s.render(w, r, data{Told: told})
}

func (s *service) render(w http.ResponseWriter, r *http.Request, d data) {
	u, err := s.users.Get(r.Context(), s.sessions.UserID(r.Context()))
	if err != nil && !errors.Is(err, profile.ErrNotFound) && !errors.Is(err, profile.ErrNoID) {
		unavailable(w, err)
		return
	}
	d.User = u
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := page.Execute(w, d); err != nil {
		log.Print(err)
	}
}
