package console

import (
	"cmp"
	"container/heap"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// Denials notes who is denied, by this process, as the [ratelimit.Config].OnDecision of limiters:
//
//	denials := console.NewDenials(1000)
//	cfg := ratelimit.Config{OnDecision: denials.Note}
//
// It keeps so many keys of each limiter: those denied most, by the space-saving algorithm
// (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data
// Streams, 2005). A key that was denied more often than the total divided by that number is always
// among them; that of a key that was not there all the while may be too high. It is safe for
// concurrent use.
type Denials struct {
	keys int // of each limiter

	mu sync.Mutex
	by map[string]*worst // of each limiter
}

// Denied is what was noted of a key.
type Denied struct {
	Key   string    `json:"key"`           // its first 1,024 bytes
	Cut   bool      `json:"cut,omitempty"` // Key is the beginning of one, or of several
	Times uint64    `json:"times"`         // at most so often
	First time.Time `json:"first"`         // since it is noted
	Last  time.Time `json:"last"`
	Why   string    `json:"why"` // of the last denial
	last  ratelimit.Result
	place int // in worst.fewest
}

// worst are the keys of a limiter that were denied most.
type worst struct {
	by     map[string]*Denied
	fewest []*Denied // a heap
}

// Those of [heap.Interface], least first.
func (w *worst) Len() int           { return len(w.fewest) }
func (w *worst) Less(i, j int) bool { return w.fewest[i].Times < w.fewest[j].Times }
func (w *worst) Swap(i, j int) {
	f := w.fewest
	f[i], f[j] = f[j], f[i]
	f[i].place, f[j].place = i, j
}
func (w *worst) Push(n any) {
	n.(*Denied).place = len(w.fewest)
	w.fewest = append(w.fewest, n.(*Denied))
}
func (w *worst) Pop() any { panic("nothing is taken out") }

// NewDenials returns a Denials that keeps so many keys, at least 1, of each limiter.
func NewDenials(keys int) *Denials {
	return &Denials{keys: max(1, keys), by: make(map[string]*worst)}
}

// Note notes a decision, if it is a denial.
func (d *Denials) Note(of ratelimit.Decision) {
	if of.Err != nil || of.Result.Allowed || of.Cost == 0 {
		return
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.by[of.Policy]
	if w == nil {
		w = &worst{by: make(map[string]*Denied)}
		d.by[of.Policy] = w
	}
	key := noted(of.Key)
	n := w.by[key]
	switch {
	case n != nil:
	case len(w.fewest) < d.keys:
		n = &Denied{Key: key, Cut: len(of.Key) > maxKey, First: now}
		w.by[n.Key] = n
		heap.Push(w, n)
	default: // in the place of the one that was denied least, whose count it takes over
		n = w.fewest[0]
		delete(w.by, n.Key)
		n.Key, n.Cut, n.First = key, len(of.Key) > maxKey, now
		w.by[n.Key] = n
	}
	n.Times, n.Last, n.last = n.Times+1, now, of.Result
	heap.Fix(w, n.place)
}

// noted is as much of a key as is kept.
func noted(key string) string {
	if len(key) > maxKey {
		return strings.Clone(key[:maxKey]) + "…"
	}
	return key
}

// maxKey is the longest key of a rule, in bytes.
const maxKey = 1024

// most returns the keys of a limiter that were denied most.
func (d *Denials) most(limiter string, n int) []Denied {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Denied
	if w := d.by[limiter]; w != nil {
		for _, n := range w.fewest {
			list = append(list, *n)
		}
	}
	slices.SortFunc(list, func(a, b Denied) int {
		return cmp.Or(cmp.Compare(b.Times, a.Times), cmp.Compare(a.Key, b.Key))
	})
	list = list[:min(n, len(list))]
	for i := range list {
		list[i] = list[i].view()
	}
	return list
}

// of returns what is known of a key, or nil.
func (d *Denials) of(limiter, key string) *Denied {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.by[limiter]
	if w == nil || w.by[noted(key)] == nil {
		return nil
	}
	denied := w.by[noted(key)].view()
	return &denied
}

// view is n as pages show it.
func (n Denied) view() Denied {
	n.Key, n.Why = shown(n.Key), n.last.String()
	return n
}
