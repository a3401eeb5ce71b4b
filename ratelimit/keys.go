package ratelimit

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// keyPrefix begins the keys of a kind of limiter and a name: no two kinds of one name share
// a key.
func keyPrefix(c Config, kind, name string) string { return c.Prefix + "rl:" + kind + ":" + name + ":" }

// subjects make of keys what stands between the braces of Redis keys.
type subjects struct {
	digest *seal.Digest // nil: keys are readable
}

func newSubjects(secret []byte) subjects {
	if secret == nil {
		return subjects{}
	}
	return subjects{seal.NewDigest(secret, "ratelimit subject")}
}

// subject returns the subject of a key. With a secret it reveals nothing about the key, and
// guesses at keys cannot be confirmed.
func (s subjects) subject(key string) string {
	if s.digest == nil {
		return escapeSubject(key)
	}
	sum := s.digest.Sum(key)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// ResetAll frees every key of a limiter, whatever limits With has given it, and lifts all
// its bans: here at once, on servers that remember denials within a second. It looks at all
// keys of each master, in pages, and deletes without blocking; what is counted meanwhile may
// stay. It returns how many keys it has deleted, also with an error.
func ResetAll(ctx context.Context, l Limiter) (int, error) {
	switch l := l.(type) {
	case *keyed:
		return ResetAll(ctx, l.limiter)
	case *Local:
		return l.resetAll(), nil
	case *allOf:
		var total int
		var errs []error
		for _, m := range l.limiters {
			n, err := ResetAll(ctx, m)
			total, errs = total+n, append(errs, err)
		}
		return total, errors.Join(errs...)
	}
	r := remoteOf(l)
	if r == nil {
		return 0, fmt.Errorf("ratelimit: %T does not reset", l)
	}
	n, err := deleteAll(ctx, r.sender.Client(), keyPrefix(r.config, r.algorithm.word(), r.name))
	r.local.resetAll()
	r.denials.forgetAll()
	return n, err
}

// deleteAll unlinks the keys that begin with a prefix, on every master.
func deleteAll(ctx context.Context, client redis.UniversalClient, prefix string) (int, error) {
	var total atomic.Int64
	pattern := globEscaper.Replace(prefix) + "*"
	on := func(ctx context.Context, c *redis.Client) error {
		for cursor := uint64(0); ; {
			keys, next, err := c.Scan(ctx, cursor, pattern, 1000).Result()
			if err != nil {
				return err
			}
			if len(keys) > 0 {
				pipe := c.Pipeline() // one key each, as they are of many slots
				for _, key := range keys {
					pipe.Unlink(ctx, key)
				}
				deleted, err := pipe.Exec(ctx)
				for _, cmd := range deleted {
					total.Add(cmd.(*redis.IntCmd).Val())
				}
				if err != nil {
					return err
				}
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	err := roundtrip.EachMaster(ctx, client, on)
	if err != nil {
		err = failure(ctx, err)
	}
	return int(total.Load()), err
}

// globEscaper makes a text mean itself in a pattern of SCAN.
var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`)

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
