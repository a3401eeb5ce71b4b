package main

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// wrapper is middleware as net/http has it.
type wrapper = func(http.Handler) http.Handler

// answer is the trivial handler that everything is wrapped around.
var answer = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "ok")
})

// bare is the handler with nothing around it: what the callers cost.
func bare(next http.Handler) entrant {
	return entrant{name: "bare handler", kind: floor, enter: func(e *env) ([]caller, error) {
		return e.callers(next, subjects(e.subjects), false), nil
	}}
}

// noop asks Redis one question that costs it nothing, with a plain client: what any middleware
// costs that asks Redis once a request and does not share round trips.
var noop = entrant{name: "floor: one no-op EVALSHA", kind: floor, enter: func(e *env) ([]caller, error) {
	client, script := e.goredis(), redis.NewScript("return 1")
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := script.Run(r.Context(), client, []string{r.Header.Get(subjectField)}).Err(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, r)
	})
	return e.callers(h, subjects(e.subjects), false), nil
}}

// refusal is a 429 with the fields that rate limits send, the same for all: what a denial costs
// that takes no decision.
var refusal = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("X-RateLimit-Limit", "1")
	h.Set("X-RateLimit-Remaining", "0")
	h.Set("X-RateLimit-Reset", strconv.FormatInt(time.Now().Unix(), 10))
	h.Set("Retry-After", "1")
	h.Set("Content-Type", "text/plain")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusTooManyRequests)
	_, _ = io.WriteString(w, "Too Many Requests")
})
