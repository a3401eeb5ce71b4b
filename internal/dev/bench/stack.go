package main

import (
	"errors"
	"net"
	"net/http"
	"time"
)

// stack is a session, and inside it a limit for the client and one for the user.
type stack struct {
	sessions sessionLibrary
	limits   limiterLibrary
}

// stacks returns the entrants of a row about whole stacks behind a server.
func stacks(all ...stack) []entrant {
	entrants := []entrant{{name: "bare handler", kind: floor, enter: func(e *env) ([]caller, error) {
		return e.serve(answer, subjects(e.subjects))
	}}}
	for _, s := range all {
		name := s.sessions.name + " + 2 × " + s.limits.name
		entrants = append(entrants, entrant{name: name, kind: s.sessions.kind, enter: func(e *env) ([]caller, error) {
			kit, err := s.sessions.make(e, 0)
			if err != nil {
				return nil, err
			}
			headers, err := e.loggedIn(kit)
			if err != nil {
				return nil, err
			}
			var h http.Handler = kit.read
			for _, p := range []policy{
				{name: "user", requests: 1000, window: time.Second, key: kit.byUser},
				{name: "client", requests: 1000, window: time.Second, key: bySubject},
			} {
				wrap, err := s.limits.make(e, p)
				if err != nil {
					return nil, err
				}
				h = wrap(h)
			}
			return e.serve(kit.wrap(h), headers)
		}})
	}
	return entrants
}

// serve starts a server and returns callers with a connection each.
func (e *env) serve(h http.Handler, headers []http.Header) ([]caller, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	e.onClose(func() {
		srv.Close()
		<-done
	})
	requests := wire(headers)
	callers := make([]caller, e.inFlight)
	for n := range callers {
		c, err := dialHTTP(l.Addr().String(), requests)
		if err != nil {
			return nil, errors.Join(err, srv.Close())
		}
		e.onClose(func() { c.conn.Close() })
		callers[n] = c
	}
	return callers, nil
}
