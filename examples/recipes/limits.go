// Package recipes holds most of the code of docs, so that
// it is compiled and tested.
package recipes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

func loginLimit(client redis.UniversalClient) (middleware.RateLimit, error) {
	byAccount, err1 := ratelimit.NewSlidingWindow(client, "login-account", ratelimit.Limit{Requests: 5, Window: 15 * time.Minute}, ratelimit.Config{})
	byAddress, err2 := ratelimit.NewSlidingWindow(client, "login-address", ratelimit.Limit{Requests: 30, Window: 15 * time.Minute}, ratelimit.Config{})
	if err := errors.Join(err1, err2); err != nil {
		return middleware.RateLimit{}, err
	}
	// As the lookup of the user reads it: what that takes for one account must be one key.
	canonical := func(email string) string { return strings.ToLower(strings.TrimSpace(email)) }
	part := func(i int) func(string) string { return func(key string) string { return ratelimit.SplitKey(key)[i] } }
	both, err := ratelimit.All(ratelimit.Keyed(byAccount, part(0)), ratelimit.Keyed(byAddress, part(1)))
	return middleware.RateLimit{
		Limiter:      both,
		Key:          middleware.Join(middleware.ByForm("email", canonical), middleware.ByIP(middleware.PeerIP)),
		FailuresOnly: true, // the handler calls middleware.Succeeded(r) once the password was right
	}, err
}

type credentials struct{ Email, Password string } // what the handler decodes, too

// byEmail counts by the account in the body of a login. The handler finds the body as if nobody had read it. What
// is no JSON, or has more than 64 KB, has no key: 400.
func byEmail(canonical func(string) string) middleware.KeyFunc {
	const most = 64 << 10
	return middleware.By("email", func(r *http.Request) string {
		body, err := io.ReadAll(io.LimitReader(r.Body, most+1))
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
		var c credentials
		if err != nil || len(body) > most || json.Unmarshal(body, &c) != nil {
			return ""
		}
		return canonical(c.Email)
	})
}

// smallBurst allows ten requests a second, and no more than three at once.
func smallBurst(client redis.UniversalClient) (*ratelimit.TokenBucket, error) {
	return ratelimit.NewTokenBucket(client, "steady", ratelimit.Limit{Requests: 3, Window: 300 * time.Millisecond}, ratelimit.Config{})
}

// reserve lets everybody use 80 of 100 requests a second, and critical requests all of them.
func reserve(client redis.UniversalClient, critical func(*http.Request) bool) (middleware.RateLimit, error) {
	all, err := ratelimit.NewSlidingWindow(client, "api", ratelimit.PerSecond(100), ratelimit.Config{})
	if err != nil {
		return middleware.RateLimit{}, err
	}
	most, err := all.With(ratelimit.PerSecond(80)) // shares what has been spent with all
	return middleware.RateLimit{
		Limiter: most,
		Key:     func(*http.Request) (string, error) { return "everybody", nil },
		LimiterFor: func(r *http.Request) (ratelimit.Limiter, error) {
			if critical(r) {
				return all, nil
			}
			return nil, nil
		},
	}, err
}

type batch struct{ Items []json.RawMessage }

type batchKey struct{}

// costOfBody counts each item of a batch. It decodes at most 1 MiB, in front of the limit.
func costOfBody(limiter ratelimit.Limiter, key middleware.KeyFunc, next http.Handler) http.Handler {
	limit := middleware.RateLimit{
		Limiter: limiter, Key: key,
		Cost: func(r *http.Request) int { return max(1, len(r.Context().Value(batchKey{}).(batch).Items)) },
	}.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		var b batch
		if err == nil {
			err = json.Unmarshal(body, &b)
		}
		if err != nil {
			http.Error(w, "not a batch of at most 1 MiB", http.StatusBadRequest)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), batchKey{}, b))
		r.Body = io.NopCloser(bytes.NewReader(body)) // for handlers that read it themselves
		limit.ServeHTTP(w, r)
	})
}

// cacheable leaves figures away where shared caches keep the response: they would show one
// client's figures to all others. What is refused is not kept: it has Cache-Control: no-store.
func cacheable(limiter ratelimit.Limiter, key middleware.KeyFunc) middleware.RateLimit {
	return middleware.RateLimit{Limiter: limiter, Key: key, Fields: middleware.Fields{None: true}}
}

// refuseGRPC answers gRPC clients, in trailers alone. The pushback keeps them from retrying before
// that can help.
func refuseGRPC(w http.ResponseWriter, r *http.Request, d middleware.Decision) {
	code, message, wait := "14", "the limit cannot be checked", 5*time.Second // UNAVAILABLE
	switch d.Status {
	case http.StatusTooManyRequests:
		code, message, wait = "8", "too many requests", d.Result.RetryAfter // RESOURCE_EXHAUSTED
	case http.StatusBadRequest:
		code, message, wait = "3", "the request does not tell who sent it", ratelimit.Never // INVALID_ARGUMENT
	}
	pushback := "-1" // never
	if wait != ratelimit.Never {
		pushback = strconv.FormatInt(wait.Milliseconds()+1, 10)
	}
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	h.Set("Grpc-Status", code)
	h.Set("Grpc-Message", message)
	h.Set("Grpc-Retry-Pushback-Ms", pushback)
	w.WriteHeader(http.StatusOK)
}
