package stacktest

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/getsentry/sentry-go"
	sentryhttp "github.com/getsentry/sentry-go/http"
	chi "github.com/go-chi/chi/v5/middleware"
	gorillacsrf "github.com/gorilla/csrf"
	"github.com/justinas/nosurf"
	"github.com/klauspost/compress/gzhttp"
	"github.com/rs/cors"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

type around = func(http.Handler) http.Handler

// orders are the ways to mount a module and the kit.
var orders = []struct {
	name  string
	mount func(k *kit, module around, app http.Handler) http.Handler
}{
	{"alone", func(_ *kit, module around, app http.Handler) http.Handler { return module(app) }},
	{"kit outside", func(k *kit, module around, app http.Handler) http.Handler { return k.all(module(app)) }},
	{"kit inside", func(k *kit, module around, app http.Handler) http.Handler { return module(k.all(app)) }},
	{"between sessions and limits", func(k *kit, module around, app http.Handler) http.Handler {
		return k.withSessions(module(k.limits(app)))
	}},
}

// modules are what stands around the kit.
var modules = []struct {
	name string
	// new returns the module, and what it does to requests, told by a client.
	new  func(a *app) (module around, does func(s *site) string)
	want string
}{
	{"none", func(*app) (around, func(*site) string) {
		return func(h http.Handler) http.Handler { return h }, encoding
	}, "200, plain, 4400 bytes"},
	{"chi Compress", func(*app) (around, func(*site) string) {
		return chi.Compress(5), encoding
	}, "200, gzip, 4400 bytes"},
	{"gzhttp", func(*app) (around, func(*site) string) {
		return func(h http.Handler) http.Handler { return gzhttp.GzipHandler(h) }, encoding
	}, "200, gzip, 4400 bytes"},
	{"chi Timeout", func(*app) (around, func(*site) string) {
		return hasty(func(d time.Duration) around { return chi.Timeout(d) }), hang
	}, `504 ""`},
	{"http.TimeoutHandler", func(*app) (around, func(*site) string) {
		return hasty(func(d time.Duration) around {
			return func(h http.Handler) http.Handler { return http.TimeoutHandler(h, d, "too slow") }
		}), hang
	}, `503 "too slow"`},
	{"chi Recoverer", func(*app) (around, func(*site) string) {
		return recoverer, panics
	}, `500 ""`},
	{"otelhttp", func(*app) (around, func(*site) string) {
		recorder := tracetest.NewSpanRecorder()
		provider := otelhttp.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)))
		does := func(s *site) string {
			r := s.get("/items/7")
			var spans []string
			for _, span := range recorder.Ended() {
				line := span.Name()
				for _, a := range span.Attributes() {
					if a.Key == "http.response.status_code" || a.Key == "http.response.body.size" {
						line += fmt.Sprint(", ", a.Key, " ", a.Value.AsInt64())
					}
				}
				spans = append(spans, line)
			}
			return fmt.Sprintf("%d %s; %q", r.StatusCode, r.body, spans)
		}
		return otelhttp.NewMiddleware("site", provider), does
	}, `200 7; ["GET /items/{id}, http.response.body.size 1, http.response.status_code 200"]`},
	{"sentry", func(*app) (around, func(*site) string) {
		events := new(sentry.MockTransport)
		hub := sentry.NewHub(must(sentry.NewClient(sentry.ClientOptions{Dsn: "https://key@sentry.invalid/1", Transport: events})), sentry.NewScope())
		reports := sentryhttp.New(sentryhttp.Options{Repanic: true})
		module := func(h http.Handler) http.Handler {
			h = reports.Handle(h)
			return recoverer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h.ServeHTTP(w, r.WithContext(sentry.SetHubOnContext(r.Context(), hub.Clone())))
			}))
		}
		does := func(s *site) string {
			answer := panics(s)
			var told []string
			for _, e := range events.Events() {
				told = append(told, e.Message)
			}
			return fmt.Sprintf("%s; %q", answer, told)
		}
		return module, does
	}, `500 ""; ["at the disco"]`},
	{"nosurf", func(a *app) (around, func(*site) string) {
		a.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, nosurf.Token(r)) })
		return nosurf.NewPure, checks("X-CSRF-Token")
	}, `without a token 400, with one 200 "sent", of another site 400`},
	{"gorilla/csrf", func(a *app) (around, func(*site) string) {
		a.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, gorillacsrf.Token(r)) })
		return gorillacsrf.Protect(make([]byte, 32)), checks("X-CSRF-Token")
	}, `without a token 403, with one 200 "sent", of another site 403`},
	{"rs/cors", func(*app) (around, func(*site) string) {
		c := cors.New(cors.Options{AllowedOrigins: []string{origin}, AllowedMethods: []string{"GET", "PUT"}, AllowCredentials: true})
		return c.Handler, func(s *site) string {
			asked := s.do("OPTIONS", "/text", "", preflight())
			own := s.do("GET", "/text", "", http.Header{"Origin": {origin}})
			foreign := s.do("GET", "/text", "", http.Header{"Origin": {"https://b.example"}})
			return fmt.Sprintf("preflight %d %q %q, then %d %q %q, another origin %q", asked.StatusCode, allowed(asked), asked.Header["Access-Control-Allow-Methods"],
				own.StatusCode, allowed(own), own.Header["Access-Control-Allow-Credentials"], allowed(foreign))
		}
	}, `preflight 204 ["https://a.example"] ["PUT"], then 200 ["https://a.example"] ["true"], another origin []`},
}

