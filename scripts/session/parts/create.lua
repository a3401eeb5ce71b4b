-- Creates a record: the one way in which a session comes into being.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field
-- ARGV[2]  head, 23 bytes
-- ARGV[3]  boxes
-- ARGV[4]  lifetime, µs
-- ARGV[5]  idle timeout, µs; 0: none
-- ARGV[6]  deadline that the record keeps, µs since 1970; 0: its lifetime decides
-- ARGV[7]  values in a field of their own, or ""
-- ARGV[8]  "1": overwrite what is there
--
-- Reply: now, created; -now, created, and a sweep is due; {now, 0, there}, not created:
-- there stands at the field, or "" if the deadline has passed. now is Redis's time in µs.
local call, key, field = redis.call, KEYS[1], ARGV[1]
-- include _pack.lua

-- include _record.lua
local record = ARGV[2] .. when .. '\0' .. ARGV[3]
local fresh = call('HSETNX', key, field, record) == 1
if not fresh then
  local there = call('HGET', key, field)
  local format, flags = there:byte(1, 2)
  local at = format == 1 and #there >= 53 and flags % 16 >= 8 and 31 or 45 -- a copy keeps its place, and is not made again
  if ARGV[8] ~= '1' and (format == 1 and #there >= 53 and times('>I7', there, at) > now or format ~= 1 and #there >= 41 and times('>I7', there, 10) > now) then
    return {now, 0, there}
  end
  call('HSET', key, field, record)
end
local n = call('HLEN', key)
if ARGV[7] ~= '' then
  call('HSET', key, 'v' .. field, ARGV[7])
elseif not fresh then
  call('HDEL', key, 'v' .. field)
end
local last = ARGV[6] ~= '0' and deadline or ends
local ms = (last - last % 1000) / 1000 + 1
if n == 1 then -- GT does nothing to a key without a TTL
  call('PEXPIREAT', key, ms)
else
  call('PEXPIREAT', key, ms, 'GT')
end
if n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8) then
  return -now
end
return now
