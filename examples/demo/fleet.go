package main

import (
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/console"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// Config is what a server can be told. The zero value works.
type Config struct {
	Secret    string
	KeySecret string // required with Secret
	Logger    *slog.Logger
	Fleet     *Fleet // what the server belongs to; nil: a fleet of its own
}

// Fleet is the servers of the demo. What they decide they agree on through Redis. What stands here
// is the page's memory: the traffic that it has sent, and what became of it.
type Fleet struct {
	cable   *Cable
	stop    <-chan struct{}
	denials *console.Denials
	servers []*Server // all of them before the first one serves

	mu      sync.Mutex
	runs    map[string]*Run
	clients int // that runs have made up
	guesses []string
	outage  outage
}

// NewFleet returns a fleet without servers. Its streams and runs end when stop is closed.
func NewFleet(cable *Cable, stop <-chan struct{}) *Fleet {
	f := &Fleet{cable: cable, stop: stop, denials: console.NewDenials(100), runs: map[string]*Run{}}
	for name, traffic := range traffics {
		f.runs[name] = traffic.prepare()
		f.runs[name].finish()
	}
	return f
}

// Server is one server: an [http.Handler] with its own sessions and limiters over its own client of Redis.
type Server struct {
	http.Handler
	Name string
	Port int // where it listens; 0: nowhere

	fleet    *Fleet
	log      *slog.Logger
	sessions *session.Manager
	rules    *ratelimit.Rules

	logins    *ratelimit.SlidingWindow
	sliding   *ratelimit.SlidingWindow
	fixed     *ratelimit.FixedWindow
	bucket    *ratelimit.TokenBucket
	passwords *ratelimit.SlidingWindow
	patience  *ratelimit.SlidingWindow
	share     *ratelimit.SlidingWindow
}

// New returns a server, the next one of its fleet. Close it.
func New(client redis.UniversalClient, cfg Config) (*Server, error) {
	if cfg.Fleet == nil {
		cfg.Fleet = NewFleet(nil, nil)
	}
	s := &Server{Name: string(rune('A' + len(cfg.Fleet.servers))), fleet: cfg.Fleet, log: cfg.Logger}
	if s.log == nil {
		s.log = slog.Default()
	}
	if err := s.connect(client, cfg); err != nil {
		s.Close()
		return nil, err
	}
	s.Handler = s.routes()
	s.fleet.servers = append(s.fleet.servers, s)
	return s, nil
}

// Close ends what runs in the background.
func (s *Server) Close() {
	if s.rules != nil {
		_ = s.rules.Close()
	}
}

// connect makes what decides. All of it is configuration: what is counted stands in Redis.
func (s *Server) connect(client redis.UniversalClient, cfg Config) (err error) {
	sealed := session.Config{Logger: cfg.Logger, Events: session.Events{Retention: time.Hour}}
	if cfg.Secret != "" {
		sealed.Secrets = [][]byte{[]byte(cfg.Secret)}
	}
	if cfg.KeySecret != "" {
		sealed.KeySecret = []byte(cfg.KeySecret)
	}
	if s.sessions, err = session.New(client, sealed); err != nil {
		return err
	}
	if s.rules, err = ratelimit.NewRules(client, ratelimit.RulesConfig{Logger: cfg.Logger}); err != nil {
		return err
	}
	common := ratelimit.Config{
		Rules: s.rules, OnDecision: s.fleet.denials.Note, Logger: cfg.Logger,
		Timeout: time.Second, // more than the default: Redis, both servers and the browser share one machine
	}
	var loginErr error
	s.logins, loginErr = ratelimit.NewSlidingWindow(client, "login", ratelimit.PerMinute(30), common)
	return errors.Join(loginErr, s.limits(client, common), s.guessing(client, common), s.penalties(client, common), s.fallback(client, common))
}

func (s *Server) limiters() []ratelimit.Limiter {
	return []ratelimit.Limiter{s.sliding, s.fixed, s.bucket, s.passwords, s.patience, s.share, s.logins}
}

func (s *Server) routes() http.Handler {
	withSession := http.NewServeMux()
	withSession.HandleFunc("GET /{$}", s.page)
	s.devices(withSession)
	s.console(withSession)
	withSession.Handle("POST /password", s.guessed())

	// What needs no session is served outside, and costs none.
	all := http.NewServeMux()
	for path, limit := range s.limited() {
		all.Handle("GET "+path, limit.Handler(http.HandlerFunc(passed)))
	}
	all.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	all.HandleFunc("POST /runs/{name}", s.run)
	all.HandleFunc("POST /redis", s.cut)
	all.HandleFunc("GET /style.css", asset("style.css"))
	all.HandleFunc("GET /demo.js", asset("demo.js"))
	// snippet sessions: every request has its session
	all.Handle("/", middleware.Sessions{
		Manager: s.sessions,
		Client:  s.device, // "Firefox on Windows", for the list of devices
		OnError: s.away,   // Redis cannot be asked who this is
		Logger:  s.log,
	}.Handler(withSession))
	protected := http.NewCrossOriginProtection().Handler(all)
	// end
	return hardened(protected)
}

// hardened says what the pages may do. The console says so itself.
func hardened(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}
