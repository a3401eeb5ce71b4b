package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// scriptWork is a script and the arguments of its ordinary call.
type scriptWork struct {
	name   string
	source string
	args   []any // after the key
	before func(ctx context.Context, c redis.Cmdable, key string) error
}

const (
	lifetime, idle, step = 24 * 3_600_000_000, 3_600_000_000, 180_000_000 // µs
	power                = "\x1c"                                         // of two, above step
)

// ordinaryLife is the life of a session as scripts take it.
var ordinaryLife = micros7(lifetime) + micros7(idle) + micros7(step) + power

// scriptWorks returns the scripts that a request can cost, each as a request would call it.
func scriptWorks() []scriptWork {
	const limit, window = "100", "1000000" // a second, in µs
	field, revision := "field of 16 byte", "revision"
	head := "\x01\x01" + "\x00\x00\x00\x00" + revision + "handle of"
	boxes := strings.Repeat("b", 330)
	now := time.Now().UnixMicro()
	record := head + micros7(now) + micros7(now+lifetime) + micros7(now) + micros7(now+idle) + power + "\x00" + boxes
	put := func(ctx context.Context, c redis.Cmdable, key string) error {
		if err := c.HSet(ctx, key, field, record).Err(); err != nil {
			return err
		}
		return c.PExpire(ctx, key, time.Hour).Err()
	}
	var periods string // the ends of four days, as a quota tells them
	for i := range int64(4) {
		periods += fmt.Sprint(time.Now().UnixMilli()+(i-1)*24*time.Hour.Milliseconds(), ",")
	}
	return []scriptWork{
		{name: "nothing", source: "return 1"},
		{name: "sliding window", source: scripts.Get("limit/sliding.lua").Source(), args: []any{limit, 2001, window}},
		{name: "fixed window", source: scripts.Get("limit/fixed.lua").Source(), args: []any{limit, 999}},
		{name: "token bucket", source: scripts.Get("limit/bucket.lua").Source(), args: []any{limit, 11_002, window}},
		{name: "quota", source: scripts.Get("limit/quota.lua").Source(), args: []any{limit, periods}},
		{name: "session commit", source: scripts.Get("session/save.lua").Source(), args: []any{field, revision, head, boxes, micros7(idle) + ordinaryLife, ""}, before: put},
		{name: "session touch", source: scripts.Get("session/save.lua").Source(), args: []any{field, "\x01", "", "", micros7(idle) + ordinaryLife, ""}, before: put},
	}
}

// micros7 renders a time as it stands in a session's record.
func micros7(us int64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(us))
	return string(b[1:])
}

// variants are further sources for one of the scriptWorks, from files.
type variants []scriptWork

func (v *variants) String() string { return "" }

// Set takes "name of the script=file".
func (v *variants) Set(s string) error {
	name, file, _ := strings.Cut(s, "=")
	works := scriptWorks()
	i := slices.IndexFunc(works, func(w scriptWork) bool { return w.name == name })
	if i < 0 {
		return fmt.Errorf("no script is called %q", name)
	}
	source, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	w := works[i]
	w.name, w.source = name+", "+file, string(source)
	*v = append(*v, w)
	return nil
}

