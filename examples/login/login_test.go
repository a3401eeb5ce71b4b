package main

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestMain(m *testing.M) { redistest.Main(m) }

const (
	secret   = "JBSWY3DPEHPK3PXP"
	password = "correct horse"
)

// site is two servers over one Redis and one database.
type site struct {
	t       *testing.T
	redis   *redistest.Server
	servers [2]*httptest.Server

	mu    sync.Mutex
	now   time.Time // of the codes
	mails []string
	// meanwhile, if not nil, happens once, while the database looks at its clock.
	meanwhile func()
}

// newSite has the users ann, who needs a code, and bob, who does not.
func newSite(t *testing.T) *site {
	s := &site{t: t, redis: redistest.Start(t), now: time.Now()}
	db := NewDB(s.clock, 1)
	for _, u := range []User{
		{ID: "1", Email: "ann@example.com", TOTP: secret, Devices: 3},
		{ID: "2", Email: "bob@example.com", Devices: 3},
	} {
		if err := db.Add(t.Context(), u, password); err != nil {
			t.Fatal(err)
		}
	}
	mail := func(to, path string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mails = append(s.mails, to+" "+path)
	}
	for i := range s.servers {
		h, err := New(s.redis.Client(), db, mail, session.Config{
			Secrets: [][]byte{[]byte(strings.Repeat("s", 32))}, KeySecret: []byte(strings.Repeat("k", 32)),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.servers[i] = httptest.NewServer(h)
		t.Cleanup(s.servers[i].Close)
	}
	t.Cleanup(func() { redistest.AssertAllTTL(t, s.redis.Client()) })
	return s
}

func (s *site) clock() time.Time {
	s.mu.Lock()
	now, meanwhile := s.now, s.meanwhile
	s.meanwhile = nil
	s.mu.Unlock()
	if meanwhile != nil {
		meanwhile()
	}
	return now
}

// pass lets time pass for the database.
func (s *site) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// code returns a code that has not been used.
func (s *site) code() string {
	s.t.Helper()
	s.pass(30 * time.Second)
	code, err := totp.GenerateCode(secret, s.clock())
	if err != nil {
		s.t.Fatal(err)
	}
	return code
}

// link asks for a link, and returns its token.
func (s *site) link(b *browserOf, email string) string {
	s.t.Helper()
	b.post("/forgot", "email", email).shows(200, "on its way")
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mails) == 0 {
		s.t.Fatal("there was no mail")
	}
	token, ok := strings.CutPrefix(s.mails[len(s.mails)-1], email+" /reset?token=")
	if !ok {
		s.t.Fatalf("mail %q", s.mails)
	}
	return token
}

// browserOf is a browser that visits both servers: its cookies are those of a host.
type browserOf struct {
	site *site
	name string
	http *http.Client
	send func(*http.Client, *http.Request) (*http.Response, error)
}

func (s *site) browser(name string) *browserOf {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return &browserOf{s, name, &http.Client{Jar: jar}, servicetest.Patiently}
}

// answer is a page, after redirects.
type answer struct {
	t          *testing.T
	path, body string
	status     int
	header     http.Header
}

func (b *browserOf) do(server int, method, path string, form url.Values) answer {
	t := b.site.t
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, b.site.servers[server].URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("User-Agent", b.name+" Linux")
	r.Header.Set("Sec-Fetch-Mode", "navigate")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := b.send(b.http, r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{t, res.Request.URL.Path, string(body), res.StatusCode, res.Header}
}

// get asks the second server, post the first.
func (b *browserOf) get(path string) answer {
	b.site.t.Helper()
	return b.do(1, "GET", path, nil)
}

func (b *browserOf) post(path string, fields ...string) answer {
	b.site.t.Helper()
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	return b.do(0, "POST", path, form)
}

func (b *browserOf) password(email, password string) answer {
	b.site.t.Helper()
	return b.post("/login", "email", email, "password", password)
}

// loginAnn logs in as ann, who is logged in on less than three devices.
func (b *browserOf) loginAnn() {
	b.site.t.Helper()
	b.password("ann@example.com", password).at("/totp")
	b.post("/totp", "code", b.site.code()).at("/")
}

func (a answer) at(path string) answer {
	a.t.Helper()
	if a.status != 200 || a.path != path {
		a.t.Fatalf("status %d at %s, want 200 at %s: %s", a.status, a.path, path, a.body)
	}
	return a
}

func (a answer) shows(status int, text string) answer {
	a.t.Helper()
	if a.status != status || !strings.Contains(a.body, text) {
		a.t.Fatalf("status %d at %s, want %d and %q: %s", a.status, a.path, status, text, a.body)
	}
	return a
}

func TestWrongPasswordsAreLimitedByAccount(t *testing.T) {
	s := newSite(t)
	b, other := s.browser("Firefox"), s.browser("Chrome")
	for range 10 { // of right ones, any number
		b.password("bob@example.com", password).at("/")
		b.post("/logout").at("/login")
	}
	for range 5 {
		b.password(" Bob@Example.com", "wrong").shows(200, "not right")
	}
	denied := b.password("bob@example.com", password).shows(429, "Too many attempts")
	if denied.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	other.do(1, "POST", "/login", url.Values{"email": {"bob@example.com"}, "password": {password}}).shows(429, "Too many attempts")
	other.password("ann@example.com", password).at("/totp")
	b.post("/login", "password", password).at("/login")
}

func TestWrongPasswordsAreLimitedByAddress(t *testing.T) {
	s := newSite(t)
	b := s.browser("Firefox")
	for i := range 30 {
		b.password(fmt.Sprintf("user%d@example.com", i), password).shows(200, "not right")
	}
	b.password("bob@example.com", password).shows(429, "Too many attempts")
}

func TestCodeIsNeededAndPassesOnce(t *testing.T) {
	s := newSite(t)
	b := s.browser("Firefox")
	b.post("/totp", "code", s.code()).at("/login")
	b.password("ann@example.com", password).at("/totp")
	b.get("/").at("/login")
	b.get("/choose").at("/login") // the choice of a device comes after the code
	b.post("/choose", "handle", "").at("/login")
	b.post("/pay").at("/login")
	b.post("/totp", "code", "000000").shows(200, "not right")
	code := s.code()
	b.post("/totp", "code", code).at("/")
	b.get("/").shows(200, "ann@example.com")
	b.password("ann@example.com", password).at("/totp") // ends the login that was there
	b.get("/").at("/login")
	b.post("/totp", "code", s.code()).at("/")

	other := s.browser("Chrome")
	other.password("ann@example.com", password).at("/totp")
	other.post("/totp", "code", code).shows(200, "not right")
	for range 8 { // with the two above, ten
		other.post("/totp", "code", "000000").shows(200, "not right")
	}
	other.post("/totp", "code", s.code()).shows(429, "Too many attempts")
	b.post("/step-up", "proof", s.code()).shows(429, "Too many attempts")
}

// A login that has lapsed, or none, leads to the login page, without a word in the log.
func TestCodesOfNobodyAreNoTrouble(t *testing.T) {
	var lines redistest.Journal
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&lines, nil)))
	t.Cleanup(func() {
		slog.SetDefault(before)
		log.SetOutput(os.Stderr)
	})
	s := newSite(t)
	b := s.browser("Firefox")
	b.password("ann@example.com", password).at("/totp")
	s.redis.Advance(11 * time.Minute)
	s.browser("Safari").password("bob@example.com", password).at("/") // the server learns the time from what Redis answers
	b.post("/totp", "code", s.code()).at("/login")
	b.post("/step-up", "proof", s.code()).at("/login")
	s.browser("curl").post("/totp", "code", s.code()).at("/login")
	if text := lines.String(); strings.Contains(text, "rate limit") {
		t.Errorf("logged %s", text)
	}
}

