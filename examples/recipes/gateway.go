package recipes

import (
	"net/http"
	"net/http/httputil"
	"net/url"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

func gateway(backend *url.URL, sessions *session.Manager, limit middleware.RateLimit) http.Handler {
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(backend)
		r.SetXForwarded()
		r.Out.Header.Set("X-User", sessions.UserID(r.In.Context())) // instead of the cookie
	}}
	return middleware.Sessions{Manager: sessions, StripCookie: true}.Handler(
		limit.Handler(middleware.Gateway(proxy)))
}

// mounted has everything in the order in which it works: what answers in place of others, and
// what counts requests, further out.
func mounted(sessions *session.Manager, limit middleware.RateLimit, recoverer, cors, compress func(http.Handler) http.Handler, mux http.Handler) http.Handler {
	h := mux
	h = http.NewCrossOriginProtection().Handler(h)
	h = limit.Handler(h)
	h = middleware.Sessions{Manager: sessions}.Handler(h)
	h = compress(h)
	h = cors(h) // answers preflights itself, and has its fields on our refusals, too
	return recoverer(h)
}

// perMessage counts the messages of a WebSocket with the limit that its handshake went through.
func perMessage(limit middleware.RateLimit, r *http.Request, receive func() ([]byte, error), handle func([]byte)) error {
	for {
		message, err := receive()
		if err != nil {
			return err
		}
		if d := limit.Check(r); !d.Passed {
			return &tooFast{d}
		}
		handle(message)
	}
}

type tooFast struct{ middleware.Decision }

func (e *tooFast) Error() string { return e.Result.String() }
