-- Decides about many keys, each by the fixed window as fixed.lua does for one.
--
-- include _many.lua
-- TIME once is cheaper than PTTL for each key.
local clock = not now and call('TIME')
clock = clock and clock[1] * 1000000 + clock[2]
ttl = ttl + 0 -- not from a string for each key
local function decide(key, n, now, dry)
  -- include _fixed.lua
end
-- include _each.lua
