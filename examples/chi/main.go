// Command chi is the smallest honest service with chi: sessions,
// one limit per route, a stricter one on login, and one by user.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

func main() {
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Fatal("set REDIS_URL, for example to redis://localhost:6379/0")
	}
	handler, err := newHandler(redis.NewClient(options))
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.ListenAndServe("localhost:8080", handler))
}

func newHandler(client redis.UniversalClient) (http.Handler, error) {
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		return nil, err
	}
	logins, err := ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(5), ratelimit.Config{})
	if err != nil {
		return nil, err
	}
	search, err := ratelimit.NewTokenBucket(client, "search", ratelimit.PerSecond(20), ratelimit.Config{})
	if err != nil {
		return nil, err
	}
	orders, err := ratelimit.NewFixedWindow(client, "orders", ratelimit.PerHour(100), ratelimit.Config{})
	if err != nil {
		return nil, err
	}
	// Whatever is wrong with the Redis, the service starts.
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		warn(sessions.Check(ctx))
		warn(ratelimit.Check(ctx, logins, search, orders))
	}()

	byIP := middleware.ByIP(middleware.PeerIP)
	byUser := middleware.ByUser(sessions)

	login := func(w http.ResponseWriter, r *http.Request) {
		// Check the password here.
		switch err := sessions.Login(r.Context(), r.FormValue("user")); {
		case errors.Is(err, session.ErrNoUser):
			http.Error(w, "user is missing", http.StatusBadRequest)
		case err != nil:
			http.Error(w, "please try again", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "welcome")
		}
	}
	hello := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello, %s\n", sessions.UserID(r.Context()))
	}

	r := chi.NewRouter()
	r.Use(middleware.Sessions{Manager: sessions}.Handler)
	r.With(middleware.RateLimit{Limiter: logins, Key: byIP}.Handler).Post("/login", login)
	r.With(middleware.RateLimit{Limiter: search, Key: byIP}.Handler).Get("/search", hello)
	r.Group(func(r chi.Router) {
		r.Use(middleware.RequireUser{Manager: sessions}.Handler)
		r.Use(middleware.RateLimit{Limiter: orders, Key: byUser}.Handler)
		r.Post("/orders", hello)
	})
	return r, nil
}

// warn logs what does not work, and what is likely to surprise.
func warn(warnings []string, err error) {
	for _, w := range warnings {
		log.Print("warning: ", w)
	}
	if err != nil {
		log.Print("error: ", err)
	}
}
