package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/gatehouse-go/gatehouse/session"
)

// Sessions loads the session that a request's cookie names and saves it just
// before the first byte of the response's final header, on whichever way that
// goes out. The handler finds it through Manager and the request's context.
//
// If it cannot be saved, nothing of the handler's response is sent: an error
// response takes its place, and the handler's writes fail. A session that cannot
// be loaded is answered with an error, too, and keeps its cookie; a request
// without a cookie is served in any case. A request whose client has gone is
// saved all the same. If the handler panics, a login is undone and the session is
// what it was after the handler's last Commit, unless the response had begun.
//
// The zero value is not usable: Manager is required.
//
// Who navigates (Sec-Fetch-Mode) to a page that asks the Manager's Ended why a session is over loses the
// cookie of that session, and is not told again.
//
// A response that sets the cookie has Cache-Control: no-store in place of the handler's, and no
// CDN-Cache-Control or Surrogate-Control; on others the handler's stand. Vary: Cookie (or Token) is added
// where the handler, or middleware, has looked at the session before the header is sent; a look that
// comes later is logged, since a shared cache may then show the response to others. The
// ResponseWriter that the handler gets has Flush and Hijack if the server's has, and never Push, which
// browsers have dropped.
//
// A handler of WebTransport gets the server's own ResponseWriter: the session is saved, and its
// cookie set, before the handler is called, whose changes are saved by Commit.
//
// Mount [http.TimeoutHandler] inside of Sessions. Outside, it answers without the cookie of a login that
// came in time: the browser is not logged in, and its visitor's session is gone.
//
// Sessions inside of Sessions need a Manager, a cookie and a Token of another name each, also without
// __Host- or __Secure- in front: other requests are answered with 500, and a line in the log says so.
//
// When a request carries several cookies of the name, the first that leads to a session
// counts. Another host of the same domain can make a browser send such cookies; the
// prefix __Host- of the default name prevents it.
type Sessions struct {
	Manager *session.Manager // required

	// Cookie is a template. Where it is zero, the cookie is called
	// __Host-session and has Path=/ and SameSite=Lax. It is always HttpOnly and
	// Secure. It lasts until the browser closes, or as long as the session after the
	// Manager's Remember. It is sent when the session has a new ID, and again when its life
	// has changed, not with each response.
	//
	// Path is where browsers send the cookie, and no protection: a page of another path can
	// have it sent.
	//
	// Over plain HTTP to localhost, where browsers refuse such cookies, it is not Secure and its
	// name has no __Host- or __Secure- in front, and Lax stands for SameSite=None; but for that it
	// is the same. Over plain HTTP to another host browsers drop it, and a line in the log says so.
	Cookie http.Cookie

	// OnError answers a request whose session could not be loaded or saved. The
	// error is an [*session.EncodeError] if a value cannot be stored. The
	// handler's header fields are gone. nil: a problem with status 500 for an
	// EncodeError, and 503 with Retry-After otherwise.
	OnError func(w http.ResponseWriter, r *http.Request, err error)

	// LegacyCookie names the cookie of the Manager's Legacy store. It is looked at if none
	// of ours leads to a session, and only for what can be a token of that store. It stays
	// until its session ends, so that old servers go on beside new ones. If both cookies
	// have one name, ours replaces it, and old servers do not know it.
	LegacyCookie string

	// Token names a header field, such as X-Session, for clients that keep no cookies: a request that has
	// it, be it empty, is answered with the field in place of the cookie, empty after a logout, and
	// its cookies are not looked at. Scripts can read the field: allow it to no other origin. "": none.
	Token string

	// SkipTouch says which requests are no use of the session, such as those that a page makes by itself
	// to see whether there is news: they keep no session from ending when that is idle. When that will be
	// is IdleExpires of the Manager's Info. nil: each is a use.
	SkipTouch func(*http.Request) bool

	// StripCookie has the handler get requests without the session's cookie, and without that of
	// LegacyCookie: for a gateway, whose backends are not to know it. Nor can they set it, or the
	// Token: what they send of these names is left out.
	StripCookie bool

	// Client labels who asks, such as "Firefox on Windows": the Manager's List shows it for the
	// sessions that logged in with it. See [session.Manager.Describe]. nil: nothing is stored.
	Client func(*http.Request) string

	// Logger gets sessions that cannot be loaded or saved, and changes that came after the
	// header was sent, which are lost. nil: slog.Default().
	Logger *slog.Logger
}