// scriptCosts measures what scripts cost Redis, without middleware or limiters around them, so that
// variants of a script can be told apart.
func scriptCosts(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench scripts", flag.ExitOnError)
	var (
		more   variants
		only   = flags.String("only", "", "comma-separated scripts to measure, or what their names begin with")
		rounds = flags.Int("rounds", 7, "turns of each script")
		calls  = flags.Int("calls", 50_000, "calls in a turn")
	)
	flags.Var(&more, "variant", "`script=file`: another source for a script, beside it; may be repeated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rounds < 1 || *calls < 1 || flags.NArg() > 0 {
		return fmt.Errorf("bench: -rounds and -calls must be positive, and scripts takes no arguments but flags")
	}
	works := slices.DeleteFunc(append(scriptWorks(), more...), func(w scriptWork) bool {
		return w.source != "return 1" && !matches(w.name, *only, strings.HasPrefix)
	})

	var h host
	defer h.close()
	s := startServer(&h)
	if err := writeEnvironment(ctx, s); err != nil {
		return err
	}
	fmt.Printf("The least of %d rounds of %d calls over %d keys, in pipelines of %d.\n\n", *rounds, *calls, scriptKeys, scriptBatch)
	costs := make([][]scriptCost, len(works))
	for round := range *rounds {
		for i := range works {
			i = (i + round) % len(works)
			c, err := s.scriptCost(ctx, 1+i, works[i], *calls)
			if err != nil {
				return fmt.Errorf("bench: %s: %w", works[i].name, err)
			}
			costs[i] = append(costs[i], c)
		}
	}
	t := table{w: os.Stdout}
	t.head("script", "Redis CPU µs", "of it in the script µs", "commands")
	for i, w := range works {
		least := func(pick func(scriptCost) float64) string {
			all := make([]float64, len(costs[i]))
			for j, c := range costs[i] {
				all[j] = pick(c)
			}
			return short(slices.Min(all))
		}
		t.line(w.name,
			least(func(c scriptCost) float64 { return c.cpu }),
			least(func(c scriptCost) float64 { return c.script }),
			least(func(c scriptCost) float64 { return c.commands }))
	}
	return nil
}

const scriptKeys, scriptBatch = 10_000, 16

// scriptCost is what a call costs Redis, in µs: all of it, and what commandstats has for the
// script itself, which leaves out the network and the parsing of arguments.
type scriptCost struct{ cpu, script, commands float64 }

// scriptCost calls a script over and over, in a database of its own.
func (s *server) scriptCost(ctx context.Context, db int, w scriptWork, calls int) (scriptCost, error) {
	client := s.client(db, 1)
	defer client.Close()
	sha, err := client.ScriptLoad(ctx, w.source).Result()
	if err != nil {
		return scriptCost{}, err
	}
	key := func(i int) string { return fmt.Sprintf("gatehouse:rl:scripts:{client-%06d}", i) }
	run := func(calls int) error {
		for sent := 0; sent < calls; {
			pipe := client.Pipeline()
			for range scriptBatch {
				pipe.EvalSha(ctx, sha, []string{key(rand.IntN(scriptKeys))}, w.args...)
				sent++
			}
			if _, err := pipe.Exec(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	if w.before != nil {
		pipe := client.Pipeline()
		for i := range scriptKeys {
			if err := w.before(ctx, pipe, key(i)); err != nil {
				return scriptCost{}, err
			}
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return scriptCost{}, err
		}
	}
	if err := run(calls / 2); err != nil { // the steady state
		return scriptCost{}, err
	}
	if err := s.admin.ConfigResetStat(ctx).Err(); err != nil {
		return scriptCost{}, err
	}
	before, err := s.usage(ctx)
	if err != nil {
		return scriptCost{}, err
	}
	if err := run(calls); err != nil {
		return scriptCost{}, err
	}
	after, err := s.usage(ctx)
	if err != nil {
		return scriptCost{}, err
	}
	info, err := s.admin.Info(ctx, "commandstats").Result()
	if err != nil {
		return scriptCost{}, err
	}
	var each float64
	_, stat, _ := strings.Cut(info, "cmdstat_evalsha:")
	_, perCall, _ := strings.Cut(stat, "usec_per_call=")
	if _, err := fmt.Sscanf(perCall, "%f", &each); err != nil {
		return scriptCost{}, fmt.Errorf("commandstats of EVALSHA: %w", err)
	}
	spent, n := after.minus(before), float64((calls+scriptBatch-1)/scriptBatch*scriptBatch)
	return scriptCost{cpu: micros(spent.cpu) / n, script: each, commands: float64(spent.commands) / n}, nil
}
