//go:build unix

package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

// eachDatabase runs f on SQLite and on PostgreSQL; server is nil on the former.
func eachDatabase(t *testing.T, f func(t *testing.T, db *DB, server *postgres)) {
	run := func(t *testing.T, url string, server *postgres) {
		db, err := Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		f(t, db, server)
	}
	t.Run("SQLite", func(t *testing.T) { run(t, "", nil) })
	t.Run("PostgreSQL", func(t *testing.T) {
		server := startPostgres(t)
		run(t, server.url, server)
	})
}

func (db *DB) count(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	if err := db.sql.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDatabase(t *testing.T) {
	t.Parallel() // with others that wait
	eachDatabase(t, func(t *testing.T, db *DB, server *postgres) {
		ctx := t.Context()
		base := time.Date(2026, 3, 4, 5, 6, 7, 890_000, time.UTC)
		at := func(id string, kind session.EventKind, ms int) session.Event {
			return session.Event{ID: id, Time: base.Add(time.Duration(ms) * time.Millisecond), Kind: kind, UserID: "ann", Handle: "h", Client: "curl"}
		}
		login, used, logout := at("a", session.LoggedIn, 0), at("b", session.Used, 100), at("c", session.LoggedOut, 200)
		for _, list := range [][]session.Event{{login, used, logout}, {login, used}, {login}} { // again, as after a crash
			if err := db.Save(ctx, list); err != nil {
				t.Fatal(err)
			}
		}
		if n := db.count(t, "SELECT count(*) FROM events"); n != 3 {
			t.Errorf("%d events, want 3", n)
		}
		var seen time.Time
		if err := db.sql.QueryRowContext(ctx, "SELECT at FROM last_seen WHERE user_id = 'ann' AND handle = 'h'").Scan(&seen); err != nil || !seen.Equal(used.Time) {
			t.Errorf("last seen %v, %v; want %v", seen, err, used.Time)
		}
		list, err := db.Activity(ctx, "ann")
		if err != nil || len(list) != 2 || list[0].What != "logged-out" || !list[0].At.Equal(logout.Time) || list[1].Client != "curl" {
			t.Errorf("%+v, %v", list, err)
		}

		// A mail whose sending fails is claimed by nobody.
		mails, broken := new(outbox), errors.New("no such address")
		if err := newDevices(db, failing{broken})(ctx, []session.Event{login}); !errors.Is(err, broken) || errors.Is(err, events.ErrLater) {
			t.Errorf("%v, want the mailer's own error", err)
		}
		again := at("d", session.LoggedIn, 300)
		other := again
		other.ID, other.UserID = "e", "bob"
		for range 2 {
			if err := newDevices(db, mails)(ctx, []session.Event{login, used, again, other}); err != nil {
				t.Fatal(err)
			}
		}
		if got := mails.mails(); len(got) != 2 {
			t.Errorf("mails %q, want one for each user", got)
		}

		letter := events.DeadLetter{Raw: "\x00\xff raw", Stream: "s", EntryID: "1-0", Err: errors.New("on\x00\xff purpose")}
		for range 2 {
			if err := db.Bury(ctx, "audit", letter); err != nil {
				t.Fatal(err)
			}
		}
		if n := db.count(t, "SELECT count(*) FROM dead_letters WHERE raw = $1 AND error = $2", []byte(letter.Raw), "on\uFFFD\uFFFD purpose"); n != 1 {
			t.Errorf("%d dead letters, want 1", n)
		}

		if server == nil {
			return
		}
		// What PostgreSQL cannot store is the event's own fault, an outage is not.
		nul := at("f", session.LoggedIn, 400)
		nul.UserID = "a\x00b"
		if err := db.Save(ctx, []session.Event{again, nul}); err == nil || errors.Is(err, events.ErrLater) {
			t.Errorf("a NUL: %v, want an error of the event", err)
		}
		if n := db.count(t, "SELECT count(*) FROM events WHERE id = 'd'"); n != 0 {
			t.Error("half of a batch is there")
		}
		server.stop()
		for range 2 { // on a connection that breaks, and on none
			if err := db.Save(ctx, []session.Event{again}); !errors.Is(err, events.ErrLater) {
				t.Errorf("Save during an outage: %v", err)
			}
			if err := newDevices(db, mails)(ctx, []session.Event{other}); !errors.Is(err, events.ErrLater) {
				t.Errorf("a mail during an outage: %v", err)
			}
			if err := db.Bury(ctx, "mail", letter); !errors.Is(err, events.ErrLater) {
				t.Errorf("Bury during an outage: %v", err)
			}
		}
		server.start()
		eventually(t, "it works again", func() bool {
			err := db.Save(ctx, []session.Event{again})
			if err != nil && !errors.Is(err, events.ErrLater) {
				t.Errorf("while it starts: %v", err)
			}
			return err == nil
		})
		if got := len(mails.mails()); got != 2 {
			t.Errorf("%d mails, want 2", got)
		}
	})
}

// failing is a mailer that fails.
type failing struct{ err error }

func (f failing) NewDevice(context.Context, session.Event) error { return f.err }
