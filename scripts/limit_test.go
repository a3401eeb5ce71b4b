package scripts_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
)

func TestEachScriptOfLimitsAndProfilesIsItsFile(t *testing.T) {
	var names []string
	for dir, least := range map[string]int{"limit": 10, "profile": 4} {
		found, err := filepath.Glob(dir + "/*.lua")
		if err != nil || len(found) < least {
			t.Fatalf("%d scripts: %v", len(found), err)
		}
		names = append(names, found...)
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
