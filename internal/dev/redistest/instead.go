package redistest

import (
	"context"
	"net"

	"github.com/redis/go-redis/v9"
)

// Instead is a hook that sends another command in the place of some, and gives its reply to who sent
// those. It returns nil for what is to be sent as it is.
type Instead func(context.Context, redis.Cmder) *redis.Cmd

// DialHook leaves connections alone.
func (Instead) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook exchanges a command.
func (h Instead) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		other := h(ctx, cmd)
		if other == nil {
			return next(ctx, cmd)
		}
		return answer(cmd, other, next(ctx, other))
	}
}

// ProcessPipelineHook exchanges commands of a pipeline.
func (h Instead) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		sent := make([]redis.Cmder, len(cmds))
		others := make([]*redis.Cmd, len(cmds))
		for i, cmd := range cmds {
			if sent[i], others[i] = cmd, h(ctx, cmd); others[i] != nil {
				sent[i] = others[i]
			}
		}
		err := next(ctx, sent)
		for i, cmd := range cmds {
			if other := others[i]; other != nil {
				_ = answer(cmd, other, other.Err())
			}
		}
		return err
	}
}

// answer gives a command what another one got.
func answer(cmd redis.Cmder, other *redis.Cmd, err error) error {
	if err != nil {
		cmd.SetErr(err)
		return err
	}
	if text, ok := cmd.(*redis.StringCmd); ok {
		s, err := other.Text()
		text.SetVal(s)
		return err
	}
	cmd.(interface{ SetVal(any) }).SetVal(other.Val())
	return nil
}
