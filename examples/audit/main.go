// Command audit keeps what happens to sessions in a database, and mails people about new devices.
// The service itself never waits for either: Redis holds the events until they are handled, through
// a restart of the database, of Redis or of this process.
//
//	REDIS_URL     such as redis://localhost:6379/0; default: a Redis inside the process
//	DATABASE_URL  such as postgres://user:password@localhost/audit; default: an SQLite inside the
//	              process, to try it out
//
// What is inside the process is gone when it ends. Mails are printed in place of being sent.
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

// config is how all processes keep their sessions: those that only read events, too.
var config = session.Config{Events: session.Events{Retention: 7 * 24 * time.Hour, LastSeen: true}}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, "localhost:8080", os.Getenv("REDIS_URL"), os.Getenv("DATABASE_URL")); err != nil {
		log.Fatal("audit: ", err)
	}
}

func run(ctx context.Context, addr, redisURL, databaseURL string) error {
	client, err := startup.Connect(redisURL)
	if err != nil {
		return err
	}
	defer client.Close()
	db, err := Open(ctx, databaseURL)
	if err != nil {
		return err
	}
	defer db.Close()
	if databaseURL == "" {
		log.Print("DATABASE_URL is not set: events go to an embedded SQLite, for trying out. They are gone when this process ends.")
	}
	sessions, err := session.New(client, config)
	if err != nil {
		return err
	}
	startup.Check(sessions.Check)

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var serving, reading error
	var both sync.WaitGroup
	both.Go(func() {
		defer stop()
		serving = startup.Serve(ctx, addr, New(sessions, db), 5*time.Second)
	})
	both.Go(func() {
		defer stop()
		reading = follow(ctx, sessions, db, Console{os.Stdout}, 30*time.Second)
	})
	log.Printf("Open http://%s/ (Ctrl-C ends it). The users are ann and bob; the password of each is the name.", addr)
	both.Wait()
	return errors.Join(serving, reading)
}

// follow reads the events until ctx ends: once for the database, and once more for mails, so that
// neither waits for the other. timeout bounds a transaction, and the sending of a mail.
func follow(ctx context.Context, sessions *session.Manager, db *DB, mailer Mailer, timeout time.Duration) error {
	var readers sync.WaitGroup
	var audit, mail error
	read := func(group string, handle func(context.Context, []session.Event) error) error {
		r := events.Reader{Manager: sessions, Group: group, Timeout: timeout}
		r.DeadLetter = func(ctx context.Context, letter events.DeadLetter) error { return db.Bury(ctx, group, letter) }
		return r.Run(ctx, handle)
	}
	readers.Go(func() { audit = read("audit", db.Save) })
	readers.Go(func() { mail = read("mail", newDevices(db, mailer)) })
	readers.Wait()
	return errors.Join(audit, mail)
}
