-- Tells the clock of the server that holds a key.
--
-- KEYS[1]  the key
--
-- Reply: now, in µs since 1970
local clock = redis.call('TIME')
return clock[1] * 1000000 + clock[2]
