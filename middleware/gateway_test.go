package middleware_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/middleware"
)

// A backend never sees the session's cookie; what is outside of Sessions does.
func TestStripCookie(t *testing.T) {
	m, _ := newManager(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header["Cookie"])
	}))
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	inside := middleware.Sessions{Manager: m, StripCookie: true}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.Put(r.Context(), "seen", m.GetString(r.Context(), "seen")+"x")
		w.Header().Set("Seen", m.GetString(r.Context(), "seen"))
		proxy.ServeHTTP(w, r)
	}))
	front := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		before := fmt.Sprint(r.Header)
		inside.ServeHTTP(w, r)
		if fmt.Sprint(r.Header) != before {
			t.Error("the request outside was changed")
		}
	})
	cookie := ""
	for i := range 3 {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/", nil)
		r.Header["Cookie"] = []string{"a=1; " + cookie + "; b=\"2 3\"", cookie}
		if cookie == "" {
			r.Header["Cookie"] = []string{"a=1; b=\"2 3\""}
		}
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		if got := w.Body.String(); !strings.Contains(got, "a=1;") || !strings.Contains(got, `b="2 3"`) || strings.Contains(got, "session") {
			t.Errorf("the backend gets %s", got)
		}
		if got := w.Header().Get("Seen"); len(got) != i+1 {
			t.Errorf("request %d sees %q", i, got)
		}
		for _, c := range w.Result().Cookies() {
			cookie = c.Name + "=" + c.Value
		}
	}
	if cookie == "" {
		t.Error("no cookie")
	}
}
