package redistest

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// KeyPattern is one kind of key that may exist. Get it from [ReadKeyPatterns].
type KeyPattern struct {
	name *regexp.Regexp
	typ  string
}

var (
	placeholder = regexp.MustCompile(`<[^<>]+>`)
	codeSpan    = regexp.MustCompile("`([^`]+)`")
	redisTypes  = []string{"string", "list", "set", "zset", "hash", "stream"}
)

// ReadKeyPatterns reads the tables of a Markdown file whose second column is headed Type:
//
//	| Key                         | Type   | What it holds |
//	|-----------------------------|--------|---------------|
//	| `<prefix>s:{<id>}`          | hash   | ...           |
//
// The first column holds one pattern or several, each in backticks, the second what Redis's
// TYPE returns. A placeholder, as in <id>, stands for one byte or more, of any value; <prefix>
// may be empty. The rest of a pattern stands for itself.
func ReadKeyPatterns(file string) ([]KeyPattern, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("redistest: key patterns: %w", err)
	}
	var (
		patterns      []KeyPattern
		inTable, ours bool
	)
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			inTable = false
			continue
		}
		cells := strings.Split(strings.ReplaceAll(line[1:], `\|`, "\x00"), "|")
		for i, cell := range cells {
			cells[i] = strings.TrimSpace(strings.ReplaceAll(cell, "\x00", "|"))
		}
		if !inTable {
			inTable, ours = true, len(cells) > 1 && strings.EqualFold(cells[1], "type")
			continue
		}
		if !ours || strings.Trim(cells[0], ":-") == "" {
			continue
		}
		keys, typ := codeSpan.FindAllStringSubmatch(cells[0], -1), ""
		if len(cells) > 1 {
			typ = strings.Trim(cells[1], "`")
		}
		if len(keys) == 0 || !slices.Contains(redisTypes, typ) {
			return nil, fmt.Errorf("redistest: key patterns: %s:%d: %q is not a pattern in backticks and a type of Redis", file, i+1, line)
		}
		for _, key := range keys {
			patterns = append(patterns, KeyPattern{compile(key[1]), typ})
		}
	}
	if len(patterns) == 0 {
		return nil, fmt.Errorf("redistest: key patterns: %s has no table with a second column headed Type", file)
	}
	return patterns, nil
}

func compile(pattern string) *regexp.Regexp {
	expr, end := `(?s)^`, 0
	for _, at := range placeholder.FindAllStringIndex(pattern, -1) {
		expr += regexp.QuoteMeta(pattern[end:at[0]])
		if pattern[at[0]:at[1]] == "<prefix>" {
			expr += `.*`
		} else {
			expr += `.+`
		}
		end = at[1]
	}
	return regexp.MustCompile(expr + regexp.QuoteMeta(pattern[end:]) + `$`)
}

// Unlisted returns the keys of the client's database, on all masters, that no pattern matches
// in both name and type. Each is quoted and followed by its type: "stray" (hash).
func Unlisted(ctx context.Context, client redis.UniversalClient, patterns []KeyPattern) ([]string, error) {
	entries, err := scan(ctx, client)
	var keys []string
	for _, e := range entries {
		if !e.listed(patterns) {
			keys = append(keys, fmt.Sprintf("%q (%s)", e.key, e.typ))
		}
	}
	return keys, err
}

// entry is a key as [scan] found it.
type entry struct {
	key, typ string
	ttl      time.Duration // -1: none
}

func (e entry) listed(patterns []KeyPattern) bool {
	return slices.ContainsFunc(patterns, func(p KeyPattern) bool { return p.typ == e.typ && p.name.MatchString(e.key) })
}

// scan returns all keys of the client's database, on all masters, sorted.
func scan(ctx context.Context, client redis.UniversalClient) ([]entry, error) {
	var (
		mu      sync.Mutex
		entries []entry
	)
	node := func(ctx context.Context, node *redis.Client) error {
		for cursor := uint64(0); ; {
			keys, next, err := node.Scan(ctx, cursor, "", 1000).Result()
			if err != nil {
				return err
			}
			types, ttls := make([]*redis.StatusCmd, len(keys)), make([]*redis.DurationCmd, len(keys))
			_, err = node.Pipelined(ctx, func(p redis.Pipeliner) error {
				for i, key := range keys {
					types[i], ttls[i] = p.Type(ctx, key), p.PTTL(ctx, key)
				}
				return nil
			})
			if err != nil {
				return err
			}
			mu.Lock()
			for i, key := range keys {
				if types[i].Val() != "none" { // expired since SCAN
					entries = append(entries, entry{key, types[i].Val(), ttls[i].Val()})
				}
			}
			mu.Unlock()
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	var err error
	switch c := client.(type) {
	case *redis.Client:
		err = node(ctx, c)
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, node)
	case *redis.Ring:
		err = c.ForEachShard(ctx, node)
	default:
		err = fmt.Errorf("%T is not a client whose servers can be listed", client)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	// A key moved by the server's rehashing is scanned twice.
	return slices.CompactFunc(entries, func(a, b entry) bool { return a.key == b.key }), err
}

// strict holds the patterns of [MainStrict], which sets it before the tests run. Under [Main]
// it is nil.
var strict []KeyPattern

// leftovers returns one complaint for each key of the server at addr that MainStrict refuses.
func leftovers(addr string) ([]string, error) {
	if strict == nil {
		return nil, nil
	}
	ctx := context.Background()
	c := redis.NewClient(&redis.Options{Addr: addr})
	defer c.Close()
	entries, err := scan(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("redistest: looking for unlisted keys at %s: %w", addr, err)
	}
	var said []string
	for _, e := range entries {
		if !e.listed(strict) {
			said = append(said, fmt.Sprintf("unlisted key: %q (%s)", e.key, e.typ))
		}
		if e.ttl == -1 {
			said = append(said, fmt.Sprintf("key without TTL: %q (%s)", e.key, e.typ))
		}
	}
	return said, nil
}

// checkLeft reports leftovers as errors of t.
func checkLeft(t testing.TB, addr string) {
	t.Helper()
	said, err := leftovers(addr)
	if err != nil {
		t.Error(err)
	}
	for _, s := range said {
		t.Error("redistest: left behind: " + s)
	}
}
