package main

import (
	"net/http"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/middleware/console"
)

// console mounts the page of operators.
func (s *Server) console(mux *http.ServeMux) {
	// snippet console: the console
	ops := console.Console{
		Authorize: s.operator,
		Limiters:  s.limiters(),
		Rules:     s.rules,
		Denials:   s.fleet.denials,
		Sessions:  s.sessions,
		Logger:    s.log,
	}
	mux.Handle("/ops/", http.StripPrefix("/ops", ops.Handler()))
	// end
}

// operator lets everybody operate who is logged in and sits at this machine. It is a demo.
func (s *Server) operator(r *http.Request) (string, console.Access) {
	ip, err := middleware.PeerIP(r)
	if err != nil || !ip.IsLoopback() {
		return "", console.None
	}
	return s.sessions.UserID(r.Context()), console.Write
}
