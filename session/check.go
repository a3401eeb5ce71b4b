package session

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// Check looks at the Redis of the Manager, at start-up or by hand: whether its user may run each
// command that sessions need, and whether it is old, a replica, evicts keys, forgets in a crash,
// has another time, does not let its user publish ends of sessions, is read through a cache
// without a limit to its age, or holds sessions that the Manager cannot read, for which it looks
// at some thousand keys. The Store of Legacy is asked to find and to delete a random token, which no session has. An error
// names what does not work, warnings what is likely to surprise. It writes nothing. Where there is no Redis it takes
// go-redis some seconds to say so: give ctx ten.
func (m *Manager) Check(ctx context.Context) (warnings []string, err error) {
	s := m.records
	client := s.redis.Client()
	needs := check.Needs{
		Key: s.keys.stock("check").key,
		Scripts: []*scripts.Script{
			createScript, saveScript, rotateScript, retireScript, endScript, sweepScript, headsScript, readScript, timeScript,
			loginScript, besideScript, endAllScript, listScript, watchScript,
		},
	}
	if s.events.Retention > 0 {
		needs.Scripts = append(needs.Scripts, appendScript, recentScript)
	}
	err = check.Permissions(ctx, s.redis, needs)
	if err != nil {
		err = fmt.Errorf("session: %w", err)
	} else if missing, err := check.Channel(ctx, s.redis, s.keys.stock("check").key, s.keys.ended()); err == nil && len(missing) > 0 {
		warnings = append(warnings, fmt.Sprintf("the user of Redis may not %s on the channel %q: what Watch and Live watch ends up to %v late", strings.Join(missing, " and "), s.keys.ended(), watchEvery))
	}
	warnings = append(warnings, check.NearCache(client, "where the word of a logout is lost, a session is seen until it is thrown out")...)
	if m.legacy != nil {
		if also := m.legacy.check(ctx); also != nil {
			err = errors.Join(err, fmt.Errorf("session: the legacy store: %w", also))
		}
	}
	switch use, err := s.secretUse(ctx, checkedPages); {
	case err != nil && strings.Contains(err.Error(), "NOPERM"):
		warnings = append(warnings, "SCAN is not permitted, so that sessions which this Manager cannot read were not looked for")
	case err != nil:
		warnings = append(warnings, fmt.Sprintf("sessions which this Manager cannot read were not looked for: %v", err))
	case s.strangers(ctx):
		warnings = append(warnings, "there are sessions under the same Prefix that do not stand where this Manager looks for their users: KeySecret is another one")
	case use.Unknown > 0, use.Unsealed > 0 && len(use.Secrets) > 0:
		warnings = append(warnings, "there are sessions under the same Prefix that this Manager cannot read: of another service, or of a secret that was taken out")
	}
	more, also := check.Servers(ctx, client, check.Loss{
		Evicted:   "sessions that it removes are users who are logged out",
		Forgotten: "after a crash of Redis, who has logged out since the last snapshot is logged in again",
	})
	return append(warnings, more...), errors.Join(err, also)
}

// strangers reports whether there are users' sessions in places that another KeySecret has
// chosen. It looks at some.
func (s *records) strangers(ctx context.Context) bool {
	var found atomic.Bool
	look := func(ctx context.Context, node *redis.Client) error {
		keys, _, err := node.ScanType(ctx, 0, globQuote(s.keys.prefix)+"{???}:*", scanPage, "hash").Result()
		if err != nil {
			return err
		}
		for _, key := range keys[:min(len(keys), checkedOwners)] {
			var o owner
			if _, err := base64.RawURLEncoding.Decode(o[:], []byte(key[strings.LastIndexByte(key, ':')+1:])); err != nil || s.keys.key(o) != key {
				continue
			}
			a, err := s.run(ctx, listScript, s.of(o))
			if err != nil {
				return err
			}
			for _, err := range s.opened(o, a) {
				if err == errOwner {
					found.Store(true)
				}
			}
		}
		return nil
	}
	_ = roundtrip.EachMaster(ctx, s.redis.Client(), look) // the other checks report a server that cannot be asked
	return found.Load()
}

// checkedOwners is how many owners of each server strangers looks at.
const checkedOwners = 20

// checkedPages is how many pages of keys of each server Check looks at.
const checkedPages = 4
