-- Changes what a Take of a token bucket has spent.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     in milliseconds, as bucket.lua takes it
-- ARGV[3]  delta   permits to spend besides (> 0) or to give back (< 0)
-- ARGV[4]  mark    of the Take: whole, of the level it led to
-- ARGV[5]  part    of that level
-- ARGV[6]  window  in microseconds
-- ARGV[7]  now     in microseconds; tests only, otherwise absent: TIME
--
-- Reply: {permits spent, or 1 if anything was given back}. Spending is not denied; it
-- empties the bucket at most. What the bucket has been refilled with since the Take is not
-- given back again: permits are refilled in the order of their Takes.
local call, key, limit, ttl, window = redis.call, KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[6])
local delta, now = tonumber(ARGV[3]), tonumber(ARGV[7])
-- include _now.lua
-- include _level.lua
local permits, step, full = math.abs(delta), math.floor(window / limit), now + window
local byPart = permits * (window - step * limit)
local by = permits * step + math.floor(byPart / limit)
byPart = byPart % limit
if delta > 0 then
  if whole >= full then return {0} end
  part = part + byPart
  whole, part = whole + by + math.floor(part / limit), part % limit
  if whole >= full then whole, part = full, 0 end
else
  local rest, restPart = ARGV[4] - now, tonumber(ARGV[5])
  if rest < by or rest == by and restPart < byPart then by, byPart = rest, restPart end
  if not raw or by < 0 then return {0} end
  whole, part = whole - by, part - byPart
  if part < 0 then whole, part = whole - 1, part + limit end
  if whole < now then whole, part = now, 0 end
end
-- include _fill.lua
return {math.max(1, delta)}
