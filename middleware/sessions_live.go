package middleware

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"github.com/gatehouse-go/gatehouse/session"
)

// Live has the context of a request end with its session, whichever server ends that, and at a
// shutdown. Mount it around what outlives an ordinary request, such as server-sent events and
// WebSockets, behind [Sessions] with the same Manager. What has hijacked its connection has to
// look at the context itself, and to close.
//
// The cause of the end is [session.ErrEnded] or [http.ErrServerClosed]; the Manager's Ended says
// why the session was ended. Whoever may not connect without a session is for [RequireUser] to
// refuse: Live serves them, and there is nothing to end. A stream counts as use of its session
// when it begins, and whenever it calls the Manager's Touch.
//
// If Redis cannot be asked the answer is a problem with status 503. The zero value is not usable:
// Manager is required.
type Live struct {
	Manager *session.Manager // required

	// Stop ends what is served when it is closed: [http.Server.Shutdown] waits for streams, and
	// knows nothing of hijacked connections. Ordinary requests do not notice. nil: nothing does.
	Stop <-chan struct{}

	// Logger gets requests that could not be served; nil: slog.Default().
	Logger *slog.Logger
}

// Validate returns what is wrong with l, or nil.
func (l Live) Validate() error {
	if l.Manager == nil {
		return errors.New("middleware: Live.Manager is nil")
	}
	return nil
}

// Handler returns a handler that calls next with a context that ends. It panics with the error
// of Validate.
func (l Live) Handler(next http.Handler) http.Handler {
	if err := l.Validate(); err != nil {
		panic(err)
	}
	if l.Logger == nil {
		l.Logger = slog.Default()
	}
	outage := new(occasional)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, end := context.WithCancelCause(r.Context())
		defer end(nil)
		if l.Stop != nil {
			done := make(chan struct{})
			defer close(done)
			go func() {
				select {
				case <-l.Stop:
					end(http.ErrServerClosed)
				case <-done:
				}
			}()
		}
		ctx, err := l.Manager.Watch(ctx)
		if err != nil {
			if skipped, now := outage.now(err); now && r.Context().Err() == nil {
				l.Logger.LogAttrs(r.Context(), slog.LevelError, "session: cannot be watched, request answered with an error",
					slog.Any("error", err), slog.String("route", route(r)), slog.Int64("lines_left_out", skipped))
			}
			w.Header().Set("Retry-After", unavailableRetry)
			noSession.ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
