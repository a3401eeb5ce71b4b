// Package codec turns session values into bytes and back. [Encode] and [Decode]
// do so for one value; [Values] holds the encoded values of a session, so that
// one can be read, replaced or kept without decoding the others.
//
// Values come back with the Go type they went in with:
//
//   - nil, bool, every int and uint type, float32 and float64 (to the bit),
//     string (any bytes), []byte, time.Duration;
//   - time.Time: the instant, whether it is UTC, and otherwise the offset of its
//     zone in seconds. The zone's name and the monotonic reading are lost. Like
//     encoding/gob it gives time.Local to a time whose offset is the local one;
//   - []string, map[string]string, []any and map[string]any, nil and empty ones
//     told apart, nested to 32 levels;
//   - [Concrete], for values whose type only the caller knows;
//   - anything else by encoding/gob, whose own rules then hold: the type must be
//     registered with [gob.Register], and empty slices inside structs come back
//     nil. Unlike with gob alone, T and *T stay apart whichever of them was
//     registered.
//
// The same value gives the same bytes, in every process. Values that go by gob
// are the exception: gob writes maps in random order and numbers types per
// process. An unchanged session may then look changed, at the cost of a write.
package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

var (
	// ErrMalformed is returned for bytes that this package cannot have written,
	// and for values whose own decoding fails.
	ErrMalformed = errors.New("session: malformed session data")

	// ErrUnknownType is returned for a well-formed value of a type that this
	// process does not know: one that is not registered with encoding/gob here
	// or has other fields, or one that only a newer release can decode. Its
	// bytes are worth keeping.
	ErrUnknownType = errors.New("session: value of an unknown type")
)

// EncodeError says which session key holds a value that cannot be stored. Its
// text shows the key and the type, never the value.
type EncodeError struct {
	Key string
	Err error
}

func (e *EncodeError) Error() string {
	return fmt.Sprintf("session: value of %q: %v", e.Key, e.Err)
}

func (e *EncodeError) Unwrap() error { return e.Err }

// An encoded value is a tag and its body. Numbers are minimal varints (signed
// ones zigzag); whatever can be nil is counted from one, zero being nil. Except
// within gob, there is one encoding of a value, and no other decodes.
//
// Stored sessions hold these numbers: a new tag goes before tagUnknown.
const (
	tagNil = iota
	tagFalse
	tagTrue
	tagInt
	tagInt8
	tagInt16
	tagInt32
	tagInt64
	tagUint
	tagUint8
	tagUint16
	tagUint32
	tagUint64
	tagUintptr
	tagFloat32
	tagFloat64
	tagString
	tagBytes
	tagTimeUTC
	tagTimeZone
	tagDuration
	tagStrings
	tagStringMap
	tagAnys
	tagAnyMap
	tagGob
	tagGobPointer
	tagConcrete
	tagUnknown // this and those above are of a newer release
)

const (
	// maxDepth bounds the nesting of []any and map[string]any, and so the stack.
	maxDepth = 32

	// maxPrealloc bounds what a claimed length alone makes Decode allocate, in
	// elements. A count is checked against the bytes left, but nested containers
	// may claim the same bytes many times over.
	maxPrealloc = 64

	// shareBelow is the size in bytes up to which decoded strings share one copy
	// of the encoding. Above it a short string that outlives the request would
	// keep too much alive.
	shareBelow = 4096
)

// Encode encodes v, the value of key. It returns an [*EncodeError] if v cannot
// be encoded; key has no other use.
func Encode(key string, v any) ([]byte, error) {
	b, err := appendValue(make([]byte, 0, sizeHint(v)), v, 0)
	if err != nil {
		return nil, &EncodeError{Key: key, Err: err}
	}
	return b, nil
}

// Decode decodes one value. Nothing refers to b afterwards. Whatever b holds,
// Decode does not panic, and what it allocates is in proportion to len(b).
// Errors wrap [ErrMalformed] or [ErrUnknownType].
func Decode(b []byte) (any, error) {
	d := decoder{in: string(b), share: len(b) <= shareBelow}
	return d.whole()
}

