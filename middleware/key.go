package middleware

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// A KeyFunc names who a limit counts: requests with the same key share it.
//
// An error means that there is no key; it wraps [ErrNoKey] if that is because
// of what the request says, or does not say, about its sender. There is never a
// key that all such requests share. Each function here begins its keys with a
// word of its own, so that no user can be called like another client's address.
// Functions here that make a KeyFunc panic if what they are given is nil or empty, so that it
// is seen at start-up.
type KeyFunc func(*http.Request) (string, error)

// ErrNoKey is wrapped by the errors of a [KeyFunc] and of an [IPStrategy] that
// find nothing in the request that identifies its client. [RateLimit] answers it
// with 400 and [FirstOf] goes on to the next function.
var ErrNoKey = errors.New("middleware: the request does not tell who sent it")

// ByIP counts by client address, as strategy finds it: an IPv4 address alone,
// IPv6 addresses by their /64, which is what one customer gets, with 2⁶⁴ addresses
// to choose from.
func ByIP(strategy IPStrategy) KeyFunc { return ByIPPrefix(strategy, 64) }

// ByIPPrefix is ByIP with another length of the prefix that IPv6 addresses are counted by, 1 to
// 128 bits: 56 or 48 where providers give their customers as much. It panics on any other.
func ByIPPrefix(strategy IPStrategy, bits int) KeyFunc {
	checkBits(bits)
	refuseIf(strategy == nil, "the IPStrategy of ByIP is nil")
	return func(r *http.Request) (string, error) {
		ip, err := strategy(r)
		if err != nil {
			return "", err
		}
		if !ip.IsValid() {
			return "", fmt.Errorf("%w: its strategy has found no address", ErrNoKey)
		}
		return IPPrefixKey(ip, bits), nil
	}
}

// IPKey is the key of [ByIP] for a client address, such as ip:192.0.2.1 or
// ip:2001:db8::/64, to look at its limit or reset it.
func IPKey(ip netip.Addr) string { return IPPrefixKey(ip, 64) }

// IPPrefixKey is the key of [ByIPPrefix] for a client address.
func IPPrefixKey(ip netip.Addr, bits int) string {
	checkBits(bits)
	ip = ip.Unmap().WithZone("")
	b := append(make([]byte, 0, len("ip:0000:0000:0000:0000::/64")), "ip:"...)
	if ip.Is6() {
		subnet, _ := ip.Prefix(bits) // an IPv6 address has one
		return string(subnet.AppendTo(b))
	}
	return string(ip.AppendTo(b))
}

func checkBits(bits int) {
	if bits < 1 || bits > 128 {
		panic(fmt.Sprintf("middleware: an IPv6 prefix of %d bits", bits))
	}
}

// By counts by what f says of a request, under a word that tells such keys from others: By("tenant",
// f). Of "" there is no key ([ErrNoKey]). It panics if word is empty, contains a colon, or is one that
// the keys of other functions here begin with: form, header, ip, route, session or user. Where
// f reads what a client makes up, each new value has a new limit.
func By(word string, f func(*http.Request) string) KeyFunc {
	KeyOf(word, "")
	refuseIf(slices.Contains(words, word), fmt.Sprintf("By makes no keys that begin with %q, as another function does", word))
	refuseIf(f == nil, "the function of By is nil")
	return func(r *http.Request) (string, error) {
		if value := f(r); value != "" {
			return KeyOf(word, value), nil
		}
		return "", fmt.Errorf("%w: it has no %s", ErrNoKey, word)
	}
}

// words are what the keys of functions other than By begin with.
var words = []string{"form", "header", "ip", "route", "session", "user"}

// refuseIf panics with text if what a KeyFunc is made of is bad.
func refuseIf(bad bool, text string) {
	if bad {
		panic("middleware: " + text)
	}
}

// KeyOf is the key of [By] for a value, such as tenant:acme, to look at its limit or reset it.
func KeyOf(word, value string) string {
	if word == "" || strings.Contains(word, ":") {
		panic(fmt.Sprintf("middleware: a key cannot begin with the word %q", word))
	}
	return word + ":" + value
}

