package roundtrip_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// hits counts in a fixed window of a day, of a limit that is never reached.
var hits = roundtrip.Terms{
	One: scripts.Get("limit/fixed.lua"), Many: scripts.Get("limit/fixed_many.lua"),
	Args: [5]any{"1000000", "86400000", "", 1, ""}, Short: 2, Keys: 64, Most: 1000,
}

// askAll asks about keys from k0 on at the same time, and returns the errors.
func askAll(ctx context.Context, s *roundtrip.Sender, terms roundtrip.Terms, keys int) []error {
	errs := make([]error, keys)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() { _, errs[i] = s.Ask(ctx, roundtrip.Question{Key: fmt.Sprint("k", i), Terms: terms}) })
	}
	wg.Wait()
	return errs
}

// askAtOnce is askAll while the server is stopped for a moment, so that the questions gather.
func askAtOnce(t *testing.T, server *redistest.Server, s *roundtrip.Sender, terms roundtrip.Terms, keys int) []error {
	t.Helper()
	server.Pause()
	time.AfterFunc(100*time.Millisecond, server.Resume)
	return askAll(t.Context(), s, terms, keys)
}

// scriptsOver counts what goes over a client: scripts of one key, and of several.
type scriptsOver struct {
	one, many atomic.Int64
	mu        sync.Mutex
	last      []redis.Cmder // of several keys
}

func (h *scriptsOver) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *scriptsOver) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { h.see(cmd); return next(ctx, cmd) }
}

func (h *scriptsOver) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			h.see(cmd)
		}
		return next(ctx, cmds)
	}
}

func (h *scriptsOver) see(cmd redis.Cmder) {
	args := cmd.Args()
	switch {
	case len(args) < 4 || !strings.HasPrefix(args[0].(string), "eval"):
	case args[2] == 1:
		h.one.Add(1)
	default:
		h.many.Add(1)
		h.mu.Lock()
		h.last = append(h.last, cmd)
		h.mu.Unlock()
	}
}

// joined has s find out that questions may be asked together.
func joined(t *testing.T, s *roundtrip.Sender, h *scriptsOver) {
	t.Helper()
	for start := time.Now(); h.many.Load() == 0; {
		for _, err := range askAll(t.Context(), s, hits, 64) {
			if err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("questions are not asked together")
		}
	}
}

func standalone(t *testing.T, set ...func(*redis.Options)) (*redistest.Server, *roundtrip.Sender, *scriptsOver) {
	t.Helper()
	server, h := redistest.Start(t), new(scriptsOver)
	client := server.Client(append(set, func(o *redis.Options) { o.MaxRetries = -1 })...)
	client.AddHook(h)
	s := roundtrip.New(client, 20*time.Second, nil)
	joined(t, s, h)
	server.Flush()
	return server, s, h
}

// Many keys are counted by a few scripts, each as often as it was asked about.
func TestQuestionsAreAskedTogether(t *testing.T) {
	server, s, h := standalone(t)
	before := h.one.Load() + h.many.Load()
	var wg sync.WaitGroup
	const keys, each = 100, 50
	server.Pause() // they gather, however slow this machine is
	time.AfterFunc(500*time.Millisecond, server.Resume)
	for i := range keys * each {
		wg.Go(func() {
			a, err := s.Ask(t.Context(), roundtrip.Question{Key: fmt.Sprint("k", i%keys), Terms: hits})
			if reply, ok := a.Reply.(string); err != nil || !ok || len(reply) != 56 && len(reply) != 32 {
				t.Errorf("%v, %v", a, err)
			}
		})
	}
	wg.Wait()
	for i := range keys {
		if n, _ := server.Client().Get(t.Context(), fmt.Sprint("k", i)).Int(); n != each {
			t.Errorf("k%d counts %d, want %d", i, n, each)
		}
	}
	sent := h.one.Load() + h.many.Load() - before
	t.Logf("%d questions, %d scripts", keys*each, sent)
	if sent > keys*each/5 {
		t.Errorf("%d scripts for %d questions", sent, keys*each)
	}
}

