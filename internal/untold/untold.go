// Package untold lets middleware ask a limiter what the client is not told yet.
package untold

import "context"

type key struct{}

// Context returns a ctx for a Take whose denial the client does not learn of, as the request waits
// for a permit. Whoever comes back after it has not come too early: a Penalty takes no note.
func Context(ctx context.Context) context.Context { return context.WithValue(ctx, key{}, true) }

// Is reports whether ctx is one of Context.
func Is(ctx context.Context) bool { return ctx.Value(key{}) != nil }
