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
-- Reply: for each key what the script for one key replies, all of them in one string; in an
-- array, if any of them failed, or without the library struct. A failure of one key stands
-- in its place, with a minus in front, and does not concern the others. A failure that is
-- not the key's (READONLY, OOM) is the whole reply, unless something has been granted.
local call, ARGV, struct = redis.call, ARGV, rawget(_G, 'struct')
local pack = struct and struct.pack or function(_, ...) return {...} end
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
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
    at = now or ends < 0 and 0 or (ends - call('PTTL', key)) * 1000
    if ends < 0 or ends > at / 1000 + ttl then
      if now then
        call('PEXPIREAT', key, string.format('%.0f', math.floor(now / 1000) + ttl))
      else
        call('PEXPIRE', key, ttl)
      end
      ends = call('PEXPIRETIME', key)
      at = now or (ends - ttl) * 1000
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
  local reset = ends > 0 and (ends + 1) * 1000 - at or 0
  if granted < n then retry = unit > limit and -1 or reset end
  return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, at, ends, 0)
end
local verdicts, failed = {}, false
local function granted()
  for _, v in ipairs(verdicts) do
    if type(v) == 'table' and v[1] > 0 or type(v) == 'string' and string.byte(v) ~= 0 and string.byte(v) ~= 45 then return true end
  end
end
for i, key in ipairs(KEYS) do
  local ok, verdict = pcall(decide, key, (ARGV[5 + i] or 1) + 0, now, false)
  if ok and type(verdict) == 'table' and verdict.err then ok = false end
  if not ok then
    local text = type(verdict) == 'table' and verdict.err or tostring(verdict)
    if not string.find(text, '^WRONGTYPE') and not string.find(text, '^ERR') and not granted() then
      return redis.error_reply(text .. ' script: it has run')
    end
    verdict, failed = '-' .. text, true
  end
  verdicts[i] = verdict
end
if failed or not struct then return verdicts end
return table.concat(verdicts)
