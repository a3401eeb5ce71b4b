package recipes

import (
	"net/http"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/console"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// operated is a service whose limits operators see and change while it runs.
func operated(client redis.UniversalClient, sessions *session.Manager, authorize func(*http.Request) (string, console.Access)) (http.Handler, error) {
	rules, err := ratelimit.NewRules(client, ratelimit.RulesConfig{}) // one per process
	if err != nil {
		return nil, err
	}
	denials := console.NewDenials(1000)
	cfg := ratelimit.Config{Rules: rules, OnDecision: denials.Note} // for every limiter
	api, err := ratelimit.NewSlidingWindow(client, "api", ratelimit.PerMinute(100), cfg)
	if err != nil {
		return nil, err
	}
	ops := console.Console{
		Authorize: authorize, // who asks, by your single sign-on, and whether they may write
		Limiters:  []ratelimit.Limiter{api},
		Rules:     rules,
		Denials:   denials,
		Sessions:  sessions,
		Redis:     []redis.UniversalClient{client},
	}
	if err := ops.Validate(); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/ops/", http.StripPrefix("/ops", ops.Handler()))
	limit := middleware.RateLimit{Limiter: api, Key: middleware.ByUser(sessions)}
	mux.Handle("/", middleware.Sessions{Manager: sessions}.Handler(limit.Handler(application)))
	return mux, nil
}

var application = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})
