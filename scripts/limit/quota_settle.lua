-- Made of parts/quota_settle.lua. Change it there, then: go test ./scripts -update
--
-- Changes what a Take of a quota has spent.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   not used
-- ARGV[2]  ttl     ends of periods, as quota.lua takes them
-- ARGV[3]  delta   permits to spend besides (> 0) or to give back (< 0)
-- ARGV[4]  mark    of the Take: the end of its period
-- ARGV[5]  part    not used
-- ARGV[6]  window  not used
-- ARGV[7]  now     in microseconds; tests only, otherwise absent: TIME
--
-- Reply: {permits given back or spent}. Spending is not denied, and counts in the period of
-- now. Giving back counts in the period of the Take or not at all.
local call, key, delta, now = redis.call, KEYS[1], tonumber(ARGV[3]), tonumber(ARGV[7])
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
local ends
for boundary in string.gmatch(ARGV[2], '%d+') do
  if not ends and boundary * 1000 > now then ends = tonumber(boundary) end
end
if not ends then return redis.error_reply('ERR the clocks of this server and of Redis are more than a period apart') end
local expires = call('PEXPIRETIME', key)
local there = expires ~= -2 and not (expires >= 0 and (expires + 1) * 1000 <= now)
if delta > 0 then
  if not there then call('DEL', key) end
  call('INCRBY', key, delta)
  call('PEXPIREAT', key, string.format('%.0f', ends - 1))
  return {delta}
end
if not there or ends ~= tonumber(ARGV[4]) then return {0} end
local back = math.min(-delta, tonumber(call('GET', key)))
call('INCRBY', key, -back)
return {back}
