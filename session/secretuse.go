package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// SecretUse tells how many records in Redis are sealed under which secret.
type SecretUse struct {
	// Secrets has the numbers for each of Config.Secrets, in its order. When that
	// of an old secret has come to zero, no session needs it any more.
	Secrets []int
	// Unsealed records were written without a secret. When Secrets are set they
	// cannot be read.
	Unsealed int
	// Unknown are records that cannot be read: of a secret that is not configured,
	// or damaged.
	Unknown int
}

const scanPage = 500

// SecretUse counts the records of all sessions, rotated IDs included, by the
// secret that they are sealed under. It scans all of Redis (every master of a
// cluster) and reads the head of each record, in pages: it is for an operator
// who wants to drop an old secret, not for requests. A record that is
// there all the while is counted at least once, and now and then twice; one that
// comes or goes may be counted or not.
func (m *Manager) SecretUse(ctx context.Context) (SecretUse, error) {
	return m.store.SecretUse(ctx)
}

// SecretUse counts as that of Manager does.
func (s *Store) SecretUse(ctx context.Context) (SecretUse, error) {
	use := SecretUse{Secrets: make([]int, len(s.ring.keys))}
	var mu sync.Mutex
	scan := func(ctx context.Context, node *redis.Client) error {
		var cursor uint64
		for {
			keys, next, err := node.Scan(ctx, cursor, globQuote(s.prefix)+"{*}:s:*", scanPage).Result()
			if err != nil {
				return err
			}
			heads, err := readHeads(ctx, node, keys)
			if err != nil {
				return err
			}
			mu.Lock()
			for _, head := range heads {
				s.countSecret(&use, head)
			}
			mu.Unlock()
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	var err error
	switch c := s.redis.Client().(type) {
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, scan)
	case *redis.Ring:
		err = c.ForEachShard(ctx, scan)
	case *redis.Client:
		err = scan(ctx, c)
	default:
		return SecretUse{}, fmt.Errorf("session: cannot list the servers of a %T", c)
	}
	if err != nil {
		return SecretUse{}, unavailable(ctx, err)
	}
	return use, nil
}

// readHeads returns the first bytes of each record. What is no string, or gone,
// comes out empty.
func readHeads(ctx context.Context, node *redis.Client, keys []string) ([]string, error) {
	cmds, err := node.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, key := range keys {
			p.GetRange(ctx, key, 0, int64(liveHeader-1))
		}
		return nil
	})
	var replied redis.Error
	if err != nil && !errors.As(err, &replied) {
		return nil, err
	}
	heads := make([]string, 0, len(cmds))
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !wrongType(err) {
			return nil, err
		}
		heads = append(heads, cmd.(*redis.StringCmd).Val())
	}
	return heads, nil
}

// countSecret adds one record to use.
func (s *Store) countSecret(use *SecretUse, head string) {
	var k keyID
	switch {
	case head == "":
		return // it has just expired
	case head[0] == formatEnded || head[0] == formatLoggedOut:
		return // nothing in it is sealed
	case head[0] == formatLive && len(head) == liveHeader:
		copy(k[:], head[liveHeader-keyIDLen:])
	case head[0] == formatMoved && len(head) >= 1+keyIDLen:
		copy(k[:], head[1:])
	default:
		use.Unknown++
		return
	}
	if k == plainKey {
		use.Unsealed++
		return
	}
	if i := s.ring.position(k); i >= 0 {
		use.Secrets[i]++
		return
	}
	use.Unknown++
}

// globQuote makes a prefix match itself in a SCAN.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}
