-- Made of parts/save.lua. Change it there, then: go test ./scripts -update
--
-- Writes a record anew if it is still the one that the caller knows, or notes that it
-- was used. Born and a deadline of its own stay, no time goes back, and the others are
-- set only if they move by a twentieth of the idle timeout, or a hundredth of the lifetime.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field
-- ARGV[2]  revision that the caller knows, 8 bytes; "": any, for a touch
-- ARGV[3]  head, 23 bytes; "": a touch, head and boxes stay
-- ARGV[4]  boxes
-- ARGV[5]  lifetime, µs
-- ARGV[6]  idle timeout and its tolerance of a twentieth, µs; 0: none
-- ARGV[7]  values in a field of their own, or ""
--
-- Reply: now, written; {now, 0, there}, not written: there stands at the field, "" for
-- nothing. now is Redis's time in µs.
local call, key, field = redis.call, KEYS[1], ARGV[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Times are seven bytes, big-endian. miniredis has no struct.
local struct = rawget(_G, 'struct')
local pack = struct and struct.pack or function(_, ...)
  local s = ''
  for _, n in ipairs({...}) do
    local b = ''
    for _ = 1, 7 do
      b = string.char(n % 256) .. b
      n = (n - n % 256) / 256
    end
    s = s .. b
  end
  return s
end
local times = struct and struct.unpack or function(format, s, i)
  local out = {}
  for k = 1, (#format - 1) / 2 do
    out[k] = 0
    for j = i + 7 * k - 7, i + 7 * k - 1 do
      out[k] = out[k] * 256 + s:byte(j)
    end
  end
  return unpack(out)
end

local there = call('HGET', key, field)
if not there then
  return {now, 0, ''}
end
local format, flags = there:byte(1, 2)
if format ~= 1 or #there < 53 or ARGV[2] ~= '' and there:sub(7, 14) ~= ARGV[2] then
  return {now, 0, there}
end
local born, deadline, touched, ends = times('>I7I7I7I7', there, 24)
if flags % 16 < 8 then -- not a copy, whose deadline is its own
  deadline = born + ARGV[5]
end
if ends <= now or deadline <= now then
  return {now, 0, ''}
end
local idle, next, step = tonumber(ARGV[6]), deadline, ARGV[5] / 100
if idle > 0 then
  next, step = math.min(now + idle, deadline), idle / 21
end
local when, moved = there:sub(24, 52), now - touched >= step or next - ends >= step or 2 ^ there:byte(52) > 2 * step
if moved then
  touched, ends = math.max(touched, now), math.max(ends, next)
  when = pack('>I7I7I7I7', born, deadline, touched, ends) .. string.char(select(2, math.frexp(step)))
end
local before, rest = '\0', 54
if there:byte(53) == 1 then -- the ID before it: its tombstone goes after its Grace
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
elseif ARGV[7] ~= '' then
  call('HSET', key, 'v' .. field, ARGV[7])
elseif flags >= 16 then
  call('HDEL', key, 'v' .. field)
end
call('HSET', key, field, head .. when .. before .. boxes)
if moved then
  local ms = (ends - ends % 1000) / 1000 + 1
  call('PEXPIREAT', key, ms, 'GT')
end
return now
