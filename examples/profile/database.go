package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/gatehouse-go/gatehouse/session/profile"
)

// User is what each request needs to know of its user.
type User struct {
	Name string `json:"name"`
	Role string `json:"role"`
}

// DB is a PostgreSQL, or an SQLite inside the process. It is safe for concurrent use.
type DB struct {
	sql   *sql.DB
	loads atomic.Int64 // how often it was asked for a user
}

// Open connects to the PostgreSQL of a URL, or for "" makes an SQLite. Of the users that are new the
// first is an administrator. Its errors do not show the password.
func Open(ctx context.Context, url string, users ...string) (*DB, error) {
	var db DB
	var err error
	if url == "" {
		if db.sql, err = sql.Open("sqlite", "file::memory:"); err != nil {
			return nil, err
		}
		db.sql.SetMaxOpenConns(1) // each connection would have a database of its own
	} else {
		config, err := pgx.ParseConfig(url)
		if err != nil || !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
			// The error may quote the URL, and with it a password.
			return nil, errors.New("DATABASE_URL is not a PostgreSQL URL such as postgres://user:password@localhost/profile")
		}
		db.sql = stdlib.OpenDB(*config)
		db.sql.SetMaxOpenConns(20)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = db.sql.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS users (name text PRIMARY KEY, role text NOT NULL)`)
	for i, name := range users {
		role := "admin"
		if i > 0 {
			role = "editor"
		}
		if err == nil {
			_, err = db.sql.ExecContext(ctx, `INSERT INTO users (name, role) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, name, role)
		}
	}
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("the database cannot be used: %w", err)
	}
	return &db, nil
}

// Close waits for what is under way.
func (db *DB) Close() error { return db.sql.Close() }

// Load is the loader of the cache.
func (db *DB) Load(ctx context.Context, name string) (u User, err error) {
	db.loads.Add(1)
	err = db.sql.QueryRowContext(ctx, `SELECT name, role FROM users WHERE name = $1`, name).Scan(&u.Name, &u.Role)
	if errors.Is(err, sql.ErrNoRows) {
		return User{}, profile.ErrNotFound
	}
	return u, err
}

// SetRole changes a user and returns what it is then.
func (db *DB) SetRole(ctx context.Context, name, role string) (u User, err error) {
	err = db.sql.QueryRowContext(ctx, `UPDATE users SET role = $2 WHERE name = $1 RETURNING name, role`, name, role).Scan(&u.Name, &u.Role)
	if errors.Is(err, sql.ErrNoRows) {
		return User{}, profile.ErrNotFound
	}
	return u, err
}
