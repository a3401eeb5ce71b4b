package routertest

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/gatehouse-go/gatehouse/session"
)

// gorilla/websocket writes its own response: the cookie goes with it if it is told to.
func TestGorillaWebSocket(t *testing.T) {
	url, client := stack(t, false, func(mux *http.ServeMux, m *session.Manager) {
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
	t.Logf("the upgrade sets %d cookies", len(res.Header["Set-Cookie"]))
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
}
