//go:build unix

package redistest

import (
	"os/exec"
	"syscall"
)

// detach keeps signals to the test's process group (Ctrl-C, timeout -s KILL) from the guard,
// which has to outlive the test to clean up after it.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
}
