package middleware

import (
	"bufio"
	"io"
	"iter"
	"net"
	"net/http"
)

// headerWriter calls before once, unless it is nil: just before the first byte of the
// final response header, with its status. Informational headers (1xx) are not final,
// except 101. If before returns an error, it has written a response of its own,
// and nothing that the handler writes gets through any more.
//
// It is used through wrap, by one goroutine at a time like any ResponseWriter.
type headerWriter struct {
	http.ResponseWriter
	before func(status int) error
	// hijacked, if set, is called when the connection is about to be hijacked, first: what
	// before puts into the header may then not reach the client.
	hijacked func()
	// conn, if set, stands in for the connection that is hijacked.
	conn     func(net.Conn) net.Conn
	of       *loader // the Sessions; nil of others
	informed bool    // an informational header went out
	began    bool    // before has been called
	err      error   // what it returned
}

// wrap returns a ResponseWriter around w.ResponseWriter that has Flush and
// Hijack if that one has: handlers ask for both by type assertion, and a
// promise that cannot be kept (http2 has no Hijack) sends them the wrong way.
// What w.ResponseWriter offers only through Unwrap counts, too, because
// http.ResponseController would find it there and pass by before. ReadFrom and
// WriteString are never absent: they fall back to Write.
//
// http.Pusher is left out on purpose: browsers have dropped it.
func (w *headerWriter) wrap() http.ResponseWriter {
	flusher := false
	for inner := range layers(w.ResponseWriter) {
		if _, ok := inner.(http.Hijacker); ok {
			return hijackWriter{flushWriter{w}}
		}
		switch inner.(type) {
		case http.Flusher, interface{ FlushError() error }:
			flusher = true
		}
	}
	if flusher {
		return flushWriter{w}
	}
	return w
}

// layers yields w and what it wraps, as far as Unwrap tells.
func layers(w http.ResponseWriter) iter.Seq[http.ResponseWriter] {
	return func(yield func(http.ResponseWriter) bool) {
		for w != nil && yield(w) {
			unwrapper, ok := w.(interface{ Unwrap() http.ResponseWriter })
			if !ok {
				return
			}
			w = unwrapper.Unwrap()
		}
	}
}

// loader returns the Sessions that w belongs to, or nil.
func (w *headerWriter) loader() *loader { return w.of }

// begin reports whether the handler's response may go out.
func (w *headerWriter) begin(status int) bool {
	if !w.began {
		w.began = true
		if w.before != nil {
			w.err = w.before(status)
		}
	}
	return w.err == nil
}

// Unwrap lets http.ResponseController reach deadlines and full duplex.
func (w *headerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *headerWriter) WriteHeader(status int) {
	informational := status < 200 && status != http.StatusSwitchingProtocols
	if informational || w.begin(status) {
		w.informed = w.informed || informational
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *headerWriter) Write(b []byte) (int, error) {
	if !w.begin(http.StatusOK) {
		return 0, w.err
	}
	return w.ResponseWriter.Write(b)
}

func (w *headerWriter) WriteString(s string) (int, error) {
	if !w.begin(http.StatusOK) {
		return 0, w.err
	}
	return io.WriteString(w.ResponseWriter, s)
}

// ReadFrom keeps the way to sendfile open for io.Copy.
func (w *headerWriter) ReadFrom(src io.Reader) (int64, error) {
	if !w.begin(http.StatusOK) {
		return 0, w.err
	}
	return io.Copy(w.ResponseWriter, src)
}

// CloseNotify is deprecated but gin's Stream demands it of the writer it is
// given. Where there is none, its channel never fires.
func (w *headerWriter) CloseNotify() <-chan bool {
	if inner, ok := w.ResponseWriter.(interface{ CloseNotify() <-chan bool }); ok {
		return inner.CloseNotify()
	}
	return make(chan bool)
}

type flushWriter struct{ *headerWriter }

func (w flushWriter) Flush() { _ = w.FlushError() }

func (w flushWriter) FlushError() error {
	if !w.begin(http.StatusOK) {
		return w.err
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

type hijackWriter struct{ flushWriter }

func (w hijackWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.hijacked != nil && !w.began {
		w.hijacked()
	}
	if !w.begin(http.StatusSwitchingProtocols) {
		return nil, nil, w.err
	}
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.conn != nil {
		conn = w.conn(conn)
	}
	return conn, buffered, err
}
