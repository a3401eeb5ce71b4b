package session

import (
	"bytes"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2/memstore"
	"github.com/redis/go-redis/v9"
)

func TestConfigDefaults(t *testing.T) {
	c, err := Config{}.check(mini(t).Client)
	if err != nil {
		t.Fatal(err)
	}
	day := Life{24 * time.Hour, time.Hour}
	if got := (Life{c.Lifetime, c.IdleTimeout}); got != day || c.Visitor != day || c.Remembered != day || c.Legacy.Lifetime != day.Lifetime {
		t.Errorf("%v, visitor %v, remembered %v, legacy %v", got, c.Visitor, c.Remembered, c.Legacy.Lifetime)
	}
	if c.Rotation != (Rotation{0, 30 * time.Second}) || c.Timeout != 500*time.Millisecond || c.Prefix != "gatehouse:" || c.Logger != slog.Default() {
		t.Errorf("%+v", c)
	}
	c, err = Config{Lifetime: 10 * time.Hour, IdleTimeout: -1, Visitor: Life{IdleTimeout: time.Minute}, Remembered: Life{Lifetime: 1000 * time.Hour}}.check(mini(t).Client)
	if err != nil || c.IdleTimeout != 0 || c.Visitor != (Life{10 * time.Hour, time.Minute}) || c.Remembered != (Life{1000 * time.Hour, 0}) {
		t.Errorf("%+v, %v", c, err)
	}
}

