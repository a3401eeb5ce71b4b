package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

const (
	halfway = 10 * time.Minute // how long a login may take after its password
	fresh   = 5 * time.Minute  // how long a login or a step-up counts as fresh
)

// step is the page that continues a login which has begun. Without it, a browser that has sent
// only the password could go on to the choice of a device, past the code.
const step session.Key[string] = "step"

// service is one server of the fleet.
type service struct {
	db       *DB
	sessions *session.Manager
	mail     func(to, path string) // sends a link to a path of this site
}

// New returns the handler of one server.
func New(client redis.UniversalClient, db *DB, mail func(to, path string), cfg session.Config) (http.Handler, error) {
	cfg.Accounts.WhenFull = session.RefuseLogin
	sessions, err := session.New(client, cfg)
	if err != nil {
		return nil, err
	}
	s := &service{db, sessions, mail}

	var errs []error
	var limiters []ratelimit.Limiter
	limit := func(name string, n int, key middleware.KeyFunc) middleware.RateLimit {
		l, err := ratelimit.NewSlidingWindow(client, name, ratelimit.Limit{Requests: n, Window: 15 * time.Minute}, ratelimit.Config{})
		errs, limiters = append(errs, err), append(limiters, l)
		return middleware.RateLimit{Limiter: l, Key: key, FailuresOnly: true, Refused: refused}
	}
	account := limit("login-account", 5, middleware.ByForm("email", canonical))
	address := limit("login-address", 30, middleware.ByIP(middleware.PeerIP))
	// The codes of a login and of a step-up share a limit: they are guesses at one secret.
	owner := func(r *http.Request) string {
		return cmp.Or(sessions.LoginBegun(r.Context()), sessions.UserID(r.Context()))
	}
	codes := limit("code", 10, middleware.By("owner", owner))
	codes.Skip = func(r *http.Request) bool { return owner(r) == "" } // no guess: it is sent to the login page
	mails := limit("mail", 3, middleware.ByForm("email", canonical))
	mails.FailuresOnly = false
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	startup.Check(sessions.Check, startup.Limits(limiters...))
	justNow := middleware.RequireFresh{Manager: sessions, MaxAge: fresh, Refused: toStepUp}

	mux := http.NewServeMux()
	mux.Handle("GET /{$}", s.user(s.devices("home")))
	mux.HandleFunc("GET /login", s.loginPage)
	mux.Handle("POST /login", address.Handler(account.Handler(http.HandlerFunc(s.login))))
	mux.Handle("GET /totp", s.begun("totp", show("totp")))
	mux.Handle("POST /totp", codes.Handler(s.begun("totp", s.totp)))
	mux.Handle("GET /choose", s.begun("choose", s.devices("choose")))
	mux.Handle("POST /choose", s.begun("choose", s.choose))
	mux.HandleFunc("POST /logout", s.logout)
	mux.Handle("POST /password", justNow.Handler(s.user(s.change)))
	mux.Handle("POST /forgot", mails.Handler(http.HandlerFunc(s.forgot)))
	mux.HandleFunc("GET /reset", resetPage)
	mux.HandleFunc("POST /reset", s.reset)
	mux.Handle("GET /step-up", s.user(show("step-up")))
	mux.Handle("POST /step-up", codes.Handler(s.user(s.stepUp)))
	mux.Handle("POST /pay", justNow.Handler(s.user(show("paid"))))
	site := middleware.Sessions{Manager: sessions, Client: browser}
	return http.NewCrossOriginProtection().Handler(site.Handler(mux)), nil
}

func canonical(email string) string { return strings.ToLower(strings.TrimSpace(email)) }

func (s *service) login(w http.ResponseWriter, r *http.Request) {
	u, err := s.db.ByEmail(r.Context(), canonical(r.PostFormValue("email")))
	if !u.Check(r.PostFormValue("password")) || err != nil { // Check takes its time for nobody, too
		page(w, http.StatusOK, "login", view{Told: "That is not right."}) // counted, whatever the status
		return
	}
	s.passed(w, r, u)
}

// passed goes on after the first proof, a password or a link in a mail. It asks for the code of
// those who have one: who can read the mail of another does not get in with that alone.
func (s *service) passed(w http.ResponseWriter, r *http.Request, u User) {
	if u.TOTP == "" {
		s.finish(w, r, u)
		return
	}
	s.begin(w, r, u, "totp")
}

// begin notes how far a login has come, and sends the browser to its next page.
func (s *service) begin(w http.ResponseWriter, r *http.Request, u User, next string) {
	if err := s.sessions.BeginLogin(r.Context(), u.ID, halfway); err != nil {
		failed(w, r, err)
		return
	}
	step.Put(r.Context(), s.sessions, next) // after BeginLogin, which may start empty
	middleware.Succeeded(r)
	http.Redirect(w, r, "/"+next, http.StatusSeeOther)
}

