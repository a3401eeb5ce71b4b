-- Made of parts/login.lua. Change it there, then: go test ./scripts -update
--
-- Creates a record in the hash of a user: a login, half of one, or the copy of a legacy
-- session with a user. In the same step it looks at the fence, which ends logins that were
-- under way when all sessions were ended, and at the cap.
--
-- KEYS[1]  the user's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  field
-- ARGV[2]  head, 23 bytes
-- ARGV[3]  boxes
-- ARGV[4]  values in a field of their own, or ""
-- ARGV[5]  lives of the record, of a login, and of a remembered one, 22 bytes each: see README.md
-- ARGV[6]  eleven numbers, seven bytes each, named below
-- ARGV[7]  marks of a fence, 8 bytes each: of one that may have to be planted, and of the one that this
--          request has raised itself, or zeros
-- ARGV[8]  fence that half a login has noted, 15 bytes; "": none
-- ARGV[9]  handle of the session that is to be replaced, 9 bytes; "": none
-- ARGV[10] field of the session that this one goes on from, whose handle it keeps; "": none
-- ARGV[11] what the caller adds to events: see parts/_happens.lua
--
-- Reply: now, created; -now, and a sweep is due. Or, of half a login, and where the request was
-- compared with a fence by time, {now, 1, note, margin}, and {now, 2, note, margin} if a sweep is
-- due: note is the end of half a login and the fence that it noted, 22 bytes, or "". margin is how
-- long after the fence the request was loaded, µs, at most; -1: it was not compared.
-- Not created: {now, 0, there}, there stands at the field, or "" if the deadline of a copy has
-- passed; {now, 4, ""} the fence refuses
-- it, or may have to; {now, 5, ""} there is no session to be replaced; {now, 6, ""} there are too many;
-- {now, 7, ""} the session that this one goes on from has ended. now is Redis's time in µs.
local call, key, field, replaced, told = redis.call, KEYS[1], ARGV[1], ARGV[9], ARGV[11]
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

-- keeps    deadline that a copy keeps, µs since 1970; 0: its lifetime decides
-- loaded   when the request was loaded, at the earliest, µs since 1970
-- age      how long ago that is by the caller's own clock, µs
-- fenced   how long a fence stands, µs
-- within   how long half a login stands, µs; 0: a whole one
-- most     sessions
-- refuses  1: refuse when full; else the idlest is ended
-- oldest   sessions that were born before are over, µs since 1970
-- grace    µs
-- legacy   lifetime of legacy sessions: a copy was born by so much before its deadline, µs
-- waits    how long the caller waits for the reply at most, µs
local keeps, loaded, age, fenced, within, most, refuses, oldest, grace, legacy, waits =
  times('>I7I7I7I7I7I7I7I7I7I7I7', ARGV[6], 1)
local life, half, copy = ARGV[5]:sub(1, 22), within > 0, keeps > 0
local stands = call('HMGET', key, field, 'f', ARGV[10])
local there, fence, from = stands[1], stands[2], stands[3]
if there then
  -- Whether what stands at a field must stay. A copy keeps its place, and is not made again.
  local function taken(there)
    local format, flags = there:byte(1, 2)
    if format == 1 then
      return #there >= 53 and times('>I7', there, flags % 16 >= 8 and 31 or 45) > now
    end
    return #there >= 41 and times('>I7', there, 10) > now
  end
  if taken(there) then
    return {now, 0, there}
  end
end
local lifetime, idle = times('>I7I7', life, 1)
local deadline = keeps > 0 and keeps or now + lifetime
if deadline <= now then
  return {now, 0, ''}
end
local ends = idle > 0 and math.min(deadline, now + idle) or deadline
local when = pack('>I7I7I7I7', now, deadline, now, ends) .. life:sub(22)

