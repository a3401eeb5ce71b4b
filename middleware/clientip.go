package middleware

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
)

// An IPStrategy tells the address of the client that sent a request.
//
// An address it returns is never zoned and never an IPv4 address mapped into
// IPv6. If it cannot tell, it returns an error that wraps [ErrNoKey]; it does
// not guess. Strategies are safe for concurrent use.
type IPStrategy func(*http.Request) (netip.Addr, error)

// PeerIP is the address that opened the connection. It is right when no proxy
// stands in front of the service; behind one, all clients have the address of
// the proxy.
//
// When a request that came from a private address says that it was forwarded, slog's default
// logger gets a line, once: then a proxy is counted in place of its clients.
func PeerIP(r *http.Request) (netip.Addr, error) {
	ip, err := peer(r)
	if err == nil && (ip.IsPrivate() || ip.IsLoopback()) && len(r.Header["X-Forwarded-For"]) > 0 && !proxied.Load() && !proxied.Swap(true) {
		slog.Default().LogAttrs(r.Context(), slog.LevelWarn,
			"PeerIP counts a private address, and X-Forwarded-For names others: behind a proxy use ForwardedFor or SingleHeader")
	}
	return ip, err
}

// proxied says that a line was written about a proxy that PeerIP counts.
var proxied atomic.Bool

func peer(r *http.Request) (netip.Addr, error) {
	if ip, ok := parseIP(r.RemoteAddr); ok {
		return ip, nil
	}
	return netip.Addr{}, fmt.Errorf("%w: its peer has no IP address", ErrNoKey)
}

// UnixSocket stands among the trusted prefixes of [ForwardedFor] and [SingleHeader] for whoever
// connects to a Unix socket: a proxy on the same host, which has no address. Without it nobody
// who comes that way can be counted. It is a Prefix that no text parses to, and contains no address.
var UnixSocket = netip.PrefixFrom(netip.AddrFrom16([16]byte([]byte("over Unix socket"))), -1)

// overUnixSocket reports whether r came over a Unix socket.
func overUnixSocket(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return ok && local.Network() == "unix"
}

// ForwardedFor reads X-Forwarded-For behind proxies whose addresses lie in
// trusted and each of which appends the address of its own peer.
//
// The walk starts at the peer and goes through the entries from the right, over
// all header lines, as long as it meets trusted addresses; the first address
// that is not trusted is the client. What stands to the left of it is the
// client's own claim and is never looked at. A peer that is not trusted is
// itself the client, so with nothing trusted this is [PeerIP].
//
// Entries and peers may have a port, which does not count, and IPv6 addresses brackets. It
// cannot tell, and returns an error, if it meets an entry that is no address, or if every address is trusted: a request that a trusted host makes
// for itself, such as a health check, has no client.
//
// It panics if a prefix is not valid, such as one whose parse failed. Where the addresses of the proxies
// are not known, see [DangerouslyCountProxies].
func ForwardedFor(trusted ...netip.Prefix) IPStrategy {
	proxies := newPrefixes(trusted)
	return func(r *http.Request) (netip.Addr, error) {
		if peer, err := proxies.sender(r); err != errProxy {
			return peer, err
		}
		n := 0
		for _, line := range slices.Backward(r.Header["X-Forwarded-For"]) {
			for entry := range entriesBackward(line) {
				n++
				ip, ok := parseIP(entry)
				if !ok {
					return netip.Addr{}, noAddress(n)
				}
				if !proxies.contain(ip) {
					return ip, nil
				}
			}
		}
		return netip.Addr{}, fmt.Errorf("%w: X-Forwarded-For names nobody but trusted proxies", ErrNoKey)
	}
}

// SingleHeader reads the client's address from the header called name (such as
// X-Real-IP or CF-Connecting-IP) when the peer lies in trusted. Those peers
// must overwrite the header, whatever the client sent. A peer that is not
// trusted is itself the client, so with nothing trusted this is [PeerIP].
//
// It cannot tell, and returns an error, if the header is missing, is no
// address, or comes more than once: then some proxy adds to it where it should
// overwrite it. It panics if name is no header name, or a prefix is not valid.
func SingleHeader(name string, trusted ...netip.Prefix) IPStrategy {
	refuseIf(!isToken(name), fmt.Sprintf("SingleHeader: %q is no header name", name))
	name = http.CanonicalHeaderKey(name)
	proxies := newPrefixes(trusted)
	return func(r *http.Request) (netip.Addr, error) {
		if peer, err := proxies.sender(r); err != errProxy {
			return peer, err
		}
		values := r.Header[name]
		if len(values) != 1 {
			return netip.Addr{}, fmt.Errorf("%w: %d header lines %s, want 1", ErrNoKey, len(values), name)
		}
		ip, ok := parseIP(strings.Trim(values[0], " \t"))
		if !ok {
			return netip.Addr{}, fmt.Errorf("%w: %s is no IP address", ErrNoKey, name)
		}
		return ip, nil
	}
}

