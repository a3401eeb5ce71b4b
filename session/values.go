package session

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// EncodeError names the key whose value cannot be stored, and never shows the value.
type EncodeError = codec.EncodeError

// Values reads and writes the data of the current session. Its methods mean what those of
// *scs.SessionManager do. Changes are kept in memory until a commit. The methods panic if
// ctx was not made by [Manager.Load].
//
// What a Get method returns is the session's own: a slice or map that is changed in place
// must be Put again to be saved. A Put is a change, also of what was there already: of
// several requests that put one key, the last to commit wins.
//
// A value of a type that this server does not know, such as one that a newer release has
// put, is as if it were not there. It stays in the session all the same, unless its key
// is put or removed.
type Values interface {
	Put(ctx context.Context, key string, val any)
	Get(ctx context.Context, key string) any
	Pop(ctx context.Context, key string) any
	Remove(ctx context.Context, key string)
	Clear(ctx context.Context) error
	Exists(ctx context.Context, key string) bool
	Keys(ctx context.Context) []string

	GetString(ctx context.Context, key string) string
	GetBool(ctx context.Context, key string) bool
	GetInt(ctx context.Context, key string) int
	GetInt64(ctx context.Context, key string) int64
	GetInt32(ctx context.Context, key string) int32
	GetFloat(ctx context.Context, key string) float64
	GetBytes(ctx context.Context, key string) []byte
	GetTime(ctx context.Context, key string) time.Time

	PopString(ctx context.Context, key string) string
	PopBool(ctx context.Context, key string) bool
	PopInt(ctx context.Context, key string) int
	PopFloat(ctx context.Context, key string) float64
	PopBytes(ctx context.Context, key string) []byte
	PopTime(ctx context.Context, key string) time.Time
}

// holder holds the values of a request, and nothing else: an scs manager whose sessions
// are never saved or ended.
var holder = scs.SessionManager{Store: given{}, Codec: given{}}

// given hands holder the values that it is to hold: those of the context, a holding.
type given struct {
	scs.Store // none: it is asked for nothing but FindCtx
}

type holding struct {
	context.Context
	values codec.Values
}

func (given) FindCtx(ctx context.Context, _ string) ([]byte, bool, error) {
	return ctx.(holding).values.Bytes(), true, nil
}

func (given) Decode(b []byte) (deadline time.Time, held map[string]any, err error) {
	stored, err := codec.Parse(b)
	if err != nil {
		return deadline, nil, err
	}
	held = make(map[string]any, stored.Len())
	for e, err := range stored.Decode() {
		if err != nil {
			return deadline, nil, err
		}
		held[e.Key] = e.Value
	}
	return deadline, held, nil
}

func (given) Encode(time.Time, map[string]any) ([]byte, error) { return nil, errors.ErrUnsupported }

// working are the values that a request works with: those it found, as bytes until one of
// them is asked for, and its changes. It is guarded by the state's lock.
type working struct {
	stored  codec.Values    // as they stand in Redis, as far as the request knows
	decoded context.Context // in which holder has the values; nil: none was asked for yet
	changed map[string]change
	serial  uint64 // of the last change
}

// change is the last change of a key that no commit has saved.
type change struct {
	value   any
	removed bool
	serial  uint64
}

// of returns the context in which holder has the values.
func (w *working) of(report func(key string, err error)) context.Context {
	if w.decoded == nil {
		var err error
		w.decoded, err = holder.Load(holding{context.Background(), w.stored}, "stored")
		if err == nil {
			return w.decoded
		}
		// One of them cannot be read here: the others are.
		w.decoded, _ = holder.Load(context.Background(), "") // asks nobody
		for e, err := range w.stored.Decode() {
			w.show(e, err, report)
		}
	}
	return w.decoded
}

// show puts a stored value among those that are read.
func (w *working) show(e codec.Entry, err error, report func(key string, err error)) {
	if err != nil {
		report(e.Key, err)
		holder.Remove(w.decoded, e.Key)
		return
	}
	holder.Put(w.decoded, e.Key, e.Value)
}

func (w *working) note(key string, c change) {
	if w.changed == nil {
		w.changed = make(map[string]change)
	}
	w.serial++
	c.serial = w.serial
	w.changed[key] = c
}

// saved takes in what the commit of a draft has stored: its changes, and what others had
// saved meanwhile.
func (w *working) saved(stored codec.Values, d draft, report func(key string, err error)) {
	for key, c := range w.changed {
		if c.serial <= d.serial {
			delete(w.changed, key)
		}
	}
	before := w.stored
	w.stored = stored
	if w.decoded == nil || d.alone {
		return
	}
	for key, b := range stored.All() {
		if was, ok := before.Get(key); ok && string(was) == string(b) {
			continue
		}
		if _, mine := w.changed[key]; !mine && !bytes.Equal(d.changes[key], b) {
			v, err := codec.Decode(b)
			w.show(codec.Entry{Key: key, Value: v}, err, report)
		}
	}
	for key := range before.All() {
		if _, still := stored.Get(key); !still {
			if _, mine := w.changed[key]; !mine {
				holder.Remove(w.decoded, key)
			}
		}
	}
}

