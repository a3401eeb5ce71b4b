-- Made of parts/end.lua. Change it there, then: go test ./scripts -update
--
-- Leaves a tombstone at an ID, so that nothing that was under way with it is saved or
-- sets a cookie.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field
-- ARGV[2]  what may be ended:
--          "mark"    nothing: only a place where nothing stands is taken
--          "logout"  the record, or all that a rotated ID leads to; nothing stays nothing
--          "retire"  the record of the revision in ARGV[4], or nothing
--          "replace" whatever is there
-- ARGV[3]  Grace, µs
-- ARGV[4]  revision, 8 bytes, of "retire"
-- ARGV[5]  mark of who leaves it, 9 bytes, in the handle's place; zeros: none
-- ARGV[6]  reason, at most 32 bytes
-- ARGV[7]  until when "logout" keeps the place of a copy, also if nothing is there, µs since
--          1970; 0: it is none
--
-- Reply: now, ended; -now, ended, and a sweep is due; {now, 0, there}, not ended: there
-- stands at the field. now is Redis's time in µs.
local call, key, field, mode = redis.call, KEYS[1], ARGV[1], ARGV[2]
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

-- what stands there: 0 nothing, 1 a record, 2 or 3 a tombstone in its Grace, else garbage
local function standing(s)
  local format = s and s:byte(1) or 0
  if format == 1 and #s >= 53 then
    return times('>I7', s, 45) > now and 1 or 0
  elseif (format == 2 or format == 3) and #s >= 41 then
    return times('>I7', s, 3) > now and format or 0
  end
  return s and #s > 0 and 4 or 0
end

-- Ends what stands at a field: a tombstone takes its place, which keeps the handle, stays
-- for the Grace and until a time, and gives a reason. Of one that is there it keeps where
-- it leads, its reason, and how long it stays. It publishes the end for watchers. What has
-- lived is 1, and 3 if it keeps the place of a copy, so that none is made again.
-- Publishes the end of a session for those who watch it. Where that is not permitted, they
-- learn of it by looking.
local function tell(handle)
  redis.pcall('PUBLISH', key:match('^[^{]*') .. 'ended', key:match('[^:]*$') .. handle)
end
local last = 0
local function bury(field, there, grace, till, reason, mark, copy)
  local lived, handle, next = '\0', mark, ('\0'):rep(16)
  local ends = math.max(now + grace, till)
  local format, flags = 0, 0
  if there then
    format, flags = there:byte(1, 2)
  end
  if format == 1 then
    lived = '\1'
    if #there >= 53 then
      handle = there:sub(15, 23)
      if flags % 16 >= 8 then -- a copy
        lived, ends = '\3', math.max(ends, (times('>I7', there, 31)))
      end
      tell(handle)
    end
    call('HDEL', key, 'v' .. field)
  elseif (format == 2 or format == 3) and #there >= 41 then
    if there:byte(2) % 2 == 1 then -- or it shows a mark, which this one does not inherit
      lived, handle = there:sub(2, 2), there:sub(17, 25)
    end
    ends, next = math.max(ends, (times('>I7', there, 10))), there:sub(26, 41)
    reason = format == 3 and there:sub(42) or reason
  end
  if mark ~= ('\0'):rep(9) then
    lived, handle = lived == '\3' and lived or '\0', mark
  end
  if copy then
    lived = '\3'
  end
  call('HSET', key, field, '\3' .. lived .. pack('>I7I7', now + grace, ends) .. handle .. next .. reason)
  last = math.max(last, ends)
end
local function stop(field, there, copy) bury(field, there, ARGV[3], tonumber(ARGV[7]), ARGV[6], ARGV[5], copy) end

local there = call('HGET', key, field)
local stands = standing(there)
if mode == 'mark' and stands > 0 then
  return {now, 0, there}
elseif mode == 'retire' and (stands == 1 and there:sub(7, 14) ~= ARGV[4] or stands == 2) then
  return {now, 0, there}
elseif mode == 'logout' and ARGV[7] == '0' and (not there or there:byte(1) == 3) then
  return now
elseif mode == 'logout' then -- the whole chain of rotations
  local at, r = field, there
  for _ = 1, 4096 do -- no more IDs are in their Grace
    if not r or r:byte(1) ~= 2 or #r < 41 then
      break
    end
    at = r:sub(26, 41)
    r = call('HGET', key, at)
    if r and (r:byte(1) == 1 or r:byte(1) == 2) then
      stop(at, r)
    end
  end
end
stop(field, there, ARGV[7] ~= '0')
local ms = (last - last % 1000) / 1000 + 1
if call('PEXPIREAT', key, ms, 'GT') == 0 and not there and call('PTTL', key) == -1 then
  call('PEXPIREAT', key, ms)
end
if there then -- no field more
  return now
end
local n = call('HLEN', key)
if n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8) then
  return -now
end
return now
