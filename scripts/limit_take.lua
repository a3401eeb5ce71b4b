-- take decides n equal requests of one key, in their order.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  window  in microseconds
-- ARGV[3]  ttl     of what is written, in milliseconds
-- ARGV[4]  cost    permits per request; 0: decide as for 1, spend nothing
-- ARGV[5]  n       requests
-- ARGV[6]  now     in microseconds; tests only, default TIME
--
-- Reply, all integers, times in microseconds:
-- {granted of n, permits remaining, retry after (0: all were granted, -1: never),
-- reset after, now, mark, second mark}. The marks identify what was granted.
--
-- Redis's CPU per decision in µs, all of it by INFO cpu (redis-server 7.0.15, 10,000
-- keys, pipelines of 16): a script that does nothing 2.3, fixed 6.6, bucket 8.3,
-- sliding 9.7 with 30 to 60 entries per key; go-redis/redis_rate's GCRA 8.7. Tried
-- without gain in sliding: scores as numbers, 0 for '-inf', no NX.
return {decide(KEYS[1], ARGV[1] + 0, ARGV[2] + 0, ARGV[3], ARGV[4] + 0, ARGV[5] + 0,
  ARGV[6] and ARGV[6] + 0, false)}
