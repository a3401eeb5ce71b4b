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
return {decide(KEYS[1], ARGV[1] + 0, ARGV[2] + 0, ARGV[3], ARGV[4] + 0, ARGV[5] + 0,
  ARGV[6] and ARGV[6] + 0, false)}
