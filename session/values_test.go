package session

import (
	"bufio"
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"weak"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"
	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/codec"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// The data methods mean what scs's do, which therefore has them all.
var _ Values = (*scs.SessionManager)(nil)

type (
	knownCart struct {
		Items  []string
		Counts map[string]int
		Total  *big.Int
		Extra  any
	}
	knownTheme string
	knownList  struct{ Next *knownList }

	// The rest is never registered with gob.
	plainUser struct {
		Name   string
		Age    int
		Since  time.Time
		Friend *plainUser
	}
	plainTheme          string
	plainPair[A, B any] struct {
		First  A
		Second B
	}
	stubborn struct{ Secret string }
)

func (stubborn) GobEncode() ([]byte, error) { return nil, errors.New("cannot encode hunter2") }
func (*stubborn) GobDecode([]byte) error    { return errors.New("cannot decode hunter2") }

func init() {
	for _, v := range []any{time.Time{}, time.Duration(0), map[string]string{}, []any{}, map[string]any{}, knownCart{}, knownTheme(""), &knownList{}, stubborn{}} {
		gob.Register(v)
	}
}

// call is one call of a data method.
type call struct {
	name string
	do   func(v Values, ctx context.Context, key string, val any) any
}

var calls = []call{
	{"Put", func(v Values, ctx context.Context, key string, val any) any { v.Put(ctx, key, val); return nil }},
	{"Put", func(v Values, ctx context.Context, key string, val any) any { v.Put(ctx, key, val); return nil }},
	{"Put", func(v Values, ctx context.Context, key string, val any) any { v.Put(ctx, key, val); return nil }},
	{"Get", func(v Values, ctx context.Context, key string, val any) any { return v.Get(ctx, key) }},
	{"Pop", func(v Values, ctx context.Context, key string, val any) any { return v.Pop(ctx, key) }},
	{"Remove", func(v Values, ctx context.Context, key string, val any) any { v.Remove(ctx, key); return nil }},
	{"Exists", func(v Values, ctx context.Context, key string, val any) any { return v.Exists(ctx, key) }},
	{"Keys", func(v Values, ctx context.Context, key string, val any) any { return v.Keys(ctx) }},
	{"GetString", func(v Values, ctx context.Context, key string, val any) any { return v.GetString(ctx, key) }},
	{"GetBool", func(v Values, ctx context.Context, key string, val any) any { return v.GetBool(ctx, key) }},
	{"GetInt", func(v Values, ctx context.Context, key string, val any) any { return v.GetInt(ctx, key) }},
	{"GetInt64", func(v Values, ctx context.Context, key string, val any) any { return v.GetInt64(ctx, key) }},
	{"GetInt32", func(v Values, ctx context.Context, key string, val any) any { return v.GetInt32(ctx, key) }},
	{"GetFloat", func(v Values, ctx context.Context, key string, val any) any { return v.GetFloat(ctx, key) }},
	{"GetBytes", func(v Values, ctx context.Context, key string, val any) any { return v.GetBytes(ctx, key) }},
	{"GetTime", func(v Values, ctx context.Context, key string, val any) any { return v.GetTime(ctx, key) }},
	{"PopString", func(v Values, ctx context.Context, key string, val any) any { return v.PopString(ctx, key) }},
	{"PopBool", func(v Values, ctx context.Context, key string, val any) any { return v.PopBool(ctx, key) }},
	{"PopInt", func(v Values, ctx context.Context, key string, val any) any { return v.PopInt(ctx, key) }},
	{"PopFloat", func(v Values, ctx context.Context, key string, val any) any { return v.PopFloat(ctx, key) }},
	{"PopBytes", func(v Values, ctx context.Context, key string, val any) any { return v.PopBytes(ctx, key) }},
	{"PopTime", func(v Values, ctx context.Context, key string, val any) any { return v.PopTime(ctx, key) }},
}

var clearAll = call{"Clear", func(v Values, ctx context.Context, key string, val any) any { return v.Clear(ctx) }}

// sameValue is reflect.DeepEqual, but that a slice or map that is nil is the same as one
// that is empty: gob does not tell them apart.
func sameValue(a, b any) bool {
	empty := func(x any) bool {
		v := reflect.ValueOf(x)
		return (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
	}
	return reflect.DeepEqual(a, b) || reflect.TypeOf(a) == reflect.TypeOf(b) && empty(a) && empty(b)
}

// TestValuesMeanWhatThoseOfScsDo makes the same calls of scs and of a Manager, within one
// request and over many, and compares every result.
func TestValuesMeanWhatThoseOfScsDo(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		rnd := newRand(t)
		stock := &scs.SessionManager{Store: memstore.NewWithCleanupInterval(0), Codec: scs.GobCodec{}, Lifetime: time.Hour}
		token, b := "", &browser{t, m, ""}
		keys := []string{"a", "b", "c", "", "with\x00NUL", "ключ", strings.Repeat("long", 100)}
		kinds := []any{
			nil, true, false, "", "text", "\xff\x00", 0, 42, -1, int8(8), int16(16), int32(32), int64(64),
			uint(1), uint8(8), uint16(16), uint32(32), uint64(64), float32(1.5), 2.5, 1 + 2i, math.Inf(1),
			[]byte("bytes"), []byte{}, []byte(nil), []int{1, 2}, []string{"x", ""}, []string(nil), map[string]string{"k": "v"},
			[]any{1, "two", []any{3.5}}, map[string]any{"m": map[string]any{"n": 1}},
			time.Date(2024, 2, 29, 23, 59, 59, 999999999, time.UTC), time.Time{}, -3 * time.Hour,
			knownTheme("dark"), knownCart{Items: []string{"x"}, Counts: map[string]int{"x": 1}, Extra: knownTheme("y")},
			&knownList{Next: &knownList{}}, strings.Repeat("large", 1000),
		}
		requests, steps := 150, 12
		if rb.Name == "miniredis" {
			requests = 600
		}
		for request := range requests {
			ctx := load(t, m, b.cookie)
			sctx, err := stock.Load(context.Background(), token)
			if err != nil {
				t.Fatal(err)
			}
			compare := func(where string, c call, key string, val any) {
				t.Helper()
				got, want := c.do(m, ctx, key, val), c.do(stock, sctx, key, val)
				if !sameValue(got, want) {
					t.Fatalf("request %d, %s: %s(%.20q) is %#v, that of scs %#v", request, where, c.name, key, got, want)
				}
			}
			whole := func(where string) {
				t.Helper()
				compare(where, calls[7], "", nil)
				for _, key := range m.Keys(ctx) {
					compare(where, calls[3], key, nil)
				}
			}
			save := func() {
				t.Helper()
				if err := m.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if stock.Status(sctx) == scs.Modified {
					if token, _, err = stock.Commit(sctx); err != nil {
						t.Fatal(err)
					}
				}
			}
			whole("loaded")
			for step := range rnd.IntN(steps) {
				c := calls[rnd.IntN(len(calls))]
				if rnd.IntN(60) == 0 {
					c = clearAll
				}
				compare(fmt.Sprintf("step %d", step), c, keys[rnd.IntN(len(keys))], kinds[rnd.IntN(len(kinds))])
				if rnd.IntN(15) == 0 { // in the handler
					save()
					whole("after a commit")
				}
			}
			if rnd.IntN(10) == 0 {
				_ = m.Rotate(ctx)
				if token != "" {
					_ = stock.RenewToken(sctx)
				}
			}
			whole("at the end")
			if stock.Status(sctx) == scs.Modified {
				if token, _, err = stock.Commit(sctx); err != nil {
					t.Fatal(err)
				}
			}
			b.take(finish(t, m, ctx))
		}
	})
}

