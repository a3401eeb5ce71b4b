-- Made of parts/sliding_many.lua. Change it there, then: go test ./scripts -update
--
-- Decides about many keys, each by the sliding window as sliding.lua does for one.
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
local edge, score -- the same for all
local function decide(key, n, now, dry)
  window = window + 0
  local old, unit, card = now - window, cost, call('ZCARD', key)
  if cost == 0 then unit, dry = 1, true end
  local granted, stale, mark = n, 0, 0
  if dry or card + unit * n > limit then
    if card > 0 then stale = call('ZCOUNT', key, '-inf', old) end
    granted = math.max(0, math.min(n, math.floor((limit - card + stale) / unit)))
    if cost == 0 and granted > 0 then granted = n end
  end
  if granted > 0 and not dry then
    local total, trimmed = granted * cost, 0
    if card > 100000 then -- in steps, as Redis serves nobody else meanwhile
      stale = call('ZCOUNT', key, '-inf', old)
      trimmed = stale > 0 and call('ZREMRANGEBYRANK', key, 0, math.min(stale, 100000) - 1) or 0
    elseif card > 0 then
      edge = edge or string.format('%d%06d', (old - old % 1000000) / 1000000, old % 1000000)
      trimmed = call('ZREMRANGEBYSCORE', key, '-inf', edge)
      stale = trimmed
    end
    -- A claim adds total entries of time now. base is the number on which their members are
    -- built: base, base:2, base:3 and so on. It is a number from now on that is no member; one
    -- that is belongs to a claim of the same microsecond. A plain number takes 20 bytes of a
    -- listpack, half of what a random member would. Where base is no member, base:2 is none:
    -- the entries of one claim have one time, so they are trimmed together, and those given
    -- back are taken from the end.
    local base = now
    if score then -- of a key before
    elseif time and #time[2] == 6 then
      score = time[1] .. time[2] -- there as it is
    else
      score = string.format('%d%06d', (now - now % 1000000) / 1000000, now % 1000000)
    end
    local first = score
    while call('ZADD', key, 'NX', score, first) == 0 do
      -- As many steps as there are entries of this time pass most of them at once.
      base = base + (base == now and math.max(1, call('ZCOUNT', key, score, score)) or 1)
      first = string.format('%.0f', base)
    end
    for i = 2, total, 1000 do -- unpack takes less than 8,000
      local args = {}
      for j = i, math.min(i + 999, total) do
        args[#args + 1] = score
        args[#args + 1] = first .. ':' .. j
      end
      call('ZADD', key, unpack(args))
    end
    if trimmed > 0 or card == 0 then call('PEXPIRE', key, ttl) end
    card, stale, mark = card - trimmed + total, stale - trimmed, base
    if granted == n and brief then return n, now, card - stale - total, mark, 0 end
    if granted == n then return pack('>ddddddd', n, limit - card + stale, 0, window, now, mark, 0) end
  end
  local retry, last = 0, tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] or old)
  if last > now then
    for _, member in ipairs(call('ZRANGEBYSCORE', key, now + 1, '+inf', 'LIMIT', 0, 10000)) do
      call('ZADD', key, 'XX', now, member)
    end
  end
  if granted < n and unit > limit then
    retry = -1
  elseif granted < n then
    local rank = card + unit - limit - 1
    retry = math.min(call('ZRANGE', key, rank, rank, 'WITHSCORES')[2], now) - old
  end
  local reset = math.max(0, math.min(last, now) - old)
  if brief then return granted, now, card - stale - granted * cost, granted > 0 and mark or reset, retry end
  return pack('>ddddddd', granted, math.max(0, limit - card + stale), retry, reset, now, mark, 0)
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
