-- Reads a record and its large values at one moment, for a reader who got them of two
-- writes.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field
--
-- Reply: {now, 0, there, values}; there stands at the field, "" for nothing, and so with
-- the values in a field of their own. now is Redis's time in µs.
local call, key, field = redis.call, KEYS[1], ARGV[1]
local clock = call('TIME')
return {clock[1] * 1000000 + clock[2], 0, call('HGET', key, field) or '', call('HGET', key, 'v' .. field) or ''}
