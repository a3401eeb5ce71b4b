package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// twoServers starts the demo over a Redis that can be taken away.
func twoServers(t *testing.T, url string) (f *Fleet, a, b *servicetest.Client) {
	t.Helper()
	direct, _, err := connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = direct.Close() })
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	f = NewFleet(new(Cable), stop)
	for range 2 {
		client := f.cable.Client(direct.Options())
		t.Cleanup(func() { _ = client.Close() })
		s, err := New(client, Config{Fleet: f})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
	}
	a = servicetest.NewClient(t, f.servers[0])
	return f, a, a.Visit(f.servers[1])
}

// has fails unless a server's page has all of what.
func has(t *testing.T, c *servicetest.Client, what ...string) {
	t.Helper()
	page, _ := c.Do(http.StatusOK, "GET", "/", "")
	for _, w := range what {
		if !strings.Contains(page, w) {
			t.Errorf("the page lacks %q", w)
		}
	}
}

func TestBothRunsAndBothServersAgree(t *testing.T) {
	f, a, b := twoServers(t, "")
	a.Do(http.StatusNotFound, "POST", "/runs/none", "")
	for range 2 { // the second one changes nothing
		a.Do(http.StatusSeeOther, "POST", "/runs/edge", "")
		b.Do(http.StatusSeeOther, "POST", "/runs/bans", "")
	}
	has(t, a, `data-running="true"`)
	for _, run := range f.runs {
		for deadline := time.Now().Add(time.Minute); !run.over(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a run does not end")
			}
		}
	}
	edge := f.runs["edge"]
	for i, want := range []int{10, 20} {
		if n := edge.most(edge.lanes[i]); n != want {
			t.Errorf("%s: %d in 10 s, want %d", edge.lanes[i].Name, n, want)
		}
	}
	if n := edge.most(edge.lanes[2]); n < 10 || n > 12 {
		t.Errorf("token bucket: %d in 10 s", n)
	}
	for _, l := range edge.lanes {
		if len(l.dots) != 2*burst || l.count("passed", "")+l.count("denied", "") != 2*burst {
			t.Errorf("%s: %v", l.Name, l.dots)
		}
	}
	bans := f.runs["bans"]
	if hammers, waits := bans.lanes[0], bans.lanes[1]; hammers.count("banned", "") == 0 || waits.count("banned", "") != 0 || waits.count("passed", "") <= hammers.count("passed", "") {
		t.Error(bans.says)
	}
	for _, c := range []*servicetest.Client{a, b} {
		has(t, c, edge.says, bans.says, "A 0, B 0", `data-running="false"`)
	}
}

func TestMostInAnyWindow(t *testing.T) {
	for _, test := range []struct {
		at     []int64
		n      int
		end    int64
		window int64
	}{
		{nil, 0, 0, 10},
		{[]int64{5}, 1, 5, 10},
		{[]int64{0, 10}, 1, 0, 10}, // half-open
		{[]int64{1, 10}, 2, 10, 10},
		{[]int64{20, 0, 9, 11, 10}, 4, 11, 12},
	} {
		if n, end := mostIn(test.at, test.window); n != test.n || end != test.end {
			t.Errorf("%v: %d until %d, want %d until %d", test.at, n, end, test.n, test.end)
		}
	}
}

func TestFailedLoginsCountAtBothServers(t *testing.T) {
	_, a, b := twoServers(t, "")
	guess := func(c *servicetest.Client, want int, form, says string) {
		t.Helper()
		if body, _ := c.Do(want, "POST", "/password", form); !strings.Contains(body, says) {
			t.Errorf("%s: %q", form, body)
		}
	}
	guess(a, http.StatusBadRequest, "password=x", "account")
	guess(a, http.StatusForbidden, "account=ann&password=x", "4 of 5")
	guess(b, http.StatusOK, "account=Ann&password=open+sesame", "not counted")
	has(t, a, "A 4, B 4", "A 5, B 5", `id="handle"`)
	for left := 3; left >= 0; left-- {
		guess(b, http.StatusForbidden, "account=ann&password=x", fmt.Sprintf("%d of 5", left))
	}
	guess(a, http.StatusTooManyRequests, "account=ann&password=open+sesame", "not looked at")
	guess(a, http.StatusOK, "account=bob&password=open+sesame", "not counted")
	has(t, b, "A 0, B 0", "<strong id=\"user\">bob</strong>", "server A: ann: refused")
}

