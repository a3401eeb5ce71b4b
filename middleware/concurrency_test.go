package middleware_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

func TestConcurrencyLimit(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		const places = 2
		limiter := must(ratelimit.NewConcurrency(b.Client, "reports", places, ratelimit.Config{Timeout: time.Minute}))
		entered, leave := make(chan bool), make(chan bool)
		mux := http.NewServeMux()
		mux.HandleFunc("/wait", func(w http.ResponseWriter, r *http.Request) { entered <- true; <-leave })
		mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
		mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {})
		var decisions []int
		s := serve(t, middleware.ConcurrencyLimit{
			Limiter: limiter, Key: everybody,
			OnDecision: func(d middleware.Decision) {
				if d.Request.URL.Path == "/" {
					decisions = append(decisions, d.Status)
				}
			},
		}.Handler(mux))
		expect := func(status int) {
			t.Helper()
			res := s.get("/")
			if res.StatusCode != status || (status == 429) != (res.Header.Get("Retry-After") == "1") || res.Header.Get("X-RateLimit-Limit") != "" {
				t.Errorf("%s %v, want %d", res.Status, res.Header, status)
			}
		}

		expect(200)
		done := make(chan bool)
		ctx, hangUp := context.WithCancel(t.Context())
		for i := range places {
			go func() {
				req, _ := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/wait", nil)
				if i == 0 {
					req = req.WithContext(ctx)
				}
				if res, err := s.client.Do(req); err == nil {
					res.Body.Close()
				}
				done <- true
			}()
			<-entered
		}
		expect(429)
		hangUp() // the work goes on, and keeps its place
		<-done
		expect(429)
		leave <- true
		leave <- true
		<-done
		// The place of the one that hung up is free a moment later.
		deadline := time.Now().Add(10 * time.Second)
		for s.get("/").StatusCode != 200 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		for range places + 1 {
			if res, err := s.client.Get(s.URL + "/panic"); err == nil {
				res.Body.Close()
			}
		}
		expect(200)
		if len(decisions) < 5 || decisions[0] != 0 || decisions[1] != 429 {
			t.Errorf("decisions %v", decisions)
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func TestConcurrencyLimitUndecided(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1, DialTimeout: time.Second})
	defer client.Close()
	for _, tc := range []struct {
		limit   middleware.ConcurrencyLimit
		outside int // status of a request
		inside  int // and of one that is made meanwhile
		log     string
	}{
		{middleware.ConcurrencyLimit{Key: everybody}, 200, 429, "not decided by its limiter: decided in process"},
		{middleware.ConcurrencyLimit{Key: everybody, OnError: middleware.FailOpen}, 200, 200, "not decided by its limiter: let through"},
		{middleware.ConcurrencyLimit{Key: everybody, OnError: middleware.FailClosed}, 503, 0, "not decided by its limiter: refused"},
		{middleware.ConcurrencyLimit{Key: middleware.ByHeader("X-Missing"), OnError: middleware.FailOpen}, 400, 0, "the request has no key (400): refused"},
	} {
		t.Run(tc.limit.OnError.String(), func(t *testing.T) {
			var log journal
			tc.limit.Limiter = must(ratelimit.NewConcurrency(client, "l", 1, ratelimit.Config{}))
			tc.limit.Logger = log.logger()
			var h http.Handler
			meanwhile, depth := 0, 0
			h = tc.limit.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				if depth++; depth == 1 {
					meanwhile = answer(h, request("")).StatusCode
				}
			}))
			for range 2 { // the place is given back
				depth = 0
				if res := answer(h, request("")); res.StatusCode != tc.outside || meanwhile != tc.inside {
					t.Errorf("%d, meanwhile %d; want %d, %d", res.StatusCode, meanwhile, tc.outside, tc.inside)
				}
			}
			if !strings.Contains(log.String(), tc.log) {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

func TestConcurrencyLimitValidate(t *testing.T) {
	l := middleware.ConcurrencyLimit{OnError: 9}
	expectErrors(t, l.Validate(), []string{"Limiter", "Key", "FailureMode(9)"})
	defer expectPanic(t, l.Validate())
	l.Handler(hello)
}

// The place of a hijacked connection is held until that is closed, by whomever.
func TestConcurrencyLimitOfHijackedConnections(t *testing.T) {
	client := redistest.Shared(t).Client()
	limiter := must(ratelimit.NewConcurrency(client, t.Name(), 1, ratelimit.Config{Timeout: time.Minute}))
	conns := make(chan net.Conn, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {})
	take := func(w http.ResponseWriter) net.Conn {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(buffered, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_ = buffered.Flush()
		return conn
	}
	mux.HandleFunc("/kept", func(w http.ResponseWriter, r *http.Request) { conns <- take(w) })
	mux.HandleFunc("/closed", func(w http.ResponseWriter, r *http.Request) { take(w).Close() })
	mux.HandleFunc("/panic", func(w http.ResponseWriter, r *http.Request) {
		defer take(w).Close()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/forgotten", func(w http.ResponseWriter, r *http.Request) { take(w) })
	mux.HandleFunc("/half", func(w http.ResponseWriter, r *http.Request) {
		conn := take(w)
		defer conn.Close()
		half, ok := conn.(interface{ CloseWrite() error })
		if !ok {
			t.Error("no CloseWrite")
			return
		}
		if err := half.CloseWrite(); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, conn) // until the client closes, too
	})
	srv := httptest.NewServer(middleware.ConcurrencyLimit{Limiter: limiter, Key: everybody}.Handler(mux))
	defer srv.Close()
	used := func() (n int) {
		keys, err := client.Keys(t.Context(), "*rl:concurrency:"+t.Name()+":*").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys {
			n += int(client.ZCard(t.Context(), key).Val())
		}
		return n
	}
	await := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); used() != n; time.Sleep(time.Millisecond) {
			if runtime.GC(); time.Now().After(deadline) {
				t.Fatalf("%d places are held, not %d", used(), n)
			}
		}
	}
	upgrade := func(path string) net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", path)
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.Contains(line, " 101 ") {
			t.Fatalf("%s: %q, %v", path, line, err)
		}
		return conn
	}
	status := func() int {
		res, err := http.Get(srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}

	outside := upgrade("/kept")
	inside := <-conns
	await(1)
	if got := status(); got != 429 {
		t.Errorf("beside a connection: %d", got)
	}
	inside.Close()
	inside.Close() // the second time it frees nobody else's
	await(0)
	outside.Close()
	for _, path := range []string{"/closed", "/panic", "/forgotten"} {
		conn := upgrade(path)
		await(0)
		conn.Close()
	}
	half := upgrade("/half")
	await(1)
	half.Close()
	await(0)
	if got := status(); got != 200 {
		t.Errorf("after all: %d", got)
	}
}

// A handler that uses the connection by its buffer alone holds its place until it returns.
func TestConcurrencyLimitOfWhoKeepsTheBufferAlone(t *testing.T) {
	limiter := must(ratelimit.NewConcurrency(redistest.Shared(t).Client(), t.Name(), 1, ratelimit.Config{Timeout: time.Minute}))
	started := make(chan bool, 1)
	srv := httptest.NewServer(middleware.ConcurrencyLimit{Limiter: limiter, Key: everybody}.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		started <- true
		for err == nil {
			var line string
			if line, err = buffered.ReadString('\n'); err == nil {
				_, _ = buffered.WriteString(line)
				err = buffered.Flush()
			}
		}
	})))
	defer srv.Close()
	conn := must(net.Dial("tcp", srv.Listener.Addr().String()))
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	<-started
	in := bufio.NewReader(conn)
	for range 10 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond) // what is garbage is cleaned up
		fmt.Fprintln(conn, "hello")
		if line, err := in.ReadString('\n'); line != "hello\n" {
			t.Fatal(line, err)
		}
		if _, res, err := limiter.Acquire(t.Context(), "everybody"); res.Allowed || err != nil {
			t.Fatal("the place is given away", res, err)
		}
	}
}
