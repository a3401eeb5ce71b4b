package codec

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

type (
	profile struct {
		Name  string
		Tags  []string
		Seen  time.Time
		Extra any
		Next  *profile
	}
	profileBefore struct { // as an older release had it
		Name string
		Old  map[string]any
	}
)

// stored returns the Concrete that a later request finds.
func stored(t testing.TB, v any) Concrete {
	t.Helper()
	return mustDecode[Concrete](t, mustEncode(t, Concrete{Value: v}))
}

func TestConcreteNeedsNoRegistration(t *testing.T) {
	want := profile{
		Name: "Ada", Tags: []string{"a"}, Seen: time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC),
		Extra: userCart{Extra: userMap{"x": 1}}, Next: &profile{Name: "Charles"},
	}
	for name, c := range map[string]Concrete{
		"stored":         stored(t, want),
		"stored pointer": stored(t, &want),
		"stored in a list": mustDecode[[]any](t, mustEncode(t, []any{
			strings.Repeat("x", 2*shareBelow), Concrete{Value: want},
		}))[1].(Concrete),
		"not stored":         {Value: want},
		"not stored pointer": {Value: &want},
	} {
		t.Run(name, func(t *testing.T) {
			got := profile{Name: "before", Tags: []string{"x", "y"}}
			if err := c.Into(&got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, error %v", got, err)
			}
			var pointer *profile
			if err := c.Into(&pointer); err != nil || !reflect.DeepEqual(*pointer, want) {
				t.Errorf("got %+v, error %v", pointer, err)
			}
			var some profileBefore
			if err := c.Into(&some); err != nil || some.Name != "Ada" {
				t.Errorf("got %+v, error %v", some, err)
			}
			again := mustDecode[Concrete](t, mustEncode(t, c))
			if err := again.Into(&got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("stored again: got %+v, error %v", got, err)
			}
		})
	}
}

func TestConcreteOfAnyKind(t *testing.T) {
	for _, want := range []any{
		1, "x", 1.5, 1i, []byte("b"), []string{"s"}, map[int]string{1: "x"}, [2]int{1, 2},
		unregistered{}, profile{}, namedString("n"), time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC), userTree{nil, {nil}},
	} {
		c := stored(t, want)
		p := reflect.New(reflect.TypeOf(want))
		if err := c.Into(p.Interface()); err != nil || !reflect.DeepEqual(p.Elem().Interface(), want) {
			t.Errorf("%T: got %v, error %v", want, p.Elem(), err)
		}
	}
}

// A field that this release lacks may hold anything, of types that it lacks too.
func TestConcreteSkipsFieldsThatAreGone(t *testing.T) {
	c := stored(t, struct {
		Gone any
		Name string
		More map[string]any
	}{userAnyMap{"a": userCart{Extra: userMap{"x": 1}}}, "Ada", map[string]any{"b": userTree{}}})
	var got profile
	if err := c.Into(&got); err != nil || got.Name != "Ada" {
		t.Errorf("got %+v, error %v", got, err)
	}
}

func TestConcreteIntoErrors(t *testing.T) {
	num := 7
	tests := []struct {
		name string
		c    Concrete
		p    any
		want error
	}{
		{"no pointer", stored(t, 1), 1, errNoPointer},
		{"nil", stored(t, 1), nil, errNoPointer},
		{"nil pointer", stored(t, 1), (*int)(nil), errNoPointer},
		{"zero", Concrete{}, &num, ErrMalformed},
		{"other type", stored(t, "x"), &num, ErrUnknownType},
		{"other type, not stored", Concrete{Value: "x"}, &num, ErrUnknownType},
		{"struct into a number", stored(t, profile{Name: "hunter2"}), &num, ErrUnknownType},
		{"no common field", stored(t, unregistered{1}), &profile{}, ErrUnknownType},
		{"number out of range", stored(t, 1000), new(int8), ErrUnknownType},
		{"into an interface", stored(t, 1), new(any), ErrUnknownType},
		{"into a func", stored(t, 1), new(func()), ErrUnknownType},
		{"not encodable, not stored", Concrete{Value: func() {}}, &num, ErrUnknownType},
		{"its own decoding fails", stored(t, refusing{}), &refusing{}, ErrMalformed},
		{"its own decoding panics", stored(t, careless{}), &careless{}, ErrMalformed},
		{"unregistered inside", Concrete{stream: strings.ReplaceAll(stored(t, profile{Extra: namedString("")}).stream, "namedString", "nameIsWrong")}, &profile{}, ErrUnknownType},
		{"damaged", Concrete{stream: "\x03\x04\x00"}, &num, ErrMalformed},
		{"map length", Concrete{stream: strings.Replace(stored(t, map[string]int{"a": 1}).stream, "\x01\x01a\x02", "\x7f\x01a\x02", 1)}, &map[string]int{}, ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.c.Into(tt.p)
			if !errors.Is(err, tt.want) || errors.Is(err, ErrMalformed) && errors.Is(err, ErrUnknownType) {
				t.Errorf("error %v", err)
			} else if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the value shows: %v", err)
			}
		})
	}
	if num != 7 {
		t.Errorf("changed to %d", num)
	}
}

func TestConcreteDamagedDoesNotPanic(t *testing.T) {
	b := mustEncode(t, Concrete{Value: profile{Name: "Ada", Tags: []string{"a"}, Extra: userMap{"x": 1}}})
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if v, err := Decode(b); err == nil {
				var got profile
				if c, ok := v.(Concrete); ok {
					_ = c.Into(&got)
				}
			}
			b[i] ^= 1 << bit
		}
	}
}
