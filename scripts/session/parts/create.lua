-- Creates the record of a visitor's session, of the copy of a legacy one without a user, or of a Store.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field
-- ARGV[2]  head, 23 bytes
-- ARGV[3]  boxes
-- ARGV[4]  life, 22 bytes: see README.md
-- ARGV[5]  deadline that the record keeps, µs since 1970; 0: its lifetime decides
-- ARGV[6]  values in a field of their own, or ""
-- ARGV[7]  "1": overwrite what is there
--
-- Reply: now, created; -now, created, and a sweep is due; {now, 0, there}, not created:
-- there stands at the field, or "" if the deadline has passed. now is Redis's time in µs.
local call, key, field, life, keeps = redis.call, KEYS[1], ARGV[1], ARGV[4], tonumber(ARGV[5])
-- include _pack.lua
-- include _taken.lua

-- include _record.lua
local record = ARGV[2] .. when .. '\0' .. ARGV[3]
if keeps > 0 and ARGV[7] ~= '1' then -- a copy, of which is to be known also in a full Redis what is in its way
  local there = call('HGET', key, field)
  if there and taken(there) then
    return {now, 0, there}
  end
end
local fresh = call('HSETNX', key, field, record) == 1
if not fresh then
  local there = call('HGET', key, field)
  if ARGV[7] ~= '1' and taken(there) then
    return {now, 0, there}
  end
  call('HSET', key, field, record)
end
-- include _due.lua
if ARGV[6] ~= '' then
  call('HSET', key, 'v' .. field, ARGV[6])
elseif not fresh then
  call('HDEL', key, 'v' .. field)
end
local last, new = keeps > 0 and deadline or ends, n == 1
-- include _expire.lua
return due and -now or now
