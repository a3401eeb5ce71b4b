package profile

import (
	"context"
	"fmt"
	"time"
)

var errMany = fmt.Errorf("%w: without Redis, and as many loads as are allowed are under way", ErrUnavailable)

// without loads a value without Redis, for the reason why. Gets of one ID share the next load that
// begins: one that has begun may bring what is older than they are.
func (c *core) without(ctx context.Context, id string, at place, accept func([]byte) error, patience <-chan time.Time, why error) (way, error) {
	if cap(c.slots) == 0 {
		return direct, unavailable("get", why)
	}
	c.mu.Lock()
	t := c.away[at.keys[0]]
	if t == nil {
		t = &turn{done: make(chan struct{})}
		c.away[at.keys[0]] = t
		go c.loadAlone(context.WithoutCancel(ctx), id, at, t)
	}
	c.mu.Unlock()
	if err := wait(ctx, t.done, patience); err != nil {
		return direct, err
	}
	switch {
	case t.err == errMany:
		return direct, fmt.Errorf("%w: %w", errMany, why)
	case t.err != nil:
		return direct, t.err
	}
	return direct, accept(t.text)
}

// loadAlone loads a value once that is allowed. A place is taken until the loader has returned.
func (c *core) loadAlone(ctx context.Context, id string, at place, t *turn) {
	defer close(t.done)
	timeout := time.NewTimer(c.lease)
	defer timeout.Stop()
	full := false
	select {
	case c.slots <- struct{}{}:
	case <-timeout.C:
		full = true
	}
	c.mu.Lock()
	delete(c.away, at.keys[0]) // from here on others have a load of their own
	c.mu.Unlock()
	if full {
		t.err = errMany
		return
	}
	t.text, t.err = c.call(ctx, id, func() { <-c.slots })
}
