package recipes

import (
	"testing"
	"time"
)

func TestOneOfEach(t *testing.T) {
	client, _ := connect(t)
	if err := oneOfEach(client, time.UTC); err != nil {
		t.Error(err)
	}
}

func TestEvenAndCapped(t *testing.T) {
	client, _ := connect(t)
	limiter, err := evenAndCapped(client)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		res, err := limiter.Take(t.Context(), "k", 1)
		if err != nil {
			t.Fatal(err)
		}
		if want := i < 10; res.Allowed != want && i != 10 { // a slow machine may have one more by then
			t.Errorf("request %d: %v", i, res)
		}
	}
	if res, err := limiter.Take(t.Context(), "k", 0); err != nil || res.Policy != "api-second" {
		t.Error(res, err)
	}
}
