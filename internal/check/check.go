// Package check looks at a Redis before it is relied on: whether its user may run what is
// needed, and whether it is set up so that nothing is lost.
package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/internal/roundtrip"
	"github.com/gatehouse-go/gatehouse/scripts"
)

// Needs is what a feature runs.
type Needs struct {
	Key      string // one that it would write
	Scripts  []*scripts.Script
	Commands []string // besides those of Scripts
}

// permitted returns which of the commands ARGV the user may not run on KEYS[1]. Redis's own
// error does not name the command that a script was not permitted. Where the question cannot be
// asked, nothing is known to be missing.
var permitted = scripts.New(`local missing, ask = {}, rawget(redis, 'acl_check_cmd')
if ask then
  for _, name in ipairs(ARGV) do
    local args = {KEYS[1], '1', '1'}
    if name == 'time' or name == 'command' or name == 'asking' then args = {} end
    if name == 'eval' or name == 'evalsha' then args = {'return 1', '1', KEYS[1]} end
    if name == 'del' or name == 'unlink' then args = {KEYS[1]} end -- all others have one key
    local ok, may = pcall(ask, name, unpack(args))
    if not ok then missing[#missing + 1] = name .. ' (which it does not know)' end
    if ok and not may then missing[#missing + 1] = name end
  end
end
return missing`)

// called finds what a script cannot do without: redis.pcall is not it.
var called = regexp.MustCompile(`\bcall\('([A-Z]+)'`)

// names are the commands of a feature, in small letters.
func (n Needs) names() []string {
	all := map[string]bool{"eval": true, "evalsha": true} // the check itself may be known to Redis
	for _, s := range n.Scripts {
		for _, m := range called.FindAllStringSubmatch(s.Source(), -1) {
			all[strings.ToLower(m[1])] = true
		}
	}
	for _, c := range n.Commands {
		all[c] = true
	}
	return slices.Sorted(maps.Keys(all))
}

// Permissions returns an error that names each command that the user of Redis may not run.
func Permissions(ctx context.Context, by *roundtrip.Sender, n Needs) error {
	if _, ok := by.Client().(*redis.ClusterClient); ok {
		// Without the first go-redis asks for it before each command, without the second a slot
		// that moves cannot be reached.
		n.Commands = append(slices.Clip(n.Commands), "command", "asking")
	}
	names := n.names()
	args := make([]any, len(names))
	for i, name := range names {
		args[i] = name
	}
	reply, err := by.Run(ctx, permitted, []string{n.Key}, args...)
	if err != nil {
		return fmt.Errorf("check: %w", err)
	}
	var missing []string
	values, _ := reply.([]any)
	for _, v := range values {
		missing = append(missing, fmt.Sprint(v))
	}
	if len(missing) > 0 {
		return fmt.Errorf("check: the user of Redis may not run %s on keys like %q", strings.Join(missing, ", "), n.Key)
	}
	return nil
}

// Channel reports which of publish and subscribe the user of Redis may not run on a channel.
func Channel(ctx context.Context, by *roundtrip.Sender, key, channel string) (missing []string, err error) {
	reply, err := by.Run(ctx, onChannel, []string{key}, channel)
	if err != nil {
		return nil, fmt.Errorf("check: %w", err)
	}
	values, _ := reply.([]any)
	for _, v := range values {
		missing = append(missing, fmt.Sprint(v))
	}
	return missing, nil
}

var onChannel = scripts.New(`local missing, ask = {}, rawget(redis, 'acl_check_cmd')
if ask then
  local ok, may = pcall(ask, 'publish', ARGV[1], '')
  if ok and not may then missing[#missing + 1] = 'publish' end
  ok, may = pcall(ask, 'subscribe', ARGV[1])
  if ok and not may then missing[#missing + 1] = 'subscribe' end
end
return missing`)

// Loss says what is lost where Redis loses keys, for warnings.
type Loss struct {
	Evicted   string // by maxmemory-policy
	Forgotten string // in a crash, where there is no append-only file; "": not worth a word
}

// Servers looks at each server that client writes to.
func Servers(ctx context.Context, client redis.UniversalClient, loss Loss) (warnings []string, err error) {
	var mu sync.Mutex
	var errs []error
	look := func(ctx context.Context, c *redis.Client) error {
		w, err := server(ctx, c, loss)
		mu.Lock()
		defer mu.Unlock()
		warnings = append(warnings, w...)
		if err != nil {
			errs = append(errs, fmt.Errorf("check: %s: %w", c.Options().Addr, err))
		}
		return nil
	}
	if _, cluster := client.(*redis.ClusterClient); cluster && !ReadsMasters(client) {
		warnings = append(warnings, "the client reads from replicas, which may be behind")
	}
	if err := each(ctx, client, look); err != nil {
		errs = append(errs, fmt.Errorf("check: %w", err))
	}
	slices.Sort(warnings)
	return slices.Compact(warnings), errors.Join(errs...)
}

// ReadsMasters reports whether masters answer the commands of client that only read. Of a client of
// another type that is not known.
func ReadsMasters(client redis.UniversalClient) bool {
	switch c := client.(type) {
	case *redis.Client, *redis.Ring:
		return true
	case *redis.ClusterClient:
		o := c.Options()
		return !o.ReadOnly && !o.RouteByLatency && !o.RouteRandomly
	}
	return false
}