// TestWhereValuesDifferFromThoseOfScs names the differences.
func TestWhereValuesDifferFromThoseOfScs(t *testing.T) {
	m := manager(t, mini(t), slowly)
	b := &browser{t, m, ""}
	store := memstore.NewWithCleanupInterval(0)
	stock := &scs.SessionManager{Store: store, Codec: scs.GobCodec{}, Lifetime: time.Hour}
	atStock := func(token string, f func(ctx context.Context)) (string, error) {
		ctx, err := stock.Load(context.Background(), token)
		if err != nil {
			return "", err
		}
		f(ctx)
		token, _, err = stock.Commit(ctx)
		return token, err
	}

	// What is empty does not become nil.
	token, err := atStock("", func(ctx context.Context) { stock.Put(ctx, "list", []string{}) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := atStock(token, func(ctx context.Context) {
		if stock.Get(ctx, "list").([]string) != nil {
			t.Error("scs keeps an empty slice now")
		}
	}); err != nil {
		t.Error(err)
	}
	b.request(func(ctx context.Context) { m.Put(ctx, "list", []string{}) })
	b.request(func(ctx context.Context) {
		if list, ok := m.Get(ctx, "list").([]string); !ok || list == nil {
			t.Errorf("%#v", m.Get(ctx, "list"))
		}
	})

	// A value that is changed in place is saved by scs with the next change of another, and
	// here when it is put.
	token, _ = atStock(token, func(ctx context.Context) { stock.Put(ctx, "list", []string{"old"}) })
	token, _ = atStock(token, func(ctx context.Context) { stock.Get(ctx, "list").([]string)[0] = "new"; stock.Put(ctx, "other", 1) })
	_, _ = atStock(token, func(ctx context.Context) {
		if stock.Get(ctx, "list").([]string)[0] != "new" {
			t.Error("scs does not save what was changed in place any more")
		}
	})
	b.request(func(ctx context.Context) { m.Put(ctx, "list", []string{"old"}) })
	b.request(func(ctx context.Context) { m.Get(ctx, "list").([]string)[0] = "new"; m.Put(ctx, "other", 1) })
	b.request(func(ctx context.Context) {
		list := m.Get(ctx, "list").([]string)
		if list[0] != "old" {
			t.Errorf("%q", list)
		}
		list[0] = "new"
		m.Put(ctx, "list", list)
	})
	b.request(func(ctx context.Context) {
		if list := m.Get(ctx, "list").([]string); list[0] != "new" {
			t.Errorf("%q", list)
		}
	})

	// A type keeps its pointer, or none, however it is registered.
	token, _ = atStock("", func(ctx context.Context) { stock.Put(ctx, "p", &knownCart{}) })
	_, _ = atStock(token, func(ctx context.Context) {
		if _, is := stock.Get(ctx, "p").(*knownCart); is {
			t.Error("scs keeps pointers now")
		}
	})
	b.request(func(ctx context.Context) { m.Put(ctx, "p", &knownCart{}) })
	b.request(func(ctx context.Context) {
		if _, is := m.Get(ctx, "p").(*knownCart); !is {
			t.Errorf("%T", m.Get(ctx, "p"))
		}
	})
}

func TestValuesPanicWithoutASession(t *testing.T) {
	m := manager(t, mini(t), slowly)
	other := manager(t, mini(t), slowly)
	for name, ctx := range map[string]context.Context{"no session": context.Background(), "another Manager's": load(t, other, "")} {
		for _, c := range append(slices.Clone(calls), clearAll) {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: %s does not panic", name, c.name)
					}
				}()
				c.do(m, ctx, "k", "v")
			}()
		}
	}
}

// roundTrips are values of every type that is promised.
func roundTrips() map[string]any {
	num := 7
	return map[string]any{
		"nil": nil, "false": false, "true": true,
		"int zero": 0, "int min": math.MinInt, "int max": math.MaxInt,
		"int8": int8(math.MinInt8), "int16": int16(math.MinInt16), "int32": int32(math.MinInt32),
		"int64 min": int64(math.MinInt64), "int64 max": int64(math.MaxInt64),
		"uint": uint(math.MaxUint), "uint8": uint8(math.MaxUint8), "uint16": uint16(math.MaxUint16),
		"uint32": uint32(math.MaxUint32), "uint64": uint64(math.MaxUint64), "uintptr": uintptr(99),
		"float32": float32(1.5), "float32 NaN": math.Float32frombits(0x7fc12345), "float32 -0": float32(math.Copysign(0, -1)),
		"float64": math.Pi, "NaN": math.NaN(), "another NaN": math.Float64frombits(0x7ff8000000abcdef),
		"+Inf": math.Inf(1), "-Inf": math.Inf(-1), "-0": math.Copysign(0, -1),
		"complex64": complex64(complex(1, 2)), "complex128": complex(1, 2),
		"string": "hello", "string empty": "", "string of any bytes": "\x00\xff\xfe|\n",
		"bytes": []byte{0, 1, 255}, "bytes nil": []byte(nil), "bytes empty": []byte{},
		"duration": -3 * time.Hour,
		"strings":  []string{"a", "", "\xff"}, "strings nil": []string(nil), "strings empty": []string{},
		"string map": map[string]string{"b": "2", "": ""}, "string map nil": map[string]string(nil), "string map empty": map[string]string{},
		"anys": []any{1, "a", nil, []any{uint8(2)}, map[string]any{"x": 1.5}}, "anys nil": []any(nil), "anys empty": []any{},
		"any map": map[string]any{"b": []string{"x"}, "a": nil}, "any map nil": map[string]any(nil), "any map empty": map[string]any{},
		"time zero": time.Time{}, "time UTC": time.Date(2024, 2, 29, 23, 59, 59, 999999999, time.UTC),
		"time before 1970": time.Date(1815, 12, 10, 0, 0, 0, 1, time.UTC),
		"time zone":        time.Date(2024, 1, 1, 0, 0, 0, 0, time.FixedZone("CET", 3600)),
		"time of seconds":  time.Date(1890, 1, 1, 0, 0, 0, 0, time.FixedZone("LMT", -1172)),
		"time local":       time.Now(), // with a monotonic reading, which goes
		"gob ints":         []int{1, 2},
		"gob struct":       knownCart{Items: []string{"x"}, Counts: map[string]int{"x": 1}, Total: big.NewInt(9), Extra: knownTheme("y")},
		"gob pointer":      &knownCart{Items: []string{"x"}}, "gob value": knownList{Next: &knownList{}}, "gob pointer to a basic type": &num,
		"gob named": knownTheme("dark"), "gob in containers": []any{knownTheme("x"), map[string]any{"c": &knownCart{}}},
		"large": strings.Repeat("x", 100<<10),
	}
}

