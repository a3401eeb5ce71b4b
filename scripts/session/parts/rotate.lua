-- Gives a session a new ID if its record is still the one that the caller knows. The
-- old ID leads to the new one until its Grace ends.
--
-- KEYS[1]  the owner's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  field of the old ID
-- ARGV[2]  revision that the caller knows, 8 bytes
-- ARGV[3]  field of the new ID
-- ARGV[4]  head, 23 bytes
-- ARGV[5]  boxes
-- ARGV[6]  how long what stands at the old ID may be unused, µs in seven bytes, since it may be of
--          another kind; and life, 22 bytes: see README.md
-- ARGV[7]  values in a field of their own, or ""
-- ARGV[8]  Grace, µs
-- ARGV[9]  where the old ID leads to, sealed
-- ARGV[10] what the caller adds to events: see parts/_happens.lua
--
-- Reply: now, rotated; -now, rotated, and a sweep is due; {now, 0, there}, not rotated:
-- there stands at the old ID, "" for nothing. now is Redis's time in µs.
local call, key, old, new, told = redis.call, KEYS[1], ARGV[1], ARGV[3], ARGV[10]
-- include _pack.lua

local there = call('HGET', key, old)
if not there then
  return {now, 0, ''}
end
local format, flags = there:byte(1, 2)
if format ~= 1 or #there < 53 or there:sub(7, 14) ~= ARGV[2] then
  return {now, 0, there}
end
local born, deadline, touched, ends = times('>I7I7I7I7', there, 24)
local noted, through = there:byte(52, 53)
local limit, lifetime, idle = times('>I7I7I7', ARGV[6], 1)
local copied = flags % 16 >= 8
if not copied then
  deadline = born + lifetime
end
-- include _over.lua
-- include _happens.lua
if deadline <= now or over then
  return {now, 0, ''}
end
local next = deadline
touched = math.max(touched, now)
if idle > 0 then
  next = math.min(touched + idle, deadline)
end
ends = math.max(ends, next)
local record = ARGV[4] .. pack('>I7I7I7I7', born, deadline, touched, ends) .. ARGV[6]:sub(29) .. '\1' .. old .. ARGV[5]
-- A copy's first ID keeps its place until the legacy session ends, so that it is not
-- copied again.
local grace = now + ARGV[8]
local leads, lived = grace, '\1'
if copied and through == 0 and deadline > grace then
  leads, lived = deadline, '\3'
end
call('HSET', key, new, record, old, '\2' .. lived .. pack('>I7I7', grace, leads) .. there:sub(15, 23) .. new .. ARGV[9])
happens(4, new, record, '')
if flags >= 16 then
  call('HDEL', key, 'v' .. old)
end
if ARGV[7] ~= '' then
  call('HSET', key, 'v' .. new, ARGV[7])
end
if through == 1 then -- the ID before it: its tombstone goes when its time is over
  local tombstone = call('HGET', key, there:sub(54, 69))
  if tombstone and #tombstone >= 41 and times('>I7', tombstone, 10) <= now then
    call('HDEL', key, there:sub(54, 69))
  end
end
if leads > ends then
  ends = leads
end
local ms = (ends - ends % 1000) / 1000 + 1
call('PEXPIREAT', key, ms, 'GT')
-- include _due.lua
return done(due and -now or now)
