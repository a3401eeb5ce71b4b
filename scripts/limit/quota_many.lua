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
  if brief then return granted, now, used - granted * cost, ends, 0 end
  local reset = used > 0 and ends * 1000 - now or 0
  if granted < n then retry = unit > limit and -1 or ends * 1000 - now end
  return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, now, ends, 0)
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