// Each module does in front of the kit, behind it and within it what it does alone, and the kit
// keeps its promises.
func TestModulesAroundTheKit(t *testing.T) {
	for _, m := range modules {
		for _, order := range orders {
			for _, http2 := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/http2 %t", m.name, order.name, http2), func(t *testing.T) {
					t.Parallel()
					var k *kit
					if order.name != "alone" {
						k = newKit(t)
					}
					a := newApp(k)
					module, does := m.new(a)
					if got := does(serve(t, http2, order.mount(k, module, a))); got != m.want {
						t.Errorf("it does\n\t%s\nnot\n\t%s", got, m.want)
					}
					if k != nil {
						k = newKit(t)
						a := newApp(k)
						keeps(t, serve(t, http2, order.mount(k, module, a)), a)
					}
				})
			}
		}
	}
}

// encoding says how a text arrives.
func encoding(s *site) string {
	r := s.do("GET", "/text", "", http.Header{"Accept-Encoding": {"gzip"}})
	body, how := r.body, "plain"
	if r.Header.Get("Content-Encoding") == "gzip" {
		body, how = string(must(io.ReadAll(must(gzip.NewReader(strings.NewReader(body)))))), "gzip"
	}
	if body != text {
		return "another text"
	}
	return fmt.Sprintf("%d, %s, %d bytes", r.StatusCode, how, len(body))
}

// hasty returns a module with a timeout that only GET /hang meets.
func hasty(timeout func(time.Duration) around) around {
	return func(h http.Handler) http.Handler {
		short, long := timeout(time.Second)(h), timeout(time.Minute)(h)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hang" {
				short.ServeHTTP(w, r)
			} else {
				long.ServeHTTP(w, r)
			}
		})
	}
}

func hang(s *site) string { return answer(s.get("/hang")) }

func panics(s *site) string { return answer(s.get("/panic")) }

func answer(r reply) string { return fmt.Sprintf("%d %q", r.StatusCode, r.body) }

// recoverer is chi's, with a log that keeps nothing.
func recoverer(next http.Handler) http.Handler {
	h := chi.Recoverer(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, chi.WithLogEntry(r, noLog{})) })
}

type noLog struct{}

func (noLog) Write(int, int, http.Header, time.Duration, any) {}
func (noLog) Panic(any, []byte)                               {}

// checks says what becomes of forms where a module protects them.
func checks(field string) func(*site) string {
	return func(s *site) string {
		token := s.get("/token").body
		post := func(token, site string) reply {
			h := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Origin": {site}}
			if token != "" {
				h.Set(field, token)
			}
			return s.do("POST", "/form", url.Values{"a": {"sent"}}.Encode(), h)
		}
		return fmt.Sprintf("without a token %d, with one %s, of another site %d",
			post("", s.URL).StatusCode, answer(post(token, s.URL)), post(token, origin).StatusCode)
	}
}

const origin = "https://a.example"

func preflight() http.Header {
	return http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"PUT"}}
}

func allowed(r reply) []string { return r.Header.Values("Access-Control-Allow-Origin") }

