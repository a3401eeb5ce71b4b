package ginadapter_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/coder/websocket"
	"github.com/gin-gonic/gin"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/spelling"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/ginadapter"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestMain(m *testing.M) {
	gin.SetMode(gin.TestMode)
	os.Exit(m.Run())
}

const cookieName = "__Host-session"

func newManager(t *testing.T) (*session.Manager, *miniredis.Miniredis) {
	mini := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	t.Cleanup(func() { client.Close() })
	m, err := session.New(client, session.Config{Timeout: time.Minute}) // patience for loaded machines
	if err != nil {
		t.Fatal(err)
	}
	return m, mini
}

// site is a real server over TLS and a client of it with a cookie jar.
type site struct {
	*httptest.Server
	t      *testing.T
	client *http.Client
}

func serve(t *testing.T, h http.Handler, http2 bool) *site {
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = http2
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	client := srv.Client()
	client.Jar, _ = cookiejar.New(nil)
	return &site{srv, t, client}
}

func (s *site) do(method, path string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.URL+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Error(err)
	}
	return res, string(body)
}

func setsCookie(res *http.Response) (n int) {
	for _, c := range res.Cookies() {
		if c.Name == cookieName {
			n++
		}
	}
	return n
}

// Whichever way gin's handlers answer, the session is saved first.
func TestSessionsSaveBeforeHeader(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.txt")
	if err := os.WriteFile(file, []byte("a page"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		method string
		send   gin.HandlerFunc
		status int
		body   string
	}{
		{name: "nothing", status: 200, send: func(*gin.Context) {}},
		{name: "JSON", status: 201, body: `{"a":1}`, send: func(c *gin.Context) { c.JSON(201, gin.H{"a": 1}) }},
		{name: "String", status: 200, body: "hello 1", send: func(c *gin.Context) { c.String(200, "hello %d", 1) }},
		{name: "Data", status: 200, body: "data", send: func(c *gin.Context) { c.Data(200, "text/plain", []byte("data")) }},
		{name: "Status", status: 204, send: func(c *gin.Context) { c.Status(204) }},
		{name: "Status 404", status: 404, send: func(c *gin.Context) { c.Status(404) }},
		{name: "AbortWithStatus", status: 403, send: func(c *gin.Context) { c.AbortWithStatus(403) }},
		{name: "AbortWithStatusJSON", status: 409, body: `{"a":1}`, send: func(c *gin.Context) { c.AbortWithStatusJSON(409, gin.H{"a": 1}) }},
		{name: "304", status: 304, send: func(c *gin.Context) { c.Status(304) }},
		{name: "HEAD", method: "HEAD", status: 200, send: func(c *gin.Context) { c.String(200, "hello") }},
		{name: "Stream", status: 200, body: "012", send: func(c *gin.Context) {
			n := 0
			c.Stream(func(w io.Writer) bool {
				fmt.Fprint(w, n)
				n++
				return n < 3
			})
		}},
		{name: "SSEvent", status: 200, body: "event:tick\ndata:1\n\n", send: func(c *gin.Context) { c.SSEvent("tick", 1) }},
		{name: "File", status: 200, body: "a page", send: func(c *gin.Context) { c.File(file) }},
		{name: "Flush", status: 202, body: "hello", send: func(c *gin.Context) {
			c.Status(202)
			c.Writer.Flush()
			c.Writer.WriteString("hello")
		}},
		{name: "ResponseController", status: 200, body: "hello", send: func(c *gin.Context) {
			if err := http.NewResponseController(c.Writer).Flush(); err != nil {
				panic(err)
			}
			io.WriteString(c.Writer, "hello")
		}},
		{name: "WriteHeaderNow", status: 418, body: "tea", send: func(c *gin.Context) {
			c.Writer.WriteHeader(http.StatusTeapot)
			c.Writer.WriteHeaderNow()
			c.Writer.Write([]byte("tea"))
		}},
		{name: "Redirect", status: 302, body: "", send: func(c *gin.Context) { c.Redirect(302, "/there") }},
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(tc.name+" "+proto, func(t *testing.T) {
				m, _ := newManager(t)
				var written bool
				var status, size int
				r := gin.New()
				r.Use(func(c *gin.Context) { // as gin.Logger
					c.Next()
					written, status, size = c.Writer.Written(), c.Writer.Status(), c.Writer.Size()
				})
				g := r.Group("/", ginadapter.Wrap(middleware.Sessions{Manager: m}))
				method := "GET"
				if tc.method != "" {
					method = tc.method
				}
				g.Handle(method, "/put", func(c *gin.Context) {
					m.Put(c.Request.Context(), "k", "kept")
					tc.send(c)
				})
				g.GET("/get", func(c *gin.Context) { c.String(200, m.GetString(c.Request.Context(), "k")) })
				s := serve(t, r, proto == "HTTP/2.0")
				s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

				res, body := s.do(method, "/put")
				if res.Proto != proto || res.StatusCode != tc.status || tc.name != "Redirect" && body != tc.body {
					t.Errorf("%s %s %q, want %d %q", res.Proto, res.Status, body, tc.status, tc.body)
				}
				if n := setsCookie(res); n != 1 {
					t.Errorf("%d cookies, want 1", n)
				}
				if status != tc.status {
					t.Errorf("Status is %d, want %d", status, tc.status)
				}
				if want := tc.body != ""; want && (!written || size != len(tc.body)) {
					t.Errorf("Written %v, Size %d; want %d", written, size, len(tc.body))
				}
				if _, body := s.do("GET", "/get"); body != "kept" {
					t.Errorf("the next request sees %q", body)
				}
			})
		}
	}
}