// Validate returns all that is wrong with s, or nil.
func (s Sessions) Validate() error {
	_, err := s.cookie()
	switch {
	case s.Manager == nil:
		err = errors.Join(errors.New("middleware: Sessions.Manager is nil"), err)
	case s.LegacyCookie != "" && !s.Manager.HasLegacy():
		err = errors.Join(err, errors.New("middleware: Sessions.LegacyCookie is set, but the Manager has no Legacy.Store"))
	}
	return err
}

// loader is a mounted Sessions.
type loader struct {
	Sessions
	cookie http.Cookie // the template, with its defaults
	local  http.Cookie // that over plain HTTP to localhost
	outage occasional
	plain  sync.Once // a cookie went out that is not Secure
	astray sync.Once // a cookie went out for another host
	clear  sync.Once // a cookie went out that is Secure, over plain HTTP
	bare   sync.Once // a session was looked at too late for Vary
}

// Handler returns a handler that calls next with the session. It panics with
// the error of Validate.
func (s Sessions) Handler(next http.Handler) http.Handler {
	if err := s.Validate(); err != nil {
		panic(err)
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	l := &loader{Sessions: s}
	l.cookie, _ = s.cookie() // checked by Validate
	l.Token = http.CanonicalHeaderKey(l.Token)
	l.local = localCookie(l.cookie)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.serve(w, r, next) })
}

func (l *loader) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if l.isWithin(w) {
		l.Logger.LogAttrs(r.Context(), slog.LevelError, "session: Sessions is mounted inside of Sessions with the same Manager, or a cookie or Token of the same name; request answered with an error",
			slog.String("cookie", l.cookie.Name), slog.String("route", route(r)))
		mountedTwice.ServeHTTP(w, r)
		return
	}
	ctx, err := l.load(r)
	if err != nil {
		l.fail(w, r, err)
		return
	}
	outside, token := r, l.byToken(r)
	r = r.WithContext(ctx)
	defer handBack(outside, r)
	if l.StripCookie {
		r.Header = l.stripped(r)
	}
	if l.SkipTouch != nil && l.SkipTouch(r) {
		l.Manager.SkipTouch(ctx)
	}
	if l.Client != nil {
		l.Manager.Describe(ctx, func() string { return l.Client(r) })
	}
	outer := fieldsOf(w.Header())
	hw := &headerWriter{ResponseWriter: w, of: l, hijacked: func() { l.Manager.KeepID(ctx) }}
	looked := false // before the header was sent
	hw.before = func(status int) error {
		if isSeen(r, status) {
			l.Manager.Told(ctx)
		}
		// Whether the client still listens does not matter to what it did.
		out, err := l.Manager.Finish(ctx)
		h := w.Header()
		if err != nil {
			outer.restore(h)
			l.apply(r, h, out, token)
			l.fail(w, r, err)
			return fmt.Errorf("middleware: response replaced, its session was not saved: %w", err)
		}
		if looked = l.Manager.Looked(ctx); looked || out.Action != session.CookieKeep {
			l.vary(h)
		}
		if l.StripCookie {
			l.stripAnswer(h)
		}
		l.apply(r, h, out, token)
		return nil
	}
	returned := false
	defer func() {
		if !returned && !hw.began { // the handler panics
			l.Manager.Abort(ctx)
			hw.before = nil // who recovers may answer through hw, and saves nothing
		}
	}()
	if !isWebTransport(r) {
		next.ServeHTTP(hw.wrap(), r)
	} else if l.Manager.KeepID(ctx); hw.begin(http.StatusOK) {
		next.ServeHTTP(w, r)
	}
	returned = true

	switch {
	case !hw.began:
		hw.begin(http.StatusOK)
	case hw.err != nil: // it was told
	case l.Manager.Pending(ctx):
		l.reportLate(r)
	case !looked && l.Manager.Looked(ctx):
		l.bare.Do(func() {
			l.Logger.LogAttrs(r.Context(), slog.LevelWarn, "session: looked at after the header was sent, which has no Vary: a shared cache may show the response to others",
				slog.String("method", r.Method), slog.String("route", route(r)))
		})
	}
	l.Manager.Returned(ctx)
}

// vary says what responses depend on.
func (l *loader) vary(h http.Header) {
	for _, name := range [...]string{"Cookie", l.Token} {
		if name != "" && !slices.Contains(h["Vary"], name) {
			h["Vary"] = append(h["Vary"], name)
		}
	}
}

