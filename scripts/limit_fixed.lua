-- fixed decides by a counter that expires with its window. The first hit sets
-- the expiry, later ones leave it alone. Arguments and results are documented in
-- limit_take.lua. window is not used: ttl is the window in milliseconds less one
-- (but at least 1), as Redis keeps a key through the millisecond of its expiry.
--
-- A hit calls GET, PEXPIRETIME, PTTL and INCRBY; the first of a window GET, SET
-- and PEXPIRETIME. A denial writes nothing, except that a counter without an
-- expiry (PERSIST, a restore), or with one further off than a window (the clock
-- stepped back, the window was longer), gets a window: it would deny for too long.
--
-- The mark is the last millisecond of the window, the same for all its hits.
local function fixed(key, limit, window, ttl, cost, n, now, dry)
  local raw, at, ends, retry = call('GET', key), now, nil, 0
  if raw then
    ends = call('PEXPIRETIME', key)
    at = now or (ends - call('PTTL', key)) * 1000
    if ends < 0 or ends > at / 1000 + ttl then
      at = now or clock()
      ends = math.floor(at / 1000) + ttl
      call('PEXPIREAT', key, ends)
    elseif now and (ends + 1) * 1000 <= now then
      raw, ends = false, nil -- a test's now is past the expiry, Redis's is not
    end
  end
  local used, unit, granted = raw and tonumber(raw) or 0, cost, n
  if cost == 0 then unit, dry = 1, true end
  if dry or used + unit * n > limit or used ~= used then
    granted = math.max(0, math.min(n, math.floor((limit - used) / unit)))
    if cost == 0 and granted > 0 then granted = n end
    if raw and not string.find(raw, '^-?%d+$') then
      call('INCRBY', key, 0) -- fails, as a hit would: this is no counter
    end
  end
  if granted > 0 and not dry then
    used = used + granted * cost
    if raw and granted * cost == 1 then
      call('INCR', key) -- a number for INCRBY would first become a string
    elseif raw then
      call('INCRBY', key, granted * cost)
    else
      if now then call('SET', key, used, 'PXAT', math.floor(now / 1000) + ttl)
      else call('SET', key, used, 'PX', ttl) end
      ends = call('PEXPIRETIME', key)
      at = now or (ends - ttl) * 1000
    end
  end
  at = at or clock()
  local reset, left = ends and (ends + 1) * 1000 - at or 0, limit - used
  if granted < n then retry = unit > limit and -1 or reset end
  return granted, left > 0 and left or 0, retry, reset, at, ends or 0, 0
end
