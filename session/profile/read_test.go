package profile

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
)

// scriptsRun returns how many scripts a server has run, and how long they took.
func scriptsRun(t *testing.T, server *redistest.Server) (n int, took time.Duration) {
	t.Helper()
	stats, err := server.Client().Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(stats) {
		for _, command := range []string{"evalsha", "eval"} {
			var calls, usec int
			if _, err := fmt.Sscanf(line, "cmdstat_"+command+":calls=%d,usec=%d", &calls, &usec); err == nil {
				n += calls
				took += time.Duration(usec) * time.Microsecond
			}
		}
	}
	return n, took
}

// A hit runs no script, with one caller and with many, but for one a minute, which says what time it
// is.
func TestAHitRunsNoScript(t *testing.T) {
	server := redistest.Start(t)
	var db database
	db.set("ann", "ann")
	client := server.Client()
	c := newCache(t, client, db.load, Config{})
	wants(t, c, "ann", "ann")
	ran := func(hits int, parallel bool) int {
		before, _ := scriptsRun(t, server)
		inParallel(t, hits, parallel, func() { wants(t, c, "ann", "ann") })
		after, _ := scriptsRun(t, server)
		return after - before
	}
	for _, parallel := range []bool{false, true} {
		if n := ran(200, parallel); n != 0 {
			t.Errorf("200 hits, parallel %v: %d scripts", parallel, n)
		}
	}
	roundtrip.Advance(client, askAgain+time.Second)
	if n := ran(10, false); n != 1 {
		t.Errorf("10 hits after a minute: %d scripts", n)
	}
	roundtrip.Advance(client, -2*time.Minute) // the process's clock is set back
	if n := ran(10, false); n != 1 {
		t.Errorf("10 hits with a clock that was set back: %d scripts", n)
	}
	if s := c.Stats(); s.Loads != 1 || s.Hits != 420 {
		t.Errorf("%+v", s)
	}
}

// What is not plainly good is left to the script, which loads it anew.
func TestWhatIsNotPlainlyGoodIsLoaded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		far := time.Now().Add(24 * time.Hour).UnixMicro()
		for name, spoil := range map[string]func(c *Cache[user], at place, value string){
			"of another version": func(c *Cache[user], at place, value string) {
				b.Client.HSet(t.Context(), at.keys[0], c.core.form, strings.Repeat("x", 16)+value[16:])
			},
			"the version has changed": func(c *Cache[user], at place, _ string) {
				b.Client.HSet(t.Context(), at.keys[1], "v", fresh())
			},
			"there is no version": func(c *Cache[user], at place, _ string) {
				b.Client.Del(t.Context(), at.keys[1])
			},
			"an update died": func(c *Cache[user], at place, value string) {
				past := time.Now().Add(-time.Minute).UnixMicro()
				b.Client.HSet(t.Context(), at.keys[0], "u", fmt.Sprintf("%s%d%d%s", value[:16], past-1000, past, fresh()))
			},
			"from when the clock was a day ahead": func(c *Cache[user], at place, value string) {
				b.Client.HSet(t.Context(), at.keys[0], c.core.form, fmt.Sprintf("%s%d%d%s", value[:16], far, far, value[headLen:]))
			},
			"cut": func(c *Cache[user], at place, value string) {
				b.Client.HSet(t.Context(), at.keys[0], c.core.form, value[:headLen])
			},
			"garbage": func(c *Cache[user], at place, value string) {
				b.Client.HSet(t.Context(), at.keys[0], c.core.form, strings.Repeat("9", 100))
			},
		} {
			var db database
			db.set(name, "old")
			c := newCache(t, b.Client, db.load, Config{TTL: time.Hour})
			b.Advance(t, 0)
			wants(t, c, name, "old")
			at := c.core.place(name)
			value, err := b.Client.HGet(t.Context(), at.keys[0], c.core.form).Result()
			if err != nil {
				t.Fatal(err)
			}
			db.set(name, "new")
			wants(t, c, name, "old") // it is cached
			spoil(c, at, value)
			wants(t, c, name, "new")
		}
	})
}

// A client that reads from replicas, which lag behind, has each Get ask the script, on the master.
func TestNoPlainReadsFromReplicas(t *testing.T) {
	cluster := redistest.SharedCluster(t)
	for name, set := range map[string]func(*redis.ClusterOptions){
		"ReadOnly":      func(o *redis.ClusterOptions) { o.ReadOnly = true },
		"RouteRandomly": func(o *redis.ClusterOptions) { o.RouteRandomly = true },
	} {
		var db database
		db.set(name, "old")
		c := newCache(t, cluster.Client(set), db.load, Config{})
		wants(t, c, name, "old")
		if _, err := c.core.read(t.Context(), c.core.place(name), c.core.redis.Now()); err == nil {
			t.Errorf("%s: read without the script", name)
		}
		wants(t, c, name, "old")
		if s := c.Stats(); s.Loads != 1 || s.Hits != 1 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	cluster.Flush()
}

// inParallel does something n times, at once or one after the other.
func inParallel(t *testing.T, n int, parallel bool, do func()) {
	t.Helper()
	var all sync.WaitGroup
	defer all.Wait()
	for range n {
		if parallel {
			all.Go(do)
		} else {
			do()
		}
	}
}
