package middleware_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatehouse-go/gatehouse/middleware"
	"github.com/gatehouse-go/gatehouse/ratelimit"
)

func TestBy(t *testing.T) {
	tenant := middleware.By("tenant", func(r *http.Request) string { return r.URL.Query().Get("t") })
	expectKey(t, tenant, httptest.NewRequest("GET", "/?t=acme", nil), middleware.KeyOf("tenant", "acme"))
	expectKey(t, tenant, httptest.NewRequest("GET", "/", nil), "")
	if key := middleware.KeyOf("user", "ann"); key != middleware.UserKey("ann") {
		t.Errorf("KeyOf gives %q", key)
	}
	for _, word := range []string{"", "a:b"} {
		panics(t, word, func() { middleware.By(word, nil) })
		panics(t, word, func() { middleware.KeyOf(word, "x") })
	}
}

func panics(t *testing.T, name string, f func()) {
	t.Helper()
	defer func() {
		if p := recover(); p == nil {
			t.Errorf("%q does not panic", name)
		} else if text, ok := p.(string); !ok || !strings.HasPrefix(text, "middleware: ") {
			t.Errorf("%q panics with %v", name, p)
		}
	}()
	f()
}

func canonical(s string) string { return strings.ToLower(strings.TrimSpace(s)) }

// ByForm has the value that the handler has, whichever way it reads the form, and the handler reads the body as if
// nobody had.
func TestByForm(t *testing.T) {
	multi := func(name, value string) (string, string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		w.WriteField(name, value)
		f, _ := w.CreateFormFile("file", "f.txt")
		io.WriteString(f, "content")
		w.Close()
		return w.FormDataContentType(), b.String()
	}
	multiType, multiBody := multi("email", "Ann@example.com")
	const form = "application/x-www-form-urlencoded"
	for _, tc := range []struct {
		name, method, target, contentType, body, want string
	}{
		{"a form", "POST", "/", form, "email=Ann%40example.com&password=x", "ann@example.com"},
		{"in any spelling", "POST", "/", form, "email=+ANN%40Example.com", "ann@example.com"},
		{"twice", "POST", "/", form, "email=ann&email=bob", ""},
		{"twice the same", "POST", "/", form, "email=ann&email=ANN+", "ann"},
		{"beside a query", "POST", "/?email=bob", form, "email=ann", ""},
		{"multipart beside a query", "POST", "/?email=bob", multiType, multiBody, ""},
		{"multipart beside an equal query", "POST", "/?email=ann@example.com", multiType, multiBody, "ann@example.com"},
		{"a query that does not parse", "POST", "/?a=%zz&email=bob", form, "email=ann", ""},
		{"in the query alone", "POST", "/?email=bob", form, "", "bob"},
		{"GET", "GET", "/?email=bob", "", "", "bob"},
		{"multipart", "POST", "/", multiType, multiBody, "ann@example.com"},
		{"no field", "POST", "/", form, "mail=ann", ""},
		{"empty", "POST", "/", form, "email=+", ""},
		{"no form", "POST", "/", "application/json", `{"email":"ann"}`, ""},
		{"too long", "POST", "/", form, "email=ann&x=" + strings.Repeat("x", 70_000), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			newRequest := func() *http.Request {
				r := httptest.NewRequest(tc.method, tc.target, strings.NewReader(tc.body))
				r.Header.Set("Content-Type", tc.contentType)
				return r
			}
			key := middleware.ByForm("email", canonical)
			want := ""
			if tc.want != "" {
				want = middleware.FormKey("email", tc.want)
			}
			r := newRequest()
			expectKey(t, key, r, want)
			if body, err := io.ReadAll(r.Body); err != nil || string(body) != tc.body {
				t.Errorf("then the body is %d bytes, %v", len(body), err)
			}
			r = newRequest()
			key(r)
			if got, plain := r.FormValue("email"), newRequest().FormValue("email"); got != plain || tc.want != "" && canonical(got) != tc.want {
				t.Errorf("FormValue is %q, want %q", got, plain)
			}
			if tc.name != "too long" {
				expectKey(t, key, r, want) // of a form that has been parsed
			}
		})
	}
	if middleware.FormKey("a", "b:c") == middleware.FormKey("a:b", "c") {
		t.Error("two fields have one key")
	}
}