// What concerns one key stands in its place: the others are decided.
func TestOneWrongKeyAmongMany(t *testing.T) {
	server, s, h := standalone(t)
	server.Client().RPush(t.Context(), "k7", "a list")
	server.Client().Set(t.Context(), "k8", "no number", 0)
	before := h.many.Load()
	for i, err := range askAtOnce(t, server, s, hits, 64) {
		var answer redis.Error
		switch {
		case i == 7 && (err == nil || !strings.HasPrefix(err.Error(), "WRONGTYPE") || !errors.As(err, &answer)),
			i == 8 && (err == nil || !strings.Contains(err.Error(), "not an integer") || !errors.As(err, &answer)),
			i != 7 && i != 8 && err != nil:
			t.Errorf("k%d: %v", i, err)
		}
	}
	if h.many.Load() == before {
		t.Error("nothing was asked together")
	}
	counts(t, server, 64, 7, 8)
}

// counts checks that each key but some counts 1.
func counts(t *testing.T, server *redistest.Server, keys int, but ...int) {
	t.Helper()
	skip := make(map[int]bool)
	for _, i := range but {
		skip[i] = true
	}
	for i := range keys {
		if n, err := server.Client().Get(t.Context(), fmt.Sprint("k", i)).Int(); !skip[i] && n != 1 {
			t.Errorf("k%d counts %d (%v)", i, n, err)
		}
	}
}

// What the server refuses as a whole is the whole reply, so that go-redis sees it: of READONLY it
// drops the connection.
func TestWhatRefusesAllIsTheWholeReply(t *testing.T) {
	for _, test := range []struct {
		word       string
		begin, end func(c *redis.Client)
	}{
		{"OOM", func(c *redis.Client) { c.ConfigSet(t.Context(), "maxmemory", "1") },
			func(c *redis.Client) { c.ConfigSet(t.Context(), "maxmemory", "0") }},
		{"READONLY", func(c *redis.Client) { c.ReplicaOf(t.Context(), "127.0.0.1", "1") },
			func(c *redis.Client) { c.ReplicaOf(t.Context(), "NO", "ONE") }},
	} {
		t.Run(test.word, func(t *testing.T) {
			server, s, h := standalone(t)
			test.begin(server.Client())
			h.last = nil
			for i, err := range askAtOnce(t, server, s, hits, 64) {
				if err == nil || !strings.HasPrefix(err.Error(), test.word) {
					t.Errorf("k%d: %v", i, err)
				}
			}
			if len(h.last) == 0 {
				t.Error("nothing was asked together")
			}
			for _, cmd := range h.last {
				if err := cmd.Err(); err == nil || !strings.HasPrefix(err.Error(), test.word) {
					t.Errorf("the reply is %v", err)
				}
			}
			test.end(server.Client())
			for i, err := range askAll(t.Context(), s, hits, 64) {
				if err != nil {
					t.Errorf("afterwards, k%d: %v", i, err)
				}
			}
			counts(t, server, 64)
		})
	}
}

// A script that Redis does not know is sent as a text, and counts once.
func TestUnknownScriptsOfManyKeys(t *testing.T) {
	server, s, _ := standalone(t)
	for round := range 5 {
		server.Flush()
		if err := server.Client().ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for i, err := range askAll(t.Context(), s, hits, 64) {
			if err != nil {
				t.Errorf("round %d, k%d: %v", round, i, err)
			}
		}
		counts(t, server, 64)
	}
}

// A lost reply is an error of all whom it was for, and what they asked is not asked again.
func TestALostReplyAboutManyKeys(t *testing.T) {
	for name, lose := range map[string]func(p *redistest.Proxy){
		"lost": func(p *redistest.Proxy) { p.LoseReply("evalsha") },
		"cut":  func(p *redistest.Proxy) { p.CutReply("evalsha") },
	} {
		t.Run(name, func(t *testing.T) {
			server := redistest.Start(t)
			proxy := redistest.NewProxy(t, server.Addr())
			client, h := redis.NewClient(&redis.Options{Addr: proxy.Addr()}), new(scriptsOver)
			defer client.Close()
			client.AddHook(h)
			s := roundtrip.New(client, time.Second, nil).Persistent()
			joined(t, s, h)
			server.Flush()
			before := h.many.Load()
			lose(proxy)
			for i, err := range askAtOnce(t, server, s, hits, 200) {
				if err == nil {
					t.Errorf("k%d: no error", i)
				}
			}
			proxy.Heal()
			if h.many.Load() == before {
				t.Error("nothing was asked together")
			}
			time.Sleep(50 * time.Millisecond)
			for i := range 200 {
				if n, _ := server.Client().Get(t.Context(), fmt.Sprint("k", i)).Int(); n > 1 {
					t.Errorf("k%d counts %d", i, n)
				}
			}
		})
	}
}

