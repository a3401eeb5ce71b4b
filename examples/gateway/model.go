package main

import (
	"context"
	"strings"
	"time"
)

// Model is a language model.
type Model interface {
	// Count returns the number of tokens of a prompt.
	Count(prompt string) int
	// Complete gives each token of an answer, at most so many, until say returns an error.
	Complete(ctx context.Context, prompt string, most int, say func(token string) error) error
}

// Parrot is a model that says the prompt again and again. Its tokens are words.
type Parrot struct {
	Pause time.Duration // before each word
}

// Count is of Model.
func (Parrot) Count(prompt string) int { return len(strings.Fields(prompt)) }

// Complete is of Model.
func (p Parrot) Complete(ctx context.Context, prompt string, most int, say func(string) error) error {
	words := strings.Fields(prompt)
	for i := range most {
		select {
		case <-time.After(p.Pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := say(words[i%len(words)]); err != nil {
			return err
		}
	}
	return nil
}
