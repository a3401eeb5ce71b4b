package main

import (
	"log"
	"net/http"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/redis/go-redis/v9"
)

func main() {
	client := redis.NewClient(&redis.Options{Addr: "localhost:6379"})
	limiter, err := ratelimit.NewSlidingWindow(client, "files", ratelimit.PerMinute(10), ratelimit.Config{})
	if err != nil {
		log.Fatal(err)
	}
	limit := middleware.RateLimit{Limiter: limiter, Key: middleware.ByIP(middleware.PeerIP)}
	log.Fatal(http.ListenAndServe("localhost:8080", limit.Handler(http.FileServer(http.Dir(".")))))
}
