package sessiontest_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	redigo "github.com/gomodule/redigo/redis"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/sessiontest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// restarted is a store whose server is started anew when Redis's clock jumps: each keeps
// its own estimate of that clock.
type restarted struct {
	scs.CtxStore
	anew func() scs.CtxStore
}

func TestStore(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		for _, cfg := range []session.Config{{}, {Secrets: [][]byte{secret}}} {
			t.Run(fmt.Sprintf("secrets=%d", len(cfg.Secrets)), func(t *testing.T) {
				cfg.Timeout = 5 * time.Second
				var stores []*restarted
				sessiontest.Run(t, sessiontest.Subject{
					New: func(t testing.TB) scs.Store {
						r := &restarted{anew: func() scs.CtxStore {
							s, err := session.NewStore(b.Client, cfg)
							if err != nil {
								t.Fatal(err)
							}
							return s
						}}
						r.CtxStore = r.anew()
						stores = append(stores, r)
						return r
					},
					Advance: func(d time.Duration) {
						b.Advance(t, d)
						for _, r := range stores {
							r.CtxStore = r.anew()
						}
					},
				})
				redistest.AssertAllTTL(t, b.Client)
			})
		}
	})
}

// TestOracles holds the suite itself against stores that scs brings along.
func TestOracles(t *testing.T) {
	t.Run("memstore", func(t *testing.T) {
		sessiontest.Run(t, sessiontest.Subject{New: func(testing.TB) scs.Store { return memstore.NewWithCleanupInterval(0) }})
	})
	t.Run("redisstore", func(t *testing.T) {
		redistest.Each(t, func(t *testing.T, b redistest.Backend) {
			if b.Name == "cluster" {
				t.Skip("redigo knows no cluster")
			}
			pool := &redigo.Pool{Dial: func() (redigo.Conn, error) { return redigo.Dial("tcp", b.Addrs[0]) }}
			defer pool.Close()
			sessiontest.Run(t, sessiontest.Subject{
				New:     func(testing.TB) scs.Store { return redisstore.New(pool) },
				Advance: func(d time.Duration) { b.Advance(t, d) },
			})
		})
	})
}

// wrong is a store with one fault.
type wrong struct {
	*memstore.MemStore
	fault string
}

func (w wrong) Find(token string) ([]byte, bool, error) {
	b, ok, err := w.MemStore.Find(token)
	if w.fault == "not found is an error" && !ok {
		err = fmt.Errorf("no %q", token)
	}
	if w.fault == "cuts at NUL" {
		b, _, _ = bytes.Cut(b, []byte{0})
	}
	return b, ok, err
}

func (w wrong) Commit(token string, b []byte, expiry time.Time) error {
	switch w.fault {
	case "ignores case":
		token = strings.ToLower(token)
	case "immortal when expired": // as go-redis drops an expiry that is not positive
		if time.Until(expiry) <= 0 {
			expiry = time.Now().Add(time.Hour)
		}
	case "keeps the first":
		if _, ok, _ := w.MemStore.Find(token); ok {
			return nil
		}
	}
	return w.MemStore.Commit(token, b, expiry)
}

func (w wrong) Delete(token string) error {
	if w.fault == "does not delete" {
		return nil
	}
	return w.MemStore.Delete(token)
}

// TestWrongStore is the body of a process that TestSuiteCatches starts.
func TestWrongStore(t *testing.T) {
	if fault := os.Getenv("SESSIONTEST_FAULT"); fault != "" {
		sessiontest.Run(t, sessiontest.Subject{New: func(testing.TB) scs.Store {
			return wrong{memstore.NewWithCleanupInterval(0), fault}
		}})
	}
}

func TestSuiteCatches(t *testing.T) {
	for fault, fails := range map[string]bool{
		"none": false, "not found is an error": true, "cuts at NUL": true, "ignores case": true,
		"immortal when expired": true, "keeps the first": true, "does not delete": true,
	} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWrongStore$")
		cmd.Env = append(os.Environ(), "SESSIONTEST_FAULT="+fault)
		if out, err := cmd.CombinedOutput(); (err != nil) != fails {
			t.Errorf("a store that %s: %v\n%s", fault, err, out)
		}
	}
}