// One error names all that is wrong.
func TestConfigErrors(t *testing.T) {
	client := mini(t).Client
	short := []byte("hunter2 hunter2 hunter2 hunter2")
	for _, tc := range []struct {
		name   string
		client redis.UniversalClient
		cfg    Config
		want   []string // one a line
	}{
		{"no client", nil, Config{}, []string{"client is nil"}},
		{"an empty list of secrets", client, Config{Secrets: [][]byte{}}, []string{"the list of Secrets is empty"}},
		{"a list of nothing", client, Config{Secrets: [][]byte{nil}, KeySecret: keySecret}, []string{"Secrets[0] has 0 bytes"}},
		{"short secrets", client, Config{Secrets: [][]byte{secret, short, short[:3]}, KeySecret: short}, []string{"Secrets[1] has 31 bytes", "Secrets[2] has 3 bytes", "KeySecret has 31 bytes"}},
		{"one secret twice", client, Config{Secrets: [][]byte{secret, newSecret, secret}, KeySecret: keySecret}, []string{"Secrets[2] has the same key ID as Secrets[0]"}},
		{"no KeySecret", client, Config{Secrets: [][]byte{secret}}, []string{"KeySecret is required with Secrets"}},
		{"an empty KeySecret", client, Config{KeySecret: []byte{}}, []string{"KeySecret has 0 bytes"}},
		{"an empty KeySecret with secrets", client, Config{Secrets: [][]byte{secret}, KeySecret: []byte{}}, []string{"KeySecret has 0 bytes"}},
		{"braces", client, Config{Prefix: "a{b}"}, []string{`invalid Prefix "a{b}": at most 128 bytes of printable ASCII without braces`}},
		{"a prefix of control characters", client, Config{Prefix: "\x00\n"}, []string{`invalid Prefix "\x00\n": at most`}},
		{"a long prefix", client, Config{Prefix: strings.Repeat("x", 1<<20)}, []string{`invalid Prefix "` + strings.Repeat("x", 128) + `": at most`}},
		{"negative times", client, Config{
			Lifetime: -1, Visitor: Life{Lifetime: -1}, Remembered: Life{Lifetime: -1}, Rotation: Rotation{-1, -1}, Timeout: -1,
			Legacy: Legacy{Store: memstore.New(), Lifetime: -1},
		}, []string{
			"Lifetime -1ns is negative", "Rotation.Every -1ns is negative", "Rotation.Grace -1ns is negative", "Timeout -1ns is negative",
			"Visitor.Lifetime -1ns is negative", "Remembered.Lifetime -1ns is negative", "Legacy.Lifetime -1ns is negative",
		}},
		{"times that are nothing", client, Config{
			Lifetime: time.Microsecond, IdleTimeout: 19 * time.Millisecond, Visitor: Life{1, 1}, Remembered: Life{1, 1},
			Rotation: Rotation{999 * time.Microsecond, 1}, Timeout: 1,
		}, []string{
			"Lifetime 1µs is below", "Rotation.Every 999µs is below", "Rotation.Grace 1ns is below", "Timeout 1ns is below", "IdleTimeout 19ms is below",
			"Visitor.Lifetime 1ns is below", "Visitor.IdleTimeout 1ns is below", "Remembered.Lifetime 1ns is below", "Remembered.IdleTimeout 1ns is below",
		}},
		{"times without an end", client, Config{
			Lifetime: maxDuration + 1, IdleTimeout: maxDuration + 1, Visitor: Life{maxDuration + 1, maxDuration + 1},
			Rotation: Rotation{maxDuration + 1, maxDuration + 1}, Timeout: maxDuration + 1,
		}, []string{
			"Lifetime 876000h0m0.000000001s is above", "Rotation.Every 876", "Rotation.Grace 876", "Timeout 876", "IdleTimeout 876",
			"Visitor.Lifetime 876", "Visitor.IdleTimeout 876",
		}},
		{"legacy without a store", client, Config{Legacy: Legacy{User: func(map[string]any) string { return "" }}}, []string{"Legacy.User is set, but not Legacy.Store"}},
		{"legacy lifetime without a store", client, Config{Legacy: Legacy{Lifetime: time.Hour}}, []string{"Legacy.Lifetime is set, but not Legacy.Store"}},
		{"all at once", nil, Config{Prefix: "}", Secrets: [][]byte{short}, Lifetime: -1, IdleTimeout: 1, Visitor: Life{IdleTimeout: 1}, Rotation: Rotation{Grace: -1}, Legacy: Legacy{Lifetime: 1}}, []string{
			"client is nil", "invalid Prefix", "Secrets[0]", "KeySecret is required", "Lifetime", "Rotation.Grace", "IdleTimeout", "Visitor.IdleTimeout", "Legacy.Lifetime",
		}},
	} {
		m, err := New(tc.client, tc.cfg)
		if err == nil || m != nil {
			t.Errorf("%s: %v, error %v", tc.name, m, err)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(tc.want) {
			t.Errorf("%s: %d lines, want %d: %q", tc.name, len(lines), len(tc.want), err)
		}
		for _, want := range tc.want {
			found := 0
			for _, line := range lines {
				if strings.HasPrefix(strings.TrimPrefix(line, "session: "), want) {
					found++
				}
			}
			if found == 0 {
				t.Errorf("%s: %q does not say %q", tc.name, err, want)
			}
		}
		for _, s := range append(tc.cfg.Secrets, tc.cfg.KeySecret, []byte("hunter2")) {
			if len(s) > 0 && bytes.Contains([]byte(err.Error()), s) {
				t.Errorf("%s: %q shows a secret", tc.name, err)
			}
		}
	}
}

// A Store refuses each field of a Config that it would ignore, and takes the others.
func TestStoreConfigErrors(t *testing.T) {
	client := mini(t).Client
	taken := map[string]any{
		"Secrets": [][]byte{secret}, "Prefix": "other:", "Timeout": time.Second, "Logger": slog.New(slog.DiscardHandler),
	}
	all := reflect.TypeFor[Config]()
	for i := range all.NumField() {
		name := all.Field(i).Name
		var cfg Config
		field := reflect.ValueOf(&cfg).Elem().Field(i)
		if v, ok := taken[name]; ok {
			field.Set(reflect.ValueOf(v))
			if _, err := NewStore(client, cfg); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		set(field)
		_, err := NewStore(client, cfg)
		if err == nil || !strings.Contains(err.Error(), name+" does nothing in a Store") {
			t.Errorf("%s is ignored: %v", name, err)
		}
	}
	// It names them all, and nothing that was not set.
	_, err := NewStore(nil, Config{Secrets: [][]byte{[]byte("short")}, Lifetime: time.Hour, Persistent: true, Prefix: "{}"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"Lifetime does nothing", "Persistent does nothing", "client is nil", "Prefix", "Secrets[0] has 5 bytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 5 {
		t.Errorf("%d lines: %q", n, err)
	}
	if _, err := NewStore(client, Config{Secrets: [][]byte{}}); err == nil {
		t.Error("an empty list of secrets passes")
	}
}

// set gives a value other than zero.
func set(v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int32, reflect.Int64:
		v.SetInt(int64(time.Hour))
	case reflect.Uint8:
		v.SetUint(1)
	case reflect.String:
		v.SetString("x")
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 32, 32))
	case reflect.Func:
		v.Set(reflect.MakeFunc(v.Type(), func([]reflect.Value) []reflect.Value { return nil }))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Now()))
			return
		}
		for i := range v.NumField() {
			set(v.Field(i))
		}
	case reflect.Interface:
		if store := reflect.ValueOf(memstore.NewWithCleanupInterval(0)); store.Type().Implements(v.Type()) {
			v.Set(store)
		}
	}
}
