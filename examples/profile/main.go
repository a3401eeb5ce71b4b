// Command profile keeps the roles of its users in a database and asks it for them hardly ever. It
// runs two servers over one Redis: a role that is taken away on one is gone on the other with the
// next request. The page of an administrator has a button that shows what a cache is for: 200
// requests at once after the value was forgotten, with the cache and without.
//
//	REDIS_URL     such as redis://localhost:6379/0; default: a Redis inside the process
//	DATABASE_URL  such as postgres://user:password@localhost/profile; default: an SQLite inside the
//	              process, to try it out
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	client, err := startup.Connect(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal("profile: ", err)
	}
	defer client.Close()
	db, err := Open(ctx, os.Getenv("DATABASE_URL"), "ann", "bob")
	if err != nil {
		log.Fatal("profile: ", err)
	}
	defer db.Close()
	var servers sync.WaitGroup
	for _, addr := range []string{"localhost:8080", "localhost:8081"} {
		handler, err := New(client, db)
		if err != nil {
			log.Fatal("profile: ", err)
		}
		servers.Go(func() {
			if err := startup.Serve(ctx, addr, handler, 10*time.Second); err != nil {
				log.Fatal(err)
			}
		})
	}
	fmt.Println("Open http://localhost:8080/ as ann, who is an administrator, and http://localhost:8081/ as bob in another browser (Ctrl-C ends it).")
	servers.Wait()
}
