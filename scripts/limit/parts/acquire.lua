-- Acquires a lease of a concurrency limit: one entry of a sorted set per lease,
-- scored by the microsecond of its end. Ended ones no longer count.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   leases at once
-- ARGV[2]  lease   its length in microseconds
-- ARGV[3]  ttl     in milliseconds, at least that length
-- ARGV[4]  id      of the lease
-- ARGV[5]  now     in microseconds; tests only, otherwise absent: TIME
--
-- Reply: {1 if acquired, leases remaining, microseconds until the last one ends
-- unless it is renewed}. A lease that ends later than one just acquired would was
-- given before the clock stepped back: it is cut when it stands in somebody's way.
local call, key, limit, lease = redis.call, KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local now = tonumber(ARGV[5])
-- include _now.lua
call('ZREMRANGEBYSCORE', key, '-inf', now)
local used, acquired = call('ZCARD', key), 0
if used < limit then
  call('ZADD', key, now + lease, ARGV[4])
  call('PEXPIRE', key, ARGV[3])
  used, acquired = used + 1, 1
else
  for _, id in ipairs(call('ZRANGEBYSCORE', key, now + lease + 1, '+inf')) do
    call('ZADD', key, 'XX', now + lease, id)
  end
end
local last = call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
return {acquired, math.max(0, limit - used), math.max(0, math.min((last or now) - now, lease))}
