package session

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// Recent finds what happened to one user, newest first, among whatever else stands in the stream.
func TestRecentIsOfOneUser(t *testing.T) {
	redistest.Each(t, func(t *testing.T, rb redistest.Backend) {
		for _, secrets := range [][][]byte{nil, {[]byte(strings.Repeat("k", 32))}} {
			m, err := New(rb.Client, Config{Prefix: fmt.Sprintf("recent%d:", len(secrets)), Secrets: secrets, KeySecret: []byte(strings.Repeat("h", 32)), Events: Events{Retention: time.Hour}, Timeout: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			in := func(user string) {
				t.Helper()
				ctx, err := m.Load(t.Context())
				if err == nil {
					err = m.Login(ctx, user)
				}
				if err != nil {
					t.Fatal(err)
				}
				finish(t, m, ctx)
			}
			for range 3 {
				in("ann")
				in("bob")
			}
			if _, err := m.EndAll(t.Context(), "ann", Cause{Actor: "ops"}); err != nil {
				t.Fatal(err)
			}
			stream := m.records.keys.events(m.records.keys.user("ann")[0])
			pipe := rb.Client.Pipeline()
			for i := range 2500 { // of others, and none at all
				pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []any{"e", strings.Repeat("x", i%80)}})
			}
			if _, err := pipe.Exec(t.Context()); err != nil {
				t.Fatal(err)
			}
			list, err := m.Recent(t.Context(), "ann", 10)
			if got := kindsOf(list); err != nil || got != "ann ended(revoked ops), ann ended(revoked ops), ann ended(revoked ops), ann logged-in, ann logged-in, ann logged-in" {
				t.Errorf("%q, %v", got, err)
			}
			if list, err := m.Recent(t.Context(), "ann", 4); err != nil || len(list) != 4 || list[3].Kind != LoggedIn {
				t.Errorf("%v, %v", list, err)
			}
			if list, err := m.Recent(t.Context(), "cleo", 4); err != nil || len(list) != 0 {
				t.Errorf("%v, %v", list, err)
			}
			if _, err := m.Recent(t.Context(), "", 4); !errors.Is(err, ErrNoUser) {
				t.Errorf("nobody: %v", err)
			}
			if list, err := m.Recent(t.Context(), "ann", 0); err != nil || len(list) != 0 {
				t.Errorf("none: %v, %v", list, err)
			}
		}
	})
}
