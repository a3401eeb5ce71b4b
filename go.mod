module github.com/gatehouse-go/gatehouse

go 1.26.0

require (
	// Holds the values of a request; its Store interface; migration from it.
	github.com/alexedwards/scs/v2 v2.9.0
	// Structured fields (RFC 9651) for the IETF RateLimit headers.
	github.com/dunglas/httpsfv v1.1.2
	// Signs the session cookie.
	github.com/gorilla/securecookie v1.1.2
	// The Redis client: standalone, Sentinel, Cluster.
	github.com/redis/go-redis/v9 v9.23.0
	// The list of public suffixes, of which browsers take no cookie.
	golang.org/x/net v0.60.0
)

require (
	// Tests only: migration from it, and an oracle.
	github.com/alexedwards/scs/redisstore v0.0.0-20250417082927-ab20b3feb5e9
	// Tests and examples only: Redis in process, for speed.
	github.com/alicebob/miniredis/v2 v2.40.0
	// Tests only: the client of scs/redisstore.
	github.com/gomodule/redigo v1.8.0
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/yuin/gopher-lua v1.1.1 // indirect
	go.uber.org/atomic v1.12.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
)
