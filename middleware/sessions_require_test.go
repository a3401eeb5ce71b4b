package middleware_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatehouse-go/gatehouse/middleware"
)

func TestRequireUser(t *testing.T) {
	m, _ := newManager(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { m.Login(r.Context(), "ann") })
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) { m.Logout(r.Context()) })
	mux.Handle("/account", middleware.RequireUser{Manager: m}.Handler(hello))
	mux.Handle("/page", middleware.RequireUser{Manager: m, Refused: http.RedirectHandler("/login", http.StatusSeeOther).ServeHTTP}.Handler(hello))
	s := serve(t, middleware.Sessions{Manager: m}.Handler(mux))

	visitor := func() {
		t.Helper()
		if res := s.get("/account"); res.StatusCode != 401 || res.Header.Get("Www-Authenticate") == "" ||
			res.Header.Get("Cache-Control") != "no-store" || !strings.Contains(res.body, `"status":401`) {
			t.Errorf("%s %v %s", res.Status, res.Header, res.body)
		}
		if res := s.get("/page"); res.StatusCode != 303 || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %v", res.Status, res.Header)
		}
	}
	visitor()
	s.get("/login")
	if res := s.get("/account"); res.StatusCode != 200 || res.body != "hello" {
		t.Errorf("%s %s", res.Status, res.body)
	}
	s.get("/logout")
	visitor()

	if res := answer(middleware.RequireUser{Manager: m}.Handler(hello), request("")); res.StatusCode != 401 {
		t.Errorf("outside of Sessions: %s", res.Status)
	}
}

func TestRequireFresh(t *testing.T) {
	m, mini := newManager(t) // out of the bubble, for its goroutines outlive the test
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		mini.SetTime(now)
		// Redis decides what time it is, and between its answers the bubble's clock.
		pass := func(d time.Duration) {
			time.Sleep(d)
			now = now.Add(d)
			mini.SetTime(now)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) { m.Login(r.Context(), "ann") })
		mux.Handle("/password", middleware.RequireFresh{Manager: m, MaxAge: 5 * time.Minute}.Handler(hello))
		h := middleware.Sessions{Manager: m}.Handler(mux)

		var cookie *http.Cookie
		get := func(path string) *http.Response {
			r := httptest.NewRequest("GET", path, nil)
			if cookie != nil {
				r.AddCookie(cookie)
			}
			res := answer(h, r)
			if set := cookies(res.Header, ours); len(set) == 1 {
				cookie = set[0]
			}
			return res
		}
		if res := get("/password"); res.StatusCode != 401 {
			t.Errorf("a visitor: %s", res.Status)
		}
		get("/login")
		pass(5 * time.Minute)
		if res := get("/password"); res.StatusCode != 200 {
			t.Errorf("at MaxAge: %s", res.Status)
		}
		pass(time.Second)
		if res := get("/password"); res.StatusCode != 403 || res.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("after MaxAge: %s %v", res.Status, res.Header)
		}
		get("/login")
		if res := get("/password"); res.StatusCode != 200 {
			t.Errorf("after another login: %s", res.Status)
		}
	})
}

func TestRequireValidate(t *testing.T) {
	expectErrors(t, middleware.RequireUser{}.Validate(), []string{"Manager is nil"})
	expectErrors(t, middleware.RequireFresh{MaxAge: -1}.Validate(), []string{"Manager is nil", "MaxAge -1ns"})
	func() {
		defer expectPanic(t, middleware.RequireUser{}.Validate())
		middleware.RequireUser{}.Handler(hello)
	}()
	func() {
		defer expectPanic(t, middleware.RequireFresh{}.Validate())
		middleware.RequireFresh{}.Handler(hello)
	}()
}
