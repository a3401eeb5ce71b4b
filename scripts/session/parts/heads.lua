-- Lists what the records and rotated IDs of an owner are sealed under, without what is
-- sealed. What is over is left out: nobody will open it.
--
-- KEYS[1]  the owner's hash
--
-- Reply: the first 45 bytes of each
local call, key = redis.call, KEYS[1]
-- include _times.lua
-- include _each.lua

local heads = {}
if call('TYPE', key).ok ~= 'hash' then
  return heads
end
for _, r in each() do
  local format = r:byte(1)
  local ends = format == 1 and #r >= 53 and times('>I7', r, 45) or format == 2 and #r >= 41 and times('>I7', r, 3)
  if not ends or ends > now then
    heads[#heads + 1] = r:sub(1, 45)
  end
end
return heads
