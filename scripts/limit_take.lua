-- take decides n equal requests of one key, in their order.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, default 1; 0: decide as for 1, spend nothing
-- ARGV[5]  n       requests, default 1
-- ARGV[6]  now     in microseconds; tests only, default TIME
--
-- Reply, all whole numbers, times in microseconds: granted of n, permits remaining,
-- retry after (0: all were granted, -1: never), reset after, now, mark, second mark.
-- The marks identify what was granted.
--
-- They come as seven doubles, big-endian, in a string of 56 bytes: an array costs
-- twice as much. Where there is no library struct, which Redis has had since 2.6,
-- they come as an array.
--
-- limit_sliding.lua, limit_fixed.lua or limit_bucket.lua follows. In dry it only looks.
--
-- What it costs Redis 7.0.15, in thousands of instructions (callgrind, pipelines of 16,
-- the network included; a call of a script that does nothing takes 12.1):
--   an argument 1.3; arithmetic on one, as it is a string, 0.7
--   a call: TIME 8.1 with its two numbers, GET 5, SET with PX 12, KEEPTTL in its place 7,
--   INCR, INCRBY or PTTL 5 to 6
--   a number of 16 digits as a string: '%.0f' 5.2, '%d%06d' of its two parts 3.3
--   seven numbers as an array 8.2, packed 3.9
--   a Lua function around the algorithm, and its arguments and results, 3.7
-- In all: fixed 38.1 (as a function that called GET before INCR, with an array: 51.9),
-- bucket 49.0 (58.8 by SET with PX, as whenever a permit takes ten seconds or more; as a
-- function with an array 69.2), sliding 61.1 (73.0). In time: go run . scripts, in
-- internal/dev/bench.
local call, ARGV, struct = redis.call, ARGV, rawget(_G, 'struct')
local pack = struct and struct.pack or function(_, ...) return {...} end
local key, limit, ttl, window = KEYS[1], ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, n, now, dry = (ARGV[4] or 1) + 0, (ARGV[5] or 1) + 0, ARGV[6] and ARGV[6] + 0, false
