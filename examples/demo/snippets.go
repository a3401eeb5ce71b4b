package main

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"
)

// The page shows what runs: it is cut out of these files between "// snippet NAME: TITLE" and "// end".
//
//go:embed bans.go devices.go fleet.go limits.go main.go ops.go outage.go password.go
var source embed.FS

var snippets = cut()

type code struct{ Title, Text string }

func cut() map[string]*code {
	found := map[string]*code{}
	names, err := fs.Glob(source, "*.go")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		text, err := source.ReadFile(name)
		if err != nil {
			panic(err)
		}
		var in *code
		var indent string
		for line := range strings.Lines(string(text)) {
			trimmed := strings.TrimLeft(line, "\t")
			if marker, ok := strings.CutPrefix(trimmed, "// snippet "); ok {
				name, title, _ := strings.Cut(strings.TrimSpace(marker), ": ")
				in, indent = &code{Title: title}, line[:len(line)-len(trimmed)]
				found[name] = in
			} else if trimmed == "// end\n" && in != nil {
				in.Text = strings.TrimSpace(in.Text)
				in = nil
			} else if in != nil {
				in.Text += strings.ReplaceAll(strings.TrimPrefix(line, indent), "\t", "    ")
			}
		}
	}
	return found
}

// snippet returns the code of a name for the page.
func snippet(name string) (*code, error) {
	c, ok := snippets[name]
	if !ok {
		return nil, fmt.Errorf("no code is marked as %q", name)
	}
	return c, nil
}
