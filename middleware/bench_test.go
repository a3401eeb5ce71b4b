package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// What the middleware itself costs, without Redis.
func BenchmarkMiddleware(b *testing.B) {
	mini := miniredis.RunT(b)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	m, err := session.New(client, session.Config{})
	if err != nil {
		b.Fatal(err)
	}
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, bm := range []struct {
		name string
		h    http.Handler
	}{
		{"Sessions without a cookie", middleware.Sessions{Manager: m}.Handler(nothing)},
		{"RateLimit that passes", middleware.RateLimit{
			Limiter: &steady{allowed("l", 500, 300, time.Minute)}, Key: middleware.ByIP(middleware.PeerIP)}.Handler(nothing)},
		{"RateLimit that refuses", middleware.RateLimit{
			Limiter: &steady{denied("l", time.Minute)}, Key: middleware.ByIP(middleware.PeerIP)}.Handler(nothing)},
		{"RateLimit with IETF fields", middleware.RateLimit{
			Limiter: &steady{allowed("l", 500, 300, time.Minute)}, Key: middleware.ByIP(middleware.PeerIP), Fields: middleware.Fields{IETF: true}}.Handler(nothing)},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			r := httptest.NewRequest("GET", "/", nil)
			w := &discard{h: http.Header{}}
			for b.Loop() {
				clear(w.h)
				bm.h.ServeHTTP(w, r)
			}
		})
	}
}
