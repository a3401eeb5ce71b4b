package main

import (
	"crypto/subtle"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// password is that of each account.
const password = "open sesame"

var accounts = []string{"ann", "bob"}

func (s *Server) guessing(client redis.UniversalClient, cfg ratelimit.Config) (err error) {
	s.passwords, err = ratelimit.NewSlidingWindow(client, "password", ratelimit.Limit{Requests: 5, Window: time.Minute}, cfg)
	return err
}

func (s *Server) guessed() http.Handler {
	// snippet password: only failures count
	return middleware.RateLimit{
		Limiter:      s.passwords, // 5 in a minute
		Key:          middleware.ByForm("account", strings.ToLower),
		FailuresOnly: true,
		Refused:      s.refuseGuess,
	}.Handler(http.HandlerFunc(s.guess))
	// end
}

// snippet guess: what does not count
func (s *Server) guess(w http.ResponseWriter, r *http.Request) {
	account := strings.ToLower(r.FormValue("account"))
	if !right(account, r.FormValue("password")) { // counts, whatever the answer
		left := middleware.DecisionsOf(r)[0].Result.Remaining
		s.tell(w, r, http.StatusForbidden, fmt.Sprintf("%s: wrong. %d of 5 tries left.", account, left))
		return
	}
	if err := s.sessions.Login(r.Context(), account); err != nil {
		http.Error(w, "Please try again.", http.StatusServiceUnavailable)
		return
	}
	middleware.Succeeded(r) // does not count
	s.tell(w, r, http.StatusOK, account+": right, and not counted. You are logged in.")
}

// end

func right(account, guess string) bool {
	return slices.Contains(accounts, account) && subtle.ConstantTimeCompare([]byte(password), []byte(guess)) == 1
}

func (s *Server) refuseGuess(w http.ResponseWriter, r *http.Request, d middleware.Decision) {
	if d.Status != http.StatusTooManyRequests {
		http.Error(w, "The form field \"account\" must hold a name.", d.Status)
		return
	}
	s.tell(w, r, d.Status, fmt.Sprintf("%s: refused, the password was not looked at. Retry in %d s.", strings.ToLower(r.FormValue("account")), int(d.Result.RetryAfter.Seconds())+1))
}

// tell keeps what became of a guess for the page, and says it to others than browsers.
func (s *Server) tell(w http.ResponseWriter, r *http.Request, status int, what string) {
	s.fleet.mu.Lock()
	s.fleet.guesses = append(s.fleet.guesses, fmt.Sprintf("%s, server %s: %s", time.Now().Format("15:04:05"), s.Name, what))
	s.fleet.guesses = s.fleet.guesses[max(0, len(s.fleet.guesses)-6):]
	s.fleet.mu.Unlock()
	if wantsPage(r) {
		http.Redirect(w, r, "/#password", http.StatusSeeOther)
		return
	}
	w.WriteHeader(status)
	fmt.Fprintln(w, what)
}
