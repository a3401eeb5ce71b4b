package scripts_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

var update = flag.Bool("update", false, "write the scripts that are made of parts")

// whole returns the text of a part, with the parts that it includes in the place of its
// lines "-- include name.lua", indented as they are.
func whole(t *testing.T, part string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("limit/parts", part))
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
		for line := range strings.Lines(whole(t, name)) {
			b.WriteString(indent + line)
		}
	}
	return b.String()
}

// What the scripts of limits share stands in limit/parts, once. The scripts that are made
// of it are checked in, so that each can be read as Redis runs it.
func TestLimitScriptsAreMadeOfTheirParts(t *testing.T) {
	parts, err := filepath.Glob("limit/parts/[a-z]*.lua")
	if err != nil || len(parts) < 5 {
		t.Fatalf("%d parts: %v", len(parts), err)
	}
	for _, path := range parts {
		name := filepath.Base(path)
		want := "-- Made of parts/" + name + ". Change it there, then: go test ./scripts -update\n--\n" + whole(t, name)
		target := filepath.Join("limit", name)
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

func TestEachLimitScriptIsItsFileAndRuns(t *testing.T) {
	names, err := filepath.Glob("limit/*.lua")
	if err != nil || len(names) < 10 {
		t.Fatalf("%d scripts: %v", len(names), err)
	}
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			s := scripts.Get(filepath.ToSlash(name))
			if s.Source() != string(text) {
				t.Errorf("%s is not what runs", name)
			}
			sha, err := b.Client.ScriptLoad(t.Context(), s.Source()).Result()
			if err != nil || sha != s.SHA1() {
				t.Errorf("%s: Redis calls it %s (%v), we %s", name, sha, err, s.SHA1())
			}
		}
	})
}
