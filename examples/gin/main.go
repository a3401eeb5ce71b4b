// Command gin is the smallest honest service with gin: sessions,
// one limit per route, a stricter one on login, and one by user.
package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/ginadapter"
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

	login := func(c *gin.Context) {
		// Check the password here.
		switch err := sessions.Login(c.Request.Context(), c.PostForm("user")); {
		case errors.Is(err, session.ErrNoUser):
			c.String(http.StatusBadRequest, "user is missing\n")
		case err != nil:
			c.String(http.StatusServiceUnavailable, "please try again\n")
		default:
			c.String(http.StatusOK, "welcome\n")
		}
	}
	hello := func(c *gin.Context) {
		c.String(http.StatusOK, "hello, %s\n", sessions.UserID(c.Request.Context()))
	}

	r := gin.New()
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: sessions}))
	r.POST("/login", ginadapter.Wrap(middleware.RateLimit{Limiter: logins, Key: byIP}), login)
	r.GET("/search", ginadapter.Wrap(middleware.RateLimit{Limiter: search, Key: byIP}), hello)
	users := r.Group("/", ginadapter.Wrap(middleware.RequireUser{Manager: sessions}))
	users.POST("/orders", ginadapter.Wrap(middleware.RateLimit{Limiter: orders, Key: byUser}), hello)
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