type keyChange struct {
	key string
	change
}

// encode renders changes; a removal is nil.
func encode(changes []keyChange) (map[string][]byte, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	out := make(map[string][]byte, len(changes))
	for _, c := range changes {
		if c.removed {
			out[c.key] = nil
			continue
		}
		b, err := codec.Encode(c.key, c.value)
		if err != nil {
			return nil, err
		}
		out[c.key] = b
	}
	return out, nil
}

// noSession is for who has the context of something else than a request behind this Manager, such
// as that of a framework with requests of its own.
const noSession = "session: no session in the context: take the one that Load returned, in net/http r.Context() behind middleware.Sessions of this Manager"

// values implements Values for the sessions of one Manager.
type values struct{ m *Manager }

// use runs f on the values of ctx's session. It panics as scs does.
func (v values) use(ctx context.Context, f func(w *working, held context.Context)) {
	st := v.m.state(ctx)
	if st == nil {
		panic(noSession)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	before := st.values.serial
	f(&st.values, st.values.of(v.m.reportValue))
	if st.returned && st.values.serial != before {
		st.returned = false
		v.m.records.log.LogAttrs(ctx, slog.LevelError, "session: changed after the handler had returned, which only a Commit saves")
	}
}

// held is where the values of ctx's session are, to be read.
func (v values) held(ctx context.Context) (held context.Context) {
	st := v.m.state(ctx)
	if st == nil {
		panic(noSession)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.values.of(v.m.reportValue)
}

func (m *Manager) reportValue(key string, err error) {
	what := "session: a value cannot be read, it is kept as it is"
	if errors.Is(err, codec.ErrUnknownType) {
		what = "session: a value is of a type that is not known here, it is kept as it is"
	}
	m.records.log.LogAttrs(context.Background(), slog.LevelWarn, what, slog.String("key", key))
}

func (v values) Put(ctx context.Context, key string, val any) {
	v.use(ctx, func(w *working, held context.Context) {
		holder.Put(held, key, val)
		w.note(key, change{value: val})
	})
}

func (v values) Remove(ctx context.Context, key string) {
	v.use(ctx, func(w *working, held context.Context) {
		_, stored := w.stored.Get(key)
		if stored || holder.Exists(held, key) {
			holder.Remove(held, key)
			w.note(key, change{removed: true})
		}
	})
}

func (v values) Pop(ctx context.Context, key string) (val any) {
	v.use(ctx, func(w *working, held context.Context) {
		if holder.Exists(held, key) {
			val = holder.Pop(held, key)
			w.note(key, change{removed: true})
		}
	})
	return val
}

func (v values) Clear(ctx context.Context) error {
	v.use(ctx, func(w *working, held context.Context) { w.clear(held) })
	return nil
}

func (w *working) clear(held context.Context) {
	for _, key := range holder.Keys(held) {
		w.note(key, change{removed: true})
	}
	for key := range w.stored.All() {
		w.note(key, change{removed: true})
	}
	_ = holder.Clear(held)
}

func (v values) Get(ctx context.Context, key string) any     { return holder.Get(v.held(ctx), key) }
func (v values) Exists(ctx context.Context, key string) bool { return holder.Exists(v.held(ctx), key) }
func (v values) Keys(ctx context.Context) []string           { return holder.Keys(v.held(ctx)) }

func (v values) GetString(ctx context.Context, key string) string {
	return holder.GetString(v.held(ctx), key)
}
func (v values) GetBool(ctx context.Context, key string) bool {
	return holder.GetBool(v.held(ctx), key)
}
func (v values) GetInt(ctx context.Context, key string) int {
	return holder.GetInt(v.held(ctx), key)
}
func (v values) GetInt64(ctx context.Context, key string) int64 {
	return holder.GetInt64(v.held(ctx), key)
}
func (v values) GetInt32(ctx context.Context, key string) int32 {
	return holder.GetInt32(v.held(ctx), key)
}
func (v values) GetFloat(ctx context.Context, key string) float64 {
	return holder.GetFloat(v.held(ctx), key)
}
func (v values) GetBytes(ctx context.Context, key string) []byte {
	return holder.GetBytes(v.held(ctx), key)
}
func (v values) GetTime(ctx context.Context, key string) time.Time {
	return holder.GetTime(v.held(ctx), key)
}

func (v values) PopString(ctx context.Context, key string) string {
	val, _ := v.Pop(ctx, key).(string)
	return val
}
func (v values) PopBool(ctx context.Context, key string) bool {
	val, _ := v.Pop(ctx, key).(bool)
	return val
}
func (v values) PopInt(ctx context.Context, key string) int {
	val, _ := v.Pop(ctx, key).(int)
	return val
}
func (v values) PopFloat(ctx context.Context, key string) float64 {
	val, _ := v.Pop(ctx, key).(float64)
	return val
}
func (v values) PopBytes(ctx context.Context, key string) []byte {
	val, _ := v.Pop(ctx, key).([]byte)
	return val
}
func (v values) PopTime(ctx context.Context, key string) time.Time {
	val, _ := v.Pop(ctx, key).(time.Time)
	return val
}
