package console

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

func contextWith(r *http.Request, v visitor) context.Context {
	return context.WithValue(r.Context(), visitorKey{}, v)
}

// ruleView is a rule as pages show it.
type ruleView struct {
	Limiter  string     `json:"limiter"`
	Key      string     `json:"key"`
	Mode     string     `json:"mode"`
	Requests int        `json:"requests,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
	Actor    string     `json:"actor"`
	Reason   string     `json:"reason"`
}

func ruleOf(r ratelimit.Rule) ruleView {
	v := ruleView{r.Policy, shown(r.Key), r.Mode.String(), r.Requests, nil, r.Actor, r.Reason}
	if !r.Until.IsZero() {
		v.Until = &r.Until
	}
	return v
}

// changeView is an entry of the history of rules.
type changeView struct {
	Time time.Time `json:"time"`
	What string    `json:"what"`
	Rule ruleView  `json:"rule"`
}

type overviewData struct {
	Limiters []limiterView `json:"limiters"`
	HasRules bool          `json:"-"`
	Rules    []ruleView    `json:"rules"`
	History  []changeView  `json:"history"`
}

type limiterView struct {
	Name   string   `json:"name"`
	Limit  string   `json:"limit"`
	Denied []Denied `json:"denied,omitempty"` // most often, by this server
}

const (
	shownHistory = 30
	shownDenied  = 10
)

func (c Console) overview(r *http.Request) (any, error) {
	d := overviewData{HasRules: c.Rules != nil, Rules: []ruleView{}, History: []changeView{}}
	for _, l := range c.Limiters {
		named := l.(ratelimit.Named)
		d.Limiters = append(d.Limiters, limiterView{named.Name(), named.Limit().String(), c.Denials.most(named.Name(), shownDenied)})
	}
	if c.Rules == nil {
		return d, nil
	}
	rules, err := c.Rules.List(r.Context())
	if err != nil {
		return nil, err
	}
	for _, rule := range rules {
		d.Rules = append(d.Rules, ruleOf(rule))
	}
	d.History, err = c.history(r.Context(), shownHistory, func(ratelimit.RuleChange) bool { return true })
	return d, err
}

func (c Console) history(ctx context.Context, n int, of func(ratelimit.RuleChange) bool) ([]changeView, error) {
	changes, err := c.Rules.History(ctx, n)
	list := []changeView{}
	for _, h := range changes {
		if of(h) {
			list = append(list, changeView{h.Time, h.What, ruleOf(h.Rule)})
		}
	}
	return list, err
}

type explainData struct {
	Limiter    string        `json:"limiter"`
	Key        string        `json:"key"`
	Verdict    string        `json:"verdict"` // one sentence
	Allowed    bool          `json:"allowed"`
	Banned     bool          `json:"banned"`
	Limit      string        `json:"limit,omitempty"` // in force; "": none
	Requests   int           `json:"requests"`
	Used       int           `json:"used"`
	Remaining  int           `json:"remaining"`
	RetryAfter time.Duration `json:"retryAfter"` // ns; -1: never
	ResetAfter time.Duration `json:"resetAfter"` // ns
	Source     string        `json:"source"`
	Own        string        `json:"own"` // the limiter's own limit
	Rule       *ruleView     `json:"rule,omitempty"`
	Denied     *Denied       `json:"denied,omitempty"` // by this server
	History    []changeView  `json:"history"`
	HasRules   bool          `json:"-"`
}

// explainedHistory is how many changes are searched for those of a key.
const explainedHistory = 1000

// explain asks a limiter what it would decide now, at no cost.
func (c Console) explain(r *http.Request) (any, error) {
	l, key, err := c.limiterOf(r)
	if err != nil {
		return nil, err
	}
	named := l.(ratelimit.Named)
	denied := c.Denials.of(named.Name(), key)
	if denied != nil && denied.last.Origin == ratelimit.FromWith {
		l = under(denied.last.Limit, l)
	}
	res, err := l.Take(r.Context(), key, 0)
	if err != nil {
		return nil, err
	}
	d := explainData{
		Limiter: named.Name(), Key: shown(key), Verdict: res.String(), Allowed: res.Allowed, Banned: res.Banned,
		Requests: res.Limit.Requests, Remaining: res.Remaining, RetryAfter: res.RetryAfter, ResetAfter: res.ResetAfter,
		Source: res.Source.String(), Own: named.Limit().String(), History: []changeView{}, HasRules: c.Rules != nil,
		Denied: denied,
	}
	if res.RetryAfter == ratelimit.Never {
		d.RetryAfter = -1
	}
	if res.Limit != (ratelimit.Limit{}) {
		d.Limit, d.Used = res.Limit.String(), max(0, res.Limit.Requests-res.Remaining)
	} else {
		d.Remaining = 0
	}
	if c.Rules == nil {
		return d, nil
	}
	if d.History, err = c.history(r.Context(), explainedHistory, func(h ratelimit.RuleChange) bool {
		return h.Rule.Policy == d.Limiter && (h.Rule.Key == key || h.Rule.Key == "*")
	}); err != nil {
		return nil, err
	}
	origin, ruled := res.Origin.Rule()
	if !ruled {
		return d, nil
	}
	rules, err := c.Rules.List(r.Context())
	for _, rule := range rules {
		if rule.Policy == d.Limiter && rule.Key == origin {
			v := ruleOf(rule)
			d.Rule = &v
		}
	}
	return d, err
}

// under returns a limiter with the limit of a plan, or as it is if it has no plans.
func under(plan ratelimit.Limit, l ratelimit.Limiter) ratelimit.Limiter {
	var planned ratelimit.Limiter
	var err error
	switch l := l.(type) {
	case *ratelimit.SlidingWindow:
		planned, err = l.With(plan)
	case *ratelimit.FixedWindow:
		planned, err = l.With(plan)
	case *ratelimit.TokenBucket:
		planned, err = l.With(plan)
	case *ratelimit.Quota:
		planned, err = l.With(plan)
	case *ratelimit.Local:
		planned, err = l.With(plan)
	}
	if planned == nil || err != nil {
		return l
	}
	return planned
}

// Waits is for the page: how long until a denied key is allowed.
func (d explainData) Waits() string {
	if d.RetryAfter < 0 {
		return "never"
	}
	return span(d.RetryAfter)
}

// limiterOf returns what a form names.
func (c Console) limiterOf(r *http.Request) (ratelimit.Limiter, string, error) {
	name, key := r.FormValue("limiter"), typed(r.FormValue("key"))
	if len(key) > maxKey {
		return nil, "", failure{http.StatusBadRequest, "A key of more than 1,024 bytes can have no rule, and is not explained here. Its limiter's Reset frees it."}
	}
	if key == "" {
		return nil, "", failure{http.StatusBadRequest, "Which key? It is what the limiter counts by, such as user:42 or an address."}
	}
	for _, l := range c.Limiters {
		if l.(ratelimit.Named).Name() == name {
			return l, key, nil
		}
	}
	return nil, "", failure{http.StatusNotFound, "There is no limiter of this name."}
}

func explainPage(limiter, key string) string {
	return "explain?" + url.Values{"limiter": {limiter}, "key": {shown(key)}}.Encode()
}

// shown is how a key is shown and a user ID, in pages, forms and JSON: as it is if it is plain text,
// and otherwise quoted as in Go, so that it can be read, copied and sent back whatever its bytes are.
func shown(key string) string {
	if q := strconv.Quote(key); q != `"`+key+`"` || strings.TrimSpace(key) != key {
		return q
	}
	return key
}

// typed is the key that a text stands for: the reverse of shown.
func typed(text string) string {
	if key, err := strconv.Unquote(text); err == nil && strings.HasPrefix(text, `"`) {
		return key
	}
	return text
}