func TestDeviceBeyondTheThirdReplacesOne(t *testing.T) {
	s := newSite(t)
	devices := []*browserOf{s.browser("Firefox"), s.browser("Chrome"), s.browser("Safari")}
	for _, b := range devices {
		b.loginAnn()
	}
	fourth := s.browser("curl")
	fourth.password("ann@example.com", password).at("/totp")
	choice := fourth.post("/totp", "code", s.code()).at("/choose")
	for _, b := range devices {
		choice.shows(200, b.name+" on Linux")
		b.get("/").shows(200, b.name+" on Linux <strong>this device")
	}
	fourth.get("/").at("/login")
	handle := regexp.MustCompile(`(?s)Chrome on Linux.*?value="([^"]+)"`).FindStringSubmatch(choice.body)
	if handle == nil {
		t.Fatalf("no handle: %s", choice.body)
	}
	fourth.post("/choose", "handle", "").at("/choose")
	fourth.post("/choose", "handle", "of nobody").at("/choose")
	fourth.post("/choose", "handle", handle[1]).at("/").shows(200, "curl on Linux <strong>this device")
	devices[1].get("/").at("/login").shows(200, "You were logged out: another device took the place of this one.")
	for _, b := range []*browserOf{devices[0], devices[2], fourth} {
		b.get("/").at("/")
	}

	// A choice that is over is made again.
	fifth := s.browser("Edg")
	fifth.password("ann@example.com", password).at("/totp")
	fifth.post("/totp", "code", s.code()).at("/choose")
	fifth.post("/choose", "handle", handle[1]).at("/choose")
	devices[0].post("/logout").at("/login")
	fifth.post("/choose", "handle", handle[1]).at("/choose")
	fifth.post("/choose").at("/")
}

