package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

type stateData struct {
	Checks  []checkView  `json:"checks"`
	Rules   *rulesView   `json:"rules,omitempty"`
	Secrets *secretsView `json:"secrets,omitempty"`
	Servers []serverView `json:"servers,omitempty"` // of Redis
	Users   bool         `json:"-"`
}

// serverView is what a Redis says of itself, and for the page what to make of it.
type serverView struct{ check.Server }

// MB is for the page.
func (s serverView) MB(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/(1<<20)) }

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
	if r.FormValue("secrets") != "" && visitorOf(r).Access != Write {
		return nil, failure{http.StatusForbidden, "Only who may change something may have all sessions counted."}
	}
	ctx, cancel := context.WithTimeout(r.Context(), checkTime)
	defer cancel()
	d := stateData{Users: c.Sessions != nil}
	var parts []func(v *checkView) error // each with a card of its own, asked at once
	part := func(name string, look func(v *checkView) error) {
		d.Checks = append(d.Checks, checkView{Part: name})
		parts = append(parts, look)
	}
	if len(c.Limiters) > 0 {
		part("limits", func(v *checkView) (err error) {
			v.Warnings, err = ratelimit.Check(ctx, c.Limiters...)
			return err
		})
	}
	if c.Rules != nil {
		part("rules", func(v *checkView) (err error) {
			v.Warnings, err = c.Rules.Check(ctx)
			return err
		})
		s := c.Rules.Stats()
		d.Rules = &rulesView{s.Version, s.Rules, s.Invalid, s.Age}
	}
	if c.Sessions != nil {
		part("sessions", func(v *checkView) (err error) {
			v.Warnings, err = c.Sessions.Check(ctx)
			return err
		})
	}
	servers := make([][]check.Server, len(c.Redis))
	for i, client := range c.Redis {
		part("servers", func(*checkView) (err error) {
			servers[i], err = check.Describe(ctx, client)
			return err
		})
	}
	var all sync.WaitGroup
	for i, look := range parts {
		all.Go(func() {
			if err := look(&d.Checks[i]); err != nil {
				d.Checks[i].Error = err.Error()
			}
		})
	}
	all.Wait()
	for _, s := range slices.Concat(servers...) {
		d.Servers = append(d.Servers, serverView{s})
	}
	if c.Sessions != nil && r.FormValue("secrets") != "" {
		use, err := c.Sessions.SecretUse(ctx)
		if err != nil {
			return nil, err
		}
		d.Secrets = &secretsView{use.Secrets, use.Unsealed, use.Unknown}
	}
	return d, nil
}
