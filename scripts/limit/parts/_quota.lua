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
