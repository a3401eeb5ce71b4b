package codec

import (
	"encoding/gob"
	"errors"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
)

var testDeadline = time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC)

func legacyEncode(t testing.TB, values map[string]any) []byte {
	t.Helper()
	b, err := scs.GobCodec{}.Encode(testDeadline, values)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func init() {
	gob.Register(map[string]any{})
	gob.Register([]any{})
	gob.Register(map[string]string{})
	gob.Register(map[int][]string{})
	gob.Register([2]userCart{})
}

// legacySessions are sessions as scs writes them.
func legacySessions() map[string]map[string]any {
	long := map[string]any{}
	for i := range 300 {
		long[strings.Repeat("k", i)] = i
	}
	return map[string]map[string]any{
		"nil":      nil,
		"empty":    {},
		"ordinary": ordinaryValues(),
		"long":     long,
		"scalars":  {"a": 1, "b": -1.5, "c": true, "d": uint8(3), "e": 2i, "f": "", "g": []byte{1, 2}, "h": uintptr(9)},
		"nested maps": {"m": map[string]any{"n": map[string]any{"o": map[string]any{"p": []any{1, "x", map[string]string{"q": "r"}}}}},
			"i": map[int][]string{1: {"x"}, 2: nil}},
		"structs":  {"s": userCart{Items: []string{"x"}, Counts: map[string]int{"y": 1}, Total: big.NewInt(9), Extra: userCart{Extra: userMap{"z": 1}}}},
		"pointers": {"p": &userCart{Extra: &userList{&userList{}}}, "q": &userList{&userList{&userList{}}}},
		"arrays":   {"a": [2]userCart{{Extra: userTree{{}, {{}}}}, {Extra: namedString("x")}}},
		"times":    {"t": testDeadline, "u": time.Date(1815, 12, 10, 0, 0, 0, 1, time.FixedZone("LMT", -1172))},
		"definitions within definitions": {"a": userAnyMap{"b": userAnyMap{"c": userCart{Extra: userAnyMap{"d": userTree{}, "e": [2]userCart{}}}}},
			"f": []any{userList{}, map[string]any{"g": userMap{"h": 1}}}},
	}
}

func TestLegacySessionsPass(t *testing.T) {
	for name, values := range legacySessions() {
		t.Run(name, func(t *testing.T) {
			b := legacyEncode(t, values)
			_, want, err := scs.GobCodec{}.Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := CheckLegacy(b)
			if err != nil {
				t.Fatal(err)
			}
			deadline, got, err := scs.GobCodec{}.Decode(plain)
			if err != nil || !deadline.Equal(testDeadline) || !reflect.DeepEqual(got, want) {
				t.Errorf("got %v, %v, %v; want %v", deadline, got, err, want)
			}
			again, err := CheckLegacy(plain)
			if err != nil || string(again) != string(plain) {
				t.Errorf("what is plain changes: %v", err)
			}
			for n := range min(len(b), 1<<10) {
				if _, err := CheckLegacy(b[:n]); !errors.Is(err, ErrMalformed) {
					t.Fatalf("cut to %d of %d bytes: error %v", n, len(b), err)
				}
			}
		})
	}
}

// messages splits a stream into its messages, without their lengths.
func messages(stream string) (all []string) {
	for len(stream) > 0 {
		w := gobWalker{in: stream}
		n := w.count(1)
		all = append(all, stream[w.pos:w.pos+n])
		stream = stream[w.pos+n:]
	}
	return all
}

func joinMessages(all []string) []byte {
	var b []byte
	for _, m := range all {
		b = append(appendGobUint(b, uint64(len(m))), m...)
	}
	return b
}

// legacyWithCount is a session of one value, whose map of values has the given
// count of entries.
func legacyWithCount(t testing.TB, count string) []byte {
	all := messages(string(legacyEncode(t, map[string]any{"a": 1})))
	const before, after = "\x01", "\x01a\x03int" // next field; first key and type
	last := &all[len(all)-1]
	if strings.Count(*last, before+"\x01"+after) != 1 {
		t.Fatalf("no such entry in %q", *last)
	}
	*last = strings.Replace(*last, before+"\x01"+after, before+count+after, 1)
	return joinMessages(all)
}

// claims128M claims 2²⁷-1 entries. GobCodec.Decode makes room for them all before
// it finds that there is one. Measured with Go 1.26: 320 MB for 2²²-1, 640 MB for
// 2²³-1, so some 10 GB here, by a session of 132 bytes.
const claims128M = "\xfc\x07\xff\xff\xff"

func TestLegacyBombFails(t *testing.T) {
	b := legacyWithCount(t, claims128M)
	var err error
	n := allocatedBy(func() { _, err = CheckLegacy(b) })
	if !errors.Is(err, ErrMalformed) || n > 64<<10 {
		t.Errorf("error %v, %d bytes allocated", err, n)
	}
	if _, err := CheckLegacy(legacyWithCount(t, "\x01")); err != nil {
		t.Errorf("with the true count: %v", err)
	}
}

type (
	wideStruct struct {
		Gone any
		Kept string
	}
	thinStruct struct { // the same, a release later
		Kept string
	}
)

// A Decoder skips a field that the local struct lacks by a size which, in the
// mixed form, ends in the middle of the field. What follows is anybody's guess,
// or an attacker's choice.
func TestLegacyFieldsThatAreGoneAreSkippedWhole(t *testing.T) {
	gob.Register(wideStruct{})
	gob.Register(thinStruct{})
	b := legacyEncode(t, map[string]any{"s": wideStruct{Gone: userAnyMap{"x": userCart{Extra: userMap{"y": 1}}}, Kept: "kept"}})
	b = []byte(strings.ReplaceAll(string(b), "wideStruct", "thinStruct"))
	if _, _, err := (scs.GobCodec{}).Decode(b); err == nil {
		t.Error("gob skips mixed fields now: the check alone would do")
	}
	plain, err := CheckLegacy(b)
	if err != nil {
		t.Fatal(err)
	}
	_, values, err := scs.GobCodec{}.Decode(plain)
	if err != nil || values["s"] != (thinStruct{"kept"}) {
		t.Errorf("got %v, error %v", values, err)
	}
}

func FuzzCheckLegacy(f *testing.F) {
	for _, values := range legacySessions() {
		f.Add(legacyEncode(f, values))
	}
	f.Add(legacyWithCount(f, claims128M))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := CheckLegacy(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if again, err := CheckLegacy(plain); err != nil || string(again) != string(plain) {
			t.Fatalf("plain %x becomes %x, error %v", plain, again, err)
		}
		n := allocatedBy(func() {
			defer func() { _ = recover() }() // of the careless type
			_, _, _ = scs.GobCodec{}.Decode(plain)
		})
		if n > uint64(2<<20+256*len(b)) {
			t.Fatalf("allocated %d bytes for an input of %d", n, len(b))
		}
	})
}
