package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// Check looks at the Redis of limiters, at start-up or by hand: whether its user may run each
// command that they need, and whether it is old, a replica, evicts keys or has another time. An
// error names what does not work, warnings what is likely to surprise. It writes nothing. What
// has no Redis is passed over. Where no Redis answers it takes go-redis some seconds to say so: give
// ctx ten.
func Check(ctx context.Context, limiters ...Limiter) (warnings []string, err error) {
	var errs []error
	clients := map[redis.UniversalClient]bool{}
	for _, l := range limiters {
		if all, ok := l.(*allOf); ok {
			w, err := Check(ctx, all.limiters...)
			warnings, errs = append(warnings, w...), append(errs, err)
			continue
		}
		r := remoteOf(l)
		if r == nil {
			continue
		}
		if err := check.Permissions(ctx, r.sender, r.needs()); err != nil {
			errs = append(errs, fmt.Errorf("ratelimit: %s: %w", r.name, err))
		}
		clients[r.sender.Client()] = true
	}
	for client := range clients {
		w, err := checkServers(ctx, client)
		warnings, errs = append(warnings, w...), append(errs, err)
	}
	return warnings, errors.Join(errs...)
}

func checkServers(ctx context.Context, client redis.UniversalClient) ([]string, error) {
	return check.Servers(ctx, client, check.Loss{Evicted: "keys that it removes are limits that start afresh"})
}

// needs is what the limiter runs.
func (l *remote) needs() check.Needs {
	n := check.Needs{Key: l.redisKey("check"), Scripts: []*scripts.Script{l.take, l.many, l.settle, resetScript}}
	if l.algorithm.word() == "bucket" {
		n.Scripts = append(n.Scripts, bucketWait)
	}
	if l.config.Penalty.Strikes > 0 {
		n.Scripts = append(n.Scripts, penaltyScript)
	}
	return n
}

// Check is [Check] for a Concurrency.
func (c *Concurrency) Check(ctx context.Context) (warnings []string, err error) {
	err = check.Permissions(ctx, c.sender, check.Needs{
		Key: c.prefix + "check}", Scripts: []*scripts.Script{acquireScript, renewScript, releaseScript},
	})
	if err != nil {
		err = fmt.Errorf("ratelimit: %s: %w", c.name, err)
	}
	warnings, also := checkServers(ctx, c.sender.Client())
	return warnings, errors.Join(err, also)
}

// Check is [Check] for Rules.
func (r *Rules) Check(ctx context.Context) (warnings []string, err error) {
	key := r.keys()[0]
	err = check.Permissions(ctx, r.sender, check.Needs{
		Key: key, Scripts: []*scripts.Script{rulesLoad, rulesChange}, Commands: []string{"xrevrange"},
	})
	if err != nil {
		err = fmt.Errorf("ratelimit: rules: %w", err)
	} else if missing, err := check.Channel(ctx, r.sender, key, r.channel()); err == nil && len(missing) > 0 {
		warnings = append(warnings, fmt.Sprintf("the user of Redis may not %s on the channel %q: changes of rules are seen up to %v late", strings.Join(missing, " and "), r.channel(), pollRules))
	}
	more, also := check.Servers(ctx, r.client, check.Loss{
		Evicted: "keys that it removes may be all rules", Forgotten: "rules may be lost in a crash",
	})
	return append(warnings, more...), errors.Join(err, also)
}
