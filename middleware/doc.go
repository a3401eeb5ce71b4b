// Package middleware mounts sessions and rate limits around net/http handlers.
//
// A middleware is a configured value with a method
//
//	Handler(next http.Handler) http.Handler
//
// which is what net/http, chi's Use and With, and the gin adapter take.
// Validate names everything that is wrong with the value; Handler panics with
// that error when it is mounted, at start-up, and nothing here panics while it
// serves.
//
//   - [Sessions] loads the visitor's session and saves it before the first
//     byte of the response's header.
//   - [RequireUser] and [RequireFresh] admit only who is, or has just, logged in.
//   - [RateLimit] asks a limiter about every request; [Routes] is a table of
//     them by pattern, for use in front of any router. [ConcurrencyLimit]
//     bounds how many run at once.
//   - A [KeyFunc] says whom a limit counts, an [IPStrategy] where a client's
//     address is read. No header is trusted unless told so.
//
// Mount whatever recovers from panics outside of Sessions: a handler that
// panics leaves its session unchanged, which only holds while the panic passes
// through.
package middleware
