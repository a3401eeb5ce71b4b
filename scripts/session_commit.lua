-- Writes a session record if it is still the one that the caller loaded.
--
-- KEYS[1]  the record
-- ARGV[1]  format byte and revision (9 bytes) of the record that was loaded,
--          or "" if none was: then the record is created
-- ARGV[2]  the new record
-- ARGV[3]  its time to live, milliseconds
--
-- Reply: 1, written; 0, nothing written because the record is gone;
-- or, nothing written, the record that stands there instead.
if ARGV[1] == '' then
  if redis.call('SET', KEYS[1], ARGV[2], 'NX', 'PX', ARGV[3]) then
    return 1
  end
elseif redis.call('GETRANGE', KEYS[1], 0, 8) == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  return 1
end
return redis.call('GET', KEYS[1]) or 0
