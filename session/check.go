package session

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// Check looks at the Redis of the Manager, at start-up or by hand: whether its user may run each
// command that sessions need, and whether it is old, a replica, evicts keys, forgets in a crash,
// has another time, does not let ends be told at once, is read through a cache without a limit to its age, or holds sessions that the
// Manager cannot read, for which it looks at some thousand keys. An error names what does not
// work, warnings what is likely to surprise. It writes nothing. Where there is no Redis it takes
// go-redis some seconds to say so: give ctx ten.
func (m *Manager) Check(ctx context.Context) (warnings []string, err error) {
	s := m.records
	client := s.redis.Client()
	err = check.Permissions(ctx, s.redis, check.Needs{
		Key: s.keys.stock("check").key,
		Scripts: []*scripts.Script{
			createScript, saveScript, rotateScript, retireScript, endScript, sweepScript, headsScript, readScript, timeScript,
			loginScript, besideScript, endAllScript, listScript, watchScript,
		},
	})
	if err != nil {
		err = fmt.Errorf("session: %w", err)
	} else if missing, err := check.Channel(ctx, s.redis, s.keys.stock("check").key, s.keys.ended()); err == nil && len(missing) > 0 {
		warnings = append(warnings, fmt.Sprintf("the user of Redis may not %s on the channel %q: what Watch and Live watch ends up to %v late", strings.Join(missing, " and "), s.keys.ended(), watchEvery))
	}
	if c, ok := client.(*redis.Client); ok && cachesForever(c.Options()) {
		warnings = append(warnings, "the client-side cache has no MaxStaleness: where the word of a logout is lost, a session is seen until it is thrown out")
	}
	if m.legacy != nil {
		if _, _, also := m.legacy.find(ctx, strings.Repeat("A", legacyTokenLen)); also != nil {
			err = errors.Join(err, fmt.Errorf("session: the legacy store: %w", also))
		}
	}
	switch use, err := s.secretUse(ctx, checkedPages); {
	case err != nil && strings.Contains(err.Error(), "NOPERM"):
		warnings = append(warnings, "SCAN is not permitted, so that sessions which this Manager cannot read were not looked for")
	case use.Unknown > 0, use.Unsealed > 0 && len(use.Secrets) > 0:
		warnings = append(warnings, "there are sessions under the same Prefix that this Manager cannot read: of another service, or of a secret that was taken out")
	}
	more, also := check.Servers(ctx, client, check.Loss{
		Evicted:   "sessions that it removes are users who are logged out",
		Forgotten: "after a crash of Redis, who has logged out since the last snapshot is logged in again",
	})
	return append(warnings, more...), errors.Join(err, also)
}

// checkedPages is how many pages of keys of each server Check looks at.
const checkedPages = 4

// cachesForever reports whether reads are cached for as long as nothing is heard of a change.
func cachesForever(o *redis.Options) bool {
	switch cache := o.ClientSideCache.(type) {
	case nil:
		return o.ClientSideCacheConfig != nil && o.ClientSideCacheConfig.MaxStaleness == 0
	case *redis.LocalCache:
		// It tells nobody but go-redis. A test notices when it keeps that elsewhere.
		shards := reflect.ValueOf(cache).Elem().FieldByName("shards")
		if shards.IsValid() && shards.Kind() == reflect.Slice && shards.Len() > 0 {
			if f := shards.Index(0).FieldByName("maxStaleness"); f.IsValid() && f.CanInt() {
				return f.Int() == 0
			}
		}
	}
	return false
}
