package console

import (
	"context"
	"net/http"
	"time"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

type stateData struct {
	Checks  []checkView  `json:"checks"`
	Rules   *rulesView   `json:"rules,omitempty"`
	Secrets *secretsView `json:"secrets,omitempty"`
	Users   bool         `json:"-"`
}

// checkView is what Check says of a part.
type checkView struct {
	Part     string   `json:"part"`
	Error    string   `json:"error,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// rulesView says which rules this process obeys.
type rulesView struct {
	Version string        `json:"version"`
	Rules   int           `json:"rules"`
	Invalid int           `json:"invalid"`
	Age     time.Duration `json:"age"` // ns
}

// secretsView says how many sessions need which secret.
type secretsView struct {
	InUse    []int `json:"inUse"` // of each, newest first
	Unsealed int   `json:"unsealed"`
	Unknown  int   `json:"unknown"`
}

// checkTime bounds the looks at Redis: go-redis takes some seconds to say that nobody answers.
const checkTime = 10 * time.Second

// state looks at Redis. What it counts, it counts only if asked to by secrets=1, since that scans
// all keys.
func (c Console) state(r *http.Request) (any, error) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTime)
	defer cancel()
	d := stateData{Users: c.Sessions != nil}
	add := func(part string, warnings []string, err error) {
		v := checkView{Part: part, Warnings: warnings}
		if err != nil {
			v.Error = err.Error()
		}
		d.Checks = append(d.Checks, v)
	}
	if len(c.Limiters) > 0 {
		warnings, err := ratelimit.Check(ctx, c.Limiters...)
		add("limits", warnings, err)
	}
	if c.Rules != nil {
		warnings, err := c.Rules.Check(ctx)
		add("rules", warnings, err)
		s := c.Rules.Stats()
		d.Rules = &rulesView{s.Version, s.Rules, s.Invalid, s.Age}
	}
	if c.Sessions != nil {
		warnings, err := c.Sessions.Check(ctx)
		add("sessions", warnings, err)
		if r.FormValue("secrets") != "" {
			if visitorOf(r).Access != Write {
				return nil, failure{http.StatusForbidden, "Only who may change something may have all sessions counted."}
			}
			use, err := c.Sessions.SecretUse(ctx)
			if err != nil {
				return nil, err
			}
			d.Secrets = &secretsView{use.Secrets, use.Unsealed, use.Unknown}
		}
	}
	return d, nil
}
