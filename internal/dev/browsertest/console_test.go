package browsertest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/middleware/console"
	"github.com/gatehouse-go/gatehouse/ratelimit"
	"github.com/gatehouse-go/gatehouse/session"
)

// office is a service with a console.
type office struct {
	url    string
	access console.Access
	login  *ratelimit.SlidingWindow
	logIn  func(user, device string)
}

func newOffice(t *testing.T) *office {
	t.Helper()
	client := redistest.Start(t, "--appendonly", "yes").Client()
	rules := must(ratelimit.NewRules(client, ratelimit.RulesConfig{Timeout: 10 * time.Second}))
	t.Cleanup(func() { _ = rules.Close() })
	denials := console.NewDenials(100)
	cfg := ratelimit.Config{Rules: rules, OnDecision: denials.Note, Timeout: 10 * time.Second}
	o := &office{access: console.Write, login: must(ratelimit.NewSlidingWindow(client, "login", ratelimit.Limit{Requests: 5, Window: 15 * time.Minute}, cfg))}
	sessions := must(session.New(client, session.Config{Events: session.Events{Retention: time.Hour}, Timeout: 10 * time.Second}))
	o.logIn = func(user, device string) {
		ctx := must(sessions.Load(t.Context()))
		sessions.Describe(ctx, func() string { return device })
		if err := sessions.Login(ctx, user); err != nil {
			t.Fatal(err)
		}
		must(sessions.Finish(ctx))
	}
	ops := console.Console{
		Authorize: func(*http.Request) (string, console.Access) { return "kim", o.access },
		Limiters: []ratelimit.Limiter{
			o.login, must(ratelimit.NewTokenBucket(client, "api", ratelimit.PerSecond(20), cfg)), must(ratelimit.NewFixedWindow(client, "exports", ratelimit.PerDay(100), cfg)),
		},
		Rules: rules, Denials: denials, Sessions: sessions,
	}
	mux := http.NewServeMux()
	mux.Handle("/ops/", http.StripPrefix("/ops", ops.Handler()))
	o.url = listen(t, "127.0.0.1", false, mux).url + "/ops/"
	return o
}

// hammer has a key denied.
func (o *office) hammer(t *testing.T, key string, times int) {
	t.Helper()
	for range times {
		must(o.login.Take(t.Context(), key, 1))
	}
}

// fill types into the first field that a selector of CSS finds.
func (b *browser) fill(selector, text string) {
	b.t.Helper()
	run(b, chromedp.SendKeys(selector, text))
}

// verdict is what the page of a key says above all else, without how it was asked and what follows.
func (b *browser) verdict() string {
	b.t.Helper()
	text := run(b, chromedp.Evaluate[string](`[".verdict h1", ".verdict .why"].map(s => document.querySelector(s)?.innerText).join(": ")`))
	text, _, _ = strings.Cut(text, ", ")
	return text
}

// A stranger finds out why somebody is limited, lifts it, and raises the limit, with three clicks each at
// most. No page needs a script.
func TestConsoleExplainsAndLifts(t *testing.T) {
	o := newOffice(t)
	o.hammer(t, "user:42", 12)
	o.hammer(t, "user:7", 6)
	b := start(t)
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	if text := b.open(o.url); !strings.Contains(text, "user:42") {
		t.Fatal(text)
	}
	b.picture("console-overview-light")
	text := b.click(`//a[contains(., "user:42")]`)
	if v := b.verdict(); v != "Denied: denied by login: 5 in 15m used" || !strings.Contains(text, "7 times") {
		t.Fatal(v, text)
	}
	b.picture("console-explain-light")
	b.fill(`form[action=reset] input[name=reason]`, "OPS-1")
	text = b.click(`form[action=reset] button`)
	if v := b.verdict(); !strings.HasPrefix(v, "Allowed: allowed by login") || !strings.Contains(text, "5 left") || !strings.Contains(text, "OPS-1") {
		t.Fatal(v, text)
	}
	if res := must(o.login.Take(t.Context(), "user:42", 0)); !res.Allowed {
		t.Error("lifted, and yet: ", res)
	}

	b.open(o.url)
	b.fill(`form[action=explain] input[name=key]`, "user:7")
	b.click(`form[action=explain] button`)
	b.fill(`form[action=rule] input[name=requests]`, "50")
	b.fill(`form[action=rule] input[name=for]`, "24h")
	b.fill(`form[action=rule] input[name=reason]`, "OPS-2")
	text = b.click(`form[action=rule] button`)
	if v := b.verdict(); !strings.HasPrefix(v, "Allowed: allowed by login") || !strings.Contains(text, "50 in 15m, by a rule of kim: OPS-2, until") {
		t.Error(v, text)
	}
	if res := must(o.login.Take(t.Context(), "user:7", 40)); !res.Allowed {
		t.Error("raised, and yet: ", res)
	}
	b.fill(`form[action=unrule] input[name=reason]`, "OPS-3")
	if text := b.click(`form[action=unrule] button`); !strings.Contains(text, "OPS-3") {
		t.Error(text)
	}
	if v := b.verdict(); !strings.HasPrefix(v, "Denied: denied by login: 5 in 15m used") {
		t.Error("by its own limit again: ", v)
	}
}

