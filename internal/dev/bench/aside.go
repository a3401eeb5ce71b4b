package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// asideCache stands for rueidisaside, which cannot be downloaded as a module. It sends what that
// sends, over the same client: reads go through the client's cache; a caller that finds nothing sets a
// mark of its own, loads, and exchanges the mark for the value; the others wait until Redis says that
// the key has changed.
type asideCache struct {
	client rueidis.Client
	mark   string
	load   func(context.Context, string) (cached, error)

	mu      sync.Mutex
	changed map[string]chan struct{} // closed when a key changes
	loading map[string]chan struct{} // closed when this process has loaded a key
}

const (
	asideMark = "aside:"
	asideTTL  = 5 * time.Minute
)

var asideStore = rueidis.NewLuaScript(`if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1`)

func newAside(addr string, load func(context.Context, string) (cached, error)) (*asideCache, error) {
	c := &asideCache{mark: asideMark + rand.Text(), load: load, changed: map[string]chan struct{}{}, loading: map[string]chan struct{}{}}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, PipelineMultiplex: -1, OnInvalidations: c.invalidated})
	c.client = client
	return c, err
}

func (c *asideCache) invalidated(keys []rueidis.RedisMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range keys {
		key, _ := m.ToString()
		if ch := c.changed[key]; ch != nil {
			close(ch)
			delete(c.changed, key)
		}
	}
}

// until returns the channel of a key in one of the maps, and whether it is new.
func (c *asideCache) until(of map[string]chan struct{}, key string) (ch chan struct{}, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch = of[key]; ch == nil {
		ch, fresh = make(chan struct{}), true
		of[key] = ch
	}
	return ch, fresh
}

func (c *asideCache) get(ctx context.Context, id string) (v cached, err error) {
	key := "aside-user:" + id
	for {
		change, _ := c.until(c.changed, key)
		text, err := c.client.DoCache(ctx, c.client.B().Get().Key(key).Cache(), asideTTL).ToString()
		switch {
		case rueidis.IsRedisNil(err):
			done, first := c.until(c.loading, key)
			if !first {
				<-done
				continue
			}
			v, stored, err := c.fill(ctx, key, id)
			c.mu.Lock()
			delete(c.loading, key)
			c.mu.Unlock()
			close(done)
			if stored || err != nil {
				return v, err
			}
		case err != nil:
			return v, err
		case strings.HasPrefix(text, asideMark):
			select {
			case <-change:
			case <-time.After(10 * time.Second):
				return v, errors.New("waited in vain")
			}
		default:
			return v, json.Unmarshal([]byte(text), &v)
		}
	}
}

// fill loads a value if this process may.
func (c *asideCache) fill(ctx context.Context, key, id string) (v cached, stored bool, err error) {
	held := c.client.Do(ctx, c.client.B().Set().Key(key).Value(c.mark).Nx().Get().Px(asideTTL).Build()).Error()
	if !rueidis.IsRedisNil(held) { // another process loads, or has loaded
		return v, false, held
	}
	if v, err = c.load(ctx, id); err != nil {
		return v, false, err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return v, false, err
	}
	err = asideStore.Exec(ctx, c.client, []string{key}, []string{c.mark, string(text), "300000"}).Error()
	return v, true, err
}

func (c *asideCache) forget(ctx context.Context, id string) error {
	return c.client.Do(ctx, c.client.B().Del().Key("aside-user:"+id).Build()).Error()
}
