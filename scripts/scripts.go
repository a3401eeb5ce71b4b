// Package scripts holds the Lua scripts that Gatehouse runs inside Redis. Each file in
// session, limit and profile is one script, whole: a line number in an error of Redis is a line of
// that file. Its head documents KEYS, ARGV and reply. README.md lists the keys they write.
//
// The package is for Gatehouse itself: names and arguments change without notice.
//
// All scripts keep to whole numbers: Redis renders a Lua number of 16 digits as
// 1.7e+15 when it becomes a string by tostring or "..", so a microsecond time
// is passed on as the string it came as, as a number to redis.call, or by
// string.format: '%.0f', or '%d%06d' of its seconds and the rest, which is faster. '%d' of all
// of it goes through a C long, and that has 32 bits on some platforms.
package scripts

import (
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"sync"
)

// Script is a Lua script. It does not change.
type Script struct{ source, sha1 string }

// Source returns the text.
func (s *Script) Source() string { return s.source }

// SHA1 returns the digest by which Redis caches the script, as EVALSHA takes it.
func (s *Script) SHA1() string { return s.sha1 }

// New returns the script of a source.
func New(source string) *Script {
	sum := sha1.Sum([]byte(source))
	return &Script{source: source, sha1: hex.EncodeToString(sum[:])}
}

//go:embed session/*.lua limit/*.lua profile/*.lua
var files embed.FS

var known sync.Map // of *Script, by the name of its file

// Get returns the script in a file, such as "limit/sliding.lua", the same one each time. It
// panics if there is no such file.
func Get(file string) *Script {
	if s, ok := known.Load(file); ok {
		return s.(*Script)
	}
	text, err := files.ReadFile(file)
	if err != nil {
		panic("scripts: " + err.Error())
	}
	s, _ := known.LoadOrStore(file, New(string(text)))
	return s.(*Script)
}
