package browsertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/storage"
	"github.com/chromedp/chromedp"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
)

// screenshots is where pictures of pages go; "": nowhere.
var screenshots = os.Getenv("GATEHOUSE_TEST_SCREENSHOTS")

func TestMain(m *testing.M) { redistest.Main(m) }

// chromium returns the path of a browser. Without it the test is skipped, or fails if CI=true.
func chromium(t *testing.T) string {
	t.Helper()
	missing := "needs Chromium: `make chromium` installs it, as does your package manager (apt-get install chromium, brew install --cask chromium)"
	if os.Getenv("GATEHOUSE_TEST_BROWSER") == "off" {
		missing = "needs Chromium, and GATEHOUSE_TEST_BROWSER=off"
	} else {
		for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "/Applications/Chromium.app/Contents/MacOS/Chromium"} {
			if path, err := exec.LookPath(name); err == nil {
				return path
			}
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(missing + "; CI=true")
	}
	t.Skip(missing)
	return ""
}

// browser is a tab of a browser. Names that end in .test are this machine.
type browser struct {
	t   *testing.T
	ctx context.Context
}

// start starts a browser of a test's own, with no cookies.
func start(t *testing.T) *browser {
	t.Helper()
	t.Parallel() // most of the time goes by in waiting
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("no-sandbox", os.Getuid() == 0), // root has none
		chromedp.Flag("ignore-certificate-errors-spki-list", pin()),
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1"),
	)
	ctx, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	return newTab(t, ctx)
}

// pin names the key of httptest's certificate, which all its servers share. Its certificate is for
// none of the hosts here; with this the browser treats it as any good one.
var pin = sync.OnceValue(func() string {
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	sum := sha256.Sum256(server.Certificate().RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
})

// tab is another tab of the same person.
func (b *browser) tab() *browser { b.t.Helper(); return newTab(b.t, b.ctx) }

// stranger is a tab that shares no cookies with the others, for t. It starts no further browser,
// which takes a second.
func (b *browser) stranger(t *testing.T) *browser {
	t.Helper()
	return newTab(t, b.ctx, chromedp.WithNewBrowserContext())
}

func newTab(t *testing.T, parent context.Context, options ...chromedp.ContextOption) *browser {
	t.Helper()
	ctx, end := chromedp.NewContext(parent, options...)
	t.Cleanup(end)
	if err := chromedp.Do(ctx); err != nil { // opens it; a time limit here would be that of the browser
		t.Fatal(err)
	}
	return &browser{t, ctx}
}

// run runs an action in a tab, within half a minute.
func run[T any](b *browser, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// open opens a page and returns its text.
func (b *browser) open(url string) string {
	b.t.Helper()
	run(b, chromedp.Navigate(url))
	return b.text()
}

func (b *browser) text() string {
	b.t.Helper()
	return strings.TrimSpace(run(b, chromedp.Evaluate[string]("document.body.innerText")))
}

// click clicks what a selector of CSS finds, and returns the text of the page that follows.
func (b *browser) click(selector string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	if _, err := chromedp.RunResponse(ctx, chromedp.Click(selector)); err != nil {
		b.t.Fatal(selector, err)
	}
	return b.text()
}

// until waits for an expression of JavaScript to be true. During a navigation there is no page to ask.
func (b *browser) until(expression string) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		there, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool](expression))
		if err == nil && there {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("not in time: %s: %v", expression, err)
		}
	}
}

// back goes back by one page, and reports whether the browser had kept it or asked for it again.
func (b *browser) back() (text string, kept bool) {
	b.t.Helper()
	run(b, chromedp.Evaluate[chromedp.Void]("window.left = true; history.back()"))
	b.until("!window.left && document.readyState == 'complete'")
	return b.text(), run(b, chromedp.Evaluate[string]("performance.getEntriesByType('navigation')[0].type")) != "back_forward"
}

// cookies returns those that the browser keeps for this person, by name.
func (b *browser) cookies() map[string]*network.Cookie {
	b.t.Helper()
	byName := map[string]*network.Cookie{}
	of := chromedp.FromContext(b.ctx)
	all, err := cdp.Call(b.ctx, of.Browser, storage.GetCookies, storage.GetCookiesParams{BrowserContextID: of.BrowserContextID})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range all.Cookies {
		byName[c.Name] = c
	}
	return byName
}

// call sends a command of the browser's protocol.
func call[P, R any](b *browser, command cdp.Command[P, R], params P) R {
	b.t.Helper()
	return run(b, func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, command, params) })
}

// picture keeps a picture of the page, if anybody wants one.
func (b *browser) picture(name string) {
	b.t.Helper()
	if screenshots == "" {
		return
	}
	b.keep(name, run(b, chromedp.FullScreenshot(100)))
}

// pictureOf keeps a picture of a part of the page, if anybody wants one.
func (b *browser) pictureOf(selector, name string) {
	b.t.Helper()
	if screenshots != "" {
		b.keep(name, run(b, chromedp.Screenshot(selector)))
	}
}

func (b *browser) keep(name string, png []byte) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(screenshots, name+".png"), png, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// site is a web site, over plain HTTP on localhost or over TLS under a name.
type site struct {
	url string
	tls bool
}

// each runs f with a browser over plain HTTP, and with another person's over TLS. name is that of a
// site over TLS, under .test.
func each(t *testing.T, f func(t *testing.T, b *browser, serve func(name string, h http.Handler) site)) {
	b := start(t)
	for _, tls := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[tls], func(t *testing.T) {
			f(t, b.stranger(t), func(name string, h http.Handler) site {
				host := "localhost" // another site than 127.0.0.1
				switch {
				case tls:
					host = name + ".test"
				case name != "app":
					host = "127.0.0.1"
				}
				return listen(t, host, tls, h)
			})
		})
	}
}

// listen serves h under the name of a host until t ends.
func listen(t *testing.T, host string, tls bool, h http.Handler) site {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	t.Cleanup(server.Close)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // connections that a browser opens to have them
	if tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	return site{strings.Replace(server.URL, "127.0.0.1", host, 1), tls}
}

// logs is what was logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

var quiet = slog.New(slog.DiscardHandler)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
