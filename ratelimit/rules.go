package ratelimit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/push"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/seal"
	"github.com/gatehouse-go/gatehouse/scripts"
)

const (
	maxRules   = 10_000
	historyLen = 10_000
	rulesKept  = 400 * 24 * time.Hour
)

// RulesConfig holds what is optional about Rules.
type RulesConfig struct {
	// Prefix begins the keys of Redis and the channel. Default "gatehouse:".
	Prefix string
	// KeySecret must be that of the limiters. With it Redis holds an HMAC of each Rule's Key,
	// and the Key sealed.
	KeySecret []byte
	// Timeout bounds each call of Redis. Default 2s.
	Timeout time.Duration
	// Logger gets a line when changes are not heard of at once, and when rules cannot be
	// read. nil: slog.Default().
	Logger *slog.Logger
}

// Rules are limits that operators change while services run: one set for all limiters of a
// fleet that have it as their Config.Rules. The rule of a key beats the limit of With; that
// beats the rule for all keys; that beats the limiter's own. Make one per process.
//
// Each process holds all rules, up to 10,000, and asks Redis for none while it decides. A
// change reaches the others within milliseconds by a channel of Redis, and within two
// seconds where that is cut. While Redis is away, and before it has answered for the first
// time, the last known rules hold, if any; those that end do so by themselves. Rules that no
// process has asked for in 200 days or more may be gone.
//
// Of changes at the same time the last one holds, and History shows both. Rules is safe for
// concurrent use.
type Rules struct {
	client  redis.UniversalClient
	sender  *roundtrip.Sender
	prefix  string // of both keys, and the channel
	secret  string // KeySecret, to be compared
	subject subjects
	label   *seal.Box // seals Key; nil: it is readable
	log     *slog.Logger
	close   context.CancelFunc

	snapshot atomic.Pointer[snapshot] // never nil
	loaded   atomic.Int64             // when Redis has last said which rules there are, µs since began
	began    time.Time
	zero     atomic.Int64 // began by Redis's clock, µs since 1970
	due      atomic.Bool  // a change was heard of, and a load is on its way
	mu       sync.Mutex   // of loads
	failed   bool         // the last one has
	policies sync.Map     // of int64: the most requests that all limiters of a name can have
}

// pollRules is how often to look for changes that were not heard of.
var pollRules = 2 * time.Second

// NewRules returns the rules that are kept in a Redis, which may be another one than that of the
// limiters. It does not wait for Redis. The error names everything that is wrong.
func NewRules(client redis.UniversalClient, cfg RulesConfig) (*Rules, error) {
	var noClient error
	if client == nil {
		noClient = errors.New("nil client")
	}
	shared := Config{Prefix: cfg.Prefix, KeySecret: cfg.KeySecret, Timeout: cfg.Timeout, Logger: cfg.Logger}
	if err := invalid("rules", noClient, shared.validate()); err != nil {
		return nil, err
	}
	if shared.Timeout == 0 {
		shared.Timeout = 2 * time.Second
	}
	shared = shared.withDefaults()
	r := &Rules{
		client: client, sender: roundtrip.New(client, shared.Timeout, shared.Logger),
		prefix: shared.Prefix + "rl:rules", secret: string(cfg.KeySecret), subject: newSubjects(cfg.KeySecret),
		log: cfg.Logger, began: time.Now(),
	}
	if r.log == nil {
		r.log = slog.Default()
	}
	r.zero.Store(r.began.UnixMicro())
	r.snapshot.Store(&snapshot{})
	if cfg.KeySecret != nil {
		ring, err := seal.NewRing([][]byte{cfg.KeySecret})
		if err != nil {
			return nil, invalid("rules", err)
		}
		box, err := ring.Box(ring.Current(), "ratelimit rule", nil)
		if err != nil {
			return nil, invalid("rules", err)
		}
		r.label = &box
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.close = cancel
	feed := push.Feed{
		Client: client, Channel: r.channel(), Every: pollRules, Logger: r.log,
		Heard: func(string) {
			if !r.due.Swap(true) {
				go r.look(ctx)
			}
		},
		Look: r.look,
	}
	go r.look(ctx)
	go feed.Run(ctx, nil)
	return r, nil
}

// Close ends the subscription. The rules that are known go on to hold. Close does nothing the
// second time.
func (r *Rules) Close() error {
	r.close()
	return nil
}

func (r *Rules) channel() string { return r.prefix }
func (r *Rules) keys() []string {
	return []string{r.prefix + ":{rules}", r.prefix + ":{rules}:changes"}
}

var (
	rulesLoad   = scripts.Get("limit/rules_load.lua")
	rulesChange = scripts.Get("limit/rules_change.lua")
)

// include notes that there are limiters of a name, with at most so many requests.
func (r *Rules) include(policy string, most int64) {
	if r == nil {
		return
	}
	for {
		known, there := r.policies.LoadOrStore(policy, most)
		if !there || known.(int64) <= most || r.policies.CompareAndSwap(policy, known, most) {
			return
		}
	}
}

// look finds out which rules there are.
func (r *Rules) look(ctx context.Context) { _ = r.load(ctx) }

func (r *Rules) load(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.due.Store(false)
	asked, known := r.since(), r.snapshot.Load()
	s, err := r.fetch(ctx, known.version)
	if err != nil {
		if !r.failed && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "ratelimit: rules cannot be read, those that are known hold", slog.Any("error", err))
			r.failed = true
		}
		return err
	}
	r.failed = false
	r.loaded.Store(r.since())
	r.zero.Store(s.now - asked)
	if s.version == known.version {
		return nil
	}
	set := &snapshot{version: s.version, of: make(map[string]*policyRules)}
	for field, value := range s.rules {
		if rule, err := r.read(field, value); err != nil {
			set.invalid++
		} else {
			set.add(r, rule, field[len(rule.Policy)+1:])
		}
	}
	if set.invalid > 0 {
		r.log.LogAttrs(ctx, slog.LevelError, "ratelimit: rules that cannot be read do not hold", slog.Int("rules", set.invalid))
	}
	r.snapshot.Store(set)
	return nil
}

