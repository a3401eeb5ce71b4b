package recipes

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// asUser is whom an administrator acts as. The session stays the administrator's own: it is listed
// and ended as theirs, and an audit trail names them.
const asUser session.Key[string] = "as user"

// whoActs returns whose data a request works on, and who is behind it.
func whoActs(ctx context.Context, sessions *session.Manager) (user, by string) {
	by = sessions.UserID(ctx)
	if user = asUser.Get(ctx, sessions); user == "" {
		user = by
	}
	return user, by
}

// impersonate belongs behind a check that the user is an administrator, and RequireFresh.
func impersonate(sessions *session.Manager) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asUser.Put(r.Context(), sessions, r.FormValue("user"))
	})
}

// oauth is what a login with another site needs to know when the browser comes back.
type oauth struct{ State, Verifier, ReturnTo string }

// pending is a key of its own for each login that is begun: there may be two, in two tabs.
func pending(state string) session.Key[oauth] { return session.Key[oauth]("oauth " + state) }

// oauthSessions are sessions of their own for the way to another site and back. A provider that
// answers with a form (response_mode=form_post) sends a cross-site POST, which brings no cookie that
// is Lax; the session of the application need not be SameSite=None for that.
func oauthSessions(client redis.UniversalClient) (*session.Manager, middleware.Sessions, error) {
	states, err := session.New(client, session.Config{Prefix: "oauth:", Lifetime: 10 * time.Minute})
	cookie := http.Cookie{Name: "__Host-oauth", SameSite: http.SameSiteNoneMode}
	return states, middleware.Sessions{Manager: states, Cookie: cookie}, err
}

// begin sends the browser to the provider.
func begin(states *session.Manager, authorize string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o := oauth{State: rand.Text(), Verifier: rand.Text() + rand.Text(), ReturnTo: "/account"}
		pending(o.State).Put(r.Context(), states, o)
		http.Redirect(w, r, authorize+"?state="+o.State, http.StatusSeeOther)
	})
}

// callback runs behind both Sessions. A state can be used once, even if somebody else has seen the
// URL.
func callback(states, sessions *session.Manager, exchange func(code, verifier string) (userID string, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, ok, err := pending(r.FormValue("state")).PopOnce(r.Context(), states)
		if err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		if !ok {
			http.Error(w, "this login was not begun here, or is used up", http.StatusBadRequest)
			return
		}
		user, err := exchange(r.FormValue("code"), o.Verifier)
		if err == nil {
			err = sessions.Login(r.Context(), user)
		}
		if err != nil {
			http.Error(w, "no login", http.StatusForbidden)
			return
		}
		http.Redirect(w, r, o.ReturnTo, http.StatusSeeOther)
	})
}

type tokens struct {
	Access  string
	Expires time.Time
}

const (
	access  session.Key[tokens] = "access"
	refresh session.Key[string] = "refresh"
)

// errLoginAgain says that there is no refresh token, or that the request died which had it.
var errLoginAgain = errors.New("no token: the user has to log in again")

var patience = 10 * time.Second // for a renewal

// accessToken returns a token that is still good. Of parallel requests, on all servers, one has it
// renewed and the others wait for that: many providers take a refresh token for stolen when it is
// used twice. What is begun is brought to its end, also for who hangs up.
func accessToken(ctx context.Context, sessions *session.Manager, renew func(ctx context.Context, refreshToken string) (tokens, string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	for {
		if t := access.Get(ctx, sessions); time.Until(t.Expires) > time.Minute {
			return t.Access, nil
		}
		old, mine, err := refresh.PopOnce(ctx, sessions)
		switch {
		case err != nil && ctx.Err() != nil:
			return "", errLoginAgain
		case err != nil:
			return "", err
		}
		if mine {
			if t := access.Get(ctx, sessions); time.Until(t.Expires) > time.Minute { // another request has renewed it
				refresh.Put(ctx, sessions, old)
				return t.Access, sessions.Commit(ctx)
			}
			t, next, err := renew(ctx, old)
			if err != nil {
				refresh.Put(ctx, sessions, old) // for another try
				return "", errors.Join(err, sessions.Commit(ctx))
			}
			access.Put(ctx, sessions, t)
			refresh.Put(ctx, sessions, next)
			return t.Access, sessions.Commit(ctx)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return "", errLoginAgain
		}
		if err := sessions.Reload(ctx); err != nil && ctx.Err() == nil {
			return "", err
		}
	}
}

// perDomain serves several sites, each with a cookie of its own domain, from one Manager.
func perDomain(sessions *session.Manager, domains []string, next http.Handler) http.Handler {
	sites := make(map[string]http.Handler)
	for _, domain := range domains {
		sites[domain] = middleware.Sessions{Manager: sessions, Cookie: http.Cookie{Name: "__Secure-session", Domain: domain}}.Handler(next)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
		for _, domain := range domains {
			if host == domain || strings.HasSuffix(host, "."+domain) {
				sites[domain].ServeHTTP(w, r)
				return
			}
		}
		http.NotFound(w, r)
	})
}

// whilePossible serves public pages to who has a cookie, too, while Redis is away: without the
// session, which public must not ask for then. All else is 503, and nobody loses a cookie.
func whilePossible(sessions *session.Manager, public, all http.Handler, isPublic func(*http.Request) bool) http.Handler {
	return middleware.Sessions{
		Manager: sessions,
		OnError: func(w http.ResponseWriter, r *http.Request, err error) {
			if isPublic(r) && !sessions.Loaded(r.Context()) {
				public.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Retry-After", "5")
			http.Error(w, "not available at the moment", http.StatusServiceUnavailable)
		},
	}.Handler(all)
}

// keepCart logs in with the cart of the visitor, and without what else the visit has left behind.
func keepCart(ctx context.Context, sessions *session.Manager, userID string) error {
	for _, key := range sessions.Keys(ctx) {
		if key != "cart" {
			sessions.Remove(ctx, key)
		}
	}
	return sessions.Login(ctx, userID)
}

// shorter logs out who is in a role that must log in more often than others.
func shorter(sessions *session.Manager, inRole func(userID string) bool, maxAge time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if inRole(sessions.UserID(r.Context())) && !sessions.AuthenticatedWithin(r.Context(), maxAge) {
			if err := sessions.Logout(r.Context()); err != nil {
				http.Error(w, "try again", http.StatusServiceUnavailable)
				return
			}
			http.Redirect(w, r, "/login", http.StatusSeeOther)
			return
		}
		next.ServeHTTP(w, r)
	})
}
