-- Completes a change of ID without grace within one owner: the record that a login has
-- made beside the old one gets its own life, and the old ID is ended, with what replaced
-- it meanwhile: of two logins at once from one ID, one stays. If the session at the old ID had
-- ended, its tombstone names the new one from then on: a logout with the old cookie ends that.
--
-- KEYS[1]  the owner's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  field of the new ID
-- ARGV[2]  revision of the new record that the caller knows, 8 bytes
-- ARGV[3]  head of the new record, 23 bytes; "": head, boxes and values stay
-- ARGV[4]  boxes
-- ARGV[5]  life, 22 bytes: see README.md
-- ARGV[6]  values in a field of their own, or ""
-- ARGV[7]  field of the old ID
-- ARGV[8]  revision of the old record that the caller knows; "": any
-- ARGV[9]  Grace, µs
-- ARGV[10] what the caller adds to events: see parts/_happens.lua
--
-- Reply: now, done; nothing done: {now, 0, there}, there stands at the new ID, "" for
-- nothing; {now, 3, there}, there stands at the old one, which was changed or rotated. now is Redis's time in µs.
local call, key, new, old, told = redis.call, KEYS[1], ARGV[1], ARGV[7], ARGV[10]
-- include _pack.lua
-- include _happens.lua

local both = call('HMGET', key, new, old)
local there, before = both[1], both[2]
if not there then
  return {now, 0, ''}
end
local format, flags = there:byte(1, 2)
if format ~= 1 or #there < 53 or there:sub(7, 14) ~= ARGV[2] then
  return {now, 0, there}
end
local born, deadline, touched, ends = times('>I7I7I7I7', there, 24)
if ends <= now then
  return {now, 0, ''}
end
if before and ARGV[8] ~= '' then
  local format = before:byte(1)
  if format == 1 and #before >= 53 and times('>I7', before, 45) > now and before:sub(7, 14) ~= ARGV[8] or
    format == 2 and #before >= 41 and times('>I7', before, 3) > now then
    return {now, 3, before}
  end
end

local lifetime, idle = times('>I7I7', ARGV[5], 1)
if flags % 16 < 8 then -- not a copy, whose deadline is its own
  deadline = born + lifetime
end
touched = math.max(touched, now)
ends = idle > 0 and math.min(touched + idle, deadline) or deadline
local mine, last, grace, at, r = there:sub(15, 23), ends, now + ARGV[9], old, before
-- The ID that was ended last, whose tombstone is written with the record; and the field with the values
-- of what was there, which is deleted only then, since after that a full Redis lets the script write.
local left, tombstone, apart
for _ = 1, 4096 do -- no more IDs are in their Grace
  if at == new then
    break
  end
  local stays, next, lived, format, flags = grace, nil, '\1', (r or ''):byte(1, 2)
  if format == 1 and #r >= 53 then
    local its = r:sub(15, 23)
    if flags % 16 >= 8 then -- a copy keeps its place
      stays, lived = math.max(grace, (times('>I7', r, 31))), '\3'
    end
    if its ~= mine and times('>I7', r, 45) > now then -- another session ends
      -- include _tell.lua
      tell(its)
      happens(5, at, r, 'replaced')
      -- include _each.lua
      for f, other in each() do -- while that changes its ID it has two places
        if f ~= at and other:byte(1) == 1 and other:sub(15, 23) == its then
          call('HSET', key, f, '\3\1' .. pack('>I7I7', grace, grace) .. mine .. new)
          call('HDEL', key, 'v' .. f)
        end
      end
    end
  elseif (format == 2 or format == 3) and #r >= 41 then
    stays, next, lived = math.max(grace, (times('>I7', r, 10))), r:sub(26, 41), flags == 3 and '\3' or '\1'
  end
  if tombstone then
    call('HSET', key, left, tombstone)
  end
  left, tombstone = at, '\3' .. lived .. pack('>I7I7', grace, stays) .. mine .. new
  if format == 1 and (flags or 0) >= 16 then
    apart = 'v' .. at
  end
  last = math.max(last, stays)
  r = next and call('HGET', key, next)
  if not r then
    break
  end
  at = next
end
local head, boxes = ARGV[3], ARGV[4]
if head == '' then
  head, boxes = there:sub(1, 23), there:sub(there:byte(53) == 1 and 70 or 54)
end
local record = head .. pack('>I7I7I7I7', born, deadline, touched, ends) .. ARGV[5]:sub(22) .. '\1' .. old .. boxes
if tombstone then
  call('HSET', key, new, record, left, tombstone)
else
  call('HSET', key, new, record)
end
if apart then
  call('HDEL', key, apart)
end
happens(act, new, record, '')
if ARGV[6] ~= '' then
  call('HSET', key, 'v' .. new, ARGV[6])
elseif ARGV[3] ~= '' and flags >= 16 then
  call('HDEL', key, 'v' .. new)
end
local ms = (last - last % 1000) / 1000 + 1
call('PEXPIREAT', key, ms, 'GT')
return done(now)
