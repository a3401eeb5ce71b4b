package ratelimit

import (
	"crypto/sha256"
	"encoding/base64"
	"strings"
)

// maxSubject is the length in bytes beyond which a subject is hashed.
const maxSubject = 128

// escapeSubject makes what stands between the braces of a Redis key. Different
// subjects stay different, and none of them can end the hash tag, whatever its
// bytes: braces, '%', and all that is not printable ASCII become %XX. What is
// longer than maxSubject before or after becomes "%~" and its SHA-256, which no
// escaped subject begins with. A plain subject costs no allocation.
func escapeSubject(s string) string {
	unsafe := 0
	for i := 0; i < len(s) && i < maxSubject; i++ {
		if !plainByte(s[i]) {
			unsafe++
		}
	}
	if len(s)+2*unsafe > maxSubject {
		sum := sha256.Sum256([]byte(s))
		return "%~" + base64.RawURLEncoding.EncodeToString(sum[:])
	}
	if unsafe == 0 {
		return s
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+2*unsafe)
	for i := 0; i < len(s); i++ {
		if c := s[i]; plainByte(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}

func plainByte(c byte) bool {
	return c > ' ' && c < 0x7f && c != '{' && c != '}' && c != '%'
}

var keyEscaper = strings.NewReplacer(`\`, `\\`, `:`, `\:`)

// JoinKey makes one key of several parts, such as a user and a route. Different
// parts give different keys: JoinKey("a:b", "c") is not JoinKey("a", "b:c").
// A limiter should be given joined keys or plain ones, not both.
func JoinKey(parts ...string) string {
	var b strings.Builder
	for i, p := range parts {
		if i > 0 {
			b.WriteByte(':')
		}
		if strings.ContainsAny(p, `\:`) {
			p = keyEscaper.Replace(p)
		}
		b.WriteString(p)
	}
	return b.String()
}

// SplitKey returns the parts that JoinKey made key of.
func SplitKey(key string) []string {
	var (
		parts []string
		part  strings.Builder
	)
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c == ':':
			parts = append(parts, part.String())
			part.Reset()
			continue
		case c == '\\' && i+1 < len(key):
			i++
		}
		part.WriteByte(key[i])
	}
	return append(parts, part.String())
}
