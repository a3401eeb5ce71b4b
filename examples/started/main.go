// Command started is a login service over Redis: a password check behind two limits, a page of
// devices, and a change of the password that logs out everywhere else.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/crypto/bcrypt"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// secrets decodes the secrets in an environment variable: one or more, as openssl rand -base64 32
// prints them, with commas in between. It quotes none of them in its error.
func secrets(name string) ([][]byte, error) {
	var list [][]byte
	for _, s := range strings.Split(os.Getenv(name), ",") {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
		if err != nil || len(b) < 32 {
			return nil, fmt.Errorf("%s: set it to what openssl rand -base64 32 prints", name)
		}
		list = append(list, b)
	}
	return list, nil
}

// users stands for a table of your database.
type users struct {
	mu     sync.Mutex
	rows   map[string]user // by ID
	nobody user
	cost   int // of bcrypt
}

type user struct {
	id    string // never changes and is never given to anybody else
	email string
	hash  []byte
}

func newUsers(cost int) (*users, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), cost)
	return &users{rows: make(map[string]user), nobody: user{hash: hash}, cost: cost}, err
}

func canonical(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

// set adds a user, or changes the password. A password has at most 72 bytes, which is bcrypt's
// limit.
func (u *users) set(id, email, password string) error {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), u.cost)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.rows[id] = user{id, canonical(email), hash}
	return nil
}

func (u *users) byID(id string) user {
	u.mu.Lock()
	defer u.mu.Unlock()
	if row, ok := u.rows[id]; ok {
		return row
	}
	return u.nobody
}

// byEmail returns the user with an address. Where there is none it returns one whose password
// nobody knows: the check then takes as long, so that its time does not reveal which addresses exist.
func (u *users) byEmail(email string) user {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, row := range u.rows {
		if row.email == canonical(email) {
			return row
		}
	}
	return u.nobody
}

func (u user) check(password string) bool {
	return bcrypt.CompareHashAndPassword(u.hash, []byte(password)) == nil
}

// service is one server. All servers of a fleet share the Redis and the database.
type service struct {
	users    *users
	sessions *session.Manager
	limiters []ratelimit.Limiter

	byAddress, byAccount, byUser middleware.RateLimit
	loggedIn                     middleware.RequireUser
	justNow                      middleware.RequireFresh
}

func newService(client redis.UniversalClient, users *users, secrets [][]byte, keySecret []byte) (*service, error) {
	sessions, err1 := session.New(client, session.Config{Secrets: secrets, KeySecret: keySecret})
	cfg := ratelimit.Config{KeySecret: keySecret} // neither addresses nor e-mail addresses in Redis
	address, err2 := ratelimit.NewSlidingWindow(client, "login-address", ratelimit.Limit{Requests: 30, Window: 15 * time.Minute}, cfg)
	account, err3 := ratelimit.NewSlidingWindow(client, "login-account", ratelimit.Limit{Requests: 5, Window: 15 * time.Minute}, cfg)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	return &service{
		users:    users,
		sessions: sessions,
		limiters: []ratelimit.Limiter{address, account},

		byAddress: middleware.RateLimit{Limiter: address, Key: middleware.ByIP(middleware.PeerIP), FailuresOnly: true},
		byAccount: middleware.RateLimit{Limiter: account, Key: middleware.ByForm("email", canonical), FailuresOnly: true},
		byUser:    middleware.RateLimit{Limiter: account, Key: middleware.ByUser(sessions), FailuresOnly: true},
		loggedIn:  middleware.RequireUser{Manager: sessions, Refused: toLogin},
		justNow:   middleware.RequireFresh{Manager: sessions, MaxAge: 5 * time.Minute, Refused: toConfirm},
	}, nil
}

// routes returns the handler of the service.
func (s *service) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", s.loggedIn.Handler(http.HandlerFunc(s.devices)))
	mux.HandleFunc("GET /login", s.loginPage)
	mux.Handle("POST /login", s.byAddress.Handler(s.byAccount.Handler(http.HandlerFunc(s.login))))
	mux.HandleFunc("POST /logout", s.logout)
	mux.Handle("GET /confirm", s.loggedIn.Handler(http.HandlerFunc(s.confirmPage)))
	mux.Handle("POST /confirm", s.loggedIn.Handler(s.byUser.Handler(http.HandlerFunc(s.confirm))))
	mux.Handle("POST /end", s.justNow.Handler(http.HandlerFunc(s.end)))
	mux.Handle("POST /end-others", s.justNow.Handler(http.HandlerFunc(s.endOthers)))
	mux.Handle("POST /password", s.justNow.Handler(http.HandlerFunc(s.changePassword)))
	return s.mount(mux)
}

// mount puts in front of a router what is for all routes.
func (s *service) mount(router http.Handler) http.Handler {
	site := middleware.Sessions{Manager: s.sessions, Client: device}
	return http.NewCrossOriginProtection().Handler(site.Handler(router))
}

func (s *service) loginPage(w http.ResponseWriter, r *http.Request) {
	var why string
	switch s.sessions.Ended(r.Context()) {
	case session.Revoked:
		why = "You were logged out from another device."
	case session.PasswordChanged:
		why = "Your password was changed on another device."
	}
	render(w, "login", why)
}

func (s *service) login(w http.ResponseWriter, r *http.Request) {
	u := s.users.byEmail(r.FormValue("email"))
	if !u.check(r.FormValue("password")) {
		http.Error(w, "wrong address or password", http.StatusForbidden)
		return
	}
	if err := s.sessions.Login(r.Context(), u.id); err != nil {
		failed(w, r, err)
		return
	}
	middleware.Succeeded(r) // both limits give the permit back
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *service) logout(w http.ResponseWriter, r *http.Request) {
	if err := s.sessions.Logout(r.Context()); err != nil {
		failed(w, r, err)
		return
	}
	toLogin(w, r)
}