// While a handler runs, its writer tells what is so far.
func TestWriterTellsTheTruth(t *testing.T) {
	m, _ := newManager(t)
	r := gin.New()
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: m}))
	r.GET("/", func(c *gin.Context) {
		check := func(when string, status, size int, written bool) {
			t.Helper()
			if w := c.Writer; w.Status() != status || w.Size() != size || w.Written() != written {
				t.Errorf("%s: status %d, size %d, written %v; want %d, %d, %v",
					when, w.Status(), w.Size(), w.Written(), status, size, written)
			}
		}
		check("at first", 200, -1, false)
		c.Status(201)
		check("with a status", 201, -1, false)
		c.Status(202)
		c.Writer.WriteHeaderNow()
		check("with a header", 202, 0, true)
		c.Status(500)
		check("with a late status", 202, 0, true)
		c.Writer.WriteString("12345")
		check("with a body", 202, 5, true)
		c.Writer.Write([]byte("67"))
		check("with more", 202, 7, true)
	})
	s := serve(t, r, false)
	if res, body := s.do("GET", "/"); res.StatusCode != 202 || body != "1234567" {
		t.Errorf("%s %q", res.Status, body)
	}
}

func TestSessionsCommitFails(t *testing.T) {
	m, mini := newManager(t)
	var status int
	r := gin.New()
	r.Use(func(c *gin.Context) {
		c.Next()
		mini.SetError("")
		status = c.Writer.Status()
	})
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: m}))
	for path, send := range map[string]gin.HandlerFunc{
		"/json":   func(c *gin.Context) { c.JSON(200, gin.H{"page": "SECRET"}) },
		"/status": func(c *gin.Context) { c.Status(204) },
		"/stream": func(c *gin.Context) {
			c.Stream(func(w io.Writer) bool { io.WriteString(w, "SECRET"); return false })
		},
		"/nothing": func(c *gin.Context) {},
	} {
		r.GET(path, func(c *gin.Context) {
			m.Put(c.Request.Context(), "k", "lost")
			mini.SetError("ERR broken")
			c.Header("ETag", "secret")
			send(c)
		})
	}
	s := serve(t, r, false)
	for _, path := range []string{"/json", "/status", "/stream", "/nothing"} {
		res, body := s.do("GET", path)
		if res.StatusCode != 503 || strings.Contains(body, "SECRET") || res.Header.Get("ETag") != "" || setsCookie(res) != 0 || status != 503 {
			t.Errorf("%s: %s %v %q, Status %d", path, res.Status, res.Header, body, status)
		}
	}
}