func TestStreamEndsWithItsSession(t *testing.T) {
	f, one, two := twoServers(t, "")
	one.Do(http.StatusUnauthorized, "GET", "/stream", "")
	one.Do(http.StatusUnauthorized, "POST", "/end", "handle=x")
	one.Do(http.StatusSeeOther, "POST", "/login", "user=ann")
	phone := two.As("Firefox on Android")
	phone.Do(http.StatusSeeOther, "POST", "/login", "user=ann")
	has(t, one, "Firefox on Android, at server B")

	server := httptest.NewServer(f.servers[1])
	defer server.Close()
	r, err := http.NewRequest("GET", server.URL+"/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range phone.Cookies() {
		r.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	if !lines.Scan() || lines.Text() != "event: live" {
		t.Fatal(lines.Text(), lines.Err())
	}
	one.Do(http.StatusSeeOther, "POST", "/pretend", "")
	has(t, two, "(pretended), at server A")
	one.Do(http.StatusSeeOther, "POST", "/end-others", "")
	var rest []string
	for lines.Scan() {
		rest = append(rest, lines.Text())
	}
	if all := strings.Join(rest, "\n"); !strings.Contains(all, "event: ended\ndata: Closed at once: this session was ended from another device.") {
		t.Error(all)
	}
	has(t, phone, "Your last session is over: this session was ended from another device.")
	has(t, two, "this one")
	one.Do(http.StatusSeeOther, "POST", "/end", "handle=gone") // over already
}

func TestRedisGoesAndComesBack(t *testing.T) {
	for name, url := range map[string]func(*testing.T) string{
		"embedded": func(*testing.T) string { return "" },
		"real":     func(t *testing.T) string { return "redis://" + redistest.Start(t).Client().Options().Addr },
	} {
		t.Run(name, func(t *testing.T) {
			f, ann, annAtB := twoServers(t, url(t))
			visitor := annAtB.Another()
			ann.Do(http.StatusBadRequest, "POST", "/redis", "redis=x")
			ann.Do(http.StatusSeeOther, "POST", "/login", "user=ann")
			ann.Do(http.StatusSeeOther, "POST", "/redis", "redis=away")
			for i, want := range []string{"10 pass (A 5, B 5), 2 × 429", "12 pass (A 6, B 6)", "0 pass (A 0, B 0), 12 × 503", "A 200, B 200", "A 503, B 503"} {
				if got := f.outage.During[i]; got != want {
					t.Errorf("%s while Redis is away: %q, want %q", probed[i], got, want)
				}
			}
			has(t, visitor, "Redis is away")
			ann.Do(http.StatusServiceUnavailable, "GET", "/", "")
			annAtB.Do(http.StatusServiceUnavailable, "GET", "/api/me", "")
			visitor.Do(http.StatusSeeOther, "POST", "/redis", "redis=back")
			has(t, annAtB, "ann", "both servers asked it again")
			for i, row := range f.outage.Back[:4] {
				if want := []string{"10 pass (A 5, B 5), 2 × 429", "A 200, B 200"}[i/3]; row != want || f.outage.Before[i] != want {
					t.Errorf("%s: %q before and %q after, want %q", probed[i], f.outage.Before[i], row, want)
				}
			}
		})
	}
}

func TestCable(t *testing.T) {
	direct, _, err := connect("")
	if err != nil {
		t.Fatal(err)
	}
	defer direct.Close()
	var cable Cable
	client := cable.Client(direct.Options())
	defer client.Close()
	ping := func(c *redis.Client) error { return c.Ping(t.Context()).Err() }
	if err := ping(client); err != nil || len(cable.wires) != 1 {
		t.Fatal(err, len(cable.wires))
	}
	cable.Set(true)
	if err := ping(client); !errors.Is(err, errCut) || ping(direct) != nil {
		t.Error("cut: ", err)
	}
	cable.Set(false)
	if err := ping(client); err != nil {
		t.Error("healed: ", err)
	}
}

func TestConsoleIsForThoseWhoAreLoggedIn(t *testing.T) {
	_, a, b := twoServers(t, "")
	a.Do(http.StatusForbidden, "GET", "/ops/", "")
	for range 11 {
		b.Status(t, "GET", "/api/sliding")
	}
	a.Do(http.StatusSeeOther, "POST", "/login", "user=ann")
	if page, _ := a.Do(http.StatusOK, "GET", "/ops/", ""); !strings.Contains(page, "ip:127.0.0.1") || !strings.Contains(page, "patience") {
		t.Error("the console does not show the denials of the fleet")
	}
	a.Do(http.StatusSeeOther, "POST", "/ops/rule", "limiter=sliding&key=ip:127.0.0.1&mode=exempt&reason=x")
	if status := b.Status(t, "GET", "/api/sliding"); status != http.StatusOK {
		deadline := time.Now().Add(5 * time.Second) // it is pushed to the other server
		for status != http.StatusOK && time.Now().Before(deadline) {
			time.Sleep(10 * time.Millisecond)
			status = b.Status(t, "GET", "/api/sliding")
		}
		if status != http.StatusOK {
			t.Errorf("exempt, and yet %d", status)
		}
	}
}

func TestPageIsSelfContained(t *testing.T) {
	_, a, _ := twoServers(t, "")
	page, header := a.Do(http.StatusOK, "GET", "/", "")
	for _, no := range []string{"<style", "style=", "onclick", "<script>", "//cdn", "https://"} {
		if strings.Contains(page, no) {
			t.Errorf("the page has %q", no)
		}
	}
	if csp := header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Error(csp)
	}
	for path, kind := range map[string]string{"/style.css": "text/css", "/demo.js": "text/javascript"} {
		if _, header := a.Do(http.StatusOK, "GET", path, ""); !strings.HasPrefix(header.Get("Content-Type"), kind) {
			t.Error(path, header)
		}
	}
}

// What the page shows as code is whole, and can be read at a glance.
func TestSnippets(t *testing.T) {
	for name, c := range snippets {
		if n := strings.Count(c.Text, "\n"); c.Title == "" || n < 1 || n > 16 {
			t.Errorf("%s: %q, %d lines", name, c.Title, n)
		}
	}
	if _, err := snippet("none"); err == nil {
		t.Error("a snippet that is not there")
	}
}

func TestFormsOfOtherSitesChangeNothing(t *testing.T) {
	f, _, _ := twoServers(t, "")
	for _, path := range []string{"/login", "/logout", "/end", "/end-others", "/pretend", "/password", "/redis", "/runs/edge", "/api/visit"} {
		r := httptest.NewRequest("POST", path, strings.NewReader("redis=away"))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		w := httptest.NewRecorder()
		f.servers[0].ServeHTTP(w, r)
		if w.Code != http.StatusForbidden {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
}
