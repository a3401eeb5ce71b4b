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
  -- include _now.lua
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
