package roundtrip

import "time"

// Registered returns of how many clients something is registered.
func Registered() int {
	registry.Lock()
	defer registry.Unlock()
	return len(registry.of)
}

// LastAsked has it be that long since the server of s was last asked.
func (s *Sender) LastAsked(ago time.Duration) {
	c := &s.only.circuit
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Now().Add(-ago)
}
