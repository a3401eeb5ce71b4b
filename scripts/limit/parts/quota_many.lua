-- Decides about many keys, each by the quota of a calendar period as quota.lua does for one.
--
-- include _many.lua
-- include _now.lua
local function decide(key, n, now, dry)
  -- include _quota.lua
end
-- include _each.lua
