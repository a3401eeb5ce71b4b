package redistest

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

func TestProxy(t *testing.T) {
	t.Parallel() // with others that wait
	isTimeout := func(err error) bool {
		var ne net.Error
		return errors.As(err, &ne) && ne.Timeout()
	}
	isCut := func(err error) bool { return err != nil && !isTimeout(err) }
	for _, tt := range []struct {
		name     string
		inject   func(p *Proxy)
		wantErr  func(error) bool
		executed bool
	}{
		{"cut", func(p *Proxy) { p.Cut("incr") }, isCut, false},
		{"black hole", func(p *Proxy) { p.BlackHole("INCR") }, isTimeout, false},
		{"garbage", func(p *Proxy) { p.Garbage("incr") }, func(err error) bool { return isCut(err) && strings.Contains(err.Error(), "HTTP") }, false},
		{"lose reply", func(p *Proxy) { p.LoseReply("get", "incr") }, isTimeout, true},
		{"cut reply", func(p *Proxy) { p.CutReply("incr") }, isCut, true},
		{"delay", func(p *Proxy) { p.Delay(10*time.Second, "incr") }, isTimeout, false},
		{"short delay", func(p *Proxy) { p.Delay(20*time.Millisecond, "incr") }, func(err error) bool { return err == nil }, true},
		{"other command", func(p *Proxy) { p.Cut("incrby") }, func(err error) bool { return err == nil }, true},
		{"every command", func(p *Proxy) { p.Cut() }, isCut, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			m := miniredis.RunT(t)
			p := NewProxy(t, m.Addr())
			c := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1, ReadTimeout: 500 * time.Millisecond})
			defer c.Close()
			if err := c.Set(ctx, "n", 0, 0).Err(); err != nil {
				t.Fatal(err)
			}

			tt.inject(p)
			start := time.Now()
			if err := c.Incr(ctx, "n").Err(); !tt.wantErr(err) {
				t.Errorf("INCR: %v", err)
			}
			if tt.name == "short delay" && time.Since(start) < 20*time.Millisecond {
				t.Errorf("answered after %v", time.Since(start))
			}
			want, count := "0", 0
			if tt.executed {
				want, count = "1", 1
			}
			// cutReply cuts on the reply, the others may still be under way to the server.
			if err := await(func() error {
				if got, _ := m.Get("n"); got != want {
					return errors.New("n = " + got)
				}
				return nil
			}); err != nil {
				t.Errorf("%v, want %s", err, want)
			}
			if got := p.Forwarded("INCR"); got != count {
				t.Errorf("Forwarded = %d, want %d", got, count)
			}

			p.Heal()
			// A connection that was idle in the pool when it was closed fails once.
			if err := await(func() error { return c.Ping(ctx).Err() }); err != nil {
				t.Errorf("healed: %v", err)
			}
		})
	}
}

func TestProxyDisconnectAndClose(t *testing.T) {
	ctx := context.Background()
	p := NewProxy(t, miniredis.RunT(t).Addr())
	c := redis.NewClient(&redis.Options{Addr: p.Addr(), MaxRetries: -1, PoolSize: 1})
	defer c.Close()
	if err := c.Ping(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	p.Disconnect()
	if err := await(func() error { return c.Ping(ctx).Err() }); err != nil {
		t.Errorf("disconnected: no new connection: %v", err)
	}
	p.Close()
	if err := c.Ping(ctx).Err(); err == nil {
		t.Error("closed: it answers")
	}
	p.Close()
}
