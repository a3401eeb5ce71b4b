package stacktest

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/session"
)

// echoSite shows how sessions and limits are mounted in echo: echo.WrapMiddleware takes them, for
// all routes or for one. What recovers from panics stands in front.
func echoSite(sessions *session.Manager, limit middleware.RateLimit) *echo.Echo {
	const visits session.Key[int] = "n"
	e := echo.New()
	e.Use(echomiddleware.Recover())
	e.Use(echo.WrapMiddleware(middleware.Sessions{Manager: sessions}.Handler))
	limited := echo.WrapMiddleware(limit.Handler)

	e.GET("/count", func(c echo.Context) error {
		ctx := c.Request().Context() // has the session
		n := visits.Get(ctx, sessions) + 1
		visits.Put(ctx, sessions, n)
		return c.String(http.StatusOK, fmt.Sprint(n))
	}, limited)
	e.POST("/login", func(c echo.Context) error {
		if c.FormValue("password") != "secret" {
			return echo.NewHTTPError(http.StatusUnauthorized, "wrong password")
		}
		middleware.Succeeded(c.Request()) // for a limit with FailuresOnly
		return sessions.Login(c.Request().Context(), "ann")
	}, limited)
	return e
}

// What echo does with errors and panics it does around the kit, too.
func TestEchoSite(t *testing.T) {
	k := newKit(t)
	k.limit.FailuresOnly = true
	e := echoSite(k.sessions, k.limit)
	e.GET("/user", func(c echo.Context) error { return c.String(200, k.sessions.UserID(c.Request().Context())) })
	s := serve(t, true, e)
	login := func(password string) reply { return s.do("POST", "/login?password="+password, "", nil) }

	first := s.get("/count")
	first.expect(t, 200, "1")
	figures(t, "the first request", first.Header, quota, quota-1)
	if n := sets(first.Response, "__Host-session"); n != 1 || first.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("a new session: %d cookies, %v", n, first.Header)
	}
	wrong := login("guess")
	wrong.expect(t, 401, `{"message":"wrong password"}`+"\n")
	figures(t, "a wrong password", wrong.Header, quota, quota-2)
	right := login("secret")
	right.expect(t, 200, "")
	if n := sets(right.Response, "__Host-session"); n != 1 {
		t.Errorf("a login: %d cookies", n)
	}
	figures(t, "the right password", right.Header, quota, quota-3)
	s.get("/user").expect(t, 200, "ann")
	for left := quota - 3; left >= 0; left-- { // the login was given back
		r := s.get("/count")
		r.expect(t, 200, fmt.Sprint(quota-1-left))
		figures(t, "another request", r.Header, quota, left)
	}
	last := login("secret")
	refused(t, "the limit is used up", last)
	figures(t, "the limit is used up", last.Header, quota, 0)
	s.get("/user").expect(t, 200, "ann")
}

// A handler that panics leaves its session as it was. echo's Recover, which stands in front,
// answers through the ResponseWriter of the innermost WrapMiddleware.
func TestEchoPanic(t *testing.T) {
	k := newKit(t)
	e := echoSite(k.sessions, k.limit)
	e.Logger.SetOutput(io.Discard)
	e.GET("/user", func(c echo.Context) error { return c.String(200, k.sessions.UserID(c.Request().Context())) })
	e.GET("/panic", func(c echo.Context) error {
		k.sessions.Put(c.Request().Context(), "n", 100)
		if err := k.sessions.Login(c.Request().Context(), c.QueryParam("user")); err != nil && c.QueryParam("user") != "" {
			t.Error(err)
		}
		panic("at the disco")
	})
	for _, user := range []string{"", "ann"} {
		t.Run("login "+user, func(t *testing.T) {
			s := serve(t, true, e)
			s.get("/count").expect(t, 200, "1")
			failed := s.get("/panic?user=" + user)
			failed.expect(t, 500, `{"message":"Internal Server Error"}`+"\n")
			if n := len(failed.Cookies()); n > 0 {
				t.Errorf("a panic sets %d cookies", n)
			}
			s.get("/user").expect(t, 200, "")
			s.get("/count").expect(t, 200, "2")
		})
	}
}

// The kit keeps its promises around an echo, as echo's middleware, and in a handler of echo's.
func TestEchoAndTheKit(t *testing.T) {
	for _, tc := range []struct {
		name  string
		mount func(e *echo.Echo, k *kit, app http.Handler) http.Handler
	}{
		{"kit around echo", func(e *echo.Echo, k *kit, app http.Handler) http.Handler {
			e.Any("/*", echo.WrapHandler(app))
			return k.all(e)
		}},
		{"WrapMiddleware", func(e *echo.Echo, k *kit, app http.Handler) http.Handler {
			e.Use(echo.WrapMiddleware(k.all))
			e.Any("/*", echo.WrapHandler(app))
			return e
		}},
		{"WrapMiddleware, one by one", func(e *echo.Echo, k *kit, app http.Handler) http.Handler {
			e.Use(echo.WrapMiddleware(k.withSessions), echomiddleware.Gzip(), echo.WrapMiddleware(k.limits))
			e.Any("/*", echo.WrapHandler(app))
			return e
		}},
		{"WrapHandler", func(e *echo.Echo, k *kit, app http.Handler) http.Handler {
			e.Any("/*", echo.WrapHandler(k.all(app)))
			return e
		}},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/http2 %t", tc.name, http2), func(t *testing.T) {
				k := newKit(t)
				a := newApp(k)
				keeps(t, serve(t, http2, tc.mount(echo.New(), k, a)), a)
			})
		}
	}
}
