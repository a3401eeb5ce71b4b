package redistest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// guard is the parent of a redis-server. Its stdin is a pipe that this process holds open and
// never hands on, so however this process ends, SIGKILL included, the guard reads end-of-file,
// kills the server and removes its directory. Pdeathsig would be shorter, but knows only Linux,
// watches a thread rather than the process, and leaves the directory.
const guard = `
dir=$1; shift
pid=
end() { [ -z "$pid" ] || { kill -9 "$pid"; wait "$pid"; pid=; }; }
while read -r order; do
	case $order in
	start) "$@" </dev/null >>"$dir/log" 2>&1 & pid=$!; echo "$pid" ;;
	jobs)  jobs ;;
	kill)  end ;;
	*)     kill -s "$order" "$pid" ;;
	esac
	echo .
done
end
rm -rf "$dir"
`

const startTimeout = 20 * time.Second

// errPort says that somebody else got the port first.
var errPort = errors.New("redistest: port taken")

// process is one redis-server and the guard that owns it.
type process struct {
	dir      string
	port     int
	pid      int
	password string
	claim    io.Closer // of the port

	guard  *exec.Cmd
	mu     sync.Mutex // one order and its acknowledgement at a time
	orders io.WriteCloser
	acks   *bufio.Reader
}

// launch starts a server on a free port and returns when it answers. command makes the command
// line from the port and the server's own, empty directory.
func launch(password string, command func(port int, dir string) ([]string, error)) (*process, error) {
	for attempt := 1; ; attempt++ {
		port, claim, err := freePort()
		if err != nil {
			return nil, err
		}
		p, err := launchOn(port, password, command)
		if err == nil {
			p.claim = claim
			return p, nil
		}
		claim.Close()
		if !errors.Is(err, errPort) || attempt >= 20 {
			return nil, err
		}
	}
}

func launchOn(port int, password string, command func(port int, dir string) ([]string, error)) (*process, error) {
	dir, err := os.MkdirTemp("", "redistest-")
	if err != nil {
		return nil, err
	}
	args, err := command(port, dir)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	p := &process{dir: dir, port: port, password: password}
	p.guard = exec.Command("/bin/sh", append([]string{"-c", guard, "redistest-guard", dir}, args...)...)
	detach(p.guard)
	p.orders, err = p.guard.StdinPipe()
	if err != nil {
		return nil, err
	}
	acks, err := p.guard.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.acks = bufio.NewReader(acks)
	if err := p.guard.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := p.start(); err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// freePort avoids the range from which Linux and macOS take the ports of outgoing connections,
// so that a server can come back on its own port, and leaves room for the cluster's bus on
// port+10000, which is where servers older than 7.0 insist on having it. claim, the UDP port of the
// same number, keeps other test binaries from it while the server is down.
func freePort() (port int, claim io.Closer, err error) {
	for range 1000 {
		port := 11000 + rand.IntN(11000)
		claim, err := net.ListenPacket("udp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if vacant(port) && vacant(port+10000) {
			return port, claim, nil
		}
		claim.Close()
	}
	return 0, nil, errors.New("redistest: no free port between 11000 and 22000")
}

func vacant(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func (p *process) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

func (p *process) order(order string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := io.WriteString(p.orders, order+"\n"); err != nil {
		return "", fmt.Errorf("redistest: guard of %s: %w", p.addr(), err)
	}
	var answer strings.Builder
	for {
		line, err := p.acks.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("redistest: guard of %s: %w", p.addr(), err)
		}
		if line == ".\n" {
			return strings.TrimSpace(answer.String()), nil
		}
		answer.WriteString(line)
	}
}

// start runs the server and waits until it, and not another one on the same port, answers.
func (p *process) start() error {
	answer, err := p.order("start")
	if err != nil {
		return err
	}
	if p.pid, err = strconv.Atoi(answer); err != nil {
		return err
	}
	client := p.client()
	defer client.Close()
	var (
		info string
		died bool
	)
	err = await(func() error {
		// Not by the client: after a refused connection it waits a second before the next.
		conn, err := net.Dial("tcp", p.addr())
		if err == nil {
			conn.Close()
			info, err = client.Info(context.Background(), "server").Result()
		}
		if err == nil {
			return nil
		}
		jobs, _ := p.order("jobs")
		if died = !strings.Contains(jobs, "Running"); died {
			return nil
		}
		return err
	})
	own := fmt.Sprintf("\r\nprocess_id:%d\r\n", p.pid)
	switch log := p.log(); {
	case strings.Contains(info, own):
		return nil
	case info != "", strings.Contains(log, "Address already in use"):
		return errPort
	case died:
		return fmt.Errorf("redistest: redis-server exited:\n%s", log)
	default:
		return fmt.Errorf("redistest: redis-server on %s does not answer: %w\n%s", p.addr(), err, log)
	}
}

// client returns a client for the housekeeping of this package, which has its own patience: await.
func (p *process) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: p.addr(), Password: p.password, PoolSize: 1, MaxRetries: -1})
}

func (p *process) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	return string(b)
}

// stop ends server and guard and waits for both. It may be called more than once.
func (p *process) stop() error {
	p.orders.Close()
	if p.guard.ProcessState != nil {
		return nil
	}
	err := p.guard.Wait()
	if p.claim != nil {
		p.claim.Close()
	}
	return err
}

// await polls until try succeeds, and returns its last error when that takes too long.
func await(try func() error) error {
	deadline := time.Now().Add(startTimeout)
	for {
		err := try()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}
