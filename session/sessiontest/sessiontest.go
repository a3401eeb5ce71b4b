// Package sessiontest is for tests of handlers that use sessions ([NewServer], [LoggedIn]), and a
// conformance suite for session stores ([Run]): what the
// comments of [scs.Store] and [scs.CtxStore] promise, wherever the sessions are
// kept.
package sessiontest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	mrand "math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
)

// Subject is what the suite tests.
type Subject struct {
	// New returns a store, which may hold sessions of earlier subtests. If it is a
	// [scs.CtxStore], its methods with a context are tested, too.
	New func(t testing.TB) scs.Store

	// Advance moves the clock by which the store lets sessions expire. nil: it
	// cannot be moved, and what needs it is skipped.
	Advance func(d time.Duration)
}

// Run runs the suite as subtests of t. The subtests are not parallel.
func Run(t *testing.T, s Subject) {
	for _, test := range []struct {
		name  string
		clock bool // needs Advance
		run   func(*testing.T, Subject, store)
	}{
		{"what was committed is found", false, testFound},
		{"bytes of any kind", false, testBytes},
		{"a commit overwrites", false, testOverwrite},
		{"what was deleted is gone", false, testDelete},
		{"unknown and malformed tokens", false, testUnknown},
		{"similar tokens", false, testSimilar},
		{"nothing is stored past its expiry", false, testExpired},
		{"a session ends at its expiry", true, testExpiry},
		{"a later expiry replaces an earlier one", true, testLater},
		{"a random schedule", false, testSchedule},
		{"in parallel", false, testParallel},
		{"a cancelled context", false, testCancelled},
		{"with the manager of scs", false, testManager},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.clock && s.Advance == nil {
				t.Skip("its clock cannot be moved")
			}
			implementation := s.New(t)
			t.Run("plain", func(t *testing.T) { test.run(t, s, plain{implementation}) })
			if c, ok := implementation.(scs.CtxStore); ok {
				t.Run("context", func(t *testing.T) { test.run(t, s, withContext{c}) })
			}
		})
	}
}

// store is either half of a CtxStore.
type store interface {
	find(ctx context.Context, token string) ([]byte, bool, error)
	commit(ctx context.Context, token string, b []byte, expiry time.Time) error
	delete(ctx context.Context, token string) error
	scs() scs.Store
}

type plain struct{ s scs.Store }

func (p plain) find(_ context.Context, token string) ([]byte, bool, error) { return p.s.Find(token) }
func (p plain) commit(_ context.Context, token string, b []byte, expiry time.Time) error {
	return p.s.Commit(token, b, expiry)
}
func (p plain) delete(_ context.Context, token string) error { return p.s.Delete(token) }

// scs hides the methods with a context.
func (p plain) scs() scs.Store { return struct{ scs.Store }{p.s} }

type withContext struct{ s scs.CtxStore }

func (c withContext) find(ctx context.Context, token string) ([]byte, bool, error) {
	return c.s.FindCtx(ctx, token)
}
func (c withContext) commit(ctx context.Context, token string, b []byte, expiry time.Time) error {
	return c.s.CommitCtx(ctx, token, b, expiry)
}
func (c withContext) delete(ctx context.Context, token string) error {
	return c.s.DeleteCtx(ctx, token)
}
func (c withContext) scs() scs.Store { return c.s }

func newToken() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

func inAnHour() time.Time { return time.Now().Add(time.Hour) }

