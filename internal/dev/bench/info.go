package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// redisUsage is what Redis has spent since it started.
type redisUsage struct {
	cpu      time.Duration // user and system, of all its threads
	commands int64         // executed, those inside of scripts included; our own INFO is not counted
	memory   int64         // bytes in use now
}

// parseUsage reads the sections cpu, commandstats and memory of INFO.
//
// total_commands_processed would be simpler than commandstats, but leaves out what scripts call.
func parseUsage(info string) (redisUsage, error) {
	var u redisUsage
	missing := map[string]bool{"used_cpu_user": true, "used_cpu_sys": true, "used_memory": true}
	for line := range strings.Lines(info) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		delete(missing, name)
		switch {
		case name == "used_cpu_user" || name == "used_cpu_sys":
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return u, fmt.Errorf("INFO: %s: %w", name, err)
			}
			u.cpu += time.Duration(seconds * float64(time.Second))
		case name == "used_memory":
			var err error
			if u.memory, err = strconv.ParseInt(value, 10, 64); err != nil {
				return u, fmt.Errorf("INFO: %s: %w", name, err)
			}
		case strings.HasPrefix(name, "cmdstat_") && name != "cmdstat_info":
			calls, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			n, err := strconv.ParseInt(calls, 10, 64)
			if err != nil {
				return u, fmt.Errorf("INFO: %s: %w", name, err)
			}
			u.commands += n
		}
	}
	for name := range missing {
		return u, fmt.Errorf("INFO has no %s", name)
	}
	return u, nil
}

func (u redisUsage) minus(earlier redisUsage) redisUsage {
	return redisUsage{u.cpu - earlier.cpu, u.commands - earlier.commands, u.memory - earlier.memory}
}
