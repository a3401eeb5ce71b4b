package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/redis/rueidis"
)

// rueidisFixed stands for rueidislimiter, which cannot be downloaded as a module. It sends what
// that sends, over the same client: one EVALSHA over a counter and the end of its window.
var rueidisFixed = limiterLibrary{"rueidislimiter, a stand-in (fixed window)", peer, newRueidis}

var rueidisScript = rueidis.NewLuaScript(`
local ends = redis.call('GET', KEYS[2])
if not ends or tonumber(ends) < tonumber(ARGV[2]) then
  ends = ARGV[3]
  redis.call('SET', KEYS[1], 0, 'PXAT', ends + 1000)
  redis.call('SET', KEYS[2], ends, 'PXAT', ends + 1000)
end
return {redis.call('INCRBY', KEYS[1], ARGV[1]), tonumber(ends)}
`)

func newRueidis(e *env, p policy) (wrapper, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{e.server.addr}, SelectDB: e.db, DisableCache: true})
	if err != nil {
		return nil, err
	}
	e.onClose(client.Close)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, now := "{"+p.name+":"+p.key.theirs(r)+"}", time.Now()
			reply, err := rueidisScript.Exec(r.Context(), client, []string{key, key + ":ends"}, []string{
				"1", strconv.FormatInt(now.UnixMilli(), 10), strconv.FormatInt(now.Add(p.window).UnixMilli(), 10),
			}).AsIntSlice()
			if err != nil || len(reply) != 2 {
				http.Error(w, "no decision", http.StatusInternalServerError)
				return
			}
			h := w.Header()
			h.Set("X-RateLimit-Limit", strconv.Itoa(p.requests))
			h.Set("X-RateLimit-Remaining", strconv.FormatInt(max(0, int64(p.requests)-reply[0]), 10))
			h.Set("X-RateLimit-Reset", strconv.FormatInt(reply[1]/1000, 10))
			if reply[0] > int64(p.requests) {
				h.Set("Retry-After", strconv.FormatInt((reply[1]-now.UnixMilli())/1000+1, 10))
				http.Error(w, "Too Many Requests", http.StatusTooManyRequests)
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}
