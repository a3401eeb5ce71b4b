-- KEYS     the keys, all different
-- ARGV[1]  limit   of each key: permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, 1 or more
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  and on: for each key, how many requests are decided in their order, default 1
--
-- Reply: for each key what the script for one key replies, all of them in one string; in an
-- array, if any of them failed, or without the library struct. A failure of one key stands
-- in its place, with a minus in front, and does not concern the others. A failure that is
-- not the key's (READONLY, OOM) is the whole reply, unless something has been granted.
local call, ARGV, struct = redis.call, ARGV, rawget(_G, 'struct')
local pack = struct and struct.pack or function(_, ...) return {...} end
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
