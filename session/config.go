package session

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// Config configures a Manager. The zero value is ready to use: a lifetime of a day, an
// idle timeout of an hour, neither signed cookies nor sealed records. New fills in what
// is zero and reports everything that is wrong at once.
type Config struct {
	// Secrets sign cookies and seal records, the newest first; each has at least 32
	// bytes. With none, neither is done. To change the secret, first add the new one at
	// the end, on every server, and then put it in front: no server ever meets what it
	// cannot read. Sessions move to it as they are used, and [Manager.SecretUse] says
	// when the old one may go.
	Secrets [][]byte
	// KeySecret hides in Redis who has sessions; at least 32 bytes, required with
	// Secrets. A user's sessions are found by it, so it never changes: a new one logs
	// everybody out.
	KeySecret []byte

	// Lifetime ends a login however much it is used; default 24 hours. Only Login
	// starts it anew.
	Lifetime time.Duration
	// IdleTimeout ends a login that is not used; default one hour, negative: none. It is
	// kept with a tolerance of 5 %, so that use is written to Redis at most 20 times per
	// IdleTimeout.
	//
	// Lifetimes hold as configured now, for sessions that are open, too: a shorter one
	// ends what has passed it at once, a longer one logs nobody out.
	IdleTimeout time.Duration
	// Visitor is the life of a session without a user, Remembered that of one after
	// [Manager.Remember]. What is zero is as of a login.
	Visitor, Remembered Life
	// Persistent says that new sessions begin with cookies that outlive the browser, and
	// logins as remembered ones, as if Remember had been called.
	Persistent bool

	// Accounts says how many sessions a user may have.
	Accounts Accounts

	// Rotation says when a session gets a new ID besides Login.
	Rotation Rotation

	// Events says what is told of what happens to sessions; see package session/events.
	Events Events

	// Legacy is another scs store whose sessions keep working.
	Legacy Legacy

	// Prefix begins every key in Redis: at most 128 bytes of printable ASCII without braces,
	// which choose the slot in a cluster. Default "gatehouse:".
	Prefix string
	// Timeout bounds each command to Redis; default 500 milliseconds. A commit, which may
	// take several, is bounded by twice as much.
	Timeout time.Duration
	// Logger gets what an operator should know; nil: slog.Default(). It never gets
	// tokens, values or user IDs.
	Logger *slog.Logger

	// OnOperation is called at the end of each method that asks or changes a session, on its
	// goroutine; nil: nothing. It must not block, nor call the Manager.
	OnOperation func(Operation)
}

// Life is how long a kind of session lasts. The zero value is that of a login.
type Life struct {
	Lifetime    time.Duration // 0: as of a login
	IdleTimeout time.Duration // 0: as of a login; negative: none
}

// Accounts says how many sessions a user may have at a time. The zero value: 100, and a
// login that exceeds them ends the one that was idle for the longest.
type Accounts struct {
	// Max bounds the sessions of a user; default 100, at most 1,000. It is kept however
	// many logins arrive at once. Servers of different lifetimes each count, and list, the
	// sessions that answer on them: until all have the same, more may answer on some.
	Max int
	// WhenFull says what becomes of a login beyond Max, or beyond its MaxSessions.
	WhenFull WhenFull
	// NotBefore ends all sessions of users that began earlier, by Redis's clock. It is for
	// the day on which something has leaked: set it on every server.
	NotBefore time.Time
}

// WhenFull says what becomes of a login when the user has as many sessions as possible.
type WhenFull uint8

const (
	EndIdlest   WhenFull = iota // the session that has been idle for the longest makes room
	RefuseLogin                 // the login is refused with ErrTooManySessions
)

const (
	defaultMax = 100
	maxMax     = 1000 // what one script may look through
)

// Rotation configures new IDs. The zero value: only at Login, and a Grace of 30 seconds.
type Rotation struct {
	// Every gives a session a new ID at this interval; 0: only at Login.
	Every time.Duration
	// Grace is how long a rotated ID still leads to its session; default 30 seconds. A
	// browser that never got the response with the new ID, and asks again only after the
	// Grace, has lost its session. During Grace, an ID from before a login, a logout or
	// an expiry loads an anonymous session that cannot be saved. It must exceed twice
	// the time of the longest request that may still set a cookie.
	Grace time.Duration
}

// Legacy says how sessions of another scs store go on here. The zero value: there are
// none.
//
// A session is copied at its first use and stays in the old store until it is logged out
// or ends, so that old and new servers serve it side by side. After the copy, old servers
// do not see what new ones change, and neither a logout nor a login on an old server reaches the copy: who
// logs in there as somebody else is still the first user here. Have logins and logouts go to new
// servers as soon as there is one.
type Legacy struct {
	// Store holds gob-encoded scs sessions under their plain tokens, such as
	// scs/redisstore or scs/goredisstore.
	Store scs.Store
	// User returns by the values of a legacy session who is logged in, "" for nobody. The
	// time of authentication of such a session is unknown: zero. With nil no copied
	// session has a user.
	User func(values map[string]any) string
	// Lifetime must be at least the longest that the old store gives a session; default
	// Config.Lifetime. A copy keeps the deadline of its session, and lasts no longer than this. Ends
	// hold for as long: a session with longer left can be copied again after its End or EndAll. The
	// first one that is seen is logged. Each process that calls EndAll, a tool too, needs the same
	// Legacy: its Lifetime is how long the end holds.
	Lifetime time.Duration
}