// reset frees a key and lifts its ban.
func (c Console) reset(r *http.Request) (string, error) {
	l, key, err := c.limiterOf(r)
	if err != nil {
		return "", err
	}
	page := explainPage(l.(ratelimit.Named).Name(), key)
	if c.Rules != nil {
		return page, c.Rules.Reset(r.Context(), l, key, visitorOf(r).Actor, r.FormValue("reason"))
	}
	return page, l.(ratelimit.Resetter).Reset(r.Context(), key)
}

var modes = map[string]ratelimit.Mode{"enforce": ratelimit.Enforce, "exempt": ratelimit.Exempt, "deny": ratelimit.Deny}

// setRule sets the rule of a key.
func (c Console) setRule(r *http.Request) (string, error) {
	l, key, err := c.limiterOf(r)
	if err != nil {
		return "", err
	}
	rule := ratelimit.Rule{Policy: l.(ratelimit.Named).Name(), Key: key, Actor: visitorOf(r).Actor, Reason: r.FormValue("reason")}
	mode, ok := modes[r.FormValue("mode")]
	if !ok {
		return "", failure{http.StatusBadRequest, "The mode is enforce, exempt or deny."}
	}
	rule.Mode = mode
	if mode == ratelimit.Enforce {
		if rule.Requests, err = strconv.Atoi(r.FormValue("requests")); err != nil {
			return "", failure{http.StatusBadRequest, "How many requests? A whole number."}
		}
	}
	if text := r.FormValue("for"); text != "" {
		lasts, err := time.ParseDuration(text)
		if err != nil || lasts <= 0 {
			return "", failure{http.StatusBadRequest, "For how long? Such as 90m or 24h; or nothing: until it is removed."}
		}
		rule.Until = c.Rules.Now().Add(lasts)
	}
	return explainPage(rule.Policy, key), c.Rules.Set(r.Context(), rule)
}

// removeRule removes the rule of a key. Its limiter may be gone, and then there is no page of the key.
func (c Console) removeRule(r *http.Request) (string, error) {
	rule := ratelimit.Rule{Policy: r.FormValue("limiter"), Key: typed(r.FormValue("key")), Actor: visitorOf(r).Actor, Reason: r.FormValue("reason")}
	page := "./"
	if _, _, err := c.limiterOf(r); err == nil {
		page = explainPage(rule.Policy, rule.Key)
	}
	return page, c.Rules.Remove(r.Context(), rule)
}
