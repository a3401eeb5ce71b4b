-- take decides n equal requests of one key, in their order.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  window  in microseconds
-- ARGV[3]  ttl     of what is written, in milliseconds
-- ARGV[4]  cost    permits per request, default 1; 0: decide as for 1, spend nothing
-- ARGV[5]  n       requests, default 1
-- ARGV[6]  now     in microseconds; tests only, default TIME
--
-- Reply, all integers, times in microseconds:
-- {granted of n, permits remaining, retry after (0: all were granted, -1: never),
-- reset after, now, mark, second mark}. The marks identify what was granted.
--
-- limit_sliding.lua, limit_fixed.lua or limit_bucket.lua follows. In dry it only looks.
local call = redis.call
local key, limit, window, ttl = KEYS[1], ARGV[1] + 0, ARGV[2] + 0, ARGV[3]
local cost, n, now, dry = (ARGV[4] or 1) + 0, (ARGV[5] or 1) + 0, ARGV[6] and ARGV[6] + 0, false
