package events_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/dev/redistest"
	"github.com/gatehouse-go/gatehouse/scripts"
	"github.com/gatehouse-go/gatehouse/session"
	"github.com/gatehouse-go/gatehouse/session/events"
)

var modelFor = flag.Duration("events.model", 4*time.Second, "how long users act and readers read, for each kind of Redis")

const (
	modelEnv   = "GATEHOUSE_TEST_EVENTS"
	modelLeast = 100 // acts and events, to tell anything
)

// modelConfig configures a process at its start.
type modelConfig struct {
	Addrs   []string
	Cluster bool
	Reads   bool // or it acts
	Broken  string
}

// report is a line that a process writes: an act that is done, or an event that was handled.
type report struct {
	Act          bool
	ID           string
	Kind         string
	User, Handle string
	At           int64 // of the event, µs
	Began, Ended int64 // of the handler, by the clock that all processes share, ns
}

// modelReady is the Kind of the first report, before any act or event.
const modelReady = "ready"

var modelUsers = []string{"ann", "bob", "cy", "dee", "eve", "fay"}

func modelManager(client redis.UniversalClient) (*session.Manager, error) {
	return session.New(client, session.Config{
		Prefix: "model:", Events: session.Events{Retention: time.Hour, MaxLen: 1_000_000},
		Logger: slog.New(slog.DiscardHandler), Timeout: 2 * time.Second,
	})
}

// modelBroken are the ways in which the processes may do it wrongly, for the model to find.
var modelBroken = map[string]redis.Hook{
	"a cursor that moves before the handler is done": redistest.Broken(scripts.Get("session/events_take.lua"), "'cursor', cursor, 'pos'", "'cursor', entries[#entries] and entries[#entries][1] or cursor, 'pos'"),
	"two readers of a partition":                     redistest.Broken(scripts.Get("session/events_take.lua"), "local busy = held > now and", "local busy = false and"),
	"an event in a second command":                   redistest.Instead(apart),
}

// apart leaves the stream out of scripts, so that the caller appends the events, a moment later.
func apart(ctx context.Context, cmd redis.Cmder) *redis.Cmd {
	args := cmd.Args()
	for _, name := range [...]string{"login", "rotate", "retire", "end", "end_all"} {
		if s := scripts.Get("session/" + name + ".lua"); len(args) > 4 && fmt.Sprint(args[2]) == "2" && (args[1] == s.SHA1() || args[1] == s.Source()) {
			return redis.NewCmd(ctx, append([]any{"eval", s.Source(), 1, args[3]}, args[5:]...)...)
		}
	}
	if s := scripts.Get("session/append.lua"); len(args) > 1 && (args[1] == s.SHA1() || args[1] == s.Source()) {
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// TestModelChild is the body of the further processes; it does nothing in an ordinary run.
func TestModelChild(t *testing.T) {
	text := os.Getenv(modelEnv)
	if text == "" {
		t.Skip("this is for further processes of TestModel")
	}
	var cfg modelConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		t.Fatal(err)
	}
	client := redis.NewUniversalClient(&redis.UniversalOptions{Addrs: cfg.Addrs, IsClusterMode: cfg.Cluster})
	if hook, ok := modelBroken[cfg.Broken]; ok {
		client.AddHook(hook)
	}
	m, err := modelManager(client)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	write := func(r report) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(r)
	}
	write(report{Kind: modelReady})
	if cfg.Reads {
		r := &events.Reader{
			Manager: m, Group: "model", Interval: 5 * time.Millisecond, Timeout: 500 * time.Millisecond, Batch: 20, Logger: slog.New(slog.DiscardHandler),
			DeadLetter: func(_ context.Context, d events.DeadLetter) error { panic(fmt.Sprintf("%+v", d)) },
		}
		_ = r.Run(t.Context(), func(_ context.Context, list []session.Event) error {
			began := time.Now().UnixNano()
			time.Sleep(rand.N(3 * time.Millisecond))
			if rand.IntN(30) == 0 {
				return fmt.Errorf("no: %w", events.ErrLater)
			}
			for i, e := range list { // in the order of the list
				write(report{ID: e.ID, Kind: e.Kind.String(), User: e.UserID, Handle: e.Handle, At: e.Time.UnixMicro(), Began: began + int64(i), Ended: time.Now().UnixNano()})
			}
			return nil
		})
	}
	for range 3 {
		go func() {
			cookie := ""
			for {
				kind, user, handle := "", modelUsers[rand.IntN(len(modelUsers))], ""
				ctx, err := m.Load(context.Background(), cookie)
				if err != nil {
					continue
				}
				switch n := rand.IntN(12); {
				case n < 3:
					err, kind = m.Login(ctx, user), "logged-in"
				case n < 9 && m.UserID(ctx) != "":
					user = m.UserID(ctx)
					err, kind = m.Rotate(ctx), "rotated"
				case n == 9 && m.UserID(ctx) != "":
					user = m.UserID(ctx)
					err, kind = m.Confirm(ctx), "confirmed"
				case n == 10 && m.UserID(ctx) != "":
					user, handle, kind = m.UserID(ctx), m.Info(ctx).Handle, "logged-out"
					err = m.Logout(ctx)
				case n == 11 && rand.IntN(10) == 0:
					_, err = m.EndAll(ctx, user, session.Cause{Reason: session.Disabled})
				}
				if handle == "" {
					handle = m.Info(ctx).Handle
				}
				ended := m.UserID(ctx) == "" && kind != "logged-out"
				o, also := m.Finish(ctx)
				switch {
				case o.Action == session.CookieDelete:
					cookie = ""
				case o.Action == session.CookieSet:
					cookie = o.Value
				}
				if errors.Join(err, also) == nil && kind != "" && !ended && (o.Action != session.CookieKeep || kind == "logged-out") {
					write(report{Act: true, Kind: kind, User: user, Handle: handle})
				}
			}
		}()
	}
	select {}
}

