package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"golang.org/x/crypto/bcrypt"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// docs/getting-started.md shows the program in pieces: a reader who copies one after the other has
// main.go, and the other two routers besides.
func TestPageShowsThisProgram(t *testing.T) {
	page, err := os.ReadFile("../../docs/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		blocks = append(blocks, block[1])
	}
	file := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := file("main.go")
	if got := strings.Join(blocks, "\n"); !strings.HasPrefix(got, want) {
		n := 0
		for n < min(len(got), len(want)) && got[n] == want[n] {
			n++
		}
		t.Errorf("the blocks do not make main.go from here on:\n%.200s", want[n:])
	}
	for _, name := range []string{"chi.go", "gin.go"} {
		_, routes, _ := strings.Cut(file(name), "\n// ")
		if !strings.Contains(string(page), "```go\n// "+routes+"```") {
			t.Errorf("the page does not show the routes of %s", name)
		}
	}
}

// All three routers give the same service.
func TestService(t *testing.T) {
	gin.SetMode(gin.TestMode)
	for name, routes := range map[string]func(*service) http.Handler{
		"nethttp": (*service).routes, "chi": (*service).chiRoutes, "gin": (*service).ginRoutes,
	} {
		t.Run(name, func(t *testing.T) {
			redis := redistest.Shared(t)
			redis.Flush()
			t.Cleanup(redis.Flush)
			table, err := newUsers(bcrypt.MinCost)
			if err != nil {
				t.Fatal(err)
			}
			for id, email := range map[string]string{"1": "Ann@example.com", "2": "bob@example.com"} {
				if err := table.set(id, email, "correct horse"); err != nil {
					t.Fatal(err)
				}
			}
			s, err := newService(redis.Client(), table, [][]byte{bytes.Repeat([]byte("s"), 32)}, bytes.Repeat([]byte("k"), 32))
			if err != nil {
				t.Fatal(err)
			}
			walk(t, redis, servicetest.NewClient(t, routes(s)))
		})
	}
}

func walk(t *testing.T, redis *redistest.Server, browser *servicetest.Client) {
	const right, wrong = "email=ann@example.com&password=correct+horse", "email=ann@example.com&password=guess"
	to := func(path string) func(_ string, header http.Header) {
		return func(_ string, header http.Header) {
			t.Helper()
			if got := header.Get("Location"); got != path {
				t.Errorf("redirected to %q, want %q", got, path)
			}
		}
	}
	laptop, phone := browser.As("Firefox"), browser.As("Safari")

	// Nobody is logged in.
	to("/login")(laptop.Do(303, "GET", "/", ""))
	to("/confirm")(laptop.Do(303, "POST", "/end-others", ""))
	to("/login")(laptop.Do(303, "GET", "/confirm", ""))
	laptop.Do(400, "POST", "/login", "password=x")
	laptop.Do(403, "POST", "/login", "email=nobody@example.com&password=correct+horse")
	laptop.Do(403, "POST", "/login", wrong)
	to("/")(laptop.Do(303, "POST", "/login", right))
	to("/")(phone.Do(303, "POST", "/login", right))

	// The page of devices, and one of them ended.
	page, header := laptop.Do(200, "GET", "/", "")
	for _, s := range []string{"ann@example.com", "Firefox, since", "Safari, since", "(this one)"} {
		if !strings.Contains(page, s) {
			t.Errorf("no %q on the page:\n%s", s, page)
		}
	}
	if header.Get("Cache-Control") != "no-store" {
		t.Error(header)
	}
	handle := regexp.MustCompile(`name="handle" value="([^"]+)"`).FindStringSubmatch(page)[1]
	to("/")(laptop.Do(303, "POST", "/end", "handle="+handle))
	to("/")(laptop.Do(303, "POST", "/end", "handle="+handle)) // which is over already
	to("/login")(phone.Do(303, "GET", "/", ""))
	if page, _ := phone.Do(200, "GET", "/login", ""); !strings.Contains(page, "logged out from another device") {
		t.Error(page)
	}

	// A login of six minutes ago is not fresh.
	phone.Do(303, "POST", "/login", right)
	redis.Advance(6 * time.Minute)
	laptop.Do(200, "GET", "/", "") // the server learns the time from what Redis answers
	for _, path := range []string{"/end", "/end-others", "/password"} {
		to("/confirm")(laptop.Do(303, "POST", path, "new=battery+staple"))
	}
	if page, _ := laptop.Do(200, "GET", "/confirm", ""); !strings.Contains(page, "Confirm") {
		t.Error(page)
	}
	laptop.Do(403, "POST", "/confirm", "password=guess")
	to("/")(laptop.Do(303, "POST", "/confirm", "password=correct+horse"))

	// A new password logs out everywhere else.
	laptop.Do(400, "POST", "/password", "new=short")
	laptop.Do(400, "POST", "/password", "new="+strings.Repeat("x", 73))
	to("/")(laptop.Do(303, "POST", "/password", "new=battery+staple"))
	laptop.Do(200, "GET", "/", "")
	to("/login")(phone.Do(303, "GET", "/", ""))
	if page, _ := phone.Do(200, "GET", "/login", ""); !strings.Contains(page, "password was changed") {
		t.Error(page)
	}
	phone.Do(403, "POST", "/login", right)
	servicetest.Pause()
	phone.Do(303, "POST", "/login", "email=ann@example.com&password=battery+staple")
	to("/")(laptop.Do(303, "POST", "/end-others", ""))
	to("/login")(phone.Do(303, "GET", "/", ""))
	to("/login")(laptop.Do(303, "POST", "/logout", ""))
	to("/login")(laptop.Do(303, "GET", "/", ""))

	// Five wrong passwords of an account, in any spelling; two were wrong already.
	for range 3 {
		laptop.Do(403, "POST", "/login", "email=ANN@example.com&password=guess")
	}
	if _, header := laptop.Do(429, "POST", "/login", "email=ann@example.com&password=battery+staple"); header.Get("Retry-After") == "" {
		t.Error(header)
	}
	laptop.Do(303, "POST", "/login", "email=bob@example.com&password=correct+horse")
	redistest.AssertAllTTL(t, redis.Client())
}

