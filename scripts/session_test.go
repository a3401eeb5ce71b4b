package scripts_test

import (
	"os"
	"path/filepath"
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
			// fields, for numbers and for lives.
			args := make([]any, 32)
			for i := range args {
				args[i] = "1000000000000000"
			}
			if name == "login" {
				args[5] = strings.Repeat("1", 77) // all its numbers
			}
			err = b.Client.Eval(t.Context(), text, []string{"{scratch}:" + name, "{scratch}:" + name + ":2"}, args...).Err()
			if err != nil && err != redis.Nil {
				t.Errorf("session/%s.lua: %v", name, err)
			}
			b.Client.Del(t.Context(), "{scratch}:"+name)
		}
	})
}
