//go:build unix

package redistest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestChild is the body of the processes that TestNothingIsLeftBehind starts; it does nothing
// in an ordinary run.
func TestChild(t *testing.T) {
	end := os.Getenv("REDISTEST_CHILD_END")
	if end == "" {
		return
	}
	own, common, paused := Start(t), Shared(t), Start(t)
	paused.Pause()
	for _, s := range []*Server{own, common, paused} {
		fmt.Printf("\nserver %d %s\n", s.p.pid, s.p.dir)
	}
	switch end {
	case "return":
	case "fatal":
		t.Fatal("on purpose")
	case "panic":
		panic("on purpose")
	case "panic in a goroutine":
		go panic("on purpose")
		select {}
	case "exit":
		os.Exit(3)
	case "SIGKILL":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "SIGKILL of the process group":
		syscall.Kill(0, syscall.SIGKILL)
		select {}
	case "timeout":
		select {}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	t.Parallel() // with others that wait
	require(t)
	for _, end := range []string{
		"return", "fatal", "panic", "panic in a goroutine", "exit", "SIGKILL", "SIGKILL of the process group", "timeout",
	} {
		t.Run(end, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.timeout=15s")
			if end != "timeout" {
				cmd.Args[2] = "-test.timeout=1m"
			}
			cmd.Env = append(os.Environ(), "REDISTEST_CHILD_END="+end)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			// The output is complete only when every holder of its pipe is gone.
			cmd.WaitDelay = 10 * time.Second
			out, err := cmd.CombinedOutput()
			if (err == nil) != (end == "return") || errors.Is(err, exec.ErrWaitDelay) {
				t.Errorf("child ended with %v", err)
			}
			servers := regexp.MustCompile(`(?m)^server (\d+) (.+)$`).FindAllStringSubmatch(string(out), -1)
			if len(servers) != 3 {
				t.Fatalf("child started %d servers:\n%s", len(servers), out)
			}
			for _, s := range servers {
				pid, _ := strconv.Atoi(s[1])
				err := await(func() error {
					if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
						return fmt.Errorf("redis-server %d is left behind: %v", pid, err)
					}
					if _, err := os.Stat(s[2]); !errors.Is(err, fs.ErrNotExist) {
						return fmt.Errorf("directory %s is left behind: %v", s[2], err)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
}