// model is what the processes have reported.
type model struct {
	mu      sync.Mutex
	reports []report
}

func (m *model) take(r report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reports = append(m.reports, r)
}

// enough reports whether the model has seen enough to judge by.
func (m *model) enough() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	acts := 0
	for _, r := range m.reports {
		if r.Act {
			acts++
		}
	}
	return acts >= modelLeast && len(m.reports)-acts >= modelLeast
}

// run starts a process, whose reports the model takes until it is killed. ready is closed when it
// is up, or has died.
func (m *model) run(t *testing.T, cfg modelConfig, all *sync.WaitGroup) (p *os.Process, ready chan struct{}) {
	t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestModelChild$")
	cmd.Env = append(os.Environ(), modelEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready = make(chan struct{})
	up := sync.OnceFunc(func() { close(ready) })
	all.Go(func() {
		defer up()
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var r report
			if json.Unmarshal(lines.Bytes(), &r) != nil {
				continue // what the test binary says for itself
			}
			if up(); r.Kind != modelReady {
				m.take(r)
			}
		}
		_ = cmd.Wait()
	})
	return cmd.Process, ready
}

// play lets processes act and read, and returns what was wrong.
func play(t *testing.T, client redis.UniversalClient, cfg modelConfig, during time.Duration, trouble func(over <-chan struct{})) (faults []string, counts map[string]int) {
	t.Helper()
	start := time.Now()
	model := &model{}
	var all, meanwhile sync.WaitGroup
	procs := make([]*os.Process, 5)
	run := func(i int) (ready chan struct{}) {
		cfg := cfg
		cfg.Reads = i >= 2
		procs[i], ready = model.run(t, cfg, &all)
		return ready
	}
	var ready []chan struct{}
	for i := range procs {
		ready = append(ready, run(i))
	}
	for _, r := range ready {
		<-r
	}
	over := make(chan struct{})
	meanwhile.Go(func() { trouble(over) })
	meanwhile.Go(func() { // kills
		for {
			select {
			case <-over:
				return
			case <-time.After(150*time.Millisecond + rand.N(200*time.Millisecond)):
			}
			i := rand.IntN(len(procs))
			if cfg.Cluster && i < 2 { // what the kill of one who acts may lose while a slot moves, is lost
				continue
			}
			_ = procs[i].Kill()
			<-run(i)
		}
	})
	// On a busy machine longer; what an actor that was killed has left open must not expire meanwhile.
	for began := time.Now(); time.Since(began) < during || !model.enough() && time.Since(start) < 15*time.Second; {
		time.Sleep(50 * time.Millisecond)
	}
	close(over)
	meanwhile.Wait()
	for _, p := range procs {
		_ = p.Kill()
	}
	all.Wait()

	// The last reader finishes, and what it gets is reported as well.
	m, err := modelManager(client)
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]int{} // of each event in its stream
	var ids []string
	await(t, "answer of Redis", func() bool { return client.Ping(t.Context()).Err() == nil })
	for i, stream := range m.EventLog().Streams() {
		for n, entry := range client.XRange(t.Context(), stream, "-", "+").Val() {
			raw, _ := entry.Values["e"].(string)
			e, err := m.EventLog().Open(i, raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, twice := at[e.ID]; twice {
				faults = append(faults, "an event stands twice in a stream")
			}
			at[e.ID] = n
			ids = append(ids, e.ID)
		}
	}
	got := map[string]bool{}
	for _, r := range model.reports {
		got[r.ID] = true
	}
	r := &events.Reader{
		Manager: m, Group: "model", Interval: 5 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
		DeadLetter: func(_ context.Context, d events.DeadLetter) error { t.Errorf("%+v", d); return nil },
	}
	ctx, stop := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() {
		_ = r.Run(ctx, func(_ context.Context, list []session.Event) error {
			for i, e := range list {
				now := time.Now().UnixNano() + int64(i)
				model.take(report{ID: e.ID, Kind: e.Kind.String(), User: e.UserID, Handle: e.Handle, At: e.Time.UnixMicro(), Began: now, Ended: now})
			}
			return nil
		})
	})
	// Until the leases of who was killed are over, and longer on a slow machine.
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		model.mu.Lock()
		left := 0
		known := map[string]bool{}
		for _, r := range model.reports {
			known[r.ID] = true
		}
		for _, id := range ids {
			if !known[id] {
				left++
			}
		}
		model.mu.Unlock()
		if left == 0 {
			break
		}
	}
	stop()
	reading.Wait()

	counts = map[string]int{}
	acts, told := map[report]int{}, map[report]int{}
	first := map[string]report{}
	perUser := map[string][]report{}
	for _, r := range model.reports {
		if r.Act {
			acts[report{Kind: r.Kind, User: r.User, Handle: r.Handle}]++
			counts["acts"]++
			continue
		}
		counts["deliveries"]++
		perUser[r.User] = append(perUser[r.User], r)
		if f, again := first[r.ID]; !again || r.Began < f.Began {
			first[r.ID] = r
		}
		if _, stands := at[r.ID]; !stands {
			faults = append(faults, fmt.Sprintf("%+v was delivered, and stands in no stream", r))
		}
	}
	counts["events"] = len(ids)
	for _, id := range ids {
		r, ok := first[id]
		if !ok {
			faults = append(faults, "an event was not delivered")
		}
		kind := r.Kind
		if kind == "ended" { // whose logout came too late
			kind = "logged-out"
		}
		told[report{Kind: kind, User: r.User, Handle: r.Handle}]++
	}
	for act, n := range acts {
		if told[act] < n {
			faults = append(faults, fmt.Sprintf("%+v was done %d times, and is told %d times", act, n, told[act]))
		}
	}
	for user, list := range perUser {
		// Of one user's events no two are handled at once, and the first delivery of each is in
		// the stream's order.
		slices.SortFunc(list, func(a, b report) int { return int(a.Began - b.Began) })
		highest := -1
		for i, r := range list {
			if i > 0 && list[i-1].Ended > r.Began && list[i-1].Ended-r.Began < int64(time.Second) && r.Began-list[i-1].Began > 100 {
				faults = append(faults, fmt.Sprintf("%s: two events at once", user))
			}
			if first[r.ID] == r {
				if at[r.ID] < highest {
					faults = append(faults, fmt.Sprintf("%s: event %d after event %d", user, at[r.ID], highest))
				}
				highest = max(highest, at[r.ID])
			}
		}
	}
	for _, user := range modelUsers { // what was told makes what there is
		var list []report
		for _, r := range first {
			if r.User == user {
				list = append(list, r)
			}
		}
		// While a slot moves an event may follow those of later acts.
		slices.SortStableFunc(list, func(a, b report) int { return cmp.Or(cmp.Compare(a.At, b.At), at[a.ID]-at[b.ID]) })
		replayed := map[string]int{} // logins over each other
		for _, r := range list {
			switch r.Kind {
			case "logged-in":
				replayed[r.Handle]++
			case "logged-out", "ended":
				delete(replayed, r.Handle)
			case "login-undone": // the session of before, if there was one, is as it was
				if replayed[r.Handle]--; replayed[r.Handle] <= 0 {
					delete(replayed, r.Handle)
				}
			}
		}
		infos, err := m.List(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			if replayed[i.Handle] == 0 {
				faults = append(faults, fmt.Sprintf("%s has a session %s that was not told", user, i.Handle))
			}
			delete(replayed, i.Handle)
		}
		for h := range replayed {
			faults = append(faults, fmt.Sprintf("%s has no session %s, whose end was not told", user, h))
		}
	}
	return faults, counts
}