// isWithin reports whether w is that of a Sessions with the same Manager, or with a cookie, as it is
// called somewhere, or a Token of the same name: one would have the other's session.
func (l *loader) isWithin(w http.ResponseWriter) bool {
	for layer := range layers(w) {
		outer, ok := layer.(interface{ loader() *loader })
		if !ok {
			continue
		}
		if o := outer.loader(); o != nil && (o.Manager == l.Manager || o.cookie.Name == l.cookie.Name || o.local.Name == l.local.Name || o.Token != "" && o.Token == l.Token) {
			return true
		}
	}
	return false
}

// isSeen reports whether a person sees the response: the page of a navigation that is neither
// fetched ahead nor sent on.
func isSeen(r *http.Request, status int) bool {
	m := r.Header["Sec-Fetch-Mode"]
	return len(m) == 1 && m[0] == "navigate" && len(r.Header["Sec-Purpose"]) == 0 && (status < 300 || status >= 400)
}

// isWebTransport reports whether r opens a WebTransport session over HTTP/3. Its Upgrade needs the
// server's own ResponseWriter, without a wrapper.
func isWebTransport(r *http.Request) bool {
	return r.Method == http.MethodConnect && strings.HasPrefix(r.Proto, "webtransport")
}

// load finds the session that the request's cookies name.
func (l *loader) load(r *http.Request) (context.Context, error) {
	var buf [maxNamed]string
	if l.byToken(r) {
		return l.Manager.Load(r.Context(), tokens(buf[:0], r.Header[l.Token])...)
	}
	cookies := cookiesNamed(buf[:0], r, l.cookieOf(r).Name)
	if l.LegacyCookie == "" {
		return l.Manager.Load(r.Context(), cookies...)
	}
	var old [maxNamed]string
	legacy := ""
	for _, v := range cookiesNamed(old[:0], r, l.LegacyCookie) {
		if len(v) == legacyTokenLen && !strings.ContainsAny(v, ".=") { // the first that can be one
			legacy = v
			break
		}
	}
	return l.Manager.LoadLegacy(r.Context(), legacy, cookies...)
}

// fail answers a request whose session could not be loaded or saved.
func (l *loader) fail(w http.ResponseWriter, r *http.Request, err error) {
	encode, isEncode := errors.AsType[*session.EncodeError](err)
	switch {
	case isEncode:
		l.Logger.LogAttrs(r.Context(), slog.LevelError, "session: a value cannot be stored, request answered with an error",
			slog.String("key", encode.Key), slog.String("method", r.Method), slog.String("route", route(r)))
	case errors.Is(err, context.Canceled):
		// The client hung up; nothing has failed.
	default:
		if skipped, now := l.outage.now(err); now {
			l.Logger.LogAttrs(r.Context(), slog.LevelError, "session: not loaded or not saved, request answered with an error",
				slog.Any("error", err), slog.String("method", r.Method), slog.String("route", route(r)),
				slog.Int64("lines_left_out", skipped))
		}
	}
	switch {
	case l.OnError != nil:
		l.OnError(w, r, err)
	case isEncode:
		notSaved.ServeHTTP(w, r)
	default:
		w.Header().Set("Retry-After", unavailableRetry)
		noSession.ServeHTTP(w, r)
	}
}

var (
	notSaved = problem{
		Status: http.StatusInternalServerError,
		Detail: "The session could not be saved.",
	}.ready()
	mountedTwice = problem{
		Status: http.StatusInternalServerError,
		Detail: "Sessions are mounted twice.",
	}.ready()
	noSession = problem{
		Status: http.StatusServiceUnavailable,
		Detail: "Sessions are not available at the moment.",
	}.ready()
)

func (l *loader) reportLate(r *http.Request) {
	l.Logger.LogAttrs(r.Context(), slog.LevelError, "session: changed after the header was sent, the change is lost",
		slog.String("method", r.Method), slog.String("route", route(r)))
}

// fields are the header fields that middleware further out has set. They
// survive when the handler's response is replaced: CORS fields, say, without
// which a script could not read the error.
type fields []field

type field struct {
	name   string
	values []string
}

func fieldsOf(h http.Header) fields {
	if len(h) == 0 {
		return nil
	}
	f := make(fields, 0, len(h))
	for name, values := range h {
		f = append(f, field{name, values})
	}
	return f
}

func (f fields) restore(h http.Header) {
	clear(h)
	for _, field := range f {
		h[field.name] = field.values
	}
}