// One session of a user is ended, and then all; what happened is shown.
func TestConsoleEndsSessions(t *testing.T) {
	o := newOffice(t)
	for _, device := range []string{"Firefox on Windows", "Safari on iPhone", "Chrome on Linux"} {
		o.logIn("42", device)
	}
	b := start(t)
	b.open(o.url)
	b.fill(`form[action=user] input[name=user]`, "42")
	if text := b.click(`form[action=user] button`); !strings.Contains(text, "Safari on iPhone") || !strings.Contains(text, "logged-in") {
		t.Fatal(text)
	}
	b.picture("console-account-light")
	row := `//tr[td[contains(., "Safari on iPhone")]][.//form]`
	run(b, chromedp.Click(row+`//summary`))
	run(b, chromedp.SendKeys(row+`//input[@name="reason"]`, "stolen"))
	text := b.click(row + `//button`)
	if devices := run(b, chromedp.Evaluate[[]string](`[...document.querySelectorAll("tr:has(input[name=handle]) td:first-child")].map(e => e.innerText).sort()`)); !slices.Equal(devices, []string{"Chrome on Linux", "Firefox on Windows"}) {
		t.Errorf("left: %q", devices)
	}
	if !strings.Contains(text, "ended") || !strings.Contains(text, "stolen") {
		t.Error(text)
	}
	run(b, chromedp.Click(`details.card > summary`))
	b.fill(`details.card input[name=reason]`, "stolen")
	if text := b.click(`details.card button`); !strings.Contains(text, "Nobody of this ID is logged in") {
		t.Error(text)
	}
}

// Who may only look is offered nothing else, and what they send all the same changes nothing.
func TestConsoleForReaders(t *testing.T) {
	o := newOffice(t)
	o.access = console.Read
	o.hammer(t, "user:42", 6)
	o.logIn("42", "Firefox on Windows")
	b := start(t)
	for _, page := range []string{"", "explain?limiter=login&key=user:42", "user?user=42", "state"} {
		if text := b.open(o.url + page); !strings.Contains(text, "reading only") {
			t.Error(page, text)
		}
		if n := run(b, chromedp.Evaluate[int](`document.querySelectorAll("form[method=post]").length`)); n != 0 {
			t.Errorf("%s: %d forms that change something", page, n)
		}
	}
	for _, path := range []string{"reset", "rule", "unrule", "end"} {
		b.open(o.url)
		run(b, chromedp.Evaluate[chromedp.Void](`
			const form = document.body.appendChild(document.createElement("form"));
			form.method = "post";
			form.action = "`+path+`";
			for (const [k, v] of Object.entries({limiter: "login", key: "user:42", user: "42", all: "1", mode: "exempt", reason: "x"})) {
				const field = form.appendChild(document.createElement("input"));
				[field.name, field.value] = [k, v];
			}
			form.appendChild(document.createElement("button")).id = "forged";`))
		if text := b.click("#forged"); !strings.Contains(text, "You may look, and change nothing") {
			t.Errorf("%s: %s", path, text)
		}
	}
	if res := must(o.login.Take(t.Context(), "user:42", 0)); res.Allowed {
		t.Error("lifted: ", res)
	}
	if text := b.open(o.url + "user?user=42"); !strings.Contains(text, "Firefox on Windows") {
		t.Error("ended: ", text)
	}
}

