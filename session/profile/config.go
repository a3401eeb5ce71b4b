package profile

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// Config holds what is optional about a Cache. The zero value is ready to use. All servers that
// share a cache should have the same.
type Config struct {
	// TTL is how long a value is kept; default 5 minutes. Each is kept up to a tenth shorter, at
	// random, so that what was loaded at once does not end at once. It bounds how old a value can
	// be when someone writes to the database and tells nobody, or when Redis loses what it was told.
	TTL time.Duration
	// Refresh is how long before its end a value that is still read is loaded anew, in the
	// background, once per fleet. Default a fifth of TTL, at most four fifths; negative: not at all.
	Refresh time.Duration
	// NotFoundTTL is how long it is remembered that the loader returned ErrNotFound; default 10
	// seconds, at most TTL; negative: not at all. For as long, a row that is inserted past Update
	// and Forget is not seen.
	NotFoundTTL time.Duration

	// Timeout bounds each call of Redis; default 500 milliseconds.
	Timeout time.Duration
	// LoadTimeout bounds each call of the loader and of Update's write; default 5 seconds. Their
	// context ends then, which they must obey. A lease lasts for LoadTimeout and twice Timeout:
	// so long are others held up by a server that dies, and so long may what was cached before be
	// seen after a server has died within Update.
	LoadTimeout time.Duration
	// MaxLoads bounds how many loads of this process run at once while Redis is away; default 10,
	// negative: none, and Get returns ErrUnavailable then.
	MaxLoads int

	// Secrets seal the values in Redis, as those of a session.Config do: the newest first, each of
	// at least 32 bytes. Values that cannot be opened are loaded anew. Who can write to Redis can put
	// an older value of the same ID back, also a sealed one.
	Secrets [][]byte
	// KeySecret hides in Redis which IDs there are; at least 32 bytes. Keys hold a digest of the ID:
	// without a KeySecret, those who can guess an ID can look for it. A cache with another
	// KeySecret is another cache.
	KeySecret []byte

	// Prefix begins every key in Redis: at most 128 bytes of printable ASCII without braces. Default
	// "gatehouse:".
	Prefix string
	// Logger gets what an operator should know; nil: slog.Default(). It gets IDs or values only if
	// your loader's errors and panics have them.
	Logger *slog.Logger
}

const (
	minSecret   = 32
	maxDuration = 365 * 24 * time.Hour
	maxName     = 64
)

// check fills in defaults and reports all that is wrong.
func (cfg Config) check(client redis.UniversalClient, name string, load bool) (*core, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("profile: "+format, args...)) }
	if client == nil {
		bad("client is nil")
	}
	if !load {
		bad("load is nil")
	}
	if name == "" || len(name) > maxName || !check.KeyText(name) || strings.Contains(name, ":") {
		bad("invalid name %q: 1 to %d bytes of printable ASCII without braces and colons", name, maxName)
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "gatehouse:"
	}
	if err := check.Prefix(cfg.Prefix); err != nil {
		bad("%w", err)
	}
	ring, err := seal.NewRing(cfg.Secrets)
	if err != nil {
		bad("%w", err)
	}
	if cfg.KeySecret != nil && len(cfg.KeySecret) < minSecret {
		bad("KeySecret has %d bytes, at least %d are required", len(cfg.KeySecret), minSecret)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		byDef func() time.Duration
		off   bool // negative: 0
	}{
		{"TTL", &cfg.TTL, func() time.Duration { return 5 * time.Minute }, false},
		{"Refresh", &cfg.Refresh, func() time.Duration { return cfg.TTL / 5 }, true},
		{"NotFoundTTL", &cfg.NotFoundTTL, func() time.Duration { return min(10*time.Second, cfg.TTL) }, true},
		{"Timeout", &cfg.Timeout, func() time.Duration { return 500 * time.Millisecond }, false},
		{"LoadTimeout", &cfg.LoadTimeout, func() time.Duration { return 5 * time.Second }, false},
	} {
		switch v := d.value; {
		case *v < 0 && d.off:
			*v = 0
		case *v < 0:
			bad("%s %v is negative", d.name, *v)
		case *v == 0:
			*v = d.byDef()
		case *v < time.Millisecond:
			bad("%s %v is below a millisecond", d.name, *v)
		case *v > maxDuration:
			bad("%s %v is above a year", d.name, *v)
		}
	}
	if cfg.Refresh > cfg.TTL/5*4 {
		bad("Refresh %v is above four fifths of TTL %v", cfg.Refresh, cfg.TTL)
	}
	if cfg.NotFoundTTL > cfg.TTL {
		bad("NotFoundTTL %v is above TTL %v", cfg.NotFoundTTL, cfg.TTL)
	}
	if cfg.MaxLoads == 0 {
		cfg.MaxLoads = 10
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	redis := roundtrip.New(client, cfg.Timeout, cfg.Logger)
	return &core{
		name: name, cfg: cfg, redis: redis, near: redis.Cached(), masters: check.ReadsMasters(client),
		prefix: cfg.Prefix + "profile:" + name + ":", ids: seal.NewDigest(cfg.KeySecret, "profile ID"), ring: ring,
		lease: cfg.LoadTimeout + 2*cfg.Timeout,
		turns: make(map[string]*turn), away: make(map[string]*turn), slots: make(chan struct{}, max(0, cfg.MaxLoads)),
	}, nil
}
