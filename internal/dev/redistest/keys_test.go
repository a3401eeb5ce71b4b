package redistest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const patternFile = "# Scripts\n\n" +
	"| Script | Type of reply |\n|---|---|\n| `take.lua` | array |\n\n" +
	"| Key | Type | Holds |\n" +
	"|:----|------|-------|\n" +
	"| `<prefix>{<partition>}:<owner>` | hash | a \\| b |\n" +
	"| `<prefix>rl:<kind>:{<key>}`, `<prefix>a\\|b.c` | `string` | \n" +
	"\nEnd\n"

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "README.md")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestReadKeyPatterns(t *testing.T) {
	patterns, err := ReadKeyPatterns(write(t, patternFile))
	if err != nil || len(patterns) != 3 {
		t.Fatalf("%d patterns, %v; want 3", len(patterns), err)
	}
	for _, tt := range []struct {
		key, typ string
		want     bool
	}{
		{"gh:{7}:ann", "hash", true},
		{"{7}:ann", "hash", true},
		{"any\nprefix\xff{\n}:\xff\x00", "hash", true},
		{"gh:{7}:ann", "string", false},
		{"gh:{}:ann", "hash", false},
		{"gh:{7}:", "hash", false},
		{"gh:{7}ann", "hash", false},
		{"gh:rl:fixed:{k:{}}", "string", true},
		{"gh:rl:fixed:{k}x", "string", false},
		{"a|b.c", "string", true},
		{"a|bxc", "string", false},
		{"take.lua", "string", false},
		{"", "string", false},
	} {
		if got := (entry{key: tt.key, typ: tt.typ}).listed(patterns); got != tt.want {
			t.Errorf("%q (%s) is listed: %v, want %v", tt.key, tt.typ, got, tt.want)
		}
	}
}

func TestReadKeyPatternsRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"no table":         {"# Scripts\n", "no table"},
		"only other table": {"| Script | Reply |\n|---|---|\n| `a` | string |\n", "no table"},
		"no backticks":     {"| Key | Type |\n|---|---|\n| <prefix>a | string |\n", ":3:"},
		"unknown type":     {"| Key | Type |\n|---|---|\n| `<prefix>a` | counter |\n", "counter"},
		"no type":          {"| Key | Type |\n|---|---|\n| `<prefix>a`\n", ":3:"},
	} {
		if _, err := ReadKeyPatterns(write(t, tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: err = %v, want one that says %q", name, err, tt.want)
		}
	}
	if _, err := ReadKeyPatterns(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file: no error")
	}
}

func TestUnlisted(t *testing.T) {
	ctx := context.Background()
	patterns, err := ReadKeyPatterns(write(t, patternFile))
	if err != nil {
		t.Fatal(err)
	}
	Each(t, func(t *testing.T, b Backend) {
		var want []string
		for i := range 30 { // enough for each master to hold some
			b.Client.HSet(ctx, fmt.Sprintf("gh:{%d}:o", i), "f", 1)
			b.Client.Set(ctx, fmt.Sprintf("gh:rl:fixed:{%d}", i), 1, time.Minute)
			b.Client.Set(ctx, fmt.Sprintf("stray\n%d", i), 1, 0)
			b.Client.RPush(ctx, fmt.Sprintf("gh:rl:list:{%d}", i), 1)
			want = append(want, fmt.Sprintf(`"stray\n%d" (string)`, i), fmt.Sprintf(`"gh:rl:list:{%d}" (list)`, i))
		}
		slices.Sort(want)
		got, err := Unlisted(ctx, b.Client, patterns)
		if slices.Sort(got); err != nil || !slices.Equal(got, want) {
			t.Errorf("Unlisted = %q, %v; want %q", got, err, want)
		}
	})
}

// TestStrictChild is the body of the process that TestMainStrict starts.
func TestStrictChild(t *testing.T) {
	if os.Getenv("REDISTEST_CHILD_STRICT") == "" {
		return
	}
	ctx := context.Background()
	t.Run("each", func(t *testing.T) {
		for name, leave := range map[string]func(b Backend){
			"good":       func(b Backend) { b.Client.Set(ctx, "rl:a:{b}", 1, time.Minute) },
			"deleted":    func(b Backend) { b.Client.Set(ctx, "stray", 1, 0); b.Client.Del(ctx, "stray") },
			"unlisted":   func(b Backend) { b.Client.Set(ctx, "stray", 1, time.Minute) },
			"immortal":   func(b Backend) { b.Client.Set(ctx, "rl:a:{b}", 1, 0) },
			"wrong type": func(b Backend) { b.Client.SAdd(ctx, "rl:a:{b}", 1); b.Client.Expire(ctx, "rl:a:{b}", time.Minute) },
		} {
			t.Run(name, func(t *testing.T) { Each(t, func(t *testing.T, b Backend) { leave(b) }) })
		}
	})
	t.Run("flush", func(t *testing.T) {
		s := Shared(t)
		s.Client().Set(ctx, "before flush", 1, time.Minute)
		s.Flush()
	})
	if os.Getenv("REDISTEST_CHILD_END") != "clean" {
		Shared(t).Client().Set(ctx, "in the end", 1, time.Minute)
	}
}

func TestMainStrict(t *testing.T) {
	t.Parallel() // with others that wait
	require(t)
	child := func(file, only, end string) (string, error) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestStrictChild$/"+only, "-test.v")
		cmd.Env = append(os.Environ(), "REDISTEST_CHILD_STRICT="+file, "REDISTEST_CHILD_END="+end)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	file := write(t, patternFile)
	for _, tt := range []struct {
		name, file, only, end string
		pass                  bool
		want                  []string
	}{
		{name: "good", file: file, only: "^each$/^(good|deleted)$", end: "clean", pass: true},
		{name: "bad", file: file, only: "^each$/^(unlisted|immortal|wrong_type)$", end: "clean", want: []string{
			"--- FAIL: TestStrictChild/each/unlisted/miniredis", `unlisted key: "stray" (string)`,
			"--- FAIL: TestStrictChild/each/unlisted/standalone",
			"--- FAIL: TestStrictChild/each/unlisted/cluster",
			"--- FAIL: TestStrictChild/each/immortal/cluster", `key without TTL: "rl:a:{b}" (string)`,
			"--- FAIL: TestStrictChild/each/wrong_type/cluster", `unlisted key: "rl:a:{b}" (set)`,
		}},
		{name: "flush", file: file, only: "^flush$", end: "clean", want: []string{
			"--- FAIL: TestStrictChild/flush", `unlisted key: "before flush" (string)`,
		}},
		{name: "end", file: file, only: "^none$", want: []string{
			"--- PASS: TestStrictChild", `left behind by the tests: unlisted key: "in the end" (string)`,
		}},
		{name: "no patterns", file: file + ".none", only: "^none$", want: []string{"README.md.none"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := child(tt.file, tt.only, tt.end)
			if (err == nil) != tt.pass {
				t.Errorf("the child ended with %v", err)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("the child does not say %q", w)
				}
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}
