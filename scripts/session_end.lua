-- Ends a session.
--
-- KEYS[1]  the record
-- ARGV[1]  a marker to leave in its place, or ""
-- ARGV[2]  the marker's time to live, milliseconds
--
-- Reply: 1, ended; 0, there was nothing to end; or the record of a rotated ID,
-- left as it is: the caller ends the session that it leads to.
local format = redis.call('GETRANGE', KEYS[1], 0, 0)
if format == '\2' then
  return redis.call('GET', KEYS[1])
elseif ARGV[1] ~= '' and (format == '\1' or format == '') then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
elseif format == '\1' then
  return redis.call('DEL', KEYS[1])
end
return 0
