// Package layout holds the rules of who may import whom, and of what a user of the kit has to
// download.
package layout

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const root = "github.com/gatehouse-go/gatehouse"

// testHelp is what the tests of the examples share, and the one package besides tests that may
// use what is below internal/dev.
const testHelp = root + "/examples/internal/servicetest"

// forbidden imports, direct or not. A path stands for itself and for the packages below it, "" for
// all but the examples and what is below internal/dev.
var forbidden = []struct{ from, to, why string }{
	{"scripts", root, "scripts imports nothing of ours"},
	{"ratelimit", root + "/session", "limits and sessions are independent"},
	{"ratelimit", root + "/middleware", "middleware is the top"},
	{"session", root + "/ratelimit", "limits and sessions are independent"},
	{"session", root + "/middleware", "middleware is the top"},
	{"", root + "/examples", "examples are no part of the kit"},
	{"", root + "/internal/dev", "what serves work on the kit is for tests alone"},
	{"examples", root + "/internal/dev", "what serves work on the kit is for tests alone"},
	{"examples", testHelp, "it is for the examples' tests alone"},
	{"internal/dev", root + "/internal/dev/bench", "benchmarks are nobody's library"},
	{"", root + "/middleware/ginadapter", "gin stays in the adapter's module"},
}

// used are the modules that a program using the kit is built from.
var used = []string{
	"github.com/alexedwards/scs/v2",
	"github.com/dunglas/httpsfv",
	"github.com/gorilla/securecookie",
	"github.com/redis/go-redis/v9",
	"golang.org/x/net",

	// Of go-redis.
	"github.com/cespare/xxhash/v2",
	"go.uber.org/atomic",
	"golang.org/x/sys",
}

// tested are the modules that the root go.mod may list besides.
var tested = []string{
	"github.com/alexedwards/scs/redisstore",
	"github.com/gomodule/redigo", // of redisstore
	"github.com/alicebob/miniredis/v2",
	"github.com/yuin/gopher-lua", // of miniredis
}

type pkg struct {
	ImportPath string
	Imports    []string // direct
	Deps       []string // all
	Module     *struct {
		Path string
		Main bool
	}
	Standard bool
}

func TestImports(t *testing.T) {
	for _, dir := range modules(t) {
		for _, v := range violations(listIn(t, dir, "./...")) {
			t.Error(v)
		}
	}
}

