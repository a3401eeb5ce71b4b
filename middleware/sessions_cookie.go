package middleware

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/textproto"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/gatehouse-go/gatehouse/session"
)

// cookie returns the template with its defaults, and all that is wrong with it.
// What browsers refuse is refused here, because they do so in silence.
func (s Sessions) cookie() (http.Cookie, error) {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("middleware: Sessions."+format, args...))
	}
	c := s.Cookie
	c.HttpOnly, c.Secure = true, true
	if c.Name == "" {
		c.Name = "__Host-session"
	}
	if c.Path == "" {
		c.Path = "/"
	}
	if c.SameSite == 0 {
		c.SameSite = http.SameSiteLaxMode
	}

	switch {
	case !isToken(c.Name):
		bad("Cookie.Name %q is no token", c.Name)
	case hasPrefixFold(c.Name, "__Host-") && (c.Domain != "" || c.Path != "/"):
		bad("Cookie.Name %q must have no Domain and the Path /", c.Name)
	case len(c.Name) > maxCookieName:
		bad("Cookie.Name of %d bytes, at most %d are possible: browsers drop large cookies", len(c.Name), maxCookieName)
	}
	for _, a := range [...]struct{ name, value string }{{"Path", c.Path}, {"Domain", c.Domain}} {
		if len(a.value) > maxAttribute {
			bad("Cookie.%s of %d bytes, of which browsers take at most %d", a.name, len(a.value), maxAttribute)
		}
	}
	if !strings.HasPrefix(c.Path, "/") || (&http.Cookie{Name: "n", Path: c.Path}).Valid() != nil || strings.ContainsAny(c.Path, "?#") || path.Clean(c.Path) != strings.TrimSuffix(c.Path, "/") && c.Path != "/" {
		bad("Cookie.Path %q is no path of a request", c.Path)
	}
	if domain := plainDomain(c.Domain); (&http.Cookie{Name: "n", Domain: c.Domain}).Valid() != nil {
		bad("Cookie.Domain %q is no domain", c.Domain)
	} else if _, err := netip.ParseAddr(domain); err == nil {
		bad("Cookie.Domain %q is an address: leave it empty", c.Domain)
	} else if strings.HasSuffix(domain, ".") {
		bad("Cookie.Domain %q ends with a dot, as no host does", c.Domain)
	} else if last := domain[strings.LastIndexByte(domain, '.')+1:]; last != "" && '0' <= last[0] && last[0] <= '9' {
		bad("Cookie.Domain %q ends with a number, as addresses do", c.Domain)
	} else if suffix, _ := publicsuffix.PublicSuffix(domain); domain != "" && suffix == domain {
		bad("Cookie.Domain %q is a public suffix, of which browsers take no cookie", c.Domain)
	}
	switch c.SameSite {
	case http.SameSiteLaxMode, http.SameSiteStrictMode, http.SameSiteNoneMode:
	default:
		bad("Cookie.SameSite must be Lax, Strict or None")
	}
	if c.Value != "" || !c.Expires.IsZero() || c.MaxAge != 0 {
		bad("Cookie has a Value, Expires or MaxAge: those are the Manager's")
	}
	if s.Token != "" && !canBeToken(s.Token) {
		bad("Token %q can be no header field for it: letters, digits and hyphens, at most %d, as in X-Session, and no name that means something else", s.Token, maxToken)
	}
	if s.LegacyCookie != "" && !isToken(s.LegacyCookie) {
		bad("LegacyCookie %q is no token", s.LegacyCookie)
	}
	return c, errors.Join(errs...)
}

const (
	maxCookieName = 3072 // bytes: with the value a cookie may have 4,096 (RFC 6265bis)
	maxAttribute  = 1024
)

// maxToken bounds the name of Token; a proxy may drop larger fields.
const maxToken = 64

