package profile

import (
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"

	"github.com/gatehouse-go/gatehouse/internal/seal"
)

// A value in Redis is a head, which the scripts write, the ID of the secret that it is sealed under,
// and a box. In the box is a byte that says what follows: JSON, or nothing.
const (
	headLen  = 48 // version, end, time of its refresh; 16 bytes each
	isValue  = 'v'
	notFound = 'n'
)

var errUnreadable = errors.New("profile: a value that cannot be read")

// encode returns the JSON of a value, if that can be read again.
func encode[T any](v T) ([]byte, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("profile: the value cannot be encoded: %w", err)
	}
	if _, err := decode[T](text); err != nil {
		return nil, fmt.Errorf("profile: the value's JSON cannot be read again: %v", err)
	}
	return text, nil
}

func decode[T any](text []byte) (v T, err error) {
	if err = json.Unmarshal(text, &v); err != nil {
		var zero T
		return zero, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return v, nil
}

// box returns the box of a place, and what binds a value to where it stands.
func (c *core) box(key seal.ID, at place) (seal.Box, []byte, error) {
	bound := []byte(at.keys[0] + "\x00" + c.form)
	box, err := c.ring.Box(key, "profile value", []byte(at.keys[0]))
	return box, bound, err
}

// pack returns what of a value stands behind its head; text nil: that there is none.
func (c *core) pack(at place, text []byte) ([]byte, error) {
	key := c.ring.Current()
	box, bound, err := c.box(key, at)
	if err != nil {
		return nil, err // the ring has its own key: never
	}
	plain := make([]byte, 0, 1+len(text))
	if text == nil {
		plain = append(plain, notFound)
	} else {
		plain = append(append(plain, isValue), text...)
	}
	return box.Seal(append(make([]byte, 0, len(key)+seal.Overhead+len(plain)), key[:]...), plain, bound), nil
}

// unpack returns the JSON of a value as it stands in Redis, or ErrNotFound.
func (c *core) unpack(at place, raw []byte) ([]byte, error) {
	var key seal.ID
	if len(raw) < headLen+len(key) {
		return nil, errUnreadable
	}
	raw = raw[headLen:]
	copy(key[:], raw)
	box, bound, err := c.box(key, at)
	if err != nil {
		return nil, errUnreadable
	}
	plain, err := box.Open(nil, raw[len(key):], bound)
	switch {
	case err != nil || len(plain) == 0:
		return nil, errUnreadable
	case plain[0] == isValue:
		return plain[1:], nil
	case plain[0] == notFound && len(plain) == 1:
		return nil, ErrNotFound
	}
	return nil, errUnreadable
}

// formOf returns the fingerprint of what JSON sees of a type.
func formOf[T any]() string {
	h := sha256.New()
	describe(h, reflect.TypeFor[T](), map[reflect.Type]int{})
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:6])
}

var marshalers = [...]reflect.Type{
	reflect.TypeFor[json.Marshaler](), reflect.TypeFor[json.Unmarshaler](),
	reflect.TypeFor[encoding.TextMarshaler](), reflect.TypeFor[encoding.TextUnmarshaler](),
}

// describe writes what JSON sees of t. A type with a name, which may contain itself, is described
// once.
func describe(w io.Writer, t reflect.Type, seen map[reflect.Type]int) {
	for _, m := range marshalers {
		if t.Kind() != reflect.Interface && (t.Implements(m) || reflect.PointerTo(t).Implements(m)) {
			fmt.Fprintf(w, "%s.%s,", t.PkgPath(), t) // what it writes cannot be seen
			return
		}
	}
	if n, ok := seen[t]; ok {
		fmt.Fprintf(w, "#%d,", n)
		return
	}
	if t.Name() != "" {
		seen[t] = len(seen)
	}
	fmt.Fprintf(w, "%s,", t.Kind())
	switch t.Kind() {
	case reflect.Map:
		describe(w, t.Key(), seen)
		describe(w, t.Elem(), seen)
	case reflect.Pointer, reflect.Slice:
		describe(w, t.Elem(), seen)
	case reflect.Array:
		fmt.Fprintf(w, "%d,", t.Len())
		describe(w, t.Elem(), seen)
	case reflect.Struct:
		for f := range t.Fields() {
			if f.IsExported() || f.Anonymous {
				fmt.Fprintf(w, "%q %q %v:", f.Name, f.Tag.Get("json"), f.Anonymous)
				describe(w, f.Type, seen)
			}
		}
		fmt.Fprint(w, ";")
	}
}
