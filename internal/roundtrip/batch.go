package roundtrip

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// Question is what a script is to decide about one key. Those that wait at the same time and have
// the same Terms are asked together: about one key as several requests, decided in their order,
// about several keys by one script.
type Question struct {
	Key string
	Terms
}

// Terms are what questions must have in common to be asked together. Both scripts are called with
// Args, and then for each key with the number of requests; or, where that is 1 for all, with the
// first Short of Args.
type Terms struct {
	One *scripts.Script // for one key
	// Many is for several. It replies with a string of as many parts, or with an array, in which
	// a string is an error. nil: each key is asked about by itself.
	Many  *scripts.Script
	Args  [5]any // strings and numbers
	Short int
	Keys  int // that Many may decide about at once
	Most  int // requests about one key that a script may decide
}

// Answer is Redis's reply about a key.
type Answer struct {
	Reply any       // as go-redis reads it
	I, N  int64     // this is the I-th, from 0, of N requests about this key
	Sent  time.Time // not before the question was asked
}

// ask is the calls that ask the same about the same key.
type ask struct {
	first, last *call
	n           int
}

// sent is a command of a batch: that of a call, or one that decides asks.
type sent struct {
	first  command // of a call, whose other command comes next and ends it
	call   *call
	script *script
	asks   []ask
}

func (s sent) cmd() command {
	switch {
	case s.first != nil:
		return s.first
	case s.call != nil:
		return s.call.cmd
	}
	return s.script
}

// batch is what one pipeline sends.
type batch struct {
	calls  []*call
	groups []group // by their terms
	at     map[place]int
	sent   []sent
	spare  []sent
}

type group struct{ asks []ask }

// place says in which group a key is asked about.
type place struct {
	group int
	key   string
}

func newBatch() *batch { return &batch{at: make(map[place]int)} }

// clear drops what a batch refers to.
func (b *batch) clear() {
	for i := range b.groups {
		clear(b.groups[i].asks)
		b.groups[i].asks = b.groups[i].asks[:0]
	}
	b.groups = b.groups[:0]
	clear(b.at)
	clear(b.sent[:cap(b.sent)])
	clear(b.spare[:cap(b.spare)])
	clear(b.calls)
	b.sent = b.sent[:0]
}

// pack makes commands of the calls. It reports whether there are different keys that one script
// could decide about, which is done if join says so.
func (b *batch) pack(join bool) (joinable bool) {
	for _, c := range b.calls {
		if c.first != nil {
			b.sent = append(b.sent, sent{first: c.first})
		}
		if c.cmd != nil {
			b.sent = append(b.sent, sent{call: c})
		} else {
			b.add(c)
		}
	}
	for i := range b.groups {
		asks := b.groups[i].asks
		terms := &asks[0].first.question.Terms
		size := 1
		if terms.Many != nil && terms.Keys > 1 && len(asks) > 1 {
			joinable = true
			if join {
				size = terms.Keys
			}
		}
		for len(asks) > 0 {
			m := min(size, len(asks))
			b.send(asks[:m:m])
			asks = asks[m:]
		}
	}
	return joinable
}

// add puts a question to those like it.
func (b *batch) add(c *call) {
	g := 0
	for g < len(b.groups) && b.groups[g].asks[0].first.question.Terms != c.question.Terms {
		g++
	}
	if g == len(b.groups) {
		if g < cap(b.groups) {
			b.groups = b.groups[:g+1]
		} else {
			b.groups = append(b.groups, group{})
		}
	}
	asks := &b.groups[g].asks
	p := place{g, c.question.Key}
	if i, ok := b.at[p]; ok && (*asks)[i].n < c.question.Most {
		a := &(*asks)[i]
		a.last.next = c
		a.last = c
		a.n++
		return
	}
	b.at[p] = len(*asks)
	*asks = append(*asks, ask{c, c, 1})
}

// send adds the command that decides asks.
func (b *batch) send(asks []ask) {
	b.sent = append(b.sent, sent{script: decide(asks), asks: asks})
}