// sameAfter reports whether got is what want becomes in Redis.
func sameAfter(got, want any) bool {
	if reflect.TypeOf(got) != reflect.TypeOf(want) {
		return false
	}
	switch want := want.(type) {
	case float32:
		return math.Float32bits(got.(float32)) == math.Float32bits(want)
	case float64:
		return math.Float64bits(got.(float64)) == math.Float64bits(want)
	case time.Time:
		got := got.(time.Time)
		_, offset := got.Zone()
		_, wantOffset := want.Zone()
		return got.Equal(want) && offset == wantOffset && got == got.Round(0)
	}
	return reflect.DeepEqual(got, want)
}

func TestValuesKeepTheirType(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		other := sameSite(t, m, rb.Client, slowly)
		values := roundTrips()
		check := func(where string, m *Manager, ctx context.Context) {
			t.Helper()
			for name, want := range values {
				if got := m.Get(ctx, name); !m.Exists(ctx, name) || !sameAfter(got, want) {
					t.Errorf("%s: %s: got %T %.100v, want %T %.100v", where, name, got, got, want, want)
				}
			}
			if n := len(m.Keys(ctx)); n != len(values) {
				t.Errorf("%s: %d keys, want %d", where, n, len(values))
			}
		}
		all, one := &browser{t, m, ""}, &browser{t, m, ""}
		all.request(func(ctx context.Context) {
			for name, v := range values {
				m.Put(ctx, name, v)
			}
		})
		check("all at once", other, load(t, other, all.cookie))
		for name, v := range values {
			one.request(func(ctx context.Context) { m.Put(ctx, name, v) })
		}
		ctx := load(t, other, one.cookie)
		check("one by one", other, ctx)
		_ = other.Login(ctx, "ann")
		check("after Login", other, ctx)
		one.take(finish(t, other, ctx))
		check("logged in", m, load(t, m, one.cookie))
	})
}

// recordAt returns what stands in Redis at a cookie's ID, as bytes.
func recordAt(t testing.TB, rb redistest.Backend, m *Manager, cookie string) string {
	t.Helper()
	at := idOf(t, m, cookie)
	fields, err := rb.Client.HGetAll(context.Background(), at.key).Result()
	if err != nil {
		t.Fatal(err)
	}
	return fields[at.field] + fields["v"+at.field]
}

func TestEncodeErrorsNameTheKeyAndSaveNothing(t *testing.T) {
	var cyclic []any
	cyclic = append(cyclic, nil)
	cyclic[0] = cyclic
	var deep any = "bottom"
	for range 33 {
		deep = []any{deep}
	}
	num := 1
	pointer := &num
	bad := map[string]any{
		"func": func() {}, "channel": make(chan int), "unregistered struct": plainUser{Name: "x"},
		"unregistered in a list": []any{1, plainUser{}}, "unregistered in an interface": knownCart{Extra: plainUser{}},
		"unregistered map": map[int]string{}, "nil pointer": (*knownCart)(nil), "pointer to a pointer": &pointer,
		"too deep": deep, "cyclic": cyclic, "its own encoding fails": stubborn{"hunter2"},
	}
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		wrong := func(where, key string, err error) {
			t.Helper()
			e, is := errors.AsType[*EncodeError](err)
			if !is || e.Key != key {
				t.Errorf("%s: %s: error %v", where, key, err)
			} else if text := err.Error(); !strings.Contains(text, fmt.Sprintf("%q", key)) || strings.Contains(text, "hunter2") {
				t.Errorf("%s: %s: error %q", where, key, text)
			}
		}
		ways := map[string]func(ctx context.Context) error{
			"Commit": m.Commit,
			"Login":  func(ctx context.Context) error { return m.Login(ctx, "bob") },
			"Finish": func(ctx context.Context) error {
				o, err := m.Finish(ctx)
				if o != (Outcome{}) {
					t.Errorf("Finish: %+v", o)
				}
				return err
			},
			"Finish with a rotation": func(ctx context.Context) error {
				_ = m.Rotate(ctx)
				o, err := m.Finish(ctx)
				if o != (Outcome{}) {
					t.Errorf("Finish: %+v", o)
				}
				return err
			},
		}
		b := begin(t, m, "ann")
		before := recordAt(t, rb, m, b.cookie)
		for key, v := range bad {
			for way, save := range ways {
				for start, cookie := range map[string]string{"new": "", "of ann": b.cookie} {
					where := way + ", session " + start
					records := len(liveIDs(t, rb.Client))
					ctx := load(t, m, cookie)
					m.Put(ctx, "good", 1)
					m.Put(ctx, key, v)
					wrong(where, key, save(ctx))
					if n := len(liveIDs(t, rb.Client)); n != records {
						t.Errorf("%s: %s: %d records became %d", where, key, records, n)
					}
					if user := m.UserID(ctx); (user == "ann") != (cookie != "") || user == "bob" {
						t.Errorf("%s: %s: user %q", where, key, user)
					}
					// The request may think again.
					if start != "new" || way != "Commit" {
						continue
					}
					m.Remove(ctx, key)
					if o := finish(t, m, ctx); byCookie(t, m, o.Value).values != "map[good:1]" {
						t.Errorf("%s: %s: cannot commit without it", where, key)
					}
				}
			}
		}
		if recordAt(t, rb, m, b.cookie) != before {
			t.Error("the session in Redis was changed")
		}
		// One that Login cannot encode may have been put before it, too.
		ctx := load(t, m, b.cookie)
		if err := m.Login(ctx, "ann"); err != nil {
			t.Fatal(err)
		}
		m.Put(ctx, "bad", func() {})
		_, err := m.Finish(ctx)
		wrong("after Login", "bad", err)
		m.Abort(ctx)
		if got := byCookie(t, m, b.cookie); got.user != "ann" || recordAt(t, rb, m, b.cookie) != before {
			t.Errorf("after a login that could not be finished: %+v", got)
		}
	})
}

