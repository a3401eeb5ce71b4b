package session

import (
	"bytes"
	"reflect"
	"time"
)

// mergeValues applies to theirs what changed from base to mine, key by key. Of two
// changes to one key mine stands: the last commit wins.
func (s *Store) mergeValues(base, mine, theirs map[string]any) map[string]any {
	merged := make(map[string]any, len(theirs)+len(mine))
	for k, v := range theirs {
		merged[k] = v
	}
	for k, v := range mine {
		if was, ok := base[k]; !ok || !s.same(was, v) {
			merged[k] = v
		}
	}
	for k := range base {
		if _, ok := mine[k]; !ok {
			delete(merged, k)
		}
	}
	return merged
}

// same tells whether two values are one. reflect does not know NaN again, nor a
// time.Time after a round trip; the codec may write equal maps of a user's own
// type in different orders.
func (s *Store) same(a, b any) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, err := s.codec.Encode(time.Time{}, map[string]any{"": a})
	if err != nil {
		return false
	}
	y, err := s.codec.Encode(time.Time{}, map[string]any{"": b})
	return err == nil && bytes.Equal(x, y)
}
