package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/console"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Config is what a gateway needs.
type Config struct {
	Customers Customers
	PerDay    int // tokens a day, of everybody
	Model     Model
	Operators map[string]string // name to password
}

// Customers are found by their API key. A real service keeps hashes of the keys in its database.
type Customers map[string]Customer

// Customer is who pays.
type Customer struct {
	Tenant    string
	PerMinute int // tokens, of the plan; 0: none
}

// Gateway is the service.
type Gateway struct {
	http.Handler
	cfg       Config
	rules     *ratelimit.Rules
	perMinute *ratelimit.TokenBucket
	perDay    *ratelimit.FixedWindow
}

// New returns a Gateway. Close it.
func New(client redis.UniversalClient, cfg Config) (*Gateway, error) {
	rules, err := ratelimit.NewRules(client, ratelimit.RulesConfig{})
	if err != nil {
		return nil, err
	}
	g := &Gateway{cfg: cfg, rules: rules}
	if err := g.mount(client); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Close ends what runs in the background.
func (g *Gateway) Close() { _ = g.rules.Close() }

// Check says what is wrong with the Redis, and what would surprise.
func (g *Gateway) Check(ctx context.Context) ([]string, error) {
	warnings, err := ratelimit.Check(ctx, g.perMinute, g.perDay)
	more, also := g.rules.Check(ctx)
	return append(warnings, more...), errors.Join(err, also)
}

func (g *Gateway) mount(client redis.UniversalClient) (err error) {
	denials := console.NewDenials(1000)
	limits := ratelimit.Config{Rules: g.rules, OnDecision: denials.Note}
	if g.perMinute, err = ratelimit.NewTokenBucket(client, "tokens-minute", ratelimit.PerMinute(600), limits); err != nil {
		return err
	}
	if g.perDay, err = ratelimit.NewFixedWindow(client, "tokens-day", ratelimit.PerDay(g.cfg.PerDay), limits); err != nil {
		return err
	}
	both, err := ratelimit.All(g.perMinute, g.perDay)
	if err != nil {
		return err
	}
	budget := middleware.RateLimit{
		Limiter:    both,
		LimiterFor: g.budgetOf,
		Key:        middleware.By("tenant", func(r *http.Request) string { return of(r).Tenant }),
		Cost:       func(r *http.Request) int { return of(r).prompt + of(r).MaxTokens },
	}
	ops := console.Console{
		Authorize: g.operator,
		Limiters:  []ratelimit.Limiter{g.perMinute, g.perDay},
		Rules:     g.rules,
		Denials:   denials,
		Redis:     []redis.UniversalClient{client},
	}
	if err := errors.Join(budget.Validate(), ops.Validate()); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/complete", g.decode(budget.Handler(http.HandlerFunc(g.complete))))
	mux.Handle("/ops/", g.askForPassword(http.StripPrefix("/ops", ops.Handler())))
	g.Handler = mux
	return nil
}

// budgetOf is both limits, the first one as the customer's plan has it. What was spent under
// another plan stays spent.
func (g *Gateway) budgetOf(r *http.Request) (ratelimit.Limiter, error) {
	plan, err := g.perMinute.With(ratelimit.PerMinute(of(r).PerMinute))
	if err != nil {
		return nil, err // 503 and a line in the log, never the default
	}
	return ratelimit.All(plan, g.perDay)
}

// call is a request that was understood.
type call struct {
	Customer `json:"-"`

	Prompt    string `json:"prompt"`
	MaxTokens int    `json:"max_tokens"`

	prompt int // tokens
}

type callKey struct{}

func of(r *http.Request) call { return r.Context().Value(callKey{}).(call) }

const mostTokens = 4096 // of an answer

// decode says who asks, and for what, before anything is counted.
func (g *Gateway) decode(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		customer, known := g.cfg.Customers[key]
		if !bearer || !known {
			w.Header().Set("WWW-Authenticate", "Bearer")
			fail(w, http.StatusUnauthorized, "this API key is not known")
			return
		}
		c := call{Customer: customer, MaxTokens: 256}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&c); err != nil {
			fail(w, http.StatusBadRequest, "the body is not JSON with prompt and max_tokens, or over 1 MB")
			return
		}
		if c.prompt = g.cfg.Model.Count(c.Prompt); c.prompt == 0 || c.MaxTokens < 1 || c.MaxTokens > mostTokens {
			fail(w, http.StatusBadRequest, fmt.Sprintf("prompt is empty, or max_tokens is not between 1 and %d", mostTokens))
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
	})
}

// complete streams the answer as server-sent events, and charges what it took.
func (g *Gateway) complete(w http.ResponseWriter, r *http.Request) {
	c := of(r)
	used := c.prompt
	defer func() { // also when the model has panicked
		for _, d := range middleware.DecisionsOf(r) {
			if err := d.Settle(r.Context(), used); err != nil { // also when the customer has hung up
				log.Print(err)
			}
		}
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	stream := http.NewResponseController(w)
	err := g.cfg.Model.Complete(r.Context(), c.Prompt, c.MaxTokens, func(token string) error {
		used++
		return send(w, stream, "token", map[string]string{"token": token})
	})
	if err != nil && r.Context().Err() == nil {
		log.Print(err)
		_ = send(w, stream, "error", map[string]string{"error": "the model failed"})
		return
	}
	_ = send(w, stream, "done", map[string]int{"tokens": used})
}

func send(w http.ResponseWriter, stream *http.ResponseController, event string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, b); err != nil {
		return err
	}
	return stream.Flush()
}

func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text})
}

// operator is who may use the console. A real service asks its single sign-on.
func (g *Gateway) operator(r *http.Request) (string, console.Access) {
	name, password, _ := r.BasicAuth()
	want, known := g.cfg.Operators[name]
	got, right := sha256.Sum256([]byte(password)), sha256.Sum256([]byte(want))
	if subtle.ConstantTimeCompare(got[:], right[:]) == 1 && known {
		return name, console.Write
	}
	return "", console.None
}

// askForPassword has the browser ask for name and password, until they are right.
func (g *Gateway) askForPassword(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, _ := g.operator(r); name == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="operators", charset="UTF-8"`)
			http.Error(w, "This is for operators.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}
