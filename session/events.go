package session

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// Events says what of sessions is told. The zero value: nothing is, at no cost.
//
// What happens to the session of a user is appended to a Redis Stream by the script that does
// it: there is no event without its act, and no act without its event, whatever dies meanwhile.
// Package session/events reads them. Of visitors nothing is told, and nothing of sessions
// that expire: nobody does that.
//
// In a cluster whose slot is being moved Redis refuses a script that writes a session and
// an event. Then the event follows in a command of its own, perhaps after those of later acts, and
// is lost if the process is killed in between.
type Events struct {
	// Retention is how long an event can be read, at least a minute; 0: no events. Redis trims a
	// stream by whole nodes: about a hundred older events may stay in a quiet one, and all of
	// them where stream-node-max-entries and stream-node-max-bytes are both 0.
	Retention time.Duration
	// MaxLen is how many events each of the 256 streams keeps, about; default 10,000. One
	// event is some 250 bytes. What is not read before is gone: readers are told how many
	// they have missed.
	MaxLen int
	// LastSeen also tells when a session was used, at most 20 times per IdleTimeout.
	LastSeen bool
}

const (
	minRetention  = time.Minute
	defaultEvents = 10_000
	minEvents     = 100
	maxEvents     = 10_000_000
)

// check fills in the default, and says what is wrong.
func (e *Events) check(bad func(string, ...any)) {
	switch {
	case e.Retention == 0 && (e.LastSeen || e.MaxLen != 0):
		bad("Events has no Retention: nothing would be told")
	case e.Retention != 0 && (e.Retention < minRetention || e.Retention > maxDuration):
		bad("Events.Retention %v is not between %v and a hundred years", e.Retention, minRetention)
	}
	if e.MaxLen == 0 {
		e.MaxLen = defaultEvents
	}
	if e.MaxLen < minEvents || e.MaxLen > maxEvents {
		bad("Events.MaxLen %d is not between %d and %d", e.MaxLen, minEvents, maxEvents)
	}
}

// EventKind is what has happened.
type EventKind uint8

// What happens to the sessions of users.
const (
	LoggedIn     EventKind = iota + 1 // Login
	Confirmed                         // Confirm, when its response was sent; the ID is new, too
	LoggedOut                         // Logout, or a Login as somebody else
	Rotated                           // it has a new ID, by itself, by Rotate or by EndOthers
	Ended                             // by others, for the Cause
	LoginRefused                      // Cause.Reason is "stale", "unknown" or "full"
	Imported                          // a session of the legacy store was copied
	Used                              // with Events.LastSeen
	LoginUndone                       // a Login whose request then failed: it gave no session
)

var kindNames = [...]string{
	LoggedIn: "logged-in", Confirmed: "confirmed", LoggedOut: "logged-out", Rotated: "rotated", Ended: "ended",
	LoginRefused: "login-refused", Imported: "imported", Used: "used", LoginUndone: "login-undone",
}

