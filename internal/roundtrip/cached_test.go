package roundtrip

import (
	"fmt"
	"testing"
)

// What was written is read past the cache once.
func TestWrittenKeysAreTakenOnce(t *testing.T) {
	w := newWritten()
	for i := range 100 {
		key := fmt.Sprint("k", i)
		if w.take(key) {
			t.Errorf("%s was not noted", key)
		}
		w.note(key)
		w.note(key)
		if !w.take(key) {
			t.Errorf("%s was noted", key)
		}
		if w.take(key) {
			t.Errorf("%s was taken before", key)
		}
	}
}
