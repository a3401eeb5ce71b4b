// Package observe lets what is already at work be watched, at no cost where nobody does.
package observe

import (
	"slices"
	"sync"
	"sync/atomic"
)

// List is functions that are called at some event. The zero value is an empty one. It is safe for
// concurrent use.
type List[F any] struct {
	mu  sync.Mutex
	all atomic.Pointer[[]*F]
}

// Add adds f until remove is called.
func (l *List[F]) Add(f F) (remove func()) {
	added := &f
	l.change(func(all []*F) []*F { return append(all, added) })
	return func() {
		l.change(func(all []*F) []*F {
			return slices.DeleteFunc(all, func(f *F) bool { return f == added })
		})
	}
}

func (l *List[F]) change(f func([]*F) []*F) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*F
	if known := l.all.Load(); known != nil {
		all = slices.Clone(*known)
	}
	if all = f(all); len(all) == 0 {
		l.all.Store(nil)
		return
	}
	l.all.Store(&all)
}

// Any reports whether there are any.
func (l *List[F]) Any() bool { return l.all.Load() != nil }

// Each calls call with each of them.
func (l *List[F]) Each(call func(F)) {
	if all := l.all.Load(); all != nil {
		for _, f := range *all {
			call(*f)
		}
	}
}
