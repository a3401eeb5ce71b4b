package codec

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// A plain gob stream is a message for each type definition, then one message
// with the value. An Encoder mixes the two, and a Decoder takes a map's length
// at its word: a few bytes may claim a billion entries of a map type. So streams
// are made plain, and walked before gob gets to see them: every count in a plain
// stream is known to be true. The format is in the documentation of
// encoding/gob, "Encoding Details".

// maxGobDepth bounds the nesting of a gob value, and so gob's stack.
const maxGobDepth = 1000

// plainGob returns the plain form of a stream as an Encoder writes it for one
// value, and whether there is one.
//
// To walk the mixed form is not enough. It does not say how long a value is
// that has definitions inside, and a Decoder that skips such a value, because
// its own struct lacks the field, goes on reading in the middle of it.
func plainGob(mixed string) (plain []byte, ok bool) {
	w := gobWalker{in: mixed, mixed: true}
	w.uint()
	id := w.int()
	for id < 0 && !w.failed {
		w.definition(-id)
		w.uint()
		w.drop()
		id = w.int()
	}
	w.out = appendGobInt(nil, id)
	w.drop()
	w.top(id)
	w.keep()
	if w.failed || w.pos != len(mixed) {
		return nil, false
	}
	plain = append(appendGobUint(w.definitions, uint64(len(w.out))), w.out...)
	_, ok = walkGob(string(plain))
	return plain, ok
}

// walkGob returns the type id of the value of stream, and whether stream is
// plain and all counts in it are true.
func walkGob(stream string) (id int64, ok bool) {
	w := gobWalker{in: stream}
	for !w.failed {
		n := w.count(1)
		end := w.pos + n
		id = w.int()
		if id < 0 {
			w.definition(-id)
		} else {
			w.top(id)
		}
		if w.failed || w.pos != end {
			return 0, false
		}
		if id >= 0 {
			return id, end == len(stream)
		}
	}
	return 0, false
}

// Type ids that gob defines.
const (
	gobBool = iota + 1
	gobInt
	gobUint
	gobFloat
	gobBytes
	gobString
	gobComplex
	gobInterface
	gobFirstUserID = 64
)

type gobKind uint8

const (
	gobArray gobKind = iota
	gobSlice
	gobStruct
	gobMap
	gobOpaque // encodes itself: GobEncoder, BinaryMarshaler, TextMarshaler
)

type gobType struct {
	kind      gobKind
	key, elem int64
	fields    []int64
}

// gobWalker reads a gob stream without building any value. After the first
// failure pos is at the end, and everything reads as zero.
type gobWalker struct {
	in     string
	pos    int
	depth  int
	failed bool
	types  map[int64]gobType

	// mixed is whether in is to be made plain: definitions may stand within the
	// value. They go to definitions, a message each, and the value goes to out.
	// What stands before kept has been dealt with.
	mixed       bool
	definitions []byte
	out         []byte
	kept        int
}

// keep appends what was read since the last keep or drop to out.
func (w *gobWalker) keep() {
	if w.mixed {
		w.out = append(w.out, w.in[w.kept:w.pos]...)
		w.kept = w.pos
	}
}

// drop leaves it out.
func (w *gobWalker) drop() { w.kept = w.pos }

func (w *gobWalker) fail() {
	w.failed = true
	w.pos = len(w.in)
}

func (w *gobWalker) uint() uint64 {
	if w.pos >= len(w.in) {
		w.fail()
		return 0
	}
	c := w.in[w.pos]
	w.pos++
	if c <= 0x7f {
		return uint64(c)
	}
	n := -int(int8(c))
	if n > 8 || n > len(w.in)-w.pos {
		w.fail()
		return 0
	}
	var x uint64
	for i := range n {
		x = x<<8 | uint64(w.in[w.pos+i])
	}
	w.pos += n
	return x
}

func (w *gobWalker) int() int64 {
	u := w.uint()
	if u&1 != 0 {
		return ^int64(u >> 1)
	}
	return int64(u >> 1)
}

// count reads a number of things of at least size bytes each.
func (w *gobWalker) count(size int) int {
	u := w.uint()
	if u > uint64((len(w.in)-w.pos)/size) {
		w.fail()
		return 0
	}
	return int(u)
}

func (w *gobWalker) skip() { w.pos += w.count(1) }