func toLogin(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// failed answers an error of the sessions.
func failed(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case errors.Is(err, session.ErrStaleLogin):
		http.Error(w, "the password was changed a moment ago: log in again", http.StatusConflict)
	case errors.Is(err, session.ErrEnded):
		toLogin(w, r)
	default:
		log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
		http.Error(w, "please try again", http.StatusServiceUnavailable)
	}
}

// toConfirm answers what wants a fresh login: with the way to the login page, or to the one that
// asks for the password again.
func toConfirm(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "/confirm", http.StatusSeeOther) // which sends to /login who is not logged in
}

func (s *service) confirmPage(w http.ResponseWriter, r *http.Request) { render(w, "confirm", nil) }

func (s *service) confirm(w http.ResponseWriter, r *http.Request) {
	if !s.users.byID(s.sessions.UserID(r.Context())).check(r.FormValue("password")) {
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

func (s *service) devices(w http.ResponseWriter, r *http.Request) {
	id := s.sessions.UserID(r.Context())
	list, err := s.sessions.List(r.Context(), id)
	if err != nil {
		failed(w, r, err)
		return
	}
	render(w, "devices", map[string]any{"Email": s.users.byID(id).email, "Devices": list})
}

func (s *service) end(w http.ResponseWriter, r *http.Request) {
	err := s.sessions.End(r.Context(), s.sessions.UserID(r.Context()), r.FormValue("handle"), session.Cause{})
	if err != nil && !errors.Is(err, session.ErrUnknownHandle) { // it is over already
		failed(w, r, err)
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

// changePassword changes the password first and then ends the other sessions: a login with the old
// password that is under way is refused.
func (s *service) changePassword(w http.ResponseWriter, r *http.Request) {
	u, password := s.users.byID(s.sessions.UserID(r.Context())), r.FormValue("new")
	if len(password) < 8 || len(password) > 72 {
		http.Error(w, "a password has 8 to 72 bytes", http.StatusBadRequest)
		return
	}
	if err := s.users.set(u.id, u.email, password); err != nil {
		failed(w, r, err)
		return
	}
	if _, err := s.sessions.EndOthers(r.Context(), session.Cause{Reason: session.PasswordChanged}); err != nil {
		log.Print("EndOthers: ", err)
		http.Error(w, "the password is changed, but other devices may still be logged in: try again", http.StatusServiceUnavailable)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// device says what people know their devices by.
func device(r *http.Request) string {
	for _, name := range []string{"Firefox", "Edg", "Chrome", "Safari", "curl"} {
		if strings.Contains(r.UserAgent(), name) {
			return name
		}
	}
	return "unknown"
}

var pages = template.Must(template.New("").Parse(`
{{define "login"}}<!doctype html><title>Log in</title>
<p>{{.}}</p>
<form method="post" action="/login">
<input name="email" type="email" autocomplete="username" required>
<input name="password" type="password" autocomplete="current-password" required>
<button>Log in</button>
</form>
{{end}}
{{define "confirm"}}<!doctype html><title>Your password, please</title>
<form method="post" action="/confirm">
<input name="password" type="password" autocomplete="current-password" required>
<button>Confirm</button>
</form>
{{end}}
{{define "devices"}}<!doctype html><title>Your devices</title>
<h1>{{.Email}}</h1>
{{range .Devices}}<form method="post" action="/end">{{.Client}}, since {{.Created.Format "2 Jan 15:04"}}
{{if .Current}}(this one){{else}}<button name="handle" value="{{.Handle}}">Log out</button>{{end}}</form>
{{end}}<form method="post" action="/end-others"><button>Log out all others</button></form>
<form method="post" action="/logout"><button>Log out</button></form>
<form method="post" action="/password">
<input name="new" type="password" minlength="8" autocomplete="new-password" required>
<button>Change the password</button>
</form>
{{end}}`))

func render(w http.ResponseWriter, page string, data any) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_ = pages.ExecuteTemplate(w, page, data)
}

// check logs what does not work with this Redis, and what is likely to surprise later.
func (s *service) check(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	warnings, err1 := s.sessions.Check(ctx)
	more, err2 := ratelimit.Check(ctx, s.limiters...)
	for _, w := range append(warnings, more...) {
		log.Print("warning: ", w)
	}
	if err := errors.Join(err1, err2); err != nil {
		log.Print("error: ", err)
	}
}

func run(ctx context.Context) error {
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil { // err may quote a password
		return errors.New("REDIS_URL: set it, such as to redis://localhost:6379/0")
	}
	sessionSecrets, err1 := secrets("SESSION_SECRETS")
	keySecret, err2 := secrets("KEY_SECRET")
	table, err3 := newUsers(bcrypt.DefaultCost)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if err := table.set("1", "ann@example.com", "correct horse"); err != nil {
		return err
	}
	client := redis.NewClient(options)
	defer client.Close()
	s, err := newService(client, table, sessionSecrets, keySecret[0])
	if err != nil {
		return err
	}
	go s.check(ctx) // the service starts without Redis, too

	server := &http.Server{
		Addr:              cmp.Or(os.Getenv("ADDR"), "localhost:8080"),
		Handler:           s.routes(),
		ReadHeaderTimeout: 10 * time.Second,
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.ListenAndServe() }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done(): // a signal: answer what is under way, for ten seconds
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(ctx)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}
