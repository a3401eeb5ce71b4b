-- Gives a session a second ID, which takes the place of the first when the response is
-- sent: see retire.lua. Its times are those of the session.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field of the second ID
-- ARGV[2]  head, 23 bytes
-- ARGV[3]  boxes
-- ARGV[4]  how long it stands if it does not take the place, µs
-- ARGV[5]  values in a field of their own, or ""
-- ARGV[6]  field of the first ID
-- ARGV[7]  revision that the caller knows, 8 bytes
-- ARGV[8]  how long what stands at the first ID may be unused, µs; 0: its lifetime decides
--
-- Reply: now, done; -now, done, and a sweep is due; {now, 0, there}, not done: there stands
-- at the first ID, "" for nothing. now is Redis's time in µs.
local call, key = redis.call, KEYS[1]
-- include _pack.lua

local there = call('HGET', key, ARGV[6])
if not there then
  return {now, 0, ''}
end
if there:byte(1) ~= 1 or #there < 53 or there:sub(7, 14) ~= ARGV[7] then
  return {now, 0, there}
end
local born, deadline, touched, ends = times('>I7I7I7I7', there, 24)
local noted, limit = there:byte(52), tonumber(ARGV[8])
-- include _over.lua
if over then
  return {now, 0, ''}
end
ends = math.min(deadline, now + ARGV[4])
call('HSET', key, ARGV[1], ARGV[2] .. pack('>I7I7I7I7', born, deadline, touched, ends) .. string.char(noted) .. '\0' .. ARGV[3])
if ARGV[5] ~= '' then
  call('HSET', key, 'v' .. ARGV[1], ARGV[5])
end
local ms = (ends - ends % 1000) / 1000 + 1
call('PEXPIREAT', key, ms, 'GT')
-- include _due.lua
return due and -now or now
