package middleware

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gatehouse-go/gatehouse/session"
)

// RequireUser admits requests of users who are logged in and answers all others
// with 401. It runs behind [Sessions] with the same Manager; without, it admits
// nobody. The zero value is not usable: Manager is required.
type RequireUser struct {
	Manager *session.Manager // required

	// Refused answers instead of the 401, such as by a redirect to a login page; nil: a problem.
	Refused func(http.ResponseWriter, *http.Request)
}

// Validate returns what is wrong with q, or nil.
func (q RequireUser) Validate() error {
	if q.Manager == nil {
		return errors.New("middleware: RequireUser.Manager is nil")
	}
	return nil
}

// Handler returns a handler that admits users to next. It panics with the
// error of Validate.
func (q RequireUser) Handler(next http.Handler) http.Handler {
	if err := q.Validate(); err != nil {
		panic(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q.Manager.UserID(r.Context()) == "" {
			refuse(w, r, q.Refused, loginRequired)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// RequireFresh admits requests of users who logged in, or were confirmed, no longer
// than MaxAge ago: mount it before what must not be done from a browser left open,
// such as a change of the password. Who logged in earlier gets 403 and is admitted
// after the Manager's Confirm or Login; nobody logged in is 401. It runs behind
// [Sessions] with the same Manager; without, it admits nobody. The zero value is
// not usable: Manager and MaxAge are required.
type RequireFresh struct {
	Manager *session.Manager // required
	MaxAge  time.Duration    // how long a login counts as fresh; required

	// Refused answers instead of the 401 or 403, such as by asking for the password: where the
	// Manager's UserID is "", nobody is logged in. nil: a problem.
	Refused func(http.ResponseWriter, *http.Request)
}

// Validate returns all that is wrong with q, or nil.
func (q RequireFresh) Validate() error {
	var errs []error
	if q.Manager == nil {
		errs = append(errs, errors.New("middleware: RequireFresh.Manager is nil"))
	}
	if q.MaxAge <= 0 {
		errs = append(errs, fmt.Errorf("middleware: RequireFresh.MaxAge %v is not positive", q.MaxAge))
	}
	return errors.Join(errs...)
}

// Handler returns a handler that admits fresh logins to next. It panics with
// the error of Validate.
func (q RequireFresh) Handler(next http.Handler) http.Handler {
	if err := q.Validate(); err != nil {
		panic(err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case q.Manager.UserID(r.Context()) == "":
			refuse(w, r, q.Refused, loginRequired)
		case !q.Manager.AuthenticatedWithin(r.Context(), q.MaxAge):
			refuse(w, r, q.Refused, freshLoginRequired)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

var (
	loginRequired = problem{
		Status: http.StatusUnauthorized,
		Detail: "Nobody is logged in.",
	}.ready()
	// A type of its own tells a program this 403 from those that logging in
	// again does not lift.
	freshLoginRequired = problem{
		Type:   "https://pkg.go.dev/github.com/gatehouse-go/gatehouse/middleware#RequireFresh",
		Title:  "Fresh login required",
		Status: http.StatusForbidden,
		Detail: "The login is too long ago for this. Confirm it, or log in again.",
	}.ready()
)

func refuse(w http.ResponseWriter, r *http.Request, instead func(http.ResponseWriter, *http.Request), p *problem) {
	if instead != nil {
		w.Header().Set("Cache-Control", noStore)
		instead(w, r)
		return
	}
	if p.Status == http.StatusUnauthorized {
		// RFC 9110, section 15.5.2, demands a challenge. There is no registered
		// scheme for login pages; browsers ignore one they do not know.
		w.Header().Set("WWW-Authenticate", "Cookie")
	}
	p.ServeHTTP(w, r)
}
