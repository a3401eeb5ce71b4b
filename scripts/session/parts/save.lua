-- Writes a record anew if it is still the one that the caller knows, or notes that it
-- was used, or gives it its own life. Born and a deadline of its own stay. The other times are
-- set if a use is due to be noted, a step after the last, if the end moves by a step or more, or
-- if uses were noted less often before; none goes back.
--
-- KEYS[1]  the owner's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  field
-- ARGV[2]  revision that the caller knows, 8 bytes; for a touch the kind, one byte
-- ARGV[3]  head, 23 bytes; "": a touch, head and boxes stay
-- ARGV[4]  boxes
-- ARGV[5]  how long what stands there may be unused, µs in seven bytes, since it may be of another
--          kind; and life, 22 bytes: see README.md
-- ARGV[6]  values in a field of their own, or ""
-- ARGV[7]  what the caller adds to events: see parts/_happens.lua
--
-- Reply: now, written; {now, 0, there}, not written: there stands at the field, "" for
-- nothing. now is Redis's time in µs.
local call, key, field, told = redis.call, KEYS[1], ARGV[1], ARGV[7]
-- include _pack.lua

local there = call('HGET', key, field)
if not there then
  return {now, 0, ''}
end
local format, flags = there:byte(1, 2)
local known = ARGV[3] == '' and flags % 4 == ARGV[2]:byte() or there:sub(7, 14) == ARGV[2]
if format ~= 1 or #there < 53 or not known then
  return {now, 0, there}
end
local born, deadline, touched, ends = times('>I7I7I7I7', there, 24)
local noted, through = there:byte(52, 53)
local limit, lifetime, idle, step = times('>I7I7I7I7', ARGV[5], 1)
if flags % 16 < 8 then -- not a copy, whose deadline is its own
  deadline = born + lifetime
end
-- include _over.lua
-- include _happens.lua
if deadline <= now or over then
  return {now, 0, ''}
end
local next = deadline
if idle > 0 then
  next = math.min(now + idle, deadline)
end
local when, moved = there:sub(24, 52), now - touched >= step or next - ends >= step or 2 ^ noted > 2 * step
if moved then
  touched, ends = math.max(touched, now), math.max(ends, next)
  when = pack('>I7I7I7I7', born, deadline, touched, ends) .. ARGV[5]:sub(29)
end
local before, rest = '\0', 54
if through == 1 then -- the ID before it: its tombstone goes after its Grace
  before, rest = there:sub(53, 69), 70
  local tombstone = call('HGET', key, there:sub(54, 69))
  if not tombstone or #tombstone < 41 then
    before = '\0'
  else
    local grace, stays = times('>I7I7', tombstone, 3)
    if grace <= now then
      before = '\0'
      if stays <= now then
        call('HDEL', key, there:sub(54, 69))
      end
    end
  end
end
if rest == 70 and flags % 16 >= 8 then -- a copy shows that it was rotated
  before = there:sub(53, 69)
end
local head, boxes = ARGV[3], ARGV[4]
if head == '' then
  head, boxes = there:sub(1, 23), there:sub(rest)
elseif ARGV[6] ~= '' then
  call('HSET', key, 'v' .. field, ARGV[6])
elseif flags >= 16 then
  call('HDEL', key, 'v' .. field)
end
local record = head .. when .. before .. boxes
call('HSET', key, field, record)
if act ~= 8 or moved then -- a use is an event as often as it is noted
  happens(act, field, record, '')
end
if moved then
  local ms = (ends - ends % 1000) / 1000 + 1
  call('PEXPIREAT', key, ms, 'GT')
end
return done(now)
