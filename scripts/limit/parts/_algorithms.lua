local call, clock, brief = redis.call, nil, false
local function pack(_, ...) return {...} end
local algorithms = {
  sliding = function(key, limit, ttl, window, cost, n, now, dry)
    -- include _now.lua
    local edge, score
    -- include _sliding.lua
  end,
  fixed = function(key, limit, ttl, window, cost, n, now, dry)
    -- include _fixed.lua
  end,
  bucket = function(key, limit, ttl, window, cost, n, now, dry)
    local patience = 0
    -- include _now.lua
    -- include _bucket.lua
  end,
  quota = function(key, limit, ttl, window, cost, n, now, dry)
    -- include _now.lua
    -- include _quota.lua
  end,
}