func show(t *testing.T, faults []string, counts map[string]int) {
	t.Helper()
	for _, f := range faults[:min(len(faults), 8)] {
		t.Error(f)
	}
	t.Log(counts)
	if counts["events"] < modelLeast || counts["acts"] < modelLeast {
		t.Errorf("too little has happened: %v", counts)
	}
}

// Whoever is killed, who acts, who reads, or Redis: each act has its event, each event its act, and
// each is delivered, those of a user in order and never two at once.
func TestModel(t *testing.T) {
	t.Parallel() // with others that wait
	t.Run("standalone", func(t *testing.T) {
		server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
		faults, counts := play(t, server.Client(), modelConfig{Addrs: []string{server.Addr()}}, *modelFor, func(over <-chan struct{}) {
			for {
				select {
				case <-over:
					return
				case <-time.After(1500 * time.Millisecond):
					server.Kill()
					server.Restart()
				}
			}
		})
		show(t, faults, counts)
	})
	t.Run("cluster", func(t *testing.T) {
		cluster := redistest.StartCluster(t)
		client := cluster.Client()
		faults, counts := play(t, client, modelConfig{Addrs: cluster.Addrs(), Cluster: true}, *modelFor, func(over <-chan struct{}) { moveSlots(t, cluster, over) })
		show(t, faults, counts)
	})
}