func put(t *testing.T, s store, token string, b []byte, expiry time.Time) {
	t.Helper()
	if err := s.commit(t.Context(), token, b, expiry); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

// holds checks what is found under a token; nil: nothing.
func holds(t *testing.T, s store, token string, want []byte) {
	t.Helper()
	b, found, err := s.find(t.Context(), token)
	switch {
	case err != nil:
		t.Errorf("find: %v", err)
	case found != (want != nil):
		t.Errorf("found %v, want %v", found, want != nil)
	case found && !bytes.Equal(b, want):
		t.Errorf("found %d bytes %.40q, want %d bytes %.40q", len(b), b, len(want), want)
	}
}

func testFound(t *testing.T, _ Subject, s store) {
	token := newToken()
	holds(t, s, token, nil)
	put(t, s, token, []byte("data"), inAnHour())
	holds(t, s, token, []byte("data"))
	holds(t, s, token, []byte("data"))
}

func testBytes(t *testing.T, _ Subject, s store) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	large := make([]byte, 1<<20)
	_, _ = rand.Read(large)
	values := [][]byte{{}, {0}, {0xff, 0xfe}, []byte("\r\n$5\r\n"), all, large}
	for _, n := range []int{1 << 11, 1 << 12, 1 << 16} { // stores may keep large data elsewhere
		values = append(values, large[:n-100], large[:n-1], large[:n], large[:n+1])
	}
	for _, b := range values {
		token := newToken()
		put(t, s, token, b, inAnHour())
		holds(t, s, token, b)
	}
}

func testOverwrite(t *testing.T, _ Subject, s store) {
	token := newToken()
	large := strings.Repeat("large ", 10_000)
	for _, v := range []string{"first", "a longer second", "3", large, "5", large + large, large} {
		put(t, s, token, []byte(v), inAnHour())
		holds(t, s, token, []byte(v))
	}
}

func testDelete(t *testing.T, _ Subject, s store) {
	token, other := newToken(), newToken()
	put(t, s, token, []byte("data"), inAnHour())
	put(t, s, other, []byte("other"), inAnHour())
	for range 2 { // the second finds nothing to delete
		if err := s.delete(t.Context(), token); err != nil {
			t.Errorf("delete: %v", err)
		}
		holds(t, s, token, nil)
	}
	holds(t, s, other, []byte("other"))
	put(t, s, token, []byte("again"), inAnHour())
	holds(t, s, token, []byte("again"))
}

func testUnknown(t *testing.T, _ Subject, s store) {
	for _, token := range []string{newToken(), "", "x", "{}", "a:b", "../..", "*", "\x00", "\r\n", "ä\xff", strings.Repeat("A", 1<<16)} {
		holds(t, s, token, nil)
		if err := s.delete(t.Context(), token); err != nil {
			t.Errorf("delete of %.20q: %v", token, err)
		}
	}
}

