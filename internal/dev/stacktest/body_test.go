package stacktest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// http.MaxBytesHandler stops bodies wherever it is mounted, and the next request of the client
// works.
//
// Over HTTP/1.1 it has the server close the connection, by a method that no other package's
// ResponseWriter can have (golang/go#73754). Behind Sessions and ConcurrencyLimit, which wrap it,
// the server reads up to 256 KiB of the rest instead, and goes on with the connection.
func TestMaxBytesHandler(t *testing.T) {
	const most = 1000
	module := func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, most) }
	orders := append(orders[:len(orders):len(orders)], struct {
		name  string
		mount func(*kit, around, http.Handler) http.Handler
	}{"RateLimit outside, which wraps nothing", func(k *kit, module around, app http.Handler) http.Handler {
		return k.limit.Handler(module(k.withSessions(app)))
	}})
	for _, order := range orders {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/http2 %t", order.name, http2), func(t *testing.T) {
				k := newKit(t)
				a := newApp(k)
				a.HandleFunc("POST /upload", func(w http.ResponseWriter, r *http.Request) {
					n, err := io.Copy(io.Discard, r.Body)
					if limit, ok := errors.AsType[*http.MaxBytesError](err); ok {
						http.Error(w, fmt.Sprintf("more than %d", limit.Limit), http.StatusRequestEntityTooLarge)
						return
					}
					fmt.Fprint(w, n, err)
				})
				wrapped := order.name == "kit outside" || order.name == "between sessions and limits"
				s := serve(t, http2, order.mount(k, module, a))
				requests := 0
				for _, size := range []int{most, most + 1, 300 << 10} {
					for _, known := range []bool{true, false} {
						what := fmt.Sprintf("%d bytes, length known %t", size, known)
						var body io.Reader = strings.NewReader(strings.Repeat("x", size))
						if !known {
							body = io.MultiReader(body)
						}
						res := s.send(must(http.NewRequestWithContext(t.Context(), "POST", s.URL+"/upload", body)))
						if size <= most {
							res.expect(t, 200, fmt.Sprint(size, " <nil>"))
						} else {
							res.expect(t, 413, fmt.Sprintf("more than %d\n", most))
						}
						if closed := size > most && !http2 && (!wrapped || size > 256<<10); res.Close != closed {
							t.Errorf("%s: the connection is closed: %t", what, res.Close)
						}
						requests++
						if order.name != "alone" {
							figures(t, what, res.Header, quota, quota-requests)
							requests++
							s.get("/count").expect(t, 200, fmt.Sprint(requests/2))
						} else {
							s.get("/text").expect(t, 200, text)
						}
					}
				}
			})
		}
	}
}

// A place is free when http.TimeoutHandler inside of ConcurrencyLimit has answered, whatever its
// handler goes on to do; outside, the place is held until that returns.
func TestPlacesAndTimeoutHandler(t *testing.T) {
	module := func(h http.Handler) http.Handler { return http.TimeoutHandler(h, time.Second, "too slow") }
	for _, tc := range []struct {
		name  string
		mount func(k *kit, h http.Handler) http.Handler
		held  bool
	}{
		{"inside", func(k *kit, h http.Handler) http.Handler { return k.places.Handler(module(h)) }, false},
		{"outside", func(k *kit, h http.Handler) http.Handler { return module(k.places.Handler(h)) }, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newKit(t)
			leave, left := make(chan bool), make(chan bool)
			mount := tc.mount(k, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-leave }))
			beside := k.places.Handler(newApp(k))
			s := serve(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/text" {
					beside.ServeHTTP(w, r)
					return
				}
				mount.ServeHTTP(w, r)
			}))
			s.get("/slow").expect(t, 503, "too slow")
			r := s.get("/text")
			if tc.held {
				refused(t, "the handler still runs", r)
			} else {
				r.expect(t, 200, text)
			}
			go func() { leave <- true; left <- true }()
			<-left
			for deadline := time.Now().Add(time.Minute); s.get("/text").StatusCode != 200; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the place stays taken")
				}
			}
		})
	}
}
