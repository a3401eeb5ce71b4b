// Package console is a page for those who run a service: why somebody is limited, and how to lift
// it; the sessions of a user, and how to end them. It asks the fleet's own Redis, so that one server that
// mounts it is enough:
//
//	mux.Handle("/ops/", http.StripPrefix("/ops", console.Console{
//		Authorize: func(r *http.Request) (string, console.Access) { … },
//		Limiters:  []ratelimit.Limiter{api, login},
//		Rules:     rules,
//		Sessions:  sessions,
//	}.Handler()))
//
// Each page is JSON for a client whose Accept names application/json and not text/html.
package console

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// Access is what somebody may do.
type Access uint8

const (
	None  Access = iota // nothing: the answer is 403
	Read                // look
	Write               // look and change
)

// Console is the page. The zero value is not usable: Authorize is required, and one of Limiters and
// Sessions.
type Console struct {
	// Authorize says who asks, and what they may do; required. The actor stands in what is
	// kept of each change; without one there is no access. It is asked on each request, before
	// anything else.
	Authorize func(*http.Request) (actor string, access Access)

	// Limiters are those that can be asked about. Each has a name of its own; those of an All are
	// given one by one. What plan a key has (With, LimiterFor) is known of those that are among the
	// Denials; others are explained by the limiter's own limit.
	Limiters []ratelimit.Limiter
	// Rules are those of the Limiters. nil: limits cannot be changed, and what is freed leaves
	// no trace.
	Rules *ratelimit.Rules
	// Denials shows who is denied most, and lately. nil: that is not known.
	Denials *Denials
	// Sessions are those of the service; nil: there are none. With Events what happened to
	// an account is shown, and who has ended its sessions.
	Sessions *session.Manager
	// Redis are the clients of all of them, whose servers the page of the state shows; nil: it
	// shows none.
	Redis []redis.UniversalClient

	// Logger gets what goes wrong. nil: slog.Default().
	Logger *slog.Logger
}

// Validate returns all that is wrong with c, or nil.
func (c Console) Validate() error {
	var errs []error
	if c.Authorize == nil {
		errs = append(errs, errors.New("console: Authorize is nil"))
	}
	if len(c.Limiters) == 0 && c.Sessions == nil {
		errs = append(errs, errors.New("console: there are neither Limiters nor Sessions"))
	}
	known := map[string]bool{}
	for i, l := range c.Limiters {
		named, ok := l.(ratelimit.Named)
		_, resets := l.(ratelimit.Resetter)
		switch {
		case !ok || !resets:
			errs = append(errs, fmt.Errorf("console: Limiters[%d], a %T, has no name and limit of its own, or does not reset", i, l))
		case known[named.Name()]:
			errs = append(errs, fmt.Errorf("console: two Limiters are named %q", named.Name()))
		default:
			known[named.Name()] = true
		}
	}
	return errors.Join(errs...)
}

//go:embed *.html style.css
var files embed.FS

var (
	style, _ = files.ReadFile("style.css") // of an embedded file it cannot fail
	pages    = template.Must(template.New("").Funcs(template.FuncMap{
		"at": at, "span": span, "ago": func(t time.Time) string { return span(time.Since(t)) + " ago" },
	}).ParseFS(files, "*.html"))
)

// Handler returns the handler of all pages. It is to be mounted so that paths below it begin with
// a slash, as [http.StripPrefix] leaves them. It panics with the error of Validate.
//
// What changes something is a POST, refused from other sites by [http.CrossOriginProtection].
func (c Console) Handler() http.Handler {
	if err := c.Validate(); err != nil {
		panic(err)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", c.page("overview.html", c.overview))
	mux.HandleFunc("GET /style.css", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/css; charset=utf-8")
		w.Header().Set("Cache-Control", "private, max-age=300")
		_, _ = w.Write(style)
	})
	mux.HandleFunc("GET /state", c.page("state.html", c.state))
	if len(c.Limiters) > 0 {
		mux.HandleFunc("GET /explain", c.page("explain.html", c.explain))
		mux.HandleFunc("POST /reset", c.change(c.reset))
	}
	if c.Rules != nil {
		mux.HandleFunc("POST /rule", c.change(c.setRule))
		mux.HandleFunc("POST /unrule", c.change(c.removeRule))
	}
	if c.Sessions != nil {
		mux.HandleFunc("GET /user", c.page("user.html", c.user))
		mux.HandleFunc("POST /end", c.change(c.end))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, noPage)
	})
	return c.authorized(http.NewCrossOriginProtection().Handler(mux))
}

// visitor is who asks.
type visitor struct {
	Actor  string
	Access Access
}

type visitorKey struct{}

func visitorOf(r *http.Request) visitor {
	v, _ := r.Context().Value(visitorKey{}).(visitor)
	return v
}

// MayWrite is for pages.
func (v visitor) MayWrite() bool { return v.Access == Write }