// keyTrip puts a value by a Key on one server and reads it on another.
func keyTrip[T any](t *testing.T, m, other *Manager, name string, val T) {
	t.Helper()
	key := Key[T]("k " + name)
	b := &browser{t, m, ""}
	check := func(where string, m *Manager, ctx context.Context) {
		t.Helper()
		got, ok := key.Lookup(ctx, m)
		if !ok || !sameAfter(got, any(val)) && !sameValue(got, any(val)) {
			t.Errorf("%s, %s: got %#v, %v, want %#v", name, where, got, ok, val)
		}
		if g := key.Get(ctx, m); !sameValue(g, any(got)) {
			t.Errorf("%s, %s: Get %#v, Lookup %#v", name, where, g, got)
		}
		// A type that it does not fit sees nothing.
		type strange struct{ Nothing chan int }
		if got, ok := Key[strange](key).Lookup(ctx, m); ok {
			t.Errorf("%s, %s: another type reads %#v", name, where, got)
		}
	}
	b.request(func(ctx context.Context) {
		if _, ok := key.Lookup(ctx, m); ok {
			t.Errorf("%s: there before it was put", name)
		}
		key.Put(ctx, m, val)
		check("in the same request", m, ctx)
		if err := m.Commit(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		check("after a commit", m, ctx)
	})
	b.m = other
	b.request(func(ctx context.Context) {
		check("on another server", other, ctx)
		key.Put(ctx, other, key.Get(ctx, other))
	})
	b.request(func(ctx context.Context) {
		check("put back", other, ctx)
		// By another name, too, without being decoded.
		other.Put(ctx, "moved", other.Get(ctx, string(key)))
	})
	b.request(func(ctx context.Context) {
		if got := Key[T]("moved").Get(ctx, other); !sameAfter(got, any(val)) && !sameValue(got, any(val)) {
			t.Errorf("%s: moved: %#v", name, got)
		}
		if got := key.Pop(ctx, other); !sameAfter(got, any(val)) && !sameValue(got, any(val)) {
			t.Errorf("%s: popped %#v", name, got)
		}
		if _, ok := key.Lookup(ctx, other); ok {
			t.Errorf("%s: there after Pop", name)
		}
	})
	b.m = m
	b.request(func(ctx context.Context) {
		if _, ok := key.Lookup(ctx, m); ok || m.Exists(ctx, string(key)) {
			t.Errorf("%s: saved in spite of Pop", name)
		}
		key.Put(ctx, m, val)
		key.Remove(ctx, m)
		if m.Exists(ctx, string(key)) {
			t.Errorf("%s: there after Remove", name)
		}
	})
}

func TestKeysStoreTypesWithoutRegistration(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		other := sameSite(t, m, rb.NewClient(t), slowly)
		user := plainUser{Name: "ann", Age: 7, Since: time.Date(2024, 1, 2, 3, 4, 5, 6, time.UTC), Friend: &plainUser{Name: "bob"}}
		keyTrip(t, m, other, "string", "dark")
		keyTrip(t, m, other, "empty string", "")
		keyTrip(t, m, other, "int", 42)
		keyTrip(t, m, other, "float32", float32(1.5))
		keyTrip(t, m, other, "bytes", []byte{1, 2})
		keyTrip(t, m, other, "time", time.Now())
		keyTrip(t, m, other, "duration", time.Minute)
		keyTrip(t, m, other, "struct", user)
		keyTrip(t, m, other, "zero struct", plainUser{})
		keyTrip(t, m, other, "pointer", &user)
		keyTrip(t, m, other, "slice", []plainUser{user, {}})
		keyTrip(t, m, other, "empty slice", []plainUser{})
		keyTrip(t, m, other, "nil slice", []plainUser(nil))
		keyTrip(t, m, other, "slice of pointers", []*plainUser{&user})
		keyTrip(t, m, other, "map", map[string]plainUser{"a": user})
		keyTrip(t, m, other, "map of ints", map[int][]string{1: {"x"}})
		keyTrip(t, m, other, "empty map", map[int]string{})
		keyTrip(t, m, other, "array", [2]plainUser{user})
		keyTrip(t, m, other, "named string", plainTheme("dark"))
		keyTrip(t, m, other, "generic", plainPair[string, []plainUser]{"x", []plainUser{user}})
		keyTrip(t, m, other, "generic of generics", plainPair[plainPair[int, bool], *plainUser]{plainPair[int, bool]{1, true}, &user})
		keyTrip(t, m, other, "big.Int", big.NewInt(1).Lsh(big.NewInt(1), 300))
		keyTrip(t, m, other, "registered struct", knownCart{Items: []string{"x"}, Extra: knownTheme("y")})
		keyTrip(t, m, other, "registered pointer", &knownCart{Items: []string{"x"}})
		keyTrip(t, m, other, "registered named string", knownTheme("dark"))
		keyTrip(t, m, other, "large", strings.Repeat("x", 100<<10))
		keyTrip[any](t, m, other, "any", "text")
		keyTrip[any](t, m, other, "any list", []any{1, "x"})
	})
}

