package middleware

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
)

// Routes is a table of limits by [http.ServeMux] pattern. It works in front of
// any router: it matches the request itself and leaves routing to next. The
// most specific pattern wins, as in a ServeMux; what no pattern matches passes, and so does
// what a more specific pattern with the zero RateLimit matches: it is free.
//
// Routers differ in what they take a path for. A request is counted by each pattern that one
// of the usual readings leads to: as it is, with its escapes undone, without empty and dot
// segments, or with these as what a wildcard stands for, without a slash at its end; its host in
// small letters and without a final dot. What overrides methods belongs outside of it.
// Another case of a path needs a pattern of its own, where the router behind takes it. The
// empty table limits nothing.
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
	limited := make(map[string]*mounted, len(t))
	for pattern, limit := range t {
		if limit.free() {
			continue
		}
		m := limit.mount()
		for _, other := range limited {
			if isSame(m, other) {
				m.waiting = other.waiting
			}
		}
		limited[pattern] = m
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := next
		for pattern := range matches(mux, r) {
			if m := limited[pattern]; m != nil {
				h = under(m, pattern, h)
			}
		}
		h.ServeHTTP(w, r)
	})
}

// under is next behind a limit that was found by a pattern, which the limit's functions see.
func under(m *mounted, pattern string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside := r.WithContext(r.Context()) // a copy, to set the pattern of
		inside.Pattern = pattern
		m.serve(w, inside, http.HandlerFunc(func(w http.ResponseWriter, limited *http.Request) {
			limited.Pattern = r.Pattern
			defer handBack(r, limited)
			next.ServeHTTP(w, limited)
		}))
	})
}

// matches yields the patterns that the readings of a request lead to, each once.
func matches(mux *http.ServeMux, r *http.Request) iter.Seq[string] {
	return func(yield func(string) bool) {
		// The handler that the mux returns is not called: it may be a redirect.
		_, first := mux.Handler(r)
		if !yield(first) || isPlainRequest(r) {
			return
		}
		seen := []string{first}
		host, methods := plainHost(r.Host), []string{r.Method}
		if r.Method == http.MethodConnect { // of which a ServeMux leaves port and path as they are
			host, _ = splitPort(host)
			methods = append(methods, "ANY")
		}
		for _, path := range readings(r.URL) {
			for _, method := range methods {
				read := &http.Request{Method: method, Host: host, URL: &url.URL{Path: path}}
				if _, pattern := mux.Handler(read); !slices.Contains(seen, pattern) {
					if seen = append(seen, pattern); !yield(pattern) {
						return
					}
				}
			}
		}
	}
}

// isPlainRequest reports whether the readings of a request are all the same.
func isPlainRequest(r *http.Request) bool {
	path := r.URL.Path
	return r.Method != http.MethodConnect && r.URL.RawPath == "" && r.Host == plainHost(r.Host) && strings.HasPrefix(path, "/") &&
		!strings.Contains(path, "%") && !strings.Contains(path, "//") && !strings.Contains(path, "/.") &&
		(path == "/" || !strings.HasSuffix(path, "/"))
}

// readings are the paths that routers may take the path of a URL for.
func readings(u *url.URL) (all []string) {
	add := func(p string) {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	p := u.Path   // unescaped once
	for range 4 { // an escape of an escape of an escape
		clean := path.Clean("/" + p)
		add(p)
		add(clean)
		if strings.HasSuffix(p, "/") && clean != "/" {
			add(clean + "/")
		}
		unescaped, err := url.PathUnescape(p)
		if err != nil || unescaped == p {
			break
		}
		p = unescaped
	}
	add(u.EscapedPath())
	add(path.Clean("/" + u.EscapedPath()))
	for _, p := range all {
		single := p
		for strings.Contains(single, "//") {
			single = strings.ReplaceAll(single, "//", "/")
		}
		for _, p := range [...]string{p, single} {
			add(fill(p))
			add(fill(strings.TrimRight(p, "/")))
		}
	}
	return all
}

// fill returns a path in which something stands in each segment that a ServeMux cleans away or takes
// for an end. The wildcards of other routers take such a segment for any other.
func fill(p string) string {
	segments := strings.Split(p, "/")
	for i, s := range segments {
		if unescaped, err := url.PathUnescape(s); i > 0 && err == nil && path.Clean("/"+unescaped) == "/" {
			segments[i] = "\x00"
		}
	}
	return strings.Join(segments, "/")
}

// plainHost is a host in small letters, without a final dot.
func plainHost(host string) string {
	name, port := splitPort(host)
	return strings.ToLower(strings.TrimSuffix(name, ".")) + port
}

// splitPort returns the parts of a Host, the port with its colon.
func splitPort(host string) (name, port string) {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		return host[:i], host[i:]
	}
	return host, ""
}

// mux returns a mux with the patterns of the table.
func (t Routes) mux() (*http.ServeMux, error) {
	var errs []error
	mux := http.NewServeMux()
	for _, pattern := range slices.Sorted(maps.Keys(t)) {
		if limit := t[pattern]; limit.free() {
			// nothing to check
		} else if err := limit.Validate(); err != nil {
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
