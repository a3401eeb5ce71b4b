package session

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/check"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// Check looks at the Redis of the Manager, at start-up or by hand: whether its user may run each
// command that sessions need, and whether it is old, a replica, evicts keys, forgets in a crash,
// has another time, or is read through a cache without a limit to its age. An error names what
// does not work, warnings what is likely to surprise. It writes nothing.
func (m *Manager) Check(ctx context.Context) (warnings []string, err error) {
	s := m.records
	client := s.redis.Client()
	err = check.Permissions(ctx, s.redis, check.Needs{
		Key: s.keys.stock("check").key,
		Scripts: []*scripts.Script{
			createScript, saveScript, rotateScript, retireScript, endScript, sweepScript, headsScript, readScript, timeScript,
		},
	})
	if err != nil {
		err = fmt.Errorf("session: %w", err)
	}
	if c, ok := client.(*redis.Client); ok && cachesForever(c.Options()) {
		warnings = append(warnings, "the client-side cache has no MaxStaleness: where the word of a logout is lost, a session is seen until it is thrown out")
	}
	more, also := check.Servers(ctx, client, check.Loss{
		Evicted:   "sessions that it removes are users who are logged out",
		Forgotten: "after a crash of Redis, who has logged out since the last snapshot is logged in again",
	})
	return append(warnings, more...), errors.Join(err, also)
}

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
