package redistest

import (
	"bytes"
	"sync"
)

// Journal is a log that can be read while others write to it. The zero value is empty.
type Journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write appends a line.
func (j *Journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(line)
}

// String returns what has been written.
func (j *Journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// Reset forgets what has been written.
func (j *Journal) Reset() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.b.Reset()
}
