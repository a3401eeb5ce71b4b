package browsertest

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
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
	missing := "needs Chromium: `make test` installs it, as does your package manager (apt-get install chromium, brew install --cask chromium)"
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

// browser is a browser of a test's own, with no cookies. Names that end in .test are this machine.
type browser struct {
	t   *testing.T
	ctx context.Context
}

func start(t *testing.T) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, // root has none
		chromedp.IgnoreCertErrors,
		chromedp.Flag("host-resolver-rules", "MAP *.test 127.0.0.1"),
	)
	ctx, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	return (&browser{t, ctx}).tab()
}

// tab is another tab of the same browser.
func (b *browser) tab() *browser {
	b.t.Helper()
	ctx, end := chromedp.NewContext(b.ctx)
	b.t.Cleanup(end)
	tab := &browser{b.t, ctx}
	if err := chromedp.Do(ctx); err != nil { // opens it; a time limit here would be that of the browser
		b.t.Fatal(err)
	}
	return tab
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

// back goes back by one page, which the browser may have kept, or ask for.
func (b *browser) back() string {
	b.t.Helper()
	run(b, chromedp.Evaluate[chromedp.Void]("window.left = true; history.back()"))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		// On the way there is no page to ask.
		there, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("!window.left && document.readyState == 'complete'"))
		if err == nil && there {
			return b.text()
		}
		if time.Now().After(deadline) {
			b.t.Fatal("the browser does not go back: ", err)
		}
	}
}

// cookies returns those that the browser keeps, by name.
func (b *browser) cookies() map[string]*network.Cookie {
	b.t.Helper()
	byName := map[string]*network.Cookie{}
	for _, c := range call(b, storage.GetCookies, storage.GetCookiesParams{}).Cookies {
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
	if err := os.WriteFile(filepath.Join(screenshots, name+".png"), run(b, chromedp.FullScreenshot(100)), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// site is a web site, over plain HTTP on localhost or over TLS under a name.
type site struct {
	url string
	tls bool
}

// each runs f over plain HTTP and over TLS. host is the name over TLS, under .test.
func each(t *testing.T, f func(t *testing.T, serve func(name string, h http.Handler) site)) {
	for _, tls := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[tls], func(t *testing.T) {
			f(t, func(name string, h http.Handler) site {
				server := httptest.NewUnstartedServer(h)
				t.Cleanup(server.Close)
				server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0) // connections that a browser opens to have them
				if tls {
					server.StartTLS()
				} else {
					server.Start()
				}
				u, err := url.Parse(server.URL)
				if err != nil {
					t.Fatal(err)
				}
				host := "localhost" // another site than 127.0.0.1
				switch {
				case tls:
					host = name + ".test"
				case name != "app":
					host = "127.0.0.1"
				}
				return site{u.Scheme + "://" + host + ":" + u.Port(), tls}
			})
		})
	}
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

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