// fetched are the rules as they stand in Redis.
type fetched struct {
	now     int64 // Redis's time, µs
	version string
	rules   map[string]string // by field; not if the version is that of the caller
}

// rulesPage is how many rules one script reads: it keeps Redis from others for a few milliseconds,
// also if they are large.
const rulesPage = 200

// fetch reads the rules, unless their version is known. What changes meanwhile is read as it was or
// as it is, and has another version. Where a page begins only one server knows: after a failover
// between two pages some rules are missing, and it begins anew.
func (r *Rules) fetch(ctx context.Context, known string) (f fetched, err error) {
	for range 3 {
		var all bool
		if f, all, err = r.fetchOnce(ctx, known); all || err != nil {
			return f, err
		}
	}
	return fetched{}, fmt.Errorf("%w: the rules are not all there", ErrUnavailable)
}

// fetchOnce reports whether it has read all.
func (r *Rules) fetchOnce(ctx context.Context, known string) (f fetched, all bool, err error) {
	for cursor := "0"; ; {
		raw, err := r.sender.Run(ctx, rulesLoad, r.keys()[:1], known, rulesKept.Milliseconds(), cursor, rulesPage)
		if err != nil {
			return fetched{}, false, failure(ctx, err)
		}
		list, _ := raw.([]any)
		if len(list) != 2 && len(list) != 5 {
			return fetched{}, false, fmt.Errorf("%w: an unexpected reply of type %T", ErrUnavailable, raw)
		}
		if f.rules == nil {
			f.now, _ = list[0].(int64)
			f.version, _ = list[1].(string)
			f.rules = make(map[string]string)
		}
		if len(list) == 2 {
			return f, true, nil
		}
		page, _ := list[3].([]any)
		for i := 0; i+1 < len(page); i += 2 {
			field, _ := page[i].(string)
			value, _ := page[i+1].(string)
			if field != "" { // the version
				f.rules[field] = value
			}
		}
		if cursor, _ = list[2].(string); cursor == "0" || cursor == "" {
			version, _ := list[1].(string)
			fields, _ := list[4].(int64)
			return f, version != f.version || fields == int64(len(f.rules))+1, nil // the version is a field
		}
	}
}

// read reads a rule that stands in Redis, and checks it.
func (r *Rules) read(field, value string) (Rule, error) {
	rule, err := r.open(field, value)
	if err == nil {
		err = r.check(rule, false)
	}
	return rule, err
}

// since is how long there are these Rules, in µs: a clock that nobody sets.
func (r *Rules) since() int64 { return time.Since(r.began).Microseconds() }

// now is the time by Redis's clock, in µs since 1970, as far as this process knows it.
func (r *Rules) now() int64 { return r.zero.Load() + r.since() }

// Now returns the time by Redis's clock, by which Rule.Until goes, as far as this process knows it.
func (r *Rules) Now() time.Time { return time.UnixMicro(r.now()) }

// Set sets a rule, in the place of one for the same Policy and Key. When it returns nil, this
// process obeys it, and others do within milliseconds. An error that wraps [ErrRule] names what
// is wrong with it; after [ErrUnavailable] it may hold all the same.
func (r *Rules) Set(ctx context.Context, rule Rule) error {
	if err := r.check(rule, true); err != nil {
		return err
	}
	return r.change(ctx, "set", rule)
}

// Remove removes the rule for rule.Policy and rule.Key; Actor and Reason say who does it, and
// why. That there is none is an [ErrRule]; after [ErrUnavailable] it may be gone.
func (r *Rules) Remove(ctx context.Context, rule Rule) error {
	if err := errors.Join(r.checkPlace(rule.Policy, rule.Key, false), checkBy(rule.Actor, rule.Reason)); err != nil {
		return err
	}
	return r.change(ctx, "removed", Rule{Policy: rule.Policy, Key: rule.Key, Actor: rule.Actor, Reason: rule.Reason})
}

