-- Made of parts/end_all.lua. Change it there, then: go test ./scripts -update
--
-- Ends sessions of a user. All but the first of the modes raise the fence: a login whose
-- request was loaded before is refused, however late it comes.
--
-- KEYS[1]  the user's hash
-- KEYS[2]  the stream of its partition's events, if they are wanted
-- ARGV[1]  "one"     that of the handle
--          "all"     all
--          "others"  all but that of the handle, which must stand
-- ARGV[2]  handle, 9 bytes
-- ARGV[3]  Grace, µs
-- ARGV[4]  reason, at most 32 bytes
-- ARGV[5]  mark of the fence, 8 bytes; with that of the one that stands, the fence from
--          before is kept beside it, as the first time
-- ARGV[6]  how long a fence stands, µs
-- ARGV[7]  what the caller adds to events: see parts/_happens.lua
--
-- Reply: {now, 1, "", {field, record, …}}, what was ended, each record up to the end of the
-- owner's box; {now, 5, ""}, nothing was ended: no session of the handle stands. now is
-- Redis's time in µs.
local call, key, mode, told = redis.call, KEYS[1], ARGV[1], ARGV[7]
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

local grace = tonumber(ARGV[3])
local new, stands, ended, fields, doomed, heard = call('HLEN', key) == 0, false, {}, {}, {}, {}
for f, r in each() do
  if r:byte(1) == 1 and #r >= 53 then
    local its = r:sub(15, 23) == ARGV[2]
    stands = stands or its and times('>I7', r, 45) > now
    if its == (mode == 'one') or mode == 'all' then
      fields[#fields + 1], doomed[#doomed + 1] = f, r
    end
  end
end
if mode ~= 'all' and not stands then
  return {now, 5, ''}
end
for i, r in ipairs(doomed) do
  local f, reason = fields[i], ''
  if times('>I7', r, 45) > now then -- or it is over, until the clock is set back
    ended[#ended + 1] = f
    ended[#ended + 1] = cut(r)
    reason = ARGV[4]
    if not heard[r:sub(15, 23)] then -- while it changes its ID it has two places
      heard[r:sub(15, 23)] = true
      happens(5, f, r, reason)
    end
  end
  local till = reason == '' and 0 or times('>I7', r, 31) -- a reason stays for as long as the session would have
  bury(f, r, grace, till, reason, none)
end
if mode ~= 'one' then
  local fence, at, before, till = call('HGET', key, 'f'), now, ('\0'):rep(15), now + ARGV[6]
  if fence and #fence == 37 and times('>I7', fence, 8) > now then
    till = math.max(till, (times('>I7', fence, 8)))
    at = math.max(now, times('>I7', fence, 1) + 1) -- it always grows
    before = fence:sub(15, 22) == ARGV[5] and fence:sub(23) or fence:sub(1, 7) .. fence:sub(15, 22)
  end
  call('HDEL', key, 'v') -- deletes nothing; after a deletion a full Redis lets the script write
  call('HSET', key, 'f', pack('>I7I7', at, till) .. ARGV[5] .. before)
  last = math.max(last, till)
end
local ms = (last - last % 1000) / 1000 + 1
if new then -- GT does nothing to a key without a TTL
  call('PEXPIREAT', key, ms)
else
  call('PEXPIREAT', key, ms, 'GT')
end
return done({now, 1, '', ended})
