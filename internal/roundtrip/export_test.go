package roundtrip

// Registered returns of how many clients something is registered.
func Registered() int {
	registry.Lock()
	defer registry.Unlock()
	return len(registry.of)
}