// authorized asks Authorize, and sets what holds for all responses.
func (c Console) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin") // with less, browsers send a form over plain HTTP with the Origin null
		h.Set("Vary", "Accept, Cookie, Authorization")
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10) // also of those who may nothing
		actor, access := c.Authorize(r)
		if actor == "" || access != Read && access != Write {
			c.fail(w, r, failure{http.StatusForbidden, "You may not see this."})
			return
		}
		r = r.WithContext(contextWith(r, visitor{actor, access}))
		if p := r.URL.Path; p != path.Clean(p) { // a ServeMux leads to a path that StripPrefix is not undone in
			c.fail(w, r, noPage)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// failure is an error that is shown as it is.
type failure struct {
	status int
	text   string
}

func (f failure) Error() string { return f.text }

var noPage = failure{http.StatusNotFound, "There is no such page."}

// page shows what view returns.
func (c Console) page(name string, view func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		data, err := view(r)
		if err != nil {
			c.fail(w, r, err)
			return
		}
		c.show(w, r, http.StatusOK, name, data)
	}
}

// change makes a change, and leads to the page that shows it.
func (c Console) change(do func(*http.Request) (page string, err error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if visitorOf(r).Access != Write {
			c.fail(w, r, failure{http.StatusForbidden, "You may look, and change nothing."})
			return
		}
		if err := r.ParseForm(); err != nil {
			c.fail(w, r, failure{http.StatusBadRequest, "The form cannot be read."})
			return
		}
		r.Form = r.PostForm // nothing of a change is taken from where access logs have it
		page, err := do(r)
		switch {
		case err != nil:
			c.fail(w, r, err)
		case wantsJSON(r):
			writeJSON(w, http.StatusOK, map[string]bool{"done": true})
		default:
			w.Header().Set("Location", page) // not by http.Redirect, which knows nothing of StripPrefix
			w.WriteHeader(http.StatusSeeOther)
		}
	}
}

// fail answers with what went wrong: as it is if it is about the request, and in the log otherwise.
func (c Console) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := failure{http.StatusServiceUnavailable, "Redis did not answer, or the process that asked it was too slow. What was asked for may have been done all the same."}
	switch {
	case errors.As(err, &f):
	case errors.Is(err, ratelimit.ErrRule):
		f = failure{http.StatusBadRequest, err.Error()}
	case errors.Is(err, session.ErrUnknownHandle):
		f = failure{http.StatusNotFound, "There is no such session any more."}
	default:
		c.Logger.LogAttrs(r.Context(), slog.LevelError, "console: a page could not be shown", slog.Any("error", err))
	}
	if wantsJSON(r) {
		writeJSON(w, f.status, map[string]string{"error": f.text})
		return
	}
	c.show(w, r, f.status, "failure.html", f.text)
}

// view is what each page is given.
type view struct {
	visitor
	Limits bool // there are limiters
	Search search
	Data   any
}

// search is the forms that lead to a key and to a user.
type search struct {
	Limits, Users      bool
	Names              []string // of limiters
	Limiter, Key, User string   // as asked for
}

func (c Console) show(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	if wantsJSON(r) {
		writeJSON(w, status, data)
		return
	}
	var b strings.Builder
	v := view{visitorOf(r), len(c.Limiters) > 0, search{
		Limits: len(c.Limiters) > 0, Users: c.Sessions != nil, Limiter: r.FormValue("limiter"), Key: r.FormValue("key"), User: r.FormValue("user"),
	}, data}
	for _, l := range c.Limiters {
		v.Search.Names = append(v.Search.Names, l.(ratelimit.Named).Name())
	}
	if err := pages.ExecuteTemplate(&b, name, v); err != nil {
		c.Logger.LogAttrs(r.Context(), slog.LevelError, "console: a page could not be made", slog.Any("error", err))
		http.Error(w, "The page could not be made.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(b.String()))
}

func writeJSON(w http.ResponseWriter, status int, data any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(data) // the client is gone
}

// wantsJSON reports whether Accept names JSON, and no page.
func wantsJSON(r *http.Request) bool {
	asked := false
	for _, part := range strings.Split(strings.Join(r.Header.Values("Accept"), ","), ",") {
		switch t, params, _ := mime.ParseMediaType(part); {
		case refused(params["q"]):
		case t == "application/json":
			asked = true
		case t == "text/html":
			return false
		}
	}
	return asked
}

// refused reports whether a q of an Accept says that its type is not wanted.
func refused(q string) bool {
	wanted, err := strconv.ParseFloat(q, 64)
	return err == nil && wanted == 0
}

// at is how times are shown.
func at(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format("2 Jan 2006 15:04:05 UTC")
}

// span is how durations are shown, in the unit that counts.
func span(d time.Duration) string {
	switch {
	case d == ratelimit.Never:
		return "never"
	case d >= 48*time.Hour:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= time.Hour:
		d = d.Round(time.Minute)
	case d >= time.Minute:
		d = d.Round(time.Second)
	case d >= 10*time.Second:
		d = d.Round(time.Second)
	default:
		d = d.Round(10 * time.Millisecond)
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	return strings.TrimSuffix(s, "0m")
}
