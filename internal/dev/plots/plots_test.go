package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rowsOf returns what a limiter that lets n requests through at once would answer, and a denial at the end.
func rowsOf(name string, n int) []row {
	r := row{name: name}
	for i := range n {
		r.answers = append(r.answers, answer{time.Duration(i) * 10 * time.Millisecond, true})
	}
	r.answers = append(r.answers, answer{3 * time.Second, true}, answer{3100 * time.Millisecond, false})
	return []row{r}
}

func TestMostOfAnyWindow(t *testing.T) {
	r := rowsOf(fixedWindow, 12)[0]
	if n, at := r.most(); n != 12 || at != 110*time.Millisecond {
		t.Errorf("%d at %v", n, at)
	}
	if edges := r.edges(); len(edges) != 2 || edges[0] != limit.Window || edges[1] != 3*time.Second+limit.Window {
		t.Error(edges)
	}
}

func TestCheckRefusesWhatIsNotPromised(t *testing.T) {
	for _, tc := range []struct {
		name   string
		passed int
		ok     bool
	}{
		{slidingWindow, 10, true}, {slidingWindow, 11, false}, {fixedWindow, 20, true}, {fixedWindow, 21, false}, {tokenBucket, 21, false},
	} {
		if err := check(rowsOf(tc.name, tc.passed)); (err == nil) != tc.ok {
			t.Errorf("%s, %d passed: %v", tc.name, tc.passed, err)
		}
	}
}

// The page shows each plot, and each is well-formed.
func TestPageShowsThePlots(t *testing.T) {
	page, err := os.ReadFile("../../../docs/choosing-a-limiter.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range traffics() {
		name := "limiter-" + tr.file + ".svg"
		if !strings.Contains(string(page), "(images/"+name+")") {
			t.Errorf("the page does not show %s", name)
		}
		b, err := os.ReadFile(filepath.Join("../../../docs/images", name))
		if err != nil {
			t.Fatal(err)
		}
		wellFormed(t, name, string(b))
	}
	wellFormed(t, "drawn now", string(draw("a < b & c", rowsOf(tokenBucket, 15))))
}

func wellFormed(t *testing.T, name, s string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(s)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
	}
}
