-- Made of parts/rotate.lua. Change it there, then: go test ./scripts -update
--
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
-- A sweep is due when there are 16 fields, and twice as many as the last one left.
local n = call('HLEN', key)
local due = n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8)
return done(due and -now or now)
