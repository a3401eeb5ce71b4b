package session

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// Stats counts what happened since the Manager was made. Those up to NotSaved are not counted by a
// Store.
type Stats struct {
	Operations map[string]Outcomes // by their names, see Operation
	Found      uint64              // calls of Load that found a session
	None       uint64              // calls of Load that found none
	Saved      uint64              // times that changes of a request were written
	NotSaved   uint64              // errors of Commit and Finish, but for ErrEnded and those of clients that hung up

	Unreadable uint64 // records that could not be read: corrupt, or sealed under another secret
	Conflicts  uint64 // commits that met a concurrent change and were merged
	Dropped    uint64 // requests whose session had ended or moved meanwhile; nothing was written
	LostEvents uint64 // what has happened and is not told: it could not be appended

	// Silent is how many servers of its client are not asked for now, as they did not answer. One
	// that nobody has tried for a minute is not counted.
	Silent int
}

// Outcomes counts what became of a method's calls.
type Outcomes struct {
	Done      uint64 // it returned nil
	Failed    uint64 // ErrUnavailable, ErrConflict, or a deadline that has passed
	Cancelled uint64 // its context was cancelled, as by a client that hangs up
	Refused   uint64 // any other error: it does not make sense, or may not be
}

// Stats returns the counters of this Manager.
func (m *Manager) Stats() Stats {
	s := m.records.stats()
	of := &m.operations
	s.Found, s.None, s.Saved, s.NotSaved = of.found.Load(), of.none.Load(), of.saved.Load(), of.notSaved.Load()
	s.Operations = make(map[string]Outcomes, len(operationNames))
	for op, name := range operationNames {
		s.Operations[name] = Outcomes{of.done[op].Load(), of.failed[op].Load(), of.cancelled[op].Load(), of.refused[op].Load()}
	}
	return s
}

func (s *records) stats() Stats {
	return Stats{
		Unreadable: s.unreadable.Load(), Conflicts: s.conflicts.Load(), Dropped: s.dropped.Load(), LostEvents: s.lostEvents.Load(),
		Silent: s.redis.Silent(),
	}
}

// SecretUse says how many records in Redis are sealed under which secret.
type SecretUse struct {
	// Secrets has the numbers for each of Config.Secrets, in its order. When that of an
	// old secret has come to zero, no session needs it any more, but events may for as long as
	// Events.Retention.
	Secrets []int
	// Unsealed records were written without a secret. When Secrets are set they cannot be
	// read.
	Unsealed int
	// Unknown are records that cannot be read: of a secret that is not configured, or
	// damaged.
	Unknown int
}

const scanPage = 500

// SecretUse counts the records of all sessions, rotated IDs included, by the secret that
// they are sealed under. It scans all of Redis (every master of a cluster) and reads the
// head of each record, in pages: it is for an operator who wants to drop an old secret,
// not for requests. A record that is there all the while is counted at least once, and
// now and then twice; one that comes or goes may be counted or not.
func (m *Manager) SecretUse(ctx context.Context) (SecretUse, error) {
	return m.records.secretUse(ctx, 0)
}

// SecretUse counts as that of Manager does.
func (s *Store) SecretUse(ctx context.Context) (SecretUse, error) { return s.records.secretUse(ctx, 0) }

// secretUse counts what is in so many pages of each server; 0: in all.
func (s *records) secretUse(ctx context.Context, pages int) (SecretUse, error) {
	use := SecretUse{Secrets: make([]int, s.sealer.ring.Len())}
	var mu sync.Mutex
	scan := func(ctx context.Context, node *redis.Client) error {
		var cursor uint64
		for page := 1; ; page++ {
			keys, next, err := node.ScanType(ctx, cursor, globQuote(s.keys.prefix)+"{???}:*", scanPage, "hash").Result()
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
			if cursor = next; cursor == 0 || page == pages {
				return nil
			}
		}
	}
	if err := roundtrip.EachMaster(ctx, s.redis.Client(), scan); err != nil {
		return SecretUse{}, unavailable(ctx, err)
	}
	return use, nil
}

// readHeads returns the first bytes of every record of some owners.
func readHeads(ctx context.Context, node *redis.Client, keys []string) (heads []string, err error) {
	read := func(script func(p redis.Pipeliner, key string)) ([]redis.Cmder, error) {
		cmds, err := node.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, key := range keys {
				script(p, key)
			}
			return nil
		})
		var replied redis.Error
		if err != nil && !errors.As(err, &replied) {
			return nil, err
		}
		return cmds, nil
	}
	cmds, err := read(func(p redis.Pipeliner, key string) { p.EvalSha(ctx, headsScript.SHA1(), []string{key}) })
	if len(cmds) > 0 && cmds[0].Err() != nil && strings.HasPrefix(cmds[0].Err().Error(), "NOSCRIPT") {
		cmds, err = read(func(p redis.Pipeliner, key string) { p.Eval(ctx, headsScript.Source(), []string{key}) })
	}
	if err != nil {
		return nil, err
	}
	for _, cmd := range cmds {
		list, err := cmd.(*redis.Cmd).StringSlice()
		if err != nil {
			return nil, err
		}
		heads = append(heads, list...)
	}
	return heads, nil
}

// countSecret adds one record or tombstone to use.
func (s *records) countSecret(use *SecretUse, head string) {
	var key seal.ID
	switch {
	case head == "" || head[0] == formatEnded:
		return // nothing in it is sealed
	case head[0] == formatRecord && len(head) >= headLen:
		copy(key[:], head[2:])
	case head[0] == formatRotated && len(head) >= tombstoneLen+len(key):
		copy(key[:], head[tombstoneLen:])
	default:
		use.Unknown++
		return
	}
	if i := s.sealer.ring.Position(key); i >= 0 {
		use.Secrets[i]++
	} else if key == seal.Plain {
		use.Unsealed++
	} else {
		use.Unknown++
	}
}

// globQuote makes a prefix match itself in a SCAN.
func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}
