// Command gateway stands before a language model. Each customer has a budget of tokens, by the
// minute as their plan has it, and by the day; what an answer may cost is reserved before the
// model begins, and what it did cost is charged when it has ended, or when the customer hung up.
// An operator sees who is refused and why, and raises the budget of one customer while it runs.
//
//	ADDR          where it listens; default localhost:8080
//	REDIS_URL     such as redis://localhost:6379/0; default: a Redis inside the process
//	OPS_PASSWORD  of the operator "ops" at /ops/; default: one that is printed
//
// Try it, with the key of a customer that it prints:
//
//	curl -N -H 'Authorization: Bearer demo-free' -d '{"prompt": "Tell me of the sea", "max_tokens": 40}' localhost:8080/v1/complete
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cmp.Or(os.Getenv("ADDR"), "localhost:8080")); err != nil {
		log.Fatal("gateway: ", err)
	}
}

func run(ctx context.Context, addr string) error {
	client, err := startup.Connect(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	defer client.Close()
	password := os.Getenv("OPS_PASSWORD")
	if password == "" {
		password = rand.Text()
		log.Printf("Operators are at http://%s/ops/ as ops, with the password %s.", addr, password)
	}
	gateway, err := New(client, Config{
		Customers: Customers{
			"demo-free": {Tenant: "free", PerMinute: 600},
			"demo-paid": {Tenant: "paid", PerMinute: 20_000},
			"demo-none": {Tenant: "none", PerMinute: 0}, // has not paid
		},
		PerDay:    5_000,
		Model:     Parrot{Pause: 50 * time.Millisecond},
		Operators: map[string]string{"ops": password},
	})
	if err != nil {
		return err
	}
	defer gateway.Close()
	startup.Check(gateway.Check)

	log.Print("The keys of customers are demo-free, demo-paid and demo-none (Ctrl-C ends it).")
	return startup.Serve(ctx, addr, gateway, 30*time.Second)
}