// DangerouslyCountProxies reads X-Forwarded-For behind n proxies, 1 or more, whose addresses are
// not known, as on platforms that say how many there are but not where: the client is the n-th
// entry from the right. It panics if n is less than 1.
//
// Whoever reaches the service by a shorter way, past one of the proxies, chooses the address
// that it is counted by, and is not limited at all. Use it only where nobody can.
func DangerouslyCountProxies(n int) IPStrategy {
	if n < 1 {
		panic(fmt.Sprintf("middleware: %d proxies", n))
	}
	return func(r *http.Request) (netip.Addr, error) {
		left := n
		for _, line := range slices.Backward(r.Header["X-Forwarded-For"]) {
			for entry := range entriesBackward(line) {
				if left--; left > 0 {
					continue
				}
				ip, ok := parseIP(entry)
				if !ok {
					return netip.Addr{}, noAddress(n)
				}
				return ip, nil
			}
		}
		return netip.Addr{}, fmt.Errorf("%w: X-Forwarded-For has %d entries, want %d", ErrNoKey, n-left, n)
	}
}

// noAddress is the error for an entry of X-Forwarded-For. It ends up in a log, where what the entry
// says does not belong.
func noAddress(n int) error {
	return fmt.Errorf("%w: entry %d from the right of X-Forwarded-For is no IP address", ErrNoKey, n)
}

// entriesBackward are the elements of a header line, the last one first.
func entriesBackward(line string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for more := true; more; {
			var entry string
			if comma := strings.LastIndexByte(line, ','); comma >= 0 {
				line, entry = line[:comma], line[comma+1:]
			} else {
				entry, more = line, false
			}
			entry = strings.Trim(entry, " \t")
			if entry != "" && !yield(entry) { // RFC 9110, section 5.6.1.2: empty elements do not count
				return
			}
		}
	}
}

// errProxy says that a request came from a trusted proxy.
var errProxy = errors.New("a trusted proxy")

// sender is who sent a request, or errProxy.
func (p prefixes) sender(r *http.Request) (netip.Addr, error) {
	if overUnixSocket(r) && slices.Contains(p, UnixSocket) {
		return netip.Addr{}, errProxy
	}
	ip, err := peer(r)
	if err == nil && p.contain(ip) {
		err = errProxy
	}
	return ip, err
}

// prefixes are address ranges in the form that parseIP gives addresses.
type prefixes []netip.Prefix

func newPrefixes(list []netip.Prefix) prefixes {
	p := slices.Clone(list)
	for i, prefix := range p {
		if !prefix.IsValid() && prefix != UnixSocket {
			panic(fmt.Sprintf("middleware: trusted prefix %d is none: %v", i, prefix))
		}
		// ::ffff:10.0.0.0/104 means 10.0.0.0/8, and would contain no address
		// once those are unmapped.
		if ip := prefix.Addr(); ip.Is4In6() && prefix.Bits() >= 96 {
			p[i] = netip.PrefixFrom(ip.Unmap(), prefix.Bits()-96)
		}
	}
	return p
}

func (p prefixes) contain(ip netip.Addr) bool {
	for _, prefix := range p {
		if prefix.Contains(ip) {
			return true
		}
	}
	return false
}

// parseIP reads an address with or without a port: 192.0.2.1, 192.0.2.1:80,
// 2001:db8::1, [2001:db8::1], [2001:db8::1]:80. Some load balancers write the
// port into X-Forwarded-For.
//
// It unmaps and drops the zone, since a prefix contains neither a mapped nor a
// zoned address: either would let a client step out of a range it is in.
func parseIP(s string) (netip.Addr, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		if s, ok = strings.CutSuffix(rest, "]"); !ok || !strings.Contains(s, ":") {
			return netip.Addr{}, false
		}
	}
	ip, err := netip.ParseAddr(s)
	return ip.Unmap().WithZone(""), err == nil
}
