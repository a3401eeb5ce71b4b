package codec

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func encodeAll(t testing.TB, values map[string]any) Values {
	t.Helper()
	changed := make(map[string][]byte, len(values))
	for k, v := range values {
		b, err := Encode(k, v)
		if err != nil {
			t.Fatal(err)
		}
		changed[k] = b
	}
	return Values{}.Change(changed)
}

func decodeAll(t testing.TB, v Values) map[string]any {
	t.Helper()
	values := make(map[string]any, v.Len())
	for e, err := range v.Decode() {
		if err != nil {
			t.Fatal(err)
		}
		values[e.Key] = e.Value
	}
	return values
}

func TestFramesComeBack(t *testing.T) {
	all := map[string]any{"": "no key"}
	for _, tt := range allTypes() {
		if _, isTime := tt.value.(time.Time); !isTime {
			all[tt.name] = tt.value
		}
	}
	large := maps.Clone(ordinaryValues())
	large["large"] = strings.Repeat("x", 3*shareBelow)
	for name, want := range map[string]map[string]any{"none": {}, "ordinary": ordinaryValues(), "all types": all, "large": large} {
		t.Run(name, func(t *testing.T) {
			v, err := Parse(encodeAll(t, want).Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if got := decodeAll(t, v); v.Len() != len(want) || !reflect.DeepEqual(got, want) {
				t.Errorf("got %d values: %v", v.Len(), got)
			}
			var keys []string
			for k, b := range v.All() {
				keys = append(keys, k)
				if got, ok := v.Get(k); !ok || !bytes.Equal(got, b) {
					t.Errorf("%q: got %x, want %x", k, got, b)
				}
				if got, err := Decode(b); err != nil || !reflect.DeepEqual(got, want[k]) {
					t.Errorf("%q: got %v, error %v", k, got, err)
				}
			}
			if !slices.Equal(keys, slices.Sorted(maps.Keys(want))) {
				t.Errorf("keys %q", keys)
			}
			for _, k := range []string{"\x00", "a", "name ", "zzz"} {
				if b, ok := v.Get(k); ok || b != nil && k > "zz" {
					t.Errorf("%q: got %x, %v", k, b, ok)
				}
			}
		})
	}
}

func TestIterationsCanEndEarly(t *testing.T) {
	v := encodeAll(t, ordinaryValues())
	for range v.All() {
		break
	}
	for range v.Decode() {
		break
	}
}

func TestZeroValuesAreEmpty(t *testing.T) {
	var zero Values
	emptied := encodeAll(t, map[string]any{"a": 1}).Change(map[string][]byte{"a": nil})
	for name, v := range map[string]Values{"zero": zero, "emptied": emptied, "unchanged": zero.Change(nil)} {
		if _, ok := v.Get(""); v.Len() != 0 || ok || !bytes.Equal(v.Bytes(), []byte{version, 0}) {
			t.Errorf("%s: %d values, %x", name, v.Len(), v.Bytes())
		}
		if got, err := Parse(v.Bytes()); err != nil || !reflect.DeepEqual(got, zero) {
			t.Errorf("%s: parsed %v, error %v", name, got, err)
		}
	}
}

// What is stored must stay readable by later versions.
func TestFramingIsStable(t *testing.T) {
	got := fmt.Sprintf("%x", encodeAll(t, map[string]any{"b": nil, "a": 42}).Bytes())
	if want := "01" + "02" + "0161" + "020354" + "0162" + "0100"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDecodeKeepsWhatItCannotDecodeApart(t *testing.T) {
	v := encodeAll(t, map[string]any{"a": 1, "z": 2}).Change(map[string][]byte{"m": {tagInt}, "n": {tagUnknown, 9}})
	var got []string
	for e, err := range v.Decode() {
		got = append(got, fmt.Sprint(e.Key, e.Value, errors.Is(err, ErrMalformed), errors.Is(err, ErrUnknownType)))
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", e.Key)) {
			t.Errorf("error %v", err)
		}
	}
	if want := "[a1 false false m<nil> true false n<nil> false true z2 false false]"; fmt.Sprint(got) != want {
		t.Errorf("got %v", got)
	}
	later := v.Change(map[string][]byte{"a": nil})
	if b, ok := later.Get("n"); !ok || !bytes.Equal(b, []byte{tagUnknown, 9}) {
		t.Errorf("the value of an unknown type became %x", b)
	}
}

// Change against a map, with keys and values that share prefixes.
func TestChangeDoesWhatAMapDoes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string { return strings.Repeat("k", rng.IntN(4)) + string(rune('a'+rng.IntN(n))) }
	var v Values
	model := map[string][]byte{}
	for range 3000 {
		changed := map[string][]byte{}
		for range rng.IntN(6) {
			if k := text(12); rng.IntN(3) == 0 {
				changed[k] = nil
			} else {
				changed[k] = []byte(text(26) + strings.Repeat("v", rng.IntN(2)*rng.IntN(300)))
			}
		}
		if rng.IntN(50) == 0 {
			for k := range model {
				changed[k] = nil
			}
		}
		before := bytes.Clone(v.Bytes())
		next := v.Change(changed)
		if !bytes.Equal(v.Bytes(), before) {
			t.Fatal("Change changed its receiver")
		}
		v = next
		for k, b := range changed {
			if b == nil {
				delete(model, k)
			} else {
				model[k] = b
			}
		}
		if got := maps.Collect(v.All()); !reflect.DeepEqual(got, model) || v.Len() != len(model) {
			t.Fatalf("got %q, want %q", got, model)
		}
		parsed, err := Parse(v.Bytes())
		if err != nil || !reflect.DeepEqual(parsed.Bytes(), v.Bytes()) || parsed.Len() != v.Len() {
			t.Fatalf("parsed %v, error %v", parsed, err)
		}
		if fresh := (Values{}).Change(model); !bytes.Equal(fresh.Bytes(), v.Bytes()) {
			t.Fatalf("equal maps: %x and %x", fresh.Bytes(), v.Bytes())
		}
	}
}

