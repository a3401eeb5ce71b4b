package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"

	"github.com/gatehouse-go/gatehouse/session"
)

// Mailer sends a user a mail: a new device has logged in. An error that wraps events.ErrLater is
// for a mail server that is away; after any other the mail is tried a few times. The event's ID is
// a good Message-ID, by which the rare second copy can be told.
type Mailer interface {
	NewDevice(context.Context, session.Event) error
}

// Console prints mails.
type Console struct{ io.Writer }

var _ Mailer = Console{}

// NewDevice prints a mail. The client's label is quoted: it is what the client says of itself.
func (c Console) NewDevice(_ context.Context, e session.Event) error {
	_, err := fmt.Fprintf(c, "Mail to %s: a new device has logged in at %s: %q. (%s)\n", e.UserID, e.Time.UTC().Format("2 Jan 15:04:05 MST"), e.Client, e.ID)
	return err
}

// newDevices returns a handler that sends a mail for each login with a label that its user has
// not had before.
//
// A row of mails claims the event and the label, and is committed after the mail was sent. So a
// mail goes out once, also where two processes handle its event at a time: the second waits for the
// row. If the process or the database dies between the sending and the commit, the mail goes out
// again. The other order, which commits first, would lose the mail in that moment, and a missing
// warning is worse than one that comes twice.
func newDevices(db *DB, mailer Mailer) func(context.Context, []session.Event) error {
	return func(ctx context.Context, list []session.Event) error {
		for _, e := range list {
			if e.Kind != session.LoggedIn {
				continue
			}
			if err := db.inTx(ctx, func(tx *sql.Tx) error {
				claimed, err := change(ctx, tx, `INSERT INTO mails (id, user_id, client) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, e.ID, e.UserID, e.Client)
				if err != nil || claimed == 0 {
					return err
				}
				return mailer.NewDevice(ctx, e)
			}); err != nil {
				return err
			}
		}
		return nil
	}
}