func TestKeysReadWithAnotherType(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		type userNextRelease struct { // of plainUser
			Name  string
			Age   int
			Roles []string
		}
		b := &browser{t, m, ""}
		check := func(where string, ctx context.Context) {
			t.Helper()
			if got, ok := Key[string]("text").Lookup(ctx, m); !ok || got != "dark" {
				t.Errorf("%s: %q, %v", where, got, ok)
			}
			if got, ok := Key[int]("text").Lookup(ctx, m); ok || got != 0 {
				t.Errorf("%s: a string as an int: %v", where, got)
			}
			if got, ok := Key[int64]("int").Lookup(ctx, m); ok || got != 0 {
				t.Errorf("%s: an int as an int64: %v", where, got)
			}
			if got, ok := Key[plainUser]("text").Lookup(ctx, m); ok || got != (plainUser{}) {
				t.Errorf("%s: a string as a struct: %v", where, got)
			}
			if got, ok := Key[int]("user").Lookup(ctx, m); ok || got != 0 {
				t.Errorf("%s: a struct as an int: %v", where, got)
			}
			if got, ok := Key[[]string]("user").Lookup(ctx, m); ok || got != nil {
				t.Errorf("%s: a struct as a slice: %v", where, got)
			}
			if got, ok := Key[fmt.Stringer]("user").Lookup(ctx, m); ok || got != nil {
				t.Errorf("%s: a struct as an interface: %v", where, got)
			}
			// A struct that has got a field more is the same to gob.
			if got, ok := Key[userNextRelease]("user").Lookup(ctx, m); !ok || !reflect.DeepEqual(got, userNextRelease{Name: "ann", Age: 7}) {
				t.Errorf("%s: a release later: %+v, %v", where, got, ok)
			}
			// The untyped methods do not see what only a Key can read.
			if m.GetString(ctx, "theme") != "" || m.GetInt(ctx, "user") != 0 || !m.Exists(ctx, "theme") {
				t.Errorf("%s: untyped: %q", where, m.GetString(ctx, "theme"))
			}
		}
		b.request(func(ctx context.Context) {
			Key[string]("text").Put(ctx, m, "dark")
			Key[int]("int").Put(ctx, m, 1)
			Key[plainUser]("user").Put(ctx, m, plainUser{Name: "ann", Age: 7})
			Key[plainTheme]("theme").Put(ctx, m, "dark")
			check("in the same request", ctx)
		})
		b.request(func(ctx context.Context) {
			check("in the next", ctx)
			// A Pop removes whatever it is asked for as, as scs's do.
			if got := m.PopString(ctx, "theme"); got != "" || m.Exists(ctx, "theme") {
				t.Errorf("PopString gives %q where GetString gives nothing", got)
			}
			if got := Key[int]("user").Pop(ctx, m); got != 0 || m.Exists(ctx, "user") {
				t.Errorf("popped as an int: %v", got)
			}
		})
		b.request(func(ctx context.Context) {
			if m.Exists(ctx, "user") || m.Exists(ctx, "theme") {
				t.Error("what was popped is back")
			}
			Key[plainUser]("user").Put(ctx, m, plainUser{})
			Key[*plainUser]("nil").Put(ctx, m, nil)
			if e, is := errors.AsType[*EncodeError](m.Commit(ctx)); !is || e.Key != "nil" {
				t.Error("a nil pointer was stored")
			}
			Key[*plainUser]("nil").Remove(ctx, m)
		})
	})
}

// putEncoded writes an encoded value into the record at a cookie's ID, as a server of another
// release may.
func putEncoded(t testing.TB, m *Manager, cookie, key string, b []byte) {
	t.Helper()
	ctx := context.Background()
	f, err := m.records.get(ctx, idOf(t, m, cookie))
	if err != nil || f.record == nil {
		t.Fatalf("no record: %v", err)
	}
	next := *f.record
	next.values = next.values.Change(map[string][]byte{key: b})
	if a, err := m.records.save(ctx, &next, f.record, 0, told{}); err != nil || a.outcome == refused {
		t.Fatalf("not saved: %+v, %v", a, err)
	}
}

// encodedAt is the encoded value at a cookie's ID, nil if there is none.
func encodedAt(t testing.TB, m *Manager, cookie, key string) []byte {
	t.Helper()
	f, err := m.records.find(context.Background(), idOf(t, m, cookie))
	if err != nil || f.record == nil {
		t.Fatalf("no record: %v", err)
	}
	b, ok := f.record.values.Get(key)
	if !ok {
		return nil
	}
	return b
}

// unknowns are encoded values that this server cannot decode.
func unknowns(t testing.TB) map[string][]byte {
	t.Helper()
	elsewhere, err := codec.Encode("", knownTheme("x"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := codec.Encode("", []any{1, knownTheme("x")})
	if err != nil {
		t.Fatal(err)
	}
	rename := func(b []byte) []byte {
		return bytes.ReplaceAll(b, []byte("knownTheme"), []byte("ThemeToCom"))
	}
	return map[string][]byte{
		"a tag of a newer release": {200, 1, 2, 3},
		"the next tag":             {28},
		"a type from elsewhere":    rename(elsewhere),
		"within a list":            rename(list),
		"damaged":                  {3},
		"large":                    append([]byte{200}, make([]byte, 10<<10)...),
	}
}

// TestUnknownValuesAreKept lets a session with a value that this server cannot decode
// through all that a server does: the user stays logged in, and the value is still there.
func TestUnknownValuesAreKept(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for name, unknown := range unknowns(t) {
			b := begin(t, m, "ann")
			putEncoded(t, m, b.cookie, "new", unknown)
			there := func(where string) {
				t.Helper()
				if got := encodedAt(t, m, b.cookie, "new"); !bytes.Equal(got, unknown) {
					t.Fatalf("%s, %s: %.20x became %.20x", name, where, unknown, got)
				}
				ctx := load(t, m, b.cookie)
				if m.UserID(ctx) != "ann" || m.GetString(ctx, "k") != "v" {
					t.Errorf("%s, %s: %+v", name, where, byCookie(t, m, b.cookie))
				}
			}
			there("put")
			for _, step := range []struct {
				name string
				do   func(ctx context.Context)
			}{
				{"read", func(ctx context.Context) {
					if m.Exists(ctx, "new") || m.Get(ctx, "new") != nil || m.GetString(ctx, "new") != "" || slices.Contains(m.Keys(ctx), "new") {
						t.Errorf("%s: seen", name)
					}
				}},
				{"Pop", func(ctx context.Context) {
					if m.Pop(ctx, "new") != nil || m.PopInt(ctx, "new") != 0 || Key[plainUser]("new").Pop(ctx, m) != (plainUser{}) {
						t.Errorf("%s: popped", name)
					}
				}},
				{"Put of another", func(ctx context.Context) { m.Put(ctx, "other", 1) }},
				{"Put without a look", func(ctx context.Context) { m.Put(ctx, "zzz", 1); m.Put(ctx, "a", 1) }},
				{"Remove of another", func(ctx context.Context) { m.Remove(ctx, "other") }},
				{"Commit, twice", func(ctx context.Context) {
					m.Put(ctx, "c", 1)
					if err := m.Commit(ctx); err != nil {
						t.Error(err)
					}
					m.Put(ctx, "c", 2)
				}},
				{"merge", func(ctx context.Context) {
					m.Put(ctx, "mine", 1)
					(&browser{t, m, b.cookie}).request(func(ctx context.Context) { m.Put(ctx, "theirs", 1) })
				}},
				{"Remember", func(ctx context.Context) { m.Remember(ctx, true) }},
				{"touch", func(ctx context.Context) { advance(t, rb, 10*time.Minute, m) }},
				{"Rotate", func(ctx context.Context) { _ = m.Rotate(ctx) }},
				{"Rotate with a put", func(ctx context.Context) { m.Put(ctx, "r", 1); _ = m.Rotate(ctx) }},
				{"Login", func(ctx context.Context) { _ = m.Login(ctx, "ann") }},
			} {
				b.request(step.do)
				there(step.name)
			}

			// The key is put, removed and cleared as any other.
			b.request(func(ctx context.Context) { m.Put(ctx, "new", "here") })
			if got := load(t, m, b.cookie); m.GetString(got, "new") != "here" {
				t.Errorf("%s: Put over it: %v", name, valuesOf(m, got))
			}
			for what, remove := range map[string]func(ctx context.Context){
				"Remove":         func(ctx context.Context) { m.Remove(ctx, "new") },
				"Put and Remove": func(ctx context.Context) { m.Put(ctx, "new", 1); m.Remove(ctx, "new") },
				"Put and Pop":    func(ctx context.Context) { m.Put(ctx, "new", 1); m.Pop(ctx, "new") },
				"Key.Remove":     func(ctx context.Context) { Key[plainUser]("new").Remove(ctx, m) },
				"Clear":          func(ctx context.Context) { _ = m.Clear(ctx) },
			} {
				putEncoded(t, m, b.cookie, "new", unknown)
				b.request(remove)
				if got := encodedAt(t, m, b.cookie, "new"); got != nil {
					t.Errorf("%s: %s left %x", name, what, got)
				}
			}
			b.request(func(ctx context.Context) {
				if m.UserID(ctx) != "ann" || len(m.Keys(ctx)) != 0 {
					t.Errorf("%s: after Clear: %v", name, valuesOf(m, ctx))
				}
			})

			// A visitor's is carried into the login.
			v := begin(t, m, "")
			putEncoded(t, m, v.cookie, "new", unknown)
			v.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			if got := encodedAt(t, m, v.cookie, "new"); !bytes.Equal(got, unknown) {
				t.Errorf("%s: a login lost it", name)
			}
			// But not into another user's.
			v.request(func(ctx context.Context) { _ = m.Login(ctx, "bob") })
			if got := encodedAt(t, m, v.cookie, "new"); got != nil {
				t.Errorf("%s: another user has it", name)
			}
		}
	})
}

