// Command accounts shows people the devices on which they are logged in, as the large sites do,
// and lets them end one, or all others. It runs two servers over one Redis, so that a device is
// seen to be logged out on the other server at once: the page holds a WebSocket, which closes.
//
//	REDIS_URL  such as redis://localhost:6379/0; default: a Redis inside the process
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
	client, err := startup.Connect(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	users := NewUsers("ann", "bob")
	var servers sync.WaitGroup
	for _, addr := range []string{"localhost:8080", "localhost:8081"} {
		handler, err := New(client, users, ctx.Done())
		if err != nil {
			log.Fatal(err)
		}
		servers.Go(func() {
			if err := startup.Serve(ctx, addr, handler, 10*time.Second); err != nil {
				log.Fatal(err)
			}
		})
	}
	fmt.Println("Open http://localhost:8080/ in one browser and http://localhost:8081/ in another (Ctrl-C ends it).")
	fmt.Println("The users are ann and bob; the password of each is the name.")
	servers.Wait()
}
