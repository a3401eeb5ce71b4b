package codec

import (
	"errors"
	"fmt"
	"reflect"
)

// Concrete is a value whose type is known to its reader, so that it needs no
// registration with gob. [Encode] takes one with Value set. [Decode] returns one
// whose Value is nil and which keeps the encoded form for [Concrete.Into]. The
// zero Concrete holds nothing and cannot be encoded.
type Concrete struct {
	Value any

	stream string // plain gob of a concrete value, not walked yet; "" if Value is set
}

var errNoPointer = errors.New("session: Concrete.Into needs a pointer that is not nil")

// Into sets *p to the value. A Value of p's own element type is assigned, so that
// slices and maps are shared with it. Anything else goes by gob, which matches
// the fields of structs by name.
//
// Errors wrap [ErrUnknownType] if the value does not fit *p, and [ErrMalformed]
// if the bytes are damaged or the type's own decoding fails. *p is then as
// before.
func (c Concrete) Into(p any) error {
	target := reflect.ValueOf(p)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return errNoPointer
	}
	target = target.Elem()
	stream := c.stream
	if c.Value != nil {
		if v := reflect.ValueOf(c.Value); v.Type().AssignableTo(target.Type()) {
			target.Set(v)
			return nil
		}
		b, err := encodeConcrete(c.Value)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnknownType, err)
		}
		stream = string(b)
	}
	if _, ok := walkGob(stream); !ok {
		return errGobMalformed
	}
	// gob leaves fields alone that are zero in the stream.
	fresh := reflect.New(target.Type())
	if err := decodeWalked(stream, fresh.Interface()); err != nil {
		return err
	}
	target.Set(fresh.Elem())
	return nil
}

// appendConcrete appends c's tag, the length of its stream and the stream.
func appendConcrete(b []byte, c Concrete) ([]byte, error) {
	stream := c.stream
	if c.Value != nil || stream == "" {
		s, err := encodeConcrete(c.Value)
		if err != nil {
			return nil, fmt.Errorf("%T: %w", c.Value, err)
		}
		stream = string(s)
	}
	return appendString(append(b, tagConcrete), stream), nil
}

func encodeConcrete(v any) ([]byte, error) {
	if v == nil {
		return nil, errors.New("no value")
	}
	if rv := reflect.ValueOf(v); rv.Kind() == reflect.Pointer && rv.IsNil() {
		return nil, errors.New("nil pointer")
	}
	return encodeGob(v)
}
