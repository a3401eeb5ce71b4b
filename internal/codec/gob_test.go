package codec

import (
	"bytes"
	"encoding/gob"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"
)

type (
	userCart struct {
		Items  []string
		Counts map[string]int
		Total  *big.Int
		Extra  any
	}
	namedString  string
	userMap      map[string]int
	userAnyMap   map[string]any
	userList     struct{ Next *userList }
	userTree     []userTree
	userPointer  *userPointer
	stubborn     struct{ Secret string }
	careless     struct{ Secret string }
	refusing     struct{ Secret string }
	clumsy       struct{ Secret string }
	unregistered struct{ A int }
	hidden       struct{ a int }
)

func (stubborn) GobEncode() ([]byte, error)     { return nil, errors.New("cannot encode hunter2") }
func (*stubborn) GobDecode([]byte) error        { return errors.New("cannot decode hunter2") }
func (careless) MarshalBinary() ([]byte, error) { return []byte("hunter2"), nil }
func (*careless) UnmarshalBinary([]byte) error  { panic("hunter2") }
func (refusing) GobEncode() ([]byte, error)     { return []byte("hunter2"), nil }
func (*refusing) GobDecode([]byte) error        { return errors.New("cannot decode hunter2") }
func (clumsy) GobEncode() ([]byte, error)       { panic("hunter2") }
func (*clumsy) GobDecode([]byte) error          { return nil }

func init() {
	gob.Register(time.Time{}) // as scs.New does
	gob.Register(userCart{})
	gob.Register(namedString(""))
	gob.Register(userMap{})
	gob.Register(userAnyMap{})
	gob.Register(&userList{})
	gob.Register(userTree{})
	gob.Register(stubborn{})
	gob.Register(careless{})
	gob.Register(refusing{})
	gob.Register(clumsy{})
}

func TestUserDecodingFails(t *testing.T) {
	for _, v := range []any{careless{}, refusing{}} {
		_, err := Decode(mustEncode(t, v))
		if !errors.Is(err, ErrMalformed) || errors.Is(err, ErrUnknownType) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%T: error %v", v, err)
		}
	}
}

// gob itself allocates whatever a map's length says, before it reads an entry.
func TestGobMapLengthIsChecked(t *testing.T) {
	b := mustEncode(t, userMap{"a": 1})
	at := bytes.LastIndex(b, []byte("\x01\x01a\x02")) // 1 entry, a key of 1 byte, the int 1
	if at < 0 {
		t.Fatalf("no such entry in %q", b)
	}
	b[at] = 0x7f
	if _, err := Decode(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("127 entries in 4 bytes: error %v", err)
	}

	// The same with a length of five bytes, every enclosing length put right.
	const count = "\xfc\x7f\xff\xff\xff"
	stream := mustEncode(t, userMap{"a": 1})[2:] // tag, length
	value := bytes.LastIndex(stream, []byte("\x10\x00"))
	name := stream[value+2 : value+3+int(stream[value+2])]
	at = bytes.LastIndex(stream, []byte("\x01\x01a\x02"))
	id := stream[value+2+len(name) : at-2]
	body := "\x00" + count + "\x01a\x02"
	message := "\x10\x00" + string(name) + string(id) + string(appendGobUint(nil, uint64(len(body)))) + body
	bad := string(stream[:value-1]) + string(appendGobUint(nil, uint64(len(message)))) + message
	var err error
	n := allocatedBy(func() { _, err = decodeGob(bad, false) })
	if !errors.Is(err, errGobMalformed) || n > 64<<10 {
		t.Errorf("error %v, %d bytes allocated", err, n)
	}
	good := strings.Replace(strings.Replace(bad, count, "\x01", 1), string(appendGobUint(nil, uint64(len(message)))), string(appendGobUint(nil, uint64(len(message)-4))), 1)
	good = strings.Replace(good, string(id)+"\x09", string(id)+"\x05", 1)
	if v, err := decodeGob(good, false); err != nil || !reflect.DeepEqual(v, userMap{"a": 1}) {
		t.Errorf("the stream was not hostile by its length alone: %v, %v", v, err)
	}
}

// Whatever gob writes must be walked to its end, or it could not be read again.
func TestGobStreamsAreWalkedWhole(t *testing.T) {
	for _, v := range []any{
		userCart{}, userCart{Extra: &userList{&userList{}}}, userCart{Extra: userTree{{}, {{}}}}, userCart{Extra: namedString("x")},
		userCart{Extra: userCart{Extra: userCart{Extra: userMap{"q": 300, "r": -300}}}},
		userCart{Extra: 1.5, Total: new(big.Int).Lsh(big.NewInt(1), 300)}, userCart{Extra: time.Now().UTC()},
		userMap{}, userTree{}, userTree(nil), namedString(""), []bool{true}, []float32{1.5}, []complex64{1i}, &userList{},
		userAnyMap{"a": userMap{"x": 1}, "b": userAnyMap{"c": []int{1}, "d": userCart{Extra: userTree{}}}},
	} {
		got, err := Decode(mustEncode(t, v))
		if err != nil || reflect.TypeOf(got) != reflect.TypeOf(v) {
			t.Errorf("%#v: got %#v, error %v", v, got, err)
		}
	}
}

// Cycles are searched for in what gob sends, not behind a type's own encoding.
func TestOwnEncodingMayHideACycle(t *testing.T) {
	v := ownCycle{}
	v.Self = &v
	c := mustDecode[Concrete](t, mustEncode(t, Concrete{Value: v}))
	var got ownCycle
	if err := c.Into(&got); err != nil || got.Self != nil {
		t.Errorf("got %v, error %v", got, err)
	}
}

type ownCycle struct{ Self *ownCycle }

func (ownCycle) GobEncode() ([]byte, error) { return []byte("x"), nil }
func (*ownCycle) GobDecode([]byte) error    { return nil }

func TestRegistered(t *testing.T) {
	num := 1
	pointer := &num
	for _, tt := range []struct {
		value any
		want  bool
	}{
		{nil, false},
		{userCart{}, true},
		{&userCart{}, true},
		{(*userCart)(nil), true},
		{userList{}, true}, // by its pointer
		{userCart{Extra: unregistered{}}, true},
		{namedString(""), true},
		{[]int{}, true},
		{1i, true},
		{&num, true},
		{clumsy{}, true},
		{unregistered{}, false},
		{&unregistered{}, false},
		{hidden{}, false},
		{&pointer, false},
		{new(any), false},
		{map[int]int{}, false},
		{func() {}, false},
		{new(userPointer), false},
	} {
		for range 2 { // the second may be answered by the cache
			if got := Registered(tt.value); got != tt.want {
				t.Errorf("%T: %v", tt.value, got)
			}
		}
	}
	type late struct{ A int }
	if Registered(late{}) {
		t.Error("registered before it was")
	}
	gob.Register(late{})
	if !Registered(late{}) {
		t.Error("a registration after the first question does not count")
	}
}

func mustDecode[T any](t testing.TB, b []byte) T {
	t.Helper()
	v, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := v.(T)
	if !ok {
		t.Fatalf("got a %T", v)
	}
	return got
}