// canBeToken reports whether a header field of a name reaches a service and means nothing else.
// nginx drops names with other characters in silence.
func canBeToken(name string) bool {
	if len(name) > maxToken || strings.ContainsFunc(name, func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return false
	}
	name = http.CanonicalHeaderKey(name)
	for _, prefix := range [...]string{"Accept", "Access-Control-", "Content-", "If-", "Proxy-", "Sec-", "X-Accel-", "X-Forwarded-"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return !slices.Contains(reserved[:], name)
}

// reserved are header fields that mean something else.
var reserved = [...]string{
	"Authorization", "Cache-Control", "Clear-Site-Data", "Connection", "Cookie", "Date", "Etag", "Expect", "Forwarded", "From", "Host",
	"Keep-Alive", "Last-Modified", "Location", "Origin", "Range", "Referer", "Retry-After", "Set-Cookie", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "User-Agent", "Vary", "Via", "Www-Authenticate", "X-Real-Ip",
}

// cookieOf is the template of the cookie that r can have.
func (l *loader) cookieOf(r *http.Request) *http.Cookie {
	if r.TLS != nil || !isLocalhost(r.Host) || isProxied(r) { // a proxy has named its own machine
		return &l.cookie
	}
	return &l.local
}

// isProxied reports whether r says that it came through a proxy.
func isProxied(r *http.Request) bool {
	for _, name := range [...]string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip"} {
		if len(r.Header[name]) > 0 {
			return true
		}
	}
	return false
}

// isInTheClear reports whether r came by plain HTTP to another machine, as far as can be known: a
// browser that goes by TLS says Sec-Fetch-Mode, whatever ends the TLS.
func isInTheClear(r *http.Request) bool {
	switch {
	case r.TLS != nil || isLocalhost(r.Host) || len(r.Header["Sec-Fetch-Mode"]) > 0:
		return false
	case len(r.Header["X-Forwarded-Proto"]) > 0:
		return strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "http")
	}
	return !isProxied(r)
}

// isLocalhost reports whether a Host names the machine of the browser.
func isLocalhost(host string) bool {
	name, _ := splitPort(host)
	switch {
	case name == "localhost", strings.HasSuffix(name, ".localhost"), name == "[::1]":
		return true
	case strings.HasPrefix(name, "127."):
		ip, err := netip.ParseAddr(name)
		return err == nil && ip.IsLoopback()
	}
	return false
}

// localCookie is c as browsers take it over plain HTTP to localhost.
func localCookie(c http.Cookie) http.Cookie {
	c.Secure, c.Partitioned, c.Domain = false, false, ""
	for _, prefix := range []string{"__Host-Http-", "__Host-", "__Secure-", "__Http-"} {
		if hasPrefixFold(c.Name, prefix) && len(c.Name) > len(prefix) {
			c.Name = c.Name[len(prefix):]
			break
		}
	}
	if c.SameSite == http.SameSiteNoneMode {
		c.SameSite = http.SameSiteLaxMode
	}
	return c
}

// isToken reports whether s can be the name of a cookie or a header (RFC 9110,
// section 5.6.2).
func isToken(s string) bool { return (&http.Cookie{Name: s}).Valid() == nil }

// hasPrefixFold is case-insensitive, because browsers are.
func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// maxNamed bounds how many cookies of one name are looked at.
const maxNamed = 64

// legacyTokenLen is the length of the tokens of scs, 256 bits in base64url.
const legacyTokenLen = 43

// cookiesNamed appends the values of the cookies of a name to values, no more than it has
// room for. It is r.CookiesNamed without the values that no session cookie has, and makes
// no Cookie of each: whatever a client sends, it allocates nothing.
func cookiesNamed(values []string, r *http.Request, name string) []string {
	for _, line := range r.Header["Cookie"] {
		for line != "" && len(values) < cap(values) {
			var part string
			part, line, _ = strings.Cut(line, ";")
			n, v, _ := strings.Cut(textproto.TrimString(part), "=")
			if textproto.TrimString(n) != name {
				continue
			}
			if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			if isPlain(v) {
				values = append(values, v)
			}
		}
	}
	return values
}

// stripped returns the header of r without what names its session.
func (l *loader) stripped(r *http.Request) http.Header {
	h := withoutCookies(r.Header, l.cookie.Name, l.local.Name, l.LegacyCookie)
	if l.byToken(r) {
		h = maps.Clone(h)
		delete(h, l.Token)
	}
	return h
}

// stripAnswer takes out of a response what would replace the session: cookies of its names, and the
// Token.
func (l *loader) stripAnswer(h http.Header) {
	if l.Token != "" {
		delete(h, l.Token)
	}
	set := slices.DeleteFunc(h["Set-Cookie"], func(line string) bool {
		name, _, _ := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		return name == l.cookie.Name || name == l.local.Name || name == l.LegacyCookie && name != ""
	})
	if len(set) == 0 {
		delete(h, "Set-Cookie")
	} else {
		h["Set-Cookie"] = set
	}
}

