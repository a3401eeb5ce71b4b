package session

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"
)

// moveLegacy looks for a session of the legacy store and moves it to the
// record of the same token: under parallel first requests one creates the
// record, and the others find it.
func (s *Store) moveLegacy(ctx context.Context, at id) (*record, verdict, error) {
	b, ok, err := s.legacyFind(ctx, at.token)
	if err != nil {
		return nil, absent, unavailable(ctx, err)
	}
	if !ok {
		return nil, absent, nil
	}
	deadline, values, err := scs.GobCodec{}.Decode(b)
	if err != nil {
		s.reportUnreadable(ctx, "legacy session is not gob")
		return nil, absent, nil
	}
	now := millis(s.now())
	r := &record{id: at, revision: 1, meta: meta{created: now, issued: now, deadline: millis(deadline)}}
	if r.values, err = s.codec.Encode(time.Time{}, values); err != nil {
		return nil, absent, err
	}
	instead, ok, err := s.put(ctx, r, "")
	if err != nil {
		return nil, absent, err
	}
	if !ok {
		if instead == "" { // its deadline has passed
			return nil, absent, nil
		}
		return s.resolve(ctx, at, instead)
	}
	if err := s.legacyDelete(ctx, at.token); err != nil {
		return nil, absent, unavailable(ctx, err)
	}
	return r, found, nil
}

func (s *Store) legacyFind(ctx context.Context, token string) ([]byte, bool, error) {
	if c, ok := s.legacy.(interface {
		FindCtx(context.Context, string) ([]byte, bool, error)
	}); ok {
		return c.FindCtx(ctx, token)
	}
	return s.legacy.Find(token)
}

func (s *Store) legacyDelete(ctx context.Context, token string) error {
	if c, ok := s.legacy.(interface {
		DeleteCtx(context.Context, string) error
	}); ok {
		return c.DeleteCtx(ctx, token)
	}
	return s.legacy.Delete(token)
}
