package browsertest

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// demoBinary is examples/demo, which is a program of another module. It is there while tests use it.
var demoBinary struct {
	mu   sync.Mutex
	uses int
	dir  string
}

// buildDemo returns the path of the demo, until t ends.
func buildDemo(t *testing.T) string {
	t.Helper()
	d := &demoBinary
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.uses == 0 {
		d.dir = must(os.MkdirTemp("", "gatehouse-demo"))
		build := exec.Command("go", "build", "-o", d.dir, "./demo")
		build.Dir = "../../../examples"
		if out, err := build.CombinedOutput(); err != nil {
			_ = os.RemoveAll(d.dir)
			t.Fatalf("%v: %s", err, out)
		}
	}
	d.uses++
	t.Cleanup(func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.uses--; d.uses == 0 {
			_ = os.RemoveAll(d.dir)
		}
	})
	return filepath.Join(d.dir, "demo")
}

// startDemo starts the demo until t ends, and returns the addresses of its servers.
func startDemo(t *testing.T) (a, b string) {
	t.Helper()
	chromium(t) // or there is nothing to start it for
	demo := exec.Command(buildDemo(t))
	demo.Env = append(os.Environ(), "ADDR=localhost:0", "REDIS_URL=")
	out, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = demo.Process.Signal(os.Interrupt)
		_ = demo.Wait()
	})
	address := regexp.MustCompile(`http://localhost:\d+/`)
	lines := bufio.NewScanner(out)
	for b == "" && lines.Scan() {
		if found := address.FindString(lines.Text()); a == "" {
			a = found
		} else {
			b = found
		}
	}
	if b == "" {
		t.Fatal("the demo does not say where it is: ", lines.Err())
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // ends with the demo
	return a, b
}

// logIn logs a user in, on the page that is open.
func (b *browser) logIn(user string) {
	b.t.Helper()
	b.fill("input[name=user]", user)
	run(b, chromedp.Click("#login"))
	b.until(`document.getElementById("live").className === "live"`)
}

// says waits for an element to contain a text.
func (b *browser) says(id, text string) {
	b.t.Helper()
	b.until(`document.getElementById("` + id + `")?.innerText.includes("` + text + `")`)
}

// Two devices at two servers: one ends the other, whose stream closes and says why.
func TestDemoEndsADeviceAtTheOtherServer(t *testing.T) {
	serverA, serverB := startDemo(t)
	one := start(t)
	two := one.stranger(t)
	one.open(serverA)
	one.logIn("ann")
	two.open(serverB)
	two.logIn("ann")
	two.says("live", "server B")

	one.open(serverA)
	run(one, chromedp.Click(`//li[contains(., "at server B")]//button`))
	two.says("live", "Closed at once: this session was ended from another device")
	two.says("user", "Nobody is logged in")
	one.until(`document.querySelectorAll("#mine li").length === 1`)

	// One person's windows of both servers share the login, and end together.
	other := one.tab()
	if text := other.open(serverB); !strings.Contains(text, "ann is logged in at both servers") {
		t.Error(text)
	}
	other.says("live", "server B")
	run(one, chromedp.Click(`//button[contains(., "another device")]`))
	one.until(`document.querySelectorAll("#mine li").length === 2`)
	run(one, chromedp.Click(`//button[contains(., "End all others")]`))
	one.until(`document.querySelectorAll("#mine li").length === 1`)
	one.says("live", "Live")
	run(one, chromedp.Click("#logout"))
	other.says("live", "this session was logged out")
}

// The bursts around the edge show what each limit lets through, and so do their drawings, on the
// page of the other server too, and after a reload.
func TestDemoShowsTheBurstAtTheEdge(t *testing.T) {
	serverA, serverB := startDemo(t)
	one := start(t)
	two := one.tab()
	one.open(serverA)
	run(one, chromedp.Click("#hammer"))
	run(one, chromedp.Click("#burst"))
	one.says("edge-says", "sliding window 10, fixed window 20, token bucket 1")
	one.says("bans-says", "and was banned")
	for _, b := range []*browser{one, two} {
		b.open(serverB)
		b.says("edge-says", "fixed window 20")
		for selector, want := range map[string]string{
			"#edge-chart g:nth-of-type(1).over":       "0",
			"#edge-chart g:nth-of-type(2).over":       "1",
			"#edge-chart g:nth-of-type(1) .passed":    "10",
			"#edge-chart g:nth-of-type(2) .passed":    "20",
			"#bans-chart g:nth-of-type(2) .banned":    "0",
			"#edge-chart g:nth-of-type(2) .most-text": "1",
		} {
			b.until(`document.querySelectorAll("` + selector + `").length == ` + want)
		}
		b.until(`document.querySelectorAll("#bans-chart g:nth-of-type(1) .banned").length > 3`)
	}
}

