package scripts

import _ "embed"

// The limiters' scripts. Each algorithm is a Lua function in a file of its own,
// so that the scripts which decide by one of them and by several have it in common.
var (
	SlidingWindow = New(limitPrelude + limitClaim + limitSliding + "local decide = sliding\n" + limitTake)
	FixedWindow   = New(limitPrelude + limitFixed + "local decide = fixed\n" + limitTake)
	TokenBucket   = New(limitPrelude + limitLevel + limitBucket + "local decide = bucket\n" + limitTake)

	// The same with bans: limit_penalty.lua in the place of limit_take.lua.
	SlidingWindowPenalty = New(limitPrelude + limitClaim + limitSliding + "local decide = sliding\n" + limitPenalty)
	FixedWindowPenalty   = New(limitPrelude + limitFixed + "local decide = fixed\n" + limitPenalty)
	TokenBucketPenalty   = New(limitPrelude + limitLevel + limitBucket + "local decide = bucket\n" + limitPenalty)

	// LimitAll decides by several of them: limit_all.lua.
	LimitAll = New(limitPrelude + limitClaim + limitSliding + limitFixed + limitLevel + limitBucket + limitAll)

	// They change what a Take has spent: limit_settle_sliding.lua and so on.
	SettleSliding = New(limitPrelude + limitClaim + limitSettleSliding)
	SettleFixed   = New(limitPrelude + limitSettleFixed)
	SettleBucket  = New(limitPrelude + limitLevel + limitSettleBucket)

	// The concurrency limit.
	LimitAcquire = New(limitPrelude + limitAcquire) // limit_acquire.lua
	LimitRenew   = New(limitPrelude + limitRenew)   // limit_renew.lua
	LimitRelease = New(limitRelease)                // limit_release.lua

	LimitReset = New(limitReset) // limit_reset.lua
)

// limitPrelude stands before every limiter script. A local is found faster than
// redis.call, and the clock is read only by those that need it.
const limitPrelude = `local call = redis.call
local function clock()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
`

var (
	//go:embed limit_sliding.lua
	limitSliding string
	//go:embed limit_claim.lua
	limitClaim string
	//go:embed limit_fixed.lua
	limitFixed string
	//go:embed limit_level.lua
	limitLevel string
	//go:embed limit_bucket.lua
	limitBucket string
	//go:embed limit_take.lua
	limitTake string
	//go:embed limit_all.lua
	limitAll string
	//go:embed limit_settle_sliding.lua
	limitSettleSliding string
	//go:embed limit_settle_fixed.lua
	limitSettleFixed string
	//go:embed limit_settle_bucket.lua
	limitSettleBucket string
	//go:embed limit_penalty.lua
	limitPenalty string
	//go:embed limit_acquire.lua
	limitAcquire string
	//go:embed limit_renew.lua
	limitRenew string
	//go:embed limit_release.lua
	limitRelease string
	//go:embed limit_reset.lua
	limitReset string
)
