-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, default 1; 0: decide as for 1, spend nothing
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  n       requests, decided in their order, default 1
--
-- Reply: seven whole numbers, times in microseconds: granted of n, permits remaining,
-- retry after (0: all were granted, -1: never), reset after, now, mark, second mark. The
-- marks identify what was granted. They come as doubles, big-endian, in a string of 56
-- bytes: an array costs twice as much. Without the library struct, which Redis has had
-- since 2.6, they come as an array.
local call, ARGV, struct, brief = redis.call, ARGV, rawget(_G, 'struct'), false
local pack = struct and struct.pack or function(_, ...) return {...} end
local key, limit, ttl, window = KEYS[1], ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now, n, dry, clock = (ARGV[4] or 1) + 0, tonumber(ARGV[5]), (ARGV[6] or 1) + 0, false, nil
