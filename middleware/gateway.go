package middleware

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Gateway returns next, which answers for another server as an [httputil.ReverseProxy] does, so
// that what middleware outside of it says to the client stays:
//
//   - The other server may limit requests, too. Its fields do not stand beside those of a
//     [RateLimit]: the client sees ours, or the other server's where that has refused the request
//     with 429. Retry-After goes with the status.
//   - A ReverseProxy clears the header after early hints (103) and other informational responses.
//     What was there before is in the response all the same.
//
// A connection that is hijacked, as a ReverseProxy does where the other server upgrades it, gets
// the other server's fields alone: they are added after that.
//
// Fields count as a limit's if they begin with RateLimit, X-RateLimit- or X-Rate-Limit-, or have
// the name that the Fields of a RateLimit gives them. Where no RateLimit has set any, the other
// server's reach the client.
func Gateway(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		outer := fieldsOf(w.Header())
		hw := &headerWriter{ResponseWriter: w}
		hw.before = func(status int) error {
			h := w.Header()
			for _, f := range outer {
				if hw.informed && !f.leads(h) { // it has been cleared
					h[f.name] = append(slices.Clip(f.values), h[f.name]...)
				}
			}
			outer.keepLimit(h, namesOfLimits(r), status)
			return nil
		}
		next.ServeHTTP(hw.wrap(), r)
		hw.begin(http.StatusOK)
	})
}

// leads reports whether h begins with f, whatever has been added.
func (f field) leads(h http.Header) bool {
	values := h[f.name]
	return len(values) >= len(f.values) && slices.Equal(values[:len(f.values)], f.values)
}

// keepLimit leaves of all fields of limits in h those of f, or those of the other server where
// that has refused the request or taken over the connection.
func (f fields) keepLimit(h http.Header, names []string, status int) {
	ours, theirs := make(http.Header), make(http.Header)
	for _, field := range f {
		if isOfLimit(field.name, names) && field.leads(h) {
			ours[field.name] = field.values
		}
	}
	if len(ours) == 0 {
		return
	}
	for name, values := range h {
		if isOfLimit(name, names) && len(values) > len(ours[name]) {
			theirs[name] = values[len(ours[name]):]
		}
	}
	keep := ours
	if status == http.StatusTooManyRequests && len(theirs) > 0 || status == http.StatusSwitchingProtocols {
		keep = theirs
	}
	maps.DeleteFunc(h, func(name string, _ []string) bool { return isOfLimit(name, names) })
	maps.Copy(h, keep)
}

func isOfLimit(name string, names []string) bool {
	return strings.HasPrefix(name, "Ratelimit") || strings.HasPrefix(name, "X-Ratelimit-") || strings.HasPrefix(name, "X-Rate-Limit-") ||
		slices.Contains(names, name)
}

// namesOfLimits are the names that the limits of a request give their fields.
func namesOfLimits(r *http.Request) []string {
	var names []string
	for t := takenOf(r); t != nil; t = t.up {
		n := t.by.Fields.Names
		names = append(names, n.Limit, n.Remaining, n.Reset)
	}
	return names
}
