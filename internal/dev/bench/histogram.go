package main

import (
	"math"
	"math/bits"
	"time"
)

// histogram counts durations in buckets that are exact below 128 ns and at most 1/64 wide above,
// so that recording one costs a nanosecond and no memory. The zero value is empty.
type histogram struct {
	counts [1 << 11]uint32 // up to 68 seconds
	total  uint64
}

const subBuckets = 64 // per power of two; a power of two itself

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	shift := max(0, bits.Len64(v)-bits.Len64(2*subBuckets-1))
	return min(shift*subBuckets+int(v>>shift), len(histogram{}.counts)-1)
}

// middleOf is the inverse of bucketOf, but for the width of the bucket.
func middleOf(bucket int) time.Duration {
	if bucket < 2*subBuckets {
		return time.Duration(bucket)
	}
	shift := bucket/subBuckets - 1
	lowest := uint64(subBuckets+bucket%subBuckets) << shift
	return time.Duration(lowest + 1<<shift/2)
}

func (h *histogram) add(d time.Duration) {
	h.counts[bucketOf(d)]++
	h.total++
}

func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
}

// quantile returns the smallest duration that the share q of all does not exceed (nearest rank),
// or 0 if there are none.
func (h *histogram) quantile(q float64) time.Duration {
	rank := max(1, uint64(math.Ceil(q*float64(h.total))))
	var seen uint64
	for i, n := range h.counts {
		if seen += uint64(n); seen >= rank {
			return middleOf(i)
		}
	}
	return 0
}
