-- Forgets what a limiter has counted.
--
-- KEYS[1]  the key
--
-- Reply: {1 if there was something, else 0}
return {redis.call('DEL', KEYS[1])}
