package roundtrip_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// Each caller has the fields of its own two hashes, with one caller and with many, beside scripts and
// questions; an error about one key, whichever of the two, is that of its caller alone.
func TestTwoReadsInOneRoundTrip(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		s := roundtrip.New(b.Client, 10*time.Second, nil)
		at := func(i int) (first, second roundtrip.Fields) {
			return roundtrip.Fields{Key: fmt.Sprintf("{%d}", i), Names: []string{"v"}},
				roundtrip.Fields{Key: fmt.Sprintf("{%d}:x", i), Names: []string{"a", "none", "b"}}
		}
		const n = 200
		for i := range n {
			first, second := at(i)
			b.Client.HSet(t.Context(), first.Key, "v", i)
			b.Client.HSet(t.Context(), second.Key, "a", i+1000, "b", i+2000)
			b.Client.Expire(t.Context(), first.Key, time.Minute)
			b.Client.Expire(t.Context(), second.Key, time.Minute)
		}
		spoil := func(key string) {
			b.Client.Set(t.Context(), key, "x", time.Minute)
		}
		first, _ := at(3)
		_, second := at(5)
		spoil(first.Key)
		spoil(second.Key)
		read := func(i int) {
			first, second := at(i)
			v, x, err := s.HMGetTwo(t.Context(), first, second)
			var answer redis.Error
			switch {
			case i == 3 || i == 5:
				if !errors.As(err, &answer) {
					t.Errorf("%d: %v, %v, %v", i, v, x, err)
				}
			case err != nil || fmt.Sprint(v, x) != fmt.Sprintf("[%d] [%d <nil> %d]", i, i+1000, i+2000):
				t.Errorf("%d: %v, %v, %v", i, v, x, err)
			}
		}
		for i := range n {
			read(i)
		}
		var all sync.WaitGroup
		for i := range 2 * n {
			all.Go(func() { read(i % n) })
			all.Go(func() {
				if _, err := run(t.Context(), s, "beside", "0"); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				if _, err := s.Ask(t.Context(), roundtrip.Question{Key: fmt.Sprint("asked", i), Terms: hits}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// Two reads whose replies do not come take one timeout, or less where the caller gives up, and what
// comes next is not theirs.
func TestTwoReadsWithoutAReply(t *testing.T) {
	proxy := redistest.NewProxy(t, redistest.Shared(t).Addr())
	client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer client.Close()
	const timeout = 300 * time.Millisecond
	s, patient := roundtrip.New(client, timeout, nil).Persistent(), roundtrip.New(client, 20*time.Second, nil).Persistent()
	client.HSet(t.Context(), "two", "v", "1")
	client.Expire(t.Context(), "two", time.Minute)
	read := func(ctx context.Context, s *roundtrip.Sender) ([]any, error) {
		f := roundtrip.Fields{Key: "two", Names: []string{"v"}}
		a, b, err := s.HMGetTwo(ctx, f, f)
		return append(a, b...), err
	}
	for _, callers := range []int{1, 40} {
		if got, err := read(t.Context(), patient); err != nil || fmt.Sprint(got) != "[1 1]" {
			t.Fatal(got, err)
		}
		proxy.LoseReply("hmget")
		var all sync.WaitGroup
		for i := range callers {
			all.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%2 == 1 {
					time.AfterFunc(timeout/3, cancel)
				}
				began := time.Now()
				if got, err := read(ctx, s); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) || time.Since(began) > 10*timeout {
					t.Errorf("%v, %v after %v", got, err, time.Since(began))
				}
			})
		}
		all.Wait()
		proxy.Heal()
	}
	for range 100 {
		if got, err := read(t.Context(), patient); err != nil || fmt.Sprint(got) != "[1 1]" {
			t.Fatal(got, err)
		}
	}
}
