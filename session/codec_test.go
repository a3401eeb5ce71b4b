package session

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
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
	userList     struct{ Next *userList }
	userTree     []userTree
	stubborn     struct{ Secret string }
	careless     struct{ Secret string }
	unregistered struct{ A int }
)

func (stubborn) GobEncode() ([]byte, error)     { return nil, errors.New("cannot encode hunter2") }
func (*stubborn) GobDecode([]byte) error        { return errors.New("cannot decode hunter2") }
func (careless) MarshalBinary() ([]byte, error) { return []byte("hunter2"), nil }
func (*careless) UnmarshalBinary([]byte) error  { panic("hunter2") }

func init() {
	gob.Register(time.Time{}) // as scs.New does
	gob.Register(userCart{})
	gob.Register(namedString(""))
	gob.Register(userMap{})
	gob.Register(&userList{})
	gob.Register(userTree{})
	gob.Register(stubborn{})
	gob.Register(careless{})
}

var testDeadline = time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC)

// ordinaryValues is the reference session of the benchmarks.
func ordinaryValues() map[string]any {
	return map[string]any{
		"userID":    "8c1f6f6e-5a54-4d0b-9a83-0f3c2b1f7e11",
		"name":      "Ada Lovelace",
		"csrf":      "kJ8v3yPqXw0Zr5nT2bLhG7mVfC1dSeUaQoIiYxWtR4E",
		"cart":      []string{"sku-10023", "sku-88231", "sku-00417", "sku-55102", "sku-31337"},
		"visits":    42,
		"views":     1729,
		"signedIn":  time.Date(2025, 6, 1, 12, 30, 45, 123456789, time.UTC),
		"confirmed": true,
		"theme":     "dark",
	}
}

