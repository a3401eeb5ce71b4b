package scripts_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// files returns the text of each script's file.
func files(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("session/*.lua")
	if err != nil || len(names) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	all := make(map[string]string)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(name), ".lua")] = string(b)
	}
	return all
}

func TestEachSessionScriptIsItsFileAndCompiles(t *testing.T) {
	texts := files(t)
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for name, text := range texts {
			s := scripts.Get("session/" + name + ".lua")
			if s.Source() != text {
				t.Errorf("session/%s.lua is not what runs", name)
			}
			sha, err := b.Client.ScriptLoad(t.Context(), text).Result()
			if err != nil {
				t.Errorf("session/%s.lua: %v", name, err)
			} else if sha != s.SHA1() {
				t.Errorf("session/%s.lua: Redis calls it %s, we %s", name, sha, s.SHA1())
			}
			// A script that cannot begin, for want of a library or of a name that is set too
			// late, is found by running it: on a key that is none, with arguments that pass for
			// fields as well as for numbers.
			args := make([]any, 12)
			for i := range args {
				args[i] = "0000000000000000"
			}
			err = b.Client.Eval(t.Context(), text, []string{"{scratch}:" + name}, args...).Err()
			if err != nil && err != redis.Nil {
				t.Errorf("session/%s.lua: %v", name, err)
			}
			b.Client.Del(t.Context(), "{scratch}:"+name)
		}
	})
}

// What several scripts need stands in each of them: Redis knows no library that a script
// may have without a right of its own. The copies are one text.
func TestWhatSessionScriptsShareIsOneText(t *testing.T) {
	// A name at the beginning of a line, and what belongs to it: up to a line "end", or the
	// line alone.
	begins := regexp.MustCompile(`^local (?:function )?([a-z]+)\b`)
	type copyOf struct{ file, text string }
	first := make(map[string]copyOf)
	copies := make(map[string]int)
	for file, text := range files(t) {
		lines := strings.SplitAfter(text, "\n")
		for i := 0; i < len(lines); i++ {
			m := begins.FindStringSubmatch(lines[i])
			if m == nil || !strings.Contains(lines[i], "function") && m[1] != "now" && m[1] != "struct" && m[1] != "n" {
				continue
			}
			block := strings.TrimRight(lines[i], "\n") + "\n"
			for strings.Contains(lines[i], "function") && !strings.HasPrefix(lines[i], "end") {
				j := i + 1
				for ; j < len(lines) && !strings.HasPrefix(lines[j], "end"); j++ {
					block += lines[j]
				}
				if j == len(lines) {
					t.Fatalf("%s: %s has no end", file, m[1])
				}
				block += lines[j]
				i = j
			}
			copies[m[1]]++
			if was, ok := first[m[1]]; !ok {
				first[m[1]] = copyOf{file, block}
			} else if was.text != block {
				t.Errorf("%s of %s.lua and of %s.lua differ:\n%s\n%s", m[1], was.file, file, was.text, block)
			}
		}
	}
	for _, name := range []string{"pack", "times", "struct", "now", "n"} { // this test sees them
		if copies[name] < 3 {
			t.Errorf("%d copies of %s", copies[name], name)
		}
	}
}
