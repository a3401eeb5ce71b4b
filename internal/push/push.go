// Package push notices what other processes do: at once, through a channel of Redis, and for
// certain, through a poll. What is published while nobody listens is lost, and a
// subscription may be dead without a sign, so that the channel alone is not enough.
package push

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
)

// Feed listens to a channel. Its fields do not change while it runs.
type Feed struct {
	Client  redis.UniversalClient
	Channel string
	Every   time.Duration // how often Look is called besides

	// Heard is called with each message. It must return soon.
	Heard func(message string)
	// Look finds out what may have been missed. It is called after each subscription and
	// every so often, one call at a time.
	Look func(context.Context)

	Logger *slog.Logger
}

// Run listens until ctx is done. ready is called once, when the first subscription stands or
// has failed.
func (f Feed) Run(ctx context.Context, ready func()) {
	look := make(chan struct{}, 1)
	go f.lookWhenDue(ctx, look)
	failed := false
	for wait := minWait; ctx.Err() == nil; wait = min(2*wait, max(f.Every, minWait)) {
		err := f.listen(ctx, func() {
			wait, failed = minWait, false
			if ready != nil {
				ready()
				ready = nil
			}
			select {
			case look <- struct{}{}:
			default: // one is due already
			}
		})
		if ready != nil {
			ready()
			ready = nil
		}
		if ctx.Err() == nil && !failed {
			failed = true
			f.Logger.LogAttrs(ctx, slog.LevelWarn, "redis: not subscribed, changes are seen late until it is",
				slog.String("channel", f.Channel), slog.Duration("within", f.Every), slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

const minWait = 100 * time.Millisecond

func (f Feed) lookWhenDue(ctx context.Context, now <-chan struct{}) {
	tick := time.NewTicker(f.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-now:
		}
		f.Look(ctx)
	}
}

// listen subscribes and hears messages until the subscription fails, or has not been heard of
// for twice Every.
func (f Feed) listen(ctx context.Context, subscribed func()) error {
	ps := f.Client.Subscribe(ctx, f.Channel)
	defer ps.Close()
	defer context.AfterFunc(ctx, func() { _ = ps.Close() })()
	asked := false
	for {
		msg, err := ps.ReceiveTimeout(ctx, f.Every)
		var timeout net.Error
		switch {
		case err == nil:
			asked = false
		case errors.As(err, &timeout) && timeout.Timeout() && !asked:
			asked = true
			if err := ps.Ping(ctx); err != nil {
				return err
			}
			continue
		default:
			return err
		}
		switch m := msg.(type) {
		case *redis.Subscription:
			subscribed()
		case *redis.Message:
			f.Heard(m.Payload)
		}
	}
}
