package recipes

import (
	"context"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// site is sessions around a service.
func site(client redis.UniversalClient, secret, keySecret []byte, mux http.Handler) (*session.Manager, http.Handler, error) {
	sessions, err := session.New(client, session.Config{
		Secrets:   [][]byte{secret}, // optional: signs the cookie, seals the records
		KeySecret: keySecret,        // with Secrets: hides in Redis who has sessions; never changes
	})
	return sessions, middleware.Sessions{Manager: sessions}.Handler(mux), err
}

const theme session.Key[string] = "theme"

// login is a handler. The session is saved before the first byte of the response.
func login(sessions *session.Manager, r *http.Request, userID string) error {
	theme.Put(r.Context(), sessions, "dark")   // typed; or sessions.Put, GetString, Pop, …
	return sessions.Login(r.Context(), userID) // a new ID, always; values are kept; Redis has it when this returns
}

// ofUser is what else can be done with a user's sessions, on all servers at once. Each returns an error.
func ofUser(ctx context.Context, sessions *session.Manager, userID, handle string) {
	sessions.List(ctx, userID)                                              // devices, this one first
	sessions.End(ctx, userID, handle, session.Cause{})                      // one of them
	sessions.EndOthers(ctx, session.Cause{Reason: session.PasswordChanged}) // all but this one
	sessions.EndAll(ctx, userID, session.Cause{Reason: session.Disabled})   // when it returns, none answers any more
	sessions.Login(ctx, userID, session.MaxSessions(3))                     // the idlest makes room, or it is refused
	sessions.BeginLogin(ctx, userID, 10*time.Minute)                        // the password was right; the second factor follows
	sessions.Confirm(ctx)                                                   // asked again: RequireFresh passes
}

// limits are a limit for each kind of request.
func limits(client redis.UniversalClient, sessions *session.Manager, mux http.Handler) (http.Handler, error) {
	logins, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(5), ratelimit.Config{})
	if err != nil {
		return nil, err
	}
	api, err := ratelimit.NewTokenBucket(client, "api", ratelimit.PerMinute(600), ratelimit.Config{})
	if err != nil {
		return nil, err
	}
	byAddress := middleware.ByIP(middleware.PeerIP) // behind a proxy: ForwardedFor(its prefixes)
	return middleware.Routes{
		"POST /login": {Limiter: logins, Key: byAddress, FailuresOnly: true}, // the handler calls middleware.Succeeded
		"/api/":       {Limiter: api, Key: middleware.FirstOf(middleware.ByUser(sessions), byAddress)},
	}.Handler(mux), nil
}
