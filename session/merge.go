package session

import "reflect"

// merge applies to theirs what changed from base to mine, key by key. Of two
// changes to one key mine stands: the last commit wins.
func merge(base, mine, theirs map[string]any) map[string]any {
	merged := make(map[string]any, len(theirs)+len(mine))
	for k, v := range theirs {
		merged[k] = v
	}
	for k, v := range mine {
		if was, ok := base[k]; !ok || !reflect.DeepEqual(was, v) {
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
