package recipes

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// loggedIn is called when the password was right. remember is the checkbox: the cookie then outlives
// the browser, and the lives of Config.Remembered hold.
func loggedIn(ctx context.Context, sessions *session.Manager, userID string, remember bool) error {
	sessions.Remember(ctx, remember)
	return sessions.Login(ctx, userID)
}

// remembering are lives for it: a day for others, and 30 days for who wants to be remembered.
var remembering = session.Config{
	Lifetime: 24 * time.Hour, IdleTimeout: time.Hour,
	Remembered: session.Life{Lifetime: 30 * 24 * time.Hour, IdleTimeout: 7 * 24 * time.Hour},
}

// everywhere logs a person out on all devices, this one among them.
func everywhere(ctx context.Context, sessions *session.Manager) error {
	_, err := sessions.EndAll(ctx, sessions.UserID(ctx), session.Cause{})
	return err
}

// passwordChanged ends all other sessions once the database has the new password. This one goes on,
// under a new ID. It may be called again until it returns nil.
func passwordChanged(ctx context.Context, sessions *session.Manager) (ended int, err error) {
	list, err := sessions.EndOthers(ctx, session.Cause{Reason: session.PasswordChanged})
	return len(list), err
}

// disabled is for an operator, once the database refuses the account's logins.
func disabled(ctx context.Context, sessions *session.Manager, userID, operator string) error {
	_, err := sessions.EndAll(ctx, userID, session.Cause{Reason: session.Disabled, Actor: operator})
	return err
}

// endDevice ends one session of who asks, by its Info.Handle. Handles of others lead nowhere.
func endDevice(ctx context.Context, sessions *session.Manager, handle string) error {
	err := sessions.End(ctx, sessions.UserID(ctx), handle, session.Cause{})
	if errors.Is(err, session.ErrUnknownHandle) {
		return nil // it is over already
	}
	return err
}

// passwordRight is the first half of a login with a second factor. Nobody is logged in by it.
func passwordRight(ctx context.Context, sessions *session.Manager, userID string) error {
	return sessions.BeginLogin(ctx, userID, 10*time.Minute)
}

var errBegunNowhere = errors.New("no login was begun here, or it took too long")

// codeSent is the second half. right checks the code of the user, and has a limit of its own.
func codeSent(ctx context.Context, sessions *session.Manager, right func(userID string) bool) error {
	userID := sessions.LoginBegun(ctx)
	switch {
	case userID == "":
		return errBegunNowhere
	case !right(userID):
		return errors.New("wrong code")
	}
	return sessions.Login(ctx, userID)
}

// atMostThree refuses the fourth device. Without WhenFull: RefuseLogin in Config.Accounts the one
// that was idle for the longest makes room.
func atMostThree(ctx context.Context, sessions *session.Manager, userID string) error {
	err := sessions.Login(ctx, userID, session.MaxSessions(3))
	if errors.Is(err, session.ErrTooManySessions) {
		return errors.New("log out on another device first")
	}
	return err
}

// accountRoutes asks for the password again before what ends sessions or changes a password: the page
// that asks calls Confirm.
func accountRoutes(sessions *session.Manager, devices, end, password, confirm http.Handler) http.Handler {
	fresh := middleware.RequireFresh{Manager: sessions, MaxAge: 10 * time.Minute}
	mux := http.NewServeMux()
	mux.Handle("GET /account/devices", devices)
	mux.Handle("POST /account/devices/end", fresh.Handler(end))
	mux.Handle("POST /account/password", fresh.Handler(password))
	mux.Handle("POST /account/confirm", confirm)
	return http.NewCrossOriginProtection().Handler(middleware.RequireUser{Manager: sessions}.Handler(mux))
}
