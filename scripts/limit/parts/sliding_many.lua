-- Decides about many keys, each by the sliding window as sliding.lua does for one.
--
-- include _many.lua
-- include _now.lua
local edge, score -- the same for all
local function decide(key, n, now, dry)
  -- include _sliding.lua
end
-- include _each.lua