// Reset resets a limiter's key, as [Resetter] does, and leaves a trace in History: first that,
// then what it says. Of a limiter by [All] each one has its own.
func (r *Rules) Reset(ctx context.Context, l Limiter, key, actor, reason string) error {
	if _, ok := l.(Resetter); !ok {
		return fmt.Errorf("ratelimit: %T does not reset", l)
	}
	policies := policiesOf(l, key)
	if len(policies) == 0 {
		return fmt.Errorf("ratelimit: %T has no name to be reset by", l)
	}
	for _, p := range policies {
		if err := errors.Join(r.checkPlace(p.name, p.key, false), checkBy(actor, reason)); err != nil {
			return err
		}
		if err := r.change(ctx, "reset", Rule{Policy: p.name, Key: p.key, Actor: actor, Reason: reason}); err != nil {
			return err
		}
	}
	return reset(ctx, l, key)
}

// policy is the name of a limiter, and the key that it is given.
type policy struct{ name, key string }

// policiesOf returns those that l consists of, given key.
func policiesOf(l Limiter, key string) (all []policy) {
	switch l := l.(type) {
	case *keyed:
		return policiesOf(l.limiter, l.key(key))
	case *allOf:
		for _, m := range l.limiters {
			all = append(all, policiesOf(m, key)...)
		}
	case Named:
		all = []policy{{l.Name(), key}}
	}
	return all
}

func (r *Rules) change(ctx context.Context, what string, rule Rule) error {
	field, value := r.write(rule)
	reply, err := r.sender.Run(ctx, rulesChange, r.keys(), what, field, value, rand.Text(), maxRules, historyLen, rulesKept.Milliseconds(), r.channel())
	if err != nil {
		return failure(ctx, err)
	}
	switch reply {
	case "over":
		return fmt.Errorf("%w: Until is over", ErrRule)
	case "full":
		return fmt.Errorf("%w: there are %d already", ErrRule, maxRules)
	case "none":
		return fmt.Errorf("%w: policy %q has no rule for this key", ErrRule, rule.Policy)
	}
	if what == "reset" {
		return nil
	}
	return r.load(ctx)
}

// List returns the rules that hold, as Redis has them, by policy and key, those for all keys
// first.
func (r *Rules) List(ctx context.Context) ([]Rule, error) {
	f, err := r.fetch(ctx, "")
	if err != nil {
		return nil, err
	}
	var rules []Rule
	for field, value := range f.rules {
		if rule, err := r.read(field, value); err == nil && (rule.Until.IsZero() || rule.Until.UnixMicro() > f.now) {
			rules = append(rules, rule)
		}
	}
	slices.SortFunc(rules, func(a, b Rule) int {
		return strings.Compare(a.order(), b.order())
	})
	return rules, nil
}

// RuleChange is an entry of History.
type RuleChange struct {
	Time time.Time // by Redis's clock
	What string    // "set", "removed" or "reset"
	Rule Rule      // of the last two its Policy, Key, Actor and Reason
}

// History returns the last n changes, at most 10,000, newest first. They are kept for 400
// days after the last one. Those that cannot be read are left out.
func (r *Rules) History(ctx context.Context, n int) ([]RuleChange, error) {
	ctx, cancel := context.WithTimeout(ctx, historyTimeout)
	defer cancel()
	entries, err := r.client.XRevRangeN(ctx, r.keys()[1], "+", "-", int64(max(1, min(n, historyLen)))).Result()
	if err != nil {
		return nil, failure(ctx, err)
	}
	var list []RuleChange
	for _, e := range entries {
		field, _ := e.Values["of"].(string)
		value, _ := e.Values["rule"].(string)
		what, _ := e.Values["what"].(string)
		var ms int64
		if _, err := fmt.Sscanf(e.ID, "%d-", &ms); err != nil {
			continue
		}
		if rule, err := r.open(field, value); err == nil {
			list = append(list, RuleChange{Time: time.UnixMilli(ms), What: what, Rule: rule})
		}
	}
	return list, nil
}

const historyTimeout = 10 * time.Second

// RulesStats says which rules this process obeys.
type RulesStats struct {
	Version string        // changes with each change; "": there are none
	Rules   int           // that it knows, also those that have ended since
	Invalid int           // entries that it could not read
	Age     time.Duration // since Redis has last said which rules there are, or since NewRules
}

// Stats may be called at any time.
func (r *Rules) Stats() RulesStats {
	set := r.snapshot.Load()
	return RulesStats{
		Version: set.version, Rules: set.len(), Invalid: set.invalid,
		Age: time.Duration(r.since()-r.loaded.Load()) * time.Microsecond,
	}
}