// A panic passes through Sessions to gin.Recovery, whose 500 is not taken for
// the handler's response.
func TestPanic(t *testing.T) {
	m, _ := newManager(t)
	r := gin.New()
	r.Use(gin.CustomRecoveryWithWriter(io.Discard, func(c *gin.Context, _ any) { c.AbortWithStatus(500) }))
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: m}))
	r.GET("/put", func(c *gin.Context) { m.Put(c.Request.Context(), "k", "before") })
	r.GET("/panic", func(c *gin.Context) {
		m.Put(c.Request.Context(), "k", "after")
		panic("oops")
	})
	r.GET("/login", func(c *gin.Context) {
		if err := m.Login(c.Request.Context(), "ann"); err != nil {
			t.Error(err)
		}
		m.Put(c.Request.Context(), "k", "after")
		panic("oops")
	})
	r.GET("/get", func(c *gin.Context) {
		c.String(200, m.UserID(c.Request.Context())+m.GetString(c.Request.Context(), "k"))
	})
	s := serve(t, r, false)
	s.do("GET", "/put")
	for _, path := range []string{"/panic", "/login"} {
		if res, _ := s.do("GET", path); res.StatusCode != 500 || setsCookie(res) != 0 {
			t.Errorf("%s: %s %v", path, res.Status, res.Header)
		}
		if _, body := s.do("GET", "/get"); body != "before" {
			t.Errorf("%s: the session has %q", path, body)
		}
	}
}

