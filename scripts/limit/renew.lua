-- Made of parts/renew.lua. Change it there, then: go test ./scripts -update
--
-- Renews a lease of a concurrency limit. One that has ended is not brought back:
-- another may have its place.
--
-- KEYS[1]  the key
-- ARGV[1]  lease   its length in microseconds
-- ARGV[2]  ttl     in milliseconds, at least that length
-- ARGV[3]  id      of the lease
-- ARGV[4]  now     in microseconds; tests only, otherwise absent: TIME
--
-- Reply: {1 if renewed, 0 if there is no such lease}
local call, now = redis.call, tonumber(ARGV[4])
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
if not call('ZSCORE', KEYS[1], ARGV[3]) then return {0} end
call('PEXPIRE', KEYS[1], ARGV[2]) -- first, as a full Redis permits it: it then lets the script write
call('ZADD', KEYS[1], 'XX', now + ARGV[1], ARGV[3])
return {1}