func TestAppendToBytesDoesNotReachOthers(t *testing.T) {
	whole := append(encodeAll(t, map[string]any{"a": 1, "b": 2}).Bytes(), "spare"...)
	v, err := Parse(whole[:len(whole)-len("spare")])
	if err != nil {
		t.Fatal(err)
	}
	first, _ := v.Get("a")
	_ = append(first, 'X')
	_ = append(v.Bytes(), 'X')
	if b, _ := v.Get("b"); !bytes.Equal(b, mustEncode(t, 2)) || !strings.HasSuffix(string(whole), "spare") {
		t.Errorf("b became %x, the rest %q", b, whole)
	}
}

func hostileFrames() map[string][]byte {
	return map[string][]byte{
		"empty":             {},
		"version 0":         {0, 0},
		"unknown version":   {version + 1, 0},
		"version alone":     {version},
		"trailing byte":     {version, 0, 0},
		"trailing frame":    encodedAs(version, 1, 1, "a", 1, tagNil, 1, "b", 1, tagNil),
		"number of frames":  encodedAs(version, hugeLength),
		"one frame more":    encodedAs(version, 2, 1, "a", 1, tagNil),
		"padded number":     encodedAs(version, "\x80\x00"),
		"number of 65 bits": encodedAs(version, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
		"endless number":    encodedAs(version, strings.Repeat("\xff", 20)),
		"key length":        encodedAs(version, 1, hugeLength, "abc"),
		"key length 2⁶³":    encodedAs(version, 1, "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "abc"),
		"padded key length": encodedAs(version, 1, "\x81\x00", "a", 1, tagNil),
		"value length":      encodedAs(version, 1, 1, "a", hugeLength, "abc"),
		"no value":          encodedAs(version, 1, 2, "ab"),
		"empty value":       encodedAs(version, 1, 2, "ab", 0),
		"duplicate key":     encodedAs(version, 2, 1, "a", 1, tagNil, 1, "a", 1, tagNil),
		"keys out of order": encodedAs(version, 2, 1, "b", 1, tagNil, 1, "a", 1, tagNil),
		"empty key second":  encodedAs(version, 2, 1, "b", 1, tagNil, 0, 1, tagNil),
	}
}

func TestParseOfHostileInput(t *testing.T) {
	for name, b := range hostileFrames() {
		t.Run(name, func(t *testing.T) {
			var err error
			n := allocatedBy(func() { _, err = Parse(b) })
			if !errors.Is(err, ErrMalformed) || n > 64<<10 { // the runtime's own included
				t.Errorf("error %v, %d bytes allocated", err, n)
			}
		})
	}
}

func TestTruncatedFramesAreMalformed(t *testing.T) {
	b := encodeAll(t, ordinaryValues()).Bytes()
	for n := range b {
		if _, err := Parse(b[:n]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut to %d of %d bytes: error %v", n, len(b), err)
		}
	}
}

func TestParseDoesNotAllocate(t *testing.T) {
	b := encodeAll(t, ordinaryValues()).Bytes()
	var v Values
	if n := testing.AllocsPerRun(100, func() { v, _ = Parse(b); v.Get("theme") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range hostileFrames() {
		f.Add(b)
	}
	f.Add(Values{}.Bytes())
	f.Add(encodeAll(f, ordinaryValues()).Bytes())
	f.Add(encodeAll(f, map[string]any{"": nil, "a": userCart{}}).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if !bytes.Equal(v.Bytes(), b) {
			t.Fatalf("parsed %x, whose bytes are %x", b, v.Bytes())
		}
		all := maps.Collect(v.All())
		if len(all) != v.Len() {
			t.Fatalf("%d keys, Len is %d", len(all), v.Len())
		}
		if again := (Values{}).Change(all); !bytes.Equal(again.Bytes(), b) {
			t.Fatalf("parsed %x, built again %x", b, again.Bytes())
		}
		if again := v.Change(all); !bytes.Equal(again.Bytes(), b) {
			t.Fatalf("parsed %x, changed to the same %x", b, again.Bytes())
		}
		n := 0
		for e, err := range v.Decode() {
			want, wantErr := Decode(all[e.Key])
			if (err == nil) != (wantErr == nil) || !holdsGob(want) && !sameValue(e.Value, want) {
				t.Fatalf("%q: %v, %v; alone %v, %v", e.Key, e.Value, err, want, wantErr)
			}
			n++
		}
		if n != v.Len() {
			t.Fatalf("decoded %d of %d", n, v.Len())
		}
	})
}

func BenchmarkSession(b *testing.B) {
	values := ordinaryValues()
	encoded := encodeAll(b, values).Bytes()
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Parse(encoded); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v, err := Parse(encoded)
			if err != nil {
				b.Fatal(err)
			}
			m := make(map[string]any, v.Len())
			for e, err := range v.Decode() {
				if err != nil {
					b.Fatal(err)
				}
				m[e.Key] = e.Value
			}
		}
	})
	b.Run("decode one by one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			v, err := Parse(encoded)
			if err != nil {
				b.Fatal(err)
			}
			m := make(map[string]any, v.Len())
			for k, enc := range v.All() {
				if m[k], err = Decode(enc); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		b.ReportMetric(float64(len(encoded)), "B")
		for b.Loop() {
			changed := make(map[string][]byte, len(values))
			for k, v := range values {
				var err error
				if changed[k], err = Encode(k, v); err != nil {
					b.Fatal(err)
				}
			}
			_ = Values{}.Change(changed)
		}
	})
	b.Run("change one", func(b *testing.B) {
		b.ReportAllocs()
		v, _ := Parse(encoded)
		for b.Loop() {
			enc, err := Encode("views", 1730)
			if err != nil {
				b.Fatal(err)
			}
			_ = v.Change(map[string][]byte{"views": enc})
		}
	})
}

func BenchmarkGob(b *testing.B) {
	cart := userCart{Items: []string{"x", "y"}, Counts: map[string]int{"x": 1}}
	for name, v := range map[string]any{"registered": cart, "concrete": Concrete{Value: cart}} {
		encoded := mustEncode(b, v)
		b.Run(name+"/encode", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_ = mustEncode(b, v)
			}
		})
		b.Run(name+"/decode", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				got := mustDecode[any](b, encoded)
				if c, ok := got.(Concrete); ok {
					var cart userCart
					if err := c.Into(&cart); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("Registered/yes", func(b *testing.B) {
		for b.Loop() {
			_ = Registered(cart)
		}
	})
	b.Run("Registered/no", func(b *testing.B) {
		for b.Loop() {
			_ = Registered(unregistered{})
		}
	})
}
