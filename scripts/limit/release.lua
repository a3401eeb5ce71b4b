-- Releases a lease of a concurrency limit.
--
-- KEYS[1]  the key
-- ARGV[1]  id  of the lease
--
-- Reply: {1 if there was such a lease, else 0}
return {redis.call('ZREM', KEYS[1], ARGV[1])}
