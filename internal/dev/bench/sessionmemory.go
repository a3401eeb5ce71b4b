package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/session"
)

// memoryValues is how large the one value of the sessions is whose memory is measured.
const memoryValues = 250

// ownerMemory is what a session takes in Redis, in bytes, of owners of one kind.
type ownerMemory struct {
	owner         string
	plain, sealed float64
}

// sessionMemory measures what sessions take: used_memory with many of them less what it was
// without, which has everything in it, keys, expiry and tables included.
func (s *server) sessionMemory(ctx context.Context, quick bool) ([]ownerMemory, error) {
	sessions := 20_000
	if quick {
		sessions = 2_000
	}
	rows := []ownerMemory{{owner: "a visitor"}, {owner: "a user with one session"}, {owner: "a user with five, each"}}
	for i, perUser := range []int{0, 1, 5} {
		for _, sealed := range []bool{false, true} {
			bytes, err := s.memoryOf(ctx, sessions, perUser, sealed)
			if err != nil {
				return nil, err
			}
			if sealed {
				rows[i].sealed = bytes
			} else {
				rows[i].plain = bytes
			}
		}
	}
	return rows, s.flush(ctx)
}

// memoryOf returns what each of so many sessions takes; perUser is 0 for visitors.
func (s *server) memoryOf(ctx context.Context, sessions, perUser int, sealed bool) (float64, error) {
	if err := s.flush(ctx); err != nil {
		return 0, err
	}
	client := s.client(0, sizingInFlight)
	defer client.Close()
	m, err := holdManager(client, sealed)
	if err != nil {
		return 0, err
	}
	if _, err := newSession(ctx, m, "warm-up", memoryValues); err != nil { // connections and scripts
		return 0, err
	}
	before, err := s.usage(ctx)
	if err != nil {
		return 0, err
	}
	_, err = newSessions(ctx, m, sessions, memoryValues, func(i int) string {
		if perUser == 0 {
			return ""
		}
		return fmt.Sprintf("user-%06d", i/perUser)
	})
	if err != nil {
		return 0, err
	}
	after, err := s.usage(ctx)
	if err != nil {
		return 0, err
	}
	return float64(after.memory-before.memory) / float64(sessions), nil
}

func holdManager(client *redis.Client, sealed bool) (*session.Manager, error) {
	cfg := session.Config{Timeout: 10 * time.Second, Accounts: session.Accounts{Max: 1000}} // patience for loaded machines
	if sealed {
		cfg.Secrets, cfg.KeySecret = secrets, keySecret
	}
	return session.New(client, cfg)
}

// newSession begins a session with one value, of a user if there is one, and returns its cookie.
func newSession(ctx context.Context, m *session.Manager, user string, bytes int) (string, error) {
	ctx, err := m.Load(ctx)
	if err != nil {
		return "", err
	}
	m.Put(ctx, "value", strings.Repeat("x", bytes))
	if user != "" {
		if err := m.Login(ctx, user); err != nil {
			return "", err
		}
	}
	out, err := m.Finish(ctx)
	return out.Value, err
}

// newSessions begins n sessions, some at a time.
func newSessions(ctx context.Context, m *session.Manager, n, bytes int, user func(i int) string) ([]string, error) {
	cookies, errs := make([]string, n), make([]error, sizingInFlight)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += len(errs) {
				cookies[i], errs[w] = newSession(ctx, m, user(i), bytes)
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return cookies, nil
}

func writeMemory(rows []ownerMemory) {
	fmt.Printf("\n### Memory per session, one value of %d bytes\n\nAll of it: used_memory with and without them.\n\n", memoryValues)
	t := table{w: os.Stdout}
	t.head("session of", "plain bytes", "sealed bytes")
	for _, r := range rows {
		t.line(r.owner, thousands(r.plain), thousands(r.sealed))
	}
}