// ByForm counts by a field of a form, in the form that canonical gives it; nil: as it is. For a
// login that is what the account is known by: in small letters, say, or each spelling has a limit
// of its own. There is no key ([ErrNoKey]) where the field is missing or empty, where body and query
// have different values, as the handler may read another one, and where there is a body that is
// longer than 64 KB or cannot be read as a form from end to end, whatever the method: the handler
// may read what is not seen here. The handler finds the body as if nobody had read it.
func ByForm(name string, canonical func(string) string) KeyFunc {
	refuseIf(name == "", "ByForm has no name of a field")
	return func(r *http.Request) (string, error) {
		values, err := formValues(r, name)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrNoKey, err)
		}
		found := ""
		for i, value := range values {
			if canonical != nil {
				value = canonical(value)
			}
			if i > 0 && value != found {
				return "", fmt.Errorf("%w: its form has several %s", ErrNoKey, name)
			}
			found = value
		}
		if found == "" {
			return "", fmt.Errorf("%w: its form has no %s", ErrNoKey, name)
		}
		return FormKey(name, found), nil
	}
}

// FormKey is the key of [ByForm] for a value in its canonical form, to look at its limit or
// reset it.
func FormKey(name, value string) string { return "form:" + ratelimit.JoinKey(name, value) }

// maxForm is the longest body that ByForm reads, in bytes.
const maxForm = 64 << 10