func server(ctx context.Context, c *redis.Client, loss Loss) (warnings []string, err error) {
	began := time.Now()
	if now, err := c.Time(ctx).Result(); err == nil {
		if off := now.Sub(began.Add(time.Since(began) / 2)); off.Abs() > time.Second {
			warnings = append(warnings, fmt.Sprintf("the clock of Redis is %v off this server's", off.Round(time.Second)))
		}
	}
	info, err := infoOf(ctx, c)
	if redis.HasErrorPrefix(err, "NOPERM") {
		return append(warnings, "INFO is not permitted, so that version, eviction and persistence were not looked at"), nil
	}
	if err != nil {
		return warnings, err
	}
	if major, _, ok := strings.Cut(info["redis_version"], "."); ok {
		if n, err := strconv.Atoi(major); err == nil && n < 7 {
			return warnings, fmt.Errorf("version %s of Redis: 7.0 or newer is needed", info["redis_version"])
		}
	}
	if info["role"] == "slave" {
		return warnings, errors.New("a replica, which takes no writes")
	}
	if policy := info["maxmemory_policy"]; info["maxmemory"] != "" && info["maxmemory"] != "0" && policy != "noeviction" {
		warnings = append(warnings, fmt.Sprintf("maxmemory-policy is %s: %s", policy, loss.Evicted))
	}
	if info["aof_enabled"] == "0" && loss.Forgotten != "" {
		warnings = append(warnings, "there is no append-only file: "+loss.Forgotten)
	}
	return warnings, nil
}

// infoOf returns what INFO says, by name.
func infoOf(ctx context.Context, c *redis.Client) (map[string]string, error) {
	text, err := c.Info(ctx).Result()
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	return info, err
}

// Server is what a Redis says of itself.
type Server struct {
	Addr      string        `json:"addr"`
	Error     string        `json:"error,omitempty"` // it did not say
	Role      string        `json:"role,omitempty"`
	Version   string        `json:"version,omitempty"`
	Up        time.Duration `json:"up"`        // ns
	Clients   int           `json:"clients"`   // connections
	Memory    int64         `json:"memory"`    // bytes in use
	MaxMemory int64         `json:"maxMemory"` // 0: no limit
	Policy    string        `json:"policy,omitempty"`
	AOF       bool          `json:"aof"` // it has an append-only file
}

// Describe asks each server that client writes to about itself.
func Describe(ctx context.Context, client redis.UniversalClient) ([]Server, error) {
	var mu sync.Mutex
	var list []Server
	err := each(ctx, client, func(ctx context.Context, c *redis.Client) error {
		s := Server{Addr: c.Options().Addr}
		if info, err := infoOf(ctx, c); err != nil {
			s.Error = err.Error()
		} else {
			number := func(name string) int64 { n, _ := strconv.ParseInt(info[name], 10, 64); return n }
			s.Role, s.Version, s.Policy, s.AOF = info["role"], info["redis_version"], info["maxmemory_policy"], info["aof_enabled"] == "1"
			s.Up = time.Duration(number("uptime_in_seconds")) * time.Second
			s.Clients, s.Memory, s.MaxMemory = int(number("connected_clients")), number("used_memory"), number("maxmemory")
		}
		mu.Lock()
		defer mu.Unlock()
		list = append(list, s)
		return nil
	})
	slices.SortFunc(list, func(a, b Server) int { return strings.Compare(a.Addr, b.Addr) })
	return list, err
}

// each is EachMaster, and nothing for a client whose masters are not known.
func each(ctx context.Context, client redis.UniversalClient, f func(context.Context, *redis.Client) error) error {
	if err := roundtrip.EachMaster(ctx, client, f); !errors.Is(err, roundtrip.ErrMasters) {
		return err
	}
	return nil
}

// NearCache looks at a client's own cache of what it reads. loss says what it shows for too long
// where its age has no limit.
func NearCache(client redis.UniversalClient, loss string) (warnings []string) {
	c, ok := client.(*redis.Client)
	if !ok {
		return nil
	}
	switch o := c.Options(); {
	case (o.ClientSideCache != nil || o.ClientSideCacheConfig != nil) && (o.Protocol != 3 || o.DB != 0):
		warnings = append(warnings, "the client-side cache is not used: it needs Protocol 3 and DB 0")
	case cachesForever(o):
		warnings = append(warnings, "the client-side cache has no MaxStaleness: "+loss)
	}
	return warnings
}

// cachesForever reports whether reads are cached for as long as nothing is heard of a change.
func cachesForever(o *redis.Options) bool {
	switch cache := o.ClientSideCache.(type) {
	case nil:
		return o.ClientSideCacheConfig != nil && o.ClientSideCacheConfig.MaxStaleness == 0
	case *redis.LocalCache:
		// Only go-redis itself can read it. A test fails if a later version keeps it elsewhere.
		shards := reflect.ValueOf(cache).Elem().FieldByName("shards")
		if shards.IsValid() && shards.Kind() == reflect.Slice && shards.Len() > 0 {
			if f := shards.Index(0).FieldByName("maxStaleness"); f.IsValid() && f.CanInt() {
				return f.Int() == 0
			}
		}
	}
	return false
}
