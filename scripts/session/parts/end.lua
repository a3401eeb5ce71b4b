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
-- include _pack.lua

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

-- include _bury.lua
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
