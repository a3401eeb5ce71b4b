package main

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// Cable is what clients reach their Redis by. While it is cut, their connections are closed and new
// ones fail. Redis itself runs on. The zero value is whole.
type Cable struct {
	mu    sync.Mutex
	cut   bool
	wires map[*wire]struct{}
}

// wire is a connection that goes through a cable.
type wire struct {
	net.Conn
	cable *Cable
}

var errCut = errors.New("the cable to Redis is cut")

// Client returns a client like one of its options that uses the cable.
func (c *Cable) Client(like *redis.Options) *redis.Client {
	options := *like
	options.PushNotificationProcessor = nil // that of another client
	options.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if c.Cut() {
			return nil, errCut
		}
		conn, err := like.Dialer(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.cut {
			_ = conn.Close()
			return nil, errCut
		}
		if c.wires == nil {
			c.wires = make(map[*wire]struct{})
		}
		w := &wire{conn, c}
		c.wires[w] = struct{}{}
		return w, nil
	}
	return redis.NewClient(&options)
}

// Cut reports whether the cable is cut.
func (c *Cable) Cut() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.cut }

// Set cuts the cable, or heals it.
func (c *Cable) Set(cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = cut
	for w := range c.wires {
		if cut {
			_ = w.Conn.Close()
			delete(c.wires, w)
		}
	}
}

func (w *wire) Close() error {
	w.cable.mu.Lock()
	delete(w.cable.wires, w)
	w.cable.mu.Unlock()
	return w.Conn.Close()
}

// SyscallConn is how the client sees that a connection was closed while nobody used it.
func (w *wire) SyscallConn() (syscall.RawConn, error) {
	if conn, ok := w.Conn.(syscall.Conn); ok {
		return conn.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
