package routertest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/gatehouse-go/gatehouse/session"
)

// gorilla/websocket writes its own response, which has cookie and figures if Upgrade gets the header. The
// limit refuses a handshake too many.
func TestGorillaWebSocket(t *testing.T) {
	url, client := stack(t, false, 4, func(mux *http.ServeMux, m *session.Manager) {
		var upgrader websocket.Upgrader
		mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
			m.Put(r.Context(), "k", "kept")
			if err := m.Commit(r.Context()); err != nil { // adds the cookie to the header
				t.Error(err)
			}
			conn, err := upgrader.Upgrade(w, r, w.Header())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			for {
				typ, message, err := conn.ReadMessage()
				if err != nil {
					return
				}
				m.Put(r.Context(), "k", string(message))
				if err := m.Commit(r.Context()); err != nil {
					t.Error(err)
				}
				conn.WriteMessage(typ, message)
			}
		})
	})
	dialer := websocket.Dialer{Jar: client.Jar, TLSClientConfig: client.Transport.(*http.Transport).TLSClientConfig}
	conn, res, err := dialer.DialContext(t.Context(), strings.Replace(url, "https", "wss", 1)+"/socket", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if set, left := res.Header["Set-Cookie"], res.Header.Get("X-RateLimit-Remaining"); len(set) != 1 || left != "3" {
		t.Errorf("the upgrade sets %q, and says that %q are left", set, left)
	}
	for i := range 3 {
		want := fmt.Sprint("message ", i)
		conn.WriteMessage(websocket.TextMessage, []byte(want))
		if _, message, err := conn.ReadMessage(); string(message) != want {
			t.Errorf("%q, %v", message, err)
		}
		if got := body(t, client, url+"/get"); got != want {
			t.Errorf("another request sees %q", got)
		}
	}
	if _, res, err := dialer.DialContext(t.Context(), strings.Replace(url, "https", "wss", 1)+"/socket", nil); err == nil || res == nil || res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("a handshake too many: %v", err)
	}
}
