package recipes

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/console"
	"github.com/gatehouse-go/gatehouse/session"
)

// The commands of docs/operators.md are run as they stand there.
func TestOperatorsCommands(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil && os.Getenv("CI") != "true" {
		t.Skip("curl is missing; the package manager has it")
	}
	page, err := os.ReadFile("../../docs/operators.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```sh\n(.*?)```").FindSubmatch(page)
	client, _ := connect(t)
	sessions, err := session.New(client, session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	h, err := operated(client, sessions, func(r *http.Request) (string, console.Access) {
		if name, password, _ := r.BasicAuth(); password == "right" {
			return name, console.Write
		}
		return "", console.None
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	defer server.Close()
	ctx, err := sessions.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := sessions.Login(ctx, "42"); err != nil {
		t.Fatal(err)
	}
	if _, err := sessions.Finish(ctx); err != nil {
		t.Fatal(err)
	}

	run := func(password string) (out string, err error) {
		sh := exec.CommandContext(t.Context(), "sh", "-ec", string(block[1]))
		sh.Env = append(os.Environ(), "OPS="+server.URL+"/ops", "PASSWORD="+password)
		b, err := sh.CombinedOutput()
		return string(b), err
	}
	if out, err := run("wrong"); err == nil {
		t.Error("a wrong password: ", out)
	}
	out, err := run("right")
	if err != nil {
		t.Fatal(err, out)
	}
	for want, n := range map[string]int{
		`"key": "` + middleware.UserKey("42") + `"`: 1, `"verdict"`: 1, `"done": true`: 6, `"what": "removed"`: 1, `"part": "sessions"`: 1, `"handle"`: 1,
	} {
		if strings.Count(out, want) < n {
			t.Errorf("less than %d of %s in:\n%s", n, want, out)
		}
	}
	if left, err := sessions.List(t.Context(), "42"); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
