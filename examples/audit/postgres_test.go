//go:build unix

package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// postgres is a PostgreSQL of a test's own, on a Unix socket.
type postgres struct {
	t       *testing.T
	url     string
	dir     string
	program string
	as      *syscall.SysProcAttr
	options []string
	server  *exec.Cmd // a shell around it
	order   io.WriteCloser
}

// requirePostgres returns the folder of PostgreSQL's programs. Without it the test is skipped, or
// fails if CI=true.
func requirePostgres(t *testing.T) string {
	t.Helper()
	missing := "needs PostgreSQL: `make test` installs it, as does your package manager (apt-get install postgresql, brew install postgresql)"
	if os.Getenv("GATEHOUSE_TEST_POSTGRES") == "off" {
		missing = "needs PostgreSQL, and GATEHOUSE_TEST_POSTGRES=off"
	} else {
		var found []string
		if path, err := exec.LookPath("initdb"); err == nil {
			found = append(found, path)
		}
		// Debian and Homebrew leave them out of PATH.
		for _, pattern := range []string{"/usr/lib/postgresql/*/bin/initdb", "/opt/homebrew/opt/postgresql@*/bin/initdb", "/usr/local/opt/postgresql@*/bin/initdb"} {
			paths, _ := filepath.Glob(pattern)
			slices.Reverse(paths)
			found = append(found, paths...)
		}
		for _, path := range found {
			if path, err := filepath.EvalSymlinks(path); err == nil {
				return filepath.Dir(path)
			}
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(missing + "; CI=true")
	}
	t.Skip(missing)
	return ""
}

// startPostgres starts a PostgreSQL that ends with t. Options are those of its command line.
func startPostgres(t *testing.T, options ...string) *postgres {
	t.Helper()
	bin := requirePostgres(t)
	dir, err := os.MkdirTemp("", "audit") // t.TempDir may be too long for a socket, and closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &postgres{t: t, url: "postgres:///postgres?user=audit&host=" + dir, dir: dir, program: filepath.Join(bin, "postgres"), options: options}
	// Signals to the test's process group, such as Ctrl-C, do not reach the shell, which ends
	// the server when the test process is gone.
	p.as = &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			u, err = user.Lookup("nobody")
		}
		if err != nil {
			t.Fatal(err)
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := cmp.Or(err1, err2, os.Chown(dir, uid, gid)); err != nil {
			t.Fatal(err)
		}
		p.as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	initdb := p.command(filepath.Join(bin, "initdb"), "-D", "data", "-U", "audit", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	p.start()
	t.Cleanup(func() { p.stop() })
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("PostgreSQL's log:\n%s", text[max(0, len(text)-3000):])
		}
	})
	p.open().Close()
	return p
}

// open waits for a server that starts: what it answers meanwhile depends on how far it is.
func (p *postgres) open() *DB {
	p.t.Helper()
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		db, err := Open(p.t.Context(), p.url)
		if err == nil {
			return db
		}
		if time.Now().After(until) {
			p.t.Fatal(err)
		}
	}
}

func (p *postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.SysProcAttr = p.dir, p.as
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	return cmd
}

// start returns before the server takes connections.
func (p *postgres) start() {
	p.t.Helper()
	p.server = p.command("/bin/sh", append([]string{"-c", `
		"$0" -D data -k "$PWD" -c listen_addresses= -c fsync=on -c log_min_messages=warning "$@" >>log 2>&1 &
		read order
		kill -QUIT $!
		wait $!
		[ "$order" = keep ] || rm -rf "$PWD"`, p.program}, p.options...)...)
	var err error
	if p.order, err = p.server.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.server.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// stop ends the server as pg_ctl -m immediate does: it recovers at its next start, as from a crash.
func (p *postgres) stop() {
	if p.server == nil {
		return
	}
	fmt.Fprintln(p.order, "keep")
	p.order.Close()
	_ = p.server.Wait()
	p.server = nil
}

func (p *postgres) restart() {
	p.stop()
	p.start()
}
