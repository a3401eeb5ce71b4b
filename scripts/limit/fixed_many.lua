-- Made of parts/fixed_many.lua. Change it there, then: go test ./scripts -update
--
-- Decides about many keys, each by the fixed window as fixed.lua does for one.
--
-- KEYS     the keys, all different
-- ARGV[1]  limit   of each key: permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, 1 or more
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  and on: for each key, how many requests are decided in their order, default 1
--
-- Reply: for each key four numbers, which cost less than the verdict that the client makes of
-- them: now; permits used before this; end of the window or period, or of a sliding window the
-- mark or, if nothing was granted, reset after; of a sliding window retry after. Of a bucket,
-- now and the level before. They come as doubles, big-endian, in one string. If a key failed, or
-- without the library struct, they come as an array of each key's numbers: a failure stands in
-- the place of its key, as a text, and does not concern the others. One that is not the key's
-- (READONLY, OOM) is the whole reply, unless something has been granted.
local call, ARGV, struct, brief = redis.call, ARGV, rawget(_G, 'struct'), true
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
-- TIME once is cheaper than PTTL for each key.
local clock = not now and call('TIME')
clock = clock and clock[1] * 1000000 + clock[2]
ttl = ttl + 0 -- not from a string for each key
local function decide(key, n, now, dry)
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
end
local reply, at, granted, failures = {}, 0, 0, {}
for i = 1, #KEYS do
  local ok, g, a, b, c, d = pcall(decide, KEYS[i], (ARGV[5 + i] or 1) + 0, now, false)
  if not ok or not d then -- then g is an error
    -- miniredis puts the line in front of an error
    local text = type(g) == 'table' and g.err or string.gsub(tostring(g), '^[^ ]*:%d+: ', '')
    if granted == 0 and not string.find(text, '^WRONGTYPE') and not string.find(text, '^ERR') then
      return redis.error_reply(text .. ' script: it has run')
    end
    failures[i], g, a, b, c, d = text, 0, 0, 0, 0, 0
  end
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = a, b, c, d
  at, granted = at + 4, granted + g
end
if struct and not next(failures) then return struct.pack('>' .. ('d'):rep(at), unpack(reply)) end
local each = {}
for i = 1, #KEYS do
  each[i] = failures[i] or {unpack(reply, 4 * i - 3, 4 * i)}
end
return each
