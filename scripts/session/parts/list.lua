-- Lists the sessions of a user.
--
-- KEYS[1]  the user's hash
--
-- Reply: {now, 1, "", {field, record, …}}, each record up to the end of the owner's box. now
-- is Redis's time in µs.
local call, key = redis.call, KEYS[1]
-- include _times.lua
-- include _cut.lua
-- include _each.lua

local list = {}
for f, r in each() do
  if r:byte(1) == 1 and #r >= 53 and times('>I7', r, 45) > now then
    list[#list + 1] = f
    list[#list + 1] = cut(r)
  end
end
return {now, 1, '', list}
