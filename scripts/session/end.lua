-- Made of parts/end.lua. Change it there, then: go test ./scripts -update
--
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
-- Publishes the end of a session for those who watch it. Where that is not permitted, they
-- learn of it by looking.
local channel, owner
local function tell(handle)
  channel, owner = channel or key:match('^[^{]*') .. 'ended', owner or key:match('[^:]*$')
  redis.pcall('PUBLISH', channel, owner .. handle)
end
-- Ends what stands at a field: a tombstone takes its place, which keeps the handle, stays
-- for the Grace and until a time, and gives a reason. Of one that is there it keeps where
-- it leads, its reason, and how long it stays. It publishes the end for watchers. What has
-- lived is 1, and 3 if it keeps the place of a copy, so that none is made again.
--
-- The script has a variable last: when the last thing that stays goes. none is the handle of
-- nobody. freed: something was deleted, after which a full Redis lets the script write.
local freed, none = false, ('\0'):rep(9)
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
  elseif (format == 2 or format == 3) and #there >= 41 then
    if there:byte(2) % 2 == 1 then -- or it shows a mark, which this one does not inherit
      lived, handle = there:sub(2, 2), there:sub(17, 25)
    end
    ends, next = math.max(ends, (times('>I7', there, 10))), there:sub(26, 41)
    reason = format == 3 and there:sub(42) or reason
  end
  if mark ~= none then
    lived, handle = lived == '\3' and lived or '\0', mark
  end
  if copy then
    lived = '\3'
  end
  -- First what a full Redis permits.
  if not freed or format ~= 1 or (flags or 16) >= 16 then
    call('HDEL', key, 'v' .. field)
    freed = true
  end
  call('HSET', key, field, '\3' .. lived .. pack('>I7I7', now + grace, ends) .. handle .. next .. reason)
  last = math.max(last, ends)
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
-- A sweep is due when there are 16 fields, and twice as many as the last one left.
local n = call('HLEN', key)
local due = n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8)
return done(due and -now or now)