// Native reports whether v is of a type with a tag of its own, which needs no
// gob. Elements of a []any or map[string]any may still need it.
func Native(v any) bool {
	switch v.(type) {
	case nil, bool, string, int, int8, int16, int32, int64,
		uint, uint8, uint16, uint32, uint64, uintptr, float32, float64,
		time.Time, time.Duration, []byte, []string, map[string]string,
		[]any, map[string]any, Concrete:
		return true
	}
	return false
}

// sizeHint is exact enough that an ordinary value is encoded without growing.
func sizeHint(v any) int {
	n := 16 // a tag and a number; or a time of this century
	switch v := v.(type) {
	case string:
		n = len(v) + 4
	case []byte:
		n = len(v) + 4
	case []string:
		for _, s := range v {
			n += len(s) + 2
		}
	case map[string]string:
		for k, s := range v {
			n += len(k) + len(s) + 4
		}
	case []any:
		n += 16 * len(v)
	case map[string]any:
		n += 32 * len(v)
	}
	return n
}

func appendValue(b []byte, v any, depth int) ([]byte, error) {
	switch v := v.(type) {
	case nil:
		return append(b, tagNil), nil
	case bool:
		if v {
			return append(b, tagTrue), nil
		}
		return append(b, tagFalse), nil
	case string:
		return appendString(append(b, tagString), v), nil
	case int:
		return binary.AppendVarint(append(b, tagInt), int64(v)), nil
	case int8:
		return binary.AppendVarint(append(b, tagInt8), int64(v)), nil
	case int16:
		return binary.AppendVarint(append(b, tagInt16), int64(v)), nil
	case int32:
		return binary.AppendVarint(append(b, tagInt32), int64(v)), nil
	case int64:
		return binary.AppendVarint(append(b, tagInt64), v), nil
	case uint:
		return binary.AppendUvarint(append(b, tagUint), uint64(v)), nil
	case uint8:
		return binary.AppendUvarint(append(b, tagUint8), uint64(v)), nil
	case uint16:
		return binary.AppendUvarint(append(b, tagUint16), uint64(v)), nil
	case uint32:
		return binary.AppendUvarint(append(b, tagUint32), uint64(v)), nil
	case uint64:
		return binary.AppendUvarint(append(b, tagUint64), v), nil
	case uintptr:
		return binary.AppendUvarint(append(b, tagUintptr), uint64(v)), nil
	case float32:
		return binary.BigEndian.AppendUint32(append(b, tagFloat32), math.Float32bits(v)), nil
	case float64:
		return binary.BigEndian.AppendUint64(append(b, tagFloat64), math.Float64bits(v)), nil
	case time.Time:
		return appendTime(b, v), nil
	case time.Duration:
		return binary.AppendVarint(append(b, tagDuration), int64(v)), nil
	case []byte:
		return append(appendLen(append(b, tagBytes), len(v), v == nil), v...), nil
	case []string:
		b = appendLen(append(b, tagStrings), len(v), v == nil)
		for _, s := range v {
			b = appendString(b, s)
		}
		return b, nil
	case map[string]string:
		var stack [16]entry[string]
		b = appendLen(append(b, tagStringMap), len(v), v == nil)
		for _, e := range sortedEntries(stack[:0], v) {
			b = appendString(appendString(b, e.key), e.value)
		}
		return b, nil
	case []any:
		if depth >= maxDepth {
			return nil, fmt.Errorf("%T: nested deeper than %d levels", v, maxDepth)
		}
		b = appendLen(append(b, tagAnys), len(v), v == nil)
		for _, elem := range v {
			var err error
			if b, err = appendValue(b, elem, depth+1); err != nil {
				return nil, err
			}
		}
		return b, nil
	case map[string]any:
		if depth >= maxDepth {
			return nil, fmt.Errorf("%T: nested deeper than %d levels", v, maxDepth)
		}
		return appendAnyMap(b, v, depth)
	case Concrete:
		return appendConcrete(b, v)
	default:
		return appendGob(b, v)
	}
}