// decide returns the command that decides about the keys of asks, which have the same terms.
func decide(asks []ask) *script {
	first := asks[0].first
	t, script := &first.question.Terms, first.question.script(len(asks))
	args := make([]any, 0, 3+len(asks)+len(t.Args)+len(asks))
	args = append(args, "evalsha", script.SHA1(), len(asks))
	single := true
	for _, a := range asks {
		args = append(args, a.first.question.Key)
		single = single && a.n == 1
	}
	if single {
		return newScript(first.ctx, append(args, t.Args[:t.Short]...))
	}
	args = append(args, t.Args[:]...)
	for _, a := range asks {
		args = append(args, a.n)
	}
	return newScript(first.ctx, args)
}

// script returns the script for a number of keys.
func (t *Terms) script(keys int) *scripts.Script {
	if keys == 1 {
		return t.One
	}
	return t.Many
}

// withSource is s with the text of its script.
func (s sent) withSource() sent {
	first := s.asks[0].first
	s.script = s.script.withSource(first.ctx, first.question.script(len(s.asks)))
	return s
}

// finish hands out what came of s, which was sent at a time. Of what is granted to several
// requests about a key, those get it first who asked first and still wait: a grant is lost only
// if more than the others gave up meanwhile, and none is given twice.
func (s sent) finish(when time.Time, err error) {
	if s.call != nil {
		s.call.finish(Answer{}, err)
		return
	}
	for i, a := range s.asks {
		reply, err := any(nil), err
		if err == nil {
			reply, err = part(s.script.Val(), i, len(s.asks))
		}
		answer := Answer{Reply: reply, N: int64(a.n), Sent: when}
		for c := a.first; c != nil; {
			next := c.next // c is another's once it is finished
			if c.finish(answer, err) {
				answer.I++
			}
			c = next
		}
	}
}

// finish ends a call, and reports whether somebody waits for it.
func (c *call) finish(a Answer, err error) bool {
	c.answer, c.err = a, c.timeoutOf(err)
	if !c.state.CompareAndSwap(callSent, callDone) {
		return false
	}
	c.done <- struct{}{}
	return true
}

// part returns what a reply about n keys says about the i-th.
func part(reply any, i, n int) (any, error) {
	if n == 1 {
		return reply, nil
	}
	switch reply := reply.(type) {
	case string:
		if size := len(reply) / n; size*n == len(reply) {
			return reply[i*size : (i+1)*size], nil
		}
	case []any:
		if len(reply) != n {
			break
		}
		if text, ok := reply[i].(string); ok {
			return nil, answerError(text)
		}
		return reply[i], nil
	}
	return nil, fmt.Errorf("redis: a reply of type %T that is not about %d keys", reply, n)
}

// answerError is Redis's error about one key of several.
type answerError string

func (e answerError) Error() string { return string(e) }
func (answerError) RedisError()     {}

// didNotRun reports whether a script of several keys was refused before it did anything, as these
// keys cannot be asked about together. An error from inside a script names that.
func didNotRun(err error) bool {
	return err != nil && (strings.HasPrefix(err.Error(), "CROSSSLOT") || strings.HasPrefix(err.Error(), "NOPERM")) &&
		!strings.Contains(err.Error(), " script: ")
}

// joining says whether scripts may have keys that have nothing to do with each other. A cluster's
// keys lie in different slots, and those of a ring or of a proxy on different servers: a script
// would look for all of them where the first one is.
type joining struct{ state atomic.Int32 }

const (
	joinUnknown int32 = iota
	joinAsked
	joinAllowed
	joinForbidden
)

// find asks a server for its mode, unless that is known.
func (j *joining) find(client *redis.Client) {
	if !j.state.CompareAndSwap(joinUnknown, joinAsked) {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), Period)
		defer cancel()
		hello, err := client.WithTimeout(Period).Do(ctx, "HELLO").Result()
		var answer redis.Error
		switch {
		case err == nil && mode(hello) == "standalone":
			j.state.CompareAndSwap(joinAsked, joinAllowed)
		case err == nil || errors.As(err, &answer):
			j.state.Store(joinForbidden)
		default:
			j.state.CompareAndSwap(joinAsked, joinUnknown)
		}
	}()
}

// mode returns what the reply to HELLO says the server is.
func mode(hello any) any {
	switch hello := hello.(type) {
	case map[any]any:
		return hello["mode"]
	case []any: // RESP2
		for i := 0; i+1 < len(hello); i += 2 {
			if hello[i] == "mode" {
				return hello[i+1]
			}
		}
	}
	return nil
}
