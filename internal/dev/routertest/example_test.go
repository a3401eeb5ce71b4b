package routertest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/coder/websocket"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

// A WebSocket is one request to the middleware, however much is said on it. What
// is said is counted with the same limiter and key, message by message.
func Example_limitMessages() {
	limiter, err := ratelimit.NewLocal("messages", ratelimit.PerHour(4), ratelimit.Config{})
	if err != nil {
		panic(err)
	}
	key := middleware.ByIP(middleware.PeerIP)
	chat := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sender, err := key(r)
		if err != nil {
			http.Error(w, "who are you?", http.StatusBadRequest)
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return // answered by Accept
		}
		defer conn.CloseNow()
		for {
			typ, message, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			res, err := limiter.Take(r.Context(), sender, 1)
			switch {
			case err != nil:
				conn.Close(websocket.StatusTryAgainLater, "try again later")
				return
			case !res.Allowed:
				conn.Close(websocket.StatusPolicyViolation, fmt.Sprint("wait ", res.RetryAfter))
				return
			}
			conn.Write(r.Context(), typ, message)
		}
	})
	// The handshake takes a permit like any request.
	site := httptest.NewServer(middleware.RateLimit{Limiter: limiter, Key: key}.Handler(chat))
	defer site.Close()

	ctx := context.Background()
	conn, res, err := websocket.Dial(ctx, site.URL, nil)
	if err != nil {
		panic(err)
	}
	defer conn.CloseNow()
	fmt.Println(res.StatusCode, "left:", res.Header.Get("X-RateLimit-Remaining"))
	for {
		conn.Write(ctx, websocket.MessageText, []byte("hello"))
		_, message, err := conn.Read(ctx)
		if err != nil {
			fmt.Println(websocket.CloseStatus(err))
			return
		}
		fmt.Println(string(message))
	}
	// Output:
	// 101 left: 3
	// hello
	// hello
	// hello
	// StatusPolicyViolation
}
