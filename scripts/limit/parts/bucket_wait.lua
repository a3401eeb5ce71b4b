-- Takes permits of a token bucket, see bucket.lua, for one who waits until they are there.
--
-- KEYS[1]  the key
-- ARGV[1]  limit     permits per window
-- ARGV[2]  ttl       of what is written, in milliseconds: two windows and ten seconds
-- ARGV[3]  window    in microseconds
-- ARGV[4]  cost      permits
-- ARGV[5]  patience  how long to wait for them, in microseconds, at most a window
-- ARGV[6]  now       in microseconds; tests only, otherwise absent: TIME
--
-- Reply: as of bucket.lua, in an array, but that retry is how long to wait for the permits
-- if they were granted. The level is then up to that much more than a window ahead.
local call, brief = redis.call, false
local function pack(_, ...) return {...} end
local key, limit, ttl, window, cost, n = KEYS[1], ARGV[1] + 0, ARGV[2], ARGV[3], ARGV[4] + 0, 1
local patience, now, dry = math.min(ARGV[5], ARGV[3]), ARGV[6] and ARGV[6] + 0, false
-- include _now.lua
-- include _bucket.lua
