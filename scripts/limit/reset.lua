-- Forgets what a limiter has counted.
--
-- KEYS  the keys, all of one slot
--
-- Reply: {how many of them there were}
return {redis.call('UNLINK', unpack(KEYS))}
