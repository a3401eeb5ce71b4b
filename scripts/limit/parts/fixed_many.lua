-- Decides about many keys, each by the fixed window as fixed.lua does for one.
--
-- include _many.lua
local function decide(key, n, now, dry)
  -- include _fixed.lua
end
-- include _each.lua
