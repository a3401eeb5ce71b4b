package scripts_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the scripts that are made of parts")

// whole returns the text of a part, with the parts that it includes in the place of its
// lines "-- include name.lua", indented as they are.
func whole(t *testing.T, parts, part string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(parts, part))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		indent, name, included := strings.Cut(strings.TrimRight(line, "\n"), "-- include ")
		if !included || strings.TrimSpace(indent) != "" {
			b.WriteString(line)
			continue
		}
		for line := range strings.Lines(whole(t, parts, name)) {
			b.WriteString(indent + line)
		}
	}
	return b.String()
}

// What several scripts need stands in a folder parts, once. The scripts that are made of it are
// checked in, so that each can be read as Redis runs it.
func TestScriptsAreMadeOfTheirParts(t *testing.T) {
	for _, dir := range []string{"limit", "session"} {
		from := filepath.Join(dir, "parts")
		parts, err := filepath.Glob(filepath.Join(from, "[a-z]*.lua"))
		if err != nil || len(parts) < 5 {
			t.Fatalf("%d parts: %v", len(parts), err)
		}
		for _, path := range parts {
			name := filepath.Base(path)
			want := "-- Made of parts/" + name + ". Change it there, then: go test ./scripts -update\n--\n" + whole(t, from, name)
			target := filepath.Join(dir, name)
			if *update {
				if err := os.WriteFile(target, []byte(want), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := os.ReadFile(target); err != nil || string(got) != want {
				t.Errorf("%s is not what its parts make (%v): go test ./scripts -update", target, err)
			}
		}
	}
}
