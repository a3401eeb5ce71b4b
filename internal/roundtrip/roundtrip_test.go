package roundtrip_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// incr counts its runs, so that a script that was sent twice is seen.
var incr = script("return {redis.call('INCR', KEYS[1]), tonumber(ARGV[1])}")

var hset = script("return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])")

// run runs incr.
func run(ctx context.Context, s *roundtrip.Sender, key, arg string) ([]int64, error) {
	reply, err := s.Run(ctx, incr, []string{key}, arg)
	if err != nil {
		return nil, err
	}
	var numbers []int64
	for _, v := range reply.([]any) {
		numbers = append(numbers, v.(int64))
	}
	return numbers, nil
}

func script(source string) *scripts.Script { return scripts.New(source) }

func TestCallsGetTheirOwnReplies(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		s := roundtrip.New(b.Client, 20*time.Second, nil) // for a loaded machine
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				key := fmt.Sprintf("k:%d", i)
				got, err := run(t.Context(), s, key, strconv.Itoa(i))
				if err != nil || len(got) != 2 || got[0] != 1 || got[1] != int64(i) {
					t.Errorf("call %d: %v, %v", i, got, err)
				}
				h := "h" + key
				if _, err := s.Run(t.Context(), hset, []string{h}, "f", strconv.Itoa(i)); err != nil {
					t.Errorf("hset %d: %v", i, err)
				}
				if v, err := s.HGet(t.Context(), h, "f"); string(v) != strconv.Itoa(i) || err != nil {
					t.Errorf("hget %d: %q, %v", i, v, err)
				}
			})
		}
		wg.Wait()
		if _, err := s.HGet(t.Context(), "none", "f"); !errors.Is(err, redis.Nil) {
			t.Errorf("missing key: %v", err)
		}
	})
}

func TestFlushedScriptsAreSentAgain(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		s := roundtrip.New(b.Client, 20*time.Second, nil) // for a loaded machine
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for range 20 {
					if i == 0 {
						if err := b.Client.ScriptFlush(t.Context()).Err(); err != nil {
							t.Error(err)
						}
					}
					if _, err := run(t.Context(), s, "k", "0"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if v, _ := b.Client.Get(t.Context(), "k").Result(); v != "1000" {
			t.Errorf("1000 calls ran %s times", v)
		}
	})
}

func TestLostReplyIsNotSentAgain(t *testing.T) {
	for _, fault := range []string{"cut", "lose"} {
		t.Run(fault, func(t *testing.T) {
			server := redistest.Shared(t)
			server.Flush()
			proxy := redistest.NewProxy(t, server.Addr())
			client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ReadTimeout: 300 * time.Millisecond})
			defer client.Close()
			s := roundtrip.New(client, 1500*time.Millisecond, nil)
			if _, err := run(t.Context(), s, "k", "0"); err != nil {
				t.Fatal(err)
			}
			if fault == "cut" {
				proxy.CutReply("evalsha")
			} else {
				proxy.LoseReply("evalsha")
			}
			// Alone, and several in one pipeline.
			if _, err := run(t.Context(), s, "k", "0"); err == nil {
				t.Error("no error for a lost reply")
			}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if _, err := run(t.Context(), s, fmt.Sprint("k", i), "0"); err == nil {
						t.Error("no error for a lost reply")
					}
				})
			}
			wg.Wait()
			proxy.Heal()
			for _, k := range []string{"k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7"} {
				if n, _ := server.Client().Get(t.Context(), k).Int(); n > 1 {
					t.Errorf("%s: ran %d times", k, n)
				}
			}
			if n, _ := server.Client().Get(t.Context(), "k").Int(); n != 2 {
				t.Errorf("k: 2 calls ran %d times", n)
			}
		})
	}
}

func TestTimeoutHoldsInABlackHole(t *testing.T) {
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	const timeout = 100 * time.Millisecond
	s := roundtrip.New(client, timeout, nil).Persistent()
	if _, err := run(t.Context(), roundtrip.New(client, 20*time.Second, nil), "hole", "0"); err != nil {
		t.Fatal(err)
	}
	proxy.BlackHole()
	before := proxy.Forwarded("evalsha")
	var wg sync.WaitGroup
	var late atomic.Int64
	for range 20 {
		wg.Go(func() {
			for range 3 {
				start := time.Now()
				_, err := run(t.Context(), s, "hole", "0")
				var te *roundtrip.TimeoutError
				if !errors.As(err, &te) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
				if time.Since(start) > 20*timeout {
					late.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if late.Load() > 0 {
		t.Errorf("%d of 60 calls took over twenty timeouts", late.Load())
	}
	proxy.Heal()
	// Afterwards the way is free, and nothing that waited is sent.
	for ctx := t.Context(); ; {
		if _, err := run(ctx, s, "hole", "0"); err == nil {
			break
		}
	}
	if n := proxy.Forwarded("evalsha") - before; n > 20 {
		t.Errorf("%d commands ran after the outage", n)
	}
}

// Connections that hang for much longer than the timeout do not hold up what comes
// after it.
func TestOthersPassWhatHangs(t *testing.T) {
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr(), ReadTimeout: time.Minute, PoolSize: 100})
	defer client.Close()
	const timeout = 200 * time.Millisecond
	s, patient := roundtrip.New(client, timeout, nil).Persistent(), roundtrip.New(client, 20*time.Second, nil).Persistent()
	if _, err := run(t.Context(), patient, "hang", "0"); err != nil {
		t.Fatal(err)
	}
	proxy.LoseReply("evalsha")
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			if _, err := run(t.Context(), s, "hang", "0"); err == nil {
				t.Error("no error for a lost reply")
			}
		})
	}
	wg.Wait()
	proxy.Delay(0) // what hangs goes on hanging
	for range 10 {
		wg.Go(func() {
			if _, err := run(t.Context(), patient, "hang", "0"); err != nil {
				t.Errorf("a call after the ones that hang: %v", err)
			}
		})
	}
	wg.Wait()
}

func TestContextEndsTheWaitAlone(t *testing.T) {
	server := redistest.Shared(t)
	proxy := redistest.NewProxy(t, server.Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	s := roundtrip.New(client, 5*time.Second, nil)
	proxy.Delay(200 * time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		// Whoever is alone gets his reply all the same.
		if _, err := run(ctx, s, "slow", "0"); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled call: %v", err)
		}
	})
	for range 5 {
		wg.Go(func() {
			if _, err := run(t.Context(), s, "slow", "0"); err != nil {
				t.Errorf("a call beside the cancelled one: %v", err)
			}
		})
	}
	cancel()
	wg.Wait()
	if _, err := run(ctx, s, "slow", "0"); !errors.Is(err, context.Canceled) {
		t.Errorf("call with a done context: %v", err)
	}
}
