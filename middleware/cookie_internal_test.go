package middleware

import (
	"net/http"
	"testing"
)

// Whatever a client sends, cookieNamed finds what net/http finds.
func FuzzCookieNamed(f *testing.F) {
	for _, line := range []string{
		"", "session=abc", "a=b; session=abc.def-_=; c=d", `session="abc"`, `session="a b"`, "session", "session=",
		" session = abc ", "session=a,b", "x=session=1;session=2", ";;session=\x00; session=abc", "Session=a", "session=a;session=b",
	} {
		f.Add(line, "")
		f.Add("other=1", line)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := &http.Request{Header: http.Header{"Cookie": {first, second}}}
		want, err := r.Cookie("session")
		got, ok := cookieNamed(r, "session")
		if ok != (err == nil) || ok && got != want.Value {
			t.Errorf("%q, %q: %q, %v, want %v, %v", first, second, got, ok, want, err)
		}
	})
}
