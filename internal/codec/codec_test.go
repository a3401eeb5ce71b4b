package codec

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

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

func mustEncode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := Encode("key", v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type namedValue struct {
	name  string
	value any
}

// allTypes has a value of each type that comes back as itself.
func allTypes() []namedValue {
	berlin := time.FixedZone("CET", 3600)
	num := 7
	return []namedValue{
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
}

func TestValuesComeBackWithTheirType(t *testing.T) {
	for _, tt := range allTypes() {
		t.Run(tt.name, func(t *testing.T) {
			b := mustEncode(t, tt.value)
			got, err := Decode(b)
			if err != nil {
				t.Fatal(err)
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
			if again := mustEncode(t, got); !strings.Contains(tt.name, "gob") && !bytes.Equal(again, b) {
				t.Errorf("encodes as %x, then as %x", b, again)
			}
		})
	}
}

func TestNativeIsWhatNeedsNoGob(t *testing.T) {
	for _, tt := range append(allTypes(), namedValue{"Concrete", Concrete{Value: 1}}) {
		tag := mustEncode(t, tt.value)[0]
		if got, want := Native(tt.value), tag != tagGob && tag != tagGobPointer; got != want {
			t.Errorf("%s: %v, but the tag is %d", tt.name, got, tag)
		}
	}
}

func TestFloatsKeepTheirBits(t *testing.T) {
	nan32 := math.Float32frombits(0x7fc12345)
	nan64 := math.Float64frombits(0x7ff8000000abcdef)
	v, err := Decode(mustEncode(t, []any{nan32, nan64, math.Copysign(0, -1)}))
	if err != nil {
		t.Fatal(err)
	}
	got := v.([]any)
	if got := math.Float32bits(got[0].(float32)); got != math.Float32bits(nan32) {
		t.Errorf("float32 NaN: %x", got)
	}
	if got := math.Float64bits(got[1].(float64)); got != math.Float64bits(nan64) {
		t.Errorf("float64 NaN: %x", got)
	}
	if !math.Signbit(got[2].(float64)) {
		t.Error("-0 lost its sign")
	}
}

// What is stored must stay readable by later versions.
func TestEncodingIsStable(t *testing.T) {
	for _, tt := range []struct {
		value any
		want  string
	}{
		{42, "0354"},
		{map[string]string{"hi": "yo"}, "160202686902796f"},
		{[]any{nil, "xy", []byte{1, 255}}, "1704" + "00" + "10027879" + "110301ff"},
		{time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC), "12e49bc6ae0e9506"},
		{1.5, "0f3ff8000000000000"},
		{Concrete{Value: "x"}, "1b05" + "04" + "0c00" + "0178"},
	} {
		if got := fmt.Sprintf("%x", mustEncode(t, tt.value)); got != tt.want {
			t.Errorf("%v: got %s, want %s", tt.value, got, tt.want)
		}
	}
}

func TestMapOrderDoesNotShow(t *testing.T) {
	values := func(reverse bool) any {
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
			t.Fatal("the same value gave other bytes")
		}
	}
}

func TestDecodeDoesNotKeepItsInput(t *testing.T) {
	want := map[string]any{"s": "text", "b": []byte("bytes"), "l": []string{"list"}}
	b := mustEncode(t, want)
	got, err := Decode(b)
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

// A short string must not keep a large value alive.
func TestShortStringsDoNotKeepLargeValues(t *testing.T) {
	b := mustEncode(t, []string{strings.Repeat("x", 1<<20), "short"})
	var short [64]string
	n := heldBy(func() {
		for i := range short {
			v, err := Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			short[i] = v.([]string)[1]
		}
	})
	if n > 8<<20 {
		t.Errorf("%d strings of 5 bytes hold %d bytes", len(short), n)
	}
	runtime.KeepAlive(short)
}

func heldBy(f func()) int64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.GC()
	runtime.ReadMemStats(&after)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
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

func TestEncodeErrorsNameKeyAndType(t *testing.T) {
	var cyclic []any
	cyclic = append(cyclic, nil)
	cyclic[0] = cyclic
	num := 1
	pointer := &num
	deep := &userList{}
	for range maxGobDepth + 10 {
		deep = &userList{deep}
	}
	loop := &userList{}
	loop.Next = loop
	loopMap := userAnyMap{}
	loopMap["x"] = &loopMap
	var loopPointer userPointer
	loopPointer = &loopPointer
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
		{"nil pointer", (*userCart)(nil), "*codec.userCart"},
		{"pointer to a pointer", &pointer, "**int"},
		{"too deep", nestedValue(maxDepth + 1), "[]interface {}: nested deeper"},
		{"too deep for gob", deep, "*codec.userList: nested deeper"},
		{"cyclic", cyclic, "[]interface {}: nested deeper"},
		{"cyclic for gob", loop, "*codec.userList: nested deeper"},
		{"cyclic through maps and interfaces", loopMap, "codec.userAnyMap: nested deeper"},
		{"its own encoding fails", stubborn{"hunter2"}, "stubborn"},
		{"its own encoding panics", clumsy{"hunter2"}, "clumsy"},
		{"Concrete zero", Concrete{}, "no value"},
		{"Concrete func", Concrete{Value: func() {}}, "func()"},
		{"Concrete channel", Concrete{Value: make(chan int)}, "chan int"},
		{"Concrete without exported fields", Concrete{Value: hidden{1}}, "codec.hidden"},
		{"Concrete nil pointer", Concrete{Value: (*unregistered)(nil)}, "*codec.unregistered: nil pointer"},
		{"Concrete pointer to a nil pointer", Concrete{Value: new(*unregistered)}, "**codec.unregistered"},
		{"Concrete recursive pointer type", Concrete{Value: new(userPointer)}, "*codec.userPointer"},
		{"Concrete pointer to itself", Concrete{Value: loopPointer}, "codec.userPointer: nested deeper"},
		{"Concrete cyclic", Concrete{Value: loop}, "*codec.userList: nested deeper"},
		{"Concrete of its own encoding", Concrete{Value: &stubborn{"hunter2"}}, "stubborn"},
		{"Concrete with an unregistered element", Concrete{Value: map[string]any{"hunter2": unregistered{}}}, "map[string]interface {}: gob: type not registered for interface: codec.unregistered"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Encode("the key", tt.value)
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
	mustEncode(t, nestedValue(maxDepth)) // as deep as allowed
}

const hugeLength = "\xff\xff\xff\xff\x7f" // 2³⁵-1 as a varint

// encodedAs builds an encoding by hand.
func encodedAs(parts ...any) []byte {
	var b []byte
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

// hostileValues are those that Decode must refuse, by the error.
func hostileValues() map[error]map[string][]byte {
	malformed := map[string][]byte{
		"empty":                {},
		"trailing byte":        encodedAs(tagNil, 0),
		"nanoseconds":          encodedAs(tagTimeUTC, 0, "\x80\x94\xeb\xdc\x03"),
		"padded number":        encodedAs(tagInt, "\x80\x00"),
		"number of 65 bits":    encodedAs(tagUint64, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
		"endless number":       encodedAs(tagUint64, strings.Repeat("\xff", 20)),
		"int8 of 9 bits":       encodedAs(tagInt8, "\x80\x02"),
		"uint8 of 9 bits":      encodedAs(tagUint8, "\x80\x02"),
		"float cut short":      encodedAs(tagFloat64, "1234"),
		"string length":        encodedAs(tagString, hugeLength),
		"bytes length":         encodedAs(tagBytes, hugeLength),
		"list length":          encodedAs(tagStrings, hugeLength),
		"string map length":    encodedAs(tagStringMap, hugeLength),
		"any list length":      encodedAs(tagAnys, hugeLength),
		"any map length":       encodedAs(tagAnyMap, hugeLength),
		"duplicate key within": encodedAs(tagStringMap, 3, 1, "x", 0, 1, "x", 0),
		"keys out of order":    encodedAs(tagAnyMap, 3, 1, "b", tagNil, 1, "a", tagNil),
		"gob length":           encodedAs(tagGob, hugeLength),
		"gob empty":            encodedAs(tagGob, 0),
		"gob nil":              encodedAs(tagGob, 4, "\x03\x10\x00\x00"),
		"gob of no interface":  encodedAs(tagGob, 4, "\x03\x04\x00\x02"),
		"Concrete length":      encodedAs(tagConcrete, hugeLength),
		"Concrete empty":       encodedAs(tagConcrete, 0),
		"nested without end":   encodedAs(strings.Repeat(string([]byte{tagAnys, 2}), 100_000)),
	}
	// Containers that each claim all that is left.
	var claims []byte
	for range maxDepth + 1 {
		claims = append(claims, tagAnys, 0xff, 0xff, 0x03)
	}
	malformed["nested claims"] = append(claims, make([]byte, 1<<16)...)
	unknown := map[string][]byte{
		"newer tag":                encodedAs(tagUnknown),
		"much newer tag":           encodedAs(255, "whatever"),
		"newer tag in a list":      encodedAs(tagAnys, 3, tagUnknown, "??"),
		"newer tag in a map":       encodedAs(tagAnyMap, 2, 1, "a", tagUnknown, "??"),
		"gob of an unknown type":   encodedAs(tagGob, 12, "\x0b\x10\x00\x04nope\x04\x02\x00\x02"),
		"gob of one within a list": encodedAs(tagAnys, 2, tagGob, 12, "\x0b\x10\x00\x04nope\x04\x02\x00\x02"),
	}
	return map[error]map[string][]byte{ErrMalformed: malformed, ErrUnknownType: unknown}
}

func allocatedBy(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestDecodeOfHostileInput(t *testing.T) {
	for want, tests := range hostileValues() {
		for name, b := range tests {
			t.Run(name, func(t *testing.T) {
				var v any
				var err error
				n := allocatedBy(func() { v, err = Decode(b) })
				if !errors.Is(err, want) || v != nil {
					t.Errorf("value %v, error %v", v, err)
				}
				if limit := uint64(64<<10 + 4*len(b)); n > limit {
					t.Errorf("allocated %d bytes for an input of %d", n, len(b))
				}
			})
		}
	}
}

func TestTruncatedValuesAreMalformed(t *testing.T) {
	b := mustEncode(t, []any{ordinaryValues(), userCart{Counts: map[string]int{"x": 1}}, time.Now().In(time.FixedZone("", 60))})
	for n := range b {
		if _, err := Decode(b[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(b), err)
		}
	}
}

func TestDamagedValuesDoNotPanic(t *testing.T) {
	for _, tt := range allTypes() {
		b := mustEncode(t, tt.value)
		for i := range b {
			for bit := range 8 {
				b[i] ^= 1 << bit
				if v, err := Decode(b); err != nil && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrUnknownType) || err != nil && v != nil {
					t.Errorf("%s, byte %d, bit %d: %v", tt.name, i, bit, err)
				}
				b[i] ^= 1 << bit
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, tests := range hostileValues() {
		for _, b := range tests {
			if len(b) < 1<<10 {
				f.Add(b)
			}
		}
	}
	for _, tt := range allTypes() {
		f.Add(mustEncode(f, tt.value))
	}
	f.Add(mustEncode(f, ordinaryValues()))
	f.Add(mustEncode(f, nestedValue(5)))
	f.Add(mustEncode(f, Concrete{Value: userCart{Items: []string{"x"}}}))
	f.Add(mustEncode(f, []any{userList{&userList{}}, userTree{{}, {{}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Decode(b)
		if err != nil {
			if errors.Is(err, ErrMalformed) == errors.Is(err, ErrUnknownType) {
				t.Fatalf("error %v", err)
			}
			return
		}
		first := mustEncode(t, v)
		usesGob := holdsGob(v)
		if !usesGob && !bytes.Equal(first, b) {
			t.Fatalf("decoded %x, which encodes as %x", b, first)
		}
		again, err := Decode(first)
		if err != nil {
			t.Fatal(err)
		}
		if second := mustEncode(t, again); !usesGob && !bytes.Equal(first, second) {
			t.Fatalf("encodes as %x, then as %x", first, second)
		}
		if c, ok := v.(Concrete); ok {
			var cart userCart
			if err := c.Into(&cart); err != nil && errors.Is(err, ErrMalformed) == errors.Is(err, ErrUnknownType) {
				t.Fatalf("error %v", err)
			}
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
	f.Add([]byte("\x17\x03\x01a\x0e\x05hello\x01b\x16\x02\x0e\x01x\x01c\x17\x01\x01k\x0d12345678"))
	for kind := range byte(26) {
		f.Add([]byte{22, 2, kind, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, kind, 0xff, 0xfe})
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := valueBuilder{b}
		want := s.value(0)
		first := mustEncode(t, want)
		got, err := Decode(first)
		if err != nil {
			t.Fatal(err)
		}
		if !sameValue(got, want) {
			t.Fatalf("got %#v, want %#v", got, want)
		}
		if second := mustEncode(t, got); !bytes.Equal(first, second) {
			t.Fatalf("encodes as %x, then as %x", first, second)
		}
	})
}
