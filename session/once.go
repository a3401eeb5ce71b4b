package session

import (
	"context"
	"errors"
	"fmt"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// PopOnce removes a value and returns it, or nil if there is none: of parallel requests on all
// servers one gets it. It is for what may be used once, such as the state of an OAuth login or a
// nonce. The value is gone from Redis when PopOnce returns; what else the request has changed stays
// pending.
//
// It asks Redis, also where a client-side cache shows the session, and is not affected by a put of
// other values. The error is [ErrEnded] if the session has ended, [ErrMoved], one that names the key if its
// value is of a type that is not known here (then it stays), one after a Login, Confirm or EndOthers
// of the same request, before which PopOnce belongs, [ErrUnavailable], [ErrConflict],
// [ErrNoSession], or ctx's own. After ErrUnavailable or ctx's own the value may be gone, and nobody
// has it. A failover of Redis may give it a second time.
func (m *Manager) PopOnce(ctx context.Context, key string) (val any, err error) {
	defer m.done(ctx, opPopOnce, "", m.began(), &err)
	err = m.exclusively(ctx, func(ctx context.Context, st *state) error {
		val, err = m.popOnce(ctx, st, key)
		return err
	})
	return val, err
}

func (m *Manager) popOnce(ctx context.Context, st *state, key string) (any, error) {
	st.mu.Lock()
	d, own := st.reading(), st.values.changed[key]
	st.mu.Unlock()
	d.once, d.changes = key, map[string][]byte{key: nil}
	over := d.record
	switch {
	case d.dead:
		return nil, ErrEnded
	case d.login != nil: // the old ID, which still works, leads to the value, too
		return nil, errors.New("session: PopOnce after a Login, Confirm or EndOthers of the same request: call it before")
	case over == nil || own.removed:
		return st.popped(m, key, own), nil
	}
	if _, ok := over.values.Get(key); !ok { // another request may have put it since
		var err error
		if over, err = m.latest(ctx, st, d); err != nil {
			return nil, err
		}
	}
	over, err := m.write(ctx, st, d, over, 0)
	if err != nil {
		return nil, err
	}
	mine := st.popped(m, key, own)
	if over == nil || mine != nil {
		return mine, nil
	}
	raw, _ := over.values.Get(key)
	return codec.Decode(raw)
}

// holds reports whether a record has a value of a key. The error says that the value cannot be
// decoded here.
func (r *record) holds(key string) (bool, error) {
	raw, ok := r.values.Get(key)
	if !ok {
		return false, nil
	}
	if _, err := codec.Decode(raw); err != nil {
		return true, fmt.Errorf("session: the value of %q cannot be read: %w", key, err)
	}
	return true, nil
}

// popped takes a key out of what the request sees, and of what it has put and no commit has saved:
// that is nobody else's. It returns that.
func (st *state) popped(m *Manager, key string, own change) any {
	st.mu.Lock()
	defer st.mu.Unlock()
	holder.Remove(st.values.of(m.reportValue), key)
	if !own.removed && st.values.changed[key].serial == own.serial {
		delete(st.values.changed, key)
	}
	return own.value
}

// reading is a draft that saves nothing of what is pending. It is called with mu held.
func (st *state) reading() draft {
	d := draft{epoch: st.epoch, record: st.record, login: st.login, dead: st.dead}
	if st.record != nil {
		d.facts = st.record.facts()
	}
	return d
}

// Reload takes in what other requests have saved since this one was loaded: for handlers that last,
// such as those of WebSockets. What this one has changed stays pending, and is what it reads. It
// asks Redis, also where a client-side cache shows the session.
//
// The error is [ErrEnded] if the session has ended, [ErrMoved], [ErrUnavailable], [ErrNoSession], or
// ctx's own.
func (m *Manager) Reload(ctx context.Context) error {
	return m.exclusively(ctx, func(ctx context.Context, st *state) error {
		st.mu.Lock()
		d := st.reading()
		st.mu.Unlock()
		switch {
		case d.dead:
			return ErrEnded
		case d.record == nil:
			return nil
		}
		r, err := m.latest(ctx, st, d)
		if err == nil {
			st.apply(m, d, r)
		}
		return err
	})
}

// exclusively runs f while no commit of the same request runs, within the time of one.
func (m *Manager) exclusively(ctx context.Context, f func(context.Context, *state) error) error {
	st := m.state(ctx)
	if st == nil {
		return ErrNoSession
	}
	left, err := st.take(ctx, m.commitTime())
	if err != nil {
		return err
	}
	defer st.give()
	ctx, cancel := context.WithTimeoutCause(ctx, left, errSlow)
	defer cancel()
	return f(ctx, st)
}

// latest returns the record of a request as it stands in Redis now.
func (m *Manager) latest(ctx context.Context, st *state, d draft) (*record, error) {
	a, err := m.records.run(ctx, readScript, d.record.id, d.record.id.field)
	if err != nil {
		return nil, err
	}
	f, err := m.records.stands(ctx, d.record.id, a)
	if err != nil {
		return nil, err
	}
	if steps[f.what][save] == drop {
		return nil, m.gone(ctx, st, d, f.why())
	}
	st.follow(f)
	return f.record, nil
}

// PopOnce is [Manager.PopOnce] for a value of type T. ok is false if there is none, or one of
// another type, which is then removed, too.
func (k Key[T]) PopOnce(ctx context.Context, m *Manager) (val T, ok bool, err error) {
	x, err := m.PopOnce(ctx, string(k))
	if err == nil && x != nil {
		val, ok = valueOf[T](x)
	}
	return val, ok, err
}
