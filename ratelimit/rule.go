package ratelimit

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrRule is wrapped by the errors of a change of [Rules] that cannot be made.
var ErrRule = errors.New("ratelimit: invalid rule")

// Mode says what a Rule does.
type Mode uint8

const (
	Enforce Mode = iota // the limit is Rule.Requests
	Exempt              // the limit does not hold; inside All the others do
	Deny                // everything is denied, until Rule.Until
)

var modes = [...]string{"enforce", "exempt", "deny"}

// String returns "enforce", "exempt" or "deny".
func (m Mode) String() string {
	if int(m) < len(modes) {
		return modes[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// Rule changes the limit of one key, or of all, while services run. It changes how many
// requests a limit has, never its window. What has been spent stays spent; of a token bucket it is
// the share, so that one that is half full stays half full.
type Rule struct {
	Policy string // name of the limiters that it is for
	// Key is one key, as it is given to Take, or "*": all but those with a rule of their own
	// or a limit by With. No rule changes what [Unlimited] decides: it has no name.
	Key      string
	Mode     Mode
	Requests int       // with Enforce, at least 1
	Until    time.Time // when it ends, by Redis's clock; zero: never

	Actor  string // who has set it, at most 128 bytes; required
	Reason string // why, at most 1,024 bytes; required
}

const (
	forAll    = "*"
	maxKey    = 1024 // bytes of Rule.Key
	maxActor  = 128
	maxReason = 1024
)

// check returns what is wrong with a rule; of one that is set also if nobody obeys it.
func (r *Rules) check(rule Rule, set bool) error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrRule}, args...)...))
	}
	errs = append(errs, r.checkPlace(rule.Policy, rule.Key, set), checkBy(rule.Actor, rule.Reason))
	most := int64(MaxRequests)
	if known, ok := r.policies.Load(rule.Policy); ok && set {
		most = known.(int64)
	}
	switch {
	case int(rule.Mode) >= len(modes):
		bad("unknown Mode %d", uint8(rule.Mode))
	case rule.Mode == Enforce && (rule.Requests < 1 || int64(rule.Requests) > most):
		bad("Requests %d of policy %q: 1 to %d are possible", rule.Requests, rule.Policy, most)
	case rule.Mode != Enforce && rule.Requests != 0:
		bad("Requests %d do nothing with Mode %v", rule.Requests, rule.Mode)
	}
	if u := rule.Until; !u.IsZero() && (u.Year() < 1971 || u.Year() > 2235) {
		bad("Until %v is not between 1971 and 2235", u)
	}
	return errors.Join(errs...)
}

// checkPlace is check of the limiter and the key.
func (r *Rules) checkPlace(policy, key string, set bool) error {
	var errs []error
	if err := validateName(policy); err != nil {
		errs = append(errs, fmt.Errorf("%w: Policy: %w", ErrRule, err))
	} else if _, ok := r.policies.Load(policy); set && !ok {
		errs = append(errs, fmt.Errorf("%w: no limiter on these Rules has the name %q", ErrRule, policy))
	}
	if key == "" || len(key) > maxKey {
		errs = append(errs, fmt.Errorf("%w: a Key of %d bytes: 1 to %d are possible", ErrRule, len(key), maxKey))
	}
	return errors.Join(errs...)
}

// checkBy is check of who does something, and why.
func checkBy(actor, reason string) error {
	var errs []error
	for _, f := range []struct {
		name, text string
		most       int
	}{{"Actor", actor, maxActor}, {"Reason", reason, maxReason}} {
		if f.text == "" || len(f.text) > f.most || !utf8.ValidString(f.text) {
			errs = append(errs, fmt.Errorf("%w: %s of %d bytes: 1 to %d of UTF-8 are possible", ErrRule, f.name, len(f.text), f.most))
		}
	}
	return errors.Join(errs...)
}

func (rule Rule) order() string {
	if rule.Key == forAll {
		return rule.Policy
	}
	return rule.Policy + ":" + rule.Key
}

// stored is a Rule as it stands in Redis, behind the time at which it ends.
type stored struct {
	Key      []byte `json:"key"` // sealed, or as it is
	Mode     string `json:"mode"`
	Requests int    `json:"requests,omitempty"`
	Actor    string `json:"actor"`
	Reason   string `json:"reason"`
}

// field is where a rule stands in its hash.
func (r *Rules) field(policy, key string) string {
	if key != forAll {
		key = r.subject.subject(key)
	}
	return policy + ":" + key
}

// write returns the field and the value of a rule.
func (r *Rules) write(rule Rule) (field, value string) {
	field = r.field(rule.Policy, rule.Key)
	s := stored{Key: []byte(rule.Key), Mode: rule.Mode.String(), Requests: rule.Requests, Actor: rule.Actor, Reason: rule.Reason}
	if r.label != nil {
		s.Key = r.label.Seal(nil, s.Key, []byte(field))
	}
	text, _ := json.Marshal(s) // of these types it cannot fail
	var until int64
	if !rule.Until.IsZero() {
		until = rule.Until.UnixMicro()
	}
	return field, fmt.Sprintf("%016d%s", until, text)
}

var errStored = errors.New("not a rule")

// open is the reverse of write.
func (r *Rules) open(field, value string) (rule Rule, err error) {
	policy, subject, ok := strings.Cut(field, ":")
	if !ok || len(value) < 16 {
		return rule, errStored
	}
	var until int64
	for _, c := range []byte(value[:16]) {
		if c < '0' || c > '9' {
			return rule, errStored
		}
		until = 10*until + int64(c-'0')
	}
	var s stored
	if err := json.Unmarshal([]byte(value[16:]), &s); err != nil {
		return rule, errStored
	}
	mode := slices.Index(modes[:], s.Mode)
	if r.label != nil {
		if s.Key, err = r.label.Open(nil, s.Key, []byte(field)); err != nil {
			return rule, errStored
		}
	}
	rule = Rule{Policy: policy, Key: string(s.Key), Mode: Mode(max(0, mode)), Requests: s.Requests, Actor: s.Actor, Reason: s.Reason}
	if until != 0 {
		rule.Until = time.UnixMicro(until)
	}
	if mode < 0 || r.field(policy, rule.Key) != field || subject == "" {
		return rule, errStored
	}
	return rule, nil
}
