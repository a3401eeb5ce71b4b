-- Decides about many keys, each by the token bucket as bucket.lua does for one.
--
-- include _many.lua
-- include _now.lua
local function decide(key, n, now, dry)
  local patience = 0
  -- include _bucket.lua
end
-- include _each.lua
