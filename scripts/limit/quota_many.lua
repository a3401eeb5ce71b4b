-- Made of parts/quota_many.lua. Change it there, then: go test ./scripts -update
--
-- Decides about many keys, each by the quota of a calendar period as quota.lua does for one.
--
-- KEYS     the keys, all different
-- ARGV[1]  limit   of each key: permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, 1 or more
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  and on: for each key, how many requests are decided in their order, default 1
--
-- Reply: for each key the seven numbers of the script for one key, all of them as doubles in
-- one string. If one failed, or without the library struct, an array of these numbers of each
-- key: a failure stands in the place of its key, as a text, and does not concern the others.
-- One that is not the key's (READONLY, OOM) is the whole reply, unless something has been
-- granted.
local call, ARGV, struct = redis.call, ARGV, rawget(_G, 'struct')
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
local function pack(_, ...) return ... end
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
local function decide(key, n, now, dry)
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
  local reset = used > 0 and ends * 1000 - now or 0
  if granted < n then retry = unit > limit and -1 or ends * 1000 - now end
  return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, now, ends, 0)
end
local reply, at, granted, failures = {}, 0, 0, {}
for i = 1, #KEYS do
  local ok, a, b, c, d, e, f, g = pcall(decide, KEYS[i], (ARGV[5 + i] or 1) + 0, now, false)
  if not ok or not g then -- without seven numbers, a is an error
    -- miniredis puts the line in front of an error
    local text = type(a) == 'table' and a.err or string.gsub(tostring(a), '^[^ ]*:%d+: ', '')
    if granted == 0 and not string.find(text, '^WRONGTYPE') and not string.find(text, '^ERR') then
      return redis.error_reply(text .. ' script: it has run')
    end
    failures[i], a, b, c, d, e, f, g = text, 0, 0, 0, 0, 0, 0, 0
  end
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4], reply[at + 5], reply[at + 6], reply[at + 7] = a, b, c, d, e, f, g
  at, granted = at + 7, granted + a
end
if struct and not next(failures) then return struct.pack('>' .. ('d'):rep(at), unpack(reply)) end
local each = {}
for i = 1, #KEYS do
  each[i] = failures[i] or {unpack(reply, 7 * i - 6, 7 * i)}
end
return each
