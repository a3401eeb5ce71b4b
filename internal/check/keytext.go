package check

import "fmt"

// KeyText reports whether s can stand in a Redis key outside the braces.
func KeyText(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' || s[i] == '{' || s[i] == '}' {
			return false
		}
	}
	return true
}

// Prefix returns what is wrong with a Config.Prefix, or nil.
func Prefix(s string) error {
	const most = 128
	if len(s) > most || !KeyText(s) {
		return fmt.Errorf("invalid Prefix %.*q: at most %d bytes of printable ASCII without braces", most, s, most)
	}
	return nil
}