// modules returns the folders that have a go.mod.
func modules(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "go.mod" {
			dirs = append(dirs, filepath.Dir(path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) < 2 {
		t.Fatalf("modules = %q, want the nested ones, too", dirs)
	}
	return dirs
}

func TestUsedModules(t *testing.T) {
	var kit []string
	for _, p := range list(t, "./...") {
		// For tests only: ours, and those of users.
		if !within(p.ImportPath, root+"/internal/dev") && p.ImportPath != root+"/session/sessiontest" {
			kit = append(kit, p.ImportPath)
		}
	}
	for _, p := range list(t, append([]string{"-deps"}, kit...)...) {
		if p.Standard || p.Module.Main || slices.Contains(used, p.Module.Path) {
			continue
		}
		t.Errorf("%s, of module %s, is linked into users' programs", p.ImportPath, p.Module.Path)
	}
}

func TestRequiredModules(t *testing.T) {
	var mod struct{ Require []struct{ Path string } }
	if err := json.Unmarshal(goCommand(t, "mod", "edit", "-json"), &mod); err != nil {
		t.Fatal(err)
	}
	if len(mod.Require) == 0 {
		t.Fatal("go.mod requires nothing")
	}
	for _, r := range mod.Require {
		if !slices.Contains(used, r.Path) && !slices.Contains(tested, r.Path) {
			t.Errorf("the root go.mod requires %s: users would download it", r.Path)
		}
	}
}

// A rule that nothing can break would look the same as one that is kept.
func TestViolations(t *testing.T) {
	for _, tt := range []struct {
		name, from string
		deps       []string
		want       int
	}{
		{"scripts alone", "scripts", []string{"embed", "github.com/redis/go-redis/v9"}, 0},
		{"scripts and ours", "scripts", []string{root + "/internal/roundtrip"}, 1},
		{"ratelimit and scripts", "ratelimit", []string{root + "/scripts"}, 0},
		{"ratelimit and session", "ratelimit", []string{root + "/session"}, 1},
		{"below ratelimit", "ratelimit/ratelimittest", []string{root + "/session"}, 1},
		{"session and ratelimit", "session", []string{root + "/ratelimit"}, 1},
		{"session and what begins like ratelimit", "session", []string{root + "/ratelimiter"}, 0},
		{"middleware and both", "middleware", []string{root + "/session", root + "/ratelimit"}, 0},
		{"ratelimit and net/http", "ratelimit", []string{"net/http"}, 1},
		{"middleware and examples", "middleware", []string{root + "/examples/demo"}, 1},
		{"session and net/http", "session", []string{"net/http"}, 1},
		{"below session, for HTTP tests", "session/sessiontest", []string{"net/http", root + "/session"}, 0},
		{"middleware and redistest", "middleware", []string{root + "/internal/dev/redistest"}, 1},
		{"a nested module and redistest", "middleware/ginadapter", []string{root + "/internal/dev/redistest"}, 1},
		{"an example and redistest", "examples/chi", []string{root + "/internal/dev/redistest"}, 1},
		{"an example and its tests' help", "examples/chi", []string{root + "/examples/internal/servicetest"}, 1},
		{"that help and redistest", "examples/internal/servicetest", []string{root + "/internal/dev/redistest"}, 0},
		{"an example and gin", "examples/gin", []string{root + "/middleware/ginadapter"}, 0},
		{"middleware and gin", "middleware", []string{root + "/middleware/ginadapter"}, 1},
		{"the adapter itself", "middleware/ginadapter", []string{root + "/middleware"}, 0},
		{"session and the rest of internal", "session", []string{root + "/internal/codec", root + "/internal/roundtrip"}, 0},
		{"bench and redistest", "internal/dev/bench", []string{root + "/internal/dev/redistest"}, 0},
		{"redistest and bench", "internal/dev/redistest", []string{root + "/internal/dev/bench"}, 1},
		{"roundtrip and redistest", "internal/roundtrip", []string{root + "/internal/dev/redistest"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from := root + "/" + tt.from
			got := violations([]pkg{{ImportPath: from, Imports: tt.deps, Deps: tt.deps}})
			if len(got) != tt.want {
				t.Errorf("violations = %q, want %d", got, tt.want)
			}
		})
	}
}

func violations(pkgs []pkg) []string {
	var found []string
	for _, p := range pkgs {
		part := within(p.ImportPath, root+"/examples") || within(p.ImportPath, root+"/internal/dev")
		for _, rule := range forbidden {
			if rule.from == "" && part || !within(p.ImportPath, strings.TrimSuffix(root+"/"+rule.from, "/")) || p.ImportPath == testHelp {
				continue
			}
			for _, dep := range p.Deps {
				if within(dep, rule.to) {
					found = append(found, fmt.Sprintf("%s depends on %s: %s", p.ImportPath, dep, rule.why))
				}
			}
		}
		// Direct only: go-redis itself may well speak HTTP.
		if (p.ImportPath == root+"/ratelimit" || p.ImportPath == root+"/session") && slices.Contains(p.Imports, "net/http") {
			found = append(found, p.ImportPath+" imports net/http: limits and sessions know nothing of HTTP")
		}
	}
	return found
}

func within(path, tree string) bool {
	return path == tree || strings.HasPrefix(path, tree+"/")
}

func list(t *testing.T, args ...string) []pkg { t.Helper(); return listIn(t, top, args...) }

func listIn(t *testing.T, dir string, args ...string) []pkg {
	t.Helper()
	out := json.NewDecoder(strings.NewReader(string(goCommandIn(t, dir, append([]string{"list", "-json=ImportPath,Imports,Deps,Module,Standard"}, args...)...))))
	var pkgs []pkg
	for {
		var p pkg
		if err := out.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatalf("go list %q lists nothing", args)
	}
	return pkgs
}

// top is the root module's folder.
const top = "../../.."

// goCommand runs go in the root module's folder.
func goCommand(t *testing.T, args ...string) []byte { t.Helper(); return goCommandIn(t, top, args...) }

func goCommandIn(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	look(t)
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("go %q: %v\n%s", args, err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	return out
}

// look stats every source file. go test repeats a cached result until a file that the test
// itself looked at has changed, and does not see what the go command reads.
func look(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && (strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "go.mod")) {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
