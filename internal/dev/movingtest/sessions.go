package movingtest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"log"
	"net/http"
	"strconv"
	"time"

	"github.com/alexedwards/scs/goredisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/gorilla/sessions"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// fromSCS goes on with the sessions of scs.
func fromSCS(client *redis.Client, mux http.Handler) (*session.Manager, http.Handler, error) {
	manager, err := session.New(client, session.Config{
		Legacy: session.Legacy{
			Store: goredisstore.New(client),
			User: func(values map[string]any) string { // as it was put: by PutInt it is an int
				switch id := values["userID"].(type) {
				case string:
					return id
				case int:
					return strconv.Itoa(id)
				}
				return ""
			},
			Lifetime: 24 * time.Hour, // of the old manager
		},
		Persistent:  true, // as scs's Cookie.Persist, which is its default
		IdleTimeout: -1,   // as scs's default; ours is an hour, and ends sessions that old servers keep
	})
	if err != nil {
		return nil, nil, err
	}
	return manager, middleware.Sessions{Manager: manager, LegacyCookie: "session"}.Handler(mux), nil
}

// hashed is the Legacy.Store of an scs manager with HashTokenInStore.
type hashed struct{ scs.CtxStore }

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (s hashed) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	return s.CtxStore.FindCtx(ctx, hash(token))
}

func (s hashed) DeleteCtx(ctx context.Context, token string) error {
	return s.CtxStore.DeleteCtx(ctx, hash(token))
}

// fromGorilla moves sessions of gorilla: who has one there and none here is logged in here, and the
// old one is deleted. It stands inside of middleware.Sessions. allowed asks the database whether the
// user may still log in.
func fromGorilla(old sessions.Store, name string, manager *session.Manager, allowed func(userID string) bool, next http.Handler) http.Handler {
	move := func(w http.ResponseWriter, r *http.Request) error {
		if _, err := r.Cookie(name); err != nil || manager.UserID(r.Context()) != "" {
			return nil
		}
		s, err := old.Get(r, name)
		if err != nil || s.IsNew { // of an old key, expired, or gone
			return nil
		}
		id, _ := s.Values["userID"].(string)
		if id == "" || !allowed(id) {
			return nil
		}
		if theme, ok := s.Values["theme"].(string); ok { // and whatever else is to be kept
			manager.Put(r.Context(), "theme", theme)
		}
		if err := manager.Login(r.Context(), id); err != nil {
			return err
		}
		s.Options.MaxAge = -1 // or the old cookie would log in again what End has ended
		if err := s.Save(r, w); err != nil {
			return errors.Join(err, manager.Logout(r.Context()))
		}
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := move(w, r); err != nil {
			log.Print("moving a session: ", err)
			http.Error(w, "please try again", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, r)
	})
}
