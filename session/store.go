package session

import (
	"context"
	"errors"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// Store is a plain scs.CtxStore for a stock scs.SessionManager, whose commits are
// unconditional as that manager's are. It is safe for concurrent use.
type Store struct{ records *records }

var _ scs.CtxStore = (*Store)(nil)

// NewStore returns a store for a stock scs.SessionManager, whose own lifetimes then hold.
// Of cfg it takes Prefix, Secrets, Timeout and Logger; any other field is an error.
func NewStore(client redis.UniversalClient, cfg Config) (*Store, error) {
	var ignored []error
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"KeySecret", cfg.KeySecret != nil},
		{"Lifetime", cfg.Lifetime != 0},
		{"IdleTimeout", cfg.IdleTimeout != 0},
		{"Visitor", cfg.Visitor != Life{}},
		{"Remembered", cfg.Remembered != Life{}},
		{"Persistent", cfg.Persistent},
		{"Accounts", cfg.Accounts != Accounts{}},
		{"Rotation", cfg.Rotation != Rotation{}},
		{"Events", cfg.Events != Events{}},
		{"OnOperation", cfg.OnOperation != nil},
		{"Legacy", cfg.Legacy.Store != nil || cfg.Legacy.User != nil || cfg.Legacy.Lifetime != 0},
	} {
		if f.set {
			ignored = append(ignored, errors.New("session: "+f.name+" does nothing in a Store: the scs.SessionManager decides"))
		}
	}
	used := Config{
		Secrets: cfg.Secrets, Prefix: cfg.Prefix, Timeout: cfg.Timeout, Logger: cfg.Logger,
		Lifetime: maxDuration, IdleTimeout: -1,
		KeySecret: make([]byte, minSecret), // asked for, though no user ID is ever stored
	}
	c, err := used.check(client)
	if err = errors.Join(append(ignored, err)...); err != nil {
		return nil, err
	}
	return &Store{c.records(client)}, nil
}

// stock is the key of the one value that a record of a Store has: a byte, since no value
// is empty, and the data.
const stock = ""

// FindCtx returns the data of a session.
func (s *Store) FindCtx(ctx context.Context, token string) ([]byte, bool, error) {
	f, err := s.records.get(ctx, s.records.keys.stock(token))
	if err != nil || f.record == nil {
		return nil, false, err
	}
	b, ok := f.record.values.Get(stock)
	if !ok {
		return nil, false, nil
	}
	return b[1:], true, nil
}

// CommitCtx saves a session whatever is there. One whose expiry has passed is deleted.
func (s *Store) CommitCtx(ctx context.Context, token string, b []byte, expiry time.Time) error {
	at := s.records.keys.stock(token)
	life := time.Until(expiry)
	if life <= 0 {
		return s.DeleteCtx(ctx, token)
	}
	now, err := s.records.now(ctx, at)
	if err != nil {
		return err
	}
	r := &record{id: at, values: codec.Values{}.Change(map[string][]byte{stock: append([]byte{0}, b...)})}
	r.head.copied = true // it keeps the deadline of the scs manager
	r.times.deadline = now + min(life, maxDuration).Microseconds()
	_, err = s.records.overwrite(ctx, r)
	return err
}

// DeleteCtx ends a session.
func (s *Store) DeleteCtx(ctx context.Context, token string) error {
	_, err := s.records.end(ctx, s.records.keys.stock(token), endLogout, revision{}, handle{})
	return err
}

// Find is FindCtx without a context; the store's own timeout applies.
func (s *Store) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}

// Commit is CommitCtx without a context; the store's own timeout applies.
func (s *Store) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

// Delete is DeleteCtx without a context; the store's own timeout applies.
func (s *Store) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }

// Stats returns the counters of this Store.
func (s *Store) Stats() Stats { return s.records.stats() }