// appendAnyMap is apart from appendValue to keep its array off every other frame.
func appendAnyMap(b []byte, m map[string]any, depth int) ([]byte, error) {
	var stack [16]entry[any]
	b = appendLen(append(b, tagAnyMap), len(m), m == nil)
	for _, e := range sortedEntries(stack[:0], m) {
		var err error
		if b, err = appendValue(appendString(b, e.key), e.value, depth+1); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendLen(b []byte, n int, isNil bool) []byte {
	if isNil {
		return append(b, 0)
	}
	return binary.AppendUvarint(b, uint64(n)+1)
}

func appendTime(b []byte, t time.Time) []byte {
	utc := t.Location() == time.UTC
	if utc {
		b = append(b, tagTimeUTC)
	} else {
		b = append(b, tagTimeZone)
	}
	b = binary.AppendVarint(b, t.Unix())
	b = binary.AppendUvarint(b, uint64(t.Nanosecond()))
	if !utc {
		_, offset := t.Zone()
		b = binary.AppendVarint(b, int64(offset))
	}
	return b
}

// decoder reads in from pos. After the first failure err is set, pos is at the
// end, and everything reads as zero.
type decoder struct {
	in    string
	pos   int
	share bool // decoded strings may be parts of in
	err   error
}

// whole decodes the value that the rest of the input is.
func (d *decoder) whole() (any, error) {
	v := d.value(0)
	if d.err == nil && d.pos != len(d.in) {
		d.fail()
	}
	if d.err != nil {
		return nil, d.err
	}
	return v, nil
}

func (d *decoder) fail() { d.stop(ErrMalformed) }

func (d *decoder) stop(err error) {
	if d.err == nil {
		d.err = err
	}
	d.pos = len(d.in)
}

func (d *decoder) byte() byte {
	if d.pos >= len(d.in) {
		d.fail()
		return 0
	}
	c := d.in[d.pos]
	d.pos++
	return c
}

// uvarint refuses padded numbers: they would be second encodings of a value.
func (d *decoder) uvarint() uint64 {
	if d.pos < len(d.in) && d.in[d.pos] < 0x80 { // most lengths
		d.pos++
		return uint64(d.in[d.pos-1])
	}
	var x uint64
	for shift := uint(0); shift < 64; shift += 7 {
		c := d.byte()
		if c < 0x80 {
			if shift > 0 && c == 0 || shift == 63 && c > 1 {
				break
			}
			return x | uint64(c)<<shift
		}
		x |= uint64(c&0x7f) << shift
	}
	d.fail()
	return 0
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// uvarintBelow returns a number of at most bits bits.
func (d *decoder) uvarintBelow(bits uint) uint64 {
	u := d.uvarint()
	if bits < 64 && u>>bits != 0 {
		d.fail()
		return 0
	}
	return u
}

// varintBelow returns a signed number that fits bits bits.
func (d *decoder) varintBelow(bits uint) int64 {
	v := d.varint()
	if v<<(64-bits)>>(64-bits) != v {
		d.fail()
		return 0
	}
	return v
}

// count returns n when the rest of the input can hold n elements of at least
// size bytes each.
func (d *decoder) count(n uint64, size int) int {
	if n > uint64((len(d.in)-d.pos)/size) {
		d.fail()
		return 0
	}
	return int(n)
}

// length reads the length of something that may be nil.
func (d *decoder) length(size int) (n int, isNil bool) {
	u := d.uvarint()
	if u == 0 {
		return 0, true
	}
	return d.count(u-1, size), false
}

func (d *decoder) take(n int) string {
	if n > len(d.in)-d.pos {
		d.fail()
		return ""
	}
	s := d.in[d.pos : d.pos+n]
	d.pos += n
	return s
}

func (d *decoder) string() string {
	s := d.take(d.count(d.uvarint(), 1))
	if !d.share {
		s = strings.Clone(s)
	}
	return s
}

// key returns the next key of a map, which must be greater than previous.
func (d *decoder) key(previous string, first bool) string {
	k := d.string()
	if !first && k <= previous {
		d.fail()
	}
	return k
}

func (d *decoder) time(tag byte) time.Time {
	if tag != tagTimeUTC && tag != tagTimeZone {
		d.fail()
		return time.Time{}
	}
	sec, nsec := d.varint(), d.uvarint()
	if nsec >= 1e9 {
		d.fail()
		return time.Time{}
	}
	t := time.Unix(sec, int64(nsec))
	if tag == tagTimeUTC {
		return t.UTC()
	}
	offset := int(d.varintBelow(intBits))
	if _, local := t.Zone(); local == offset {
		return t
	}
	return t.In(time.FixedZone("", offset))
}

const intBits = 32 << (^uint(0) >> 63)

func (d *decoder) value(depth int) any {
	switch tag := d.byte(); tag {
	case tagNil:
		return nil
	case tagFalse:
		return false
	case tagTrue:
		return true
	case tagString:
		return d.string()
	case tagInt:
		return int(d.varintBelow(intBits))
	case tagInt8:
		return int8(d.varintBelow(8))
	case tagInt16:
		return int16(d.varintBelow(16))
	case tagInt32:
		return int32(d.varintBelow(32))
	case tagInt64:
		return d.varint()
	case tagUint:
		return uint(d.uvarintBelow(intBits))
	case tagUint8:
		return uint8(d.uvarintBelow(8))
	case tagUint16:
		return uint16(d.uvarintBelow(16))
	case tagUint32:
		return uint32(d.uvarintBelow(32))
	case tagUint64:
		return d.uvarint()
	case tagUintptr:
		return uintptr(d.uvarintBelow(intBits))
	case tagFloat32:
		if s := d.take(4); d.err == nil {
			return math.Float32frombits(binary.BigEndian.Uint32([]byte(s)))
		}
	case tagFloat64:
		if s := d.take(8); d.err == nil {
			return math.Float64frombits(binary.BigEndian.Uint64([]byte(s)))
		}
	case tagTimeUTC, tagTimeZone:
		return d.time(tag)
	case tagDuration:
		return time.Duration(d.varint())
	case tagBytes:
		n, isNil := d.length(1)
		if isNil {
			return []byte(nil)
		}
		return []byte(d.take(n))
	case tagStrings:
		n, isNil := d.length(1)
		if isNil {
			return []string(nil)
		}
		list := make([]string, 0, min(n, maxPrealloc))
		for i := 0; i < n && d.err == nil; i++ {
			list = append(list, d.string())
		}
		return list
	case tagStringMap:
		n, isNil := d.length(2)
		if isNil {
			return map[string]string(nil)
		}
		m := make(map[string]string, min(n, maxPrealloc))
		var key string
		for i := 0; i < n && d.err == nil; i++ {
			key = d.key(key, i == 0)
			m[key] = d.string()
		}
		return m
	case tagAnys:
		n, isNil := d.length(1)
		if isNil {
			return []any(nil)
		}
		if depth >= maxDepth {
			break
		}
		list := make([]any, 0, min(n, maxPrealloc))
		for i := 0; i < n && d.err == nil; i++ {
			list = append(list, d.value(depth+1))
		}
		return list
	case tagAnyMap:
		n, isNil := d.length(2)
		if isNil {
			return map[string]any(nil)
		}
		if depth >= maxDepth {
			break
		}
		m := make(map[string]any, min(n, maxPrealloc))
		var key string
		for i := 0; i < n && d.err == nil; i++ {
			key = d.key(key, i == 0)
			m[key] = d.value(depth + 1)
		}
		return m
	case tagGob, tagGobPointer:
		stream := d.take(d.count(d.uvarint(), 1))
		if d.err != nil {
			break
		}
		v, err := decodeGob(stream, tag == tagGobPointer)
		if err != nil {
			d.stop(err)
		}
		return v
	case tagConcrete:
		if stream := d.string(); stream != "" {
			return Concrete{stream: stream}
		}
	default:
		d.stop(fmt.Errorf("%w: tag %d", ErrUnknownType, tag))
	}
	d.fail()
	return nil
}