func testSimilar(t *testing.T, _ Subject, s store) {
	token := newToken()
	similar := []string{token, strings.ToLower(token), strings.ToUpper(token), token[1:], token[:len(token)-1], token + "x", token + ".x"}
	for i, token := range similar {
		put(t, s, token, fmt.Append(nil, i), inAnHour())
	}
	for i, token := range similar {
		holds(t, s, token, fmt.Append(nil, i))
	}
	if err := s.delete(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	for i, token := range similar[1:] {
		holds(t, s, token, fmt.Append(nil, i+1))
	}
}

func testExpired(t *testing.T, _ Subject, s store) {
	for _, past := range []time.Duration{time.Millisecond, time.Second, 100 * 365 * 24 * time.Hour} {
		token := newToken()
		put(t, s, token, []byte("late"), time.Now().Add(-past))
		holds(t, s, token, nil)
		// It ends what was there.
		put(t, s, token, []byte("data"), inAnHour())
		put(t, s, token, []byte("late"), time.Now().Add(-past))
		holds(t, s, token, nil)
	}
}

func testExpiry(t *testing.T, subject Subject, s store) {
	short, long := newToken(), newToken()
	put(t, s, short, []byte("short"), time.Now().Add(time.Minute))
	put(t, s, long, []byte("long"), time.Now().Add(time.Hour))
	subject.Advance(50 * time.Second)
	holds(t, s, short, []byte("short"))
	subject.Advance(11 * time.Second)
	holds(t, s, short, nil)
	holds(t, s, long, []byte("long"))
}

func testLater(t *testing.T, subject Subject, s store) {
	later, earlier := newToken(), newToken()
	put(t, s, later, []byte("1"), time.Now().Add(time.Minute))
	put(t, s, later, []byte("2"), time.Now().Add(time.Hour))
	put(t, s, earlier, []byte("1"), time.Now().Add(time.Hour))
	put(t, s, earlier, []byte("2"), time.Now().Add(time.Minute))
	subject.Advance(2 * time.Minute)
	holds(t, s, later, []byte("2"))
	holds(t, s, earlier, nil)
}

// testSchedule compares the store with a map.
func testSchedule(t *testing.T, _ Subject, s store) {
	seed := mrand.Uint64()
	t.Logf("seed %d", seed)
	rnd := mrand.New(mrand.NewPCG(seed, 0))
	model := make(map[string][]byte)
	tokens := make([]string, 8)
	for i := range tokens {
		tokens[i] = newToken()
	}
	for i := range 400 {
		token := tokens[rnd.IntN(len(tokens))]
		switch rnd.IntN(4) {
		case 0:
			model[token] = fmt.Append(nil, i)
			put(t, s, token, model[token], inAnHour())
		case 1:
			delete(model, token)
			if err := s.delete(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		default:
			holds(t, s, token, model[token])
		}
		if t.Failed() {
			t.Fatalf("at step %d", i)
		}
	}
}

func testParallel(t *testing.T, _ Subject, s store) {
	shared := newToken()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			own := newToken()
			for j := range 20 {
				put(t, s, own, fmt.Append(nil, i, j), inAnHour())
				holds(t, s, own, fmt.Append(nil, i, j))
				put(t, s, shared, bytes.Repeat([]byte{byte(i)}, 1000*(1+i)), inAnHour())
				b, found, err := s.find(t.Context(), shared)
				if err != nil || !found || len(b) == 0 || len(b) != 1000*(1+int(b[0])) || !bytes.Equal(b, bytes.Repeat(b[:1], len(b))) {
					t.Errorf("one of several parallel commits, but not as a whole: %v, %v, %.20q", found, err, b)
				}
			}
			if err := s.delete(t.Context(), own); err != nil {
				t.Error(err)
			}
			holds(t, s, own, nil)
		})
	}
	wg.Wait()
}

func testCancelled(t *testing.T, _ Subject, s store) {
	if _, ok := s.(withContext); !ok {
		t.Skip("no context")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	token := newToken()
	if err := s.commit(ctx, token, []byte("data"), inAnHour()); err == nil {
		t.Error("a commit with a cancelled context succeeded")
	}
	if _, _, err := s.find(ctx, token); err == nil {
		t.Error("a find with a cancelled context succeeded")
	}
	holds(t, s, token, nil)
}

// testManager has the manager of scs use the store, with each of its switches.
func testManager(t *testing.T, _ Subject, s store) {
	for _, hash := range []bool{false, true} {
		for _, idle := range []time.Duration{0, time.Hour} {
			m := scs.New()
			m.Store, m.HashTokenInStore, m.IdleTimeout = s.scs(), hash, idle
			request := func(token string, f func(ctx context.Context)) string {
				t.Helper()
				ctx, err := m.Load(t.Context(), token)
				if err != nil {
					t.Fatal(err)
				}
				f(ctx)
				if m.Status(ctx) == scs.Destroyed {
					return ""
				}
				if token, _, err = m.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				return token
			}
			want := func(token, value string) {
				t.Helper()
				request(token, func(ctx context.Context) {
					if got := m.GetString(ctx, "k"); got != value {
						t.Errorf("hash %v, idle %v: %q, want %q", hash, idle, got, value)
					}
				})
			}
			token := request("", func(ctx context.Context) { m.Put(ctx, "k", "v") })
			want(token, "v")
			renewed := request(token, func(ctx context.Context) {
				if err := m.RenewToken(ctx); err != nil {
					t.Fatal(err)
				}
			})
			if renewed == token {
				t.Error("RenewToken kept the token")
			}
			want(renewed, "v")
			want(token, "")
			request(renewed, func(ctx context.Context) {
				if err := m.Destroy(ctx); err != nil {
					t.Fatal(err)
				}
			})
			want(renewed, "")
		}
	}
}
