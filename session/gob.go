package session

import (
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// A gob stream in a session is a message for each type definition, then one
// message with the value. An Encoder mixes the two, and a Decoder takes a map's
// length at its word: a few bytes may claim a billion entries of any registered
// map type. So the stream is brought into that plain form when written, and
// walked before gob gets to see it: every count in it is then known to be true.
// The format is in the documentation of encoding/gob, "Encoding Details".

var errGobMalformed = errors.New("gob: malformed stream")

// maxGobDepth bounds the nesting of a gob value, and so gob's stack.
const maxGobDepth = 1000

// appendGob appends v's tag, the length of its stream and the stream.
func appendGob(b []byte, v any) (_ []byte, err error) {
	// A panic in a GobEncode would otherwise end each request of this session.
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("%T: panic while encoding", v)
		}
	}()
	tag := byte(tagGob)
	if t := reflect.TypeOf(v); t.Kind() == reflect.Pointer {
		if tag = tagGobPointer; t.Elem().Kind() == reflect.Pointer {
			return nil, fmt.Errorf("%T: pointer to a pointer", v)
		}
	}

	// The first round is for the definitions; the second finds all types defined
	// and sends the value alone.
	var stream bytes.Buffer
	enc := gob.NewEncoder(&stream)
	if err := enc.Encode(&v); err != nil {
		return nil, gobError(v, err)
	}
	first := stream.Len()
	if err := enc.Encode(&v); err != nil {
		return nil, gobError(v, err)
	}
	w := gobWalker{in: string(stream.Bytes()[:first]), collect: true}
	w.mixed()
	plain := append(w.definitions, stream.Bytes()[first:]...)
	if w.failed || !plainGob(string(plain)) {
		return nil, fmt.Errorf("%T: nested deeper than %d levels or changed while encoded", v, maxGobDepth)
	}
	b = binary.AppendUvarint(append(b, tag), uint64(len(plain)))
	return append(b, plain...), nil
}

// decodeGob returns the value of stream, as a pointer if asked to: gob itself
// gives T or *T depending on which was registered.
func decodeGob(stream string, pointer bool) (v any, err error) {
	// Registered types decode themselves, perhaps carelessly.
	defer func() {
		if recover() != nil {
			v, err = nil, errors.New("panic while decoding")
		}
	}()
	if !plainGob(stream) {
		return nil, errGobMalformed
	}
	if err := gob.NewDecoder(strings.NewReader(stream)).Decode(&v); err != nil {
		return nil, gobError(v, err)
	}
	if v == nil {
		return nil, errGobMalformed
	}
	rv := reflect.ValueOf(v)
	for rv.Kind() == reflect.Pointer {
		if !pointer || rv.Elem().Kind() == reflect.Pointer {
			rv = rv.Elem()
			continue
		}
		return rv.Interface(), nil
	}
	if !pointer {
		return rv.Interface(), nil
	}
	p := reflect.New(rv.Type())
	p.Elem().Set(rv)
	return p.Interface(), nil
}

// gobError keeps gob's own words, which name types only. What the methods of a
// user's type say may hold the value, so it stays out of the text.
func gobError(v any, err error) error {
	if strings.HasPrefix(err.Error(), "gob: ") {
		return err
	}
	return &hiddenError{fmt.Sprintf("%T: its own encoding failed", v), err}
}

type hiddenError struct {
	text  string
	cause error
}

func (e *hiddenError) Error() string { return e.text }
func (e *hiddenError) Unwrap() error { return e.cause }

// plainGob reports whether s is a stream as appendGob writes it.
func plainGob(s string) bool {
	w := gobWalker{in: s}
	for !w.failed {
		n := w.count(1)
		end := w.pos + n
		id := w.int()
		if id < 0 {
			w.definition(-id)
		} else {
			w.top(id)
		}
		if w.failed || w.pos != end {
			return false
		}
		if id >= 0 {
			return end == len(s)
		}
	}
	return false
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

// gobWalker reads a gob stream without building anything.
type gobWalker struct {
	in      string
	pos     int
	depth   int
	failed  bool
	types   map[int64]gobType
	collect bool // definitions may stand within the value: keep them
	// definitions are those met, a message each.
	definitions []byte
}

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

// mixed walks one value as an Encoder sends it.
func (w *gobWalker) mixed() {
	w.uint()
	w.top(w.int())
}

// top reads the interface value that Encode(&v) sends.
func (w *gobWalker) top(id int64) {
	if id != gobInterface || w.uint() != 0 {
		w.fail()
		return
	}
	w.value(gobInterface)
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
	if w.collect {
		body := append(appendGobUint(nil, uint64(id-1)<<1|1), w.in[start:w.pos]...)
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
	n := w.count(1)
	if n == 0 {
		return
	}
	w.pos += n
	id := w.int()
	for id < 0 && w.collect && !w.failed {
		w.definition(-id)
		w.uint() // the length of the next message, or of the next part of this one
		id = w.int()
	}
	size := w.count(1)
	end := w.pos + size
	if id < 0 {
		w.fail()
		return
	}
	if t, ok := w.types[id]; (!ok || t.kind != gobStruct) && w.uint() != 0 {
		w.fail()
		return
	}
	w.value(id)
	// An Encoder's size ends at the next definition. A Decoder uses it only to
	// skip the value, so elsewhere it must be where the value ends.
	if !w.collect && w.pos != end {
		w.fail()
	}
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