// moveSlots moves the slots of all users from server to server.
func moveSlots(t *testing.T, cluster *redistest.Cluster, over <-chan struct{}) {
	var nodes []*redis.Client
	for _, s := range cluster.Nodes() {
		nodes = append(nodes, s.Client())
	}
	for {
		if keys, _ := nodes[rand.IntN(len(nodes))].Keys(t.Context(), "model:*").Result(); len(keys) > 0 {
			cluster.MoveSlot(keys[rand.IntN(len(keys))], 15*time.Millisecond)
		}
		select {
		case <-over:
			return
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// The model finds each of these.
func TestModelCatches(t *testing.T) {
	t.Parallel() // with others that wait
	for broken := range modelBroken {
		var faults []string
		var counts map[string]int
		for try := 0; try < 6 && len(faults) == 0; try++ {
			server := redistest.Start(t)
			faults, counts = play(t, server.Client(), modelConfig{Addrs: []string{server.Addr()}, Broken: broken}, 3*time.Second, func(<-chan struct{}) {})
		}
		if len(faults) == 0 {
			t.Errorf("%s is not found: %v", broken, counts)
			continue
		}
		t.Logf("%s: %s %v", broken, faults[0], counts)
		if redistest.RaceDetector {
			break // it is slow: another one the next time
		}
	}
}
