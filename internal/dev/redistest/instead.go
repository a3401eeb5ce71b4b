package redistest

import (
	"context"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/gatehouse-go/gatehouse/scripts"
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

// Break is a script with pieces of its text exchanged for others, each old piece before the new one.
// It panics if the script does not have one of them: it would be as right as before.
func Break(script *scripts.Script, oldnew ...string) *scripts.Script {
	text := script.Source()
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(text, oldnew[i]) {
			panic("redistest: the script does not contain " + oldnew[i])
		}
		text = strings.ReplaceAll(text, oldnew[i], oldnew[i+1])
	}
	return scripts.New(text)
}

// Broken runs a script as [Break] leaves it.
func Broken(script *scripts.Script, oldnew ...string) Instead {
	broken := Break(script, oldnew...)
	return func(ctx context.Context, cmd redis.Cmder) *redis.Cmd {
		args := cmd.Args()
		if len(args) < 3 || args[1] != script.SHA1() && args[1] != script.Source() {
			return nil
		}
		return redis.NewCmd(ctx, append([]any{"eval", broken.Source()}, args[2:]...)...)
	}
}