// A query is no decoy: a body that ByForm cannot read whole, or that a handler may read otherwise, has no key.
func TestByFormTakesNoDecoy(t *testing.T) {
	const urlencoded = "application/x-www-form-urlencoded"
	whole, kind := form(t, "email", "victim")
	boundary := strings.TrimPrefix(kind, "multipart/form-data; boundary=")
	many := "--x\r\nContent-Disposition: form-data; name=email\r\n\r\nvictim" +
		strings.Repeat("\r\n--x\r\nContent-Disposition:form-data;name=a\r\n\r\n", 1100) + "\r\n--x--\r\n"
	for _, tc := range []struct{ name, method, contentType, body string }{
		{"truncated", "POST", kind, whole.String()[:whole.Len()-10]},
		{"mixed", "POST", "multipart/mixed; boundary=" + boundary, whole.String()},
		{"many parts", "POST", "multipart/form-data; boundary=x", many},
		{"no boundary", "POST", "multipart/form-data", whole.String()},
		{"an escape that is none", "POST", urlencoded, "e%zz=x&email%zz=victim"},
		{"a type that does not parse", "POST", urlencoded + ";;", "email=victim"},
		{"of JSON", "POST", "application/json", `{"email":"victim"}`},
		{"of no type", "POST", "", "email=victim"},
		{"GET", "GET", urlencoded, "email=victim"},
		{"DELETE", "DELETE", urlencoded, "email=victim"},
		{"post", "post", urlencoded, "email=victim"},
		{"GET of many parts", "GET", kind, whole.String()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, parsed := range []bool{false, true} { // by somebody further out
				r := httptest.NewRequest(tc.method, "/?email=decoy", strings.NewReader(tc.body))
				r.Header.Set("Content-Type", tc.contentType)
				if parsed {
					r.ParseForm()
				}
				if left, _ := io.ReadAll(r.Body); len(left) > 0 {
					r.Body = io.NopCloser(bytes.NewReader(left))
					expectKey(t, middleware.ByForm("email", nil), r, "")
				}
			}
		})
	}
	// What a method override turns into a POST is counted by what its handler then reads.
	r := httptest.NewRequest("GET", "/", strings.NewReader("email=ann"))
	r.Header.Set("Content-Type", urlencoded)
	expectKey(t, middleware.ByForm("email", nil), r, middleware.FormKey("email", "ann"))
	if r.Method = "POST"; r.FormValue("email") != "ann" {
		t.Errorf("then FormValue is %q", r.FormValue("email"))
	}
}

// That a request lacks what it is counted by reads otherwise in the log than a limiter that fails.
func TestARequestsOwnFaultIsLoggedAsOne(t *testing.T) {
	logged := func(l middleware.RateLimit) string {
		var log journal
		l.Logger = log.logger()
		answer(l.Handler(hello), httptest.NewRequest("POST", "/login", nil))
		return log.String()
	}
	if got := logged(middleware.RateLimit{Limiter: local("l", 5), Key: middleware.ByForm("email", nil)}); !strings.Contains(got, "has no key (400): refused") || !strings.Contains(got, "its form has no email") || strings.Contains(got, "limiter") {
		t.Errorf("without the field: %s", got)
	}
	if got := logged(middleware.RateLimit{Limiter: &script{err: ratelimit.ErrUnavailable}, Key: everybody}); !strings.Contains(got, "not decided by its limiter: refused") {
		t.Errorf("a limiter that fails: %s", got)
	}
}

// Addresses of a provider's customer count as one, by as many bits as it gives.
func TestByIPPrefix(t *testing.T) {
	for bits, want := range map[int]string{48: "ip:2001:db8:1::/48", 56: "ip:2001:db8:1:100::/56", 64: "ip:2001:db8:1:1ff::/64", 128: "ip:2001:db8:1:1ff::1/128"} {
		r := from("[2001:db8:1:1ff::1]:80", "X")
		expectKey(t, middleware.ByIPPrefix(middleware.PeerIP, bits), r, want)
		if got := middleware.IPPrefixKey(netip.MustParseAddr("2001:db8:1:1ff::1"), bits); got != want {
			t.Errorf("/%d: %s", bits, got)
		}
		expectKey(t, middleware.ByIPPrefix(middleware.PeerIP, bits), from("192.0.2.1:80", "X"), "ip:192.0.2.1")
	}
	for _, bits := range []int{0, -1, 129} {
		panics(t, "bits", func() { middleware.ByIPPrefix(middleware.PeerIP, bits) })
	}
}

