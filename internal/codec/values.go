package codec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Values are the encoded values of a session: frames of key and value, by
// ascending key. The zero value is empty. Values are immutable and safe for
// concurrent use.
//
// The layout is a version, the number of frames, and the frames: length and
// bytes of the key, length and bytes of the encoded value. Lengths are minimal
// varints, so there is one encoding of the same values, and no other parses.
type Values struct {
	b    []byte // the whole encoding; nil if empty
	head int    // where the frames begin
	n    int
}

const (
	version = 1

	// maxHead is the longest that version and number of frames can be.
	maxHead = 1 + binary.MaxVarintLen64

	// minFrame is the shortest frame: two lengths and a tag.
	minFrame = 3
)

var errFraming = fmt.Errorf("%w: bad framing", ErrMalformed)

// Parse checks the framing of b: the version, the lengths, and that keys ascend.
// It decodes no value. Errors wrap [ErrMalformed]. The Values keep b, which must
// not be changed afterwards.
func Parse(b []byte) (Values, error) {
	if len(b) == 0 || b[0] != version {
		return Values{}, fmt.Errorf("%w: unknown version", ErrMalformed)
	}
	n, size := uvarint(b[1:])
	if size == 0 || n > uint64(len(b)-1-size)/minFrame {
		return Values{}, errFraming
	}
	v := Values{b: slices.Clip(b), head: 1 + size, n: int(n)}
	pos := v.head
	var previous []byte
	for i := range v.n {
		keyStart, keyEnd := part(b, pos)
		valueStart, end := part(b, keyEnd)
		key := b[keyStart:keyEnd]
		if valueStart == end || i > 0 && bytes.Compare(previous, key) >= 0 { // no value is empty
			return Values{}, errFraming
		}
		previous, pos = key, end
	}
	if pos != len(b) {
		return Values{}, errFraming
	}
	if n == 0 {
		return Values{}, nil
	}
	return v, nil
}

// Bytes returns the encoding, which must not be changed. Equal values have equal
// bytes.
func (v Values) Bytes() []byte {
	if v.n == 0 {
		return []byte{version, 0}
	}
	return v.b
}

// Len returns the number of values.
func (v Values) Len() int { return v.n }

// All returns the keys and encoded values, by ascending key. The encoded values
// are parts of v.Bytes().
func (v Values) All() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for f := v.frames(); f.next(); {
			if !yield(string(f.key()), f.value()) {
				return
			}
		}
	}
}

// Get returns the encoded value of key, a part of v.Bytes(), and whether there
// is one.
func (v Values) Get(key string) ([]byte, bool) {
	for f := v.frames(); f.next(); {
		if k := f.key(); string(k) >= key {
			return f.value(), string(k) == key
		}
	}
	return nil, false
}

// Entry is a decoded value and its key.
type Entry struct {
	Key   string
	Value any
}

// Decode returns all keys and decoded values, by ascending key. A value that
// cannot be decoded comes as an error like that of [Decode], with its key and a
// nil value; the others follow.
//
// Decode costs less than to range over All and decode each, because keys and
// strings share one copy of v.Bytes().
func (v Values) Decode() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		// The framing is known to be sound.
		all := string(v.b)
		d := decoder{in: all, pos: v.head, share: len(v.b) <= shareBelow}
		for range v.n {
			var e Entry
			var err error
			e.Key = d.string()
			end := int(d.uvarint())
			end += d.pos
			d.in = all[:end]
			if e.Value, err = d.whole(); err != nil {
				err = fmt.Errorf("value of %q: %w", e.Key, err)
			}
			if !yield(e, err) {
				return
			}
			d.in, d.pos, d.err = all, end, nil
		}
	}
}

// Change returns a copy of v in which the keys of changed have the encoded
// values of changed; nil removes a key. The other frames are copied as bytes,
// whatever they hold.
func (v Values) Change(changed map[string][]byte) Values {
	var stack [16]entry[[]byte]
	edits := sortedEntries(stack[:0], changed)
	size := maxHead + len(v.b)
	for _, e := range edits {
		size += len(e.key) + len(e.value) + 2*binary.MaxVarintLen32
	}
	b := make([]byte, maxHead, size)
	n := v.n
	f := v.frames()
	more := f.next()
	for _, e := range edits {
		kept := f.start
		for more && string(f.key()) < e.key {
			more = f.next()
		}
		b = append(b, v.b[kept:f.start]...)
		if more && string(f.key()) == e.key {
			more = f.next()
			n--
		}
		if len(e.value) > 0 {
			b = appendString(b, e.key)
			b = append(binary.AppendUvarint(b, uint64(len(e.value))), e.value...)
			n++
		}
	}
	if n == 0 {
		return Values{}
	}
	b = append(b, v.b[f.start:]...)

	// The head is known last, and written so that it ends where the frames begin.
	var head [maxHead]byte
	h := binary.AppendUvarint(append(head[:0], version), uint64(n))
	b = b[maxHead-len(h):]
	copy(b, h)
	return Values{b: slices.Clip(b), head: len(h), n: n}
}

// frames iterates over the frames of parsed Values. The current one is
// in[start:end]; after the last, that is empty, at the end of in.
type frames struct {
	in                                       []byte
	start, keyStart, keyEnd, valueStart, end int
}

func (v Values) frames() frames { return frames{in: v.b, end: v.head} }

func (f *frames) next() bool {
	f.start = f.end
	f.keyStart, f.keyEnd = part(f.in, f.start)
	f.valueStart, f.end = part(f.in, f.keyEnd)
	return f.start < len(f.in)
}

// part returns the bounds of what stands behind its length at i, or the end of
// the input if that is not all there.
func part(in []byte, i int) (start, end int) {
	if i < len(in) && in[i] < 0x80 && int(in[i]) < len(in)-i {
		return i + 1, i + 1 + int(in[i])
	}
	return longPart(in, i)
}

func longPart(in []byte, i int) (start, end int) {
	n, size := uvarint(in[i:])
	start = i + size
	if size == 0 || n > uint64(len(in)-start) {
		return len(in), len(in)
	}
	return start, start + int(n)
}

func (f *frames) key() []byte { return f.in[f.keyStart:f.keyEnd] }

func (f *frames) value() []byte { return f.in[f.valueStart:f.end:f.end] }

// uvarint returns the minimal varint that b begins with and its size, which is 0
// if there is none.
func uvarint(b []byte) (n uint64, size int) {
	n, size = binary.Uvarint(b)
	if size <= 0 || size > 1 && b[size-1] == 0 {
		return 0, 0
	}
	return n, size
}

type entry[V any] struct {
	key   string
	value V
}

func sortedEntries[V any](dst []entry[V], m map[string]V) []entry[V] {
	dst = slices.Grow(dst, len(m))
	for k, v := range m {
		dst = append(dst, entry[V]{k, v})
	}
	slices.SortFunc(dst, func(a, b entry[V]) int { return strings.Compare(a.key, b.key) })
	return dst
}
