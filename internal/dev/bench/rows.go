package main

import (
	"fmt"
	"net/http"
	"time"
)

// memoryRow is the row that looks at what limits keep, not at how fast they are.
const memoryRow = "limit-memory"

// rows returns all rows, over the given number of keys or sessions.
func rows(subjects int) []row {
	// A window that a turn is longer than, and a limit that the load does not reach: sliding
	// windows lose as many entries as they win, which is what they do in a busy service and
	// when they cost most. No key has used it up before a million requests a second.
	allowed := policy{name: "allowed", requests: max(1, 1_000_000/subjects), window: time.Second, key: bySubject}
	// More than the callers can send. A sliding window then holds all the requests of a second.
	hot := policy{name: "hot", requests: 1_000_000, window: time.Second, key: bySubject}
	denied := policy{name: "denied", requests: 1, window: 24 * time.Hour, key: bySubject}

	used := policy{name: "used", requests: 100, window: time.Hour, key: byAddress}

	keys := thousands(float64(subjects))
	all := limiterLibraries
	kits := []sessionLibrary{scsRedigo, scsGoRedis, gorilla, gatehousePlain, gatehouseSealed}
	read := func(kit sessionKit) http.HandlerFunc { return kit.read }
	write := func(kit sessionKit) http.HandlerFunc { return kit.write }
	renew := func(kit sessionKit) http.HandlerFunc { return kit.renew }
	floors := func(entrants []entrant) []entrant { return append([]entrant{bare(answer), noop}, entrants...) }

	limit := func(inFlight int) row {
		return row{name: fmt.Sprintf("limit-10k-%d", inFlight), title: fmt.Sprintf("limit, %s keys, %d in flight", keys, inFlight),
			inFlight: inFlight, subjects: subjects, want: http.StatusOK, entrants: floors(limits(allowed, 0, all...))}
	}
	hotKey := func(inFlight int) row {
		return row{name: fmt.Sprintf("limit-hot-%d", inFlight), title: fmt.Sprintf("limit, one hot key, %d in flight", inFlight),
			inFlight: inFlight, subjects: 1, want: http.StatusOK, entrants: floors(limits(hot, 0, all...))}
	}

	return []row{
		limit(1), limit(4), limit(16), limit(64), limit(256),
		hotKey(16), hotKey(64),
		{name: "limit-denied", title: "limit, denied, 100 keys, 64 in flight", inFlight: 64, subjects: 100,
			want: http.StatusTooManyRequests, entrants: append([]entrant{bare(refusal)}, limits(denied, 2, all...)...)},
		{name: memoryRow, title: "limit of 100 by IPv4 address, all of it used", inFlight: 64, subjects: 100, still: true,
			entrants: fullLimits(used, all...)},

		{name: "session-read", title: "session read, 64 in flight", inFlight: 64, subjects: subjects,
			want: http.StatusOK, entrants: floors(sessionWork(0, read, false, append(kits, gatehouseCached)...))},
		// In a run no session is read for longer than a twentieth of its idle timeout. In a service
		// Gatehouse notes the use once in that time, for an hour at most every three minutes.
		{name: "session-idle", title: "session read with an idle timeout, 64 in flight", inFlight: 64, subjects: subjects,
			want: http.StatusOK, entrants: floors(sessionWork(time.Hour, read, false, kits...))},
		{name: "session-write", title: "session write, 64 in flight", inFlight: 64, subjects: subjects,
			want: http.StatusOK, entrants: floors(sessionWork(0, write, false, append(kits, gatehouseCached)...))},
		{name: "session-login", title: "login, 64 in flight", inFlight: 64, subjects: subjects,
			want: http.StatusOK, entrants: floors(sessionWork(0, renew, true, kits...))},

		{name: "stack", title: "session and two limits over HTTP, 64 connections", inFlight: 64, subjects: subjects,
			want: http.StatusOK, entrants: stacks(
				stack{scsRedigo, ululeFixed},
				stack{scsRedigo, redisRate},
				stack{scsGoRedis, redisRate},
				stack{gorilla, ululeFixed},
				stack{gatehousePlain, gatehouseSliding},
				stack{gatehouseSealed, gatehouseSliding},
				stack{gatehouseSealed, gatehouseBucket},
			)},
	}
}
