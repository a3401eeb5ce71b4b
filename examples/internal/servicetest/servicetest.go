// Package servicetest drives the small example services over HTTP: they differ
// in their router, not in what they do.
package servicetest

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// Pause is for between an end of all sessions of a user and their login: one that follows within a
// round trip of its own may be refused.
func Pause() { time.Sleep(500 * time.Millisecond) }

// Patiently sends a request of a service whose Redis is there: a busy machine may still take longer
// than it waits for an answer, and then the request is sent again.
func Patiently(browser *http.Client, r *http.Request) (*http.Response, error) {
	for tries := 0; ; tries++ {
		res, err := browser.Do(r)
		if err != nil || res.StatusCode != http.StatusServiceUnavailable || tries == 5 {
			return res, err
		}
		res.Body.Close()
		time.Sleep(1100 * time.Millisecond) // after a second Redis is asked again
		again := r.Clone(r.Context())
		again.Header.Del("Cookie") // the jar adds them, with those of the answer
		if r.GetBody != nil {
			if again.Body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		r = again
	}
}

// Client is a browser of one server.
type Client struct {
	t       testing.TB
	url     string
	agent   string
	browser *http.Client
}

// NewClient starts a server of handler and returns a client with an empty
// cookie jar, which does not follow redirects.
func NewClient(t testing.TB, handler http.Handler) *Client {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return (&Client{t: t, url: server.URL}).Another()
}

// Another is another browser of the same server.
func (c *Client) Another() *Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return &Client{t: c.t, url: c.url, browser: &http.Client{
		Jar:           jar,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// As is another browser of the same server, which calls itself agent.
func (c *Client) As(agent string) *Client {
	as := c.Another()
	as.agent = agent
	return as
}

// Visit lets the same browser visit another server.
func (c *Client) Visit(handler http.Handler) *Client {
	server := httptest.NewServer(handler)
	c.t.Cleanup(server.Close)
	visiting := *c
	visiting.url = server.URL
	return &visiting
}

// Do sends a request and checks the status. form is "a=b&c=d" or empty. It is sent Patiently, unless
// 503 is wanted.
func (c *Client) Do(want int, method, path, form string) (body string, header http.Header) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url+path, strings.NewReader(form))
	if err != nil {
		c.t.Fatal(err)
	}
	if form != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	send := Patiently
	if want == http.StatusServiceUnavailable {
		send = (*http.Client).Do
	}
	resp, err := send(c.browser, c.from(req))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode != want {
		c.t.Fatalf("%s %s: status %d, want %d; body %q", method, path, resp.StatusCode, want, b)
	}
	return string(b), resp.Header
}

func (c *Client) from(r *http.Request) *http.Request {
	if c.agent != "" {
		r.Header.Set("User-Agent", c.agent)
	}
	return r
}

// Status sends a request and returns the status. Unlike Do it may be called
// from any goroutine.
func (c *Client) Status(t testing.TB, method, path string) int {
	req, err := http.NewRequest(method, c.url+path, nil)
	if err != nil {
		t.Error(err)
		return 0
	}
	resp, err := c.browser.Do(c.from(req))
	if err != nil {
		t.Error(err)
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// Cookies returns the names of the cookies in the jar, and of each its value.
func (c *Client) Cookies() map[string]string {
	u, err := url.Parse(c.url)
	if err != nil {
		c.t.Fatal(err)
	}
	m := make(map[string]string)
	for _, cookie := range c.browser.Jar.Cookies(u) {
		m[cookie.Name] = cookie.Value
	}
	return m
}

// connect has a client connect to all servers, which on a busy machine takes longer than a service
// waits for an answer.
func connect(t *testing.T, client redis.UniversalClient) {
	t.Helper()
	ping := func(ctx context.Context, c *redis.Client) error { return c.Ping(ctx).Err() }
	if err := roundtrip.EachMaster(t.Context(), client, ping); err != nil {
		t.Fatal(err)
	}
}

// Run checks one of the small services on every kind of Redis.
func Run(t *testing.T, newHandler func(redis.UniversalClient) (http.Handler, error)) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		handler, err := newHandler(b.Client)
		if err != nil {
			t.Fatal(err)
		}
		connect(t, b.Client)
		ann := NewClient(t, handler)

		ann.Do(http.StatusUnauthorized, "POST", "/orders", "")
		ann.Do(http.StatusOK, "POST", "/login", "user=ann")
		body, header := ann.Do(http.StatusOK, "POST", "/orders", "")
		if !strings.Contains(body, "ann") {
			t.Errorf("orders: %q", body)
		}
		if got := header.Get("X-RateLimit-Limit") + " " + header.Get("X-RateLimit-Remaining"); got != "100 99" {
			t.Errorf("orders: limit and remaining %q", got)
		}

		// By user: another browser of ann's shares her limit, bob's does not.
		second, bob := ann.Another(), ann.Another()
		second.Do(http.StatusOK, "POST", "/login", "user=ann")
		bob.Do(http.StatusOK, "POST", "/login", "user=bob")
		if _, header := second.Do(http.StatusOK, "POST", "/orders", ""); header.Get("X-RateLimit-Remaining") != "98" {
			t.Errorf("ann's second browser: %q remaining", header.Get("X-RateLimit-Remaining"))
		}
		if _, header := bob.Do(http.StatusOK, "POST", "/orders", ""); header.Get("X-RateLimit-Remaining") != "99" {
			t.Errorf("bob: %q remaining", header.Get("X-RateLimit-Remaining"))
		}

		// The limits of the routes are their own: login has had 3 of its 5.
		if _, header := ann.Do(http.StatusOK, "GET", "/search", ""); header.Get("X-RateLimit-Limit") != "20" {
			t.Errorf("search: limit %q", header.Get("X-RateLimit-Limit"))
		}
		ann.Do(http.StatusOK, "POST", "/login", "user=ann")
		ann.Do(http.StatusOK, "POST", "/login", "user=ann")
		_, header = ann.Do(http.StatusTooManyRequests, "POST", "/login", "user=ann")
		if header.Get("Retry-After") == "" || header.Get("Set-Cookie") != "" {
			t.Errorf("denied login: Retry-After %q, Set-Cookie %q", header.Get("Retry-After"), header.Get("Set-Cookie"))
		}
		ann.Do(http.StatusOK, "GET", "/search", "")
		redistest.AssertAllTTL(t, b.Client)
	})
}
