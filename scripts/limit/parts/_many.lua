-- KEYS     the keys, all different
-- ARGV[1]  limit   of each key: permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, 1 or more
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  and on: for each key, how many requests are decided in their order, default 1
--
-- Reply: for each key the seven numbers of the script for one key, all of them as doubles in
-- one string. If one failed, or without the library struct, an array of these numbers of each
-- key: a failure stands in the place of its key, as a text, and does not concern the others.
-- One that is not the key's (READONLY, OOM) is the whole reply, unless something has been
-- granted.
local call, ARGV, struct = redis.call, ARGV, rawget(_G, 'struct')
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
local function pack(_, ...) return ... end
