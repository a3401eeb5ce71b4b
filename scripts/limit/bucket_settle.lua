-- Made of parts/bucket_settle.lua. Change it there, then: go test ./scripts -update
--
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
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
-- The level is read into raw (false if there is none), whole and part: now if that is
-- later. stored is what stands there if that is a plain number, and kept the end of the ten
-- seconds of the clock that it lies in: before that the key does not expire. lent says that
-- permits have been promised that are not there yet.
local raw, whole, part, lent, stored, kept = call('GET', key), now, 0, nil, nil, 0
if raw then
  stored = tonumber(raw)
  whole = stored
  if not stored then
    whole, part, lent = string.match(raw, '^(%d+):(%d+)(:?l?)$')
    whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part) -- INCRBY fails
  end
  kept = whole - whole % 10000000 + 10000000
  if part >= limit then whole, part = whole + 1, 0 end -- left by another limit
  if not (whole >= now) then whole, part = now, 0 end
end
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
-- The level is written. PX gives it an expiry ttl milliseconds from now: as far as a level
-- can be ahead and ten seconds, and so no earlier than the end of the ten seconds of the
-- clock in which the level lies. Until it gets beyond them it needs no other, and mostly
-- INCRBY is enough, at half the price. Ten are the same for all limits, since several may
-- share a key.
local near, loan = whole < kept, whole > full or whole == full and part > 0
if near and stored and part == 0 and not loan then
  call('INCRBY', key, whole - stored)
else
  local second, micros = (whole - whole % 1000000) / 1000000, whole % 1000000
  local level = string.format((loan and '%d%06d:%.0f:l') or part == 0 and '%d%06d' or '%d%06d:%.0f', second, micros, part)
  if near then call('SET', key, level, 'KEEPTTL') else call('SET', key, level, 'PX', ttl) end
end
return {math.max(1, delta)}
