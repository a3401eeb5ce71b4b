// Package scripts holds the Lua scripts that Gatehouse runs inside Redis, one
// file an operation. The head of each file documents its KEYS, ARGV and reply.
//
// All scripts keep to whole numbers: Redis renders a Lua number of 16 digits as
// 1.7e+15 when it becomes a string by tostring or "..", so a microsecond time
// is passed on as the string it came as, as a number to redis.call, or by
// string.format: '%.0f', or '%d%06d' of its seconds and the rest, which is faster. '%d' of all
// of it goes through a C long, and that has 32 bits on some platforms.
package scripts

import (
	"crypto/sha1"
	"encoding/hex"
)

// Script is a Lua script and the digest by which Redis caches it.
type Script struct {
	Source string
	SHA1   string // lower-case hex, as EVALSHA takes it
}

// New returns the script of a source.
func New(source string) *Script {
	sum := sha1.Sum([]byte(source))
	return &Script{Source: source, SHA1: hex.EncodeToString(sum[:])}
}
