package codec

import (
	"encoding"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
)

var errGobMalformed = fmt.Errorf("%w: damaged gob stream", ErrMalformed)

// appendGob appends v's tag, the length of its stream and the stream, which holds
// v as an interface value.
func appendGob(b []byte, v any) ([]byte, error) {
	tag := byte(tagGob)
	if t := reflect.TypeOf(v); t.Kind() == reflect.Pointer {
		if tag = tagGobPointer; t.Elem().Kind() == reflect.Pointer {
			return nil, fmt.Errorf("%T: pointer to a pointer", v)
		}
	}
	stream, err := encodeGob(&v)
	if err != nil {
		return nil, fmt.Errorf("%T: %w", v, err)
	}
	return append(binary.AppendUvarint(append(b, tag), uint64(len(stream))), stream...), nil
}

// encodeGob returns the plain stream of what an Encoder makes of e.
func encodeGob(e any) (_ []byte, err error) {
	// A panic in a GobEncode would otherwise end each request of this session.
	defer func() {
		if recover() != nil {
			err = errors.New("panic while encoding")
		}
	}()
	if !finite(reflect.ValueOf(e), 0) {
		return nil, errGobTooDeep
	}
	var mixed strings.Builder
	if err := gob.NewEncoder(&mixed).Encode(e); err != nil {
		return nil, gobError(err)
	}
	plain, ok := plainGob(mixed.String())
	if !ok {
		return nil, errGobTooDeep
	}
	return plain, nil
}

var errGobTooDeep = fmt.Errorf("nested deeper than %d levels", maxGobDepth)

// finite reports whether v is nested no deeper than gob can follow. An Encoder
// follows a value that contains itself until the stack overflows, which ends the
// process.
func finite(v reflect.Value, depth int) bool {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface, reflect.Struct, reflect.Map, reflect.Slice, reflect.Array:
	default:
		return true
	}
	// The exact limit is for plainGob: pointers do not count there.
	if depth > 4*maxGobDepth {
		return false
	}
	depth++
	t := v.Type()
	switch t.Kind() {
	case reflect.Pointer, reflect.Interface:
		return v.IsNil() || finite(v.Elem(), depth)
	case reflect.Slice, reflect.Array:
		if flat(t.Elem()) {
			return true
		}
	case reflect.Map:
		if flat(t.Elem()) && flat(t.Key()) {
			return true
		}
	}
	if encodesItself(t) || encodesItself(reflect.PointerTo(t)) {
		return true
	}
	switch t.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			// Unexported fields are not sent.
			if f := v.Field(i); f.CanInterface() && !finite(f, depth) {
				return false
			}
		}
	case reflect.Map:
		for entries := v.MapRange(); entries.Next(); {
			if !finite(entries.Key(), depth) || !finite(entries.Value(), depth) {
				return false
			}
		}
	default:
		for i := range v.Len() {
			if !finite(v.Index(i), depth) {
				return false
			}
		}
	}
	return true
}

// flat reports whether values of type t contain no others.
func flat(t reflect.Type) bool {
	return t.Kind() <= reflect.Complex128 || t.Kind() == reflect.String
}

var (
	gobEncoder      = reflect.TypeFor[gob.GobEncoder]()
	binaryMarshaler = reflect.TypeFor[encoding.BinaryMarshaler]()
)

// encodesItself reports whether gob leaves the encoding of a t to its methods.
func encodesItself(t reflect.Type) bool {
	return t.Implements(gobEncoder) || t.Implements(binaryMarshaler)
}

// decodeGob returns the interface value of stream, as a pointer if asked to: gob
// itself gives T or *T depending on which was registered.
func decodeGob(stream string, pointer bool) (any, error) {
	if id, ok := walkGob(stream); !ok || id != gobInterface {
		return nil, errGobMalformed
	}
	var v any
	if err := decodeWalked(stream, &v); err != nil {
		return nil, err
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

// decodeWalked decodes a stream that walkGob approved into *p. What gob itself
// refuses then is a type: the bytes are sound.
func decodeWalked(stream string, p any) (err error) {
	// Types decode themselves, perhaps carelessly.
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("%w: panic while decoding", ErrMalformed)
		}
	}()
	err = gob.NewDecoder(strings.NewReader(stream)).Decode(p)
	if err == nil {
		return nil
	}
	own := gobError(err)
	if text := err.Error(); own == err || strings.HasPrefix(text, `value for "`) && strings.HasSuffix(text, `" out of range`) {
		return fmt.Errorf("%w: %w", ErrUnknownType, own)
	}
	return fmt.Errorf("%w: %w", ErrMalformed, own)
}

// gobError keeps gob's own words, which name types only. What the methods of a
// user's type say may hold the value, so it stays out of the text.
func gobError(err error) error {
	if text := err.Error(); strings.HasPrefix(text, "gob: ") || strings.HasPrefix(text, "gob NewTypeObject can't handle type: ") {
		return err
	}
	return &hiddenError{err}
}

type hiddenError struct{ cause error }

func (e *hiddenError) Error() string { return "refused by encoding/gob or by the type's own methods" }
func (e *hiddenError) Unwrap() error { return e.cause }

// registered holds the types that are known to be registered with gob. There is
// no way to unregister one.
var registered sync.Map // of reflect.Type

// Registered reports whether v's type is registered with [gob.Register], so that
// Encode and Decode take it. It may call v's type's own encoding on a zero value.
// It is safe for concurrent use.
func Registered(v any) bool {
	t := reflect.TypeOf(v)
	if t == nil {
		return false
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() == reflect.Pointer || t.Kind() == reflect.Interface {
		return false
	}
	if _, ok := registered.Load(t); ok {
		return true
	}
	if !probeRegistered(t) {
		return false
	}
	registered.Store(t, nil)
	return true
}

// probeRegistered encodes a zero t: gob has no other way to ask. Whether a type
// is registered is the first that an Encoder looks at.
func probeRegistered(t reflect.Type) (yes bool) {
	defer func() {
		if recover() != nil {
			yes = true // the panic of t's own encoding
		}
	}()
	zero := reflect.Zero(t).Interface()
	err := gob.NewEncoder(io.Discard).Encode(&zero)
	return err == nil || !strings.HasPrefix(err.Error(), "gob: type not registered for interface: ")
}
