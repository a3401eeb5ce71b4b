-- KEYS     the keys, all different
-- ARGV[1]  limit   of each key: permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, 1 or more
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  and on: for each key, how many requests are decided in their order, default 1
--
-- Reply: for each key four numbers, which cost less than the verdict that the client makes of
-- them: now; permits used before this; end of the window or period, or of a sliding window the
-- mark or, if nothing was granted, reset after; of a sliding window retry after. Of a bucket,
-- now and the level before. They come as doubles, big-endian, in one string. If a key failed, or
-- without the library struct, they come as an array of each key's numbers: a failure stands in
-- the place of its key, as a text, and does not concern the others. One that is not the key's
-- (READONLY, OOM) is the whole reply, unless something has been granted.
local call, ARGV, struct, brief = redis.call, ARGV, rawget(_G, 'struct'), true
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
