package main

import (
	_ "embed"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// Config is what the demo can be told. The zero value works.
type Config struct {
	Secret    string
	KeySecret string // required with Secret
	Logger    *slog.Logger
}

// visits is a counter kept in the session.
const visits session.Key[int] = "visits"

//go:embed page.html
var pageSource string

var page = template.Must(template.New("page").Parse(pageSource))

type demo struct{ sessions *session.Manager }

// New returns the whole service.
func New(client redis.UniversalClient, cfg Config) (http.Handler, error) {
	sealed := session.Config{Logger: cfg.Logger}
	if cfg.Secret != "" {
		sealed.Secrets = [][]byte{[]byte(cfg.Secret)}
	}
	if cfg.KeySecret != "" {
		sealed.KeySecret = []byte(cfg.KeySecret)
	}
	sessions, err := session.New(client, sealed)
	if err != nil {
		return nil, err
	}
	burst := ratelimit.Limit{Requests: 10, Window: 10 * time.Second}
	sliding, err := ratelimit.NewSlidingWindow(client, "sliding", burst, ratelimit.Config{Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	fixed, err := ratelimit.NewFixedWindow(client, "fixed", burst, ratelimit.Config{Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	logins, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(30), ratelimit.Config{Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	startup.Check(sessions.Check, startup.Limits(sliding, fixed, logins))
	limit := func(l ratelimit.Limiter, h http.HandlerFunc) http.Handler {
		return middleware.RateLimit{Limiter: l, Key: middleware.ByIP(middleware.PeerIP)}.Handler(h)
	}

	d := demo{sessions}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", d.page)
	mux.Handle("POST /login", limit(logins, d.login))
	mux.HandleFunc("POST /logout", d.logout)
	mux.HandleFunc("GET /api/me", d.me)
	mux.HandleFunc("POST /api/visit", d.visit)

	// What needs no session is served outside, and costs none.
	all := http.NewServeMux()
	all.Handle("GET /api/sliding", limit(sliding, passed))
	all.Handle("GET /api/fixed", limit(fixed, passed))
	all.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	all.Handle("/", middleware.Sessions{
		Manager: sessions,
		Logger:  cfg.Logger,
	}.Handler(mux))
	return http.NewCrossOriginProtection().Handler(all), nil
}

func (d demo) page(w http.ResponseWriter, r *http.Request) {
	info := d.sessions.Info(r.Context())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_ = page.Execute(w, map[string]any{
		"User":   info.UserID,
		"Age":    time.Since(info.Created).Round(time.Second),
		"Handle": info.Handle,
		"Visits": visits.Get(r.Context(), d.sessions),
	})
}

func (d demo) login(w http.ResponseWriter, r *http.Request) {
	user := strings.TrimSpace(r.FormValue("user"))
	if user == "" || len(user) > 100 {
		http.Error(w, "The form field \"user\" must hold a name of 1 to 100 bytes.", http.StatusBadRequest)
		return
	}
	// A real service checks a password here.
	if err := d.sessions.Login(r.Context(), user); err != nil {
		http.Error(w, "login failed", http.StatusInternalServerError)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (d demo) logout(w http.ResponseWriter, r *http.Request) {
	if err := d.sessions.Logout(r.Context()); err != nil {
		http.Error(w, "You are still logged in: please try again.", http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (d demo) me(w http.ResponseWriter, r *http.Request) {
	info := d.sessions.Info(r.Context())
	if info.UserID == "" {
		reply(w, http.StatusUnauthorized, map[string]any{"error": "nobody is logged in"})
		return
	}
	reply(w, http.StatusOK, map[string]any{
		"user":    info.UserID,
		"visits":  visits.Get(r.Context(), d.sessions),
		"created": info.Created,
		"expires": info.Expires,
	})
}

func (d demo) visit(w http.ResponseWriter, r *http.Request) {
	n := visits.Get(r.Context(), d.sessions) + 1
	visits.Put(r.Context(), d.sessions, n)
	reply(w, http.StatusOK, map[string]any{"visits": n})
}

func passed(w http.ResponseWriter, r *http.Request) {
	reply(w, http.StatusOK, map[string]any{"allowed": true})
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
