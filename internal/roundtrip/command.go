package roundtrip

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
)

// command is a command of ours. It is bound to a client that gives up in time, if there is one.
type command interface {
	redis.Cmder
	bind(*redis.Client)
	bound() (*redis.Client, redis.Cmder)
}

// script is a call of a script. go-redis must not repeat it, because a reply that got lost does
// not mean that it did not run.
type script struct {
	redis.Cmd
	by *redis.Client
}

func (*script) NoRetry() bool                         { return true }
func (c *script) bind(by *redis.Client)               { c.by = by }
func (c *script) bound() (*redis.Client, redis.Cmder) { return c.by, c }

func evalsha(ctx context.Context, s *scripts.Script, keys []string, args []any) *script {
	all := make([]any, 0, 3+len(keys)+len(args))
	all = append(all, "evalsha", s.SHA1(), len(keys))
	for _, key := range keys {
		all = append(all, key)
	}
	return newScript(ctx, append(all, args...))
}

func newScript(ctx context.Context, args []any) *script {
	return &script{Cmd: *redis.NewCmd(ctx, args...)}
}

// withSource returns the same call with the text of its script, for a Redis that does not have
// it. A command that has been sent may not be reused, and nor may its arguments.
func (c *script) withSource(ctx context.Context, s *scripts.Script) *script {
	return newScript(ctx, append([]any{"eval", s.Source()}, c.Args()[2:]...))
}

func isNoScript(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "NOSCRIPT")
}

type hget struct {
	redis.StringCmd
	by *redis.Client
}

func (c *hget) bind(by *redis.Client)               { c.by = by }
func (c *hget) bound() (*redis.Client, redis.Cmder) { return c.by, &c.StringCmd }

type hmget struct {
	redis.SliceCmd
	by *redis.Client
}

func newHMGet(ctx context.Context, f Fields) *hmget {
	args := make([]any, 0, 2+len(f.Names))
	args = append(args, "hmget", f.Key)
	for _, name := range f.Names {
		args = append(args, name)
	}
	return &hmget{SliceCmd: *redis.NewSliceCmd(ctx, args...)}
}

func (c *hmget) bind(by *redis.Client)               { c.by = by }
func (c *hmget) bound() (*redis.Client, redis.Cmder) { return c.by, &c.SliceCmd }

// divert is a hook that has bound commands processed by the client that they are
// bound to. That one, made by WithTimeout, has none of the hooks of its origin:
// going through the origin, the command meets those that were there before this
// one, such as those that trace. Each client has one, which keeps shared for as long as it.
type divert struct{ *shared }

func (divert) DialHook(next redis.DialHook) redis.DialHook { return next }

func (divert) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if len(cmds) > 0 {
			if c, ok := cmds[0].(command); ok {
				if by, _ := c.bound(); by != nil {
					pipe := by.Pipeline()
					_ = pipe.BatchProcess(ctx, cmds...)
					_, err := pipe.Exec(ctx)
					return err
				}
			}
		}
		return next(ctx, cmds)
	}
}

func (divert) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if c, ok := cmd.(command); ok {
			if by, cmd := c.bound(); by != nil {
				return by.Process(ctx, cmd)
			}
		}
		return next(ctx, cmd)
	}
}
