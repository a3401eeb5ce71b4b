-- Ends sessions of a user. All but the first of the modes raise the fence: a login whose
-- request was loaded before is refused, however late it comes.
--
-- KEYS[1]  the user's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  "one"     that of the handle
--          "all"     all
--          "others"  all but that of the handle, which must stand
-- ARGV[2]  handle, 9 bytes
-- ARGV[3]  Grace, µs
-- ARGV[4]  reason, at most 32 bytes
-- ARGV[5]  mark of the fence, 8 bytes; with that of the one that stands, the fence from
--          before is kept beside it, as the first time
-- ARGV[6]  how long a fence stands, µs
-- ARGV[7]  what the caller adds to events: see parts/_happens.lua
--
-- Reply: {now, 1, "", {field, record, …}}, what was ended, each record up to the end of the
-- owner's box; {now, 5, ""}, nothing was ended: no session of the handle stands. now is
-- Redis's time in µs.
local call, key, mode, told = redis.call, KEYS[1], ARGV[1], ARGV[7]
-- include _pack.lua
local last = 0
-- include _bury.lua
-- include _cut.lua
-- include _happens.lua
-- include _each.lua

local grace = tonumber(ARGV[3])
local new, stands, ended, fields, doomed, heard = call('HLEN', key) == 0, false, {}, {}, {}, {}
for f, r in each() do
  if r:byte(1) == 1 and #r >= 53 then
    local its = r:sub(15, 23) == ARGV[2]
    stands = stands or its and times('>I7', r, 45) > now
    if its == (mode == 'one') or mode == 'all' then
      fields[#fields + 1], doomed[#doomed + 1] = f, r
    end
  end
end
if mode ~= 'all' and not stands then
  return {now, 5, ''}
end
for i, r in ipairs(doomed) do
  local f, reason = fields[i], ''
  if times('>I7', r, 45) > now then -- or it is over, until the clock is set back
    ended[#ended + 1] = f
    ended[#ended + 1] = cut(r)
    reason = ARGV[4]
    if not heard[r:sub(15, 23)] then -- while it changes its ID it has two places
      heard[r:sub(15, 23)] = true
      happens(5, f, r, reason)
    end
  end
  local till = reason == '' and 0 or times('>I7', r, 31) -- a reason stays for as long as the session would have
  bury(f, r, grace, till, reason, none)
end
if mode ~= 'one' then
  local fence, at, before, till = call('HGET', key, 'f'), now, ('\0'):rep(15), now + ARGV[6]
  if fence and #fence == 37 and times('>I7', fence, 8) > now then
    till = math.max(till, (times('>I7', fence, 8)))
    at = math.max(now, times('>I7', fence, 1) + 1) -- it always grows
    before = fence:sub(15, 22) == ARGV[5] and fence:sub(23) or fence:sub(1, 7) .. fence:sub(15, 22)
  end
  call('HDEL', key, 'v') -- deletes nothing; after a deletion a full Redis lets the script write
  call('HSET', key, 'f', pack('>I7I7', at, till) .. ARGV[5] .. before)
  last = math.max(last, till)
end
-- include _expire.lua
return done({now, 1, '', ended})
