package recipes

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/profile"
)

// account is what each request needs to know of its user.
type account struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	Disabled bool   `json:"disabled"`
}

// accounts is the cache in front of a table.
func accounts(client redis.UniversalClient, db *sql.DB) (*profile.Cache[account], error) {
	load := func(ctx context.Context, id string) (a account, err error) {
		err = db.QueryRowContext(ctx, "SELECT name, role, disabled FROM users WHERE id = $1", id).Scan(&a.Name, &a.Role, &a.Disabled)
		if errors.Is(err, sql.ErrNoRows) {
			err = profile.ErrNotFound
		}
		return a, err
	}
	return profile.New(client, "account", load, profile.Config{TTL: 10 * time.Minute})
}

// disable takes effect with the next request on every server: the row first, then the sessions.
func disable(ctx context.Context, db *sql.DB, users *profile.Cache[account], sessions *session.Manager, id string) error {
	_, err := users.Update(ctx, id, func(ctx context.Context) (a account, err error) {
		err = db.QueryRowContext(ctx, "UPDATE users SET disabled = true WHERE id = $1 RETURNING name, role, disabled", id).
			Scan(&a.Name, &a.Role, &a.Disabled)
		return a, err
	})
	switch {
	case errors.Is(err, profile.ErrNotTold): // done, and seen within seconds: go on
		log.Print(err)
	case err != nil: // not done; or, if the database did not answer, perhaps
		return err
	}
	_, err = sessions.EndAll(ctx, id, session.Cause{Reason: session.Disabled})
	return err
}

// rename changes several rows in one transaction. What reads them is forgotten after the commit, not
// before: a load in between would bring back what was there.
func rename(ctx context.Context, db *sql.DB, users *profile.Cache[account], names map[string]string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for id, name := range names {
		if _, err := tx.ExecContext(ctx, "UPDATE users SET name = $2 WHERE id = $1", id, name); err != nil {
			return err
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // committed, so the cache must forget it also for a caller who has gone
	var errs []error
	for id := range names {
		errs = append(errs, users.Forget(ctx, id))
	}
	return errors.Join(errs...) // what is not forgotten is seen until its TTL ends: call Forget again
}

// nearby is a client that keeps what it reads in the process, until Redis says that it has changed.
func nearby(addr string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: addr, Protocol: 3,
		ClientSideCacheConfig: &redis.ClientSideCacheConfig{MaxStaleness: 5 * time.Second},
	})
}
