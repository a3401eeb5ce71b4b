// Command bench measures Gatehouse beside its peers, on a Redis that it starts itself.
//
//	go run .                  all rows, several minutes
//	go run . -quick           the same in short, to see that it runs
//	go run . -only stack      some rows; -list names them
//	go run . sizing           what limits and sessions of several sizes cost
//	go run . sizing -users 1000000 -rps 5000
//	                          and how much Redis so many users and requests need
//	go run . scripts          what the scripts alone cost Redis
//	go run . caches           caches of what a database knows, and how often they ask it
//	go run . holds            how long one call of a session's script keeps Redis from all others
//
// The contenders of a row take turns in one process and on one Redis, each turn after a warm-up,
// and the medians over the rounds are printed as markdown. Ratios compare turns of the same round.
// What counts are the ratios: the callers, the middleware and Redis share one machine.
//
// Beside each other stand: what all of this process, callers included, uses of the CPU; what Redis
// does by its own account (INFO); the commands it executes, those that scripts call included;
// allocations of this process; and what an average key takes in Redis (MEMORY USAGE).
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

func main() {
	args := os.Args[1:]
	command := compare
	if len(args) > 0 {
		switch args[0] {
		case "sizing":
			command, args = sizing, args[1:]
		case "scripts":
			command, args = scriptCosts, args[1:]
		case "holds":
			command, args = holds, args[1:]
		case "caches":
			command, args = caches, args[1:]
		}
	}
	if err := command(context.Background(), args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// compare measures the rows and prints them.
func compare(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	var (
		quick    = flags.Bool("quick", false, "less than a minute in all: one short round over 5,000 keys")
		only     = flags.String("only", "", "comma-separated rows to measure, or what their names begin with")
		with     = flags.String("with", "", "comma-separated parts of contenders' names to leave out all others, floors apart")
		list     = flags.Bool("list", false, "name the rows and contenders, measure nothing")
		rounds   = flags.Int("rounds", 5, "turns of each contender")
		measured = flags.Duration("measure", time.Second, "length of a turn")
		warmUp   = flags.Duration("warmup", 500*time.Millisecond, "load before each turn")
		keys     = flags.Int("keys", 10_000, "keys of the limits, and sessions")
		profile  = flags.String("cpuprofile", "", "write a CPU profile of this process to a `file`, and leave out the floors: with -only and -with, of one contender")
	)
	if err := flags.Parse(args); err != nil {
		return err
	}
	set := make(map[string]bool)
	flags.Visit(func(f *flag.Flag) { set[f.Name] = true })
	if *quick {
		for name, value := range map[string]string{"rounds": "1", "measure": "200ms", "warmup": "100ms", "keys": "5000"} {
			if !set[name] {
				_ = flags.Set(name, value)
			}
		}
	}
	if *rounds < 1 || *measured <= 0 || *keys < 1 || flags.NArg() > 0 {
		return fmt.Errorf("bench: -rounds, -measure and -keys must be positive, and there are no arguments but sizing, scripts, holds and caches")
	}
	chosen := choose(rows(*keys), *only, *with, *profile == "")
	if len(chosen) == 0 {
		return fmt.Errorf("bench: no row begins with %q; -list names them", *only)
	}
	if *list {
		for _, r := range chosen {
			fmt.Printf("%s: %s\n", r.name, r.title)
			for _, e := range r.entrants {
				fmt.Printf("\t%s\n", e.name)
			}
		}
		return nil
	}

	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var h host
	defer h.close()
	s := startServer(&h)
	if err := writeEnvironment(ctx, s); err != nil {
		return err
	}
	fmt.Printf("Medians of %d rounds of %v, each after %v of warm-up. This process keeps %d MiB, as a service would.\n\n",
		*rounds, *measured, *warmUp, serviceHeap>>20)
	var results []result
	for _, r := range chosen {
		started := time.Now()
		fmt.Fprintf(os.Stderr, "%s … ", r.name)
		contenders, err := measure(ctx, s, r, pace{rounds: *rounds, warmUp: *warmUp, measure: *measured})
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stderr, time.Since(started).Round(time.Second/10))
		results = append(results, result{r, contenders})
		writeResult(os.Stdout, results[len(results)-1])
	}
	writeTargets(os.Stdout, results)
	return nil
}

// choose returns the rows whose names begin with one of only, with the entrants whose names
// contain one of with, and the floors. An empty list is all.
func choose(all []row, only, with string, floors bool) []row {
	var chosen []row
	for _, r := range all {
		if !matches(r.name, only, strings.HasPrefix) {
			continue
		}
		r.entrants = slices.DeleteFunc(slices.Clone(r.entrants), func(e entrant) bool {
			return !(e.kind == floor && floors) && !matches(strings.ToLower(e.name), strings.ToLower(with), strings.Contains)
		})
		chosen = append(chosen, r)
	}
	return chosen
}

func matches(name, list string, match func(name, part string) bool) bool {
	if list == "" {
		return true
	}
	return slices.ContainsFunc(strings.Split(list, ","), func(part string) bool { return match(name, strings.TrimSpace(part)) })
}

func writeEnvironment(ctx context.Context, s *server) error {
	version, err := s.version(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%s %s/%s, %d CPUs for this process and Redis %s, which talk over loopback.\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), version)
	return nil
}