// withoutCookies returns a header without the cookies of some names. The others stand as they came.
func withoutCookies(h http.Header, names ...string) http.Header {
	lines := h["Cookie"]
	if len(lines) == 0 {
		return h
	}
	h = maps.Clone(h)
	delete(h, "Cookie")
	for _, line := range lines {
		parts := slices.DeleteFunc(strings.Split(line, ";"), func(part string) bool {
			name, _, _ := strings.Cut(part, "=")
			return slices.Contains(names, textproto.TrimString(name))
		})
		if left := textproto.TrimString(strings.Join(parts, ";")); left != "" {
			h["Cookie"] = append(h["Cookie"], left)
		}
	}
	return h
}

// isPlain reports whether s consists of what base64url and the joints of session cookies do.
func isPlain(s string) bool {
	for i := range len(s) {
		if !plain[s[i]] {
			return false
		}
	}
	return s != ""
}

var plain = func() (is [256]bool) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.=") {
		is[c] = true
	}
	return is
}()

// plainDomain is a cookie's domain as browsers compare it, which ignore a dot in front.
func plainDomain(domain string) string { return strings.ToLower(strings.TrimPrefix(domain, ".")) }

// byToken reports whether the client of r wants a header field in place of the cookie.
func (l *loader) byToken(r *http.Request) bool {
	return l.Token != "" && r.Header[l.Token] != nil
}

// tokens appends the values that can be a session's, no more than there is room for.
func tokens(values, field []string) []string {
	for _, v := range field {
		if v = textproto.TrimString(v); isPlain(v) && len(values) < cap(values) {
			values = append(values, v)
		}
	}
	return values
}

// apply writes the outcome of a request into its response's header, by token in the field of
// Token. A response that carries either may not be stored anywhere, whatever the handler said.
func (l *loader) apply(r *http.Request, h http.Header, out session.Outcome, token bool) {
	if out.Action == session.CookieKeep {
		return
	}
	h.Set("Cache-Control", noStore)
	for _, name := range [...]string{"CDN-Cache-Control", "Cloudflare-CDN-Cache-Control", "Surrogate-Control", "X-Accel-Expires"} {
		h.Del(name)
	}
	if token {
		h[l.Token] = []string{out.Value}
		return
	}
	c := *l.cookieOf(r)
	if domain, host := plainDomain(c.Domain), plainHost(r.Host); domain != "" {
		host, _ = splitPort(host)
		if host != domain && !strings.HasSuffix(host, "."+domain) {
			l.astray.Do(func() {
				l.Logger.LogAttrs(r.Context(), slog.LevelError, "session: a cookie was sent that browsers drop: its Domain is not that of the request; a proxy must pass on the Host of its clients",
					slog.String("domain", c.Domain), slog.String("host", r.Host))
			})
		}
	}
	if c.Secure && isInTheClear(r) {
		l.clear.Do(func() {
			l.Logger.LogAttrs(r.Context(), slog.LevelError,
				"session: a cookie was sent that browsers drop: it is Secure, and the request came by plain HTTP; use TLS, or have the proxy that ends it set X-Forwarded-Proto",
				slog.String("host", r.Host))
		})
	}
	if !c.Secure {
		l.plain.Do(func() {
			l.Logger.LogAttrs(r.Context(), slog.LevelWarn,
				"session: a cookie that is not Secure was sent, as the request was for localhost over plain HTTP; a proxy must pass on the Host of its clients, or X-Forwarded-Proto",
				slog.String("host", r.Host))
		})
	}
	switch {
	case out.Action == session.CookieDelete:
		c.MaxAge, c.Expires = -1, time.Unix(1, 0)
	case out.MaxAge > 0:
		c.Value = out.Value
		c.MaxAge, c.Expires = int(max(1, ceilSeconds(out.MaxAge))), time.Now().Add(out.MaxAge)
	default:
		c.Value = out.Value
	}
	h.Add("Set-Cookie", c.String())
	if out.Legacy && l.LegacyCookie != c.Name {
		gone := http.Cookie{Name: l.LegacyCookie, Path: "/", MaxAge: -1, Expires: time.Unix(1, 0), Secure: c.Secure}
		h.Add("Set-Cookie", gone.String())
	}
}
