package ratelimit

import (
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/check"
)

// Config holds what is optional about a limiter. The zero value is a good
// default, field by field. A field that a constructor has no use for is an error.
type Config struct {
	// Prefix begins every Redis key: <Prefix>rl:<kind>:<name>:…{<subject>}, where subject is
	// made of the key given to Take. scripts/README.md lists them. Default "gatehouse:".
	Prefix string

	// KeySecret, of at least 32 bytes, makes an HMAC of each subject, so that Redis holds
	// neither addresses nor user IDs. All servers must have the same. A new one begins all
	// limits anew. Default nil: subjects are readable.
	KeySecret []byte

	// Timeout bounds the wait for Redis in one Take. Default 250ms. It should be
	// longer than Redis's worst hiccup: a Take that times out is decided elsewhere.
	Timeout time.Duration

	// Servers is how many servers share the limit. TakeLocally allows each of them
	// that part of it, at least one request. Default 1: each allows all of it.
	Servers int

	// MaxKeys bounds how many keys are kept in process: denials that are remembered,
	// and buckets of TakeLocally or Local. One costs about 200 bytes, in a sliding
	// window 8 more per permit. When more are needed, those whose quota is back
	// soonest are forgotten first, or nearly so. Default 65,536.
	MaxKeys int

	// Penalty bans keys that are denied again and again. Default: it does not.
	Penalty Penalty

	// Rules are limits that operators change while services run. nil: none.
	Rules *Rules

	// Lease is for how long a place of a [Concurrency] stays taken after its server
	// crashed. It is renewed after each third of that. Default 15s, at least 100ms.
	Lease time.Duration

	// Logger gets a line when Redis stops answering and when it answers again, none for
	// requests: of what stands on one client, the first Logger that is not nil. nil:
	// slog.Default().
	Logger *slog.Logger

	// OnDecision is called at the end of every Take, on its goroutine. nil: nothing.
	OnDecision func(Decision)
}

// Decision is the argument of Config.OnDecision.
type Decision struct {
	Key    string // as given to Take
	Cost   int    // as given to Take
	Result Result
	Err    error         // as returned by Take; then Result is the zero value
	Policy string        // name of the limiter, also with an error
	Took   time.Duration // the whole of Take
}

func (c Config) withDefaults() Config {
	if c.Prefix == "" {
		c.Prefix = "gatehouse:"
	}
	if c.Timeout == 0 {
		c.Timeout = 250 * time.Millisecond
	}
	if c.Servers == 0 {
		c.Servers = 1
	}
	if c.MaxKeys == 0 {
		c.MaxKeys = 1 << 16
	}
	if c.Lease == 0 {
		c.Lease = 15 * time.Second
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if err := check.Prefix(c.Prefix); err != nil {
		errs = append(errs, err)
	}
	if c.KeySecret != nil && len(c.KeySecret) < 32 {
		errs = append(errs, fmt.Errorf("KeySecret has %d bytes, at least 32 are required", len(c.KeySecret)))
	}
	if c.Rules != nil && c.Rules.secret != string(c.KeySecret) {
		errs = append(errs, errors.New("KeySecret is not that of the Rules"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("negative Timeout %v", c.Timeout))
	}
	if c.Servers < 0 {
		errs = append(errs, fmt.Errorf("negative Servers %d", c.Servers))
	}
	if c.MaxKeys < 0 {
		errs = append(errs, fmt.Errorf("negative MaxKeys %d", c.MaxKeys))
	}
	if c.Lease != 0 && (c.Lease < 100*time.Millisecond || c.Lease > MaxWindow) {
		errs = append(errs, fmt.Errorf("invalid Lease %v: 100ms to %v", c.Lease, MaxWindow))
	}
	return errors.Join(append(errs, c.Penalty.validate())...)
}

// ignores returns an error for each of the fields of those names that is set.
func (c Config) ignores(names ...string) error {
	var errs []error
	for _, name := range names {
		if v := reflect.ValueOf(c).FieldByName(name); !v.IsZero() {
			errs = append(errs, fmt.Errorf("what Config.%s says does nothing here", name))
		}
	}
	return errors.Join(errs...)
}

func validateName(name string) error {
	if name == "" || len(name) > 64 || !check.KeyText(name) || strings.Contains(name, ":") {
		return fmt.Errorf("invalid name %q: 1 to 64 bytes of printable ASCII without braces and colons", name)
	}
	return nil
}

// invalid joins the errors that are not nil under the name of the limiter.
func invalid(what string, errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("ratelimit: %s: %w", what, err)
	}
	return nil
}
