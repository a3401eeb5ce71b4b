// Package gatehouse is the overview of a kit of net/http middleware that
// answers two questions the same way on every server of a fleet: who is this
// (sessions), and how often may they (rate limits). Both are kept in Redis.
//
// A request passes through at most two round trips:
//
//	request → middleware.Sessions → middleware.RateLimit → handler
//	             │ cookie → session.Manager.Load             │ KeyFunc → ratelimit.Limiter.Take
//	             │           └ one HGET                      │            └ one script
//	             └ before the first header byte: Finish ─────┘ headers; 429 or next
//
// The packages, in the order of that path:
//
//   - [github.com/gatehouse-go/gatehouse/middleware] is net/http: it wraps handlers.
//   - [github.com/gatehouse-go/gatehouse/session] is the life of a session, without HTTP.
//   - [github.com/gatehouse-go/gatehouse/ratelimit] is the limiters, without HTTP.
//   - [github.com/gatehouse-go/gatehouse/scripts] is what both run inside Redis.
//
// Around them:
//
//   - [github.com/gatehouse-go/gatehouse/session/events] reads what happened to sessions, for audit trails.
//   - [github.com/gatehouse-go/gatehouse/session/profile] caches what the database knows of a user.
//   - [github.com/gatehouse-go/gatehouse/middleware/console] says to operators why somebody is limited,
//     and lifts it.
//   - [github.com/gatehouse-go/gatehouse/session/sessiontest] and
//     [github.com/gatehouse-go/gatehouse/ratelimit/ratelimittest] test handlers without Redis.
//
// There is nothing in this package itself.
package gatehouse
