package middleware_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gatehouse-go/gatehouse/middleware"
)

var proxyRanges = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("2001:db8:ffff::/48"),
	netip.MustParsePrefix("::ffff:172.16.0.0/108"), // that is 172.16.0.0/12
	netip.MustParsePrefix("fe80::/10"),
}

// from returns a request from a peer with header lines.
func from(peer, name string, lines ...string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = peer
	r.Header[http.CanonicalHeaderKey(name)] = lines
	return r
}

// forwardedCases are requests with X-Forwarded-For and what ForwardedFor makes
// of them; "" is an error. 203.0.113.66 is always a claim of the client's.
var forwardedCases = []struct {
	name  string
	peer  string
	lines []string
	want  string
}{
	{"no proxy", "198.51.100.1:4000", nil, "198.51.100.1"},
	{"untrusted peer with a claim", "198.51.100.1:4000", []string{"203.0.113.66"}, "198.51.100.1"},
	{"one hop", "10.0.0.1:80", []string{"198.51.100.1"}, "198.51.100.1"},
	{"claim to the left", "10.0.0.1:80", []string{"203.0.113.66, 198.51.100.1"}, "198.51.100.1"},
	{"claim of a trusted address", "10.0.0.1:80", []string{"10.9.9.9, 198.51.100.1"}, "198.51.100.1"},
	{"two hops", "10.0.0.1:80", []string{"203.0.113.66, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
	{"several lines", "10.0.0.1:80", []string{"203.0.113.66", "198.51.100.1", "10.0.0.2,10.0.0.3"}, "198.51.100.1"},
	{"no spaces, tabs", "10.0.0.1:80", []string{"203.0.113.66,198.51.100.1\t,\t10.0.0.2"}, "198.51.100.1"},
	{"empty elements", "10.0.0.1:80", []string{"203.0.113.66, 198.51.100.1,, ,10.0.0.2,", ""}, "198.51.100.1"},
	{"with a port", "10.0.0.1:80", []string{"203.0.113.66, 198.51.100.1:5555"}, "198.51.100.1"},
	{"IPv6 with a port", "10.0.0.1:80", []string{"203.0.113.66, [2001:db8:1::1]:5555"}, "2001:db8:1::1"},
	{"IPv6 in brackets", "10.0.0.1:80", []string{"[2001:db8:1::1]"}, "2001:db8:1::1"},
	{"IPv6", "[2001:db8:ffff::1]:80", []string{"203.0.113.66, 2001:db8:1::1"}, "2001:db8:1::1"},
	{"mapped client", "10.0.0.1:80", []string{"::ffff:1.2.3.4"}, "1.2.3.4"},
	{"mapped peer", "[::ffff:10.0.0.1]:80", []string{"198.51.100.1"}, "198.51.100.1"},
	{"mapped proxy", "10.0.0.1:80", []string{"198.51.100.1, ::ffff:10.0.0.2"}, "198.51.100.1"},
	{"range written as mapped", "172.20.0.1:80", []string{"198.51.100.1"}, "198.51.100.1"},
	{"zoned client", "10.0.0.1:80", []string{"2001:db8:1::1%eth0"}, "2001:db8:1::1"},
	{"zoned peer", "[fe80::1%eth0]:80", []string{"198.51.100.1"}, "198.51.100.1"},
	{"private client", "10.0.0.1:80", []string{"192.168.1.5"}, "192.168.1.5"},

	{"garbage at the right", "10.0.0.1:80", []string{"203.0.113.66, unknown"}, ""},
	{"garbage behind a proxy", "10.0.0.1:80", []string{"203.0.113.66, _hidden, 10.0.0.2"}, ""},
	{"garbage to the left of the client", "10.0.0.1:80", []string{"<script>, 198.51.100.1"}, "198.51.100.1"},
	{"IPv4 in brackets", "10.0.0.1:80", []string{"203.0.113.66, [1.2.3.4]"}, ""},
	{"half a bracket", "10.0.0.1:80", []string{"203.0.113.66, [2001:db8::1"}, ""},
	{"leading zeros", "10.0.0.1:80", []string{"203.0.113.66, 1.2.3.04"}, ""},
	{"a prefix", "10.0.0.1:80", []string{"203.0.113.66, 1.2.3.4/32"}, ""},
	{"a number", "10.0.0.1:80", []string{"203.0.113.66, 16909060"}, ""},
	{"a quoted address", "10.0.0.1:80", []string{`203.0.113.66, "1.2.3.4"`}, ""},
	{"all trusted", "10.0.0.1:80", []string{"10.0.0.3, 10.0.0.2"}, ""},
	{"header missing", "10.0.0.1:80", nil, ""},
	{"header empty", "10.0.0.1:80", []string{" , "}, ""},
	{"100 KB of addresses", "10.0.0.1:80", []string{strings.Repeat("203.0.113.66, ", 7500) + "198.51.100.1"}, "198.51.100.1"},
	{"100 KB of proxies", "10.0.0.1:80", []string{strings.Repeat("10.0.0.2,", 12000)}, ""},
	{"100 KB of commas", "10.0.0.1:80", []string{strings.Repeat(",", 100_000)}, ""},
	{"100 KB of garbage", "10.0.0.1:80", []string{strings.Repeat("x", 100_000)}, ""},
	{"a unix socket", "@", []string{"203.0.113.66"}, ""},
	{"no peer", "", []string{"203.0.113.66"}, ""},
}

func TestForwardedFor(t *testing.T) {
	strategy := middleware.ForwardedFor(proxyRanges...)
	for _, tc := range forwardedCases {
		t.Run(tc.name, func(t *testing.T) {
			expectIP(t, strategy, from(tc.peer, "X-Forwarded-For", tc.lines...), tc.want)
		})
	}
	t.Run("nothing trusted", func(t *testing.T) {
		expectIP(t, middleware.ForwardedFor(), from("10.0.0.1:80", "X-Forwarded-For", "203.0.113.66"), "10.0.0.1")
	})
}

func TestSingleHeader(t *testing.T) {
	strategy := middleware.SingleHeader("x-real-ip", proxyRanges...)
	for _, tc := range []struct {
		name  string
		peer  string
		lines []string
		want  string
	}{
		{"set by the proxy", "10.0.0.1:80", []string{"198.51.100.1"}, "198.51.100.1"},
		{"untrusted peer with a claim", "198.51.100.1:4000", []string{"203.0.113.66"}, "198.51.100.1"},
		{"mapped", "10.0.0.1:80", []string{" ::ffff:1.2.3.4 "}, "1.2.3.4"},
		{"zoned", "10.0.0.1:80", []string{"2001:db8:1::1%eth0"}, "2001:db8:1::1"},
		{"with a port", "10.0.0.1:80", []string{"198.51.100.1:99"}, "198.51.100.1"},
		{"two lines", "10.0.0.1:80", []string{"203.0.113.66", "198.51.100.1"}, ""},
		{"a list", "10.0.0.1:80", []string{"203.0.113.66, 198.51.100.1"}, ""},
		{"missing", "10.0.0.1:80", nil, ""},
		{"empty", "10.0.0.1:80", []string{""}, ""},
		{"garbage", "10.0.0.1:80", []string{strings.Repeat("x", 100_000)}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			expectIP(t, strategy, from(tc.peer, "X-Real-Ip", tc.lines...), tc.want)
		})
	}
	t.Run("nothing trusted", func(t *testing.T) {
		expectIP(t, middleware.SingleHeader("X-Real-IP"), from("10.0.0.1:80", "X-Real-Ip", "203.0.113.66"), "10.0.0.1")
	})
}

func expectIP(t *testing.T, strategy middleware.IPStrategy, r *http.Request, want string) {
	t.Helper()
	ip, err := strategy(r)
	if want == "" {
		if !errors.Is(err, middleware.ErrNoKey) || ip.IsValid() {
			t.Errorf("got %v, %v; want ErrNoKey", ip, err)
		} else if len(err.Error()) > 500 {
			t.Errorf("the error is %d bytes long", len(err.Error()))
		}
		return
	}
	if err != nil || ip.String() != want {
		t.Errorf("got %v, %v; want %s", ip, err, want)
	}
}

// An error names the field and the place of what is wrong in it; what stands there, such as an address or a
// secret, is in no error and in no log.
func TestErrorsQuoteNothingOfTheRequest(t *testing.T) {
	const canary = "canary-203.0.113.66"
	trusted := netip.MustParsePrefix("10.0.0.0/8")
	for _, tc := range []struct {
		key          middleware.KeyFunc
		r            *http.Request
		field, place string
	}{
		{middleware.ByIP(middleware.ForwardedFor(trusted)), from("10.0.0.1:80", "X-Forwarded-For", "198.51.100.1, "+canary, "10.0.0.2,"), "X-Forwarded-For", "entry 2 from the right"},
		{middleware.ByIP(middleware.DangerouslyCountProxies(3)), from("10.0.0.1:80", "X-Forwarded-For", canary+", 10.0.0.3", "10.0.0.2"), "X-Forwarded-For", "entry 3 from the right"},
		{middleware.ByIP(middleware.SingleHeader("X-Api-Key", trusted)), from("10.0.0.1:80", "X-Api-Key", canary), "X-Api-Key", ""},
		{middleware.ByIP(middleware.PeerIP), from(canary, "X"), "peer", ""},
		{middleware.ByForm("email", nil), httptest.NewRequest("POST", "/", iotest.ErrReader(errors.New("read tcp "+canary+": i/o timeout"))), "body", ""},
	} {
		var log journal
		answer(middleware.RateLimit{Limiter: local("l", 5), Key: tc.key, Logger: log.logger()}.Handler(hello), tc.r)
		if text := log.String(); strings.Contains(text, "canary") || strings.Contains(text, "203.0.113") || !strings.Contains(text, tc.field) || !strings.Contains(text, tc.place) {
			t.Errorf("%s: %s", tc.field, text)
		}
	}
}

func TestIPKey(t *testing.T) {
	for _, tc := range []struct{ ip, want string }{
		{"1.2.3.4", "ip:1.2.3.4"},
		{"::ffff:1.2.3.4", "ip:1.2.3.4"},
		{"2001:db8:0:1::1", "ip:2001:db8:0:1::/64"},
		{"2001:db8:0:1:ffff:ffff:ffff:ffff", "ip:2001:db8:0:1::/64"},
		{"2001:db8:0:2::1", "ip:2001:db8:0:2::/64"},
		{"2001:db8:0:1::1%eth0", "ip:2001:db8:0:1::/64"},
		{"abcd:abcd:abcd:abcd:abcd:abcd:abcd:abcd", "ip:abcd:abcd:abcd:abcd::/64"},
	} {
		if got := middleware.IPKey(netip.MustParseAddr(tc.ip)); got != tc.want {
			t.Errorf("IPKey(%s) = %s, want %s", tc.ip, got, tc.want)
		}
	}
	r := from("192.0.2.1:1234", "X-Forwarded-For", "203.0.113.66")
	byIP := middleware.ByIP(middleware.PeerIP)
	if n := testing.AllocsPerRun(100, func() { byIP(r) }); n > 1 {
		t.Errorf("%v allocations for a key, want 1", n)
	}
}

// Whatever arrives in the header: no panic, no mapped or zoned address, never
// an address that is trusted, and what stands to the left of the client, which
// is the client's to choose, changes nothing.
func FuzzForwardedFor(f *testing.F) {
	for _, tc := range forwardedCases {
		if header := strings.Join(tc.lines, "\n"); len(header) < 1000 { // longer ones take all the time
			f.Add(tc.peer, header)
		}
	}
	strategy := middleware.ForwardedFor(proxyRanges...)
	f.Fuzz(func(t *testing.T, peer, header string) {
		lines := strings.Split(header, "\n")
		ip, err := strategy(from(peer, "X-Forwarded-For", lines...))
		if err != nil {
			if !errors.Is(err, middleware.ErrNoKey) {
				t.Fatal(err)
			}
			return
		}
		if !ip.IsValid() || ip.Is4In6() || ip.Zone() != "" {
			t.Fatalf("got %v", ip)
		}
		for _, p := range proxyRanges {
			if p.Contains(ip) {
				t.Fatalf("%v is a proxy's", ip)
			}
		}
		claims := append([]string{"203.0.113.66"}, lines...)
		if again, err := strategy(from(peer, "X-Forwarded-For", claims...)); err != nil || again != ip {
			t.Fatalf("a claim to the left turned %v into %v, %v", ip, again, err)
		}
	})
}

// The strategies beside each other. The service stands behind proxies in
// 10.0.0.0/8; 203.0.113.66 is what a client claims.
func ExampleIPStrategy() {
	proxies := netip.MustParsePrefix("10.0.0.0/8")
	strategies := []struct {
		name string
		tell middleware.IPStrategy
	}{
		{"PeerIP", middleware.PeerIP},
		{"ForwardedFor", middleware.ForwardedFor(proxies)},
		{"SingleHeader", middleware.SingleHeader("X-Real-IP", proxies)},
	}
	for _, request := range []struct {
		about, peer, forwardedFor, realIP string
	}{
		{"straight from the client", "198.51.100.1:999", "203.0.113.66", "203.0.113.66"},
		{"through the proxy", "10.0.0.1:999", "203.0.113.66, 198.51.100.1", "198.51.100.1"},
		{"from the proxy itself", "10.0.0.1:999", "", ""},
	} {
		fmt.Println(request.about)
		for _, strategy := range strategies {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = request.peer
			if request.forwardedFor != "" {
				r.Header.Set("X-Forwarded-For", request.forwardedFor)
				r.Header.Set("X-Real-IP", request.realIP)
			}
			ip, err := strategy.tell(r)
			if err != nil {
				fmt.Printf("  %-13s cannot tell\n", strategy.name)
				continue
			}
			fmt.Printf("  %-13s %s\n", strategy.name, ip)
		}
	}
	// Output:
	// straight from the client
	//   PeerIP        198.51.100.1
	//   ForwardedFor  198.51.100.1
	//   SingleHeader  198.51.100.1
	// through the proxy
	//   PeerIP        10.0.0.1
	//   ForwardedFor  198.51.100.1
	//   SingleHeader  198.51.100.1
	// from the proxy itself
	//   PeerIP        10.0.0.1
	//   ForwardedFor  cannot tell
	//   SingleHeader  cannot tell
}