// Preflights are requests to a limit that stands outside of CORS, unless it skips them. Scripts of
// another origin can read a 429 only where CORS stands outside. Inside it also replaces the names
// that Fields.Expose has added by its own.
func TestLimitsAndPreflights(t *testing.T) {
	skip := func(r *http.Request) bool {
		return r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != ""
	}
	const both = "X-Total, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After"
	for _, tc := range []struct {
		name     string
		outside  bool // the limit
		skip     func(*http.Request) bool
		counted  bool   // a preflight takes a permit
		used     int    // status of a preflight when the limit is used up
		exposed  string // the fields that scripts can read
		readable bool   // the 429 is
	}{
		{"limit outside", true, nil, true, 429, "X-Total", false},
		{"limit outside, skipping preflights", true, skip, false, 204, "X-Total", false},
		{"limit inside", false, nil, false, 204, both, true},
		{"limit inside, skipping preflights", false, skip, false, 204, both, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKit(t)
			k.limit.Skip = tc.skip
			k.limit.Fields.Expose = true
			module := cors.New(cors.Options{AllowedOrigins: []string{origin}, AllowedMethods: []string{"GET", "PUT"}, ExposedHeaders: []string{"X-Total"}}).Handler
			h := module(k.limit.Handler(newApp(k)))
			if tc.outside {
				h = k.limit.Handler(module(newApp(k)))
			}
			s := serve(t, true, h)
			ask := func() reply { return s.do("OPTIONS", "/text", "", preflight()) }
			get := func() reply { return s.do("GET", "/text", "", http.Header{"Origin": {origin}}) }

			asked := ask()
			if asked.StatusCode != 204 || len(allowed(asked)) != 1 {
				t.Errorf("a preflight: %s %v", asked.Status, asked.Header)
			}
			left := quota
			if tc.counted {
				left--
				figures(t, "a preflight", asked.Header, quota, left)
			} else if n := len(asked.Header.Values("X-RateLimit-Limit")); n > 0 {
				t.Errorf("a preflight: %v", asked.Header)
			}
			for left--; left >= 0; left-- {
				r := get()
				figures(t, "a request", r.Header, quota, left)
				if exposed := strings.Join(r.Header.Values("Access-Control-Expose-Headers"), ", "); exposed != tc.exposed || len(allowed(r)) != 1 {
					t.Fatalf("a request: %v", r.Header)
				}
			}
			over := get()
			refused(t, "the limit is used up", over)
			if readable := len(allowed(over)) == 1; readable != tc.readable {
				t.Errorf("the limit is used up: %v", over.Header)
			}
			if asked = ask(); asked.StatusCode != tc.used {
				t.Errorf("a preflight when the limit is used up: %s", asked.Status)
			}
		})
	}
}

// A panic undoes what the handler has put where it passes through Sessions. Where it is recovered
// inside, Sessions sees a handler that has answered 500, and saves.
func TestSessionsAndRecoverer(t *testing.T) {
	for _, tc := range []struct {
		name     string
		outside  bool
		recovers around
		next     string // what the next request counts to
	}{
		{"chi Recoverer outside", true, recoverer, "2"},
		{"chi Recoverer inside", false, recoverer, "101"},
		{"sentry and Recoverer outside", true, func(h http.Handler) http.Handler {
			return recoverer(sentryhttp.New(sentryhttp.Options{Repanic: true}).Handle(h))
		}, "2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKit(t)
			h := k.all(tc.recovers(newApp(k)))
			if tc.outside {
				h = tc.recovers(k.all(newApp(k)))
			}
			s := serve(t, true, h)
			s.get("/count").expect(t, 200, "1")
			failed := s.get("/panic")
			failed.expect(t, 500, "")
			figures(t, "a panic", failed.Header, quota, quota-2)
			s.get("/count").expect(t, 200, tc.next) // and the place is free again
		})
	}
}

// http.TimeoutHandler answers without what stands inside of it has set: outside of Sessions the
// cookie of a login that came in time is lost, and the visitor's session has gone with the login.
// Outside of RateLimit its answer has no figures.
func TestLoginBehindTimeoutHandler(t *testing.T) {
	for _, tc := range []struct {
		name    string
		outside bool
		cookies int
		figures bool
		next    string
	}{
		{"inside of Sessions", false, 1, true, `visit 2 of "ann"`},
		{"outside of Sessions", true, 0, false, `visit 1 of ""`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKit(t)
			mux := http.NewServeMux()
			mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
				if err := k.sessions.Login(context.WithoutCancel(r.Context()), "ann"); err != nil {
					t.Error(err)
				}
				<-r.Context().Done()
			})
			mux.HandleFunc("GET /visit", func(w http.ResponseWriter, r *http.Request) {
				n := k.sessions.GetInt(r.Context(), "n") + 1
				k.sessions.Put(r.Context(), "n", n)
				fmt.Fprintf(w, "visit %d of %q", n, k.sessions.UserID(r.Context()))
			})
			done := make(chan bool, 2)
			told := func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					h.ServeHTTP(w, r)
					done <- true
				})
			}
			timeout := func(h http.Handler) http.Handler {
				slow := http.TimeoutHandler(h, time.Second, "too slow")
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodPost {
						slow.ServeHTTP(w, r)
					} else {
						h.ServeHTTP(w, r)
					}
				})
			}
			h := k.withSessions(k.limit.Handler(timeout(told(mux))))
			if tc.outside {
				h = timeout(told(k.withSessions(k.limit.Handler(mux))))
			}
			s := serve(t, true, h)
			s.get("/visit").expect(t, 200, `visit 1 of ""`)
			<-done
			slow := s.do("POST", "/login", "", nil)
			slow.expect(t, 503, "too slow")
			<-done
			if n := sets(slow.Response, "__Host-session"); n != tc.cookies {
				t.Errorf("%d cookies", n)
			}
			if tc.figures {
				figures(t, "too slow", slow.Header, quota, quota-2)
			} else if got := slow.Header.Values("X-RateLimit-Limit"); len(got) > 0 {
				t.Errorf("figures %q", got)
			}
			s.get("/visit").expect(t, 200, tc.next)
		})
	}
}