// String returns the kind in a word, such as "logged-in".
func (k EventKind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// Event is something that has happened to a session of a user.
type Event struct {
	// ID is the event's own: if the event is delivered again, it has the same.
	ID     string
	Time   time.Time // by Redis's clock, to the microsecond
	Kind   EventKind
	UserID string
	Handle string // as List has it; "" of a login that was refused
	Client string // as Describe has it
	Cause  Cause  // of Ended and LoginRefused
}

// told is what an act tells of itself. The zero value leaves it to the script.
type told struct {
	kind  EventKind
	actor string
}

// used is what is told of a use.
func (s *records) used() told {
	if s.events.LastSeen {
		return told{kind: Used}
	}
	return told{}
}

// toldArg encodes t as an argument of a script, with a random ID.
func (s *records) toldArg(t told) string {
	b := make([]byte, 8, 8+2*timeLen+1+len(t.actor))
	_, _ = rand.Read(b)
	b = appendTime(b, s.events.Retention.Microseconds())
	b = appendTime(b, int64(s.events.MaxLen))
	b = append(b, byte(t.kind))
	return string(append(b, t.actor...))
}

// act runs a script that tells what it does.
func (s *records) act(ctx context.Context, script *scripts.Script, at id, t told, args ...any) (reply, error) {
	return s.actBy(ctx, s.redis, script, at, t, args...)
}

func (s *records) actBy(ctx context.Context, by *roundtrip.Sender, script *scripts.Script, at id, t told, args ...any) (reply, error) {
	if s.events.Retention == 0 {
		return s.runBy(ctx, by, script, at, args...)
	}
	args = append(args, s.toldArg(t))
	stream := s.keys.events(at.owner[0])
	a, err := s.runOver(ctx, by, script, at, []string{at.key, stream}, args...)
	if isMoving(err) {
		a, err = s.runBy(ctx, by, script, at, args...)
	}
	if err == nil && len(a.happened) > 0 {
		s.append(ctx, by, stream, a)
	}
	return a, err
}

// isMoving reports whether a script did not run because the slot of its two keys is being moved.
func isMoving(err error) bool {
	var refused redis.Error
	if !errors.As(err, &refused) {
		return false
	}
	for _, word := range [...]string{"TRYAGAIN", "ASK ", "MOVED ", "CLUSTERDOWN"} {
		if strings.HasPrefix(refused.Error(), word) {
			return true
		}
	}
	return false
}

var appendScript = scripts.Get("session/append.lua")

// append appends events that a script could not. What has happened has happened: the caller is
// not told of an error.
func (s *records) append(ctx context.Context, by *roundtrip.Sender, stream string, a reply) {
	ctx = context.WithoutCancel(ctx)
	oldest := max(0, (a.now-s.events.Retention.Microseconds())/1000)
	args := append([]any{s.events.Retention.Milliseconds(), s.events.MaxLen, oldest}, a.happened...)
	if _, err := by.Run(ctx, appendScript, []string{stream}, args...); err != nil {
		s.lostEvents.Add(uint64(len(a.happened)))
		s.log.LogAttrs(ctx, slog.LevelError, "session: events are lost, they could not be appended", slog.Int("events", len(a.happened)), slog.Any("error", err))
	}
}

// splitEvents takes the events that a script has not appended out of its reply.
func splitEvents(raw any) (any, []any) {
	if pair, ok := raw.([]any); ok && len(pair) == 2 {
		if events, ok := pair[1].([]any); ok {
			return pair[0], events
		}
	}
	return raw, nil
}

// events is the stream of a partition.
func (k keys) events(partition byte) string {
	at := k.key(owner{partition})
	return at[:strings.LastIndexByte(at, ':')+1] + "e"
}

// EventLog is what package session/events reads.
type EventLog struct{ records *records }

// EventLog returns what package session/events reads.
func (m *Manager) EventLog() EventLog { return EventLog{m.records} }

// Retention is that of Events, 0 if nothing is told.
func (l EventLog) Retention() time.Duration { return l.records.events.Retention }

// Streams returns the keys of all streams.
func (l EventLog) Streams() []string {
	list := make([]string, 256)
	for i := range list {
		list[i] = l.records.keys.events(byte(i))
	}
	return list
}

// Redis is where they are, for commands that take no longer than Config.Timeout.
func (l EventLog) Redis() *roundtrip.Sender { return l.records.redis }

// Open reads the event of a stream's partition from an entry's field "e". Its error says
// why it cannot be read: it is none, of another partition, or of another secret. With Secrets the user,
// the client and the handle are those of an event that was written; who can write to Redis can
// change everything else in it, and repeat it.
func (l EventLog) Open(partition int, raw string) (e Event, err error) {
	const fixed = 2 + 10 + timeLen + fieldLen
	if len(raw) < fixed || raw[0] != 1 {
		return e, errMalformed
	}
	b := []byte(raw)
	e.Kind = EventKind(b[1])
	e.ID = base64.RawURLEncoding.EncodeToString(b[2:12])
	e.Time = time.UnixMicro(getTime(b[12:]))
	field, rest := string(b[12+timeLen:fixed]), b[fixed:]
	text := func() (s string) {
		if len(rest) < 1 || len(rest) < 1+int(rest[0]) {
			err = errMalformed
			return ""
		}
		s, rest = string(rest[1:1+rest[0]]), rest[1+rest[0]:]
		return s
	}
	e.Cause = Cause{Reason(text()), text()}
	var o owner
	size := base64.RawURLEncoding.EncodedLen(len(o))
	if err != nil || len(rest) < size {
		return Event{}, errMalformed
	}
	if n, err := base64.RawURLEncoding.Decode(o[:], rest[:size]); err != nil || n != len(o) {
		return Event{}, errMalformed
	}
	at := l.records.of(o)
	at.field = field
	opened, err := l.records.sealer.openOwner(at, rest[size:])
	if err != nil {
		return Event{}, err
	}
	r := opened.record
	e.UserID, e.Client = r.who.user, r.who.client
	if e.Kind == LoginRefused && e.UserID == "" {
		e.UserID = r.who.begun
	}
	if e.Kind != LoginRefused {
		e.Handle = r.head.handle.String()
	}
	switch {
	case e.UserID == "" || kindNames[min(int(e.Kind), len(kindNames)-1)] == "":
		return Event{}, errMalformed
	case !l.records.keys.owns(r) || int(at.owner[0]) != partition:
		return Event{}, errOwner
	}
	return e, nil
}

// Bounds of Recent.
const (
	recentPage  = 1000
	recentPages = 20
)

var recentScript = scripts.Get("session/events_recent.lua")

// Recent returns what happened to the sessions of a user, at most n events, newest first: for a
// support desk, not for what must not be lost. It looks at the last 20,000 events of the user's
// partition, with which some 1/256 of all users share it. Events that cannot be read are left out.
// Without Config.Events there are none.
//
// The error is [ErrNoUser], [ErrUnavailable], one for a user ID of more than 1,024 bytes, or ctx's
// own.
func (m *Manager) Recent(ctx context.Context, userID string, n int) ([]Event, error) {
	if err := checkUserID(userID); err != nil {
		return nil, err
	}
	s := m.records
	if s.events.Retention == 0 {
		return nil, nil
	}
	o := s.keys.user(userID)
	stream, owner := []string{s.keys.events(o[0])}, base64.RawURLEncoding.EncodeToString(o[:])
	var list []Event
	before := ""
	for range recentPages {
		raw, err := s.redis.Run(ctx, recentScript, stream, owner, before, recentPage, max(1, n-len(list)))
		if err != nil {
			return nil, unavailable(ctx, err)
		}
		reply, _ := raw.([]any)
		for i, entry := range reply {
			text, _ := entry.(string)
			if i == 0 {
				before = text
				continue
			}
			if e, err := (EventLog{s}).Open(int(o[0]), text); err == nil && e.UserID == userID {
				list = append(list, e)
			}
		}
		if before == "" || len(list) >= n {
			break
		}
	}
	return list[:min(max(0, n), len(list))], nil
}
