package middleware

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
)

// Routes is a table of limits by [http.ServeMux] pattern. It works in front of
// any router: it matches the request itself and leaves routing to next. The
// most specific pattern wins, as in a ServeMux; what no pattern matches passes.
//
// A path that a ServeMux would first redirect, such as //login, is counted
// under the pattern it leads to. What the router behind accepts beyond that (a
// slash at the end, another case) needs a pattern of its own. The empty value
// limits nothing.
type Routes map[string]RateLimit

// Validate returns all that is wrong with the table, or nil: what is wrong with
// its limits, and patterns that are malformed or conflict.
func (t Routes) Validate() error {
	_, err := t.mux()
	return err
}

// Handler returns a handler that applies the limit of the matching pattern and
// then calls next. It panics with the error of Validate.
//
// [ByRoute] sees the pattern of the table.
func (t Routes) Handler(next http.Handler) http.Handler {
	mux, err := t.mux()
	if err != nil {
		panic(err)
	}
	limited := make(map[string]http.Handler, len(t))
	for pattern, limit := range t {
		limited[pattern] = limit.Handler(next)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The mux's own handler is not called: it may be a redirect.
		_, pattern := mux.Handler(r)
		h, ok := limited[pattern]
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		r = r.WithContext(r.Context()) // a copy, to set the pattern of
		r.Pattern = pattern
		h.ServeHTTP(w, r)
	})
}

// mux returns a mux with the patterns of the table.
func (t Routes) mux() (*http.ServeMux, error) {
	var errs []error
	mux := http.NewServeMux()
	for _, pattern := range slices.Sorted(maps.Keys(t)) {
		if err := t[pattern].Validate(); err != nil {
			errs = append(errs, fmt.Errorf("middleware: route %q: %w", pattern, err))
		}
		if err := register(mux, pattern); err != nil {
			errs = append(errs, err)
		}
	}
	return mux, errors.Join(errs...)
}

// register adds pattern to mux. A ServeMux panics if it cannot.
func register(mux *http.ServeMux, pattern string) (err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("middleware: route %q: %v", pattern, problem)
		}
	}()
	mux.Handle(pattern, http.NotFoundHandler())
	return nil
}
