package recipes

import (
	"database/sql"
	"errors"
	"testing"

	_ "modernc.org/sqlite"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/profile"
)

func TestAccounts(t *testing.T) {
	client, server := connect(t)
	db, err := sql.Open("sqlite", "file::memory:")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec(`CREATE TABLE users (id text PRIMARY KEY, name text, role text, disabled bool);
		INSERT INTO users VALUES ('1', 'Ann', 'admin', false), ('2', 'Bob', 'editor', false)`); err != nil {
		t.Fatal(err)
	}
	users, err := accounts(client, db)
	if err != nil {
		t.Fatal(err)
	}
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	wants := func(id string, want account) {
		t.Helper()
		for range 2 {
			if a, err := users.Get(t.Context(), id); err != nil || a != want {
				t.Errorf("%+v, %v", a, err)
			}
		}
	}
	wants("1", account{"Ann", "admin", false})
	wants("2", account{"Bob", "editor", false})
	if err := disable(t.Context(), db, users, sessions, "2"); err != nil {
		t.Fatal(err)
	}
	wants("2", account{"Bob", "editor", true})
	if err := rename(t.Context(), db, users, map[string]string{"1": "Anna", "2": "Rob"}); err != nil {
		t.Fatal(err)
	}
	wants("1", account{"Anna", "admin", false})
	wants("2", account{"Rob", "editor", true})
	if _, err := users.Get(t.Context(), "3"); err != profile.ErrNotFound {
		t.Error(err)
	}
	server.Close()
	if err := disable(t.Context(), db, users, sessions, "1"); !errors.Is(err, profile.ErrUnavailable) {
		t.Error(err)
	}
	wants("1", account{"Anna", "admin", false})
}

func TestNearbyIsAClient(t *testing.T) {
	c := nearby(redistest.Start(t).Addr())
	defer c.Close()
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}
