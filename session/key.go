package session

import (
	"context"

	"github.com/gatehouse-go/gatehouse/internal/codec"
)

// Key is the name of a session value of type T:
//
//	const theme session.Key[string] = "theme"
//	theme.Put(ctx, sessions, "dark")
//
// T may be any type that encoding/gob can encode, a struct for example, and need not be
// registered with gob. Such a value is read by a Key of the same type; [Values.Get]
// cannot know its type.
type Key[T any] string

// Get returns the value, or the zero T if there is none or it is of another type.
func (k Key[T]) Get(ctx context.Context, v Values) T {
	t, _ := k.Lookup(ctx, v)
	return t
}

// Lookup is Get that reports whether there is a value of type T.
func (k Key[T]) Lookup(ctx context.Context, v Values) (T, bool) {
	return valueOf[T](v.Get(ctx, string(k)))
}

// Put sets the value.
func (k Key[T]) Put(ctx context.Context, v Values, val T) {
	if x := any(val); codec.Native(x) || codec.Registered(x) {
		v.Put(ctx, string(k), x)
	} else {
		v.Put(ctx, string(k), codec.Concrete{Value: x})
	}
}

// Pop returns the value as Get does, and removes it.
func (k Key[T]) Pop(ctx context.Context, v Values) T {
	t, _ := valueOf[T](v.Pop(ctx, string(k)))
	return t
}

// Remove removes the value.
func (k Key[T]) Remove(ctx context.Context, v Values) { v.Remove(ctx, string(k)) }

func valueOf[T any](x any) (t T, ok bool) {
	if c, concrete := x.(codec.Concrete); concrete {
		err := c.Into(&t)
		return t, err == nil
	}
	t, ok = x.(T)
	return t, ok
}