func TestUnknownValuesAreTold(t *testing.T) {
	rb := mini(t)
	var log bytes.Buffer
	m := manager(t, rb, Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	b := begin(t, m, "ann")
	putEncoded(t, m, b.cookie, "the key", []byte{200, 'h', 'u', 'n', 't', 'e', 'r', '2'})
	b.request(func(ctx context.Context) { m.GetString(ctx, "k") })
	if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `key="the key"`) || strings.Contains(text, "hunter2") {
		t.Errorf("logged %q", text)
	}
}

// releaseTwo is a type that only servers of the new release know.
type releaseTwo struct{ Plan string }

// knowReleaseTwo makes this process a server of the new release.
var knowReleaseTwo = sync.OnceFunc(func() { gob.Register(releaseTwo{}) })

// released is what TestReleaseOneChild does, and what came of it.
type released struct {
	Addr, Cookie, Do string
	Sealed           bool

	User, Keys, Error string
}

// TestReleaseOneChild is the body of a server of the old release; it does nothing in an
// ordinary run.
func TestReleaseOneChild(t *testing.T) {
	if os.Getenv("SESSION_RELEASE_ONE") == "" {
		return
	}
	var r released
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		t.Fatal(err)
	}
	cfg := slowly
	if r.Sealed {
		cfg.Secrets = [][]byte{secret}
	}
	m := managerOver(t, redis.NewClient(&redis.Options{Addr: r.Addr}), cfg)
	b := &browser{t, m, r.Cookie}
	b.request(func(ctx context.Context) {
		var err error
		r.User, r.Keys = m.UserID(ctx), fmt.Sprint(m.Keys(ctx))
		if got := m.Get(ctx, "two"); got != nil {
			err = fmt.Errorf("knows a %T", got)
		}
		switch r.Do {
		case "put":
			m.Put(ctx, "one", 1)
		case "rotate":
			err = m.Rotate(ctx)
		case "login":
			err = m.Login(ctx, "ann")
		case "replace":
			m.Put(ctx, "two", "one")
		case "remove":
			m.Remove(ctx, "two")
		case "clear":
			err = m.Clear(ctx)
		}
		if err != nil {
			r.Error = err.Error()
		}
	})
	r.Cookie = b.cookie
	out, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n@%s\n", out)
}

// TestDeployAndRollback has servers of two releases, in processes of their own, serve one
// session; only the new one knows a type of its values.
func TestDeployAndRollback(t *testing.T) {
	knowReleaseTwo()
	server := redistest.Shared(t)
	server.Flush()
	t.Cleanup(server.Flush)
	for _, sealed := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%v", sealed), func(t *testing.T) {
			cfg := slowly
			if sealed {
				cfg.Secrets = [][]byte{secret}
			}
			m := managerOver(t, server.Client(), cfg)
			b := begin(t, m, "ann")
			old := func(do, keys string) {
				t.Helper()
				cmd := exec.Command(os.Args[0], "-test.run=^TestReleaseOneChild$")
				cmd.Env = append(os.Environ(), "SESSION_RELEASE_ONE=1")
				in, err := json.Marshal(released{Addr: server.Addr(), Cookie: b.cookie, Do: do, Sealed: sealed})
				if err != nil {
					t.Fatal(err)
				}
				cmd.Stdin = bytes.NewReader(in)
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s: %v\n%s", do, err, out)
				}
				var r released
				for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
					if line, is := strings.CutPrefix(lines.Text(), "@"); is {
						if err := json.Unmarshal([]byte(line), &r); err != nil {
							t.Fatal(err)
						}
					}
				}
				if r.Error != "" || r.User != "ann" || r.Keys != keys {
					t.Errorf("old release, %s: %+v, want keys %s\n%s", do, r, keys, out)
				}
				b.cookie = r.Cookie
			}
			plan := func(want string) {
				t.Helper()
				b.request(func(ctx context.Context) {
					got := Key[releaseTwo]("two").Get(ctx, m).Plan
					if untyped, _ := m.Get(ctx, "two").(releaseTwo); got != want || untyped.Plan != want || m.UserID(ctx) != "ann" {
						t.Errorf("new release: plan %q and %q, want %q; user %q", got, untyped.Plan, want, m.UserID(ctx))
					}
				})
			}
			put := func(plan string) {
				t.Helper()
				b.request(func(ctx context.Context) { m.Put(ctx, "two", releaseTwo{plan}) })
			}
			old("put", "[k]")
			put("gold")
			for _, do := range []string{"read", "put", "rotate", "login"} {
				old(do, "[k one]")
				plan("gold")
			}
			put("silver")
			old("put", "[k one]")
			plan("silver")
			old("replace", "[k one]")
			plan("")
			put("gold")
			old("remove", "[k one]")
			plan("")
			put("gold")
			old("clear", "[k one]")
			plan("")
			put("gold") // and the new release again
			plan("gold")
		})
	}
}

// lazy counts how often it is decoded.
type lazy struct{ N byte }

var lazyDecoded atomic.Int64

func (l lazy) GobEncode() ([]byte, error)   { return []byte{l.N}, nil }
func (l *lazy) GobDecode(b []byte) error    { l.N = b[0]; lazyDecoded.Add(1); return nil }
func (l lazy) String() string               { return fmt.Sprint("lazy ", l.N) }
func (l lazy) MarshalText() ([]byte, error) { panic("not asked for") }

