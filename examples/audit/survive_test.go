//go:build unix

package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/session"
)

var surviveFor = flag.Duration("audit.survive", 12*time.Second, "how long people log in and out while everything is killed")

const childEnv = "GATEHOUSE_TEST_AUDIT"

// childConfig configures the process that reads events.
type childConfig struct{ Redis, Database, Mails string }

// TestAuditChild is the body of that process; it does nothing in an ordinary run.
func TestAuditChild(t *testing.T) {
	text := os.Getenv(childEnv)
	if text == "" {
		t.Skip("this is for the further processes of TestAuditSurvives")
	}
	go func() { // it ends with the test
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	var cfg childConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	client := redis.NewClient(&redis.Options{Addr: cfg.Redis})
	sessions, err := session.New(client, config)
	if err != nil {
		t.Fatal(err)
	}
	mails, err := os.OpenFile(cfg.Mails, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	db, err := Open(context.Background(), cfg.Database)
	for err != nil { // it is being restarted
		time.Sleep(50 * time.Millisecond)
		db, err = Open(context.Background(), cfg.Database)
	}
	// What a killed reader had taken waits for this timeout, and five seconds.
	err = follow(context.Background(), sessions, db, mailbox{mails}, 2*time.Second)
	t.Fatal("it has ended: ", err)
}

// mailbox keeps the events of mails in a file, a line each, which a killed process leaves behind.
type mailbox struct{ file *os.File }

func (m mailbox) NewDevice(_ context.Context, e session.Event) error {
	time.Sleep(rand.N(10 * time.Millisecond)) // so that some kills come just before a mail, and just after
	_, err := m.file.WriteString(e.ID + "\n")
	time.Sleep(rand.N(10 * time.Millisecond))
	return err
}

// people log in and out with one browser until the time is over. Their calls may fail.
func people(m *session.Manager, user string, until time.Time) {
	cookie := ""
	for time.Now().Before(until) {
		time.Sleep(rand.N(120 * time.Millisecond))
		ctx, err := m.Load(context.Background(), cookie)
		if err != nil {
			continue
		}
		m.Describe(ctx, func() string { return fmt.Sprint("browser ", rand.IntN(100)) })
		switch n := rand.IntN(20); {
		case m.UserID(ctx) == "" || n == 0:
			_ = m.Login(ctx, user)
		case n < 4:
			_ = m.Rotate(ctx)
		case n < 7:
			_ = m.Confirm(ctx)
		case n < 9:
			_ = m.Logout(ctx)
		case n < 10:
			_, _ = m.EndOthers(ctx, session.Cause{Actor: user})
		}
		switch out, _ := m.Finish(ctx); out.Action {
		case session.CookieSet:
			cookie = out.Value
		case session.CookieDelete:
			cookie = ""
		}
	}
}

// The database has each event that stands in Redis, whatever is killed, and each new device has
// its mail.
func TestAuditSurvives(t *testing.T) {
	t.Parallel() // with others that wait
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	// A commit takes long, and so do the reader's calls of Redis: a kill is to come between any two
	// steps.
	database := startPostgres(t, "-c", "commit_delay=40000", "-c", "commit_siblings=0")
	slow := redistest.NewProxy(t, server.Addr())
	client := server.Client()
	often := config
	often.IdleTimeout = 20 * time.Second // a use is noted each second
	often.Logger = slog.New(slog.DiscardHandler)
	m, err := session.New(client, often)
	if err != nil {
		t.Fatal(err)
	}
	cfg := childConfig{slow.Addr(), database.url, filepath.Join(t.TempDir(), "mails")}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	startReader := func() *exec.Cmd {
		child := exec.Command(os.Args[0], "-test.run=^TestAuditChild$")
		child.Env = append(os.Environ(), childEnv+"="+string(text))
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
		if _, err := child.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		return child
	}
	reader := startReader()
	defer func() {
		_ = reader.Process.Kill()
		_ = reader.Wait()
	}()

	until := time.Now().Add(*surviveFor)
	var all sync.WaitGroup
	for i := range 24 {
		all.Go(func() { people(m, fmt.Sprint("user ", i%12), until) })
	}
	// Each waits between the blows, and deals none when the time is almost over.
	blows := func(first, between time.Duration, strike func()) (n int) {
		for wait := first; time.Until(until) > wait; wait = between/2 + rand.N(between) {
			time.Sleep(wait)
			strike()
			n++
		}
		return n
	}
	all.Go(func() {
		for time.Now().Before(until) {
			slow.Delay(rand.N(20 * time.Millisecond))
			time.Sleep(50 * time.Millisecond)
		}
		slow.Heal()
	})
	var kills, restarts, outages int
	all.Go(func() {
		restarts = blows(*surviveFor/8, *surviveFor/6, database.restart)
	})
	all.Go(func() {
		outages = blows(*surviveFor/2, *surviveFor, func() {
			server.Kill()
			time.Sleep(300 * time.Millisecond)
			server.Restart()
		})
	})
	kills = blows(time.Second, 2*time.Second, func() {
		_ = reader.Process.Kill()
		_ = reader.Wait()
		reader = startReader()
	})
	all.Wait()

	told := toldBy(t, client, m)
	db := database.open()
	defer db.Close()
	newDevices, seen := map[string]bool{}, map[string]time.Time{}
	labels, ids := map[string]bool{}, map[string]bool{}
	for _, e := range told {
		if ids[e.ID] {
			t.Errorf("two events have the ID %s", e.ID)
		}
		ids[e.ID] = true
		if label := e.UserID + "\n" + e.Client; e.Kind == session.LoggedIn && !labels[label] {
			labels[label], newDevices[e.ID] = true, true
		}
		switch e.Kind {
		case session.LoggedIn, session.Confirmed, session.Used:
			seen[e.UserID+"\n"+e.Handle] = e.Time // of one user the last is the newest
		}
	}

	// Until everything is there; then nothing is missing, and nothing else is there.
	for until := time.Now().Add(4 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if db.count(t, "SELECT count(*) FROM events") >= len(ids) && len(sent(t, cfg.Mails)) >= len(newDevices) || time.Now().After(until) {
			break
		}
	}
	rows, err := db.sql.Query("SELECT id FROM events")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	kept := map[string]int{}
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			t.Fatal(err)
		}
		kept[id]++
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	gaps, doubles, strangers := compare(ids, kept)
	if gaps+doubles+strangers > 0 {
		t.Errorf("of %d events %d are missing in the database, %d are there twice, and %d others are there", len(ids), gaps, doubles, strangers)
	}
	if n := db.count(t, "SELECT count(*) FROM dead_letters"); n > 0 {
		t.Errorf("%d dead letters", n)
	}
	if n := db.count(t, "SELECT count(*) FROM last_seen"); n != len(seen) {
		t.Errorf("%d sessions were seen, want %d", n, len(seen))
	}
	for key, want := range seen {
		user, handle, _ := strings.Cut(key, "\n")
		var at time.Time
		if err := db.sql.QueryRow("SELECT at FROM last_seen WHERE user_id = $1 AND handle = $2", user, handle).Scan(&at); err != nil || !at.Equal(want) {
			t.Errorf("%s of %s was last seen %v, %v; want %v", handle, user, at, err, want)
		}
	}

	// None is missing. One comes twice if its process or the database was killed between the
	// mail and the commit: of each at most as many as there are calls at a time.
	mails := sent(t, cfg.Mails)
	missing, twice, strange := compare(newDevices, mails)
	const parallel = 4
	if missing+strange > 0 || twice > parallel*(kills+restarts) {
		t.Errorf("of %d mails %d are missing, %d are copies, and %d are about no new device", len(newDevices), missing, twice, strange)
	}
	t.Logf("%d events, %d mails and %d copies; the reader was killed %d times, PostgreSQL %d times, Redis %d times",
		len(ids), len(newDevices), twice, kills, restarts, outages)
	if len(ids) < 200 || len(newDevices) < 50 || kills < 3 || restarts < 2 || outages < 1 {
		t.Error("too little has happened")
	}
}

// toldBy returns the events that stand in Redis, of each user in their order.
func toldBy(t *testing.T, client *redis.Client, m *session.Manager) (list []session.Event) {
	t.Helper()
	for i, stream := range m.EventLog().Streams() {
		entries, err := client.XRange(t.Context(), stream, "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			raw, _ := entry.Values["e"].(string)
			e, err := m.EventLog().Open(i, raw)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, e)
		}
	}
	return list
}

// sent counts the mails of each event.
func sent(t *testing.T, file string) map[string]int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]int{}
	for _, id := range strings.Fields(string(text)) {
		n[id]++
	}
	return n
}

// compare counts what is missing of want, what is there more than once, and what is not wanted.
func compare(want map[string]bool, got map[string]int) (missing, copies, strange int) {
	for id := range want {
		if got[id] == 0 {
			missing++
		}
	}
	for id, n := range got {
		copies += n - 1
		if !want[id] {
			strange++
		}
	}
	return missing, copies, strange
}
