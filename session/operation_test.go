package session

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// Each method that asks or changes a session tells of itself once, with its error and whose it was.
func TestOnOperationTellsEach(t *testing.T) {
	server := redistest.Start(t)
	var told []string
	m, err := New(server.Client(), Config{OnOperation: func(o Operation) {
		if o.Took <= 0 {
			t.Errorf("%+v", o)
		}
		told = append(told, strings.TrimSpace(fmt.Sprint(o.Name, " ", o.UserID, map[bool]string{true: "!"}[o.Err != nil])))
	}})
	if err != nil {
		t.Fatal(err)
	}
	var all, observed int
	stop := m.Observe(func(Operation) { observed++ })
	do := func(want string, f func()) {
		t.Helper()
		told = nil
		f()
		all += len(told)
		if strings.Join(told, ", ") != want {
			t.Errorf("%q, want %q", strings.Join(told, ", "), want)
		}
	}
	cookie := ""
	request := func(f func(ctx context.Context) error) func() {
		return func() {
			t.Helper()
			ctx, err := m.Load(t.Context(), cookie)
			if err != nil {
				t.Fatal(err)
			}
			if err := f(ctx); err != nil && !errors.Is(err, ErrUnknownHandle) {
				t.Error(err)
			}
			out, err := m.Finish(ctx)
			if err != nil {
				t.Error(err)
			}
			if out.Value != "" {
				cookie = out.Value
			}
		}
	}
	do("Load, Login ann, Finish ann", request(func(ctx context.Context) error { return m.Login(ctx, "ann") }))
	do("Load ann, Commit ann, PopOnce ann, Finish ann", request(func(ctx context.Context) error {
		m.Put(ctx, "k", "v")
		if err := m.Commit(ctx); err != nil {
			return err
		}
		_, err := m.PopOnce(ctx, "k")
		return err
	}))
	do("Load ann, Rotate ann, Finish ann", request(m.Rotate))
	do("Load ann, End bob!, Finish ann", request(func(ctx context.Context) error { return m.End(ctx, "bob", "x", Cause{}) }))
	do("Load ann, Confirm ann, EndOthers ann, Finish ann", request(func(ctx context.Context) error {
		if err := m.Confirm(ctx); err != nil {
			return err
		}
		_, err := m.EndOthers(ctx, Cause{})
		return err
	}))
	do("EndAll bob", func() { _, _ = m.EndAll(t.Context(), "bob", Cause{}) })
	do("Load ann, Logout, Finish", request(func(ctx context.Context) error { return m.Logout(ctx) }))
	stop()
	got := m.Stats()
	counted := 0
	for _, n := range got.Operations {
		counted += int(n.Done + n.Refused + n.Failed)
	}
	if counted != all || observed != all {
		t.Errorf("%d counted, %d observed, want %d: %+v", counted, observed, all, got)
	}
	if n := got.Operations["End"]; got.Found != 5 || got.Saved != 2 || n != (Outcomes{Refused: 1}) {
		t.Errorf("%+v", got)
	}
	server.Stop()
	do("Load !", func() { _, _ = m.Load(t.Context(), cookie) })
	if n := m.Stats().Operations["Load"]; n.Failed != 1 || observed != counted {
		t.Errorf("%+v, %d observed", n, observed)
	}
}