-- The fence: its time, until, mark, and the time and mark of the one that it replaced.
local margin, stale = -1, math.max(age, now - loaded) > fenced
if fence and (#fence ~= 37 or times('>I7', fence, 8) <= now) then
  fence = false
end
if fence and times('>I7', fence, 1) > now then -- the clock was set back
  fence = pack('>I7', now) .. fence:sub(8)
  call('HDEL', key, 'v') -- deletes nothing; after a deletion a full Redis lets the script write
  call('HSET', key, 'f', fence)
end
local at, noted = 0, ''
if fence then
  at, noted = times('>I7', fence, 1), fence:sub(1, 7) .. fence:sub(15, 22)
  if fence:sub(15, 22) == ARGV[7]:sub(9) then
    at, noted = times('>I7', fence, 23), fence:sub(23)
  end
end
if copy then
  stale = at > 0
elseif ARGV[8] ~= '' then
  stale = noted ~= ARGV[8]
elseif fence then
  margin = now - age - at
  stale = stale or loaded <= at or margin <= 0
end

local size, mine, count, last, refusal, why = call('HLEN', key), ARGV[2]:sub(15, 23), 0, 0
local goes = ARGV[10] == '' or from and from:byte(1) == 1 and #from >= 53 and times('>I7', from, 45) > now and from:sub(15, 23) == mine
if stale then
  refusal, why = 4, 'stale'
elseif not goes or replaced ~= '' or size >= most then
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
  -- The sessions that there are, by handle: those of the same kind, whole or half.
  local sessions = {}
  for f, r in each() do
    local format, flags = r:byte(1, 2)
    if format == 1 and #r >= 53 and flags % 4 > 0 and (flags % 4 == 3) == half then
      local born, dies, touched, till = times('>I7I7I7I7', r, 24)
      local lifetime, idle = times('>I7I7', ARGV[5], flags % 4 == 2 and 45 or 23)
      if flags % 16 >= 8 then -- a copy, whose deadline is its own
        born = dies - legacy
      elseif not half then
        dies = born + lifetime
      end
      if till <= now then -- or it counts again when the clock is set back
        bury(f, r, grace, 0, '', none)
      elseif dies > now and born >= oldest and (half or idle == 0 or touched + idle + 2 ^ r:byte(52) > now) then
        local handle = r:sub(15, 23)
        local s = sessions[handle]
        if not s then
          s = {handle = handle, touched = 0, born = born}
          sessions[handle] = s
          if handle ~= mine and handle ~= replaced then
            count = count + 1
          end
        end
        s.touched = math.max(s.touched, touched)
        s[#s + 1] = f
      end
    end
  end
  if not goes and not sessions[mine] then
    return {now, 7, ''}
  end
  local other = replaced ~= '' and replaced ~= mine
  if replaced ~= '' and not sessions[replaced] then
    refusal, why = 5, 'unknown'
  elseif count >= most and refuses == 1 and not half then
    refusal, why = 6, 'full'
  elseif (count >= most or other) and margin >= 0 and margin < waits then
    -- The caller refuses a login whose reply takes longer than the margin. What was ended for it would
    -- stay ended, so where that may come there is no login.
    refusal, why = 4, 'stale'
  else
    local function over(s)
      for i, f in ipairs(s) do
        local r = call('HGET', key, f)
        if i == 1 then
          happens(5, f, r, 'replaced')
        end
        bury(f, r, grace, (times('>I7', r, 31)), 'replaced', none)
      end
    end
    if other then
      over(sessions[replaced])
    end
    local idlest = {}
    for handle, s in pairs(sessions) do
      if handle ~= mine and handle ~= replaced then
        idlest[#idlest + 1] = s
      end
    end
    table.sort(idlest, function(a, b)
      if a.touched ~= b.touched then
        return a.touched < b.touched
      end
      return a.born < b.born or a.born == b.born and a.handle < b.handle
    end)
    for i = 1, count - most + 1 do
      over(idlest[i])
    end
  end
end
if refusal then
  if not copy then
    happens(6, field, ARGV[2] .. when .. '\0' .. (half and ('\0'):rep(22) or '') .. ARGV[3], why)
  end
  return done({now, refusal, ''})
end

last = math.max(last, copy and deadline or ends)
local note = ''
if half then
  local till = now + fenced
  if fence then
    till = math.max(till, (times('>I7', fence, 8)))
    fence = fence:sub(1, 7) .. pack('>I7', till) .. fence:sub(15)
  else
    fence = pack('>I7I7', 0, till) .. ARGV[7]:sub(1, 8) .. ('\0'):rep(15)
  end
  call('HSET', key, 'f', fence)
  note = pack('>I7', now + within) .. fence:sub(1, 7) .. fence:sub(15, 22)
  last = math.max(last, till)
end
local record = ARGV[2] .. when .. '\0' .. note .. ARGV[3]
call('HSET', key, field, record)
happens(copy and 7 or 1, field, record, '')
if ARGV[4] ~= '' then
  call('HSET', key, 'v' .. field, ARGV[4])
elseif there then
  call('HDEL', key, 'v' .. field)
end
local new = size == 0
local ms = (last - last % 1000) / 1000 + 1
if new then -- GT does nothing to a key without a TTL
  call('PEXPIREAT', key, ms)
else
  call('PEXPIREAT', key, ms, 'GT')
end
local sweep = count >= most or size >= 15 and size + 1 >= 2 * (tonumber(call('HGET', key, 's')) or 8)
if half or margin >= 0 then
  return done({now, sweep and 2 or 1, note, margin})
end
return done(sweep and -now or now)