func TestChangeOfPasswordEndsTheOthers(t *testing.T) {
	s := newSite(t)
	b, other, half := s.browser("Firefox"), s.browser("Chrome"), s.browser("Safari")
	b.loginAnn()
	other.loginAnn()
	other.get("/").at("/")
	half.password("ann@example.com", password).at("/totp")
	b.post("/password", "new", "short").shows(200, "8 characters")
	other.get("/").at("/")
	b.post("/password", "new", "battery staple").shows(200, "Other devices logged out: 1.")
	other.get("/").at("/login").shows(200, "You were logged out: your password was changed.")
	other.get("/login").at("/login")
	b.get("/").at("/").shows(200, "this device")
	half.post("/totp", "code", s.code()).at("/login").shows(200, "your password was changed")
	half.password("ann@example.com", password).shows(200, "not right")
	servicetest.Pause()
	half.password("ann@example.com", "battery staple").at("/totp")
	half.post("/totp", "code", s.code()).at("/")
}

func TestResetEndsAllAndLogsIn(t *testing.T) {
	s := newSite(t)
	phone, forgetful := s.browser("Safari"), s.browser("Firefox")
	phone.password("bob@example.com", password).at("/")
	forgetful.post("/forgot", "email", "nobody@example.com").shows(200, "on its way")
	token := s.link(forgetful, "bob@example.com")
	second := s.link(forgetful, "bob@example.com")
	forgetful.get("/reset?token="+token).shows(200, token)
	forgetful.post("/reset", "token", token, "new", "short").shows(200, "8 characters")
	phone.get("/").at("/")
	forgetful.post("/reset", "token", token, "new", "battery staple").at("/")
	forgetful.get("/").shows(200, "bob@example.com")
	phone.get("/").at("/login").shows(200, "You were logged out: your password was changed.")
	phone.password("bob@example.com", password).shows(200, "not right")
	for _, used := range []string{token, second, "", "made up"} {
		phone.post("/reset", "token", used, "new", "a third password").shows(200, "has been used")
	}
	servicetest.Pause()
	phone.password("bob@example.com", "battery staple").at("/")

	late := s.link(phone, "bob@example.com")
	s.pass(tokenLife + time.Second)
	phone.post("/reset", "token", late, "new", "a third password").shows(200, "too old")
}

func TestResetNeedsTheCodeAndRefusesLoginsFromBefore(t *testing.T) {
	s := newSite(t)
	thief, owner := s.browser("Chrome"), s.browser("Firefox")
	thief.password("ann@example.com", password).at("/totp")
	owner.password("ann@example.com", password).at("/totp")
	owner.post("/reset", "token", s.link(owner, "ann@example.com"), "new", "battery staple").at("/totp")
	owner.get("/").at("/login")
	owner.post("/totp", "code", s.code()).at("/")
	thief.post("/totp", "code", s.code()).at("/login").shows(200, "your password was changed")
	thief.get("/").at("/login")
	owner.get("/").at("/")

	// And so is one whose code is being checked.
	servicetest.Pause()
	thief.password("ann@example.com", "battery staple").at("/totp")
	token, code := s.link(owner, "ann@example.com"), s.code()
	s.meanwhile = func() {
		owner.post("/reset", "token", token, "new", "a third password").at("/totp")
	}
	thief.post("/totp", "code", code).shows(200, "Your password was changed while you logged in")
	thief.get("/").at("/login")
	servicetest.Pause()
	thief.password("ann@example.com", "a third password").at("/totp")
}

func TestPaymentNeedsAStepUp(t *testing.T) {
	s := newSite(t)
	ann, bob := s.browser("Firefox"), s.browser("Chrome")
	ann.loginAnn()
	bob.password("bob@example.com", password).at("/")
	ann.post("/pay").shows(200, "Paid")

	s.redis.Advance(6 * time.Minute)
	ann.do(0, "GET", "/", nil).at("/") // the server learns the time from what Redis answers
	ann.post("/pay").at("/step-up").shows(200, "The code of your authenticator")
	ann.post("/password", "new", "battery staple").at("/step-up")
	ann.post("/step-up", "proof", password).shows(200, "not right")
	ann.post("/pay").at("/step-up")
	ann.post("/step-up", "proof", s.code()).at("/")
	ann.post("/pay").shows(200, "Paid")

	bob.post("/pay").at("/step-up").shows(200, "Your password")
	bob.post("/step-up", "proof", "wrong").shows(200, "not right")
	bob.post("/step-up", "proof", password).at("/")
	bob.post("/pay").shows(200, "Paid")
	s.browser("curl").post("/pay").at("/login")
}

func TestFormsOfOtherSitesAreRefused(t *testing.T) {
	s := newSite(t)
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.servers[0].URL+"/login", strings.NewReader(""))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Sec-Fetch-Site", "cross-site")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", res.StatusCode)
	}
}

func TestWithoutRedis(t *testing.T) {
	s := newSite(t)
	b := s.browser("Firefox")
	b.password("bob@example.com", password).at("/")
	s.redis.Pause()
	defer s.redis.Resume()
	b = s.browser("Chrome")
	b.send = (*http.Client).Do // there is no second try
	b.password("bob@example.com", password).shows(503, "Please try again")
}