func TestDemoLimitsFailedLogins(t *testing.T) {
	serverA, serverB := startDemo(t)
	b := start(t)
	b.open(serverA)
	b.fill("input[name=password]", "wrong")
	run(b, chromedp.Click("#guess"))
	b.says("left", "A 4, B 4")
	b.open(serverB)
	b.says("guesses", "ann: wrong. 4 of 5 tries left")
	b.fill("input[name=password]", "open sesame")
	run(b, chromedp.Click("#guess"))
	b.says("guesses", "right, and not counted")
	b.says("left", "A 4, B 4")
	b.says("user", "ann")
	b.until(`document.getElementById("live").className === "live"`)
	if text := b.click("#console a"); !strings.Contains(text, "password") || !strings.Contains(text, "sliding") {
		t.Error(text)
	}
}

// Redis is taken away and given back, by somebody who is logged in.
func TestDemoGoesOnWithoutRedis(t *testing.T) {
	serverA, serverB := startDemo(t)
	b := start(t)
	b.open(serverA)
	b.logIn("ann")
	run(b, chromedp.Focus("#away"))
	run(b, chromedp.KeyEvent("\r"))
	b.says("redis-says", "Redis is away")
	b.until(`document.activeElement.id === "back"`) // for those who go on with the keyboard
	b.says("where", "Redis is away")
	b.says("notice", "503")
	b.says("outage", "12 pass (A 6, B 6)")
	b.says("outage", "12 × 503")
	b.says("outage", "A 503")
	b.says("live", "Live")
	other := b.tab()
	if text := other.open(serverB); !strings.Contains(text, "503: who are you?") {
		t.Error(text)
	}
	run(other, chromedp.Click("#back"))
	other.says("redis-says", "later both servers asked it again")
	other.says("user", "ann")
	other.says("where", "One Redis")

	// The stream has outlived the outage, and ends as ever.
	two := b.stranger(t)
	two.open(serverB)
	two.logIn("ann")
	run(two, chromedp.Click(`//button[contains(., "End all others")]`))
	b.says("live", "Closed at once: this session was ended from another device")
}

// The session needs no script.
func TestDemoWithoutJavaScript(t *testing.T) {
	serverA, serverB := startDemo(t)
	b := start(t)
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.open(serverA)
	b.fill("input[name=user]", "ann")
	if text := b.click("#login"); !strings.Contains(text, "ann is logged in") {
		t.Fatal(text)
	}
	b.click("#visit")
	b.click(`form[action="/pretend"] button`)
	b.open(serverB)
	if text := b.click(`form[action="/end"] button`); strings.Contains(text, "(pretended)") || !strings.Contains(text, "counts 1 visits") {
		t.Error(text)
	}
	b.fill("input[name=password]", "wrong")
	if text := b.click("#guess"); !strings.Contains(text, "ann: wrong. 4 of 5 tries left.") {
		t.Error(text)
	}
	if text := b.click("#logout"); !strings.Contains(text, "Nobody is logged in") {
		t.Error(text)
	}
}

// The page fits a phone, is readable by day and by night, and shows its code.
func TestDemoOnAPhone(t *testing.T) {
	serverA, _ := startDemo(t)
	b := start(t)
	run(b, chromedp.EmulateViewport(1100, 800))
	b.open(serverA)
	b.logIn("ann")
	for n := range 2 {
		run(b, chromedp.Click(`form[action="/pretend"] button`))
		b.until(`document.querySelectorAll("#mine li").length === ` + string(rune('2'+n)))
	}
	for n := range 2 {
		b.fill("input[name=password]", "wrong")
		run(b, chromedp.Click("#guess"))
		b.says("left", "A "+string(rune('4'-n)))
	}
	run(b, chromedp.Click("#away"))
	b.says("redis-says", "Redis is away")
	run(b, chromedp.Click("#back"))
	b.says("redis-says", "Redis is back")
	run(b, chromedp.Click("#hammer"))
	run(b, chromedp.Click("#burst"))
	b.says("edge-says", "fixed window 20")
	b.says("bans-says", "and was banned")
	for _, scheme := range []string{"light", "dark"} {
		call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		for width, name := range map[int64]string{1100: "", 375: "phone-"} {
			run(b, chromedp.EmulateViewport(width, 800))
			b.open(serverA)
			b.until(`document.querySelector("#edge-chart circle") && document.getElementById("live").className === "live"`)
			if over := run(b, chromedp.Evaluate[int]("document.documentElement.scrollWidth - window.innerWidth")); over > 0 {
				t.Errorf("%s%s: %d pixels too wide", name, scheme, over)
			}
			if dark := run(b, chromedp.Evaluate[bool](isDark)); dark != (scheme == "dark") {
				t.Errorf("%s%s: dark %v", name, scheme, dark)
			}
			b.picture("demo-" + name + scheme)
			if scheme == "light" && name == "" {
				b.pictureOf("#edge", "demo-limits")
			}
			run(b, chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach(d => d.open = true)`))
			if run(b, chromedp.Evaluate[bool](isFaint)) {
				t.Errorf("%s%s: text is too faint", name, scheme)
			}
			if over := run(b, chromedp.Evaluate[int]("document.documentElement.scrollWidth - window.innerWidth")); over > 0 {
				t.Errorf("%s%s, code open: %d pixels too wide", name, scheme, over)
			}
		}
	}
}
