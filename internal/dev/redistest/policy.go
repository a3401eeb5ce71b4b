package redistest

import (
	"os"
	"os/exec"
	"testing"
)

// verdict says what a test that needs a real server does.
type verdict int

const (
	run verdict = iota
	skip
	fail
)

// policy decides from the variables CI and GATEHOUSE_TEST_REDIS, and from whether redis-server
// is installed.
func policy(ci, mode string, installed bool) (verdict, string) {
	switch {
	case mode != "" && mode != "off":
		return fail, "GATEHOUSE_TEST_REDIS=" + mode + `: the only known value is "off"`
	case mode == "off" && ci == "true":
		return fail, "GATEHOUSE_TEST_REDIS=off with CI=true: a CI run must test against a real Redis"
	case mode == "off":
		return skip, "needs a real Redis, and GATEHOUSE_TEST_REDIS=off"
	case !installed:
		return fail, "redis-server is not installed: `make test` installs it, as does your package manager " +
			"(apt-get install redis-server, brew install redis); GATEHOUSE_TEST_REDIS=off tests on miniredis alone"
	default:
		return run, ""
	}
}

// clockPolicy decides what a test does that moves a real server's clock, from the variable CI
// and from why that clock cannot be moved, which is nil if it can.
func clockPolicy(ci string, why error) (verdict, string) {
	switch {
	case why == nil:
		return run, ""
	case ci == "true":
		return fail, "cannot move the clock of a real Redis, and CI=true: " + why.Error()
	default:
		return skip, "cannot move the clock of a real Redis: " + why.Error()
	}
}

// require skips or fails t when it cannot have a real server.
func require(t testing.TB) {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	switch v, why := policy(os.Getenv("CI"), os.Getenv("GATEHOUSE_TEST_REDIS"), err == nil); v {
	case skip:
		t.Skip("redistest: " + why)
	case fail:
		t.Fatal("redistest: " + why)
	}
}