// A form of another site changes nothing, though the browser sends it with the operator's access.
func TestConsoleRefusesFormsOfOtherSites(t *testing.T) {
	o := newOffice(t)
	o.hammer(t, "user:42", 6)
	other := listen(t, "localhost", false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<form method=post action="%sreset"><input name=limiter value=login><input name=key value="user:42"><input name=reason value=x><button>Win</button></form>`, o.url)
	}))
	b := start(t)
	b.open(other.url)
	if text := b.click("button"); !strings.Contains(text, "cross-origin request detected") {
		t.Error(text)
	}
	if res := must(o.login.Take(t.Context(), "user:42", 0)); res.Allowed {
		t.Error("lifted: ", res)
	}
}

// No page is wider than a phone, and each is readable by day and by night.
func TestConsoleOnAPhone(t *testing.T) {
	o := newOffice(t)
	o.hammer(t, "user:42", 12)
	o.hammer(t, "a-key-that-is-much-longer-than-any-screen-is-wide-"+strings.Repeat("x", 200), 6)
	o.logIn("42", "Firefox on Windows")
	b := start(t)
	for _, scheme := range []string{"light", "dark"} {
		call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		for name, page := range map[string]string{
			"overview": "", "explain": "explain?limiter=login&key=user:42", "account": "user?user=42", "state": "state", "failure": "nowhere",
			"long": "explain?limiter=login&key=a-key-that-is-much-longer-than-any-screen-is-wide-" + strings.Repeat("x", 200),
		} {
			run(b, chromedp.EmulateViewport(375, 800))
			b.open(o.url + page)
			if over := run(b, chromedp.Evaluate[int]("document.documentElement.scrollWidth - window.innerWidth")); over > 0 {
				t.Errorf("%s: %d pixels too wide", name, over)
			}
			if dark := run(b, chromedp.Evaluate[bool](isDark)); dark != (scheme == "dark") {
				t.Errorf("%s: dark %v in %s", name, dark, scheme)
			}
			if contrast := run(b, chromedp.Evaluate[bool](isFaint)); contrast {
				t.Errorf("%s, %s: text is too faint", name, scheme)
			}
			b.picture("console-" + name + "-phone-" + scheme)
			if name == "explain" && scheme == "dark" {
				run(b, chromedp.EmulateViewport(1000, 700))
				b.picture("console-explain-dark")
			}
		}
	}
}

// Of colours as CSS has them: rgb(r, g, b).
const (
	light  = `(c => { const [r, g, b] = c.match(/[\d.]+/g).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b })`
	isDark = light + `(getComputedStyle(document.body).backgroundColor) < .2`
	// The contrast that WCAG 2.2 asks of text, 1.4.3.
	isFaint = `[...document.querySelectorAll("h1, h2, p, dt, dd, td, th, a, label, button")].some(e => {
		if (!e.innerText || !e.offsetParent) return false;
		let under = e;
		while (under.parentElement && /, 0\)|transparent/.test(getComputedStyle(under).backgroundColor)) under = under.parentElement;
		const a = ` + light + `(getComputedStyle(e).color), b = ` + light + `(getComputedStyle(under).backgroundColor);
		return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5;
	})`
)

// In a network of its own, over plain HTTP under a name, the console takes its own forms.
func TestConsoleOverPlainHTTP(t *testing.T) {
	o := newOffice(t)
	o.hammer(t, "user:42", 6)
	b := start(t)
	b.open(strings.Replace(o.url, "127.0.0.1", "ops.test", 1) + "explain?limiter=login&key=user:42")
	b.fill(`form[action=reset] input[name=reason]`, "OPS-1")
	if text := b.click(`form[action=reset] button`); !strings.Contains(text, "OPS-1") {
		t.Error(text)
	}
}
