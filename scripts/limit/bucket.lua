-- Made of parts/bucket.lua. Change it there, then: go test ./scripts -update
--
-- Decides by the token bucket: the generic cell rate algorithm (ITU-T I.371). Its whole
-- state is the level, the time at which the bucket will be full again: whole + part/limit
-- microseconds, part < limit, kept as "whole" or "whole:part". It is at most a window ahead,
-- unless permits have been lent to those who wait: "whole:part:l", at most two.
--
-- One permit moves the level by window/limit, which need not be a whole number. It is
-- counted in step + rest/limit, so all sums are of integers below 2^53 and nothing is ever
-- rounded; but for the first guess of left, which is then put right by exact steps.
--
-- It calls TIME, GET, and INCRBY or SET. A denial writes nothing, except that a level that
-- is too far ahead, left by a clock that stepped back, becomes one window.
--
-- The marks are whole and part after the permits granted.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, default 1; 0: decide as for 1, spend nothing
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  n       requests, decided in their order, default 1
--
-- Reply: seven whole numbers, times in microseconds: granted of n, permits remaining,
-- retry after (0: all were granted, -1: never), reset after, now, mark, second mark. The
-- marks identify what was granted. They come as doubles, big-endian, in a string of 56
-- bytes: an array costs twice as much. Without the library struct, which Redis has had
-- since 2.6, they come as an array.
local call, ARGV, struct, brief = redis.call, ARGV, rawget(_G, 'struct'), false
local pack = struct and struct.pack or function(_, ...) return {...} end
local key, limit, ttl, window = KEYS[1], ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now, n, dry, clock = (ARGV[4] or 1) + 0, tonumber(ARGV[5]), (ARGV[6] or 1) + 0, false, nil
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
local patience = 0
window = window + 0
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
local full, ahead = now + window, false
if (whole > full or whole == full and part > 0) and (lent ~= ':l' or whole - full > window) then
  if string.find(raw, '[^%d:l]') then call('INCRBY', key, 0) end -- fails: this is no level
  whole, part, ahead = full, 0, true
end
local rest, room = window % limit, full + patience - whole -- a permit is step + rest/limit
local step, left = (window - rest) / limit, nil
if rest == 0 and part == 0 then
  left = (room - room % step) / step
else
  left = math.floor(room * limit / window) + 1
  while left > 0 and left * step + math.ceil((part + left * rest) / limit) > room do
    left = left - 1
  end
end
if left < 0 then left = 0 end
local unit, granted, retry = cost > 0 and cost or 1, n, 0
if unit * n > left then
  granted = math.floor(left / unit)
  if cost == 0 and granted > 0 then granted = n end
end
local spent, before, beforePart = dry and 0 or granted * cost, whole, part
if spent > 0 or ahead then
  part = part + spent * rest
  whole = whole + spent * step + (part - part % limit) / limit
  part = part % limit
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
end
if brief then return granted, now, before, beforePart, 0 end
if granted < n then
  retry = unit > limit and -1 or whole + unit * step + math.ceil((part + unit * rest) / limit) - full
elseif patience > 0 then
  retry = math.max(0, whole + (part > 0 and 1 or 0) - full)
end
return pack('>ddddddd', granted, left - spent, retry, whole - now + (part > 0 and 1 or 0), now, whole, part)