// A user who may not use all of the keys, or not the commands, gets what Redis says about each
// by itself; nothing counts twice.
func TestWhatTheServerForbids(t *testing.T) {
	t.Run("a key", func(t *testing.T) {
		server := redistest.Start(t)
		admin := server.Client()
		if err := admin.Do(t.Context(), "ACL", "SETUSER", "some", "on", ">pw", "+@all", "~k*").Err(); err != nil {
			t.Fatal(err)
		}
		client, h := server.Client(func(o *redis.Options) { o.Username, o.Password = "some", "pw" }), new(scriptsOver)
		client.AddHook(h)
		s := roundtrip.New(client, 20*time.Second, nil)
		joined(t, s, h)
		server.Flush()
		admin.Do(t.Context(), "ACL", "SETUSER", "some", "resetkeys", "~k?")
		before := h.many.Load()
		for i, err := range askAtOnce(t, server, s, hits, 64) {
			if i < 10 && err != nil || i >= 10 && (err == nil || !strings.HasPrefix(err.Error(), "NOPERM")) {
				t.Errorf("k%d: %v", i, err)
			}
		}
		if h.many.Load() == before {
			t.Error("nothing was asked together")
		}
		counts(t, server, 10)
		before = h.many.Load()
		askAll(t.Context(), s, hits, 64)
		if h.many.Load() != before {
			t.Error("it goes on asking together")
		}
	})
	t.Run("a command", func(t *testing.T) {
		server := redistest.Start(t)
		admin := server.Client()
		if err := admin.Do(t.Context(), "ACL", "SETUSER", "some", "on", ">pw", "+@all", "~*").Err(); err != nil {
			t.Fatal(err)
		}
		client, h := server.Client(func(o *redis.Options) { o.Username, o.Password = "some", "pw" }), new(scriptsOver)
		client.AddHook(h)
		s := roundtrip.New(client, 20*time.Second, nil)
		joined(t, s, h)
		server.Flush()
		admin.Do(t.Context(), "ACL", "SETUSER", "some", "-pexpire")
		for i, err := range askAll(t.Context(), s, hits, 64) {
			if err == nil || !strings.Contains(err.Error(), "can't run this command") {
				t.Errorf("k%d: %v", i, err)
			}
		}
		for i := range 64 {
			if n, _ := admin.Get(t.Context(), fmt.Sprint("k", i)).Int(); n > 1 {
				t.Errorf("k%d counts %d", i, n)
			}
		}
		admin.Do(t.Context(), "ACL", "SETUSER", "some", "+pexpire")
		server.Flush()
		for i, err := range askAll(t.Context(), s, hits, 64) {
			if err != nil {
				t.Errorf("k%d: %v", i, err)
			}
		}
		counts(t, server, 64)
	})
}

// Where the keys of a script may lie on different servers, each is asked about by itself.
func TestNeverTogetherAcrossServers(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t)
	cluster := redistest.StartCluster(t)
	for name, client := range map[string]redis.UniversalClient{
		"cluster": cluster.Client(),
		"ring": redis.NewRing(&redis.RingOptions{Addrs: map[string]string{
			"a": server.Addr(), "b": redistest.Start(t).Addr(),
		}}),
		"proxy": redis.NewClient(&redis.Options{Addr: relay(t, server.Addr(), "standalone", "sharded-10")}),
	} {
		t.Run(name, func(t *testing.T) {
			defer client.Close()
			h := new(scriptsOver)
			client.(interface{ AddHook(redis.Hook) }).AddHook(h)
			s := roundtrip.New(client, 20*time.Second, nil)
			for range 10 {
				for i, err := range askAll(t.Context(), s, hits, 64) {
					if err != nil {
						t.Errorf("k%d: %v", i, err)
					}
				}
				time.Sleep(10 * time.Millisecond)
			}
			if n := h.many.Load(); n > 0 {
				t.Errorf("%d scripts of several keys", n)
			}
		})
	}
}

// relay passes a server's replies on with words of one length replaced.
func relay(t *testing.T, addr, old, replacement string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", addr)
			if err != nil {
				client.Close()
				return
			}
			go func() { defer server.Close(); _, _ = io.Copy(server, client) }()
			go func() {
				defer client.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := server.Read(buf)
					if err != nil {
						return
					}
					_, _ = io.WriteString(client, strings.ReplaceAll(string(buf[:n]), old, replacement))
				}
			}()
		}
	}()
	return l.Addr().String()
}
