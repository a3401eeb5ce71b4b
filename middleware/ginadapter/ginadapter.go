// Package ginadapter mounts net/http middleware in gin, for an engine, a group
// or a route:
//
//	sessions := ginadapter.Wrap(middleware.Sessions{Manager: manager})
//	r.Group("/account", sessions).GET("/", account)
//
// It is made for package middleware, and takes whatever else has a method
// Handler(http.Handler) http.Handler.
package ginadapter

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"

	"github.com/gin-gonic/gin"
)

// Middleware is what Wrap takes; all of package middleware is it.
type Middleware interface {
	Handler(next http.Handler) http.Handler
}

// Wrap returns a gin handler that calls mw with the rest of the chain as its
// next handler. If mw answers by itself and does not call it, the chain is
// aborted. Where mw panics on a mistake in its configuration, Wrap does.
//
// The handlers after it find what mw has put into the request's context in
// c.Request.Context(). They write through mw's ResponseWriter, also with c.JSON,
// c.Stream, c.File and c.Writer.Flush. The request that mw gets has the route's
// pattern, c.FullPath, in its Pattern.
//
// Mount gin.Recovery before it, so that a panic passes through mw.
func Wrap(mw Middleware) gin.HandlerFunc {
	h := mw.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Context().Value(passKey{}).(*pass).next(w, r)
	}))
	return func(c *gin.Context) {
		p := &pass{c: c, below: &below{ResponseWriter: c.Writer}}
		r := c.Request.WithContext(context.WithValue(c.Request.Context(), passKey{}, p))
		r.Pattern = c.FullPath()
		h.ServeHTTP(p.below, r)
		if !p.called {
			p.below.settle()
			c.Abort()
		}
	}
}

type passKey struct{}

// pass is one request on its way through one Wrap. It travels in the request's
// context, because mw is mounted once and knows nothing of gin.
type pass struct {
	c      *gin.Context
	below  *below
	called bool
}

// next runs the rest of gin's chain with what mw hands on.
func (p *pass) next(w http.ResponseWriter, r *http.Request) {
	p.called = true
	p.c.Request = r
	if w == http.ResponseWriter(p.below) { // mw does not wrap
		p.c.Next()
		return
	}
	outer := p.c.Writer
	above := &above{ResponseWriter: outer, below: p.below, out: w, status: outer.Status(), initial: outer.Status()}
	p.c.Writer = above
	// Deferred, because a recoverer further out must not answer through mw's
	// writer: to mw that would look like the handler's response.
	defer func() { p.c.Writer = outer }()
	p.c.Next()
	above.finish()
}

// below stands under mw: a gin.ResponseWriter with WriteHeader as net/http has
// it. gin's only notes the status and sends it with the first byte.
type below struct {
	gin.ResponseWriter
	wrote bool // mw has passed on a final header
}

func (w *below) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *below) WriteHeader(status int) {
	if informational(status) {
		// gin cannot send these; what it wraps can.
		if inner, ok := w.ResponseWriter.(interface{ Unwrap() http.ResponseWriter }); ok && !w.Written() {
			inner.Unwrap().WriteHeader(status)
		}
		return
	}
	if !w.wrote {
		w.wrote = true
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *below) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.settle() // the 101 of an upgrade
	return w.ResponseWriter.Hijack()
}

// settle sends a header that gin has only noted.
func (w *below) settle() {
	if w.wrote {
		w.WriteHeaderNow()
	}
}

// above stands over mw: the c.Writer of the handlers behind it. It writes
// through mw and, as gin's does, holds the status back until there is a body or
// WriteHeaderNow. Written and Size are those of the writer further out, which
// counts what mw lets through.
type above struct {
	gin.ResponseWriter // further out than mw
	below              *below
	out                http.ResponseWriter // of mw

	status, initial int
	wrote           bool // the status has been passed to mw
}

// Unwrap lets http.ResponseController reach through mw.
func (w *above) Unwrap() http.ResponseWriter { return w.out }

func (w *above) WriteHeader(status int) {
	switch {
	case informational(status):
		w.out.WriteHeader(status)
	case status > 0 && !w.wrote:
		w.status = status
	}
}

func (w *above) WriteHeaderNow() {
	w.handOn()
	w.below.settle()
}

// handOn gives the status to mw.
func (w *above) handOn() {
	if !w.wrote {
		w.wrote = true
		w.out.WriteHeader(w.status)
	}
}

// finish is called when the handlers have returned. A status without a body goes
// to mw, but not further than gin's note of it: a handler further out may still
// add the body, as gin's error handlers do.
func (w *above) finish() {
	if w.status != w.initial {
		w.handOn()
	}
}

func (w *above) Write(b []byte) (int, error) {
	w.handOn()
	return w.out.Write(b)
}

func (w *above) WriteString(s string) (int, error) {
	w.handOn()
	return io.WriteString(w.out, s)
}

func (w *above) Flush() {
	w.handOn()
	_ = http.NewResponseController(w.out).Flush()
}

func (w *above) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	w.wrote = true // whatever the outcome, no status is left to hand on
	return http.NewResponseController(w.out).Hijack()
}

// Status is what is sent, where that is decided: mw may have replaced the
// response.
func (w *above) Status() int {
	if w.wrote {
		return w.ResponseWriter.Status()
	}
	return w.status
}

// Written is also true of a header that mw holds back.
func (w *above) Written() bool { return w.wrote || w.ResponseWriter.Written() }

// informational reports whether a status is not final.
func informational(status int) bool {
	return status >= 100 && status < 200 && status != http.StatusSwitchingProtocols
}
