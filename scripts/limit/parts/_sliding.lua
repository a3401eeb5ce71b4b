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
  -- include _claim.lua
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
