package scripts

import (
	"embed"
	"strings"
)

// The limiters' scripts. Each algorithm is in a file of its own: the script that
// decides by it alone is limit_take.lua and that file, without a function around
// it, since to make and call one costs Redis about as much as a short command.
var (
	SlidingWindow = New(limit("take") + limit("sliding"))
	FixedWindow   = New(limit("take") + limit("fixed"))
	TokenBucket   = New(limit("take") + limit("bucket"))

	// The same with bans.
	SlidingWindowPenalty = New(tables + function("decide", "sliding") + limit("penalty"))
	FixedWindowPenalty   = New(tables + function("decide", "fixed") + limit("penalty"))
	TokenBucketPenalty   = New(tables + function("decide", "bucket") + limit("penalty"))

	// LimitAll decides by several of them.
	LimitAll = New(tables + function("sliding", "sliding") + function("fixed", "fixed") +
		function("bucket", "bucket") + limit("all"))

	// They change what a Take has spent.
	SettleSliding = New(limit("settle_sliding"))
	SettleFixed   = New(limit("settle_fixed"))
	SettleBucket  = New(limit("settle_bucket"))

	// The concurrency limit.
	LimitAcquire = New(limit("acquire"))
	LimitRenew   = New(limit("renew"))
	LimitRelease = New(limit("release"))

	LimitReset = New(limit("reset"))
)

//go:embed limit_*.lua
var limitFiles embed.FS

// limit returns the text of a limit_*.lua, in which those that it includes stand in
// the place of its lines "-- include …".
func limit(name string) string {
	text, err := limitFiles.ReadFile("limit_" + name + ".lua")
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		included, ok := strings.CutPrefix(strings.TrimSpace(line), "-- include limit_")
		if ok {
			line = limit(strings.TrimSuffix(included, ".lua"))
		}
		b.WriteString(line)
	}
	return b.String()
}

// function returns an algorithm as a Lua function of what limit_take.lua sets. After
// tables, it returns a table.
func function(name, algorithm string) string {
	return "local function " + name + "(key, limit, ttl, window, cost, n, now, dry)\n" + limit(algorithm) + "end\n"
}

const tables = `local call = redis.call
local function pack(_, ...) return {...} end
`