func local(t *testing.T, name string, limit int) ratelimit.Limiter {
	l, err := ratelimit.NewLocal(name, ratelimit.PerHour(limit), ratelimit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Several of ours in one group; what one refuses, the rest of the chain does
// not see.
func TestGroup(t *testing.T) {
	m, _ := newManager(t)
	calls := 0
	r := gin.New()
	r.GET("/login", ginadapter.Wrap(middleware.Sessions{Manager: m}), func(c *gin.Context) { m.Login(c.Request.Context(), "ann") })
	g := r.Group("/users",
		ginadapter.Wrap(middleware.Sessions{Manager: m}),
		ginadapter.Wrap(middleware.RequireUser{Manager: m}),
		ginadapter.Wrap(middleware.RateLimit{
			Limiter: local(t, "users", 3), Key: middleware.Join(middleware.ByRoute, middleware.ByUser(m)),
		}),
		ginadapter.Wrap(middleware.RateLimit{
			Limiter: local(t, "failures", 2), Key: middleware.ByUser(m), FailuresOnly: true,
		}),
	)
	g.GET("/:id", func(c *gin.Context) {
		calls++
		m.Put(c.Request.Context(), "n", calls)
		if c.Param("id") == "bad" {
			c.Status(http.StatusNotFound) // without a body
			return
		}
		middleware.Succeeded(c.Request)
		c.String(200, "user %s, call %d", c.Param("id"), m.GetInt(c.Request.Context(), "n"))
	})
	g.GET("/:id/posts", func(c *gin.Context) { c.String(200, "posts") })
	s := serve(t, r, false)

	if res, body := s.do("GET", "/users/1"); res.StatusCode != 401 || calls != 0 || !strings.Contains(body, `"status":401`) {
		t.Errorf("a visitor: %s %q, %d calls", res.Status, body, calls)
	}
	s.do("GET", "/login")
	for i, want := range []string{"user 1, call 1", "user 2, call 2", "user 3, call 3"} {
		res, body := s.do("GET", fmt.Sprint("/users/", i+1))
		if res.StatusCode != 200 || body != want || res.Header.Get("X-RateLimit-Limit") == "" {
			t.Errorf("%s %q, want %q", res.Status, body, want)
		}
	}
	res, _ := s.do("GET", "/users/4")
	if res.StatusCode != 429 || calls != 3 || res.Header.Get("X-RateLimit-Limit") != "3" || res.Header.Get("Retry-After") == "" {
		t.Errorf("%s %v, %d calls", res.Status, res.Header, calls)
	}
	if res, body := s.do("GET", "/users/1/posts"); res.StatusCode != 200 || body != "posts" {
		t.Errorf("another route: %s %q", res.Status, body)
	}
}

// What gin's handlers call no success is counted, however it was answered.
func TestFailuresOnly(t *testing.T) {
	r := gin.New()
	r.Use(ginadapter.Wrap(middleware.RateLimit{
		Limiter:      local(t, "failures", 2),
		Key:          middleware.ByIP(middleware.PeerIP),
		FailuresOnly: true,
	}))
	r.GET("/good", func(c *gin.Context) { middleware.Succeeded(c.Request) })
	r.GET("/bad", func(c *gin.Context) { c.Error(errors.New("wrong")); c.Status(401) })
	s := serve(t, r, false)
	for range 5 {
		if res, _ := s.do("GET", "/good"); res.StatusCode != 200 {
			t.Errorf("got %s", res.Status)
		}
	}
	for _, want := range []int{401, 401, 429} {
		if res, _ := s.do("GET", "/bad"); res.StatusCode != want {
			t.Errorf("got %s, want %d", res.Status, want)
		}
	}
}

// gin's own handling goes on: unknown routes, and error handlers that add a
// body after c.Next.
func TestGinGoesOn(t *testing.T) {
	m, _ := newManager(t)
	r := gin.New()
	r.Use(func(c *gin.Context) {
		c.Next()
		if len(c.Errors) > 0 && !c.Writer.Written() {
			c.JSON(422, gin.H{"error": "yes"})
		}
	})
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: m}))
	r.GET("/error", func(c *gin.Context) {
		c.Status(400)
		c.Error(io.ErrUnexpectedEOF)
	})
	s := serve(t, r, false)
	if res, body := s.do("GET", "/nowhere"); res.StatusCode != 404 || body != "404 page not found" {
		t.Errorf("%s %q", res.Status, body)
	}
	if res, body := s.do("GET", "/error"); res.StatusCode != 422 || body != `{"error":"yes"}` {
		t.Errorf("%s %q", res.Status, body)
	}
}

func TestEarlyHints(t *testing.T) {
	m, _ := newManager(t)
	r := gin.New()
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: m}), ginadapter.Wrap(middleware.Sessions{
		Manager: second(t), Cookie: http.Cookie{Name: "__Host-second"},
	}))
	r.GET("/", func(c *gin.Context) {
		m.Put(c.Request.Context(), "k", 1)
		c.Header("Link", "</style.css>; rel=preload")
		c.Writer.WriteHeader(http.StatusEarlyHints)
		c.String(200, "hello")
	})
	s := serve(t, r, false)
	early := 0
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			if early++; status != 103 || h.Get("Link") == "" || h.Get("Set-Cookie") != "" {
				t.Errorf("%d %v", status, h)
			}
			return nil
		},
	})
	req, _ := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
	res, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 || early != 1 || setsCookie(res) != 1 {
		t.Errorf("%s %v, %d early", res.Status, res.Header, early)
	}
}

func second(t *testing.T) *session.Manager { m, _ := newManager(t); return m }