// finish logs a user in who has passed every check, and answers.
func (s *service) finish(w http.ResponseWriter, r *http.Request, u User, opts ...session.LoginOption) {
	err := s.sessions.Login(r.Context(), u.ID, append(opts, session.MaxSessions(u.Devices))...)
	switch {
	case err == nil:
		middleware.Succeeded(r)
		http.Redirect(w, r, "/", http.StatusSeeOther)
	case errors.Is(err, session.ErrTooManySessions), errors.Is(err, session.ErrUnknownHandle):
		s.begin(w, r, u, "choose")
	default:
		failed(w, r, err)
	}
}

func (s *service) totp(w http.ResponseWriter, r *http.Request, u User) {
	if !s.db.CheckTOTP(u, r.PostFormValue("code")) {
		page(w, http.StatusOK, "totp", view{Told: "That is not right.", User: u})
		return
	}
	s.finish(w, r, u)
}

func (s *service) choose(w http.ResponseWriter, r *http.Request, u User) {
	handle := r.PostFormValue("handle")
	if handle == "" { // a device may have logged out meanwhile
		s.finish(w, r, u)
		return
	}
	s.finish(w, r, u, session.Replacing(handle))
}

func (s *service) logout(w http.ResponseWriter, r *http.Request) {
	if err := s.sessions.Logout(r.Context()); err != nil {
		failed(w, r, err)
		return
	}
	toLogin(w, r)
}

func (s *service) change(w http.ResponseWriter, r *http.Request, u User) {
	if err := s.db.SetPassword(r.Context(), u.ID, r.PostFormValue("new")); err != nil {
		refusedPassword(w, r, err)
		return
	}
	switch ended, err := s.sessions.EndOthers(r.Context(), session.Cause{Reason: session.PasswordChanged}); {
	case err == nil:
		tell(w, http.StatusOK, fmt.Sprintf("Your password is changed. Other devices logged out: %d.", len(ended)))
	case errors.Is(err, session.ErrEnded): // another change was faster, and has ended this session
		failed(w, r, err)
	default:
		log.Print(err)
		tell(w, http.StatusServiceUnavailable, "Your password is changed, but other devices may still be logged in. Please change it again.")
	}
}

// forgot answers the same whether there is such a user or not.
func (s *service) forgot(w http.ResponseWriter, r *http.Request) {
	if u, err := s.db.ByEmail(r.Context(), canonical(r.PostFormValue("email"))); err == nil {
		s.mail(u.Email, "/reset?token="+s.db.NewToken(u.ID))
	}
	tell(w, http.StatusOK, "If we know the address, a link is on its way to it.")
}

func (s *service) reset(w http.ResponseWriter, r *http.Request) {
	raw := r.PostFormValue("token")
	t, err := s.db.TakeToken(raw)
	if err != nil {
		tell(w, http.StatusOK, "This link has been used, or is too old. Ask for another.")
		return
	}
	u, err := s.db.User(r.Context(), t.user)
	if err == nil {
		err = s.db.SetPassword(r.Context(), u.ID, r.PostFormValue("new"))
	}
	if err != nil {
		s.db.ReturnToken(raw, t)
		refusedPassword(w, r, err)
		return
	}
	if _, err := s.sessions.EndAll(r.Context(), u.ID, session.Cause{Reason: session.PasswordChanged}); err != nil {
		s.db.ReturnToken(raw, t) // sessions from before may live: the link has to work until none does
		failed(w, r, err)
		return
	}
	s.passed(w, r, u) // this request has ended them itself, so its login is not stale
}

func (s *service) stepUp(w http.ResponseWriter, r *http.Request, u User) {
	if proof := r.PostFormValue("proof"); u.TOTP != "" && !s.db.CheckTOTP(u, proof) || u.TOTP == "" && !u.Check(proof) {
		page(w, http.StatusOK, "step-up", view{Told: "That is not right.", User: u})
		return
	}
	if err := s.sessions.Confirm(r.Context()); err != nil {
		failed(w, r, err)
		return
	}
	middleware.Succeeded(r)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

type userHandler func(http.ResponseWriter, *http.Request, User)

// user has next serve the user who is logged in.
func (s *service) user(next userHandler) http.Handler { return s.of(s.sessions.UserID, next) }

// begun has next serve a user whose login has come as far as a step.
func (s *service) begun(at string, next userHandler) http.Handler {
	return s.of(func(ctx context.Context) string {
		if step.Get(ctx, s.sessions) != at {
			return ""
		}
		return s.sessions.LoginBegun(ctx)
	}, next)
}

func (s *service) of(id func(context.Context) string, next userHandler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := s.db.User(r.Context(), id(r.Context()))
		if err != nil {
			toLogin(w, r)
			return
		}
		next(w, r, u)
	})
}
