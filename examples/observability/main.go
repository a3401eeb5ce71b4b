// Command observability is a service whose limits and sessions are seen in Prometheus and Grafana.
// It starts a Prometheus of its own, which scrapes it and has its alerts, and sends itself some
// traffic, so that there is something to see.
//
//	REDIS_URL  such as redis://localhost:6379/0; default: a Redis inside the process
//
// Prometheus must be installed (apt-get install prometheus, brew install prometheus); without it the
// metrics are at /metrics all the same. Import dashboard.json into a Grafana that has this Prometheus
// as a data source.
package main

import (
	"context"
	"embed"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/startup"
)

//go:embed prometheus.yml alerts.yml
var files embed.FS

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal("observability: ", err)
	}
}

func run(ctx context.Context) error {
	client, err := startup.Connect(os.Getenv("REDIS_URL"))
	if err != nil {
		return err
	}
	defer client.Close()
	service, err := New(client)
	if err != nil {
		return err
	}
	defer service.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	var serving error
	all.Go(func() {
		defer stop()
		serving = startup.Serve(ctx, "localhost:8080", service, 5*time.Second)
	})
	all.Go(func() {
		if err := prometheus(ctx, "localhost:9090"); err != nil && ctx.Err() == nil {
			log.Print("no Prometheus: ", err)
		}
	})
	all.Go(func() {
		if err := service.Read(ctx); err != nil {
			log.Print("events: ", err)
		}
	})
	all.Go(func() { visit(ctx, "http://localhost:8080") })
	log.Print("The service is at http://localhost:8080/, its metrics at /metrics.")
	log.Print("Prometheus is at http://localhost:9090/alerts (Ctrl-C ends it).")
	all.Wait()
	return serving
}

// prometheus runs Prometheus until ctx ends, in a folder that is removed then.
func prometheus(ctx context.Context, addr string) error {
	dir, err := os.MkdirTemp("", "prometheus-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"prometheus.yml", "alerts.yml"} {
		b, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr, "--log.level=error")
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd.Run()
}

// visit has some users come by, one of whom asks too often.
func visit(ctx context.Context, service string) {
	for ctx.Err() == nil {
		user := "hasty"
		if rand.IntN(4) == 0 {
			user = string(rune('a' + rand.IntN(26)))
		}
		method, path := "GET", "/"
		if rand.IntN(20) == 0 {
			method, path = "POST", "/login"
		}
		r, err := http.NewRequestWithContext(ctx, method, service+path+"?user="+user, nil)
		if err != nil {
			return
		}
		if res, err := http.DefaultClient.Do(r); err == nil {
			res.Body.Close()
		}
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
	}
}
