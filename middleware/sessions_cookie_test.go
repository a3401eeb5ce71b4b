package middleware

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Whatever a client sends, cookiesNamed finds what net/http finds and what can be a session
// cookie, in that order, up to the room that it has.
func FuzzCookiesNamed(f *testing.F) {
	for _, line := range []string{
		"", "session=abc", "a=b; session=abc.def-_=; c=d", `session="abc"`, `session="a b"`, "session", "session=",
		" session = abc ", "session=a,b", "x=session=1;session=2", ";;session=\x00; session=abc", "Session=a", "session=a;session=b",
		`session=a; session="b"; session=c c; session; session=d`,
	} {
		f.Add(line, "")
		f.Add("other=1", line)
		f.Add(line, line)
	}
	f.Fuzz(func(t *testing.T, first, second string) {
		r := &http.Request{Header: http.Header{"Cookie": {first, second}}}
		var want []string
		for _, c := range r.CookiesNamed("session") {
			if isPlain(c.Value) {
				want = append(want, c.Value)
			}
		}
		if strings.Count(first+second, ";") > 1000 {
			t.Skip("net/http finds nothing among some thousands of cookies")
		}
		for _, room := range []int{0, 1, 2, maxNamed} {
			want := want[:min(room, len(want))]
			if got := cookiesNamed(make([]string, 0, room), r, "session"); !slices.Equal(got, want) {
				t.Errorf("%q, %q: %q, want %q", first, second, got, want)
			}
		}
		// What is left without them are the others.
		others := slices.DeleteFunc(r.Cookies(), func(c *http.Cookie) bool { return c.Name == "session" })
		left := (&http.Request{Header: withoutCookies(r.Header, "session", "")}).Cookies()
		if !slices.EqualFunc(left, others, func(a, b *http.Cookie) bool { return a.String() == b.String() }) {
			t.Errorf("%q, %q: %v is left, want %v", first, second, left, others)
		}
	})
}