// Behind a proxy that connects by a Unix socket, clients are told apart by what it says; without
// UnixSocket nobody is counted as somebody else.
func TestUnixSocket(t *testing.T) {
	ask := func(strategy middleware.IPStrategy, name, value string) string {
		t.Helper()
		got := make(chan string, 1)
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			key, err := middleware.ByIP(strategy)(r)
			if err != nil {
				key = "none"
			}
			got <- key
		}))
		srv.Listener.Close()
		srv.Listener = l
		srv.Start()
		defer srv.Close()
		c := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", l.Addr().String())
		}}}
		defer c.CloseIdleConnections()
		r, _ := http.NewRequest("GET", "http://service/", nil)
		r.Header.Set(name, value)
		if res, err := c.Do(r); err != nil {
			t.Fatal(err)
		} else {
			res.Body.Close()
		}
		return <-got
	}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for _, tc := range []struct {
		strategy middleware.IPStrategy
		name     string
		value    string
		want     string
	}{
		{middleware.ForwardedFor(middleware.UnixSocket), "X-Forwarded-For", "203.0.113.66, 198.51.100.1", "ip:198.51.100.1"},
		{middleware.ForwardedFor(middleware.UnixSocket, loopback), "X-Forwarded-For", "198.51.100.1, 127.0.0.1", "ip:198.51.100.1"},
		{middleware.SingleHeader("X-Real-IP", middleware.UnixSocket), "X-Real-IP", "198.51.100.1", "ip:198.51.100.1"},
		{middleware.ForwardedFor(loopback), "X-Forwarded-For", "198.51.100.1", "none"},
		{middleware.PeerIP, "X-Forwarded-For", "198.51.100.1", "none"},
	} {
		if got := ask(tc.strategy, tc.name, tc.value); got != tc.want {
			t.Errorf("%s: %s gives %s, want %s", tc.name, tc.value, got, tc.want)
		}
	}
	// Over TCP, UnixSocket trusts nobody.
	r := from("198.51.100.9:1", "X-Forwarded-For", "203.0.113.66")
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(198, 51, 100, 8), Port: 80}))
	expectKey(t, middleware.ByIP(middleware.ForwardedFor(middleware.UnixSocket)), r, "ip:198.51.100.9")
}

func TestDangerouslyCountProxies(t *testing.T) {
	for _, tc := range []struct {
		n     int
		lines []string
		want  string
	}{
		{1, []string{"203.0.113.66, 198.51.100.1"}, "ip:198.51.100.1"},
		{2, []string{"203.0.113.66, 198.51.100.1, 10.0.0.1"}, "ip:198.51.100.1"},
		{2, []string{"203.0.113.66, 198.51.100.1", "10.0.0.1"}, "ip:198.51.100.1"},
		{2, []string{"10.0.0.1"}, ""},
		{1, nil, ""},
		{1, []string{"nobody"}, ""},
		{2, []string{"198.51.100.1, ,10.0.0.1,"}, "ip:198.51.100.1"},
	} {
		expectKey(t, middleware.ByIP(middleware.DangerouslyCountProxies(tc.n)), from("10.9.9.9:1", "X-Forwarded-For", tc.lines...), tc.want)
	}
	panics(t, "0", func() { middleware.DangerouslyCountProxies(0) })
}

// PeerIP that counts a proxy says so, once.
func TestPeerIPNotesAProxy(t *testing.T) {
	var log strings.Builder
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	defer slog.SetDefault(before)
	middleware.ForgetProxied()
	middleware.PeerIP(from("198.51.100.1:1", "X-Forwarded-For", "203.0.113.66"))
	middleware.PeerIP(from("10.0.0.1:1", "X-Other", "x"))
	middleware.ForwardedFor()(from("10.0.0.1:1", "X-Forwarded-For", "203.0.113.66"))
	if log.String() != "" {
		t.Errorf("logged %q", log.String())
	}
	for range 3 {
		middleware.PeerIP(from("10.0.0.1:1", "X-Forwarded-For", "203.0.113.66"))
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "ForwardedFor") || strings.Contains(got, "203.0.113.66") || strings.Contains(got, "10.0.0.1") {
		t.Errorf("logged %q", got)
	}
}