func TestWebSocket(t *testing.T) {
	m, _ := newManager(t)
	r := gin.New()
	r.Use(ginadapter.Wrap(middleware.Sessions{Manager: m}))
	r.GET("/socket", func(c *gin.Context) {
		m.Put(c.Request.Context(), "k", "kept")
		conn, err := websocket.Accept(c.Writer, c.Request, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		typ, message, err := conn.Read(c.Request.Context())
		if err != nil {
			t.Error(err)
		}
		conn.Write(context.Background(), typ, message)
		conn.Close(websocket.StatusNormalClosure, "")
	})
	r.GET("/get", func(c *gin.Context) { c.String(200, m.GetString(c.Request.Context(), "k")) })
	s := serve(t, r, false)
	conn, res, err := websocket.Dial(t.Context(), s.URL+"/socket", &websocket.DialOptions{HTTPClient: s.client})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if setsCookie(res) != 1 {
		t.Errorf("the upgrade sets %q", res.Header["Set-Cookie"])
	}
	conn.Write(t.Context(), websocket.MessageText, []byte("hello"))
	if _, message, err := conn.Read(t.Context()); string(message) != "hello" {
		t.Errorf("%q, %v", message, err)
	}
	if _, body := s.do("GET", "/get"); body != "kept" {
		t.Errorf("the next request sees %q", body)
	}
}

// gin inside of Sessions, instead of the other way round: gin's Stream needs
// CloseNotify of the writer it is given.
func TestGinInside(t *testing.T) {
	m, _ := newManager(t)
	r := gin.New()
	r.GET("/", func(c *gin.Context) {
		m.Put(c.Request.Context(), "k", 1)
		c.Stream(func(w io.Writer) bool { io.WriteString(w, "hello"); return false })
	})
	r.GET("/hijack", func(c *gin.Context) {
		conn, rw, err := c.Writer.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nraw")
		rw.Flush()
	})
	s := serve(t, middleware.Sessions{Manager: m}.Handler(r), false)
	if res, body := s.do("GET", "/"); body != "hello" || setsCookie(res) != 1 {
		t.Errorf("%s %v %q", res.Status, res.Header, body)
	}
	if _, body := s.do("GET", "/hijack"); body != "raw" {
		t.Errorf("%q", body)
	}
}

// A middleware that answers by itself writes as to net/http's writer: its status
// goes out with Hijack.
func TestUpgradeByMiddleware(t *testing.T) {
	r := gin.New()
	r.Use(ginadapter.Wrap(upgrader{}))
	r.GET("/", func(*gin.Context) { t.Error("the chain goes on") })
	s := serve(t, r, false)
	req, _ := http.NewRequest("GET", s.URL, nil)
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"hello"}}
	res, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, _ := io.ReadAll(res.Body); res.StatusCode != 101 || string(body) != "hello" {
		t.Errorf("%s %q", res.Status, body)
	}
}

type upgrader struct{}

func (upgrader) Handler(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "hello")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(conn, "hello")
	})
}

func TestWrapPanicsAtMount(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	ginadapter.Wrap(middleware.Sessions{})
}