// checked is a Config whose zero fields are filled in, and what is made of it.
type checked struct {
	Config
	ring *seal.Ring
}

const minSecret = 32

// check fills in defaults and reports all that is wrong.
func (cfg Config) check(client redis.UniversalClient) (checked, error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("session: "+format, args...)) }
	if client == nil {
		bad("client is nil")
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
	if len(cfg.Secrets) > 0 && cfg.KeySecret == nil {
		bad("KeySecret is required with Secrets")
	} else if cfg.KeySecret != nil && len(cfg.KeySecret) < minSecret {
		bad("KeySecret has %d bytes, at least %d are required", len(cfg.KeySecret), minSecret)
	}
	for _, d := range []struct {
		name  string
		value *time.Duration
		byDef time.Duration
	}{
		{"Lifetime", &cfg.Lifetime, 24 * time.Hour},
		{"Rotation.Every", &cfg.Rotation.Every, 0},
		{"Rotation.Grace", &cfg.Rotation.Grace, 30 * time.Second},
		{"Timeout", &cfg.Timeout, 500 * time.Millisecond},
	} {
		checkDuration(bad, d.name, d.value, d.byDef)
	}
	checkIdle(bad, "IdleTimeout", &cfg.IdleTimeout, time.Hour)
	for _, l := range []struct {
		name string
		life *Life
	}{{"Visitor", &cfg.Visitor}, {"Remembered", &cfg.Remembered}} {
		checkDuration(bad, l.name+".Lifetime", &l.life.Lifetime, cfg.Lifetime)
		checkIdle(bad, l.name+".IdleTimeout", &l.life.IdleTimeout, cfg.IdleTimeout)
	}
	switch a := &cfg.Accounts; {
	case a.Max == 0:
		a.Max = defaultMax
	case a.Max < 0 || a.Max > maxMax:
		bad("Accounts.Max %d is not between 1 and %d", a.Max, maxMax)
	}
	if cfg.Accounts.WhenFull > RefuseLogin {
		bad("Accounts.WhenFull %d is neither EndIdlest nor RefuseLogin", cfg.Accounts.WhenFull)
	}
	if at := cfg.Accounts.NotBefore; !at.IsZero() && at.UnixMicro() > time.Now().Add(time.Hour).UnixMicro() {
		bad("Accounts.NotBefore %v is in the future: nobody could log in", at)
	}
	cfg.Events.check(bad)
	cfg.Legacy.check(bad, cfg)
	if cfg.Legacy.Lifetime == 0 {
		cfg.Legacy.Lifetime = cfg.Lifetime
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return checked{cfg, ring}, errors.Join(errs...)
}

func (l Legacy) check(bad func(string, ...any), cfg Config) {
	switch {
	case l.Store == nil && l.User != nil:
		bad("Legacy.User is set, but not Legacy.Store")
	case l.Store == nil && l.Lifetime != 0:
		bad("Legacy.Lifetime is set, but not Legacy.Store")
	case l.Lifetime < 0:
		bad("Legacy.Lifetime %v is negative", l.Lifetime)
	}
}

func checkDuration(bad func(string, ...any), name string, d *time.Duration, byDef time.Duration) {
	switch {
	case *d < 0:
		bad("%s %v is negative", name, *d)
	case *d == 0:
		*d = byDef
	case *d < time.Millisecond:
		bad("%s %v is below a millisecond", name, *d)
	case *d > maxDuration:
		bad("%s %v is above a hundred years", name, *d)
	}
}

// checkIdle makes "none" of a negative value, which is 0 from here on. A default is
// given in that form.
func checkIdle(bad func(string, ...any), name string, d *time.Duration, byDef time.Duration) {
	switch {
	case *d == 0:
		*d = byDef
	case *d < 0:
		*d = 0
	case *d < touchShare*time.Millisecond:
		bad("%s %v is below %v", name, *d, touchShare*time.Millisecond)
	case *d > maxDuration:
		bad("%s %v is above a hundred years", name, *d)
	}
}

// maxDuration keeps times within what the scripts calculate with.
const maxDuration = 100 * 365 * 24 * time.Hour

// records returns where the sessions of a checked Config are.
func (c checked) records(client redis.UniversalClient) *records {
	ofLogin := newLife(c.Lifetime, c.IdleTimeout)
	ofVisitor := newLife(c.Visitor.Lifetime, c.Visitor.IdleTimeout)
	return &records{
		redis:  roundtrip.New(client, c.Timeout, c.Logger),
		keys:   newKeys(c.Prefix, c.KeySecret),
		sealer: newSealer(c.ring),
		clocks: newClocks(client),
		lives: [kinds]life{
			visitor:    ofVisitor,
			login:      ofLogin,
			remembered: newLife(c.Remembered.Lifetime, c.Remembered.IdleTimeout, ofLogin),
			begun:      ofVisitor,
		},
		grace: c.Rotation.Grace, timeout: c.Timeout,
		accounts: c.Accounts, notBefore: max(0, c.Accounts.NotBefore.UnixMicro()),
		legacyLife: c.Legacy.Lifetime, fence: max(c.Lifetime, c.Legacy.Lifetime),
		events: c.Events, log: c.Logger,
	}
}
