package middleware

import (
	"strings"
	"testing"
)

func TestPrefersText(t *testing.T) {
	for _, tc := range []struct {
		name   string
		accept []string
		want   bool
	}{
		{"no header", nil, false},
		{"empty", []string{""}, false},
		{"curl, fetch", []string{"*/*"}, false},
		{"a browser", []string{"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}, true},
		{"plain text", []string{"text/plain"}, true},
		{"JSON", []string{"application/json"}, false},
		{"problem", []string{"application/problem+json, text/html"}, false},
		{"JSON, but rather text", []string{"application/json;q=0.5, text/html"}, true},
		{"text, but rather JSON", []string{"text/html;q=0.5", "application/json"}, false},
		{"any text", []string{"text/*"}, true},
		{"any application", []string{"application/*, text/*;q=0.9"}, false},
		{"specific over general", []string{"text/*;q=0.1, text/html, */*;q=0.5"}, true},
		{"no JSON", []string{"*/*, application/json;q=0, application/problem+json;q=0"}, true},
		{"neither", []string{"image/png"}, false},
		{"case and spaces", []string{" TEXT/HTML ; Q=1 "}, true},
		{"another parameter", []string{"text/html;level=1;q=0.4, application/json;q=0.5"}, false},
		{"broken quality", []string{"text/html;q=high"}, false},
		{"quality out of range", []string{"text/html;q=7"}, false},
		{"not a number", []string{"text/html;q=NaN"}, false},
		{"hostile", []string{strings.Repeat(",;q=", 25_000)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := prefersText(tc.accept); got != tc.want {
				t.Errorf("prefersText(%.60q) = %v", tc.accept, got)
			}
		})
	}
}
