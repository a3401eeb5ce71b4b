package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

// schema is PostgreSQL's. A service that lives on has migrations instead.
const schema = `
CREATE TABLE IF NOT EXISTS events (
	id text PRIMARY KEY, at timestamptz NOT NULL, kind text NOT NULL, user_id text NOT NULL,
	handle text NOT NULL, client text NOT NULL, reason text NOT NULL, actor text NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, at);
CREATE TABLE IF NOT EXISTS last_seen (
	user_id text NOT NULL, handle text NOT NULL, at timestamptz NOT NULL, PRIMARY KEY (user_id, handle));
CREATE TABLE IF NOT EXISTS mails (
	id text PRIMARY KEY, user_id text NOT NULL, client text NOT NULL, UNIQUE (user_id, client));
CREATE TABLE IF NOT EXISTS dead_letters (
	reader text NOT NULL, stream text NOT NULL, entry_id text NOT NULL, raw bytea NOT NULL, error text NOT NULL,
	PRIMARY KEY (reader, stream, entry_id));`

// DB is a PostgreSQL, or an SQLite inside the process. It is safe for concurrent use. The zero
// value is not usable.
type DB struct{ sql *sql.DB }

// Open connects to the PostgreSQL of a URL, or for "" makes an SQLite, and creates the tables that
// are missing. Its errors do not show the password.
func Open(ctx context.Context, url string) (*DB, error) {
	if url == "" {
		db, err := sql.Open("sqlite", "file::memory:?_time_integer_format=unix_micro&_inttotime=1")
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(1) // each connection would have a database of its own
		_, err = db.ExecContext(ctx, strings.ReplaceAll(schema, "timestamptz", "timestamp"))
		return &DB{db}, err
	}
	config, err := pgx.ParseConfig(url)
	if err != nil || !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
		// The error may quote the URL, and with it a password.
		return nil, errors.New("DATABASE_URL is not a PostgreSQL URL such as postgres://user:password@localhost/audit")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(20)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		db.Close()
		return nil, fmt.Errorf("the database of DATABASE_URL cannot be used: %w", err)
	}
	return &DB{db}, nil
}

// Close waits for what is under way.
func (db *DB) Close() error { return db.sql.Close() }

// Save writes events, and when sessions were seen last, in one transaction. Events that are there
// stay as they are, so what comes again after a crash changes nothing.
func (db *DB) Save(ctx context.Context, list []session.Event) error {
	return db.inTx(ctx, func(tx *sql.Tx) error {
		for _, e := range list {
			_, err := change(ctx, tx, `INSERT INTO events (id, at, kind, user_id, handle, client, reason, actor)
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO NOTHING`,
				e.ID, e.Time.UTC(), e.Kind.String(), e.UserID, e.Handle, e.Client, string(e.Cause.Reason), e.Cause.Actor)
			if err != nil {
				return err
			}
			if e.Kind != session.Used && e.Kind != session.LoggedIn && e.Kind != session.Confirmed {
				continue
			}
			// What comes again is older than what was seen since.
			if _, err := change(ctx, tx, `INSERT INTO last_seen (user_id, handle, at) VALUES ($1, $2, $3)
				ON CONFLICT (user_id, handle) DO UPDATE SET at = excluded.at WHERE last_seen.at < excluded.at`,
				e.UserID, e.Handle, e.Time.UTC()); err != nil {
				return err
			}
		}
		return nil
	})
}

// Bury keeps a dead letter. While the database is away it fails, and is called again.
func (db *DB) Bury(ctx context.Context, reader string, letter events.DeadLetter) error {
	_, err := change(ctx, db.sql, `INSERT INTO dead_letters (reader, stream, entry_id, raw, error)
		VALUES ($1, $2, $3, $4, $5) ON CONFLICT (reader, stream, entry_id) DO NOTHING`,
		reader, letter.Stream, letter.EntryID, []byte(letter.Raw), printable(letter.Err.Error()))
	return err
}

// printable is s without what PostgreSQL takes for no text.
func printable(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// Entry is an event as its user is shown it.
type Entry struct {
	At                    time.Time
	What, Client, Because string
}

// Activity returns the newest events of a user, without the mere uses of sessions.
func (db *DB) Activity(ctx context.Context, user string) (list []Entry, err error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT at, kind, client, reason FROM events
		WHERE user_id = $1 AND kind <> $2 ORDER BY at DESC, id LIMIT 50`, user, session.Used.String())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var e Entry
		if err := rows.Scan(&e.At, &e.What, &e.Client, &e.Because); err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, rows.Err()
}

// inTx commits what f does, unless f fails.
func (db *DB) inTx(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := db.sql.BeginTx(ctx, nil)
	if err != nil {
		return classify(err)
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return classify(tx.Commit())
}

// change returns how many rows a statement has changed.
func change(ctx context.Context, on interface {
	ExecContext(context.Context, string, ...any) (sql.Result, error)
}, statement string, args ...any) (int64, error) {
	result, err := on.ExecContext(ctx, statement, args...)
	if err != nil {
		return 0, classify(err)
	}
	n, err := result.RowsAffected()
	return n, classify(err)
}

// classify wraps an error in events.ErrLater, unless the database has answered and refuses what
// stands in the events themselves.
func classify(err error) error {
	if err == nil {
		return nil
	}
	var connecting *pgconn.ConnectError
	var postgres *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case errors.As(err, &connecting): // whatever the server says: it is not about events
	case errors.As(err, &postgres):
		// https://www.postgresql.org/docs/current/errcodes-appendix.html
		switch postgres.Code[:min(2, len(postgres.Code))] {
		case "08", // connection exception
			"25", // a standby is read-only until it is promoted
			"40", // deadlock, serialization failure
			"53", // insufficient resources, a full disk
			"57", // operator intervention: shutdown, crash, starting up
			"58": // system error
		default:
			return err
		}
	case errors.As(err, &lite):
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR:
		default:
			return err
		}
	}
	return fmt.Errorf("%w: %w", events.ErrLater, err)
}