// formValues are the values of name in the body and in the query of r, from which a handler may
// choose. They leave the body of r to be read again.
func formValues(r *http.Request, name string) ([]string, error) {
	if len(r.PostForm) > 0 || r.Form != nil && r.MultipartForm != nil { // somebody has parsed the body already
		return r.Form[name], nil
	}
	values := r.Form[name]
	if r.Form == nil {
		values = r.URL.Query()[name]
	}
	if r.Body == nil || r.Body == http.NoBody {
		return values, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	r.Body = unread{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	switch {
	case err != nil: // which may name the client's address
		return nil, errors.New("its body cannot be read")
	case len(body) > maxForm:
		return nil, fmt.Errorf("its form has more than %d bytes", maxForm)
	case len(body) == 0:
		return values, nil
	}
	read := http.Request{Method: http.MethodPost, URL: new(url.URL), Header: r.Header, Body: io.NopCloser(bytes.NewReader(body))}
	whole := false
	switch media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media {
	case "application/x-www-form-urlencoded":
		whole = read.ParseForm() == nil
	case "multipart/form-data":
		whole = read.ParseMultipartForm(maxForm) == nil
	}
	if !whole { // the parser's error may quote it
		return nil, errors.New("its body is not a whole form")
	}
	return append(read.PostForm[name], values...), nil
}

// unread is a body of which a part has been read, and is to be read again.
type unread struct {
	io.Reader
	io.Closer
}

// ByUser counts by the user who is logged in with manager. For visitors there
// is no key ([ErrNoKey]); [FirstOf] names what counts them. It must run behind
// [Sessions] with that manager, or its error is [session.ErrNoSession].
func ByUser(manager *session.Manager) KeyFunc {
	refuseIf(manager == nil, "the Manager of ByUser is nil")
	return func(r *http.Request) (string, error) {
		if user := manager.UserID(r.Context()); user != "" {
			return UserKey(user), nil
		}
		if !manager.Loaded(r.Context()) {
			return "", session.ErrNoSession
		}
		return "", fmt.Errorf("%w: nobody is logged in", ErrNoKey)
	}
}

// UserKey is the key of [ByUser] for a user, to look at the user's limit or reset it.
func UserKey(userID string) string { return "user:" + userID }

// BySession counts by session. A visitor whose session is not stored yet has no
// key ([ErrNoKey]); [FirstOf] names what counts those. A client gets a new key
// with each new session, and keeps it when the session's ID changes: this keeps
// visitors apart, it does not hold off a client that drops its cookies. It must
// run behind [Sessions] with that manager, or its error is
// [session.ErrNoSession].
func BySession(manager *session.Manager) KeyFunc {
	refuseIf(manager == nil, "the Manager of BySession is nil")
	return func(r *http.Request) (string, error) {
		if !manager.Loaded(r.Context()) {
			return "", session.ErrNoSession
		}
		if handle := manager.Info(r.Context()).Handle; handle != "" {
			return "session:" + handle, nil
		}
		return "", fmt.Errorf("%w: no session is stored", ErrNoKey)
	}
}

// ByHeader counts by the value of a header, such as that of an API key. Use it
// behind what has checked the value; otherwise a client gets a new limit with
// each value it makes up. The key is a hash, see [HeaderKey], so that no credential
// stands in Redis or in a log. A header that is missing, empty or sent more than
// once is no key ([ErrNoKey]).
func ByHeader(name string) KeyFunc {
	refuseIf(!isToken(name), fmt.Sprintf("ByHeader: %q is no header name", name))
	name = http.CanonicalHeaderKey(name)
	return func(r *http.Request) (string, error) {
		// Of several, what checked the header may have read another one.
		if values := r.Header[name]; len(values) == 1 && values[0] != "" {
			return HeaderKey(values[0]), nil
		}
		return "", fmt.Errorf("%w: no single value of header %s", ErrNoKey, name)
	}
}

// HeaderKey is the key of [ByHeader] for the value of a header, to look at its limit or
// reset it: the first 16 bytes of its SHA-256.
func HeaderKey(value string) string {
	sum := sha256.Sum256([]byte(value))
	return "header:" + base64.RawURLEncoding.EncodeToString(sum[:16])
}

// ErrNoRoute is the error of [ByRoute] for a request that no router has matched
// with a pattern. It is a mistake in how the middleware is mounted.
var ErrNoRoute = errors.New("middleware: no route pattern; mount ByRoute on a route")

// ByRoute counts by the pattern that matched, not by the path: /users/1 and
// /users/2 share the limit of /users/{id}. It reads [http.Request.Pattern], so
// it must run behind the router: mounted on a route of an [http.ServeMux], with
// chi's With or Group, through the gin adapter, or in [Routes]. The pattern is
// all of the key: it contains the method only if the pattern does.
func ByRoute(r *http.Request) (string, error) {
	if r.Pattern == "" {
		return "", ErrNoRoute
	}
	return "route:" + r.Pattern, nil
}

// existing has an empty key be none.
func existing(key string, err error) (string, error) {
	if key == "" && err == nil {
		err = fmt.Errorf("%w: its key is empty", ErrNoKey)
	}
	return key, err
}

func checkKeys(of string, keys []KeyFunc) {
	refuseIf(len(keys) == 0, of+" has no functions")
	for i, key := range keys {
		refuseIf(key == nil, fmt.Sprintf("function %d of %s is nil", i, of))
	}
}

// Join counts by all of keys together: Join(ByRoute, ByUser(m)) gives each user
// a limit per route. No two lists of parts make the same key.
// It has a key only if all of them have.
func Join(keys ...KeyFunc) KeyFunc {
	checkKeys("Join", keys)
	return func(r *http.Request) (string, error) {
		parts := make([]string, len(keys))
		for i, key := range keys {
			var err error
			if parts[i], err = existing(key(r)); err != nil {
				return "", err
			}
		}
		return ratelimit.JoinKey(parts...), nil
	}
}

// FirstOf counts by the first of keys that the request has: FirstOf(ByUser(m),
// ByIP(PeerIP)) counts users by name and visitors by address. It goes on only
// after [ErrNoKey]; any other error is its result.
func FirstOf(keys ...KeyFunc) KeyFunc {
	checkKeys("FirstOf", keys)
	return func(r *http.Request) (string, error) {
		err := ErrNoKey
		for _, key := range keys {
			var k string
			if k, err = existing(key(r)); !errors.Is(err, ErrNoKey) {
				return k, err
			}
		}
		return "", err
	}
}