func TestValuesAreDecodedWhenTheyAreLookedAt(t *testing.T) {
	gob.Register(lazy{})
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		other := sameSite(t, m, rb.NewClient(t), slowly)
		b := begin(t, m, "ann")
		b.request(func(ctx context.Context) { m.Put(ctx, "lazy", lazy{7}) })
		b.m = other
		for _, step := range []struct {
			name string
			do   func(ctx context.Context)
		}{
			{"load", func(ctx context.Context) {}},
			{"facts", func(ctx context.Context) {
				_, _, _, _ = m.UserID(ctx), m.Info(ctx), m.Pending(ctx), m.AuthenticatedWithin(ctx, time.Hour)
			}},
			{"touch", func(ctx context.Context) { advance(t, rb, 10*time.Minute, m, other) }},
			{"Remember", func(ctx context.Context) { other.Remember(ctx, true) }},
			{"Commit", func(ctx context.Context) { other.Remember(ctx, false); _ = other.Commit(ctx) }},
			{"merge", func(ctx context.Context) {
				other.Remember(ctx, true)
				(&browser{t, m, b.cookie}).request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			}},
			{"Rotate", func(ctx context.Context) { _ = other.Rotate(ctx) }},
			{"Login", func(ctx context.Context) { _ = other.Login(ctx, "ann") }},
		} {
			lazyDecoded.Store(0)
			b.request(step.do)
			if n := lazyDecoded.Load(); n != 0 {
				t.Errorf("%s: decoded %d times", step.name, n)
			}
		}
		b.request(func(ctx context.Context) {
			lazyDecoded.Store(0)
			for range 3 {
				if got := other.Get(ctx, "lazy"); got != (lazy{7}) {
					t.Errorf("%v", got)
				}
			}
			if n := lazyDecoded.Load(); n != 1 {
				t.Errorf("looked at thrice: decoded %d times", n)
			}
		})
		b.request(func(ctx context.Context) { _ = other.Logout(ctx) })
	})
}

// TestAnEqualPutIsAChange: whoever commits last wins, also with what he has found.
func TestAnEqualPutIsAChange(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		other := sameSite(t, m, rb.NewClient(t), slowly)
		for name, theirs := range map[string]func(ctx context.Context){
			"another value": func(ctx context.Context) { other.Put(ctx, "k", "theirs") },
			"removed":       func(ctx context.Context) { other.Remove(ctx, "k") },
			"cleared":       func(ctx context.Context) { _ = other.Clear(ctx) },
			"the same":      func(ctx context.Context) { other.Put(ctx, "k", "v") },
		} {
			for _, user := range []string{"", "ann"} {
				b := begin(t, m, user)
				ctx := load(t, m, b.cookie)
				(&browser{t, other, b.cookie}).request(theirs)
				m.Put(ctx, "k", "v")
				if !m.Pending(ctx) {
					t.Errorf("%s: not pending", name)
				}
				if err := m.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if m.Pending(ctx) {
					t.Errorf("%s: pending after a commit", name)
				}
				for where, m := range map[string]*Manager{"here": m, "there": other} {
					if got := byCookie(t, m, b.cookie).values; got != "map[k:v]" {
						t.Errorf("%s: %s shows %s", name, where, got)
					}
				}
			}
		}
	})
}

// TestAMergeIsSeenByLaterReads: after a commit, a request reads what others have saved, and
// still what it has changed itself.
func TestAMergeIsSeenByLaterReads(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		other := sameSite(t, m, rb.NewClient(t), slowly)
		ends := map[string]func(ctx context.Context) error{
			"Commit": m.Commit,
			"Finish": func(ctx context.Context) error { _, err := m.Finish(ctx); return err },
			"rotation": func(ctx context.Context) error {
				_ = m.Rotate(ctx)
				_, err := m.Finish(ctx)
				return err
			},
		}
		for name, end := range ends {
			for _, looked := range []bool{false, true} {
				b := begin(t, m, "ann")
				b.request(func(ctx context.Context) {
					m.Put(ctx, "changed", "old")
					m.Put(ctx, "removed", "old")
					m.Put(ctx, "both", "old")
					m.Put(ctx, "popped", "old")
				})
				ctx := load(t, m, b.cookie)
				if looked {
					m.Keys(ctx)
				}
				(&browser{t, other, b.cookie}).request(func(ctx context.Context) {
					other.Put(ctx, "added", "theirs")
					other.Put(ctx, "changed", "theirs")
					other.Remove(ctx, "removed")
					other.Put(ctx, "both", "theirs")
					other.Put(ctx, "popped", "theirs")
				})
				m.Put(ctx, "mine", "mine")
				m.Put(ctx, "both", "mine")
				m.Pop(ctx, "popped")
				if err := end(ctx); err != nil {
					t.Fatal(err)
				}
				const want = "map[added:theirs both:mine changed:theirs k:v mine:mine]"
				if got := shownTo(m, ctx); got.values != want || got.user != "ann" {
					t.Errorf("%s, looked before %v: the request reads %+v", name, looked, got)
				}
				if got := byCookie(t, other, b.cookie).values; got != want {
					t.Errorf("%s, looked before %v: Redis has %s", name, looked, got)
				}
				if m.Stats().Conflicts == 0 {
					t.Error("there was no conflict")
				}
				// What is put after the commit was begun is the request's own, and goes with the next.
				m.Put(ctx, "added", "mine now")
				(&browser{t, other, b.cookie}).request(func(ctx context.Context) { other.Put(ctx, "added", "theirs again") })
				if got := m.GetString(ctx, "added"); got != "mine now" || !m.Pending(ctx) {
					t.Errorf("%s: %q", name, got)
				}
				if err := m.Commit(ctx); err != nil {
					t.Fatal(err)
				}
				if got := byCookie(t, other, b.cookie).values; !strings.Contains(got, "added:mine now") {
					t.Errorf("%s: %s", name, got)
				}
			}
		}
	})
}

// heldReply keeps the reply to the first command of a name until it is let go.
type heldReply struct {
	onlyCommands
	command      string
	held         atomic.Bool
	ran, release chan struct{}
}

func holdReply(client redis.UniversalClient, command string) *heldReply {
	h := &heldReply{command: command, ran: make(chan struct{}), release: make(chan struct{})}
	client.AddHook(h)
	return h
}

func (h *heldReply) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if nameOf(cmd) == h.command && h.held.CompareAndSwap(false, true) {
			close(h.ran)
			<-h.release
		}
		return err
	}
}