func mustEncode(t testing.TB, values map[string]any) []byte {
	t.Helper()
	b, err := BinaryCodec{}.Encode(testDeadline, values)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCodecRoundTrip(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	num := 7
	tests := []struct {
		name  string
		value any
	}{
		{"nil", nil},
		{"false", false},
		{"true", true},
		{"int zero", 0},
		{"int min", math.MinInt},
		{"int max", math.MaxInt},
		{"int8", int8(math.MinInt8)},
		{"int16", int16(math.MinInt16)},
		{"int32", int32(math.MinInt32)},
		{"int64 min", int64(math.MinInt64)},
		{"int64 max", int64(math.MaxInt64)},
		{"uint", uint(math.MaxUint)},
		{"uint8", uint8(math.MaxUint8)},
		{"uint16", uint16(math.MaxUint16)},
		{"uint32", uint32(math.MaxUint32)},
		{"uint64", uint64(math.MaxUint64)},
		{"uintptr", uintptr(99)},
		{"float32", float32(1.5)},
		{"float32 -0", float32(math.Copysign(0, -1))},
		{"float64", math.Pi},
		{"float64 -0", math.Copysign(0, -1)},
		{"+Inf", math.Inf(1)},
		{"-Inf", math.Inf(-1)},
		{"complex64", complex64(complex(1, 2))},
		{"complex128", complex(1, 2)},
		{"string", "hello"},
		{"string empty", ""},
		{"string of any bytes", "\x00\xff\xfe|\n"},
		{"bytes", []byte{0, 1, 255}},
		{"bytes nil", []byte(nil)},
		{"bytes empty", []byte{}},
		{"duration", -3 * time.Hour},
		{"strings", []string{"a", "", "\xff"}},
		{"strings nil", []string(nil)},
		{"strings empty", []string{}},
		{"string map", map[string]string{"b": "2", "a": "1", "": ""}},
		{"string map nil", map[string]string(nil)},
		{"string map empty", map[string]string{}},
		{"anys", []any{1, "a", nil, []any{uint8(2)}, map[string]any{"x": 1.5}}},
		{"anys nil", []any(nil)},
		{"anys empty", []any{}},
		{"any map", map[string]any{"b": []string{"x"}, "a": nil}},
		{"any map nil", map[string]any(nil)},
		{"any map empty", map[string]any{}},
		{"time zero", time.Time{}},
		{"time UTC", time.Date(2024, 2, 29, 23, 59, 59, 999999999, time.UTC)},
		{"time before 1970", time.Date(1815, 12, 10, 0, 0, 0, 1, time.UTC)},
		{"time zone", time.Date(2024, 1, 1, 0, 0, 0, 0, berlin)},
		{"time zone of seconds", time.Date(1890, 1, 1, 0, 0, 0, 0, time.FixedZone("LMT", -1172))},
		{"time local", time.Now()},
		{"gob ints", []int{1, 2}},
		{"gob struct", userCart{Items: []string{"x"}, Counts: map[string]int{"x": 1}, Total: big.NewInt(9)}},
		{"gob struct in an interface", userCart{Extra: userCart{Extra: userMap{"a": 1}}}},
		{"gob struct beside others", userCart{Extra: userTree{nil, userTree{nil}}, Items: []string{"y"}}},
		{"gob pointer to what is registered by value", &userCart{Items: []string{"x"}}},
		{"gob value of what is registered by pointer", userList{Next: &userList{}}},
		{"gob pointer to a basic type", &num},
		{"gob named string", namedString("dark")},
		{"gob named map", userMap{"a": 1, "b": 2}},
		{"gob in containers", []any{namedString("x"), map[string]any{"c": &userCart{}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := mustEncode(t, map[string]any{"key": tt.value})
			deadline, values, err := BinaryCodec{}.Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			if !deadline.Equal(testDeadline) || len(values) != 1 {
				t.Fatalf("deadline %v, %d values", deadline, len(values))
			}
			got, ok := values["key"]
			if !ok {
				t.Fatal("key is missing")
			}
			if reflect.TypeOf(got) != reflect.TypeOf(tt.value) {
				t.Fatalf("got a %T, want a %T", got, tt.value)
			}
			if want, ok := tt.value.(time.Time); ok {
				got := got.(time.Time)
				_, gotOffset := got.Zone()
				_, wantOffset := want.Zone()
				if !got.Equal(want) || gotOffset != wantOffset || got != got.Round(0) {
					t.Fatalf("got %v, want %v", got, want)
				}
			} else if !reflect.DeepEqual(got, tt.value) {
				t.Fatalf("got %#v, want %#v", got, tt.value)
			}
			if again := mustEncode(t, values); !strings.Contains(tt.name, "gob") && !bytes.Equal(again, b) {
				t.Errorf("encodes as %x, then as %x", b, again)
			}
		})
	}
}

func TestCodecKeepsFloatBits(t *testing.T) {
	nan32 := math.Float32frombits(0x7fc12345)
	nan64 := math.Float64frombits(0x7ff8000000abcdef)
	minus := math.Copysign(0, -1)
	_, v, err := BinaryCodec{}.Decode(mustEncode(t, map[string]any{"a": nan32, "b": nan64, "c": minus}))
	if err != nil {
		t.Fatal(err)
	}
	if got := math.Float32bits(v["a"].(float32)); got != math.Float32bits(nan32) {
		t.Errorf("float32 NaN: %x", got)
	}
	if got := math.Float64bits(v["b"].(float64)); got != math.Float64bits(nan64) {
		t.Errorf("float64 NaN: %x", got)
	}
	if !math.Signbit(v["c"].(float64)) {
		t.Error("-0 lost its sign")
	}
}

// The stock codec is the oracle for all that it can carry.
func TestCodecAgreesWithGob(t *testing.T) {
	values := ordinaryValues()
	b, err := scs.GobCodec{}.Encode(testDeadline, values)
	if err != nil {
		t.Fatal(err)
	}
	wantDeadline, want, err := scs.GobCodec{}.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	gotDeadline, got, err := BinaryCodec{}.Decode(mustEncode(t, values))
	if err != nil {
		t.Fatal(err)
	}
	if !gotDeadline.Equal(wantDeadline) || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, gob gives %v", got, want)
	}
}

func TestCodecIsDeterministic(t *testing.T) {
	values := func(reverse bool) map[string]any {
		outer, inner, text := map[string]any{}, map[string]any{}, map[string]string{}
		for i := range 100 {
			if reverse {
				i = 99 - i
			}
			k := fmt.Sprintf("key%d", i)
			outer[k], inner[k], text[k] = i, i, k
		}
		outer["inner"], outer["text"] = inner, []any{text}
		return outer
	}
	want := mustEncode(t, values(false))
	for i := range 20 {
		if got := mustEncode(t, values(i%2 == 0)); !bytes.Equal(got, want) {
			t.Fatal("the same values gave other bytes")
		}
	}
}

// What is stored must stay readable by later versions.
func TestCodecFormatIsStable(t *testing.T) {
	const want = "01" + "12e49bc6ae0e9506" + "03" + // version, deadline, pairs
		"0161" + "0354" + // a: 42
		"0162" + "160202686902796f" + // b: {"hi": "yo"}
		"0163" + "1704" + "00" + "10027879" + "110301ff" // c: [nil, "xy", {1, 255}]
	got := fmt.Sprintf("%x", mustEncode(t, map[string]any{
		"c": []any{nil, "xy", []byte{1, 255}},
		"b": map[string]string{"hi": "yo"},
		"a": 42,
	}))
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestCodecNilValuesDecodeWritable(t *testing.T) {
	_, values, err := BinaryCodec{}.Decode(mustEncode(t, nil))
	if err != nil || values == nil {
		t.Fatalf("values %v, error %v", values, err)
	}
}

func TestCodecDoesNotKeepItsInput(t *testing.T) {
	want := map[string]any{"s": "text", "b": []byte("bytes"), "l": []string{"list"}}
	b := mustEncode(t, want)
	_, got, err := BinaryCodec{}.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 'X'
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("changed with the input: %v", got)
	}
}

func nestedValue(levels int) any {
	var v any = "bottom"
	for i := range levels {
		if i%2 == 0 {
			v = []any{v}
		} else {
			v = map[string]any{"k": v}
		}
	}
	return v
}

func TestCodecEncodeErrorsNameTheKey(t *testing.T) {
	var cyclic []any
	cyclic = append(cyclic, nil)
	cyclic[0] = cyclic
	num := 1
	pointer := &num
	deep := &userList{}
	for range maxGobDepth + 10 {
		deep = &userList{deep}
	}
	tests := []struct {
		name  string
		value any
		want  string
	}{
		{"func", func() {}, "func()"},
		{"channel", make(chan int), "chan int"},
		{"unregistered struct", unregistered{1}, "unregistered"},
		{"unregistered in a list", []any{1, unregistered{2}}, "unregistered"},
		{"unregistered map", map[int]string{}, "map[int]string"},
		{"nil pointer", (*userCart)(nil), "nil pointer"},
		{"pointer to a pointer", &pointer, "**int"},
		{"too deep", nestedValue(maxDepth + 1), "deeper"},
		{"too deep for gob", deep, "deeper"},
		{"cyclic", cyclic, "deeper"},
		{"its own encoding fails", stubborn{"hunter2"}, "stubborn"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := BinaryCodec{}.Encode(testDeadline, map[string]any{"a": 1, "the key": tt.value})
			var e *EncodeError
			if !errors.As(err, &e) || e.Key != "the key" {
				t.Fatalf("error %v", err)
			}
			if text := err.Error(); !strings.HasPrefix(text, `session: value of "the key": `) ||
				!strings.Contains(text, tt.want) || strings.Contains(text, "hunter2") {
				t.Errorf("error %q", text)
			}
		})
	}
	mustEncode(t, map[string]any{"as deep as allowed": nestedValue(maxDepth)})
}