// top reads the value of type id that stands at the top of a stream, or at the
// top of an interface value.
func (w *gobWalker) top(id int64) {
	if t, ok := w.types[id]; (!ok || t.kind != gobStruct) && w.uint() != 0 {
		w.fail()
		return
	}
	w.value(id)
}

// fields calls f with each field number of a struct, up to its terminator.
func (w *gobWalker) fields(n int, f func(field int)) {
	field := -1
	for !w.failed {
		delta := w.uint()
		if delta == 0 {
			return
		}
		if delta > uint64(n-1-field) {
			w.fail()
			return
		}
		field += int(delta)
		f(field)
	}
}

// definition reads the description of type id, a gob of gob's own wireType.
func (w *gobWalker) definition(id int64) {
	start := w.pos
	if _, dup := w.types[id]; dup || id < gobFirstUserID {
		w.fail()
		return
	}
	var t gobType
	described := false
	w.fields(7, func(field int) {
		if described {
			w.fail()
			return
		}
		described = true
		t.kind = min(gobKind(field), gobOpaque)
		w.fields(3, func(part int) {
			switch {
			case part == 0: // the name and id again
				w.fields(2, func(i int) {
					if i == 0 {
						w.skip()
					} else {
						w.int()
					}
				})
			case t.kind == gobMap && part == 1:
				t.key = w.int()
			case t.kind == gobMap, (t.kind == gobArray || t.kind == gobSlice) && part == 1:
				t.elem = w.int()
			case t.kind == gobArray: // the length, which comes again with the value
				w.int()
			case t.kind == gobStruct && part == 1:
				for range w.count(1) {
					var id int64
					w.fields(2, func(i int) {
						if i == 0 {
							w.skip()
						} else {
							id = w.int()
						}
					})
					t.fields = append(t.fields, id)
				}
			default:
				w.fail()
			}
		})
	})
	if !described {
		w.fail()
	}
	if w.failed {
		return
	}
	if w.types == nil {
		w.types = make(map[int64]gobType)
	}
	w.types[id] = t
	if w.mixed {
		body := append(appendGobInt(nil, -id), w.in[start:w.pos]...)
		w.definitions = append(appendGobUint(w.definitions, uint64(len(body))), body...)
	}
}

func (w *gobWalker) value(id int64) {
	if w.depth++; w.depth > maxGobDepth || w.failed {
		w.fail()
		return
	}
	defer func() { w.depth-- }()
	switch id {
	case gobBool, gobInt, gobUint, gobFloat:
		w.uint()
		return
	case gobComplex:
		w.uint()
		w.uint()
		return
	case gobBytes, gobString:
		w.skip()
		return
	case gobInterface:
		w.iface()
		return
	}
	t, ok := w.types[id]
	if !ok {
		w.fail()
		return
	}
	switch t.kind {
	case gobArray, gobSlice:
		for n := w.count(1); n > 0 && !w.failed; n-- {
			w.value(t.elem)
		}
	case gobMap:
		for n := w.count(2); n > 0 && !w.failed; n-- {
			w.value(t.key)
			w.value(t.elem)
		}
	case gobStruct:
		w.fields(len(t.fields), func(i int) { w.value(t.fields[i]) })
	case gobOpaque:
		w.skip()
	}
}

func (w *gobWalker) iface() {
	name := w.count(1)
	if name == 0 {
		return
	}
	w.pos += name
	w.keep()
	id := w.int()
	for id < 0 && w.mixed && !w.failed {
		w.definition(-id)
		w.uint() // the length of the next message, or of the next part of this one
		w.drop()
		id = w.int()
	}
	w.keep()
	if id < 0 {
		w.fail()
		return
	}
	if w.mixed {
		w.uint() // a size that may end at the next definition
		w.drop()
		start := len(w.out)
		w.top(id)
		w.keep()
		w.out = slices.Insert(w.out, start, appendGobUint(nil, uint64(len(w.out)-start))...)
		return
	}
	n := w.count(1)
	end := w.pos + n
	w.top(id)
	if w.pos != end {
		w.fail()
	}
}

func appendGobInt(b []byte, i int64) []byte {
	u := uint64(i) << 1
	if i < 0 {
		u = ^u
	}
	return appendGobUint(b, u)
}

func appendGobUint(b []byte, u uint64) []byte {
	if u <= 0x7f {
		return append(b, byte(u))
	}
	var full [8]byte
	binary.BigEndian.PutUint64(full[:], u)
	digits := bytes.TrimLeft(full[:], "\x00")
	return append(append(b, byte(-len(digits))), digits...)
}
