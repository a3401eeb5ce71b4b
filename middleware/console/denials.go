package console

import (
	"cmp"
	"slices"
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
	by map[string]map[string]*Denied // of each limiter, by key
}

// Denied is what was noted of a key.
type Denied struct {
	Key   string    `json:"key"`
	Times uint64    `json:"times"` // at most so often
	First time.Time `json:"first"` // since it is noted
	Last  time.Time `json:"last"`
	Why   string    `json:"why"` // of the last denial
	last  ratelimit.Result
}

// NewDenials returns a Denials that keeps so many keys, at least 1, of each limiter.
func NewDenials(keys int) *Denials {
	return &Denials{keys: max(1, keys), by: make(map[string]map[string]*Denied)}
}

// Note notes a decision, if it is a denial.
func (d *Denials) Note(of ratelimit.Decision) {
	if of.Err != nil || of.Result.Allowed || of.Cost == 0 {
		return
	}
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	keys := d.by[of.Policy]
	if keys == nil {
		keys = make(map[string]*Denied)
		d.by[of.Policy] = keys
	}
	n := keys[of.Key]
	if n == nil {
		n = &Denied{Key: of.Key, First: now}
		if len(keys) >= d.keys {
			least := fewest(keys)
			n.Times = least.Times
			delete(keys, least.Key)
		}
		keys[of.Key] = n
	}
	n.Times, n.Last, n.last = n.Times+1, now, of.Result
}

func fewest(keys map[string]*Denied) (least *Denied) {
	for _, n := range keys {
		if least == nil || n.Times < least.Times {
			least = n
		}
	}
	return least
}

// most returns the keys of a limiter that were denied most.
func (d *Denials) most(limiter string, n int) []Denied {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Denied
	for _, k := range d.by[limiter] {
		list = append(list, *k)
	}
	slices.SortFunc(list, func(a, b Denied) int {
		return cmp.Or(cmp.Compare(b.Times, a.Times), cmp.Compare(a.Key, b.Key))
	})
	list = list[:min(n, len(list))]
	for i := range list {
		list[i].Why = list[i].last.String()
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
	n := d.by[limiter][key]
	if n == nil {
		return nil
	}
	denied := *n
	denied.Why = denied.last.String()
	return &denied
}
