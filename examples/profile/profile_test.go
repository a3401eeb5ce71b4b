package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

func TestMain(m *testing.M) { redistest.Main(m) }

func TestRolesOverTwoServers(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		db, err := Open(t.Context(), "", "ann", "bob")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var servers [2]http.Handler
		for i := range servers {
			if servers[i], err = New(b.NewClient(t), db); err != nil {
				t.Fatal(err)
			}
		}
		ann, bob := servicetest.NewClient(t, servers[0]), servicetest.NewClient(t, servers[1])
		bob.Do(401, "POST", "/edit", "")
		bob.Do(403, "POST", "/login", "user=mallory")
		bob.Do(403, "POST", "/login", "")
		ann.Do(303, "POST", "/login", "user=ann")
		bob.Do(303, "POST", "/login", "user=bob")
		bob.Do(403, "POST", "/role", "user=bob&role=admin")
		for range 20 {
			bob.Do(200, "POST", "/edit", "")
		}
		if n := db.loads.Load(); n > 3 { // ann, bob, mallory
			t.Errorf("the database was asked %d times", n)
		}
		// A role that was taken away is gone on the other server with the next request.
		for range 10 {
			ann.Do(200, "POST", "/role", "user=bob&role=reader")
			bob.Do(403, "POST", "/edit", "")
			ann.Do(200, "POST", "/role", "user=bob&role=editor")
			bob.Do(200, "POST", "/edit", "")
		}
		ann.Do(404, "POST", "/role", "user=nobody&role=reader")
		if n := db.loads.Load(); n > 3 {
			t.Errorf("the database was asked %d times", n)
		}
		for tries := 0; ; tries++ { // on a busy machine some may not wait for the cache
			if page, _ := ann.Do(200, "POST", "/stampede", ""); strings.Contains(page, "200 requests at once asked the database 1 time(s) with the cache, 200 times without") {
				break
			} else if tries == 5 {
				t.Fatalf("%s", page)
			}
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func TestErrorsShowNoPassword(t *testing.T) {
	for _, url := range []string{"mysql://u:secret@h/d", "postgres://u:secret@%zz", "postgres://u:secret@127.0.0.1:1/d?connect_timeout=1"} {
		if _, err := Open(t.Context(), url); err == nil || strings.Contains(err.Error(), "secret") {
			t.Error(err)
		}
	}
}
