package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// program returns the path of a program of Prometheus. Without it the test is skipped, or fails if
// CI=true.
func program(t *testing.T, name string) string {
	t.Helper()
	missing := "needs Prometheus: `make test` installs it, as does your package manager (apt-get install prometheus, brew install prometheus)"
	if os.Getenv("GATEHOUSE_TEST_PROMETHEUS") == "off" {
		missing = "needs Prometheus, and GATEHOUSE_TEST_PROMETHEUS=off"
	} else if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(missing + "; CI=true")
	}
	t.Skip(missing)
	return ""
}

// The alerts fire when they should, and not before: alerts_test.yml says when.
func TestAlertsByPromtool(t *testing.T) {
	promtool := program(t, "promtool")
	for _, args := range [][]string{{"check", "config", "prometheus.yml"}, {"check", "rules", "alerts.yml"}, {"test", "rules", "alerts_test.yml"}} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// quick is a file of Prometheus's with each time a fraction of what it is, for a test.
func quick(t *testing.T, name string, more ...string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	short := []string{
		"_interval: 5s", "_interval: 1s", "for: 1m", "for: 1s", "for: 30s", "for: 1s", "for: 5m", "for: 1s", "[1m]", "[5s]", "[5m]", "[10s]", "[10m]", "[10s]",
	}
	return strings.NewReplacer(append(short, more...)...).Replace(string(b))
}

// startPrometheus starts one that scrapes a target, and returns its URL.
func startPrometheus(t *testing.T, target string) string {
	t.Helper()
	path := program(t, "prometheus")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"prometheus.yml": quick(t, "prometheus.yml", "localhost:8080", target), "alerts.yml": quick(t, "alerts.yml"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var log strings.Builder
	cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addr, "--log.level=warn")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	eventually(t, "Prometheus is ready", 30*time.Second, func() bool {
		res, err := http.Get("http://" + addr + "/-/ready")
		if err == nil {
			res.Body.Close()
		}
		return err == nil && res.StatusCode == 200
	})
	return "http://" + addr
}

// ask decodes an answer of Prometheus's API.
func ask(t *testing.T, url string, into any) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 || json.Unmarshal(b, into) != nil {
		t.Fatalf("%s: %s %s %v", url, res.Status, b, err)
	}
}

// firing returns the names of the alerts that fire.
func firing(t *testing.T, prometheus string) (names []string) {
	t.Helper()
	var answer struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels map[string]string
			}
		}
	}
	ask(t, prometheus+"/api/v1/alerts", &answer)
	for _, a := range answer.Data.Alerts {
		if a.State == "firing" {
			names = append(names, a.Labels["alertname"])
		}
	}
	return names
}

// Prometheus scrapes the service: each query of the dashboard has an answer, an alert fires while a
// limit is hammered, and another one while Redis hangs.
func TestPrometheusSeesTheService(t *testing.T) {
	redis := redistest.Start(t)
	service, err := New(redis.Client())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(service)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer func() {
		stop()
		work.Wait()
		server.Close()
		if err := service.Close(); err != nil {
			t.Error(err)
		}
	}()
	work.Go(func() {
		if err := service.Read(ctx); err != nil {
			t.Error(err)
		}
	})
	prometheus := startPrometheus(t, strings.TrimPrefix(server.URL, "http://"))
	send := func(method, path string) {
		r, err := http.NewRequestWithContext(ctx, method, server.URL+path, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
		}
	}
	calm := make(chan struct{})
	work.Go(func() { // is hammered until it is calm
		for n := 0; ctx.Err() == nil; n++ {
			send("GET", fmt.Sprintf("/?user=u%d", n%10))
			select {
			case <-calm:
				time.Sleep(200 * time.Millisecond) // not hammered any more, and Redis is asked
			default:
				time.Sleep(5 * time.Millisecond)
			}
			if n%50 == 0 {
				send("POST", fmt.Sprintf("/login?user=u%d", n))
			}
		}
	})
	eventually(t, "LimitHammered fires, alone", 60*time.Second, func() bool {
		return slices.Equal(firing(t, prometheus), []string{"LimitHammered"})
	})

	b, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(b, &dashboard); err != nil {
		t.Fatal(err)
	}
	queries := 0
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries++
			var answer struct {
				Data struct{ Result []json.RawMessage }
			}
			query := url.QueryEscape(strings.ReplaceAll(target.Expr, "$__rate_interval", "10s"))
			ask(t, prometheus+"/api/v1/query?query="+query, &answer)
			if len(answer.Data.Result) == 0 {
				t.Errorf("%s: nothing for %s", panel.Title, target.Expr)
			}
		}
	}
	if queries < 15 {
		t.Errorf("only %d queries", queries)
	}

	close(calm)
	redis.Pause()
	eventually(t, "RedisSilent fires", 60*time.Second, func() bool { return slices.Contains(firing(t, prometheus), "RedisSilent") })
	redis.Resume()
	eventually(t, "all is quiet", 60*time.Second, func() bool { return len(firing(t, prometheus)) == 0 })
}

// Without Prometheus, or with a port that is taken, it says so.
func TestWithoutPrometheus(t *testing.T) {
	t.Setenv("PATH", "")
	if err := prometheus(t.Context(), "localhost:0"); !errors.Is(err, exec.ErrNotFound) {
		t.Error(err)
	}
}

func eventually(t *testing.T, what string, within time.Duration, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}
