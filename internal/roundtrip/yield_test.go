package roundtrip

import (
	"testing"
	"time"
)

func TestYieldIsLeftOffWhileItTakesLong(t *testing.T) {
	var (
		clock  time.Time
		takes  time.Duration
		yields int
	)
	y := Yield{
		gosched: func() { yields++; clock = clock.Add(takes) },
		now:     func() time.Time { return clock },
	}
	times := func(n int) int {
		yields = 0
		for range n {
			y.Now()
		}
		return yields
	}
	takes = maxYield
	if n := times(100); n != 100 {
		t.Errorf("%d of 100 short ones", n)
	}
	takes = maxYield + 1
	if n := times(1 + leftOff); n != 1 {
		t.Errorf("%d long ones before it may be tried again", n)
	}
	takes = 0
	if n := times(10); n != 10 {
		t.Errorf("%d of 10 afterwards", n)
	}
}
