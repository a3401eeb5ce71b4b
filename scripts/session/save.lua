-- Made of parts/save.lua. Change it there, then: go test ./scripts -update
--
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
-- Whether what stands is over, by its own time or the idle timeout that is configured now. Who
-- held it while it did not answer does not bring it back. limit is that idle timeout, µs; 0: none.
-- noted is the power of two below which uses were noted.
local over = ends <= now or limit > 0 and touched + limit + 2 ^ noted <= now
-- What happens to a user's session goes into the stream of the partition in the same script. told
-- is what the caller says of it: 8 random bytes, how long events stay, µs, how many at most, the
-- kind of what it does, and who does it; nil: no events are wanted. An event is its format, its
-- kind, its ID, the time, the field, reason and actor with their lengths, the owner, and the
-- record without its values.
local act, happens, done = 0, function() end, function(reply) return reply end
if told and #told >= 23 then -- each run makes its functions anew, and most runs tell nothing
  -- A record without its values: up to the end of the owner's box.
  local function cut(r)
    local at = r:byte(53) == 1 and 70 or 54
    if r:byte(2) % 4 == 3 then
      at = at + 22
    end
    local high, low = r:byte(at, at + 1)
    local salt = r:sub(3, 6) == '\0\0\0\0' and 0 or 4
    return r:sub(1, at + 1 + salt + (high or 0) * 256 + (low or 0))
  end
  local happened = {}
  act = told:byte(23) -- the caller's kind; 0: that of the script
  happens = function(kind, field, record, reason)
    local of = record and record:byte(1) == 1 and #record >= 53 and record:byte(2) % 4 or 0
    if kind > 0 and (of == 1 or of == 2 or kind == 6) then
      local n = #happened
      happened[n + 1] = '\1' .. string.char(kind) .. told:sub(1, 8) .. string.char((n - n % 256) / 256 % 256, n % 256) .. pack('>I7', now) ..
        field .. string.char(#reason) .. reason .. string.char(#told - 23) .. told:sub(24) .. key:match('[^:]*$') .. cut(record)
    end
  end
  -- Appends what has happened, and gives the script's reply. The caller appends it if there is no
  -- second key, or that holds something else.
  done = function(reply)
    if #happened == 0 then
      return reply
    end
    local stream, longest, most = KEYS[2], times('>I7I7', told, 9)
    local ok = stream
    for _, event in ipairs(happened) do
      ok = ok and type(redis.pcall('XADD', stream, '*', 'e', event)) == 'string'
    end
    ok = ok and redis.pcall('PEXPIRE', stream, math.ceil(longest / 1000)) == 1
    if ok and told:byte(1) < 16 * #happened then -- one event in 16: to trim costs as much as one
      redis.pcall('XTRIM', stream, 'MAXLEN', '~', most)
      redis.pcall('XTRIM', stream, 'MINID', '~', math.max(0, math.floor((now - longest) / 1000)))
    end
    return ok and reply or {reply, happened}
  end
end
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
