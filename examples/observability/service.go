package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/sdk/metric"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/otelgatehouse"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

// Service is what is seen: a page with a limit by user, sessions, and rules.
type Service struct {
	http.Handler
	rules      *ratelimit.Rules
	reader     *events.Reader
	unregister func() error
	provider   *metric.MeterProvider
}

// New returns a Service. Close it.
func New(client redis.UniversalClient) (*Service, error) {
	s := &Service{}
	if err := s.build(client); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Read reads what happens to sessions until ctx ends.
func (s *Service) Read(ctx context.Context) error {
	return s.reader.Run(ctx, func(_ context.Context, batch []session.Event) error {
		for _, e := range batch {
			log.Printf("%v: %s", e.Kind, e.UserID)
		}
		return nil
	})
}

// Close ends what runs in the background.
func (s *Service) Close() error {
	var errs []error
	if s.rules != nil {
		errs = append(errs, s.rules.Close())
	}
	if s.unregister != nil {
		errs = append(errs, s.unregister())
	}
	if s.provider != nil {
		errs = append(errs, s.provider.Shutdown(context.Background()))
	}
	return errors.Join(errs...)
}

func (s *Service) build(client redis.UniversalClient) error {
	reader, err := exporter.New()
	if err != nil {
		return err
	}
	s.provider = metric.NewMeterProvider(metric.WithReader(reader))
	if s.rules, err = ratelimit.NewRules(client, ratelimit.RulesConfig{}); err != nil {
		return err
	}
	page, err := ratelimit.NewSlidingWindow(client, "page", ratelimit.PerMinute(60), ratelimit.Config{Rules: s.rules})
	if err != nil {
		return err
	}
	sessions, err := session.New(client, session.Config{Events: session.Events{Retention: time.Hour}})
	if err != nil {
		return err
	}
	s.reader = &events.Reader{Manager: sessions, Group: "log", DeadLetter: func(context.Context, events.DeadLetter) error { return nil }}
	s.unregister, err = otelgatehouse.Register(otelgatehouse.Config{
		MeterProvider: s.provider,
		Limiters:      []ratelimit.Limiter{page},
		Managers:      []*session.Manager{sessions},
		Rules:         []*ratelimit.Rules{s.rules},
		Readers:       []*events.Reader{s.reader},
	})
	if err != nil {
		return err
	}
	onDecision, err := otelgatehouse.OnDecision(s.provider)
	if err != nil {
		return err
	}
	limit := middleware.RateLimit{
		Limiter:    page,
		Key:        middleware.By("name", func(r *http.Request) string { return r.FormValue("user") }),
		OnDecision: onDecision,
	}
	if err := limit.Validate(); err != nil {
		return err
	}
	visits := func(w http.ResponseWriter, r *http.Request) {
		n, _ := sessions.Get(r.Context(), "visits").(int)
		sessions.Put(r.Context(), "visits", n+1)
		fmt.Fprintf(w, "visit %d\n", n+1)
	}
	login := func(w http.ResponseWriter, r *http.Request) { // a real one checks a password
		if err := sessions.Login(r.Context(), r.FormValue("user")); err != nil {
			http.Error(w, "not logged in", http.StatusServiceUnavailable)
		}
	}
	site := http.NewServeMux()
	site.Handle("GET /{$}", limit.Handler(http.HandlerFunc(visits)))
	site.Handle("POST /login", limit.Handler(http.HandlerFunc(login)))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.Handle("/", middleware.Sessions{Manager: sessions}.Handler(site))
	s.Handler = mux
	return nil
}
