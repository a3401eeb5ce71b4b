-- Made of parts/quota.lua. Change it there, then: go test ./scripts -update
--
-- Decides by the quota of a calendar period: a counter that expires with the period.
--
-- ttl is the ends of four periods in a row, in milliseconds since 1970 and with a comma
-- after each: the first that Redis's clock has not reached is that of the period of now.
-- So the server that asks knows the calendar, and Redis the time: their clocks may be a
-- period apart. window is not used.
--
-- It calls TIME, PEXPIRETIME and INCRBY, and PEXPIREAT where the key does not expire with
-- the period. A denial gives back what it has counted.
--
-- The mark is the end of the period in milliseconds.
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
local spend, total, unit, granted, retry = not dry and cost > 0 and cost <= limit, cost * n, cost, n, 0
if cost == 0 then unit = 1 end
local ends
for boundary in string.gmatch(ttl, '%d+') do
  if not ends and boundary * 1000 > now then ends = tonumber(boundary) end
end
if not ends then return redis.error_reply('ERR the clocks of this server and of Redis are more than a period apart') end
local expires, used = call('PEXPIRETIME', key), nil
local over = expires >= 0 and (expires + 1) * 1000 <= now -- by a test's clock
if spend then
  if over then call('DEL', key) end
  used = call('INCRBY', key, total)
  if expires ~= ends - 1 then -- Redis keeps a key through the millisecond of its expiry
    call('PEXPIREAT', key, string.format('%.0f', ends - 1))
  end
else
  used = not over and call('GET', key) or '0'
  used = tonumber(used) or call('INCRBY', key, 0) -- which fails: this is no counter
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
if brief then return granted, now, used - granted * cost, ends, 0 end
local reset = used > 0 and ends * 1000 - now or 0
if granted < n then retry = unit > limit and -1 or ends * 1000 - now end
return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, now, ends, 0)
