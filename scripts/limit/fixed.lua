-- Made of parts/fixed.lua. Change it there, then: go test ./scripts -update
--
-- Decides by the fixed window: a counter that expires with its window. The first hit sets
-- the expiry, later ones leave it alone. ttl is the window in milliseconds less one (but
-- at least 1), as Redis keeps a key through the millisecond of its expiry; window is not
-- used.
--
-- A hit calls INCR, PEXPIRETIME and PTTL. A denial gives back what it has counted, and so
-- leaves the key as it was, except that a counter without an expiry (PERSIST, a restore),
-- or with one further off than a window (the clock stepped back), gets a window: it would
-- deny for too long.
--
-- The mark is the last millisecond of the window, the same for all its hits.
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
local spend, total, unit, granted, retry = not dry and cost > 0 and cost <= limit, cost * n, cost, n, 0
local used, ends, at, over
if now then -- a test's clock may have passed an expiry that Redis's has not
  ends = call('PEXPIRETIME', key)
  over = ends >= 0 and (ends + 1) * 1000 <= now
  if over and spend then call('DEL', key) end
end
if not spend then
  if cost == 0 then unit = 1 end
  used = not over and call('GET', key)
  if used then -- what is no counter fails, as a hit would
    used = string.find(used, '^-?%d+$') and used + 0 or call('INCRBY', key, 0)
  end
elseif total == 1 then
  used = call('INCR', key) -- a number for INCRBY would first become a string
else
  used = call('INCRBY', key, total)
end
if used then
  ends = call('PEXPIRETIME', key)
  at = now or clock or ends < 0 and 0 or (ends - call('PTTL', key)) * 1000
  if ends < 0 or ends > at / 1000 + ttl then
    if now then
      call('PEXPIREAT', key, string.format('%.0f', math.floor(now / 1000) + ttl))
    else
      call('PEXPIRE', key, ttl)
    end
    ends = call('PEXPIRETIME', key)
    at = now or clock or (ends - ttl) * 1000
  end
else
  local time = not now and call('TIME')
  if time then now = time[1] * 1000000 + time[2] end
  used, at, ends = 0, now, 0
end
if not spend or used > limit then
  if spend then used = used - total end
  granted = math.max(0, math.min(n, math.floor((limit - used) / unit)))
  if spend then
    call('INCRBY', key, granted * cost - total)
    used = used + granted * cost
  elseif cost == 0 and granted > 0 then
    granted = n
  end
end
if brief then return granted, at, used - granted * cost, ends, 0 end
local reset = ends > 0 and (ends + 1) * 1000 - at or 0
if granted < n then retry = unit > limit and -1 or reset end
return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, at, ends, 0)
