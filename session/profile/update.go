package profile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// Update changes the database by write, and the cache with it. write returns the value as it is
// then. While an Update is under way nothing is loaded: Gets return what was cached before, or wait.
// It is stored only if nothing else of its ID changed meanwhile, and else what is cached goes, so
// that of Updates at the same time the database says which came last.
//
// write gets ctx with LoadTimeout, and must not go on when that ends: a database that commits
// later than this, or later than it returned an error, is seen late, after up to TTL.
//
// An error that wraps [ErrUnavailable] means that write was not called: Redis did not answer, or 256
// Updates of the ID are under way. An error of write is returned as it is, but for one that wraps
// ErrUnavailable or ErrNotTold, of which the text is left; what was cached is forgotten, since nobody
// knows, or, where Redis does not answer, when the lease ends. One that wraps [ErrNotTold]
// means that the database is changed, and Redis does not know: the value is returned with it, and
// others see it when the lease ends, LoadTimeout and twice Timeout after Redis heard that the Update
// began. So they do where the process dies in between. (A Redis that evicts keys may forget that an
// Update is under way; then TTL is the bound.) A value that has no JSON, or whose JSON cannot be read
// back, is an error that wraps none of these: it is written, the cache has forgotten the older one,
// and each Get will fail.
//
// Gets wait while an Update is under way and nothing is cached; under Updates of one ID without a
// pause they wait in vain, and return ErrUnavailable. write must not Get the same ID.
func (c *Cache[T]) Update(ctx context.Context, id string, write func(context.Context) (T, error)) (T, error) {
	var zero T
	if id == "" {
		return zero, ErrNoID
	}
	core := c.core
	at, token, began := core.place(id), fresh(), time.Now()
	told := context.WithoutCancel(ctx) // Redis learns of what is done also after the caller has gone
	begun, err := core.redis.Run(ctx, beginScript, at.keys, token, fresh(), core.lease.Microseconds(), core.versionTTL().Milliseconds())
	switch {
	case err != nil:
		core.afterLoss(err, func() { _ = core.forget(told, at.keys[0], at.slot, token) })
		return zero, unavailable("not written", err)
	case begun != int64(1):
		return zero, errBusy
	}
	held := time.Now()
	returned := false
	defer func() {
		if !returned { // write panicked, or a MarshalJSON
			_ = core.forget(told, at.keys[0], at.slot, token)
		}
	}()
	v, err := within(ctx, core.cfg.LoadTimeout, write)
	if err != nil {
		returned = true
		if away := core.forget(told, at.keys[0], at.slot, token); away != nil {
			core.count.notTold.Add(1)
			core.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "profile: an update failed, and Redis was not told", slog.Any("error", away))
		}
		if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNotTold) { // of another cache; here these say what became of write
			err = fmt.Errorf("profile: %v", err)
		}
		return zero, err
	}
	text, failed := encode(v)
	var value []byte
	if failed == nil {
		value, failed = core.pack(at, text)
	}
	returned = true
	if failed == nil {
		_, err = core.redis.Persistent().Run(told, endScript, at.keys, append([]any{token, core.form, value}, core.life(core.cfg.TTL)...)...)
	}
	change(at.slot)
	if failed != nil || err != nil {
		err = core.forget(told, at.keys[0], at.slot, token)
	}
	switch {
	case err != nil:
		core.count.notTold.Add(1)
		late := core.lease - time.Since(held)
		if time.Since(began) >= core.lease { // others may have loaded before write was done
			late = core.cfg.TTL
		}
		return v, fmt.Errorf("%w: the older value may be seen for up to %v: %w", ErrNotTold, late.Round(time.Millisecond), errors.Join(err, failed))
	case failed != nil:
		return v, fmt.Errorf("profile: written: %w", failed)
	}
	core.count.updates.Add(1)
	return v, nil
}

var errBusy = fmt.Errorf("%w: not written: too many updates of one ID are under way", ErrUnavailable)

// within calls write with a timeout.
func within[T any](ctx context.Context, timeout time.Duration, write func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return write(ctx)
}

// Forget forgets the value of an ID, for who has changed the database by another way than Update:
// call it after the change is committed. When it has returned nil, no Get that begins later returns
// what was there before, and a load that was under way is not stored. The error is [ErrNoID],
// [ErrUnavailable], after which the older value may be seen for up to TTL, or wraps both that and
// ctx's own.
func (c *Cache[T]) Forget(ctx context.Context, id string) error {
	if id == "" {
		return ErrNoID
	}
	at := c.core.place(id)
	if err := c.core.forget(ctx, at.keys[0], at.slot, ""); err != nil {
		return unavailable("not forgotten", err)
	}
	return nil
}

// ForgetAll forgets all values of the Cache, for who has changed many rows of the database. It costs
// 64 commands, however many values there are; they go when their TTL ends. The promise is that of
// Forget, for each ID. After an error, which is [ErrUnavailable], some are forgotten and others may
// not be: call it again.
func (c *Cache[T]) ForgetAll(ctx context.Context) error {
	var wg sync.WaitGroup
	var errs [partitions]error
	for i := range errs {
		wg.Go(func() {
			errs[i] = c.core.forget(ctx, c.core.partition(byte(i*(256/partitions))), &c.core.allChanged, "")
		})
	}
	wg.Wait()
	for _, err := range errs { // one says it all
		if err != nil {
			return unavailable("not all forgotten", err)
		}
	}
	return nil
}

// forget forgets a key, of whose slot that is noted, and ends the update of a token. It is tried
// twice, as it does no harm the second time: a connection that a load balancer has forgotten is no
// reason to serve old values.
func (c *core) forget(ctx context.Context, key string, slot *atomic.Int64, token string) (err error) {
	defer change(slot)
	for range 2 {
		if _, err = c.redis.Persistent().Run(ctx, endScript, []string{key}, token, c.form, "", 0, 0); err == nil || ctx.Err() != nil {
			return err
		}
		var slow *roundtrip.TimeoutError
		if errors.As(err, &slow) {
			return err // it has had its time
		}
	}
	return err
}