func Example() {
	mini, err := miniredis.Run() // in a service: redis.NewClient with your Redis
	if err != nil {
		panic(err)
	}
	defer mini.Close()
	client := redis.NewClient(&redis.Options{Addr: mini.Addr()})
	defer client.Close()
	manager, err := session.New(client, session.Config{Timeout: 10 * time.Second})
	if err != nil {
		panic(err)
	}
	perUser, err := ratelimit.NewSlidingWindow(client, "orders", ratelimit.PerMinute(2), ratelimit.Config{Timeout: 10 * time.Second})
	if err != nil {
		panic(err)
	}

	gin.SetMode(gin.ReleaseMode)
	r := gin.New()
	r.Use(gin.Recovery(), ginadapter.Wrap(middleware.Sessions{Manager: manager}))
	r.POST("/login", func(c *gin.Context) {
		if err := manager.Login(c.Request.Context(), "ann"); err != nil {
			c.AbortWithStatus(http.StatusInternalServerError)
		}
	})
	orders := r.Group("/orders",
		ginadapter.Wrap(middleware.RequireUser{Manager: manager}),
		ginadapter.Wrap(middleware.RateLimit{Limiter: perUser, Key: middleware.ByUser(manager)}),
	)
	orders.GET("/:id", func(c *gin.Context) {
		c.String(http.StatusOK, "order %s of %s", c.Param("id"), manager.UserID(c.Request.Context()))
	})

	var cookies []*http.Cookie
	send := func(method, path string) {
		req := httptest.NewRequest(method, path, nil)
		for _, c := range cookies {
			req.AddCookie(c)
		}
		w := httptest.NewRecorder()
		r.ServeHTTP(w, req)
		cookies = append(cookies, w.Result().Cookies()...)
		body, _ := bufio.NewReader(w.Body).ReadString('\n')
		fmt.Println(strings.TrimSpace(fmt.Sprint(w.Code, " ", body)))
	}
	send("GET", "/orders/1")
	send("POST", "/login")
	send("GET", "/orders/1")
	send("GET", "/orders/2")
	send("GET", "/orders/3")
	// Output:
	// 401 {"type":"about:blank","title":"Unauthorized","status":401,"detail":"Nobody is logged in."}
	// 200
	// 200 order 1 of ann
	// 200 order 2 of ann
	// 429 {"type":"about:blank","title":"Too Many Requests","status":429,"detail":"The limit on requests is used up. Retry-After tells when to try again."}
}

// Routes in front of gin: what gin takes for a route has been counted by its pattern.
func TestNoSpellingGetsPastRoutes(t *testing.T) {
	for name, set := range map[string]func(*gin.Engine){
		"as it is":  func(*gin.Engine) {},
		"raw paths": func(r *gin.Engine) { r.UseRawPath, r.UnescapePathValues = true, true },
		"fixed":     func(r *gin.Engine) { r.RedirectFixedPath, r.RemoveExtraSlash = true, true },
	} {
		t.Run(name, func(t *testing.T) {
			calls, counted := 0, 0
			r := gin.New()
			set(r)
			r.POST("/api/login", func(*gin.Context) { calls++ })
			h := middleware.Routes{"POST /api/login": {
				Limiter: local(t, "login", 1000), Key: middleware.ByRoute,
				OnDecision: func(middleware.Decision) { counted++ },
			}}.Handler(r)
			for _, target := range []string{
				"/api/login", "/api%2Flogin", "/api%252Flogin", "/%61pi/login", "//api/login", "/api//login", "/x/../api/login", "/api/login/", "/api%2Flogin%2F",
			} {
				h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", target, nil))
				if calls > counted {
					t.Fatalf("%s: %d logins, %d counted", target, calls, counted)
				}
				counted = calls
			}
			if calls < 1 {
				t.Errorf("%d logins", calls)
			}
		})
	}
}

// Gin's wildcards take empty and dot segments, too.
func TestNoSpellingGetsPastAWildcard(t *testing.T) {
	for _, route := range [][2]string{
		{"/:page", "/{page}"}, {"/:locale/login", "/{locale}/login"}, {"/tenants/:t/login", "/tenants/{t}/login"}, {"/files/:name", "/files/{name}"},
	} {
		for name, set := range map[string]func(*gin.Engine){
			"as it is":  func(*gin.Engine) {},
			"raw paths": func(r *gin.Engine) { r.UseRawPath, r.UnescapePathValues = true, true },
			"fixed":     func(r *gin.Engine) { r.RedirectFixedPath, r.RemoveExtraSlash = true, true },
		} {
			t.Run(name+" "+route[1], func(t *testing.T) {
				spelling.Try(t, route[1], func(login http.HandlerFunc) http.Handler {
					r := gin.New()
					set(r)
					r.POST(route[0], gin.WrapF(login))
					return r
				})
			})
		}
	}
}
