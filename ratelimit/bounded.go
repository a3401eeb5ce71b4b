package ratelimit

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
)

// bounded is a map of at most about max keys. When a shard is full, it forgets,
// of a few entries met at random, the one that matters least: a cache library's
// least recently used would be the very bucket that an attacker wants forgotten.
// It owns no goroutine: entries past their use are replaced, not collected.
type bounded[V forgettable] struct {
	seed   maphash.Seed
	max    int // per shard
	count  atomic.Int64
	shards [64]shard[V]
}

// forgettable has a time, on any one clock, after which forgetting it changes
// no decision.
type forgettable interface{ forgettableAt() int64 }

type shard[V forgettable] struct {
	mu sync.Mutex
	m  map[string]V
	_  [40]byte // a cache line each
}

func newBounded[V forgettable](maxKeys int) *bounded[V] {
	return &bounded[V]{seed: maphash.MakeSeed(), max: max(1, maxKeys/64)}
}

// lock returns the shard of key, locked.
func (b *bounded[V]) lock(key string) *shard[V] {
	s := &b.shards[maphash.String(b.seed, key)%uint64(len(b.shards))]
	s.mu.Lock()
	return s
}

// put stores v in the locked shard s.
func (b *bounded[V]) put(s *shard[V], key string, v V) {
	if _, ok := s.m[key]; ok {
		s.m[key] = v
		return
	}
	if s.m == nil {
		s.m = make(map[string]V)
	}
	if len(s.m) >= b.max {
		b.forget(s)
	}
	// key may be a piece of a much longer string, such as a request's header.
	s.m[strings.Clone(key)] = v
	b.count.Add(1)
}

// drop removes key from the locked shard s.
func (b *bounded[V]) drop(s *shard[V], key string) {
	if _, ok := s.m[key]; ok {
		delete(s.m, key)
		b.count.Add(-1)
	}
}

// clear removes all keys and returns how many there were.
func (b *bounded[V]) clear() (n int) {
	for i := range b.shards {
		s := &b.shards[i]
		s.mu.Lock()
		n += len(s.m)
		b.count.Add(-int64(len(s.m)))
		s.m = nil
		s.mu.Unlock()
	}
	return n
}

func (b *bounded[V]) forget(s *shard[V]) {
	var (
		victim string
		least  int64
		seen   int
	)
	for k, v := range s.m {
		if at := v.forgettableAt(); seen == 0 || at < least {
			victim, least = k, at
		}
		if seen++; seen == 8 {
			break
		}
	}
	b.drop(s, victim)
}
