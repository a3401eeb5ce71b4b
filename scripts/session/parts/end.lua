-- Leaves a tombstone at an ID, so that nothing that was under way with it is saved or
-- sets a cookie.
--
-- KEYS[1]  the owner's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  field
-- ARGV[2]  what may be ended:
--          "mark"    nothing: only a place where nothing stands is taken
--          "logout"  the session in each place that it has: while it changes its ID it has
--                    two, and its IDs of before lead to it; nothing stays nothing
--          "retire"  the record of the revision in ARGV[4], or nothing
--          "replace" whatever is there
-- ARGV[3]  Grace, µs
-- ARGV[4]  revision, 8 bytes, of "retire". Of "logout" the handle of a session that goes on
-- ARGV[5]  mark of who leaves it, 9 bytes, in the handle's place; zeros: none. Of "logout"
--          the session's handle; zeros: that of what stands there
-- ARGV[6]  until when "logout" keeps the place of a copy, also if nothing is there, µs since
--          1970; 0: it is none
-- ARGV[7]  what the caller adds to events: see parts/_happens.lua
--
-- Reply: now, ended; -now, ended, and a sweep is due; {now, 0, there}, not ended: there
-- stands at the field. now is Redis's time in µs.
local call, key, field, mode, told = redis.call, KEYS[1], ARGV[1], ARGV[2], ARGV[7]
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

-- the handle of the session that a record or a tombstone is of
local function handle(s)
  local format = s and s:byte(1)
  if format == 1 and #s >= 53 then
    return s:sub(15, 23)
  elseif (format == 2 or format == 3) and #s >= 41 and s:byte(2) % 2 == 1 then
    return s:sub(17, 25)
  end
end

local last = 0
-- include _bury.lua
-- include _happens.lua
local function stop(field, there, copy)
  if standing(there) == 1 then
    happens(act, field, there, '')
    act = 0 -- it is one session
  end
  bury(field, there, ARGV[3], tonumber(ARGV[6]), '', mode == 'logout' and none or ARGV[5], copy)
end

local there = call('HGET', key, field)
local stands = standing(there)
if mode == 'mark' and stands > 0 then
  return {now, 0, there}
elseif mode == 'retire' and (stands == 1 and there:sub(7, 14) ~= ARGV[4] or stands == 2) then
  return {now, 0, there}
elseif mode == 'logout' then
  call('HDEL', key, 'v' .. field) -- a full Redis lets a script go on that has freed something first
  local through = there and there:byte(1) == 2 -- by an ID that was rotated: with the IDs after it
  local mine = ARGV[5] ~= none and ARGV[5] or handle(there)
  if mine and mine ~= ARGV[4] then
    -- include _each.lua
    for f, r in each() do
      if f ~= field and (r:byte(1) == 1 or through and r:byte(1) == 2) and handle(r) == mine then
        stop(f, r)
      end
    end
  end
end
local kept = mode == 'logout' and ARGV[6] == '0' and (not there or there:byte(1) == 3)
if not kept then
  stop(field, there, ARGV[6] ~= '0')
end
if last == 0 then
  return now
end
local ms = (last - last % 1000) / 1000 + 1
if call('PEXPIREAT', key, ms, 'GT') == 0 and not there and call('PTTL', key) == -1 then
  call('PEXPIREAT', key, ms)
end
if there or kept then -- no field more
  return done(now)
end
-- include _due.lua
return done(due and -now or now)
