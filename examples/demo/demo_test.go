package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestSessionOverTwoServers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, secret := range []string{"", "0123456789abcdef0123456789abcdef"} {
			one, two := server(t, b, secret), server(t, b, secret)
			browser := servicetest.NewClient(t, one)
			other := browser.Visit(two)

			browser.Do(http.StatusUnauthorized, "GET", "/api/me", "")
			if len(browser.Cookies()) != 0 {
				t.Fatalf("a visitor who did nothing has cookies %v", browser.Cookies())
			}
			for _, form := range []string{"", "user=", "user=%20%20"} {
				if body, _ := browser.Do(http.StatusBadRequest, "POST", "/login", form); !strings.Contains(body, "user") {
					t.Errorf("login without a user: %q", body)
				}
			}
			browser.Do(http.StatusOK, "POST", "/api/visit", "")
			before := browser.Cookies()
			browser.Do(http.StatusSeeOther, "POST", "/login", "user=ann")
			after := browser.Cookies()
			if len(before) != 1 || len(after) != 1 || before["session"] == after["session"] {
				t.Fatal("login kept the ID")
			}
			other.Do(http.StatusOK, "POST", "/api/visit", "")
			body, _ := browser.Do(http.StatusOK, "GET", "/api/me", "")
			var me struct {
				User             string
				Visits           int
				Created, Expires time.Time
			}
			if err := json.Unmarshal([]byte(body), &me); err != nil {
				t.Fatalf("%v in %q", err, body)
			}
			if me.User != "ann" || me.Visits != 2 || time.Since(me.Created) > time.Minute || me.Expires.Sub(me.Created) != 24*time.Hour {
				t.Errorf("me: %+v", me)
			}
			page, _ := other.Do(http.StatusOK, "GET", "/", "")
			if !strings.Contains(page, "ann") || !strings.Contains(page, `id="handle"`) {
				t.Error("the page does not show the session")
			}
			if strings.Contains(page, after["session"]) {
				t.Error("the page shows the ID")
			}
			other.Do(http.StatusSeeOther, "POST", "/logout", "")
			browser.Do(http.StatusUnauthorized, "GET", "/api/me", "")
			redistest.AssertAllTTL(t, b.Client)
		}
	})
}

func TestLimitsOverTwoServers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		one := servicetest.NewClient(t, server(t, b, ""))
		two := one.Visit(server(t, b, ""))
		for _, path := range []string{"/api/sliding", "/api/fixed"} {
			var passed atomic.Int64
			var wg sync.WaitGroup
			for i := range 30 {
				wg.Go(func() {
					server := one
					if i%2 == 0 {
						server = two
					}
					if status := server.Status(t, "GET", path); status == http.StatusOK {
						passed.Add(1)
					} else if status != http.StatusTooManyRequests {
						t.Errorf("%s: status %d", path, status)
					}
				})
			}
			wg.Wait()
			if passed.Load() != 10 {
				t.Errorf("%s: %d passed, want 10", path, passed.Load())
			}
			_, header := one.Do(http.StatusTooManyRequests, "GET", path, "")
			if header.Get("X-RateLimit-Remaining") != "0" || header.Get("Retry-After") == "" {
				t.Errorf("%s: %v", path, header)
			}
		}
		one.Do(http.StatusOK, "GET", "/healthz", "")
	})
}

func TestBadConfiguration(t *testing.T) {
	if _, _, err := connect("localhost:6379"); err == nil {
		t.Error("an address was taken for a URL")
	}
	if _, _, err := connect("redis://user:hunter2@[::1"); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
	client, where, err := connect("")
	if err != nil || !strings.Contains(where, "miniredis") {
		t.Fatalf("embedded: %q, %v", where, err)
	}
	defer client.Close()
	if _, err := New(client, Config{Secret: "short", KeySecret: keySecret}); err == nil || strings.Contains(err.Error(), "short\"") {
		t.Errorf("a short secret: %v", err)
	}
	if _, err := New(client, Config{Secret: keySecret}); err == nil || !strings.Contains(err.Error(), "KeySecret") {
		t.Errorf("no key secret: %v", err)
	}
}

const keySecret = "a key secret of 32 bytes, always"

func server(t *testing.T, b redistest.Backend, secret string) http.Handler {
	cfg := Config{Secret: secret}
	if secret != "" {
		cfg.KeySecret = keySecret
	}
	handler, err := New(b.NewClient(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(handler.Close)
	return handler
}
