// Command login is a whole login service: password and TOTP, a limited number of devices with a
// page to choose which one to replace, limits on failures by account and by address, change and
// reset of the password, and a step-up before a payment.
//
//	ADDR                where it listens, and where links in mails lead;
//	                    default localhost:8080
//	REDIS_URL           such as redis://localhost:6379/0; default: a Redis inside
//	                    the process, which is gone when the service is
//	SESSION_SECRET      signs cookies and seals records, at least 32 bytes;
//	                    default: neither is done
//	SESSION_KEY_SECRET  hides user IDs in Redis, at least 32 bytes; required with
//	                    SESSION_SECRET
//
// Users and their passwords are kept in the process. The log shows mails in place of sending them.
package main

import (
	"cmp"
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
	"github.com/gatehouse-go/gatehouse/session"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cmp.Or(os.Getenv("ADDR"), "localhost:8080")); err != nil {
		log.Fatal("login: ", err)
	}
}

func run(ctx context.Context, addr string) error {
	client, err := startup.Connect(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	defer client.Close()
	db, err := demoUsers(ctx)
	if err != nil {
		return err
	}
	// The address of the site is not read from the request: who asks for a link would choose
	// where it leads.
	mail := func(to, path string) { log.Printf("mail to %s: http://%s%s", to, addr, path) }
	var cfg session.Config
	if s := os.Getenv("SESSION_SECRET"); s != "" {
		cfg.Secrets = [][]byte{[]byte(s)}
	}
	if s := os.Getenv("SESSION_KEY_SECRET"); s != "" {
		cfg.KeySecret = []byte(s)
	}
	handler, err := New(client, db, mail, cfg)
	if err != nil {
		return err
	}
	log.Printf("Open http://%s/ (Ctrl-C ends it).", addr)
	return startup.Serve(ctx, addr, handler, 5*time.Second)
}

// demoUsers returns two users, and logs what they log in with.
func demoUsers(ctx context.Context) (*DB, error) {
	key, err := totp.Generate(totp.GenerateOpts{Issuer: "login", AccountName: "ann@example.com"})
	if err != nil {
		return nil, err
	}
	db := NewDB(time.Now, rounds)
	for _, u := range []User{
		{ID: "1", Email: "ann@example.com", TOTP: key.Secret(), Devices: 3},
		{ID: "2", Email: "bob@example.com", Devices: 3},
	} {
		if err := db.Add(ctx, u, "password of "+u.Email); err != nil {
			return nil, err
		}
		log.Printf("user %q, password %q, TOTP secret %q", u.Email, "password of "+u.Email, u.TOTP)
	}
	return db, nil
}
