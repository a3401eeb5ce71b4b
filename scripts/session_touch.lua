-- Notes that a session was used, without its payload.
--
-- KEYS[1]  the record
-- ARGV[1]  when it was used: Unix milliseconds, 8 bytes, big-endian
-- ARGV[2]  the time to live from now, milliseconds
--
-- Reply: 1, noted; 0, there is no live record.
if redis.call('GETRANGE', KEYS[1], 0, 0) ~= '\1' then
  return 0
end
redis.call('SETRANGE', KEYS[1], 9, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
