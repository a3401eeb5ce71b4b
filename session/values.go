package session

import (
	"context"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Values reads and writes the data of the current session. It is the part of
// *scs.SessionManager that does so. Changes are kept in memory until Commit. The
// methods panic if ctx was not made by [Manager.Load].
//
// What a Get method returns is the session's own: a slice or map that is
// changed in place must be Put again to be saved.
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

// counting is scs's manager, with a count of the changes that are made to a session.
// One is counted after it is made: a commit that does not know of it may contain it.
type counting struct {
	*scs.SessionManager
	store *Store
}

func (c counting) changed(ctx context.Context) {
	if st := c.store.state(ctx); st != nil {
		st.changes.Add(1)
	}
}

func (c counting) Put(ctx context.Context, key string, val any) {
	defer c.changed(ctx)
	c.SessionManager.Put(ctx, key, val)
}

func (c counting) Remove(ctx context.Context, key string) {
	defer c.changed(ctx)
	c.SessionManager.Remove(ctx, key)
}

func (c counting) Clear(ctx context.Context) error {
	defer c.changed(ctx)
	return c.SessionManager.Clear(ctx)
}

func (c counting) Pop(ctx context.Context, key string) any {
	defer c.changed(ctx)
	return c.SessionManager.Pop(ctx, key)
}

func (c counting) PopString(ctx context.Context, key string) string {
	return Key[string](key).Pop(ctx, c)
}

func (c counting) PopBool(ctx context.Context, key string) bool {
	return Key[bool](key).Pop(ctx, c)
}

func (c counting) PopInt(ctx context.Context, key string) int {
	return Key[int](key).Pop(ctx, c)
}

func (c counting) PopFloat(ctx context.Context, key string) float64 {
	return Key[float64](key).Pop(ctx, c)
}

func (c counting) PopBytes(ctx context.Context, key string) []byte {
	return Key[[]byte](key).Pop(ctx, c)
}

func (c counting) PopTime(ctx context.Context, key string) time.Time {
	return Key[time.Time](key).Pop(ctx, c)
}

// Key is the name of a session value of type T:
//
//	const theme session.Key[string] = "theme"
//	theme.Put(ctx, sessions, "dark")
type Key[T any] string

// Get returns the value, or the zero T if there is none or it is of another type.
func (k Key[T]) Get(ctx context.Context, v Values) T {
	t, _ := k.Lookup(ctx, v)
	return t
}

// Lookup is Get that tells whether there is a value of type T.
func (k Key[T]) Lookup(ctx context.Context, v Values) (T, bool) {
	t, ok := v.Get(ctx, string(k)).(T)
	return t, ok
}

// Put sets the value.
func (k Key[T]) Put(ctx context.Context, v Values, val T) { v.Put(ctx, string(k), val) }

// Pop returns the value as Get does, and removes it.
func (k Key[T]) Pop(ctx context.Context, v Values) T {
	t, _ := v.Pop(ctx, string(k)).(T)
	return t
}

// Remove removes the value.
func (k Key[T]) Remove(ctx context.Context, v Values) { v.Remove(ctx, string(k)) }