func (h *heldReply) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// TestRepliesThatOvertakeEachOther has two goroutines of one request commit; the reply to
// the one that was first arrives last. The request goes on with what stands in Redis.
func TestRepliesThatOvertakeEachOther(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		for name, act := range map[string]func(m *Manager, ctx context.Context){
			"save":   func(m *Manager, ctx context.Context) { m.Put(ctx, "a", 1) },
			"touch":  func(m *Manager, ctx context.Context) {},
			"create": func(m *Manager, ctx context.Context) { m.Put(ctx, "a", 1) },
		} {
			client := rb.NewClient(t)
			hold := holdReply(client, name)
			slow := sameSite(t, m, client, Config{Timeout: time.Minute})
			cookie := ""
			if name != "create" {
				cookie = begin(t, m, "ann").cookie
			}
			ctx := load(t, slow, cookie)
			if name == "touch" {
				advance(t, rb, 10*time.Minute, m, slow)
			}
			act(slow, ctx)
			first, second := make(chan error, 1), make(chan error, 1)
			go func() { first <- slow.Commit(ctx) }()
			<-hold.ran
			slow.Put(ctx, "b", 2)
			go func() { second <- slow.Commit(ctx) }()
			select { // it may be done at once, or wait for the first
			case err := <-second:
				second <- err
			case <-time.After(50 * time.Millisecond):
			}
			close(hold.release)
			if err := errors.Join(<-first, <-second); err != nil {
				t.Fatal(err)
			}
			seen := shownTo(slow, ctx)
			if !strings.Contains(seen.values, "b:2") {
				t.Errorf("%s: after its own commit a goroutine reads %s", name, seen.values)
			}
			o := finish(t, slow, ctx)
			if o.Action == CookieSet {
				cookie = o.Value
			}
			if got := byCookie(t, m, cookie); got != seen {
				t.Errorf("%s: Redis has %+v, the request saw %+v", name, got, seen)
			}
		}
	})
}

// TestGoroutinesOfOneRequestLoseNothing has many of them put, commit and read what they
// have put, beside other requests of the session.
func TestGoroutinesOfOneRequestLoseNothing(t *testing.T) {
	each(t, slowly, func(t *testing.T, rb redistest.Backend, m *Manager) {
		const n, rounds = 6, 8
		for _, start := range []string{"", "ann"} {
			b := &browser{t, m, ""}
			if start != "" {
				b = begin(t, m, start)
			}
			ctx := load(t, m, b.cookie)
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					for j := range rounds {
						m.Put(ctx, fmt.Sprintf("own %d.%d", i, j), j)
						m.Put(ctx, "shared", fmt.Sprint(i, ".", j))
						if err := m.Commit(ctx); err != nil {
							t.Error(err)
						}
						for k := range j + 1 {
							if key := fmt.Sprintf("own %d.%d", i, k); m.GetInt(ctx, key) != k || !m.Exists(ctx, key) {
								t.Errorf("start %q: after its commit %d, %q is not seen", start, j, key)
							}
						}
					}
				})
				if start == "" {
					continue // there is no cookie yet
				}
				wg.Go(func() {
					for j := range rounds {
						(&browser{t, m, b.cookie}).request(func(ctx context.Context) { m.Put(ctx, fmt.Sprintf("request %d.%d", i, j), j) })
					}
				})
			}
			wg.Wait()
			b.take(finish(t, m, ctx))
			want := 1 + n*rounds
			if start != "" {
				want = 2 + 2*n*rounds
			}
			after := load(t, m, b.cookie)
			if got := len(m.Keys(after)); got != want {
				t.Errorf("start %q: %d keys are saved, want %d", start, got, want)
			}
			if m.GetString(after, "shared") != m.GetString(ctx, "shared") {
				t.Errorf("start %q: the request reads %q, Redis has %q", start, m.GetString(ctx, "shared"), m.GetString(after, "shared"))
			}
		}
	})
}

// ownGoroutines returns the goroutines that run code of this package or of scs, by their
// number, but for those of tests.
func ownGoroutines() map[string]string {
	own := make(map[string]string)
	buf := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "testing.tRunner") || strings.Contains(g, "testing.(*M)") {
			continue
		}
		if strings.Contains(g, "gatehouse/session") || strings.Contains(g, "gatehouse/internal/roundtrip") || strings.Contains(g, "alexedwards/scs") {
			number, _, _ := strings.Cut(g, " [")
			own[number] = g
		}
	}
	return own
}

// TestManagersLeaveNothingBehind: neither a goroutine nor itself.
func TestManagersLeaveNothingBehind(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		legacyStore := memstore.NewWithCleanupInterval(0)
		token := legacySession(t, legacyStore, map[string]any{"k": "v"}, time.Now().Add(time.Hour))
		use := func() (weak.Pointer[Manager], weak.Pointer[Store]) {
			m := manager(t, rb, Config{
				Secrets: [][]byte{secret}, Rotation: Rotation{Every: time.Hour},
				Legacy: Legacy{Store: legacyStore, User: userValue},
			})
			b := begin(t, m, "")
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					(&browser{t, m, b.cookie}).request(func(ctx context.Context) { m.Put(ctx, fmt.Sprint(i), i) })
				})
			}
			wg.Wait()
			b.request(func(ctx context.Context) { _ = m.Login(ctx, "ann") })
			b.request(func(ctx context.Context) { _ = m.Rotate(ctx) })
			b.request(func(ctx context.Context) { _ = m.Logout(ctx) })
			byToken(t, m, token)
			s, err := NewStore(rb.Client, Config{Secrets: [][]byte{secret}})
			if err == nil {
				_, _, err = s.Find("x")
			}
			if err != nil {
				t.Fatal(err)
			}
			return weak.Make(m), weak.Make(s)
		}
		use() // connects

		// Other tests may have left some.
		before, others := runtime.NumGoroutine(), ownGoroutines()
		var managers []weak.Pointer[Manager]
		var stores []weak.Pointer[Store]
		for range 30 {
			m, s := use()
			managers, stores = append(managers, m), append(stores, s)
		}
		eventually(t, func() string {
			runtime.GC()
			for number, g := range ownGoroutines() {
				if others[number] == "" {
					return "left:\n" + g
				}
			}
			// The client may hold a few connections more, each with a goroutine in miniredis.
			if n := runtime.NumGoroutine() - before; n >= 30 {
				return fmt.Sprintf("%d goroutines more than before", n)
			}
			left := 0
			for i := range managers {
				if managers[i].Value() != nil {
					left++
				}
				if stores[i].Value() != nil {
					left++
				}
			}
			if left > 1 { // one may still be in a register
				return fmt.Sprintf("%d Managers and Stores are left", left)
			}
			return ""
		})
	})
}

// eventually waits until f has nothing to complain of.
func eventually(t *testing.T, f func() string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		wrong := f()
		if wrong == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(wrong)
		}
	}
}