func TestCodecUserDecodingFails(t *testing.T) {
	b := mustEncode(t, map[string]any{"the key": careless{}})
	_, _, err := BinaryCodec{}.Decode(b)
	if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), `"the key"`) ||
		strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v", err)
	}
}

// encodedAs builds an encoding by hand.
func encodedAs(parts ...any) []byte {
	b := appendTime([]byte{codecVersion}, testDeadline)
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case string:
			b = append(b, p...)
		}
	}
	return b
}

const hugeLength = "\xff\xff\xff\xff\x7f" // 2³⁵-1 as a varint

func hostileRecords(t testing.TB) map[string][]byte {
	tests := map[string][]byte{
		"empty":                  {},
		"version 0":              {0},
		"unknown version":        append([]byte{codecVersion + 1}, mustEncode(t, nil)[1:]...),
		"version alone":          {codecVersion},
		"deadline is no time":    {codecVersion, tagNil, 0},
		"nanoseconds":            {codecVersion, tagTimeUTC, 0, 0x80, 0x94, 0xeb, 0xdc, 0x03, 0},
		"trailing byte":          encodedAs(0, 0),
		"number of pairs":        encodedAs(hugeLength),
		"padded number":          encodedAs("\x80\x00"),
		"number of 65 bits":      encodedAs("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
		"endless number":         encodedAs(strings.Repeat("\xff", 20)),
		"key length":             encodedAs(1, hugeLength),
		"duplicate key":          encodedAs(2, 1, "a", tagNil, 1, "a", tagNil),
		"keys out of order":      encodedAs(2, 1, "b", tagNil, 1, "a", tagNil),
		"missing value":          encodedAs(1, 1, "a"),
		"unknown tag":            encodedAs(1, 1, "a", 200),
		"int8 of 9 bits":         encodedAs(1, 1, "a", tagInt8, "\x80\x02"),
		"uint8 of 9 bits":        encodedAs(1, 1, "a", tagUint8, "\x80\x02"),
		"float cut short":        encodedAs(1, 1, "a", tagFloat64, "1234"),
		"string length":          encodedAs(1, 1, "a", tagString, hugeLength),
		"bytes length":           encodedAs(1, 1, "a", tagBytes, hugeLength),
		"list length":            encodedAs(1, 1, "a", tagStrings, hugeLength),
		"string map length":      encodedAs(1, 1, "a", tagStringMap, hugeLength),
		"any list length":        encodedAs(1, 1, "a", tagAnys, hugeLength),
		"any map length":         encodedAs(1, 1, "a", tagAnyMap, hugeLength),
		"duplicate key within":   encodedAs(1, 1, "a", tagStringMap, 3, 1, "x", 0, 1, "x", 0),
		"gob length":             encodedAs(1, 1, "a", tagGob, hugeLength),
		"gob empty":              encodedAs(1, 1, "a", tagGob, 0),
		"gob nil":                encodedAs(1, 1, "a", tagGob, 4, "\x03\x10\x00\x00"),
		"gob of an unknown type": encodedAs(1, 1, "a", tagGob, 11, "\x0a\x10\x00\x04nope\x04\x01\x00\x02"),
		"nested without end":     encodedAs(1, 1, "a", strings.Repeat(string([]byte{tagAnys, 2}), 100_000)),
	}
	// Containers that each claim all that is left.
	var claims []byte
	rest := make([]byte, 1<<16)
	for range maxDepth + 1 {
		claims = append(claims, tagAnys, 0xff, 0xff, 0x03)
	}
	tests["nested claims"] = encodedAs(1, 1, "a", string(claims), string(rest))
	return tests
}

func allocatedBy(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestCodecHostileInput(t *testing.T) {
	for name, b := range hostileRecords(t) {
		t.Run(name, func(t *testing.T) {
			var err error
			n := allocatedBy(func() { _, _, err = BinaryCodec{}.Decode(b) })
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("error %v", err)
			}
			if limit := uint64(64<<10 + 4*len(b)); n > limit {
				t.Errorf("allocated %d bytes for an input of %d", n, len(b))
			}
		})
	}
}

func TestCodecTruncated(t *testing.T) {
	b := mustEncode(t, map[string]any{"a": ordinaryValues(), "b": userCart{Counts: map[string]int{"x": 1}}, "c": testDeadline.In(time.FixedZone("", 60))})
	for n := range b {
		if _, _, err := (BinaryCodec{}).Decode(b[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(b), err)
		}
	}
}

// gob itself allocates whatever a map's length says, before it reads an entry.
func TestCodecGobMapLengthIsChecked(t *testing.T) {
	b := mustEncode(t, map[string]any{"w": userMap{"a": 1}})
	at := bytes.LastIndex(b, []byte("\x01\x01a\x02")) // 1 entry, a key of 1 byte, the int 1
	if at < 0 {
		t.Fatalf("no such entry in %q", b)
	}
	b[at] = 0x7f
	if _, _, err := (BinaryCodec{}).Decode(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("127 entries in 4 bytes: error %v", err)
	}

	// The same with a length of five bytes, every enclosing length put right.
	const count = "\xfc\x7f\xff\xff\xff"
	stream, err := appendGob(nil, userMap{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	stream = stream[2:] // tag, length
	value := bytes.LastIndex(stream, []byte("\x10\x00"))
	name := stream[value+2 : value+3+int(stream[value+2])]
	at = bytes.LastIndex(stream, []byte("\x01\x01a\x02"))
	id := stream[value+2+len(name) : at-2]
	body := "\x00" + count + "\x01a\x02"
	message := "\x10\x00" + string(name) + string(id) + string(appendGobUint(nil, uint64(len(body)))) + body
	bad := string(stream[:value-1]) + string(appendGobUint(nil, uint64(len(message)))) + message
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
func TestCodecGobStreamsAreWalkedWhole(t *testing.T) {
	for _, v := range []any{
		userCart{}, userCart{Extra: &userList{&userList{}}}, userCart{Extra: userTree{{}, {{}}}}, userCart{Extra: namedString("x")},
		userCart{Extra: userCart{Extra: userCart{Extra: userMap{"q": 300, "r": -300}}}},
		userCart{Extra: 1.5, Total: new(big.Int).Lsh(big.NewInt(1), 300)}, userCart{Extra: testDeadline},
		userMap{}, userTree{}, userTree(nil), namedString(""), []bool{true}, []float32{1.5}, []complex64{1i}, &userList{},
	} {
		b, err := appendGob(nil, v)
		if err != nil {
			t.Errorf("%#v: %v", v, err)
			continue
		}
		d := decoder{in: string(b)}
		if got := d.value(0); d.err != nil || reflect.TypeOf(got) != reflect.TypeOf(v) {
			t.Errorf("%#v: got %#v, error %v", v, got, d.err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range hostileRecords(f) {
		if len(b) < 1<<10 {
			f.Add(b)
		}
	}
	f.Add(mustEncode(f, ordinaryValues()))
	f.Add(mustEncode(f, map[string]any{"a": nestedValue(5), "b": map[string]string{"x": "y"}, "c": 1.5, "d": []byte{}}))
	f.Add(mustEncode(f, map[string]any{"c": &userCart{Items: []string{"x"}, Counts: map[string]int{"y": 1}}}))
	f.Add(mustEncode(f, map[string]any{"c": userCart{Extra: userMap{"a": 1}}, "n": userList{&userList{}}, "t": userTree{{}, {{}}}}))
	f.Add(mustEncode(f, map[string]any{"g": []int{1, 2}, "h": namedString("dark"), "i": complex(1, 2)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		deadline, values, err := BinaryCodec{}.Decode(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v", err)
			}
			return
		}
		first, err := BinaryCodec{}.Encode(deadline, values)
		if err != nil {
			t.Fatalf("decoded, but: %v", err)
		}
		usesGob := holdsGob(values)
		if !usesGob && !bytes.Equal(first, b) {
			t.Fatalf("decoded %x, which encodes as %x", b, first)
		}
		deadline, values, err = BinaryCodec{}.Decode(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := BinaryCodec{}.Encode(deadline, values)
		if err != nil {
			t.Fatal(err)
		}
		if !usesGob && !bytes.Equal(first, second) {
			t.Fatalf("encodes as %x, then as %x", first, second)
		}
	})
}

// holdsGob reports whether v could have been, or would be, written by gob.
func holdsGob(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, elem := range v {
			if holdsGob(elem) {
				return true
			}
		}
		return false
	case []any:
		for _, elem := range v {
			if holdsGob(elem) {
				return true
			}
		}
		return false
	}
	b, _ := appendValue(nil, v, 0)
	return len(b) == 0 || b[0] == tagGob || b[0] == tagGobPointer
}

// valueBuilder turns fuzz bytes into values.
type valueBuilder struct{ in []byte }

func (s *valueBuilder) byte() byte {
	if len(s.in) == 0 {
		return 0
	}
	c := s.in[0]
	s.in = s.in[1:]
	return c
}

func (s *valueBuilder) bits() (u uint64) {
	for range 8 {
		u = u<<8 | uint64(s.byte())
	}
	return u
}

func (s *valueBuilder) text() string {
	n := min(int(s.byte())%32, len(s.in))
	text := string(s.in[:n])
	s.in = s.in[n:]
	return text
}

func (s *valueBuilder) value(depth int) any {
	kind := s.byte() % 26
	if depth > 5 && kind >= 20 {
		kind = 0
	}
	switch kind {
	case 1:
		return s.byte()%2 == 0
	case 2:
		return int(s.bits())
	case 3:
		return int8(s.bits())
	case 4:
		return int16(s.bits())
	case 5:
		return int32(s.bits())
	case 6:
		return int64(s.bits())
	case 7:
		return uint(s.bits())
	case 8:
		return uint8(s.bits())
	case 9:
		return uint16(s.bits())
	case 10:
		return uint32(s.bits())
	case 11:
		return s.bits()
	case 12:
		return math.Float32frombits(uint32(s.bits()))
	case 13:
		return math.Float64frombits(s.bits())
	case 14:
		return s.text()
	case 15:
		return []byte(s.text())
	case 16:
		return time.Unix(int64(s.bits()), int64(s.bits()%1e9)).UTC()
	case 17:
		return time.Unix(int64(int32(s.bits())), 0).In(time.FixedZone("", int(int16(s.bits()))))
	case 18:
		return time.Duration(s.bits())
	case 19:
		return []string(nil)
	case 20:
		list := []string{}
		for range s.byte() % 8 {
			list = append(list, s.text())
		}
		return list
	case 21:
		m := map[string]string{}
		for range s.byte() % 8 {
			m[s.text()] = s.text()
		}
		return m
	case 22:
		list := []any{}
		for range s.byte() % 8 {
			list = append(list, s.value(depth+1))
		}
		return list
	case 23:
		m := map[string]any{}
		for range s.byte() % 8 {
			m[s.text()] = s.value(depth + 1)
		}
		return m
	case 24:
		return namedString(s.text())
	case 25:
		return uintptr(s.bits())
	}
	return nil
}

// sameValue is reflect.DeepEqual, except that a NaN equals the same NaN and that
// times are compared by instant and offset.
func sameValue(a, b any) bool {
	if reflect.TypeOf(a) != reflect.TypeOf(b) {
		return false
	}
	switch a := a.(type) {
	case float32:
		return math.Float32bits(a) == math.Float32bits(b.(float32))
	case float64:
		return math.Float64bits(a) == math.Float64bits(b.(float64))
	case time.Time:
		_, x := a.Zone()
		_, y := b.(time.Time).Zone()
		return x == y && a.Equal(b.(time.Time))
	case []any:
		b := b.([]any)
		if len(a) != len(b) || (a == nil) != (b == nil) {
			return false
		}
		for i := range a {
			if !sameValue(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b := b.(map[string]any)
		if len(a) != len(b) || (a == nil) != (b == nil) {
			return false
		}
		for k := range a {
			if v, ok := b[k]; !ok || !sameValue(a[k], v) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("\x03\x01a\x0e\x05hello\x01b\x16\x02\x0e\x01x\x01c\x17\x01\x01k\x0d12345678"))
	for kind := range byte(26) {
		f.Add([]byte{2, 1, 'a', kind, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 'b', kind, 0xff, 0xfe})
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := valueBuilder{b}
		values := map[string]any{}
		for range s.byte() % 16 {
			values[s.text()] = s.value(0)
		}
		first := mustEncode(t, values)
		_, got, err := BinaryCodec{}.Decode(first)
		if err != nil {
			t.Fatal(err)
		}
		if !sameValue(got, values) {
			t.Fatalf("got %#v, want %#v", got, values)
		}
		if second := mustEncode(t, got); !bytes.Equal(first, second) {
			t.Fatalf("encodes as %x, then as %x", first, second)
		}
	})
}

func BenchmarkCodec(b *testing.B) {
	for _, c := range []struct {
		name  string
		codec scs.Codec
	}{
		{"binary", BinaryCodec{}},
		{"gob", scs.GobCodec{}},
	} {
		values := ordinaryValues()
		encoded, err := c.codec.Encode(testDeadline, values)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(c.name+"/encode", func(b *testing.B) {
			b.ReportAllocs()
			b.ReportMetric(float64(len(encoded)), "B")
			for b.Loop() {
				if _, err := c.codec.Encode(testDeadline, values); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(c.name+"/decode", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := c.codec.Decode(encoded); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
