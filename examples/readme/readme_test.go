package main

import (
	"os"
	"strings"
	"testing"
)

// The README shows this program, so it compiles.
func TestREADMEShowsThisProgram(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "```go\n"+string(program)+"```") {
		t.Error("README.md does not show examples/readme/main.go as it is")
	}
	if n := strings.Count(string(program), "\n"); n > 20 {
		t.Errorf("the program has %d lines, and 20 were promised", n)
	}
}
