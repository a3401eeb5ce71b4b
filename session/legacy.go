package session

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"
)

// scsRememberMe is where scs keeps its RememberMe, among the values.
const scsRememberMe = "__rememberMe"

// moveLegacy looks for a session of the legacy store and moves it to the
// record of the same token: under parallel first requests one creates the
// record, and the others find it.
func (s *Store) moveLegacy(ctx context.Context, at id) (*record, verdict, error) {
	b, ok, err := s.legacyFind(ctx, at.token)
	if err != nil {
		return nil, absent, unavailable(ctx, err)
	}
	if !ok {
		// Perhaps because another request has just moved it.
		return s.find(ctx, at)
	}
	deadline, values, err := scs.GobCodec{}.Decode(b)
	if err != nil {
		s.reportUnreadable(ctx, "legacy session is not gob")
		return nil, absent, nil
	}
	now := s.now()
	if latest := now.Add(s.lifetime); deadline.After(latest) {
		deadline = latest
	}
	r := &record{id: at, revision: 1, meta: meta{created: millis(now), issued: millis(now), deadline: millis(deadline)}}
	r.meta.persistent, _ = values[scsRememberMe].(bool)
	delete(values, scsRememberMe)
	if s.legacyUser != nil {
		r.meta.user = s.legacyUser(values)
	}
	if r.values, err = s.codec.Encode(time.Time{}, values); err != nil {
		s.reportUnreadable(ctx, "legacy session holds what the codec cannot encode")
		return nil, absent, nil
	}
	instead, ok, err := s.put(ctx, r, "")
	if err != nil {
		return nil, absent, err
	}
	if !ok {
		if instead == "" { // its deadline has passed
			return nil, absent, nil
		}
		return s.resolve(ctx, at, []byte(instead))
	}
	if err := s.legacyDelete(ctx, at.token); err != nil {
		return nil, absent, unavailable(ctx, err)
	}
	return r, found, nil
}

func (s *Store) legacyFind(ctx context.Context, token string) (b []byte, ok bool, err error) {
	type result struct {
		b  []byte
		ok bool
	}
	r, err := bounded(ctx, s.timeout, func(ctx context.Context) (r result, err error) {
		if c, ok := s.legacy.(interface {
			FindCtx(context.Context, string) ([]byte, bool, error)
		}); ok {
			r.b, r.ok, err = c.FindCtx(ctx, token)
		} else {
			r.b, r.ok, err = s.legacy.Find(token)
		}
		return r, err
	})
	return r.b, r.ok, err
}

func (s *Store) legacyDelete(ctx context.Context, token string) error {
	_, err := bounded(ctx, s.timeout, func(ctx context.Context) (struct{}, error) {
		if c, ok := s.legacy.(interface {
			DeleteCtx(context.Context, string) error
		}); ok {
			return struct{}{}, c.DeleteCtx(ctx, token)
		}
		return struct{}{}, s.legacy.Delete(token)
	})
	return err
}

// bounded waits for f no longer than timeout: f may be deaf to its context, as
// scs/redisstore is. Its goroutine ends when f does.
func bounded[T any](ctx context.Context, timeout time.Duration, f func(context.Context) (T, error)) (T, error) {
	type result struct {
		t   T
		err error
	}
	within, cancel := context.WithTimeoutCause(ctx, timeout, errLegacyTimeout)
	defer cancel()
	done := make(chan result, 1)
	go func() {
		t, err := f(within)
		done <- result{t, err}
	}()
	select {
	case r := <-done:
		return r.t, r.err
	case <-within.Done():
		var zero T
		return zero, context.Cause(within)
	}
}
