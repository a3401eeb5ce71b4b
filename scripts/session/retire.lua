-- Made of parts/retire.lua. Change it there, then: go test ./scripts -update
--
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
      -- Publishes the end of a session for those who watch it. Where that is not permitted, they
      -- learn of it by looking.
      local channel, owner
      local function tell(handle)
        channel, owner = channel or key:match('^[^{]*') .. 'ended', owner or key:match('[^:]*$')
        redis.pcall('PUBLISH', channel, owner .. handle)
      end
      tell(its)
      happens(5, at, r, 'replaced')
      -- Goes over what stands at the IDs of an owner. The hash's other fields are put into a list, if
      -- there is one, and none of them is read. A hundred are read ahead: the loop may delete no field but
      -- the one that it is at.
      local function each(others)
        local fields, n, i, some = {}, 0, 0, nil
        for _, f in ipairs(call('HKEYS', key)) do
          if #f == 16 then
            n = n + 1
            fields[n] = f
          elseif others then
            others[#others + 1] = f
          end
        end
        return function()
          i = i + 1
          if i > n then
            return nil
          end
          if i % 100 == 1 then
            some = call('HMGET', key, unpack(fields, i, math.min(i + 99, n)))
          end
          return fields[i], some[(i - 1) % 100 + 1]
        end
      end
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
