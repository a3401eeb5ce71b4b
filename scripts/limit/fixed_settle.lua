-- Changes what a Take of a fixed window has spent.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   not used
-- ARGV[2]  ttl     in milliseconds, as fixed.lua takes it
-- ARGV[3]  delta   permits to spend besides (> 0) or to give back (< 0)
-- ARGV[4]  mark    of the Take: the last millisecond of its window
-- ARGV[5]  part    not used
-- ARGV[6]  window  not used
-- ARGV[7]  now     in microseconds; tests only, otherwise absent
--
-- Reply: {permits given back or spent}. Spending is not denied, and counts in the window of
-- now. Giving back counts in the window of the Take or not at all. A move between nodes of a
-- cluster makes a window's end somewhat later; another window ends a whole window later.
local call, key, ttl, delta, now = redis.call, KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[7])
local ends = call('PEXPIRETIME', key)
local open = ends >= 0 and not (now and (ends + 1) * 1000 <= now)
if delta > 0 and open then
  call('INCRBY', key, delta)
  return {delta}
elseif delta > 0 then
  if now then
    call('SET', key, delta, 'PXAT', string.format('%.0f', math.floor(now / 1000) + ttl))
  else
    call('SET', key, delta, 'PX', ttl)
  end
  return {delta}
end
if not open or math.abs(ends - ARGV[4]) > ttl / 2 then return {0} end
local back = math.min(-delta, tonumber(call('GET', key)))
call('INCRBY', key, -back)
return {back}
