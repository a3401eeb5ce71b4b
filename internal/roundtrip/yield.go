package roundtrip

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Yield lets goroutines that are ready to run go first: what they are about to ask
// Redis for can go along then. While there are none it takes no time.
//
// In a process whose goroutines compute for long, that would hold up a call that is
// ready for as long as all of them take. If it has once taken longer than maxYield, it is left
// off for a while. The zero value is ready, and safe for concurrent use.
type Yield struct {
	skip atomic.Int64 // how often it is still left off

	// Of tests; nil: runtime.Gosched and time.Now.
	gosched func()
	now     func() time.Time
}

const (
	maxYield = 5 * time.Millisecond // half of what the scheduler lets a goroutine run
	leftOff  = 1000
)

// Now yields, or not.
func (y *Yield) Now() {
	if y.skip.Load() > 0 {
		y.skip.Add(-1)
		return
	}
	gosched, now := y.gosched, y.now
	if gosched == nil {
		gosched, now = runtime.Gosched, time.Now
	}
	started := now()
	gosched()
	if now().Sub(started) > maxYield {
		y.skip.Store(leftOff)
	}
}