func TestOtherSitesAreRefused(t *testing.T) {
	redis := redistest.Shared(t)
	redis.Flush()
	table, err := newUsers(bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(redis.Client(), table, [][]byte{make([]byte, 32)}, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/end-others", nil)
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	w := httptest.NewRecorder()
	s.routes().ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Error(w.Code, w.Body)
	}
}

func TestSecrets(t *testing.T) {
	one, two := bytes.Repeat([]byte("1"), 32), bytes.Repeat([]byte("2"), 32)
	in := base64.StdEncoding.EncodeToString
	for _, tc := range []struct {
		name, value string
		want        [][]byte
	}{
		{"one", in(one), [][]byte{one}},
		{"two, with a space", in(one) + ", " + in(two), [][]byte{one, two}},
		{"none", "", nil},
		{"no base64", "not a secret!", nil},
		{"short", in(one[:16]), nil},
		{"an empty one", in(one) + ",", nil},
	} {
		t.Setenv("S", tc.value)
		got, err := secrets("S")
		if (err == nil) != (tc.want != nil) || len(got) != len(tc.want) {
			t.Errorf("%s: %d secrets, %v", tc.name, len(got), err)
		}
		for i := range got {
			if !bytes.Equal(got[i], tc.want[i]) {
				t.Errorf("%s: secret %d differs", tc.name, i)
			}
		}
		if err != nil && tc.value != "" && strings.Contains(err.Error(), tc.value) {
			t.Errorf("%s: the error shows it: %v", tc.name, err)
		}
	}
}

// At a shutdown a request that is under way is answered.
func TestShutdown(t *testing.T) {
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	secret := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, value := range map[string]string{
		"REDIS_URL": "redis://" + redistest.Shared(t).Addr(), "SESSION_SECRETS": secret, "KEY_SECRET": secret, "ADDR": addr,
	} {
		t.Setenv(name, value)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	for range 600 { // the machine may be busy
		if res, err := http.Get("http://" + addr + "/login"); err == nil {
			res.Body.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}

	body, send := io.Pipe()
	status := make(chan int, 1)
	reads := make(chan bool)
	r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got100Continue: func() { close(reads) },
	}), "POST", "http://"+addr+"/login", body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Expect": {"100-continue"}}
	go func() {
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		res.Body.Close()
		status <- res.StatusCode
	}()
	if _, err := io.WriteString(send, "email=ann@example.com"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reads: // the handler asks for the body
	case <-time.After(time.Minute):
		t.Fatal("no handler has the request")
	}
	stop()
	time.Sleep(100 * time.Millisecond)
	if _, err := io.WriteString(send, "&password=guess"); err != nil {
		t.Fatal(err)
	}
	send.Close()
	if got := <-status; got != http.StatusForbidden {
		t.Errorf("answered with %d", got)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestRunNamesWhatIsMissing(t *testing.T) {
	t.Setenv("REDIS_URL", "")
	if err := run(t.Context()); err == nil || !strings.Contains(err.Error(), "REDIS_URL") {
		t.Error(err)
	}
	t.Setenv("REDIS_URL", "redis://localhost:1")
	if err := run(t.Context()); err == nil || !strings.Contains(err.Error(), "SESSION_SECRETS") || !strings.Contains(err.Error(), "KEY_SECRET") {
		t.Error(err)
	}
}
