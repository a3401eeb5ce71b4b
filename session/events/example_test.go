package events_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

// An audit trail: each login and logout reaches the handler at least once, also if a process dies.
func Example() {
	server, err := miniredis.Run() // stands for your Redis
	if err != nil {
		log.Fatal(err)
	}
	defer server.Close()
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	ctx, stop := context.WithCancel(context.Background())

	sessions, err := session.New(client, session.Config{Events: session.Events{Retention: 7 * 24 * time.Hour}})
	if err != nil {
		log.Fatal(err)
	}
	reader := &events.Reader{
		Manager: sessions, Group: "audit",
		DeadLetter: func(context.Context, events.DeadLetter) error { return nil }, // keep what fails again and again
	}
	done := make(chan error, 1)
	go func() {
		done <- reader.Run(ctx, func(ctx context.Context, list []session.Event) error {
			for _, e := range list { // in one transaction, by e.ID: an event may come twice
				fmt.Println(e.UserID, e.Kind)
				if e.Kind == session.LoggedOut {
					stop()
				}
			}
			return nil
		})
	}()

	request, err := sessions.Load(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	if err := sessions.Login(request, "ann"); err != nil {
		log.Fatal(err)
	}
	out, err := sessions.Finish(request)
	if err != nil {
		log.Fatal(err)
	}
	request, err = sessions.Load(context.Background(), out.Value)
	if err != nil {
		log.Fatal(err)
	}
	if err := sessions.Logout(request); err != nil {
		log.Fatal(err)
	}
	fmt.Println(<-done)
	// Output:
	// ann logged-in
	// ann logged-out
	// <nil>
}
