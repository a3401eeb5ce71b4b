package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// browser is one on one of the servers.
type browser struct {
	t    *testing.T
	url  string
	http *http.Client
}

func newBrowser(t *testing.T, s *httptest.Server) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{t, s.URL, &http.Client{Jar: jar}}
}

func (b *browser) do(want int, method, path string, form url.Values) string {
	b.t.Helper()
	r, _ := http.NewRequestWithContext(b.t.Context(), method, b.url+path, strings.NewReader(form.Encode()))
	r.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := servicetest.Patiently(b.http, r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	var body strings.Builder
	if _, err := io.Copy(&body, res.Body); err != nil {
		b.t.Fatal(err)
	}
	if res.StatusCode != want {
		b.t.Fatalf("%s %s: %s, want %d: %s", method, path, res.Status, want, body.String())
	}
	return body.String()
}

func (b *browser) login(user, password string) {
	b.t.Helper()
	b.do(200, "POST", "/login", url.Values{"user": {user}, "password": {password}})
}

func (b *browser) devices() (list []struct {
	Handle, Client string
	Current        bool
}) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.do(200, "GET", "/api/devices", nil)), &list); err != nil {
		b.t.Fatal(err)
	}
	return list
}

// socket opens the WebSocket of the page.
func (b *browser) socket() *websocket.Conn {
	b.t.Helper()
	c, _, err := websocket.Dial(b.t.Context(), b.url+"/ws", &websocket.DialOptions{HTTPClient: b.http})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.CloseNow() })
	return c
}

func closesWith(t *testing.T, c *websocket.Conn, code websocket.StatusCode, reason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, _, err := c.Read(ctx)
	var closed websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != code || closed.Reason != reason {
		t.Errorf("the WebSocket: %v, want %d %q", err, code, reason)
	}
}

func TestDevicesOverTwoServers(t *testing.T) {
	redis := redistest.Start(t)
	users := NewUsers("ann", "bob")
	stop := make(chan struct{})
	var servers [2]*httptest.Server
	for i := range servers {
		h, err := New(redis.Client(), users, stop)
		if err != nil {
			t.Fatal(err)
		}
		servers[i] = httptest.NewServer(h)
		t.Cleanup(servers[i].Close)
	}
	laptop, phone, bobs := newBrowser(t, servers[0]), newBrowser(t, servers[1]), newBrowser(t, servers[1])
	laptop.do(403, "POST", "/login", url.Values{"user": {"ann"}, "password": {"bob"}})
	laptop.login("Ann ", "ann")
	phone.login("ann", "ann")
	bobs.login("bob", "bob")

	list := laptop.devices()
	if len(list) != 2 || !list[0].Current || list[1].Current || list[1].Client != "Firefox on Linux, 127.0.0.1" {
		t.Fatalf("%+v", list)
	}
	if page := laptop.do(200, "GET", "/", nil); strings.Count(page, "Firefox on Linux") != 2 || strings.Count(page, "this device") != 1 {
		t.Errorf("the page: %s", page)
	}
	open, others := phone.socket(), bobs.socket()

	// A password that was asked for long ago does not do.
	redis.Advance(6 * time.Minute)
	laptop.devices() // the servers learn the time from what Redis answers
	bobs.devices()
	end := url.Values{"handle": {list[1].Handle}}
	if page := laptop.do(403, "POST", "/end", end); !strings.Contains(page, "/confirm") {
		t.Errorf("the page asks for no password: %s", page)
	}
	laptop.do(403, "POST", "/confirm", url.Values{"password": {"bob"}})
	laptop.do(200, "POST", "/confirm", url.Values{"password": {"ann"}})
	laptop.do(200, "POST", "/end", end)
	closesWith(t, open, 4401, "revoked")
	if page := phone.do(200, "GET", "/", nil); !strings.Contains(page, "logged out from another device") {
		t.Errorf("the other device: %s", page)
	}
	phone.do(401, "GET", "/api/devices", nil)

	// Nobody ends another's.
	phone.login("ann", "ann")
	bobs.do(200, "POST", "/confirm", url.Values{"password": {"bob"}})
	bobs.do(200, "POST", "/end", url.Values{"handle": {laptop.devices()[0].Handle}})
	if len(laptop.devices()) != 2 {
		t.Error("another user's device was logged out")
	}

	// A change of the password ends all others, and this device goes on.
	open = phone.socket()
	laptop.do(200, "POST", "/password", url.Values{"new": {"correct horse"}})
	closesWith(t, open, 4401, "password-changed")
	if page := phone.do(200, "GET", "/", nil); !strings.Contains(page, "password was changed") {
		t.Errorf("the other device: %s", page)
	}
	phone.do(403, "POST", "/login", url.Values{"user": {"ann"}, "password": {"ann"}})
	servicetest.Pause()
	phone.login("ann", "correct horse")
	laptop.do(200, "POST", "/end-others", url.Values{})
	if list := laptop.devices(); len(list) != 1 || !list[0].Current {
		t.Errorf("%+v", list)
	}

	close(stop)
	closesWith(t, others, websocket.StatusGoingAway, "shutdown")
}

// Who is logged out by another device while a request is under way gets the login page, which says
// why.
func TestAnotherDeviceWasFaster(t *testing.T) {
	server := redistest.Start(t)
	users := NewUsers("ann")
	var meanwhile atomic.Pointer[func()] // happens just before the next Confirm or EndOthers
	confirm, endOthers := scripts.Get("session/beside.lua").SHA1(), scripts.Get("session/end_all.lua").SHA1()
	hooked := server.Client(func(o *redis.Options) { o.MaxRetries = -1 })
	hooked.AddHook(redistest.Instead(func(_ context.Context, cmd redis.Cmder) *redis.Cmd {
		if args := cmd.Args(); len(args) > 1 && (args[1] == confirm || args[1] == endOthers) {
			if do := meanwhile.Swap(nil); do != nil {
				(*do)()
			}
		}
		return nil
	}))
	var servers [2]*httptest.Server
	for i, client := range []*redis.Client{hooked, server.Client()} {
		h, err := New(client, users, nil)
		if err != nil {
			t.Fatal(err)
		}
		servers[i] = httptest.NewServer(h)
		t.Cleanup(servers[i].Close)
	}
	for _, path := range []string{"/confirm", "/end-others", "/password"} {
		mine, other := newBrowser(t, servers[0]), newBrowser(t, servers[1])
		mine.login("ann", "ann")
		other.login("ann", "ann")
		end := func() { other.do(200, "POST", "/end-others", url.Values{}) }
		meanwhile.Store(&end)
		page := mine.do(200, "POST", path, url.Values{"password": {"ann"}, "new": {"correct horse"}})
		if meanwhile.Load() != nil || !strings.Contains(page, "logged out from another device") {
			t.Errorf("%s: %s", path, page)
		}
		users.Set("ann", "ann")
		servicetest.Pause()
	}
}
