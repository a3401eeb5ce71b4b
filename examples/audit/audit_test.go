package main

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatehouse-go/gatehouse/examples/internal/servicetest"
	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
)

func TestMain(m *testing.M) { redistest.Main(m) }

// outbox keeps mails.
type outbox struct {
	mu   sync.Mutex
	list []string
}

func (o *outbox) NewDevice(_ context.Context, e session.Event) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, e.UserID+": "+e.Client)
	return nil
}

func (o *outbox) mails() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(slices.Values(o.list))
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("after 20 seconds still not: %s", what)
		}
	}
}

func TestActivityAndMails(t *testing.T) {
	redistest.Each(t, func(t *testing.T, b redistest.Backend) {
		db, err := Open(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		sessions, err := session.New(b.Client, config)
		if err != nil {
			t.Fatal(err)
		}
		mails := new(outbox)
		ctx, stop := context.WithCancel(t.Context())
		var reader sync.WaitGroup
		reader.Go(func() {
			if err := follow(ctx, sessions, db, mails, 30*time.Second); err != nil {
				t.Error(err)
			}
		})
		defer reader.Wait()
		defer stop()

		site := servicetest.NewClient(t, New(sessions, db))
		laptop := site.As("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0")
		newer := site.As("Mozilla/5.0 (X11; Linux x86_64; rv:141.0) Gecko/20100101 Firefox/141.0")
		hostile := site.As("<script>alert(1)</script>")
		page := func(c *servicetest.Client) string {
			body, _ := c.Do(http.StatusOK, "GET", "/activity", "")
			return body
		}

		site.Do(http.StatusUnauthorized, "GET", "/activity", "")
		site.Do(http.StatusUnauthorized, "POST", "/end-others", "")
		site.Do(http.StatusForbidden, "POST", "/login", "user=ann&password=bob")
		laptop.Do(http.StatusSeeOther, "POST", "/login", "user=ann&password=ann")
		laptop.Do(http.StatusSeeOther, "POST", "/logout", "")
		laptop.Do(http.StatusSeeOther, "POST", "/login", "user=ann&password=ann")
		newer.Do(http.StatusSeeOther, "POST", "/login", "user=bob&password=bob")
		hostile.Do(http.StatusSeeOther, "POST", "/login", "user=ann&password=ann")
		hostile.Do(http.StatusSeeOther, "POST", "/end-others", "")
		laptop.Do(http.StatusUnauthorized, "GET", "/activity", "")
		newer.Do(http.StatusSeeOther, "POST", "/logout", "")
		servicetest.Pause()
		newer.Do(http.StatusSeeOther, "POST", "/login", "user=ann&password=ann")

		// Newest first, and of ann alone.
		want := []string{
			"<td>logged-in<td>Firefox on Linux", // the newer version
			"<td>rotated<td>&lt;script&gt;alert(1)&lt;/script&gt;",
			"<td>ended (revoked)<td>Firefox on Linux",
			"<td>logged-in<td>&lt;script&gt;alert(1)&lt;/script&gt;",
			"<td>logged-in<td>Firefox on Linux",
			"<td>logged-out<td>Firefox on Linux",
			"<td>logged-in<td>Firefox on Linux",
		}
		eventually(t, "all events are shown", func() bool { return strings.Count(page(hostile), "<tr><td>") == len(want) })
		shown := page(hostile)
		var got []string
		for _, row := range strings.Split(shown, "\n") {
			if _, rest, ok := strings.Cut(row, "<tr><td>"); ok {
				got = append(got, rest[strings.Index(rest, "<td>"):])
			}
		}
		slices.Sort(want[1:3]) // they are of one moment
		slices.Sort(got[1:3])
		if !slices.Equal(got, want) {
			t.Errorf("shown:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if strings.Contains(shown, "<script>") || strings.Contains(page(newer), "<script>") {
			t.Error("a label is not escaped")
		}

		letters := []string{"ann: <script>alert(1)</script>", "ann: Firefox on Linux", "bob: Firefox on Linux"}
		eventually(t, "all mails are sent", func() bool { return len(mails.mails()) >= len(letters) })
		time.Sleep(200 * time.Millisecond) // for one too many
		if got := mails.mails(); !slices.Equal(got, letters) {
			t.Errorf("mails %q, want %q", got, letters)
		}
		redistest.AssertAllTTL(t, b.Client)
	})
}

func TestConsoleQuotesLabels(t *testing.T) {
	var out strings.Builder
	if err := (Console{&out}).NewDevice(t.Context(), session.Event{ID: "id", UserID: "ann", Client: "a\nMail to bob"}); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), `"a\nMail to bob"`) {
		t.Errorf("%q", out.String())
	}
}

func TestErrorsAtStart(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, tt := range []struct{ name, redis, database, want string }{
		{"no URL", "", "s3cret", "DATABASE_URL is not a PostgreSQL URL"},
		{"keywords", "", "host=localhost password=s3cret", "DATABASE_URL is not a PostgreSQL URL"},
		{"another database", "", "mysql://ann:s3cret@localhost/audit", "DATABASE_URL is not a PostgreSQL URL"},
		{"bad port", "", "postgres://ann:s3cret@localhost:port/audit", "DATABASE_URL is not a PostgreSQL URL"},
		{"bad escape", "", "postgres://ann:s3cret%zz@localhost/audit", "DATABASE_URL is not a PostgreSQL URL"},
		{"unreachable", "", "postgres://ann:s3cret@" + closed.Addr().String() + "/audit", "the database of DATABASE_URL cannot be used"},
		{"bad Redis", "http://ann:s3cret@localhost", "", "REDIS_URL is not a Redis URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), "127.0.0.1:0", tt.redis, tt.database)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%v; want %q, and no password", err, tt.want)
			}
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	time.AfterFunc(3*time.Second, stop)
	if err := run(ctx, "127.0.0.1:0", "", ""); err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), "no address", "", ""); err == nil {
		t.Error("it runs without an address")
	}
}
